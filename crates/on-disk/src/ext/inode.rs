//! Inodes as a whole, by the tables of inodes ("Index Nodes" in `Documentation/filesystems/ext4` of
//! the kernel). An inode of which anything is unusual is `None`, so that the kernel is asked: it
//! has blocks besides those that it names itself, is encrypted, or does not pass the checks of
//! `ext4_iget` in `fs/ext4/inode.c`.

use super::place::{DIRECT, ENTRY, ExtentEntry, NODE};
use super::{Filesystem, POINTERS, POINTERS_LENGTH, checksum, le48};
use crate::inode::{self, Inode, InodePlace, Part};
use crate::{Fields, Read};
use std::collections::BTreeMap;
use virt_bmap_ranges::{DeviceOffset, Range};

/// Features with which the inodes of files are as this module knows them (`s_feature_incompat`):
/// types in directories, a journal to be replayed, blocks of descriptors in groups, trees of
/// extents, 64 bits, protection against two mounts, groups whose tables lie together, attributes in
/// inodes, a seed of checksums, large directories, data in inodes, names without case.
const KNOWN_INCOMPATIBLE: u32 =
    0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x2_0000;

/// `RO_COMPAT_HUGE_FILE`, `RO_COMPAT_METADATA_CSUM`, `RO_COMPAT_SHARED_BLOCKS`.
const HUGE_FILES: u32 = 0x8;
const CHECKSUMS: u32 = 0x400;
const SHARED_BLOCKS: u32 = 0x4000;
/// `INCOMPAT_CSUM_SEED`
const CHECKSUM_SEED: u32 = 0x2000;

/// Flags that do not change where a file lies, nor whether it can be opened: of deletion and
/// compression, which no kernel heeds, synchronous, immutable, append only, no dump, no access
/// times, data in the journal, no tails, synchronous and top directories, blocks past the end,
/// direct access, inherited project.
const HARMLESS: u32 = 0x1
    | 0x2
    | 0x4
    | 0x8
    | 0x10
    | 0x20
    | 0x40
    | 0x80
    | 0x4000
    | 0x8000
    | 0x1_0000
    | 0x2_0000
    | 0x40_0000
    | 0x200_0000
    | 0x2000_0000;
/// Immutable and append only, which the kernel does not accept of symbolic links.
const NOT_OF_LINKS: u32 = 0x10 | 0x20;
/// `EXT4_HUGE_FILE_FL`, `EXT4_EXTENTS_FL`.
const HUGE: u32 = 0x4_0000;
const EXTENTS: u32 = 0x8_0000;

/// Bytes of the first version of an inode, and where those after it state their number.
const OLD: usize = 128;
/// Bytes of the latest version (`struct ext4_inode`).
const KNOWN: usize = 160;

/// Where an inode has the time at which it was made (`i_crtime`); its nanoseconds follow.
const BORN: usize = 0x90;

/// The tables of inodes of a filesystem.
#[derive(Debug)]
pub struct Tables {
    filesystem: Filesystem,
    first_inode: u64,
    first_block: u64,
    has_huge_files: bool,
    /// The seed of the checksums of inodes, if they have some.
    seed: Option<u32>,
    /// Where the table of a group begins, of those that were asked for.
    tables: BTreeMap<u64, Option<u64>>,
}

impl Tables {
    /// The tables of the filesystem on a device; `None` if it has features that are not known here.
    pub fn read(read: Read<'_>) -> Option<Self> {
        Self::of(&read(super::SUPERBLOCK, 1024)?)
    }

    fn of(superblock: &[u8]) -> Option<Self> {
        let filesystem = Filesystem::of(superblock)?;
        let (incompatible, read_only) = (superblock.le32(0x60)?, superblock.le32(0x64)?);
        if incompatible & !KNOWN_INCOMPATIBLE != 0 || read_only & SHARED_BLOCKS != 0 {
            return None;
        }
        let seed = match read_only & CHECKSUMS {
            0 => None,
            _ if incompatible & CHECKSUM_SEED != 0 => Some(superblock.le32(0x270)?),
            _ => Some(checksum(!0, superblock.get(0x68..0x78)?)),
        };
        let first_inode = if superblock.le32(0x4c)? == 0 { 11 } else { superblock.le32(0x54)?.into() };
        Some(Self {
            first_inode,
            first_block: superblock.le32(0x14)?.into(),
            has_huge_files: read_only & HUGE_FILES != 0,
            seed,
            tables: BTreeMap::new(),
            filesystem,
        })
    }

    /// Bytes of an inode.
    pub fn inode_size(&self) -> u64 {
        self.filesystem.inode_size
    }

