//! Freshness of a map: whether it is one of these disks, as they are now.
//!
//! A map that is not names the wrong files without any sign of it. What can be told is the number
//! of the disks, their sizes, and whether an image was written to since the map was: by the times
//! of the files. Who copies maps and images around may have to know better than these.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use virt_bmap_image::{Image, ImageFormat};
use virt_bmap_map::lookup::{DiskSize, disk_size};
use virt_bmap_map::{Dialect, Map};
use virt_bmap_ranges::{DiskNumber, Printable};

/// Why a map is not to be trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// It is of a guest with another number of disks.
    #[error("the map is of a guest with {map} disks, and {given} were given")]
    Disks {
        /// Disks in the map.
        map: usize,
        /// Disks of the guest.
        given: usize,
    },
    /// It is of a disk of another size.
    #[error("disk {disk} of the map has {size}, and {} has {actual}", Printable::path(.image))]
    Size {
        /// Number of the disk.
        disk: DiskNumber,
        /// What the map says.
        size: Bytes,
        /// The image.
        image: PathBuf,
        /// What it has.
        actual: Bytes,
    },
    /// It counts the bytes of the image's file, not those of the disk.
    #[error(
        "the map is one of the original virt-bmap, which counts the bytes of the file, and {} is {format}",
        Printable::path(.image)
    )]
    Container {
        /// The image.
        image: PathBuf,
        /// Its format.
        format: ImageFormat,
    },
    /// The image was changed later.
    #[error("{} was changed after the map was written", Printable::path(.image))]
    Changed {
        /// The image, or a file below it.
        image: PathBuf,
    },
}

/// A number of bytes, at least where the map does not know exactly.
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

/// Checks that `map`, which was read from the file `path`, is one of these images.
///
/// # Errors
/// The first sign that it is not.
pub fn check(map: &Map, path: &Path, images: &[Image]) -> Result<(), Stale> {
    let last = map.pieces().map(|piece| piece.disk).max().unwrap_or(0);
    let disks = map.header().images.len().max(last.into());
    if disks != images.len() {
        return Err(Stale::Disks { map: disks, given: images.len() });
    }
    for (disk, image) in (1..).zip(images) {
        if map.dialect() == Dialect::Original && image.format != ImageFormat::Raw {
            return Err(Stale::Container { image: image.name.clone(), format: image.format });
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
                image: image.name.clone(),
                actual: Bytes { bytes: actual, at_least: false },
            });
        }
    }
    // A map from a pipe has no time.
    let Some(written) = modified(path) else { return Ok(()) };
    match images
        .iter()
        .flat_map(Image::files)
        .find(|file| modified(file).is_some_and(|changed| changed > written))
    {
        Some(image) => Err(Stale::Changed { image: image.clone() }),
        None => Ok(()),
    }
}

/// When a regular file was last written to. The time of a device says nothing of what is on it.
fn modified(path: &Path) -> Option<SystemTime> {
    let metadata = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
    metadata.modified().ok()
}
