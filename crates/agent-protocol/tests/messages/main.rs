//! Messages in both directions: they round-trip, limits are enforced, and no input causes a panic.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
#![allow(clippy::needless_pass_by_value, reason = "cases are written where they are used")]

#[path = "../../../../fuzz/protocol.rs"]
mod fuzz;
mod limits;
mod random;
mod round_trip;
mod strategies;
