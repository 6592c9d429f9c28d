//! ext2, ext3 and ext4: each block group has a table of inodes ("Block Group Descriptors" and
//! "Index Nodes" in `Documentation/filesystems/ext4` of the kernel).

use super::{GROUP, Group, SelfContained, Table};
use crate::probe::device::{Device, Fields};
use crate::probe::superblock::Ext;
use virt_bmap_ranges::{DeviceOffset, Range};

/// Most block groups: 16 TiB of 128 MiB each.
const MOST_GROUPS: u64 = 1 << 17;

/// Bytes that are read first: enough for the descriptors of half a terabyte.
const BEGINNING: u64 = 256 << 10;

/// `INCOMPAT_META_BG`: the descriptors are not in one place.
const META_BG: u32 = 0x10;
/// `RO_COMPAT_GDT_CSUM` and `RO_COMPAT_METADATA_CSUM`: descriptors have flags, and say which inodes
/// were never used.
const CHECKSUMS: u32 = 0x410;
/// `INODE_UNINIT` of a block group.
const INODE_UNINIT: u16 = 1;
/// `INCOMPAT_64BIT`
const SIXTY_FOUR: u32 = 0x80;

/// The tables of all block groups.
pub(super) struct Inodes {
    inodes_per_group: u64,
    inode_size: u64,
    block: u64,
    identity: Vec<u8>,
    /// For each block group, the first block of its table and how many of its inodes may be in use.
    tables: Vec<(u64, u64)>,
}

impl Inodes {
    /// `None` if the descriptors are not all in one place, or the superblock is invalid.
    pub(super) fn read(device: &Device<'_>) -> Option<Self> {
        // In most filesystems this contains the descriptors, too. A second call would take longer
        // than reading this much more.
        let beginning = device.read(0, device.size.min(BEGINNING))?;
        let superblock = beginning.get(usize::try_from(Ext::AT).ok()?..)?;
        let geometry = Geometry::of(superblock)?;
        let length = geometry.groups.checked_mul(geometry.descriptor)?;
        let start = usize::try_from(geometry.descriptors_at).ok()?;
        let descriptors = match beginning.get(start..start.checked_add(usize::try_from(length).ok()?)?) {
            Some(descriptors) => descriptors.to_vec(),
            None => device.read(geometry.descriptors_at, length)?,
        };
        let is_wide = geometry.descriptor >= 64;
        let table = |descriptor: &[u8]| {
            let (high, unused_high) =
                if is_wide { (descriptor.le32(0x28)?, descriptor.le16(0x32)?) } else { (0, 0) };
            let unused = u64::from(descriptor.le16(0x1c)?) | u64::from(unused_high) << 16;
            let unused = match descriptor.le16(0x12)? {
                _ if !geometry.has_unused_counts => 0,
                flags if flags & INODE_UNINIT != 0 => geometry.inodes_per_group,
                _ => unused,
            };
            let start = u64::from(descriptor.le32(8)?) | u64::from(high) << 32;
            Some((start, geometry.inodes_per_group.saturating_sub(unused)))
        };
        let tables = descriptors.chunks_exact(usize::try_from(geometry.descriptor).ok()?).map(table);
        Some(Self {
            inodes_per_group: geometry.inodes_per_group,
            inode_size: geometry.inode_size,
            block: geometry.block,
            identity: identity(superblock)?,
            tables: tables.collect::<Option<_>>()?,
        })
    }
}

impl Table for Inodes {
    fn block(&self) -> u64 {
        self.block
    }

    fn inode_size(&self) -> u64 {
        self.inode_size
    }

    fn identity(&self) -> &[u8] {
        &self.identity
    }

    fn root(&self) -> u64 {
        2
    }

    fn parts(&self) -> Vec<(u64, u64)> {
        let tables = self.tables.iter().filter(|(_, used)| *used > 0);
        tables
            .filter_map(|(start, used)| {
                Some((start.checked_mul(self.block)?, used.checked_mul(self.inode_size)?))
            })
            .collect()
    }

    fn self_contained(&self, inode: &[u8]) -> Option<SelfContained> {
        self_contained(inode)
    }

    fn group(&self, inode: u64) -> Option<Group> {
        let index = inode.checked_sub(1)?;
        let (group, within) = (index / self.inodes_per_group, index % self.inodes_per_group);
        let (table, _) = *self.tables.get(usize::try_from(group).ok()?)?;
        let before = within / GROUP * GROUP;
        let count = GROUP.min(self.inodes_per_group - before);
        let start = table.checked_mul(self.block)?.checked_add(before.checked_mul(self.inode_size)?)?;
        let range = Range::at(DeviceOffset(start), count * self.inode_size)?;
        Some((index - within + before + 1, range))
    }
}