    /// Where an inode lies.
    pub fn place(&mut self, read: Read<'_>, number: u64) -> Option<InodePlace> {
        let Filesystem { inodes, inodes_per_group, inode_size, block, size, .. } = self.filesystem;
        let index = number.checked_sub(1).filter(|_| number <= inodes)?;
        let (group, within) = (index / inodes_per_group, index % inodes_per_group);
        let filesystem = &self.filesystem;
        let table = *self.tables.entry(group).or_insert_with(|| filesystem.table(read, group));
        let start = table?.checked_mul(block)?;
        let table = Range::at(DeviceOffset(start), inodes_per_group.checked_mul(inode_size)?)?;
        (table.end.0 <= size).then_some(InodePlace { at: DeviceOffset(start + within * inode_size), table })
    }

    /// What the bytes of an inode say of a file or a symbolic link.
    pub fn inode(&self, number: u64, bytes: &[u8]) -> Option<Inode> {
        const FILE: u16 = 0x8000;
        const SYMLINK: u16 = 0xa000;
        let (mode, flags, links) = (bytes.le16(0)?, bytes.le32(0x20)?, bytes.le16(0x1a)?);
        let kind = mode & 0xf000;
        let has_attributes_elsewhere = le48(bytes, 0x68, 0x76)? != 0;
        if number < self.first_inode
            || !matches!(kind, FILE | SYMLINK)
            || links == 0
            || has_attributes_elsewhere
            || flags & !(HARMLESS | HUGE | EXTENTS) != 0
        {
            return None;
        }
        let extra = self.extra(bytes)?;
        self.check(number, bytes, extra)?;
        check_attributes(bytes.get(OLD + extra..).unwrap_or_default())?;
        let size =
            u64::from(bytes.le32(4)?) | if kind == FILE { u64::from(bytes.le32(0x6c)?) << 32 } else { 0 };
        if size > i64::MAX as u64 {
            return None;
        }
        let blocks = if self.has_huge_files { le48(bytes, 0x1c, 0x74)? } else { bytes.le32(0x1c)?.into() };
        let is_huge = self.has_huge_files && flags & HUGE != 0;
        let allocated = blocks.checked_mul(if is_huge { self.filesystem.block } else { 512 })?;
        let data = match kind {
            FILE if flags & EXTENTS != 0 => self.extents(bytes)?,
            FILE => self.pointers(bytes)?,
            _ if allocated == 0 && flags & (NOT_OF_LINKS | EXTENTS) == 0 && has_target(bytes, size)? => {
                Vec::new()
            }
            _ => return None,
        };
        // Where no use is stated, the kernel takes it that there are all fields that it knows
        // (`__ext4_iget`).
        let used = if bytes.len() > OLD && extra == 0 { KNOWN } else { OLD + extra };
        let has = |at: usize| at + 4 <= used;
        let time = |at: usize, extra_at: usize| {
            let seconds = i64::from(bytes.le32(at)? as i32);
            // With two more bits of the seconds below the nanoseconds.
            let more = if has(extra_at) { bytes.le32(extra_at)? } else { 0 };
            Some(inode::nanoseconds(seconds + (i64::from(more & 3) << 32), more >> 2))
        };
        let id = |low, high| Some(u32::from(bytes.le16(low)?) | u32::from(bytes.le16(high)?) << 16);
        let inode = Inode {
            mode: mode.into(),
            owner: (id(2, 0x78)?, id(0x18, 0x7a)?),
            links: links.into(),
            size,
            allocated,
            modified: time(0x10, 0x88)?,
            changed: time(0xc, 0x84)?,
            // `i_crtime`, which the kernel reports under the same condition (`ext4_getattr`).
            born: if has(BORN) { Some(time(BORN, BORN + 4)?) } else { None },
            generation: bytes.le32(0x64)?,
            data,
        };
        (inode::bytes(&inode.data) == allocated).then_some(inode)
    }

    /// How many bytes of an inode are in use after the first 128.
    fn extra(&self, bytes: &[u8]) -> Option<usize> {
        if bytes.len() <= OLD {
            return Some(0);
        }
        let extra = usize::from(bytes.le16(OLD)?);
        (OLD + extra <= bytes.len() && extra.is_multiple_of(4)).then_some(extra)
    }

