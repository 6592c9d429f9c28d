//! Files that hold a disk without being an image of their own: segments of a raw disk, appliances,
//! EnCase images, and compressed images.
//!
//! [`Wrapped::of`] is the one place that tells what such a file is.

mod compressed;
mod ewf;
mod ova;
mod split;

pub(super) use compressed::Compression;
pub use compressed::{UNPACK_LIMIT, UnpackObserver, Unpacking};
pub use ewf::{Acquisition, EWF_READER, use_own_ewf_reader};

use super::file::PlainFile;
use super::layer::NO_SNAPSHOTS;
use super::{Image, Location, OpenError, OpenOptions, lock};
use compressed::Compressed;
use ewf::Evidence;
use ova::Disk;
use split::Segments;
use std::path::Path;

/// How a file holds a disk.
pub(super) enum Wrapped {
    /// It is the first segment of a raw disk.
    Split(Segments),
    /// It is a disk of an appliance, or an appliance with one disk.
    Ova(Box<Disk>),
    /// It is the first segment of an EnCase image.
    Ewf(Evidence),
    /// It is an image that is compressed as a whole.
    Compressed(Compressed),
}

impl Wrapped {
    /// What the file at `path` is. `None`: an image of its own, or nothing that is known here.
    ///
    /// # Errors
    /// It cannot be read, or a part of one.
    pub(super) fn of(path: &Path, options: &OpenOptions) -> Result<Option<Self>, OpenError> {
        let file = file(path);
        // A stated format is that of the file itself, and these have a beginning of their own.
        if options.format.is_none()
            && let Some(evidence) = file.as_ref().and_then(|file| Evidence::of(path, file))
        {
            return Ok(Some(Self::Ewf(evidence)));
        }
        if let Some(segments) = Segments::of(path, options.format)? {
            return Ok(Some(Self::Split(segments)));
        }
        if let Some(disk) = Disk::named(path)? {
            return Ok(Some(Self::Ova(Box::new(disk))));
        }
        let Some(file) = file.filter(|_| options.format.is_none()) else { return Ok(None) };
        if ova::is_archive(path, &file)? {
            return Ok(Some(Self::Ova(Box::new(Disk::only(path, file)?))));
        }
        Ok(Compressed::of(file).map(Self::Compressed))
    }

    /// Opens the disk in it.
    ///
    /// # Errors
    /// As for [`open`](super::open).
    pub(super) fn open(self, path: &Path, options: &OpenOptions) -> Result<Image, OpenError> {
        if options.snapshot.is_some() {
            return Err(OpenError::Unsupported { path: path.to_owned(), kind: NO_SNAPSHOTS });
        }
        match self {
            Self::Split(segments) => segments.open(path, options),
            Self::Ova(disk) => disk.open(path, options),
            Self::Ewf(evidence) => evidence.open(path, options),
            Self::Compressed(compressed) => compressed.open(path, options),
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

/// Opens a segment of a disk: a regular file that nobody writes to.
fn segment(path: &Path, options: &OpenOptions) -> Result<PlainFile, OpenError> {
    // The first is where it really is, and a link from beside it could lead anywhere.
    let is_link = path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
    let file = PlainFile::open(path)?;
    if is_link || file.is_device {
        return Err(OpenError::NotAFile { path: path.to_owned(), kind: "link or device among segments" });
    }
    if !options.access.force_share {
        if lock::is_locked(&file.file) {
            return Err(OpenError::Locked { path: path.to_owned() });
        }
        lock::hold(&file.file);
    }
    Ok(file)
}

/// Lets this process open `more` files at once, as far as it may.
fn make_room_for(more: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const USUAL: usize = 256;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if more > USUAL && current != maximum {
        // If that fails, opening the files does, and says so.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}
