#![doc = include_str!("../README.md")]
//!
//! # Making a map
//!
//! The order of objects and pieces does not matter: two maps with the same contents are equal.
//!
//! ```
//! use virt_bmap_map::{Attributes, Header, Kind, MapBuilder, ObjectName, text};
//! use virt_bmap_ranges::{DiskOffset, DiskRange, FileOffset};
//!
//! let mut builder = MapBuilder::new(Header::default());
//! let disk = builder.object(ObjectName::device(Kind::Disk, b"/dev/sda"), Attributes::default())?;
//! builder.piece(disk, 1, DiskRange::new(0, 0x4000), None)?;
//! let file = builder.object(ObjectName::path(Kind::File, b"/dev/sda1", b"/etc/motd"), Attributes::default())?;
//! builder.piece(file, 1, DiskRange::new(0x1000, 0x1200), Some(FileOffset(0)))?;
//! let map = builder.build();
//!
//! let hits = map.at(1, DiskOffset(0x1010));
//! assert_eq!(hits[0].object.name().path, b"/etc/motd");
//! assert_eq!(hits[0].file_offset, Some(FileOffset(0x10)));
//!
//! let mut text = Vec::new();
//! text::write(&map, &mut text)?;
//! let text = String::from_utf8(text)?;
//! assert_eq!(text.lines().skip(1).collect::<Vec<_>>(), [
//!     "1 0 1000 v /dev/sda",
//!     "1 1000 1200 f /dev/sda1 /etc/motd",
//!     "1 1000 1200 v /dev/sda",
//!     "1 1200 4000 v /dev/sda",
//! ]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod builder;
mod convert;
pub mod csv;
pub mod dfxml;
pub mod diff;
pub mod domain;
pub mod escape;
mod format;
pub mod hardlinks;
mod header;
mod index;
pub mod jsonl;
mod lines;
pub mod list;
pub mod lookup;
mod model;
mod object;
pub mod output;
pub mod parquet;
pub mod rangelist;
mod reparse;
pub mod report;
mod role;
mod sweep;
pub mod tabular;
pub mod text;
mod warning;

/// Program and version, as maps and logs name what wrote them.
pub const GENERATOR: &str = concat!("virt-bmap-rs ", env!("CARGO_PKG_VERSION"));

pub use builder::{BuildError, MapBuilder, NewObject};
pub use convert::{ConvertError, convert, load, save, write};
pub use format::{Compression, FileType, Format, ReadError, WriteError, read};
pub use header::{
    Balance, Digest, Filesystem, Header, INODES_PER_DIGEST, ImageFile, ImageInfo, InodeDigests, MOST_DIGESTS,
    SECTOR,
};
pub use index::{Hit, Over};
pub use model::{Dialect, Map, Object, ObjectId, Piece};
pub use object::{Attributes, Kind, MAX_DEVICE, MAX_PATH, Marks, NameError, ObjectName, Owner};
pub use reparse::{NotATag, ReparseTag};
pub use role::{PieceFlags, Role};
pub use sweep::Interval;
pub use warning::{Cause, FileOperation, LockReason, Subject, Warning};
