//! ext2, ext3 and ext4: where inodes and their blocks lie ("Super Block", "Block Group
//! Descriptors", "Index Nodes" and "The Contents of inode.i_block" in
//! `Documentation/filesystems/ext4` of the kernel).

mod inode;
mod orphans;
mod place;

pub use inode::Tables;
pub use orphans::Orphan;
pub use place::Place;

use crate::{Fields, Read};

/// Where the superblock lies, and its bytes.
const SUPERBLOCK: u64 = 1024;

/// `INCOMPAT_META_BG`, `INCOMPAT_64BIT`.
const META_BG: u32 = 0x10;
const SIXTY_FOUR: u32 = 0x80;
/// `RO_COMPAT_ORPHAN_PRESENT`: the file of orphans may have some.
const ORPHAN_PRESENT: u32 = 0x1_0000;

/// Bytes of an inode that every version has.
const INODE: u64 = 128;

/// Where `i_block` lies in the inode, and its length.
const POINTERS: usize = 0x28;
const POINTERS_LENGTH: usize = 60;

/// What a file of the filesystem itself is for. No directory names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnFile {
    /// Bad blocks.
    BadBlocks,
    /// Blocks that are reserved for more descriptors of groups.
    ReservedDescriptors,
    /// The journal.
    Journal,
    /// Quotas of users, groups or projects.
    Quota,
    /// Numbers of orphans.
    Orphans,
}

/// A filesystem, by its superblock.
#[derive(Debug)]
pub struct Filesystem {
    block: u64,
    /// Bytes of all blocks.
    size: u64,
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
    /// Whether the file of orphans may have some.
    has_orphan_file: bool,
    /// Its own files and their inodes.
    own_files: Vec<(OwnFile, u64)>,
}

impl Filesystem {
    /// The filesystem on a device.
    pub fn read(read: Read<'_>) -> Option<Self> {
        Self::of(&read(SUPERBLOCK, 1024)?)
    }

    fn of(superblock: &[u8]) -> Option<Self> {
        let word = |at| superblock.le32(at).map(u64::from);
        let block = 1024u64.checked_shl(superblock.le32(0x18)?).filter(|block| *block <= 64 << 10)?;
        let is_old = superblock.le32(0x4c)? == 0;
        let (incompatible, read_only) = (superblock.le32(0x60)?, superblock.le32(0x64)?);
        let is_wide = incompatible & SIXTY_FOUR != 0;
        let wide = u64::from(superblock.le16(0xfe)?).max(64);
        let blocks = word(4)? | if is_wide { word(0x150)? << 32 } else { 0 };
        let own_files = [
            (OwnFile::BadBlocks, 1),
            (OwnFile::ReservedDescriptors, 7),
            (OwnFile::Journal, word(0xe0)?),
            (OwnFile::Quota, word(0x240)?),
            (OwnFile::Quota, word(0x244)?),
            (OwnFile::Quota, word(0x26c)?),
            (OwnFile::Orphans, word(0x280)?),
        ];
        let filesystem = Self {
            block,
            size: blocks.checked_mul(block)?,
            first: word(0x14)?,
            inodes: word(0)?,
            inodes_per_group: word(0x28)?,
            inode_size: if is_old { INODE } else { superblock.le16(0x58)?.into() },
            blocks_per_group: word(0x20)?,
            descriptor: if is_wide { wide } else { 32 },
            first_meta: if incompatible & META_BG != 0 { word(0x104)? } else { u64::MAX },
            last_orphan: word(0xe8)?,
            has_orphan_file: read_only & ORPHAN_PRESENT != 0,
            own_files: own_files.into_iter().filter(|(_, inode)| *inode > 0).collect(),
        };
        let makes_sense = superblock.le16(0x38)? == 0xef53
            && filesystem.inodes_per_group > 0
            && (INODE..=block).contains(&filesystem.inode_size)
            && filesystem.descriptor <= block;
        makes_sense.then_some(filesystem)
    }

    /// The filesystem's own files and their inodes.
    pub fn own_files(&self) -> &[(OwnFile, u64)] {
        &self.own_files
    }

    /// Bytes of a block.
    pub fn block(&self) -> u64 {
        self.block
    }

    /// The first bytes of an inode.
    fn inode(&self, read: Read<'_>, number: u64) -> Option<Vec<u8>> {
        let index = number.checked_sub(1).filter(|_| number <= self.inodes)?;
        let (group, within) = (index / self.inodes_per_group, index % self.inodes_per_group);
        let table = self.table(read, group)?;
        read(table.checked_mul(self.block)?.checked_add(within * self.inode_size)?, INODE)
    }

    /// The first block of the table of inodes of a group.
    fn table(&self, read: Read<'_>, group: u64) -> Option<u64> {
        let descriptor = read(self.descriptor(group)?, self.descriptor)?;
        let high = if self.descriptor >= 64 { descriptor.le32(0x28)? } else { 0 };
        Some(u64::from(descriptor.le32(8)?) | u64::from(high) << 32)
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
}

/// A number of 48 bits, whose lower 32 and upper 16 lie at these offsets.
fn le48(bytes: &[u8], low: usize, high: usize) -> Option<u64> {
    Some(u64::from(bytes.le32(low)?) | u64::from(bytes.le16(high)?) << 32)
}

/// The checksum of ext4 ("Checksums"): Castagnoli's CRC, which begins with `seed` and is not
/// inverted at the end.
pub fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
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

    #[test]
    fn checksums_are_those_of_crc_32c() {
        // The check value of the algorithm is 0xe3069283, after the inversion.
        assert_eq!(checksum(u32::MAX, b"123456789"), !0xe306_9283);
    }

    #[test]
    fn some_groups_have_a_superblock() {
        let found: Vec<u64> = (0..60).filter(|group| has_superblock(*group)).collect();
        assert_eq!(found, [0, 1, 3, 5, 7, 9, 25, 27, 49]);
    }
}