/// The type of an inode, if it is self-contained ("Index Nodes", "Contents of inode.i_block").
fn self_contained(inode: &[u8]) -> Option<SelfContained> {
    /// `ENCRYPT_FL`: names of a directory are others where its key is known.
    const ENCRYPT: u32 = 0x800;
    /// `EXTENTS_FL` and `INLINE_DATA_FL`.
    const EXTENTS: u32 = 0x8_0000;
    const INLINE: u32 = 0x1000_0000;
    // A block of extended attributes (`i_file_acl`).
    if (inode.le32(0x68)?, inode.le16(0x76)?) != (0, 0) {
        return None;
    }
    let flags = inode.le32(0x20)?;
    let is_inline = flags & INLINE != 0;
    let points_to_data = if is_inline {
        flags & EXTENTS == 0 && has_inline_data(inode) == Some(true)
    } else if flags & EXTENTS != 0 {
        // A tree of extents, of depth 0.
        inode.le16(0x28)? == 0xf30a && inode.le16(0x2e)? == 0
    } else {
        // Twelve blocks of data, and three of block numbers.
        (0..3).all(|indirect| inode.le32(0x58 + 4 * indirect) == Some(0))
    };
    match inode.le16(0)? & 0xf000 {
        0x8000 if points_to_data => Some(SelfContained::File),
        0x4000 if points_to_data && flags & ENCRYPT == 0 && is_inline => Some(SelfContained::InlineDirectory),
        0x4000 if points_to_data && flags & ENCRYPT == 0 => Some(SelfContained::Directory),
        // Without blocks.
        0xa000 if inode.le32(0x1c)? == 0 && flags & (ENCRYPT | INLINE) == 0 => {
            Some(SelfContained::InlineLink)
        }
        _ => None,
    }
}

/// Whether an inode has the extended attribute `system.data`, without which it has no inline data,
/// whatever its flags ("Inline Data", "Extended Attributes").
fn has_inline_data(inode: &[u8]) -> Option<bool> {
    const MAGIC: u32 = 0xea02_0000;
    /// The index of `system.`
    const SYSTEM: u8 = 7;
    let mut at = 128 + usize::from(inode.le16(128)?);
    if inode.le32(at)? != MAGIC {
        return Some(false);
    }
    at += 4;
    loop {
        let (length, index) = (inode.u8_at(at)?, inode.u8_at(at + 1)?);
        if (length, index) == (0, 0) {
            return Some(false);
        }
        let name = inode.get(at + 16..at + 16 + usize::from(length))?;
        if index == SYSTEM && name == b"data" {
            return Some(true);
        }
        at += 16 + usize::from(length).next_multiple_of(4);
    }
}

/// The parts of a superblock that decide how inodes and directories are read: counts, sizes,
/// revision, features (except those that come and go with a journal or orphans), the UUID, the
/// seeds of hashes and checksums, and the encoding of names.
fn identity(superblock: &[u8]) -> Option<Vec<u8>> {
    const RECOVER: u32 = 4;
    const ORPHAN_PRESENT: u32 = 0x1_0000;
    let mut identity = Vec::new();
    for (start, end) in [
        (0, 8),
        (0x14, 0x2c),
        (0x4c, 0x50),
        (0x58, 0x60),
        (0x68, 0x78),
        (0xec, 0x100),
        (0x270, 0x274),
        (0x27c, 0x280),
    ] {
        identity.extend(superblock.get(start..end)?);
    }
    identity.extend((superblock.le32(0x60)? & !RECOVER).to_le_bytes());
    identity.extend((superblock.le32(0x64)? & !ORPHAN_PRESENT).to_le_bytes());
    Some(identity)
}

/// The content of the superblock.
struct Geometry {
    block: u64,
    inode_size: u64,
    inodes_per_group: u64,
    groups: u64,
    /// Whether descriptors say how many inodes at the end of a table were never used.
    has_unused_counts: bool,
    /// Size of a descriptor, and where the descriptors begin.
    descriptor: u64,
    descriptors_at: u64,
}

