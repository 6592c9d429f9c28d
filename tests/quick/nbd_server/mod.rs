//! The NBD server with several clients: well-behaved ones, hostile ones, and those of other
//! projects.

mod corpus;
mod foreign;
mod hostile;
mod memory;
mod model;
mod negotiation;
mod peer;
mod transmission;
