//! XFS: where blocks and inodes lie, and what an inode says ("XFS Algorithms & Data Structures",
//! chapters "Superblocks", "On-disk Inode" and "Data Extents"; `xfs_format.h` in the kernel's
//! `fs/xfs/libxfs`). Numbers are big-endian.

mod inode;

use crate::Fields;
use std::collections::HashSet;

/// A file of the filesystem itself, which no directory names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnFile {
    /// The bitmap or the summary of the realtime device.
    Realtime,
    /// Quotas of users, groups or projects.
    Quota,
}

/// The content of the superblock.
#[derive(Debug)]
pub struct Volume {
    /// Bytes of a block, a sector and an inode.
    pub block: u64,
    /// See `block`.
    pub sector: u64,
    /// See `block`.
    pub inode: u64,
    /// Blocks of an allocation group; the last one may have fewer.
    pub group_blocks: u64,
    /// Number of allocation groups.
    pub groups: u64,
    /// Bits of a block's number that are the number in its group, and the same of an inode's.
    block_bits: u32,
    inode_bits: u32,
    /// Number of blocks.
    blocks: u64,
    /// Start and length of the log in bytes, if it is on this device.
    pub log: Option<(u64, u64)>,
    /// Inodes of its own files.
    pub own_files: Vec<(u64, OwnFile)>,
    /// Whether metadata has checksums, and so longer headers (version 5).
    pub has_checksums: bool,
    /// Whether chunks of inodes may have holes.
    pub has_sparse_inodes: bool,
    /// The UUID that all metadata has.
    uuid: [u8; 16],
}

impl Volume {
    /// What a superblock says; `None` if it is none, or contradicts itself.
    pub fn of(superblock: &[u8]) -> Option<Self> {
        const SPARSE_INODES: u32 = 0x2;
        const META_UUID: u32 = 0x4;
        if superblock.get(..4)? != b"XFSB" {
            return None;
        }
        let block = u64::from(superblock.be32(4)?);
        let logarithm = |at| superblock.u8_at(at).map(u32::from);
        let block_bits = logarithm(124)?;
        let has_checksums = superblock.be16(100)? & 0xf == 5;
        let features = if has_checksums { superblock.be32(216)? } else { 0 };
        let mut volume = Self {
            block,
            sector: superblock.be16(102)?.into(),
            inode: 1u64.checked_shl(logarithm(122)?)?,
            group_blocks: superblock.be32(84)?.into(),
            groups: superblock.be32(88)?.into(),
            block_bits,
            inode_bits: block_bits.checked_add(logarithm(123)?)?,
            blocks: superblock.be64(8)?,
            log: None,
            own_files: Vec::new(),
            has_checksums,
            has_sparse_inodes: features & SPARSE_INODES != 0,
            uuid: superblock.bytes_at(if features & META_UUID != 0 { 248 } else { 32 })?,
        };
        let makes_sense = block.is_power_of_two()
            && (512..=65536).contains(&block)
            && (512..=block).contains(&volume.sector)
            && (256..=2048).contains(&volume.inode)
            && (1..=1 << 31).contains(&volume.group_blocks)
            && volume.block_bits < 32
            && volume.inode_bits < 40;
        if !makes_sense {
            return None;
        }
        let (log, log_blocks) = (superblock.be64(48)?, u64::from(superblock.be32(96)?));
        if log > 0 {
            volume.log = Some((volume.place(log)?, log_blocks * block));
        }
        let project_quota = if has_checksums { superblock.be64(232)? } else { 0 };
        let files = [
            (superblock.be64(64)?, OwnFile::Realtime),
            (superblock.be64(72)?, OwnFile::Realtime),
            (superblock.be64(160)?, OwnFile::Quota),
            (superblock.be64(168)?, OwnFile::Quota),
            (project_quota, OwnFile::Quota),
        ];
        // Project and group quotas may have one file.
        let mut known = HashSet::from([0, u64::MAX]);
        volume.own_files.extend(files.into_iter().filter(|(inode, _)| known.insert(*inode)));
        Some(volume)
    }

    /// Where a block of the filesystem lies, in bytes.
    fn place(&self, number: u64) -> Option<u64> {
        let group = number >> self.block_bits;
        let within = number & ((1 << self.block_bits) - 1);
        group.checked_mul(self.group_blocks)?.checked_add(within)?.checked_mul(self.block)
    }

    /// Where an inode lies, in bytes.
    pub fn inode_place(&self, number: u64) -> Option<u64> {
        let (group, within) = (number >> self.inode_bits, number & ((1 << self.inode_bits) - 1));
        group.checked_mul(self.group_blocks * self.block)?.checked_add(within * self.inode)
    }
}
