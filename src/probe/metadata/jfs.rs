//! JFS: the kernel reports nothing of its metadata, but its superblock says where its parts lie.
//! The block allocation map, the file of the second of the filesystem's own inodes, says which
//! blocks are in use (`jfs_superblock.h`, `jfs_filsys.h`, `jfs_dinode.h` and `jfs_dmap.h` in the
//! kernel's `fs/jfs`).

mod inodes;
mod tree;

use super::{Blocks, Facts, units};
use crate::probe::device::{Device, Fields, Read};
use tree::{Extent, PAGE};
use virt_bmap_ranges::{DeviceOffset, Range};

/// Where the first superblock lies. It has a page; the map of the filesystem's own inodes, their
/// table, and the second superblock follow.
const SUPERBLOCK: u64 = 0x8000;
const INODE_MAP: u64 = SUPERBLOCK + PAGE;
const INODE_TABLE: u64 = INODE_MAP + 2 * PAGE;
const SECOND_SUPERBLOCK: u64 = INODE_TABLE + 32 * INODE;
const SUPERBLOCK_SIZE: u64 = 184;

/// Bytes of an inode, and the number of the inode of the block allocation map.
const INODE: u64 = 512;
const BLOCK_MAP: u64 = 2;
/// Where in an inode the root of its extent tree lies.
const ROOT: usize = 224;

/// Most blocks of a filesystem whose map is read: 4 TiB.
const MOST_BLOCKS: u64 = 1 << 30;

pub(super) fn describe(facts: &mut Facts, device: &mut Device<'_>, read: &Blocks) {
    let of_device = |at, length| device.read(at, length);
    let superblock = device.read(SUPERBLOCK, SUPERBLOCK_SIZE);
    let Some(volume) = superblock.and_then(|superblock| Volume::of(&superblock)) else { return };
    if volume.blocks * PAGE > device.size {
        return;
    }
    let is_read = |range: &Range<DeviceOffset>| read.overlap(*range).next().is_some();
    let is_here = |range: &Range<DeviceOffset>| range.end.0 <= device.size;
    let is_superblock = |at: &u64| device.read(*at, 4).is_some_and(|magic| magic == *Volume::MAGIC);
    let superblocks = [SUPERBLOCK, SECOND_SUPERBLOCK].into_iter().filter(is_superblock);
    facts.name("[superblocks]", superblocks.map(|at| Range::new(at, at + PAGE)), true);
    let maps = [Range::new(INODE_MAP, INODE_TABLE), volume.second_map];
    let is_table = |range: &Range<DeviceOffset>| block_map(&of_device, range.start.0).is_some();
    let tables = [Range::new(INODE_TABLE, SECOND_SUPERBLOCK), volume.second_table];
    facts.name("[aggregate inode map]", maps.into_iter().filter(is_here), maps.iter().all(is_read));
    facts.name("[aggregate inode table]", tables.into_iter().filter(is_here).filter(is_table), true);
    if let Some(log) = volume.log.filter(is_here) {
        // The journal's superblock is in its second page.
        let magic = device.read(log.start.0 + PAGE, 4).and_then(|bytes| bytes.le32(0));
        facts.name("[journal]", [log], magic == Some(0x8765_4321));
    }
    let work = [volume.work].into_iter().filter(is_here);
    facts.name("[fsck work area]", work, is_read(&volume.work));
    // The beginning is left to a boot loader.
    facts.name("[boot blocks]", [Range::new(0, SUPERBLOCK)], true);
    let inodes = inodes::describe(&of_device, INODE_TABLE, volume.blocks).unwrap_or_default();
    facts.name("[inode map]", inodes.maps, true);
    facts.name("[inodes]", inodes.extents, true);
    facts.name("[directory index tables]", inodes.tables, true);
    let Some(extents) = block_map(&of_device, INODE_TABLE) else { return };
    let places: Vec<_> = extents.iter().map(Extent::range).filter(is_here).collect();
    let is_map_read = places.iter().any(is_read);
    facts.name("[block allocation map]", places, is_map_read);
    // The kernel does not replay the journal, which may change the blocks in use.
    if volume.is_clean {
        facts.free = free(&of_device, &extents, volume.blocks);
    }
    if facts.free.is_some() {
        facts.whole.insert(Range::new(0, volume.blocks * PAGE));
    }
}

