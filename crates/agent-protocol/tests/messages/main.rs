//! All messages, in both directions: they round-trip, their limits hold, and no input does harm.

#[path = "../../../../fuzz/protocol.rs"]
mod fuzz;
mod limits;
mod random;
mod round_trip;
mod strategies;
