//! Where the inodes of a JFS lie: the file of one of the filesystem's own inodes has a page for each
//! group of 4096 inodes (`struct iag` in the kernel's `fs/jfs/jfs_imap.h`).

use super::tree::{self, Extent, PAGE};
use super::{INODE, ROOT, extent};
use crate::probe::device::{Fields, Read};
use virt_bmap_ranges::{DeviceOffset, Range};

/// The number of the inode whose file is the map of the inodes of files (`FILESYSTEM_I`).
const MAP: u64 = 16;
/// Where in a page its extents of inodes lie, and how many there are.
const EXTENTS: usize = 3072;
const COUNT: usize = 128;
/// Pages that are read at a time, and most pages: of half a thousand million inodes.
const AT_A_TIME: u64 = 256;
const MOST_PAGES: u64 = 1 << 17;

/// Most extents of inodes that are searched for directories.
const MOST_EXTENTS: usize = 1 << 14;

/// The pages of the map, the extents of inodes, and the tables by which directories number their
/// entries.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Inodes {
    pub(super) maps: Vec<Range<DeviceOffset>>,
    pub(super) extents: Vec<Range<DeviceOffset>>,
    pub(super) tables: Vec<Range<DeviceOffset>>,
}

/// Finds them by the filesystem's own inodes, whose table is at this place. The filesystem has
/// `blocks` blocks.
pub(super) fn describe(read: Read<'_>, table: u64, blocks: u64) -> Option<Inodes> {
    let inode = read(table.checked_add(MAP * INODE)?, INODE)?;
    if u64::from(inode.le32(8)?) != MAP {
        return None;
    }
    let is_here = |range: &Range<DeviceOffset>| !range.is_empty() && range.end.0 <= blocks * PAGE;
    let mut inodes = Inodes::default();
    let mut pages = 0;
    for part in tree::extents(read, inode.get(ROOT..)?)?.into_iter().flat_map(|it| it.parts(AT_A_TIME)) {
        let bytes = read(part.start.0, part.len())?;
        inodes.maps.push(part);
        // The first page has totals.
        let groups = bytes.chunks_exact(PAGE as usize).skip(usize::from(pages == 0));
        for page in groups {
            let extents = (0..COUNT).filter_map(|number| extent(page, EXTENTS + 8 * number));
            inodes.extents.extend(extents.filter(is_here));
        }
        pages += part.len() / PAGE;
        if pages > MOST_PAGES {
            return None;
        }
    }
    for extent in inodes.extents.iter().take(MOST_EXTENTS) {
        for inode in read(extent.start.0, extent.len())?.chunks_exact(INODE as usize) {
            let table = index_table(read, inode).unwrap_or_default();
            inodes.tables.extend(table.iter().map(Extent::range).filter(is_here));
        }
    }
    Some(inodes)
}

/// The extents of a directory's table of entries, if that is not in the inode itself
/// (`jfs_dirtable_inline` in `fs/jfs/jfs_incore.h`). Their tree takes the room of the table.
fn index_table(read: Read<'_>, inode: &[u8]) -> Option<Vec<Extent>> {
    /// Highest number of the next entry with which a table is in the inode.
    const INLINE: u32 = 14;
    let is_directory = inode.le32(52)? & 0xf000 == 0x4000 && inode.le32(40)? > 0;
    if !is_directory || inode.le32(120)? <= INLINE {
        return None;
    }
    tree::extents(read, inode.get(128..224)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::device::reader;

    #[test]
    fn inodes_are_found_by_their_map() {
        let mut disk = vec![0; 8 * 4096];
        let inode = (MAP * INODE) as usize;
        disk[inode + 8] = MAP as u8;
        // A leaf with one extent: the two blocks from 6 on.
        let root = inode + ROOT;
        disk[root + 16..root + 20].copy_from_slice(&[0x83, 0, 3, 0]);
        let entry = root + 32;
        (disk[entry + 8], disk[entry + 12]) = (2, 6);
        // The second page of the map names four blocks from 3 on, and some that are not there.
        let page = 7 * 4096 + EXTENTS;
        (disk[page], disk[page + 4]) = (4, 3);
        (disk[page + 8], disk[page + 12]) = (4, 5);
        let blocks = |first: u64, count: u64| Range::new(first * 4096, (first + count) * 4096);
        let found = describe(&reader(&disk), 0, 8).unwrap();
        assert_eq!(
            found,
            Inodes { maps: vec![blocks(6, 2)], extents: vec![blocks(3, 4)], tables: Vec::new() }
        );
        // The second inode in them is of a directory with 20 entries, whose table has block 2.
        let inode = 3 * 4096 + INODE as usize;
        (disk[inode + 40], disk[inode + 53], disk[inode + 120]) = (1, 0x41, 20);
        disk[inode + 128 + 16..inode + 128 + 20].copy_from_slice(&[0x83, 0, 3, 0]);
        (disk[inode + 128 + 40], disk[inode + 128 + 44]) = (1, 2);
        assert_eq!(describe(&reader(&disk), 0, 8).unwrap().tables, [blocks(2, 1)]);
        disk[inode + 120] = 14;
        assert_eq!(describe(&reader(&disk), 0, 8).unwrap().tables, []);
        let inode = (MAP * INODE) as usize;
        disk[inode + 8] = 0;
        assert_eq!(describe(&reader(&disk), 0, 8), None);
        assert_eq!(describe(&reader(&disk[..4096]), 0, 8), None);
    }
}