    /// Compares the checksum of an inode, if the filesystem has them ("Checksums").
    fn check(&self, number: u64, bytes: &[u8], extra: usize) -> Option<()> {
        const LOW: usize = 0x7c;
        const HIGH: usize = 0x82;
        let Some(seed) = self.seed else { return Some(()) };
        let number = u32::try_from(number).ok()?.to_le_bytes();
        let seed = checksum(checksum(seed, &number), bytes.get(0x64..0x68)?);
        let (low, high) = (bytes.le16(LOW)?, bytes.le16(HIGH).filter(|_| OLD + extra >= HIGH + 2));
        // The checksum itself counts as zeroes. In one piece: many short ones take far longer.
        let mut rest = bytes.to_vec();
        rest.get_mut(LOW..LOW + 2)?.fill(0);
        if high.is_some() {
            rest.get_mut(HIGH..HIGH + 2)?.fill(0);
        }
        let sum = checksum(seed, &rest);
        let is_same = sum as u16 == low && high.is_none_or(|high| (sum >> 16) as u16 == high);
        is_same.then_some(())
    }

    /// The extents of a file that are all in its inode.
    fn extents(&self, bytes: &[u8]) -> Option<Vec<Part>> {
        const MOST: u16 = 4;
        let node = bytes.get(POINTERS..POINTERS + POINTERS_LENGTH)?;
        let (count, most, depth) = (node.le16(2)?, node.le16(4)?, node.le16(6)?);
        if node.le16(0)? != NODE || depth != 0 || !(1..=MOST).contains(&most) || count > most {
            return None;
        }
        let mut data = Vec::new();
        for entry in node.get(ENTRY..)?.chunks_exact(ENTRY).take(count.into()) {
            let ExtentEntry { logical, first, count, is_unwritten } = ExtentEntry::of(entry)?;
            self.push(&mut data, logical, first, count, is_unwritten)?;
        }
        Some(data)
    }

    /// The blocks of a file that are all named in its inode.
    fn pointers(&self, bytes: &[u8]) -> Option<Vec<Part>> {
        let mut data = Vec::new();
        let pointers = bytes.get(POINTERS..POINTERS + POINTERS_LENGTH)?.chunks_exact(4);
        for (index, pointer) in pointers.enumerate() {
            match pointer.le32(0)? {
                0 => {}
                _ if index >= DIRECT => return None,
                block => self.push(&mut data, index as u64, block.into(), 1, false)?,
            }
        }
        Some(data)
    }

    /// Adds blocks of a file.
    fn push(
        &self,
        data: &mut Vec<Part>,
        logical: u64,
        first: u64,
        count: u64,
        is_unwritten: bool,
    ) -> Option<()> {
        if first <= self.first_block || count == 0 || logical.checked_add(count)? > 1 << 32 {
            return None;
        }
        let offset = logical.checked_mul(self.filesystem.block)?;
        let range = self.filesystem.range(first, count)?;
        inode::push(data, Part { offset, range, is_unwritten })
    }
}

/// Whether a symbolic link of `size` bytes has its target in the inode, and a zero behind it.
fn has_target(bytes: &[u8], size: u64) -> Option<bool> {
    let room = bytes.get(POINTERS..POINTERS + POINTERS_LENGTH)?;
    let length = room.iter().position(|byte| *byte == 0);
    Some(size > 0 && length.and_then(|length| u64::try_from(length).ok()) == Some(size))
}

/// Checks the extended attributes behind the fields of an inode, as the kernel does when it reads
/// the inode (`check_xattrs` in `fs/ext4/xattr.c`). `None` if they are damaged, or if a value has
/// an inode of its own.
fn check_attributes(bytes: &[u8]) -> Option<()> {
    const MAGIC: u32 = 0xea02_0000;
    /// Bytes of an entry without its name.
    const ENTRY: usize = 16;
    if bytes.len() < 4 || bytes.le32(0)? != MAGIC {
        return Some(());
    }
    // Values are counted from the first entry.
    let area = bytes.get(4..)?;
    let mut values = Vec::new();
    let mut at = 0;
    // The list ends with four zeroes, which a list that fills the inode need not have room for.
    while area.le32(at).is_none_or(|word| word != 0) {
        let (length, value, inode, size) =
            (area.u8_at(at)?, area.le16(at + 2)?, area.le32(at + 4)?, area.le32(at + 8)?);
        let end = at + (ENTRY + usize::from(length)).next_multiple_of(4);
        let name = area.get(at + ENTRY..at + ENTRY + usize::from(length))?;
        if inode != 0 || end + 4 > area.len() || name.contains(&0) {
            return None;
        }
        if size > 0 {
            values.push((usize::from(value), usize::try_from(size).ok()?));
        }
        at = end;
    }
    let is_inside = |(value, size): &(usize, usize)| {
        let end = size.checked_next_multiple_of(4).and_then(|size| value.checked_add(size));
        *value >= at + 4 && end.is_some_and(|end| end <= area.len())
    };
    values.iter().all(is_inside).then_some(())
}