impl Geometry {
    fn of(superblock: &[u8]) -> Option<Self> {
        let Ext { block, inode: inode_size } = Ext::of(superblock)?;
        let incompat = superblock.le32(0x60)?;
        let is_64 = incompat & SIXTY_FOUR != 0;
        let high = if is_64 { superblock.le32(0x150)? } else { 0 };
        let blocks = u64::from(superblock.le32(4)?) | u64::from(high) << 32;
        let (first, per_group) = (u64::from(superblock.le32(0x14)?), u64::from(superblock.le32(0x20)?));
        let geometry = Self {
            block,
            inode_size,
            inodes_per_group: u64::from(superblock.le32(0x28)?),
            has_unused_counts: superblock.le32(0x64)? & CHECKSUMS != 0,
            groups: blocks.checked_sub(first)?.checked_add(per_group.checked_sub(1)?)? / per_group,
            descriptor: if is_64 { u64::from(superblock.le16(0xfe)?) } else { 32 },
            descriptors_at: (first + 1) * block,
        };
        let is_valid = incompat & META_BG == 0
            && (1..=MOST_GROUPS).contains(&geometry.groups)
            && geometry.inodes_per_group > 0
            && (128..=block).contains(&inode_size)
            && (32..=1024).contains(&geometry.descriptor);
        is_valid.then_some(geometry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_lies_in_the_table_of_its_block_group() {
        let tables = vec![(5, 20), (100, 3), (7, 0)];
        let table =
            Inodes { inodes_per_group: 20, inode_size: 256, block: 1024, identity: Vec::new(), tables };
        assert_eq!(table.parts(), [(5120, 5120), (102_400, 768)]);
        let group = |inode| table.group(inode).map(|(first, range)| (first, range.start.0, range.len()));
        assert_eq!(group(0), None);
        assert_eq!(group(1), Some((1, 5120, 2048)));
        assert_eq!(group(9), Some((9, 5120 + 2048, 2048)));
        assert_eq!(group(20), Some((17, 5120 + 4096, 1024)));
        assert_eq!(group(21), Some((21, 102_400, 2048)));
        assert_eq!((group(61), group(u64::MAX)), (None, None));
    }

    #[test]
    fn an_inode_that_points_to_blocks_of_numbers_is_not_self_contained() {
        let inode = |flags: u32, put: &[(usize, u8)]| {
            let mut inode = vec![0; 128];
            inode[1] = 0x81;
            inode[0x20..0x24].copy_from_slice(&flags.to_le_bytes());
            put.iter().for_each(|(at, byte)| inode[*at] = *byte);
            self_contained(&inode)
        };
        let file = Some(SelfContained::File);
        let magic = [(0x28, 0x0a), (0x29, 0xf3)];
        assert_eq!(inode(0x8_0000, &magic), file);
        assert_eq!(inode(0x8_0000, &[magic[0], magic[1], (0x2e, 1)]), None);
        assert_eq!(inode(0x8_0000, &[]), None);
        assert_eq!(inode(0, &[(0x28, 9), (0x54, 9)]), file);
        for indirect in [0x58, 0x5c, 0x63] {
            assert_eq!(inode(0, &[(indirect, 1)]), None);
        }
        assert_eq!(inode(0x1000_0000, &[(0x58, 1)]), None);
        assert_eq!(inode(0, &[(1, 0x41)]), Some(SelfContained::Directory));
        assert_eq!((inode(0x800, &[(1, 0x41)]), inode(0x800, &[(1, 0xa1)])), (None, None));
        assert_eq!(inode(0, &[(1, 0xa1)]), Some(SelfContained::InlineLink));
        assert_eq!(inode(0, &[(1, 0xa1), (0x1c, 8)]), None);
        // With a block of extended attributes.
        assert_eq!(
            (inode(0x8_0000, &[magic[0], magic[1], (0x69, 1)]), inode(0, &[(1, 0x41), (0x76, 1)])),
            (None, None)
        );
        assert_eq!((self_contained(&[0; 64]), self_contained(&[0; 20])), (None, None));
    }

    #[test]
    fn data_is_in_an_inode_where_its_attribute_is() {
        let mut inode = vec![0; 256];
        inode[1] = 0x41;
        inode[0x20..0x24].copy_from_slice(&0x1000_0000u32.to_le_bytes());
        inode[128] = 32;
        inode[160..164].copy_from_slice(&0xea02_0000u32.to_le_bytes());
        // An attribute of the user before it, with a name of three bytes.
        inode[164..166].copy_from_slice(&[3, 1]);
        inode[180..183].copy_from_slice(b"abc");
        inode[184..186].copy_from_slice(&[4, 7]);
        inode[200..204].copy_from_slice(b"data");
        assert_eq!(self_contained(&inode), Some(SelfContained::InlineDirectory));
        for (at, byte) in [(160, 1), (185, 1), (200, b'x'), (0x22, 8), (0x23, 0), (164, 255)] {
            let mut other = inode.clone();
            other[at] = byte;
            assert_ne!(self_contained(&other), Some(SelfContained::InlineDirectory), "{at}");
        }
        // A magic number in the last bytes, which nothing follows.
        inode[128] = 124;
        inode[252..].copy_from_slice(&0xea02_0000u32.to_le_bytes());
        assert_eq!(self_contained(&inode), None);
    }

    #[test]
    fn invalid_a_superblock_tells_nothing() {
        let mut superblock = vec![0; 1024];
        let mut put = |at: usize, bytes: &[u8]| superblock[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x38, &[0x53, 0xef]);
        put(4, &8193u32.to_le_bytes());
        put(0x14, &1u32.to_le_bytes());
        put(0x20, &8192u32.to_le_bytes());
        put(0x28, &2048u32.to_le_bytes());
        let geometry = Geometry::of(&superblock).unwrap();
        let Geometry { block, inode_size, groups, descriptor, descriptors_at, .. } = geometry;
        assert_eq!((block, inode_size, groups, descriptor, descriptors_at), (1024, 128, 1, 32, 2048));
        for (at, byte) in [(0x38, 0), (0x18, 9), (0x60, 0x10), (0x20, 0), (0x29, 0), (7, 255)] {
            let mut wrong = superblock.clone();
            wrong[at] = byte;
            if at == 0x20 {
                wrong[0x21] = 0;
            }
            assert!(Geometry::of(&wrong).is_none(), "{at}");
        }
        assert!(Geometry::of(&superblock[..90]).is_none());
    }
}
