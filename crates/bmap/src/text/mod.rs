//! The text map: the format of the original virt-bmap, with a header of our own above it.
//!
//! A line says that a range of a disk belongs to an object:
//!
//! ```text
//! DISK START END TYPE DEVICE [PATH]
//! ```
//!
//! `DISK` is decimal, from 1; `START` and `END` are lower-case hexadecimal without `0x`, `END` is
//! the first byte after the range. Lines of one interval stand together, one for each of its
//! objects, in the byte order of `TYPE DEVICE PATH`. Intervals ascend, do not overlap, and are cut
//! only where the objects change. `docs/map-format.md` describes every field, and what a map does
//! not say.
//!
//! Two [`Dialect`](super::Dialect)s differ in whether names are escaped; which one a file is in,
//! its first line tells.

mod header;
mod reader;
mod writer;

pub use reader::{LineError, ReadError, read};
pub use writer::push_name;
pub use writer::{WriteError, write};

/// Longest line of a text map in bytes, without its line feed. [`read`] refuses longer ones; no
/// object with a name that a map can hold makes one.
pub const MAX_LINE: usize = 1024 * 1024;

/// Version of the format that is written, and the only one that is read.
pub const FORMAT_VERSION: u32 = 1;
