//! The filesystems on which guests of [`usermode`](super::usermode) work: each on a disk of its
//! own.

use super::usermode::Mount;
use super::{cache, tools};
use std::path::PathBuf;

/// A filesystem.
#[derive(Hash)]
pub struct Filesystem {
    /// The name of the disk's image.
    pub name: &'static str,
    /// Its name on pages of the documentation.
    pub title: &'static str,
    /// How it is made.
    pub mkfs: &'static str,
    /// Its size.
    pub size: &'static str,
    /// How it is mounted.
    pub mount: Mount,
    /// How a guest makes the filesystem flush all that it has written: `sync`, `twice` (`sync`
    /// twice) or `fsync`, see `guest/operations.py`.
    pub sync: &'static str,
}

macro_rules! filesystems {
    ($($name:literal $title:literal $mkfs:literal $size:literal $kind:literal $options:literal $sync:literal;)+) => {
        [$(Filesystem {
            name: $name,
            title: $title,
            mkfs: $mkfs,
            size: $size,
            mount: ($kind, $options),
            sync: $sync,
        }),+]
    };
}

/// The filesystems. docs/trace.md has what `sync` sends on each.
pub const FILESYSTEMS: [Filesystem; 9] = filesystems! {
    "ext2" "ext2" "mke2fs -q -t ext2 -b 1024" "48M" "ext2" "" "fsync";
    "ext3" "ext3" "mke2fs -q -t ext3 -b 1024" "48M" "ext3" "" "sync";
    "ext4" "ext4" "mke2fs -q -t ext4 -b 4096" "64M" "ext4" "" "sync";
    "ext4-data" "ext4, `data=journal`" "mke2fs -q -t ext4 -b 4096" "64M" "ext4" ",data=journal" "sync";
    "ext4-bare" "ext4 without a journal" "mke2fs -q -t ext4 -O ^has_journal" "64M" "ext4" "" "twice";
    "xfs" "XFS" "mkfs.xfs -q" "320M" "xfs" "" "sync";
    "btrfs" "btrfs" "mkfs.btrfs -q" "128M" "btrfs" "" "sync";
    "fat" "FAT (vfat)" "mkfs.vfat -F 32 -s 1" "64M" "vfat" "" "fsync";
    "ntfs" "NTFS (ntfs-3g)" "mkfs.ntfs -q -f -F" "64M" "ntfs-3g" "" "fsync";
};

/// The images with the empty filesystems, which are made once.
pub fn images(filesystems: &[&Filesystem]) -> Vec<PathBuf> {
    let dir = cache::directory("filesystems", &cache::key(&FILESYSTEMS), |dir| {
        for Filesystem { name, mkfs, size, .. } in &FILESYSTEMS {
            let image = dir.join(name);
            tools::run("truncate", ["-s", size, image.to_str().unwrap()]);
            tools::run("bash", ["-c", &format!("{mkfs} {}", image.display())]);
        }
    });
    filesystems.iter().map(|filesystem| dir.join(filesystem.name)).collect()
}
