//! Copies of filesystems that lie on one partition, for the programs that take an image.

use crate::arbiter::Ranges;
use crate::guests::Place;
use std::path::PathBuf;
use virt_bmap_testutil::layout::Volume;
use virt_bmap_testutil::ranges::Range;

/// A filesystem in an image of its own.
pub(crate) struct Flat {
    /// Where it lies on the guest's disks.
    pub(crate) place: Place,
    /// The same as a volume.
    pub(crate) volume: Volume,
    /// The image.
    pub(crate) image: PathBuf,
    /// The directory that holds the image.
    _dir: tempfile::TempDir,
}

impl Flat {
    /// Copies a filesystem from the raw images `disks`.
    pub(crate) fn of(place: &Place, disks: &[PathBuf]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::contiguous("/dev/sda1", place.start, place.length);
        let image = dir.path().join("flat");
        volume.extract(&disks[place.disk as usize - 1], &image);
        Self { place: place.clone(), volume, image, _dir: dir }
    }

    /// The places on the guest's disk of ranges of the image.
    pub(crate) fn to_disk(&self, ranges: &[Range]) -> Ranges {
        Ranges::from([(self.place.disk, self.volume.to_disk(ranges))])
    }
}