/// The extents of the block allocation map, according to the inode table at this place.
fn block_map(read: Read<'_>, table: u64) -> Option<Vec<Extent>> {
    let inode = read(table.checked_add(BLOCK_MAP * INODE)?, INODE)?;
    // Its number.
    if u64::from(inode.le32(8)?) != BLOCK_MAP {
        return None;
    }
    tree::extents(read, inode.get(ROOT..)?)
}

/// The free blocks according to the block allocation map: a page for each 8192 blocks, after four
/// pages of totals, with further such pages in between.
fn free(read: Read<'_>, extents: &[Extent], blocks: u64) -> Option<Blocks> {
    const COUNT: u64 = 8192;
    const PAGES_AT_A_TIME: u64 = 256;
    let mut free = Blocks::new();
    let (mut page, mut number) = (0, 0);
    let places = extents.iter().flat_map(|extent| extent.parts(PAGES_AT_A_TIME));
    for part in places {
        let bytes = read(part.start.0, part.len())?;
        for bytes in bytes.chunks_exact(PAGE as usize) {
            // The first page has the number of blocks of the map.
            if page == 0 && bytes.le64(0)? != blocks {
                return None;
            }
            // A page of totals follows each 1024, and each 1024², of them.
            if page == number + (number >> 10) + (number >> 20) + 4 && number * COUNT < blocks {
                let first = number * COUNT;
                let count = COUNT.min(blocks - first);
                if bytes.le64(8)? != first || u64::from(bytes.le32(0)?) != count {
                    return None;
                }
                let is_free = |block: &u64| is_free(bytes, *block).unwrap_or_default();
                free.extend(units((0..count).filter(is_free), first * PAGE, PAGE).iter());
                number += 1;
            }
            page += 1;
        }
    }
    (number * COUNT >= blocks).then_some(free)
}

/// According to the persistent one of the two bitmaps of a page: words of 32 blocks each, the first
/// block in the highest bit.
fn is_free(page: &[u8], block: u64) -> Option<bool> {
    let word = page.le32(3072 + (block / 32) as usize * 4)?;
    Some(word << (block % 32) & 1 << 31 == 0)
}

/// The content of the superblock.
#[derive(Debug, PartialEq, Eq)]
struct Volume {
    blocks: u64,
    is_clean: bool,
    second_table: Range<DeviceOffset>,
    second_map: Range<DeviceOffset>,
    log: Option<Range<DeviceOffset>>,
    /// The work area of fsck.
    work: Range<DeviceOffset>,
}

impl Volume {
    const MAGIC: &[u8; 4] = b"JFS1";

    fn of(superblock: &[u8]) -> Option<Self> {
        /// A flag: the journal is on this device.
        const LOG_IS_HERE: u32 = 0x800;
        // The kernel supports only blocks of 4 KiB.
        if superblock.get(..4)? != Self::MAGIC || u64::from(superblock.le32(16)?) != PAGE {
            return None;
        }
        let hardware = u64::from(superblock.le32(24)?);
        let blocks = superblock.le64(8)?.checked_mul(hardware)? / PAGE;
        let log = (superblock.le32(36)? & LOG_IS_HERE != 0).then_some(extent(superblock, 72)?);
        (1..=MOST_BLOCKS).contains(&blocks).then_some(Self {
            blocks,
            is_clean: superblock.le32(40)? == 0,
            second_table: extent(superblock, 48)?,
            second_map: extent(superblock, 56)?,
            log,
            work: extent(superblock, 80)?,
        })
    }
}

/// The blocks of an extent descriptor: 24 bits of length, and 40 bits of place.
fn extent(bytes: &[u8], at: usize) -> Option<Range<DeviceOffset>> {
    let (length, low) = (bytes.le32(at)?, bytes.le32(at + 4)?);
    let first = u64::from(length >> 24) << 32 | u64::from(low);
    Some(Extent { first, count: u64::from(length & 0xff_ffff) }.range())
}

#[cfg(test)]
mod tests;
