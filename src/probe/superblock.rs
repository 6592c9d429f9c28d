//! Sizes that a filesystem's superblock states.

use super::device::Fields;

/// Of ext2, ext3 and ext4 ("Super Block" in `Documentation/filesystems/ext4` of the kernel).
pub(super) struct Ext {
    /// Bytes in a block.
    pub(super) block: u64,
    /// Bytes in an inode, as stated; not checked.
    pub(super) inode: u64,
}

impl Ext {
    /// Where the superblock is on the device, in bytes.
    pub(super) const AT: u64 = 1024;

    pub(super) fn of(superblock: &[u8]) -> Option<Self> {
        const MAGIC: u16 = 0xef53;
        if superblock.le16(0x38)? != MAGIC {
            return None;
        }
        let block = 1024u64.checked_shl(superblock.le32(0x18)?).filter(|block| *block <= 64 << 10)?;
        // The first revision had inodes of 128 bytes.
        let inode = if superblock.le32(0x4c)? == 0 { 128 } else { superblock.le16(0x58)?.into() };
        Some(Self { block, inode })
    }
}

/// Of XFS ("XFS Algorithms & Data Structures", chapter "Allocation Groups"). Numbers are
/// big-endian.
pub(super) struct Xfs {
    /// Bytes in a block.
    pub(super) block: u64,
    /// Blocks in an allocation group.
    pub(super) group_blocks: u64,
    /// How many allocation groups there are.
    pub(super) groups: u64,
}

impl Xfs {
    pub(super) fn of(superblock: &[u8]) -> Option<Self> {
        if superblock.get(..4)? != b"XFSB" {
            return None;
        }
        Some(Self {
            block: superblock.be32(4)?.into(),
            group_blocks: superblock.be32(84)?.into(),
            groups: superblock.be32(88)?.into(),
        })
    }
}
