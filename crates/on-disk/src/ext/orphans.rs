//! Inodes that no directory names, because a program had them open when they were removed: the list
//! of orphans in the superblock, or their file ("Orphan File" in
//! `Documentation/filesystems/ext4` of the kernel).

use super::{Filesystem, OwnFile, Place, le48};
use crate::{Fields, Read};
use std::collections::HashSet;

/// Most orphans that are looked at.
const MOST: usize = 1 << 16;

/// What an orphan's inode says.
#[derive(Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Its number.
    pub inode: u64,
    /// Its type and permissions, as `stat(2)` gives them.
    pub mode: u32,
    /// Its length in bytes.
    pub size: u64,
    /// Bytes of its blocks.
    pub allocated: u64,
    /// When its data was changed, in seconds since 1970.
    pub modified: i64,
    /// When it was changed itself, in seconds since 1970.
    pub changed: i64,
    /// Where it lies; `None` if that is damaged.
    pub place: Option<Place>,
}

impl Filesystem {
    /// The orphans of the list, and those of their file. The list also has files with a name, whose
    /// end was being cut off: they are no orphans.
    pub fn orphans(&self, read: Read<'_>) -> Vec<Orphan> {
        let mut seen = HashSet::new();
        let mut next = self.last_orphan;
        let mut orphans = Vec::new();
        while seen.len() < MOST && seen.insert(next) {
            let Some(inode) = self.inode(read, next) else { break };
            orphans.extend(self.orphan(read, next, &inode));
            // The time of deletion holds the number of the next one.
            next = inode.le32(0x14).unwrap_or(0).into();
        }
        for block in self.orphan_blocks(read) {
            let bytes = read(block, self.block).unwrap_or_default();
            // The last eight bytes are a magic number and a checksum.
            let numbers = bytes.get(..bytes.len().saturating_sub(8)).unwrap_or_default().chunks_exact(4);
            for number in numbers.filter_map(|number| number.le32(0)).map(u64::from) {
                if number > 0 && seen.len() < MOST && seen.insert(number) {
                    let inode = self.inode(read, number);
                    orphans.extend(inode.and_then(|inode| self.orphan(read, number, &inode)));
                }
            }
        }
        orphans
    }

    /// Where the blocks of the file of orphans begin, if it may have some.
    fn orphan_blocks(&self, read: Read<'_>) -> Vec<u64> {
        let files =
            self.own_files().iter().filter(|(file, _)| self.has_orphan_file && *file == OwnFile::Orphans);
        let parts = files.filter_map(|(_, inode)| self.place(read, *inode)).flat_map(|place| place.data);
        parts
            .flat_map(|part| {
                (0..part.range.len() / self.block).map(move |n| part.range.start.0 + n * self.block)
            })
            .take(MOST)
            .collect()
    }

    /// What the inode says, if no directory names it.
    fn orphan(&self, read: Read<'_>, number: u64, inode: &[u8]) -> Option<Orphan> {
        /// The number of blocks counts blocks of the filesystem, not sectors.
        const HUGE_FILE: u32 = 0x4_0000;
        let (mode, links) = (inode.le16(0)?, inode.le16(0x1a)?);
        if mode == 0 || links > 0 {
            return None;
        }
        let unit = if inode.le32(0x20)? & HUGE_FILE != 0 { self.block } else { 512 };
        let seconds = |at| inode.le32(at).map(|seconds| i64::from(seconds as i32));
        Some(Orphan {
            inode: number,
            mode: mode.into(),
            size: u64::from(inode.le32(4)?) | u64::from(inode.le32(0x6c)?) << 32,
            allocated: le48(inode, 0x1c, 0x74)?.checked_mul(unit)?,
            modified: seconds(0x10)?,
            changed: seconds(0xc)?,
            place: self.place_of(read, inode),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader;

    fn put(disk: &mut [u8], at: usize, words: &[(usize, u32)]) {
        for (offset, word) in words {
            disk[at + offset..at + offset + 4].copy_from_slice(&word.to_le_bytes());
        }
    }

    /// `RO_COMPAT_ORPHAN_PRESENT`.
    const ORPHAN_PRESENT: u32 = 0x1_0000;

    /// Blocks of 1 KiB, two groups of 16 inodes, whose tables are at blocks 5 and 10. The list has
    /// inodes 20, 3 (with a name) and 4; the file of orphans, inode 12 at block 30, has 5 and 20.
    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 40 << 10];
        put(&mut disk, 1024, &[(0, 32), (4, 40), (0x14, 1), (0x20, 8192), (0x28, 16), (0xe8, 20)]);
        put(&mut disk, 1024, &[(0x280, 12), (0x38, 0xef53), (0x4c, 1), (0x58, 256), (0x64, ORPHAN_PRESENT)]);
        put(&mut disk, 2048, &[(8, 5), (32 + 8, 10)]);
        for (number, next, links) in [(20, 3, 0), (3, 4, 1 << 16), (4, 0, 0), (5, 0, 0), (12, 0, 1 << 16)] {
            let table = if number > 16 { 10 << 10 } else { 5 << 10 };
            let at = table + (number - 1) % 16 * 256;
            put(
                &mut disk,
                at,
                &[(0, 0o100_644), (4, 5000), (0x10, 7), (0x14, next), (0x18, links), (0x1c, 10)],
            );
        }
        put(&mut disk, (5 << 10) + 3 * 256, &[(0x68, 33), (0x28, 34)]);
        put(&mut disk, (5 << 10) + 11 * 256, &[(0x28, 30)]);
        put(&mut disk, 30 << 10, &[(8, 5), (12, 20), (1016, 4)]);
        disk
    }

    fn found(disk: &[u8]) -> Vec<Orphan> {
        let read = reader(disk);
        Filesystem::read(&read).map_or_else(Vec::new, |filesystem| filesystem.orphans(&read))
    }

    fn numbers(disk: &[u8]) -> Vec<u64> {
        found(disk).iter().map(|orphan| orphan.inode).collect()
    }

    #[test]
    fn orphans_are_in_the_list_and_in_the_file() {
        let about = |orphan: &Orphan| {
            let place = orphan.place.as_ref().unwrap();
            let data = place.data.first().map(|part| part.range.start.0);
            (orphan.inode, orphan.size, orphan.allocated, data, place.attributes.map(|range| range.start.0))
        };
        let found: Vec<_> = found(&disk()).iter().map(about).collect();
        let expected = [
            (20, 5000, 5120, None, None),
            (4, 5000, 5120, Some(34 << 10), Some(33 << 10)),
            (5, 5000, 5120, None, None),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn lists_that_go_round_end() {
        let mut disk = disk();
        put(&mut disk, (5 << 10) + 3 * 256, &[(0x14, 20)]);
        assert_eq!(numbers(&disk), [20, 4, 5]);
        // A number that no inode has.
        put(&mut disk, (5 << 10) + 3 * 256, &[(0x14, 9999)]);
        assert_eq!(numbers(&disk), [20, 4, 5]);
        disk[1024 + 0x38] = 0;
        assert_eq!(numbers(&disk), []);
    }
}
