//! Many guests: each is mapped by a process of its own, and finished results survive any end of the
//! run.
//!
//! ```text
//! paths ──► plan ──► manifest ──► run ──► one mapper process a guest ──► store ──► merge
//!                                  │                                      ▲
//!                                  └─── missing, failed or changed ────────┘
//! ```
//!
//! * a [`Guest`] is an ID and disks; [`plan`] finds guests in directories, [`libvirt`] asks a host
//!   for its domains, [`manifest`] stores guests in a file;
//! * a [`Store`] is the directory with the maps and one [`Record`] for each guest. Files are
//!   renamed to their final names when they are complete on disk, so a killed run loses nothing
//!   that was finished;
//! * [`run`](run::run) starts a [`Mapper`] for each guest without a current record. The mapper is a
//!   separate program, so a hostile guest that makes it crash, hang or exhaust its memory harms
//!   only that process. It reports its progress on standard error as
//!   [`ProgressEvent`](crate::mapper::progress::ProgressEvent)s;
//! * a [`Shard`] is the part of the guests that one of several machines maps; it is the same in
//!   each run.

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
