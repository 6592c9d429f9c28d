//! XFS: an inode's number is its place: the allocation group, the block in that, and the slot in the block
//! ("XFS Algorithms & Data Structures", chapter "Inode Numbers"). Numbers are big-endian.

use super::{GROUP, Group};
use crate::probe::device::{Device, Fields};
use crate::range::{DeviceOffset, Range};

pub(super) struct Table {
    block: u64,
    /// Blocks in an allocation group, and how many groups there are.
    group_blocks: u64,
    groups: u64,
    pub(super) inode_size: u64,
    /// Bits of a number that tell the slot, and those that tell the block.
    slot_bits: u32,
    block_bits: u32,
    /// The inode of the root.
    pub(super) root: u64,
}

impl Table {
    /// The table, and the size of a block.
    pub(super) fn read(device: &Device<'_>) -> Option<(Self, u64)> {
        let table = Self::of(&device.read(0, 512)?)?;
        let block = table.block;
        Some((table, block))
    }

    fn of(superblock: &[u8]) -> Option<Self> {
        let table = Self {
            block: superblock.be32(4)?.into(),
            group_blocks: superblock.be32(84)?.into(),
            groups: superblock.be32(88)?.into(),
            inode_size: superblock.be16(104)?.into(),
            slot_bits: superblock.u8_at(123)?.into(),
            block_bits: superblock.u8_at(124)?.into(),
            root: superblock.be64(56)?,
        };
        let makes_sense = superblock.get(..4)? == b"XFSB"
            && table.slot_bits < 16
            && table.block_bits < 32
            && table.inode_size >= 256
            && table.block == table.inode_size << table.slot_bits
            && table.group_blocks <= 1 << table.block_bits;
        makes_sense.then_some(table)
    }

    pub(super) fn group(&self, inode: u64) -> Option<Group> {
        let first = inode / GROUP * GROUP;
        let bits = self.slot_bits + self.block_bits;
        let (group, within) = (first >> bits, first & ((1 << bits) - 1));
        let bytes_of_group = self.group_blocks * self.block;
        // Each block is full of inodes, so those of one group lie one after the other.
        let start = within * self.inode_size;
        let length = GROUP * self.inode_size;
        if group >= self.groups || start + length > bytes_of_group {
            return None;
        }
        let start = group.checked_mul(bytes_of_group)?.checked_add(start)?;
        Range::at(DeviceOffset(start), length).map(|range| (first, range))
    }
}

/// Whether an inode is a regular file whose list of extents is in it, and whose data is on this device (chapter "On-disk
/// Inode").
pub(super) fn is_self_contained(inode: &[u8]) -> Option<bool> {
    /// `XFS_DINODE_FMT_EXTENTS`
    const EXTENTS: u8 = 2;
    /// `XFS_DIFLAG_REALTIME`
    const REALTIME: u16 = 1;
    let is_file = inode.get(..2)? == b"IN" && inode.be16(2)? & 0xf000 == 0x8000;
    Some(is_file && inode.u8_at(5)? == EXTENTS && inode.be16(90)? & REALTIME == 0)
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
            is_self_contained(&inode)
        };
        assert_eq!(inode(0x81, 2, 0x40), Some(true));
        assert_eq!(
            (inode(0x81, 3, 0), inode(0x41, 2, 0), inode(0x81, 2, 1)),
            (Some(false), Some(false), Some(false))
        );
        assert_eq!((is_self_contained(&[0; 256]), is_self_contained(b"IN")), (Some(false), None));
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
        let table = Table::of(&superblock).unwrap();
        let group = |inode| table.group(inode).map(|(first, range)| (first, range.start.0, range.len()));
        assert_eq!(group(131), Some((128, 16 * 4096, 4096)));
        assert_eq!(group(2 << 13 | 131), Some((2 << 13 | 128, 2 * 4_096_000 + 16 * 4096, 4096)));
        // Past the end of an allocation group, and of the last one.
        assert_eq!((group(8000), group(4 << 13), group(u64::MAX)), (None, None, None));
        superblock[123] = 4;
        assert!(Table::of(&superblock).is_none() && Table::of(&superblock[..100]).is_none());
    }
}
