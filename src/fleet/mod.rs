//! Many guests: mapped one process each, with results that survive whatever happens to the run.
//!
//! ```text
//! paths ──► plan ──► manifest ──► run ──► one mapper process a guest ──► store ──► merge
//!                                  │                                      ▲
//!                                  └── what is missing, failed or changed ┘
//! ```
//!
//! * a [`Guest`] is an id and its disks; [`plan`] finds guests below directories, [`libvirt`]
//!   asks a host for its domains, [`manifest`] keeps them in a file;
//! * a [`Store`] is the directory with the maps and one [`Record`] for each guest, which takes its name
//!   when all of it is on the disk: so whatever is killed when, nothing finished is lost, and nothing
//!   is there twice;
//! * [`run`](run::run) has a [`Mapper`] map what has no record, or one that is no longer right. The mapper
//!   is a program: what a hostile guest does to it, a crash, a hang, memory without end, ends with that
//!   one process. It tells by [`Event`]s on standard error how it goes;
//! * a [`Shard`] is a share of the guests for one machine of several, the same at each run.

pub mod capacity;
mod error;
mod guest;
pub mod libvirt;
pub mod manifest;
pub mod plan;
mod record;
pub mod run;
mod shard;
mod store;
mod worker;

pub use error::FleetError;
pub use guest::{BadId, Guest, GuestId};
pub use record::{MapFile, MappedDisk, Record, Status};
pub use shard::{BadShard, Shard};
pub use store::{MAP_SUFFIXES, RICH_SUFFIX, Stale, Store};
pub use worker::Mapper;
