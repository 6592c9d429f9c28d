//! XFS: an inode's number is its place: the allocation group, the block in that, and the slot in
//! the block ("XFS Algorithms & Data Structures", chapter "Inode Numbers"). Numbers are big-endian.

use super::{GROUP, Group, SelfContained, Table};
use crate::probe::device::{Device, Fields};
use crate::probe::superblock::Xfs;
use virt_bmap_ranges::{DeviceOffset, Range};

/// The place of each inode, by its number.
pub(super) struct Inodes {
    measures: Xfs,
    inode_size: u64,
    /// Bits of a number that are the slot, and bits that are the block.
    slot_bits: u32,
    block_bits: u32,
    /// The inode of the root directory.
    root: u64,
    identity: Vec<u8>,
}

impl Inodes {
    /// `None` if the superblock is invalid.
    pub(super) fn read(device: &Device<'_>) -> Option<Self> {
        Self::of(&device.read(0, 512)?)
    }

    fn of(superblock: &[u8]) -> Option<Self> {
        let table = Self {
            measures: Xfs::of(superblock)?,
            inode_size: superblock.be16(104)?.into(),
            slot_bits: superblock.u8_at(123)?.into(),
            block_bits: superblock.u8_at(124)?.into(),
            root: superblock.be64(56)?,
            identity: identity(superblock)?,
        };
        let is_valid = table.slot_bits < 16
            && table.block_bits < 32
            && table.inode_size >= 256
            && table.measures.block == table.inode_size << table.slot_bits
            && table.measures.group_blocks <= 1 << table.block_bits;
        is_valid.then_some(table)
    }
}

impl Table for Inodes {
    fn block(&self) -> u64 {
        self.measures.block
    }

    fn inode_size(&self) -> u64 {
        self.inode_size
    }

    fn identity(&self) -> &[u8] {
        &self.identity
    }

    fn root(&self) -> u64 {
        self.root
    }

    fn self_contained(&self, inode: &[u8]) -> Option<SelfContained> {
        self_contained(inode)
    }

    fn group(&self, inode: u64) -> Option<Group> {
        let first = inode / GROUP * GROUP;
        let bits = self.slot_bits + self.block_bits;
        let (group, within) = (first >> bits, first & ((1 << bits) - 1));
        let bytes_of_group = self.measures.group_blocks * self.measures.block;
        // A block holds nothing but inodes, so those of one group lie one after the other.
        let start = within * self.inode_size;
        let length = GROUP * self.inode_size;
        if group >= self.measures.groups || start + length > bytes_of_group {
            return None;
        }
        let start = group.checked_mul(bytes_of_group)?.checked_add(start)?;
        Range::at(DeviceOffset(start), length).map(|range| (first, range))
    }
}

/// The parts of a superblock that decide how inodes and directories are read: sizes, versions and
/// features, the UUIDs, and the size of directory blocks.
fn identity(superblock: &[u8]) -> Option<Vec<u8>> {
    let parts = [(4, 48), (84, 92), (100, 108), (120, 126), (192, 193), (200, 204), (208, 220), (248, 264)];
    let parts = parts.map(|(start, end)| superblock.get(start..end));
    parts.into_iter().collect::<Option<Vec<_>>>().map(|parts| parts.concat())
}

/// The type of an inode, if it is self-contained and its data is on this device (chapter "On-disk
/// Inode").
fn self_contained(inode: &[u8]) -> Option<SelfContained> {
    /// `XFS_DINODE_FMT_LOCAL`
    const LOCAL: u8 = 1;
    /// `XFS_DINODE_FMT_EXTENTS`
    const EXTENTS: u8 = 2;
    /// `XFS_DIFLAG_REALTIME`
    const REALTIME: u16 = 1;
    if inode.get(..2)? != b"IN" {
        return None;
    }
    // Its attributes lie elsewhere (`di_forkoff`, `di_aformat`).
    if inode.u8_at(82)? > 0 && inode.u8_at(83)? != LOCAL {
        return None;
    }
    match (inode.be16(2)? & 0xf000, inode.u8_at(5)?) {
        (0x8000, EXTENTS) if inode.be16(90)? & REALTIME == 0 => Some(SelfContained::File),
        (0x4000, LOCAL) => Some(SelfContained::InlineDirectory),
        (0x4000, EXTENTS) => Some(SelfContained::Directory),
        (0xa000, LOCAL) => Some(SelfContained::InlineLink),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_with_a_tree_of_extents_is_not_self_contained() {
        let inode = |mode: u8, format: u8, flags: u8| {
            let mut inode = vec![0; 512];
            inode[..6].copy_from_slice(&[b'I', b'N', mode, 0xa4, 3, format]);
            inode[91] = flags;
            self_contained(&inode)
        };
        assert_eq!(inode(0x81, 2, 0x40), Some(SelfContained::File));
        assert_eq!((inode(0x81, 1, 0), inode(0x81, 3, 0), inode(0x81, 2, 1)), (None, None, None));
        let directories = [SelfContained::InlineDirectory, SelfContained::Directory];
        assert_eq!([1, 2].map(|format| inode(0x41, format, 0)), directories.map(Some));
        assert_eq!((inode(0x41, 3, 0), inode(0xa1, 2, 0)), (None, None));
        assert_eq!(inode(0xa1, 1, 0), Some(SelfContained::InlineLink));
        assert_eq!((self_contained(&[0; 256]), self_contained(b"IN")), (None, None));
    }

    #[test]
    fn an_inodes_number_is_its_place() {
        let mut superblock = vec![0; 512];
        superblock[..4].copy_from_slice(b"XFSB");
        superblock[4..8].copy_from_slice(&4096u32.to_be_bytes());
        superblock[84..88].copy_from_slice(&1000u32.to_be_bytes());
        superblock[88..92].copy_from_slice(&4u32.to_be_bytes());
        superblock[104..106].copy_from_slice(&512u16.to_be_bytes());
        superblock[123..125].copy_from_slice(&[3, 10]);
        let table = Inodes::of(&superblock).unwrap();
        let group = |inode| table.group(inode).map(|(first, range)| (first, range.start.0, range.len()));
        assert_eq!(group(131), Some((128, 16 * 4096, 4096)));
        assert_eq!(group(2 << 13 | 131), Some((2 << 13 | 128, 2 * 4_096_000 + 16 * 4096, 4096)));
        // Past the end of an allocation group, and of the last one.
        assert_eq!((group(8000), group(4 << 13), group(u64::MAX)), (None, None, None));
        superblock[123] = 4;
        assert!(Inodes::of(&superblock).is_none() && Inodes::of(&superblock[..100]).is_none());
    }
}
