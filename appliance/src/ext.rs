//! Inodes of ext2, ext3 and ext4 that no directory names, because a program had them open when they
//! were removed: the list of orphans in the superblock, or their file ("Orphan File" and "Super
//! Block" in `Documentation/filesystems/ext4` of the kernel).

use std::collections::HashSet;
use virt_bmap_on_disk::{Fields, Read};

/// Where the superblock lies, and its bytes.
const SUPERBLOCK: u64 = 1024;

/// Most orphans that are looked at.
const MOST: usize = 1 << 16;

/// `INCOMPAT_META_BG`, `INCOMPAT_64BIT`.
const META_BG: u32 = 0x10;
const SIXTY_FOUR: u32 = 0x80;
/// `RO_COMPAT_ORPHAN_PRESENT`: the file of orphans may have some.
const ORPHAN_PRESENT: u32 = 0x1_0000;

/// Bytes of an inode that every version has.
const INODE: u64 = 128;

/// A filesystem, by its superblock.
#[derive(Debug)]
pub(crate) struct Filesystem {
    block: u64,
    /// The block of the superblock.
    first: u64,
    inodes: u64,
    inodes_per_group: u64,
    inode_size: u64,
    blocks_per_group: u64,
    descriptor: u64,
    /// With [`META_BG`], the first group whose descriptors are not behind the superblock.
    first_meta: u64,
    /// The first orphan of the list.
    last_orphan: u64,
    /// The inode of the file of orphans, if it may have some.
    orphan_file: Option<u64>,
}

/// What an orphan's inode says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Orphan {
    pub(crate) inode: u64,
    pub(crate) mode: u32,
    pub(crate) size: u64,
    /// Bytes of its blocks.
    pub(crate) allocated: u64,
    /// Seconds since 1970.
    pub(crate) modified: i64,
    pub(crate) changed: i64,
    /// The block of its extended attributes, as a place in bytes.
    pub(crate) attributes: Option<u64>,
}

impl Filesystem {
    pub(crate) fn read(read: Read<'_>) -> Option<Self> {
        Self::of(&read(SUPERBLOCK, 1024)?)
    }

    fn of(superblock: &[u8]) -> Option<Self> {
        let word = |at| superblock.le32(at).map(u64::from);
        let block = 1024u64.checked_shl(superblock.le32(0x18)?).filter(|block| *block <= 64 << 10)?;
        let is_old = superblock.le32(0x4c)? == 0;
        let (incompatible, read_only) = (superblock.le32(0x60)?, superblock.le32(0x64)?);
        let wide = u64::from(superblock.le16(0xfe)?).max(64);
        let filesystem = Self {
            block,
            first: word(0x14)?,
            inodes: word(0)?,
            inodes_per_group: word(0x28)?,
            inode_size: if is_old { INODE } else { superblock.le16(0x58)?.into() },
            blocks_per_group: word(0x20)?,
            descriptor: if incompatible & SIXTY_FOUR != 0 { wide } else { 32 },
            first_meta: if incompatible & META_BG != 0 { word(0x104)? } else { u64::MAX },
            last_orphan: word(0xe8)?,
            orphan_file: word(0x280).filter(|_| read_only & ORPHAN_PRESENT != 0),
        };
        let makes_sense = superblock.le16(0x38)? == 0xef53
            && filesystem.inodes_per_group > 0
            && (INODE..=block).contains(&filesystem.inode_size)
            && filesystem.descriptor <= block;
        makes_sense.then_some(filesystem)
    }

    /// The inode of the file of orphans, if it may have some.
    pub(crate) fn orphan_file(&self) -> Option<u64> {
        self.orphan_file
    }

    /// Bytes of a block.
    pub(crate) fn block(&self) -> u64 {
        self.block
    }

    /// The orphans of the list, and those of their file, whose blocks these are (places in bytes).
    /// The list also has files with a name, whose end was being cut off: they are no orphans.
    pub(crate) fn orphans(&self, read: Read<'_>, file: &[u64]) -> Vec<Orphan> {
        let mut seen = HashSet::new();
        let mut next = self.last_orphan;
        let mut orphans = Vec::new();
        while seen.len() < MOST && seen.insert(next) {
            let Some(inode) = self.inode(read, next) else { break };
            orphans.extend(self.orphan(next, &inode));
            // The time of deletion holds the number of the next one.
            next = inode.le32(0x14).unwrap_or(0).into();
        }
        for block in file {
            let bytes = read(*block, self.block).unwrap_or_default();
            // The last eight bytes are a magic number and a checksum.
            let numbers = bytes.get(..bytes.len().saturating_sub(8)).unwrap_or_default().chunks_exact(4);
            for number in numbers.filter_map(|number| number.le32(0)).map(u64::from) {
                if number > 0 && seen.len() < MOST && seen.insert(number) {
                    let inode = self.inode(read, number);
                    orphans.extend(inode.and_then(|inode| self.orphan(number, &inode)));
                }
            }
        }
        orphans
    }

    /// The first bytes of an inode.
    fn inode(&self, read: Read<'_>, number: u64) -> Option<Vec<u8>> {
        let index = number.checked_sub(1).filter(|_| number <= self.inodes)?;
        let (group, within) = (index / self.inodes_per_group, index % self.inodes_per_group);
        let descriptor = read(self.descriptor(group)?, self.descriptor)?;
        let high = if self.descriptor >= 64 { descriptor.le32(0x28)? } else { 0 };
        let table = u64::from(descriptor.le32(8)?) | u64::from(high) << 32;
        read(table.checked_mul(self.block)?.checked_add(within * self.inode_size)?, INODE)
    }

