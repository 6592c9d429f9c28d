//! Whether a map has to be made again.
//!
//! A map has no times in it, so that two runs on one image give the same bytes. What is left are the time at
//! which its file was written, and what it says of the images: their sizes, formats and backing files. Nothing
//! of the disks is read for that. It is not seen when an image's time is set back, or when the map's file got
//! a later one by being copied.

mod since;

pub use since::{BadSince, Since, SinceError};

use crate::mapper::described;
use std::path::{Path, PathBuf};
use virt_bmap_image::{Image, Stamp};
use virt_bmap_map::Map;
use virt_bmap_ranges::Printable;
use virt_bmap_trace::freshness::{self, Stale};

/// Why a map has to be made again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// It is of another disk, or of an earlier time.
    #[error(transparent)]
    Stale(#[from] Stale),
    /// The image is of another format, or has other backing files.
    #[error("{} is made of other files or formats than when it was mapped", Printable::path(.image))]
    Chain {
        /// The image.
        image: PathBuf,
    },
    /// It cannot be told.
    #[error("{} may have changed: it has no time that tells whether it was written to", Printable::path(.file))]
    Untold {
        /// A block device.
        file: PathBuf,
    },
}

impl Reason {
    /// Whether it is the image's file alone that seems to have been written to: who knows block for block that nothing
    /// was, knows better.
    pub fn is_of_time(&self) -> bool {
        matches!(self, Self::Stale(Stale::Changed { .. }) | Self::Untold { .. })
    }
}

/// Why `map`, which was read from the file `path`, has to be made again of these images; `None` if a new one
/// would be the same, as far as can be seen. What is [of time](Reason::is_of_time) alone comes last. Under which name the images are given is no matter.
pub fn reason(map: &Map, path: &Path, images: &[Image]) -> Option<Reason> {
    let stale = freshness::check(map, path, images).err();
    let (of_time, other) = match stale {
        Some(changed @ Stale::Changed { .. }) => (Some(changed), None),
        other => (None, other),
    };
    if let Some(stale) = other {
        return Some(stale.into());
    }
    let infos = described(images);
    for ((image, old), new) in images.iter().zip(&map.header().images).zip(&infos) {
        if (&old.image.format, &old.chain) != (&new.image.format, &new.chain) {
            return Some(Reason::Chain { image: image.name.clone() });
        }
    }
    if let Some(changed) = of_time {
        return Some(changed.into());
    }
    let is_telling = |file: &&PathBuf| Stamp::of(file).is_ok_and(|stamp| stamp.is_telling());
    images
        .iter()
        .flat_map(Image::files)
        .find(|file| !is_telling(file))
        .map(|file| Reason::Untold { file: file.clone() })
}
