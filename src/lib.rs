//! Tells which file every byte of a virtual machine's disk belongs to.
//!
//! Data flows one way:
//!
//! ```text
//! image ─► nbd ─► recorder ─► bmap ─► text and its users
//!           ▲                   ▲
//!       appliance ──── probe ───┘
//! ```
//!
//! * [`image`] opens a guest's disk read-only, whatever its format, and keeps writes in a private
//!   copy-on-write layer;
//! * [`nbd`] serves it, asynchronously, over the NBD protocol;
//! * [`recorder`] notes what is read, and on whose behalf;
//! * [`appliance`] is the small Linux, run by libguestfs, that does the reading;
//! * [`probe`] decides what it reads and in which order, and learns what the objects are called;
//! * [`bmap`] is the block map that comes of it: model, index and the text format;
//! * [`mapper`] puts all of these together;
//! * [`lookup`], [`mod@list`], [`mod@diff`] and [`mod@changed`] question a map: what is there, which files are hit,
//!   what differs, and what was written between two states of a disk.
//!   [`rangelist`] reads the ranges that other programs write, [`links`] takes a file's names together,
//!   and [`spans`], [`units`] and [`cells`] help them;
//! * [`report`] draws a map as an HTML page;
//! * [`fleet`] maps many guests, each in a process of its own, and goes on where it was ended;
//! * [`update`] tells whether a map has to be made again;
//! * [`trace`] tells which files a running guest reads and writes.
//!
//! What the offsets and ranges of all of these count is said once, in [`range`].

#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout))]

pub mod appliance;
pub mod bmap;
pub mod cells;
pub mod changed;
pub mod diff;
pub mod fleet;
pub mod hangup;
pub mod links;
pub mod list;
pub mod lookup;
pub mod mapper;
pub mod probe;
pub mod rangelist;
pub mod recorder;
pub mod report;
pub mod trace;
pub mod update;

use virt_bmap_child as child;
pub use virt_bmap_image as image;
pub use virt_bmap_nbd as nbd;
pub use virt_bmap_ranges::error_chain as chain;

/// Offsets and half-open ranges.
pub mod range {
    pub use virt_bmap_ranges::{
        DeviceOffset, DiskNumber, DiskOffset, DiskRange, FileOffset, Offset, Range, RangeSet,
    };
}

/// Bytes of one disk as a sorted list of ranges.
pub mod spans {
    pub use virt_bmap_ranges::Spans;
}

/// Sizes as people type and read them.
pub mod units {
    pub use virt_bmap_ranges::{BadNumber, Human, parse_bytes, parse_digits};
}