    /// Where the descriptor of a group lies.
    fn descriptor(&self, group: u64) -> Option<u64> {
        let per_block = self.block / self.descriptor;
        let (number, within) = (group / per_block, group % per_block * self.descriptor);
        let block = if number < self.first_meta {
            self.first.checked_add(1)?.checked_add(number)?
        } else {
            // In the first group of those that it describes, behind a superblock if that has one.
            let first = number * per_block;
            let has_superblock = u64::from(has_superblock(first));
            first.checked_mul(self.blocks_per_group)?.checked_add(self.first + has_superblock)?
        };
        block.checked_mul(self.block)?.checked_add(within)
    }

    /// What the inode says, if no directory names it.
    fn orphan(&self, number: u64, inode: &[u8]) -> Option<Orphan> {
        /// The number of blocks counts blocks of the filesystem, not sectors.
        const HUGE_FILE: u32 = 0x4_0000;
        let (mode, links) = (inode.le16(0)?, inode.le16(0x1a)?);
        if mode == 0 || links > 0 {
            return None;
        }
        let unit = if inode.le32(0x20)? & HUGE_FILE != 0 { self.block } else { 512 };
        let blocks = u64::from(inode.le32(0x1c)?) | u64::from(inode.le16(0x74)?) << 32;
        let attributes = u64::from(inode.le32(0x68)?) | u64::from(inode.le16(0x76)?) << 32;
        let seconds = |at| inode.le32(at).map(|seconds| i64::from(seconds as i32));
        Some(Orphan {
            inode: number,
            mode: mode.into(),
            size: u64::from(inode.le32(4)?) | u64::from(inode.le32(0x6c)?) << 32,
            allocated: blocks.checked_mul(unit)?,
            modified: seconds(0x10)?,
            changed: seconds(0xc)?,
            attributes: attributes.checked_mul(self.block).filter(|place| *place > 0),
        })
    }
}

/// Whether a group has a copy of the superblock (`sparse_super`: 0, 1 and powers of 3, 5 and 7).
fn has_superblock(group: u64) -> bool {
    let is_power = |of: u64| {
        std::iter::successors(Some(of), |n| n.checked_mul(of)).take_while(|n| *n <= group).last()
            == Some(group)
    };
    group <= 1 || [3, 5, 7].into_iter().any(is_power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(disk: &mut [u8], at: usize, words: &[(usize, u32)]) {
        for (offset, word) in words {
            disk[at + offset..at + offset + 4].copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Blocks of 1 KiB, two groups of 16 inodes, whose tables are at blocks 5 and 10. The list has
    /// inodes 20, 3 (with a name) and 4; the file of orphans, at block 30, has 5 and 20.
    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 40 << 10];
        put(&mut disk, 1024, &[(0, 32), (0x14, 1), (0x20, 8192), (0x28, 16), (0xe8, 20), (0x280, 12)]);
        put(&mut disk, 1024, &[(0x38, 0xef53), (0x4c, 1), (0x58, 256), (0x64, ORPHAN_PRESENT)]);
        put(&mut disk, 2048, &[(8, 5), (32 + 8, 10)]);
        for (number, next, links) in [(20, 3, 0), (3, 4, 1 << 16), (4, 0, 0), (5, 0, 0)] {
            let table = if number > 16 { 10 << 10 } else { 5 << 10 };
            let at = table + (number - 1) % 16 * 256;
            put(
                &mut disk,
                at,
                &[(0, 0o100_644), (4, 5000), (0x10, 7), (0x14, next), (0x18, links), (0x1c, 10)],
            );
        }
        put(&mut disk, (5 << 10) + 3 * 256, &[(0x68, 33)]);
        put(&mut disk, 30 << 10, &[(8, 5), (12, 20), (1016, 4)]);
        disk
    }

    fn orphans(disk: &[u8]) -> Vec<u64> {
        let read = |at: u64, length: u64| Some(disk.get(at as usize..)?.get(..length as usize)?.to_vec());
        let filesystem = Filesystem::read(&read);
        let found = filesystem.map(|filesystem| filesystem.orphans(&read, &[30 << 10]));
        found.into_iter().flatten().map(|orphan| orphan.inode).collect()
    }

    #[test]
    fn orphans_are_in_the_list_and_in_the_file() {
        assert_eq!(orphans(&disk()), [20, 4, 5]);
        let disk = disk();
        let read = |at: u64, length: u64| Some(disk.get(at as usize..)?.get(..length as usize)?.to_vec());
        let filesystem = Filesystem::read(&read).unwrap();
        assert_eq!((filesystem.orphan_file(), filesystem.block()), (Some(12), 1024));
        let found = filesystem.orphans(&read, &[]);
        let about = |orphan: &Orphan| (orphan.size, orphan.allocated, orphan.modified, orphan.attributes);
        assert_eq!(
            found.iter().map(about).collect::<Vec<_>>(),
            [(5000, 5120, 7, None), (5000, 5120, 7, Some(33 << 10))]
        );
    }

    #[test]
    fn lists_that_go_round_end() {
        let mut disk = disk();
        put(&mut disk, (5 << 10) + 3 * 256, &[(0x14, 20)]);
        assert_eq!(orphans(&disk), [20, 4, 5]);
        // A number that no inode has.
        put(&mut disk, (5 << 10) + 3 * 256, &[(0x14, 9999)]);
        assert_eq!(orphans(&disk), [20, 4, 5]);
        disk[1024 + 0x38] = 0;
        assert_eq!(orphans(&disk), []);
    }

    #[test]
    fn some_groups_have_a_superblock() {
        let found: Vec<u64> = (0..60).filter(|group| has_superblock(*group)).collect();
        assert_eq!(found, [0, 1, 3, 5, 7, 9, 25, 27, 49]);
    }
}
