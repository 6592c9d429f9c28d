//! What a map says of itself: the tool that made it, the images, and what it could not examine.

use super::warning::Warning;
use std::collections::BTreeMap;

/// The words at the top of a map.
///
/// There is no date among them: two runs on one image give the same map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Tool and version that made the map, for example `virt-bmap-rs 0.1.0`.
    pub generator: String,
    /// The images that were mapped, in the order of their disk numbers.
    pub images: Vec<ImageInfo>,
    /// The filesystems that were examined.
    pub filesystems: Vec<Filesystem>,
    /// What could not be examined, and then what else is worth knowing.
    pub warnings: Vec<Warning>,
    /// Other comment lines, as they stand in the file after the `#`, to be kept as they are.
    pub comments: Vec<Vec<u8>>,
}

impl Default for Header {
    /// A header that names this crate and its version, and nothing else.
    fn default() -> Self {
        Self {
            generator: crate::GENERATOR.to_owned(),
            images: Vec::new(),
            filesystems: Vec::new(),
            warnings: Vec::new(),
            comments: Vec::new(),
        }
    }
}

impl Header {
    /// Whether nothing that is on the disks is missing from the map, as far as is known.
    pub fn is_complete(&self) -> bool {
        !self.warnings.iter().any(Warning::is_incomplete)
    }
}

/// One disk of the guest: the image that it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Number of the disk, from 1.
    pub disk: u16,
    /// Size of the disk that the guest sees, in bytes.
    pub size: u64,
    /// The top image: what the user named.
    pub image: ImageFile,
    /// The images below it, from its direct backing file (or snapshot parent) down to the base.
    pub chain: Vec<ImageFile>,
}

/// A filesystem of the guest that was examined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filesystem {
    /// The device that it is on, as the appliance calls it. Not empty.
    pub device: Vec<u8>,
    /// Its type, in the words of `blkid`: `ext4`, `xfs`, `vfat`, …
    pub kind: String,
    /// Size of its blocks in bytes.
    pub block_size: Option<u64>,
    /// Its size in bytes, as `statfs` gives it.
    pub size: Option<u64>,
    /// Bytes of it that are free.
    pub free: Option<u64>,
    /// Bytes of it that the map lists as [free](super::Kind::Free). `None`: it does not know which
    /// are.
    pub free_mapped: Option<u64>,
    /// How many directories were found in it.
    pub directories: u64,
    /// How many names of regular files were found in it.
    pub files: u64,
    /// What tells whether its inodes have changed; empty where that is not known. JSON Lines alone
    /// have it.
    pub inodes: InodeDigests,
}

/// Digests of a filesystem's inodes, by the number of the first of the [`INODES_PER_DIGEST`] that
/// have it together. Only those that contain a regular file's or a directory's are there.
pub type InodeDigests = BTreeMap<u64, Digest>;

/// The first half of a SHA-256 of inodes, of what is in those that are directories, and of all else
/// that decides where on the disks their files lie. Two maps can be compared by it; it tells
/// nothing else.
pub type Digest = [u8; 16];

/// So many inodes have one digest, or fewer at the end of a table of inodes.
pub const INODES_PER_DIGEST: u64 = 8;

/// Most digests in a map; of a filesystem with which there would be more it has none. The first
/// line of JSON Lines, which has them, stays shorter than the longest line that is read.
pub const MOST_DIGESTS: usize = 900_000;

/// One file of an image's chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFile {
    /// File name, as the user typed it or as the image above refers to it. Not necessarily UTF-8.
    pub name: Vec<u8>,
    /// Format, in qemu's words: `raw`, `qcow2`, `vmdk`, …
    pub format: String,
}
