//! One image of a chain of backing files.

use super::ImageFormat;
use std::path::PathBuf;

/// One image of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Absolute.
    pub(super) path: PathBuf,
    /// `None` while it is to be found out, and for what a trusted image refers to and is not ours
    /// to open.
    pub(super) format: Option<ImageFormat>,
    pub(super) is_device: bool,
    /// The file that holds its data, if that is another.
    pub(super) data_file: Option<PathBuf>,
    /// Other files that hold its data.
    pub(super) extents: Vec<PathBuf>,
}

impl Link {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, format: None, is_device: false, data_file: None, extents: Vec::new() }
    }
}
