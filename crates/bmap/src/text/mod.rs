//! The text map: the format of the original virt-bmap, with a header of this program above it.
//!
//! Each line is a range of a disk and an object that it belongs to:
//!
//! ```text
//! DISK START END TYPE DEVICE [PATH]
//! ```
//!
//! `DISK` is decimal, from 1; `START` and `END` are lower-case hexadecimal without `0x`, `END` is
//! the first byte after the range. Lines of one interval stand together, one for each of its
//! objects, in the byte order of `TYPE DEVICE PATH`. Intervals ascend, do not overlap, and are cut
//! only where the objects change. `docs/map-format.md` describes every field, and what a map does
//! not contain.
//!
//! The two [`Dialect`](super::Dialect)s differ in whether names are escaped. The first line of a
//! file shows its dialect.

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
