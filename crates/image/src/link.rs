//! One image of a chain of backing files.

use super::location::Location;
use super::nbd_uri::NbdUri;
use super::{ImageFile, ImageFormat};
use std::path::PathBuf;

/// One image of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// The absolute path of a file; the name of anything else, for messages.
    pub(super) path: PathBuf,
    /// What it is.
    pub(super) node: Node,
    /// `None` while it is to be found out, and for what a trusted image refers to and is not ours
    /// to open.
    pub(super) format: Option<ImageFormat>,
    /// The file that holds its data, if that is another.
    pub(super) data_file: Option<PathBuf>,
    /// Other files that hold its data.
    pub(super) extents: Vec<PathBuf>,
    /// Whether qemu encrypts its data.
    pub(super) is_encrypted: bool,
}

/// What holds the bytes of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// A regular file.
    File,
    /// A block device.
    Device,
    /// A part of an archive.
    Part {
        /// The archive.
        archive: PathBuf,
        /// Where it begins there.
        offset: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// A file without a name, to which a compressed image was unpacked. qemu finds it here.
    Unpacked(PathBuf),
    /// An export of an NBD server that the user named.
    Nbd(Box<NbdUri>),
    /// What only qemu can open, under the name that a trusted image gives it.
    Other,
}

impl Link {
    pub(super) fn new(path: PathBuf, node: Node) -> Self {
        Self { path, node, format: None, data_file: None, extents: Vec::new(), is_encrypted: false }
    }

    /// Whether all its bytes are in files and block devices of this host.
    pub(super) fn is_local(&self) -> bool {
        let has_local_data = self.data_file.as_ref().is_none_or(|path| path.is_absolute());
        matches!(self.node, Node::File | Node::Device) && has_local_data
    }
}

impl From<Link> for ImageFile {
    fn from(link: Link) -> Self {
        let data_files = link.data_file.into_iter().chain(link.extents).collect();
        let (location, held_in) = match link.node {
            Node::File | Node::Device => (Location::File(link.path), Vec::new()),
            Node::Part { archive, .. } => (Location::File(link.path), vec![archive]),
            Node::Unpacked(_) => (Location::File(link.path.clone()), vec![link.path]),
            Node::Nbd(uri) => (Location::Nbd(uri), Vec::new()),
            Node::Other => (Location::Other(link.path.into()), Vec::new()),
        };
        Self { location, format: link.format, data_files, held_in }
    }
}
