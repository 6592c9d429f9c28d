//! Finds out which file each byte of a virtual machine's disk belongs to.
//!
//! This library runs the mapping. Its parts that are useful alone are crates of their own:
//!
//! ```text
//! virt_bmap_image ─► virt_bmap_nbd ─► recorder ─► virt_bmap_map ─► text and its users
//!                         ▲                            ▲
//!                     appliance ──────── probe ────────┘
//! ```
//!
//! * [`virt_bmap_image`] opens a guest's disk read-only, in any format, and keeps writes in a
//!   private overlay;
//! * [`virt_bmap_nbd`] serves it, asynchronously, over the NBD protocol;
//! * [`ewf_reader`] is the child process that reads an EnCase image;
//! * [`recorder`] notes each read of a disk, and the object that it was for;
//! * [`appliance`] is the virtual machine of libguestfs that mounts the guest's filesystems;
//! * [`probe`] decides what is read there and in which order, and names the objects;
//! * [`geometry`] is what a disk's partition table says of the disk as a whole;
//! * [`virt_bmap_map`] is the resulting block map: model, index, formats, queries;
//! * [`mapper`] runs all of these for one guest;
//! * [`mod@changed`] finds what was written between two states of a disk;
//! * [`update`] decides whether a map has to be made again;
//! * [`live`] shows the disks of a running guest as they were at one moment;
//! * [`fleet`] maps many guests, each in a process of its own;
//! * [`virt_bmap_trace`] names the files that a running guest reads and writes, and [`operations`]
//!   finds out what its writes do to them.
//!
//! [`virt_bmap_ranges`] has the types of offsets and ranges.

#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout))]

pub mod appliance;
pub mod cache;
pub mod changed;
pub mod ewf_reader;
pub mod fleet;
pub mod geometry;
pub mod hangup;
pub mod live;
pub mod mapper;
pub mod operations;
pub mod probe;
mod qmp;
pub mod recorder;
pub mod update;
