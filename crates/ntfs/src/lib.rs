#![doc = include_str!("../README.md")]
//!
//! # Inside
//!
//! NTFS describes each file in a record of the file `$MFT`. [`Volume::open`] finds that file by the
//! boot sector; [`Volume::file`] reads one record with its extension records, and
//! [`Volume::files`] all of them, a megabyte at a time. A [`File`] has names and [`Stream`]s: each
//! attribute with its content in the record or its [runs](Run) of clusters.
//!
//! The volume is hostile input. Nothing in it makes the reader panic, loop, or take memory without
//! limit; what is wrong with a file is in [`File::problems`], and the sound rest is given.
//!
//! The structures on the disk are those of `layout.h` in ntfs-3g, whose names are quoted where a
//! field is read.

#![forbid(unsafe_code)]

mod attribute;
mod boot;
mod fields;
mod file;
mod fixup;
mod free;
mod index;
mod list;
mod name;
mod record;
mod runs;
mod scan;
mod state;
mod volume;

pub use attribute::AttributeType;
pub use boot::Geometry;
pub use file::{Content, File, Stream};
pub use index::IndexEntry;
pub use name::{Name, Namespace};
pub use record::{Problem, Reference};
pub use runs::{Run, runs};
pub use scan::Files;
pub use volume::Volume;

use std::io;

/// Something that can be read at an offset: a device or an image.
pub trait ReadAt {
    /// Fills `bytes` from this offset on.
    ///
    /// # Errors
    /// If not all of them can be read.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for std::fs::File {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, bytes, offset)
    }
}

impl ReadAt for &[u8] {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)?.get(..bytes.len()));
        bytes.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Why a volume cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It does not begin with a boot sector of NTFS.
    #[error("no boot sector of NTFS")]
    NotNtfs,
    /// The numbers in the boot sector make no sense.
    #[error("a boot sector of NTFS with impossible {0}")]
    Geometry(&'static str),
    /// Neither the `$MFT` nor its mirror begins with a record that describes it.
    #[error("the $MFT is damaged: {0}")]
    Mft(Problem),
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}
