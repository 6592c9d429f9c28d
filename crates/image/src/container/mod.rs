//! Files that hold a disk without being an image of their own: segments of a raw disk, and
//! appliances.
//!
//! [`Container::of`] is the one place that tells what such a file is.

mod ova;
mod split;

use super::file::PlainFile;
use super::{Image, Location, OpenError, OpenOptions};
use ova::Disk;
use split::Segments;
use std::path::Path;

/// How a file holds a disk.
pub(super) enum Container {
    /// It is the first segment of a raw disk.
    Split(Segments),
    /// It is a disk of an appliance, or an appliance with one disk.
    Ova(Box<Disk>),
}

impl Container {
    /// What the file at `path` is. `None`: an image of its own, or nothing that is known here.
    ///
    /// # Errors
    /// It is a container that cannot be read, or a part of one.
    pub(super) fn of(path: &Path, options: &OpenOptions) -> Result<Option<Self>, OpenError> {
        if let Some(segments) = Segments::of(path, options.format)? {
            return Ok(Some(Self::Split(segments)));
        }
        if let Some(disk) = Disk::named(path)? {
            return Ok(Some(Self::Ova(Box::new(disk))));
        }
        // A stated format is that of the file itself.
        let Some(file) = file(path).filter(|_| options.format.is_none()) else { return Ok(None) };
        Ok(Disk::only(path, file)?.map(|disk| Self::Ova(Box::new(disk))))
    }

    /// Opens the disk in it.
    ///
    /// # Errors
    /// As for [`open`](super::open).
    pub(super) fn open(self, path: &Path, options: &OpenOptions) -> Result<Image, OpenError> {
        match self {
            Self::Split(segments) => segments.open(path, options),
            Self::Ova(disk) => disk.open(path, options),
        }
    }
}

/// The disks of the file at `path`: several only in an appliance.
///
/// # Errors
/// It is an appliance that cannot be used, or one of several guests.
pub(super) fn disks(path: &Path) -> Result<Vec<Location>, OpenError> {
    let of_appliance = file(path).map(|file| ova::disks(path, &file)).transpose()?.flatten();
    Ok(of_appliance.unwrap_or_else(|| vec![Location::File(path.to_owned())]))
}

/// The file at `path`, if it is a regular one that can be opened. Why not is reported when it is
/// opened as an image.
fn file(path: &Path) -> Option<PlainFile> {
    PlainFile::open(path).ok().filter(|file| !file.is_device)
}
