//! Files that hold a disk without being an image of their own: segments of a raw disk.
//!
//! [`Container::of`] is the one place that tells what such a file is.

mod split;

use super::{Image, OpenError, OpenOptions};
use split::Segments;
use std::path::Path;

/// How a file holds a disk.
pub(super) enum Container {
    /// It is the first segment of a raw disk.
    Split(Segments),
}

impl Container {
    /// What the file at `path` is. `None`: an image of its own, or nothing that is known here.
    ///
    /// # Errors
    /// It is a container that cannot be read, or a part of one.
    pub(super) fn of(path: &Path, options: &OpenOptions) -> Result<Option<Self>, OpenError> {
        Ok(Segments::of(path, options.format)?.map(Self::Split))
    }

    /// Opens the disk in it.
    ///
    /// # Errors
    /// As for [`open`](super::open).
    pub(super) fn open(self, path: &Path, options: &OpenOptions) -> Result<Image, OpenError> {
        match self {
            Self::Split(segments) => segments.open(path, options),
        }
    }
}
