//! Inodes. One of which anything is unusual is `None`, so that the kernel is asked: it has blocks
//! besides those that it names itself, shares some, or does not pass the checks of
//! `xfs_dinode_verify` in the kernel's `fs/xfs/libxfs/xfs_inode_buf.c`.

use super::Volume;
use crate::Fields;
use crate::inode::{self, Inode, Part};
use virt_bmap_ranges::{DeviceOffset, Range};

/// The format of a fork: in the inode, or a list of extents there.
const LOCAL: u8 = 1;
const EXTENTS: u8 = 2;

/// Types of files, in `mode`.
const DIRECTORY: u32 = 0x4000;
const FILE: u32 = 0x8000;
const SYMLINK: u32 = 0xa000;

/// `XFS_DIFLAG_REALTIME`
const REALTIME: u16 = 0x1;
/// `XFS_DIFLAG2_DAX`, `XFS_DIFLAG2_BIGTIME`, `XFS_DIFLAG2_NREXT64`.
const DIRECT_ACCESS: u64 = 0x1;
const BIG_TIME: u64 = 0x8;
const LARGE_COUNTS: u64 = 0x10;

impl Volume {
    /// The extents of an inode's data, if they are all in the inode.
    pub fn extents(&self, bytes: &[u8]) -> Option<Vec<Part>> {
        if bytes.get(..2)? != b"IN" || bytes.u8_at(5)? != EXTENTS {
            return None;
        }
        let flags = if self.has_checksums { bytes.be64(120)? } else { 0 };
        let count = if flags & LARGE_COUNTS != 0 { bytes.be64(24)? } else { bytes.be32(76)?.into() };
        // The fork of attributes begins at a multiple of eight bytes behind the core.
        let core = if bytes.u8_at(4)? >= 3 { 176 } else { 100 };
        let fork = match usize::from(bytes.u8_at(82)?) * 8 {
            0 => bytes.get(core..)?,
            length => bytes.get(core..core + length)?,
        };
        let list = fork.chunks_exact(16);
        let count = usize::try_from(count).ok().filter(|count| *count <= list.len())?;
        let mut data = Vec::with_capacity(count);
        for extent in list.take(count) {
            inode::push(&mut data, self.extent(extent.be64(0)?, extent.be64(8)?)?)?;
        }
        Some(data)
    }

    /// An extent, by its two words ("Data Extents").
    fn extent(&self, high: u64, low: u64) -> Option<Part> {
        let first = (high & 0x1ff) << 43 | low >> 21;
        let count = low & 0x1f_ffff;
        let (group, within) = (first >> self.block_bits, first & ((1 << self.block_bits) - 1));
        let group_end =
            self.blocks.checked_sub(group.checked_mul(self.group_blocks)?)?.min(self.group_blocks);
        // The first blocks of a group are its headers.
        let is_inside = group < self.groups && within > 0 && count > 0 && within + count <= group_end;
        let start = DeviceOffset(self.place(first)?);
        let range = Range::at(start, count * self.block).filter(|_| is_inside)?;
        let offset = (high >> 9 & ((1 << 54) - 1)).checked_mul(self.block)?;
        Some(Part { offset, range, is_unwritten: high >> 63 == 1 })
    }

    /// What the bytes of an inode say of a file or a symbolic link.
    pub fn inode(&self, number: u64, bytes: &[u8]) -> Option<Inode> {
        self.any_inode(number, bytes).filter(|inode| matches!(inode.mode & 0xf000, FILE | SYMLINK))
    }

    /// What the bytes of an inode say of a directory. Its data includes its indexes, which lie far
    /// behind its size. A short directory has no data: its entries are in the inode.
    pub fn directory(&self, number: u64, bytes: &[u8]) -> Option<Inode> {
        let is_plain = |inode: &Inode| {
            inode.mode & 0xf000 == DIRECTORY && inode.data.iter().all(|part| !part.is_unwritten)
        };
        self.any_inode(number, bytes).filter(is_plain)
    }

    fn any_inode(&self, number: u64, bytes: &[u8]) -> Option<Inode> {
        let bytes = bytes.get(..usize::try_from(self.inode).ok()?)?;
        let version = if self.has_checksums { 3 } else { 2 };
        if bytes.get(..2)? != b"IN" || bytes.u8_at(4)? != version {
            return None;
        }
        self.check(number, bytes)?;
        let (mode, flags, links) = (bytes.be16(2)?, bytes.be16(90)?, bytes.be32(16)?);
        let more_flags = if self.has_checksums { bytes.be64(120)? } else { 0 };
        let (fork_offset, attribute_format) = (bytes.u8_at(82)?, bytes.u8_at(83)?);
        let has_attributes_elsewhere =
            fork_offset != 0 && attribute_format != LOCAL && !self.has_no_attributes(bytes, more_flags)?;
        if links == 0
            || flags & REALTIME != 0
            || more_flags & !(DIRECT_ACCESS | BIG_TIME | LARGE_COUNTS) != 0
            || has_attributes_elsewhere
        {
            return None;
        }
        let size = bytes.be64(56).filter(|size| i64::try_from(*size).is_ok())?;
        let allocated = bytes.be64(64)?.checked_mul(self.block)?;
        let data = match (u32::from(mode) & 0xf000, bytes.u8_at(5)?) {
            (FILE | DIRECTORY, EXTENTS) => self.extents(bytes)?,
            (SYMLINK | DIRECTORY, LOCAL) if allocated == 0 && size > 0 => Vec::new(),
            _ => return None,
        };
        let time = |at| {
            Some(if more_flags & BIG_TIME != 0 {
                // Nanoseconds since the earliest time of 32 bits.
                let since = i128::from(bytes.be64(at)?) - (1 << 31) * 1_000_000_000;
                i64::try_from(since).unwrap_or(i64::MAX)
            } else {
                inode::nanoseconds((bytes.be32(at)? as i32).into(), bytes.be32(at + 4)?)
            })
        };
        let inode = Inode {
            mode: mode.into(),
            owner: (bytes.be32(8)?, bytes.be32(12)?),
            links,
            size,
            allocated,
            modified: time(40)?,
            changed: time(48)?,
            // `di_crtime`, which only version 3 of inodes has.
            born: if self.has_checksums { Some(time(144)?) } else { None },
            generation: bytes.be32(92)?,
            data,
        };
        (inode::bytes(&inode.data) == allocated).then_some(inode)
    }

    /// Whether the fork of attributes is an empty list of extents.
    fn has_no_attributes(&self, bytes: &[u8], flags: u64) -> Option<bool> {
        let count = if flags & LARGE_COUNTS != 0 { bytes.be32(76)? } else { bytes.be16(80)?.into() };
        Some(bytes.u8_at(83)? == EXTENTS && count == 0)
    }

    /// Compares what version 5 has in each inode: its checksum, its number, and the UUID.
    fn check(&self, number: u64, bytes: &[u8]) -> Option<()> {
        const CHECKSUM: usize = 100;
        if !self.has_checksums {
            return Some(());
        }
        let sum = crc32c::crc32c_append(crc32c::crc32c(bytes.get(..CHECKSUM)?), &[0; 4]);
        let sum = crc32c::crc32c_append(sum, bytes.get(CHECKSUM + 4..)?);
        let is_same = bytes.le32(CHECKSUM)? == sum
            && bytes.be64(152)? == number
            && bytes.bytes_at::<16>(160)? == self.uuid;
        is_same.then_some(())
    }
}
