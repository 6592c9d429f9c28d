#![doc = include_str!("../README.md")]
//!
//! # Inside
//!
//! The host names the parts of a volume by them, and the agent computes the place of directories.
//! Everything here takes bytes of a volume that may be hostile: nothing panics, and a field that
//! contradicts another makes the answer `None`.

pub mod exfat;
pub mod ext;
pub mod fat;
pub mod hfsplus;
mod inode;
pub mod iso9660;
pub mod snapshot;
pub mod thin;
pub mod udf;
pub mod ufs;
pub mod xfs;

pub use inode::{Inode, InodePlace, Part, nanoseconds};

/// Reads bytes of a volume, given their offset and number; `None` if that fails, or lies beyond
/// the end.
pub type Read<'a> = &'a dyn Fn(u64, u64) -> Option<Vec<u8>>;

/// Unsigned integers of on-disk structures; `None` past the end.
pub trait Fields {
    /// The `N` bytes at an offset.
    fn bytes_at<const N: usize>(&self, at: usize) -> Option<[u8; N]>;

    /// One byte.
    fn u8_at(&self, at: usize) -> Option<u8> {
        self.bytes_at::<1>(at).map(|[byte]| byte)
    }
    /// Two bytes, the lowest first.
    fn le16(&self, at: usize) -> Option<u16> {
        self.bytes_at(at).map(u16::from_le_bytes)
    }
    /// Four bytes, the lowest first.
    fn le32(&self, at: usize) -> Option<u32> {
        self.bytes_at(at).map(u32::from_le_bytes)
    }
    /// Eight bytes, the lowest first.
    fn le64(&self, at: usize) -> Option<u64> {
        self.bytes_at(at).map(u64::from_le_bytes)
    }
    /// Two bytes, the highest first.
    fn be16(&self, at: usize) -> Option<u16> {
        self.bytes_at(at).map(u16::from_be_bytes)
    }
    /// Four bytes, the highest first.
    fn be32(&self, at: usize) -> Option<u32> {
        self.bytes_at(at).map(u32::from_be_bytes)
    }
    /// Eight bytes, the highest first.
    fn be64(&self, at: usize) -> Option<u64> {
        self.bytes_at(at).map(u64::from_be_bytes)
    }
}

impl Fields for [u8] {
    fn bytes_at<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.get(at..)?.first_chunk::<N>().copied()
    }
}

/// A reader of these bytes.
#[cfg(test)]
pub(crate) fn reader(disk: &[u8]) -> impl Fn(u64, u64) -> Option<Vec<u8>> + use<> {
    let disk = disk.to_vec();
    move |at, length| Some(disk.get(at as usize..)?.get(..length as usize)?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes without a pattern, the same in each run.
    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Small numbers lead further than large ones.
            if state & 7 < 4 { (state >> 40) as u8 & 3 } else { (state >> 40) as u8 }
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn no_bytes_cause_a_panic() {
        let mut volumes = 0;
        for seed in 1..2000 {
            let mut disk = noise(seed, 16 << 10);
            disk[3..11].copy_from_slice(b"EXFAT   ");
            disk[1024..1026].copy_from_slice(b"H+");
            disk[1024 + 40..1024 + 44].copy_from_slice(&512u32.to_be_bytes());
            for kind in [1, 2] {
                let descriptor = &mut disk[2048 + 2048 * kind..];
                descriptor[..6].copy_from_slice(&[kind as u8, b'C', b'D', b'0', b'0', b'1']);
                descriptor[128..130].copy_from_slice(&2048u16.to_le_bytes());
            }
            for (at, word) in [(8, 1u32), (12, 2), (16, 3), (20, 9), (44, 1), (48, 4096), (52, 1024)]
                .into_iter()
                .chain([(36, 200), (184, 9000), (188, 200), (160, 512), (1372, 0x0001_1954)])
            {
                disk[8192 + at..8192 + at + 4].copy_from_slice(&word.to_le_bytes());
            }
            let read = reader(&disk);
            if let Some(layout) = fat::Layout::of(&disk) {
                layout.place(layout.clusters);
                layout.first_cluster(&disk);
                layout.entry(&disk, seed);
            }
            if let Some(layout) = exfat::Layout::of(&disk) {
                layout.directories(&disk).count();
                layout.allocation_bitmap(&disk, 1 << 20);
            }
            for record in iso9660::records(&disk) {
                record.continuation(&read, 2048);
                let _ = (record.block(), record.is_self());
            }
            // Its descriptors are after the first 32 KiB.
            iso9660::Volume::of(&|at, length| read(at.checked_sub(28 << 10).unwrap_or(at), length));
            hfsplus::resource_forks(&read);
            if let Some(volume) = ufs::Volume::of(&read) {
                for group in 0..volume.groups.min(10) {
                    volume.parts(group);
                    volume.group(&read, group);
                }
                let inode = volume.inode(&read, seed);
                inode.and_then(|inode| volume.place(&read, &inode));
            }
            disk[1024 + 0x38..1024 + 0x3a].copy_from_slice(&0xef53u16.to_le_bytes());
            for (at, word) in [(0, 64u32), (4, 16), (0x18, 0), (0x20, 8192), (0x28, 16), (0x4c, 0)] {
                disk[1024 + at..1024 + at + 4].copy_from_slice(&word.to_le_bytes());
            }
            let read = reader(&disk);
            if let Some(filesystem) = ext::Filesystem::read(&read) {
                filesystem.orphans(&read);
                for inode in 0..64 {
                    filesystem.place(&read, inode);
                }
            }
            if let Some(mut tables) = ext::Tables::read(&read) {
                for number in 0..64 {
                    let place = tables.place(&read, number);
                    let bytes = place.and_then(|place| read(place.at.0, tables.inode_size()));
                    tables.inode(number, &bytes.unwrap_or_default());
                    // As if the checksum were right.
                    tables.inode(number + 11, &disk[number as usize * 32..][..256]);
                }
            }
            disk[..4].copy_from_slice(b"XFSB");
            for (at, word) in [(4, 512u32), (84, 32), (88, 1), (100, 0xb4a4_0200), (120, 0x0909_0900)] {
                disk[at..at + 4].copy_from_slice(&word.to_be_bytes());
            }
            disk[124] = 5;
            if let Some(volume) = xfs::Volume::of(&disk[..512]) {
                volumes += 1;
                for number in 0..64 {
                    let bytes = &mut disk[512 + number * 64..][..512];
                    bytes[..6].copy_from_slice(&[b'I', b'N', 0x81, 0xa4, 2, 2]);
                    volume.inode(number as u64, bytes);
                    volume.directory(number as u64, bytes);
                    volume.extents(bytes);
                }
            }
            if let Some(volume) = udf::Volume::of(&read, 512) {
                udf::Place::of(&read, &volume, seed);
            }
        }
        assert!(volumes > 100, "{volumes}");
    }
}
