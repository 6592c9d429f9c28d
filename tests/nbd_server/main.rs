//! The NBD server as its clients see it: well-behaved ones, hostile ones, and other people's.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test, that is how to fail")]

mod corpus;
mod foreign;
mod hostile;
mod memory;
mod model;
mod negotiation;
mod peer;
mod transmission;
