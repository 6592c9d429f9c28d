//! The NBD server as its clients see it: well-behaved ones, hostile ones, and other people's.

mod corpus;
mod foreign;
mod hostile;
mod memory;
mod model;
mod negotiation;
mod peer;
mod transmission;
