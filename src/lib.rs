//! Tells which file every byte of a virtual machine's disk belongs to.
//!
//! This library runs the mapping. What it is made of has crates of its own:
//!
//! ```text
//! virt_bmap_image ─► virt_bmap_nbd ─► recorder ─► virt_bmap_map ─► text and its users
//!                         ▲                            ▲
//!                     appliance ──────── probe ────────┘
//! ```
//!
//! * [`virt_bmap_image`] opens a guest's disk read-only, whatever its format, and keeps writes in a
//!   private copy-on-write layer;
//! * [`virt_bmap_nbd`] serves it, asynchronously, over the NBD protocol;
//! * [`recorder`] notes what is read, and for which object;
//! * [`appliance`] is the small Linux, run by libguestfs, that reads the disks;
//! * [`probe`] decides what it reads and in which order, and learns the names of the objects;
//! * [`virt_bmap_map`] is the resulting block map: model, index, formats, and questions to it;
//! * [`mapper`] puts these together;
//! * [`mod@changed`] finds what was written between two states of a disk;
//! * [`update`] tells whether a map has to be made again;
//! * [`fleet`] maps many guests, each in a process of its own;
//! * [`virt_bmap_trace`] names the files that a running guest reads and writes, [`operations`] what its
//!   writes do to them.
//!
//! [`virt_bmap_ranges`] says what offsets and ranges count.

#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout))]

pub mod appliance;
pub mod changed;
pub mod fleet;
pub mod hangup;
pub mod mapper;
pub mod operations;
pub mod probe;
pub mod recorder;
pub mod update;
