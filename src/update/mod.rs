//! Decides whether a map must be made again.
//!
//! A map contains no times, so that two runs on the same image give the same bytes. The decision
//! uses the modification time of the map's file, and the sizes, formats and backing files of the
//! images as recorded in the map. No data of the disks is read. Two cases are not detected: the
//! modification time of an image was set back, or copying the map gave its file a later time.

mod since;

pub use since::{BadSince, Since, SinceError};

use crate::mapper::described;
use std::path::{Path, PathBuf};
use virt_bmap_image::{Image, Stamp};
use virt_bmap_map::Map;
use virt_bmap_ranges::Printable;
use virt_bmap_trace::freshness::{self, Stale};

/// Why a map must be made again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The map is of another disk, or older than the image.
    #[error(transparent)]
    Stale(#[from] Stale),
    /// The image has another format or other backing files than when it was mapped.
    #[error("{}: the format or the backing files have changed since it was mapped", Printable::path(.image))]
    Chain {
        /// The image.
        image: PathBuf,
    },
    /// Changes of the image cannot be detected.
    #[error("{} may have changed: writes to a block device cannot be detected", Printable::path(.file))]
    Undetectable {
        /// A block device.
        file: PathBuf,
    },
    /// Changes of the image cannot be detected, because it is on a server.
    #[error("{} may have changed: a server does not say when it was written to", Printable::path(.image))]
    Remote {
        /// The image.
        image: PathBuf,
    },
}

impl Reason {
    /// Whether the only evidence of a change is the modification time of a file, or its absence. A
    /// source that knows the written blocks overrides such a reason.
    pub fn is_only_time(&self) -> bool {
        matches!(self, Self::Stale(Stale::Changed { .. }) | Self::Undetectable { .. } | Self::Remote { .. })
    }
}

/// Why `map`, which was read from the file `path`, must be made again from these images; `None` if
/// a new map would be the same, as far as can be detected. A reason that is [only a
/// time](Reason::is_only_time) is returned only if there is no other. The paths of the images may
/// differ from those in the map.
pub fn reason(map: &Map, path: &Path, images: &[Image]) -> Option<Reason> {
    let stale = freshness::check(map, path, images).err();
    let (only_time, other) = match stale {
        Some(changed @ Stale::Changed { .. }) => (Some(changed), None),
        other => (None, other),
    };
    if let Some(stale) = other {
        return Some(stale.into());
    }
    let infos = described(images);
    for ((image, old), new) in images.iter().zip(&map.header().images).zip(&infos) {
        if (&old.image.format, &old.chain) != (&new.image.format, &new.chain) {
            return Some(Reason::Chain { image: image.location.name().into() });
        }
    }
    if let Some(changed) = only_time {
        return Some(changed.into());
    }
    let is_telling = |file: &Path| Stamp::of(file).is_ok_and(|stamp| stamp.is_telling());
    images.iter().find_map(|image| {
        let Some(files) = image.files() else {
            return Some(Reason::Remote { image: image.location.name().into() });
        };
        let file = files.into_iter().find(|file| !is_telling(file))?;
        Some(Reason::Undetectable { file: file.to_owned() })
    })
}
