//! The header of a map: the program that made it, the images, the filesystems, and warnings.

use super::warning::Warning;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The header of a map.
///
/// It has no date: two runs on one image give the same map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Program and version that made the map, for example `virt-bmap-rs 0.1.0`.
    pub generator: String,
    /// The images that were mapped, in the order of their disk numbers.
    pub images: Vec<ImageInfo>,
    /// The filesystems that were examined.
    pub filesystems: Vec<Filesystem>,
    /// Warnings of missing objects first, then the others.
    pub warnings: Vec<Warning>,
    /// Other comment lines of the file, without the `#`. They are kept unchanged.
    pub comments: Vec<Vec<u8>>,
}

impl Default for Header {
    /// A header with the name and version of this program, and nothing else.
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
    /// Whether the map is complete: no warning says that something is missing.
    pub fn is_complete(&self) -> bool {
        !self.warnings.iter().any(Warning::is_incomplete)
    }

    /// The share of the bytes in use that have an owner, in hundredths of a percent, rounded down.
    /// `None` if no filesystem says which bytes are in use. The filesystems that do not say count
    /// for nothing.
    ///
    /// ```
    /// use virt_bmap_map::{Balance, Filesystem, Header};
    ///
    /// let mut header = Header::default();
    /// assert_eq!(header.explained(), None);
    /// let balance = Some(Balance { used: 30_000, files: 29_999, unexplained: 1, ..Balance::default() });
    /// header.filesystems.push(Filesystem { balance, ..Filesystem::default() });
    /// header.filesystems.push(Filesystem { balance, ..Filesystem::default() });
    /// assert_eq!(header.explained(), Some(9999));
    /// assert_eq!(header.balance().map(|sum| (sum.used, sum.unexplained)), Some((60_000, 2)));
    /// ```
    pub fn explained(&self) -> Option<u64> {
        self.balance().map(|balance| balance.explained())
    }

    /// The sum of the balances of all filesystems. `None` if none of them says which bytes are in
    /// use.
    pub fn balance(&self) -> Option<Balance> {
        self.filesystems.iter().filter_map(|filesystem| filesystem.balance).reduce(Balance::plus)
    }

    /// The filesystems that do not say which bytes are in use.
    pub fn without_balance(&self) -> impl Iterator<Item = &Filesystem> {
        self.filesystems.iter().filter(|filesystem| filesystem.balance.is_none())
    }
}

/// Bytes in a sector of most disks.
pub const SECTOR: u64 = 512;

/// A disk of the guest, and its image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Number of the disk, from 1.
    pub disk: u16,
    /// Size of the disk that the guest sees, in bytes.
    pub size: u64,
    /// Bytes in a sector of the disk: 512, or 4096.
    pub sector: u64,
    /// The top image, which the user named.
    pub image: ImageFile,
    /// The snapshot inside the image that the map is of; `None`: the present disk.
    pub snapshot: Option<String>,
    /// The images below it, from its direct backing file (or snapshot parent) down to the base.
    pub chain: Vec<ImageFile>,
}

/// A filesystem of the guest that was examined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filesystem {
    /// The device that it is on, as the appliance calls it. Not empty.
    pub device: Vec<u8>,
    /// Its type, as `blkid` names it: `ext4`, `xfs`, `vfat`, …
    pub kind: String,
    /// Size of its blocks in bytes.
    pub block_size: Option<u64>,
    /// Its size in bytes, as `statfs` gives it.
    pub size: Option<u64>,
    /// Number of free bytes.
    pub free: Option<u64>,
    /// Number of bytes that the map lists as [free](super::Kind::Free). `None` if it is not known
    /// which bytes are free.
    pub free_mapped: Option<u64>,
    /// What its bytes in use are. `None` if the filesystem does not say which bytes are in use.
    pub balance: Option<Balance>,
    /// Number of directories that were found in it.
    pub directories: u64,
    /// Number of names of regular files that were found in it.
    pub files: u64,
    /// Digests by which changes of its inodes are detected; empty if there are none. Only JSON
    /// Lines have them.
    pub inodes: InodeDigests,
}

/// The bytes that a filesystem says are in use, by their owner. Each byte counts once: as a byte of
/// a file if it is in one, else as a byte of a directory, else as metadata. In a btrfs, a byte of
/// the address space counts, whatever the number of its copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balance {
    /// Bytes in use, according to the filesystem. The sum of the next five.
    pub used: u64,
    /// In files.
    pub files: u64,
    /// In directories.
    pub directories: u64,
    /// In metadata and symbolic links.
    pub metadata: u64,
    /// In superseded blocks, which nothing refers to, but which the filesystem keeps: the rest of a
    /// btrfs extent of which files use a part, and what was overwritten since in a segment of
    /// nilfs2.
    pub superseded: u64,
    /// In none of these.
    pub unexplained: u64,
    /// Bytes with two owners that cannot share them. They count above as well.
    pub claimed_twice: u64,
    /// Bytes of files and directories that the filesystem says are free. They count nowhere else.
    pub claimed_free: u64,
}

impl Balance {
    /// Whether each byte in use has one owner, and no free byte has any.
    pub fn is_even(&self) -> bool {
        self.unexplained == 0 && self.claimed_twice == 0 && self.claimed_free == 0
    }

    /// The share of the bytes in use that have an owner, in hundredths of a percent, rounded down.
    pub fn explained(&self) -> u64 {
        let (used, unexplained) = (u128::from(self.used), u128::from(self.unexplained));
        let hundredths = (used.saturating_sub(unexplained) * 10_000).checked_div(used).unwrap_or(10_000);
        hundredths as u64
    }

    /// The balance of two filesystems together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let sum = |of: fn(&Self) -> u64| of(&self).saturating_add(of(&other));
        Self {
            used: sum(|it| it.used),
            files: sum(|it| it.files),
            directories: sum(|it| it.directories),
            metadata: sum(|it| it.metadata),
            superseded: sum(|it| it.superseded),
            unexplained: sum(|it| it.unexplained),
            claimed_twice: sum(|it| it.claimed_twice),
            claimed_free: sum(|it| it.claimed_free),
        }
    }
}

/// Digests of a filesystem's inodes. [`INODES_PER_DIGEST`] inodes share a digest; the key is the
/// number of the first. Only groups with an inode of a regular file, a directory or a symbolic
/// link are there.
pub type InodeDigests = BTreeMap<u64, Digest>;

/// The first half of a SHA-256 of inodes, of the blocks of those that are directories, and of all
/// else that decides where their files lie on the disks. It serves to compare two maps and reveals
/// nothing else.
pub type Digest = [u8; 16];

/// Number of inodes that share a digest; fewer at the end of a table of inodes.
pub const INODES_PER_DIGEST: u64 = 8;

/// Most digests in a map. A filesystem that would exceed it has none. The limit keeps the first
/// line of JSON Lines, which has the digests, below the longest line that is read.
pub const MOST_DIGESTS: usize = 900_000;

/// One file of an image's chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFile {
    /// File name, as the user typed it or as the image above refers to it. Not necessarily UTF-8.
    pub name: Vec<u8>,
    /// Format, as qemu names it: `raw`, `qcow2`, `vmdk`, …
    pub format: String,
}
