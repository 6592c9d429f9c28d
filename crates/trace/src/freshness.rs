//! Freshness of a map: whether it describes these disks as they are now.
//!
//! A stale map names wrong files without any sign of it. [`check`] compares the number and the
//! sizes of the disks, and the times of the image files with that of the map. Copies of maps and
//! images may have misleading times.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use virt_bmap_image::{Image, ImageFormat};
use virt_bmap_map::lookup::{DiskSize, disk_size};
use virt_bmap_map::{Dialect, Map};
use virt_bmap_ranges::{DiskNumber, Printable};

/// Why a map is stale.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// The guest has another number of disks.
    #[error("the map has {map} disks, and {given} were given")]
    Disks {
        /// Disks in the map.
        map: usize,
        /// Disks of the guest.
        given: usize,
    },
    /// A disk has another size.
    #[error("disk {disk} of the map has {size}, and {} has {actual}", Printable::path(.image))]
    Size {
        /// Number of the disk.
        disk: DiskNumber,
        /// Size in the map.
        size: Bytes,
        /// The image.
        image: PathBuf,
        /// Actual size.
        actual: Bytes,
    },
    /// The map counts bytes of the image's file, not of the disk.
    #[error(
        "the original virt-bmap made this map, and counts bytes of the image file, but {} is {format}",
        Printable::path(.image)
    )]
    Container {
        /// The image.
        image: PathBuf,
        /// Its format.
        format: ImageFormat,
    },
    /// An image was changed after the map was written.
    #[error("{} was changed after the map was written", Printable::path(.image))]
    Changed {
        /// The image, or a file below it.
        image: PathBuf,
    },
}

/// A number of bytes, or a lower bound if the map has no exact size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes {
    bytes: u64,
    at_least: bool,
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{} bytes", if self.at_least { "at least " } else { "" }, self.bytes)
    }
}

/// Checks that `map`, which was read from the file `path`, describes these images.
///
/// # Errors
/// [`Stale`] with the first difference.
pub fn check(map: &Map, path: &Path, images: &[Image]) -> Result<(), Stale> {
    let last = map.pieces().map(|piece| piece.disk).max().unwrap_or(0);
    let disks = map.header().images.len().max(last.into());
    if disks != images.len() {
        return Err(Stale::Disks { map: disks, given: images.len() });
    }
    for (disk, image) in (1..).zip(images) {
        if map.dialect() == Dialect::Original && image.format != ImageFormat::Raw {
            return Err(Stale::Container { image: image.location.name().into(), format: image.format });
        }
        let actual = image.source.size();
        let (bytes, at_least) = match disk_size(map, disk) {
            DiskSize::Bytes(bytes) => (bytes, false),
            DiskSize::AtLeast(bytes) => (bytes, true),
            DiskSize::NoDisk => (0, true),
        };
        // Versions of the original map the file, whose last sector need not be whole.
        let fits = if at_least { bytes <= actual } else { bytes.next_multiple_of(512) == actual };
        if !fits {
            return Err(Stale::Size {
                disk,
                size: Bytes { bytes, at_least },
                image: image.location.name().into(),
                actual: Bytes { bytes: actual, at_least: false },
            });
        }
    }
    // A map from a pipe has no time of writing.
    let Some(written) = modified(path) else { return Ok(()) };
    match images
        .iter()
        .filter_map(Image::files)
        .flatten()
        .find(|file| modified(file).is_some_and(|changed| changed > written))
    {
        Some(image) => Err(Stale::Changed { image: image.to_owned() }),
        None => Ok(()),
    }
}

/// The time of the last write to a regular file. The time of a device is not that of its contents.
fn modified(path: &Path) -> Option<SystemTime> {
    let metadata = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
    metadata.modified().ok()
}
