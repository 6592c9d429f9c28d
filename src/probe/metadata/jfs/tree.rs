//! Where a file of a JFS lies: a tree of extents, whose root is in the inode (`jfs_xtree.h` and
//! `jfs_btree.h` in the kernel's `fs/jfs`).

use crate::probe::device::{Fields, Read};
use virt_bmap_ranges::{DeviceOffset, Range};

/// Bytes of a block, and of a page of the tree.
pub(super) const PAGE: u64 = 4096;

/// Most extents of a file, and most pages of its tree.
const MOST_EXTENTS: usize = 1 << 16;
const MOST_PAGES: usize = 1 << 12;

/// Contiguous blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) first: u64,
    pub(super) count: u64,
}

impl Extent {
    /// Where they lie. A block's number has 40 bits, and a count 24.
    pub(super) fn range(&self) -> Range<DeviceOffset> {
        Range::new(self.first * PAGE, (self.first + self.count) * PAGE)
    }

    /// Parts of at most `most` blocks.
    pub(super) fn parts(self, most: u64) -> impl Iterator<Item = Range<DeviceOffset>> {
        let end = self.first + self.count;
        (self.first..end).step_by(most as usize).map(move |first| {
            let count = most.min(end - first);
            Self { first, count }.range()
        })
    }
}

/// All extents of the file with this root, in order. The file has no holes.
pub(super) fn extents(read: Read<'_>, root: &[u8]) -> Option<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut pages = 0;
    let mut length = 0;
    let mut waiting = vec![entries(root)?];
    while let Some(page) = waiting.last_mut() {
        let is_leaf = page.is_leaf;
        let Some(entry) = page.entries.pop() else {
            waiting.pop();
            continue;
        };
        if entry.offset != length {
            return None;
        }
        if is_leaf {
            length += entry.extent.count;
            extents.push(entry.extent);
        } else {
            waiting.push(entries(&read(entry.extent.range().start.0, PAGE)?)?);
            pages += 1;
        }
        if extents.len() > MOST_EXTENTS || pages > MOST_PAGES {
            return None;
        }
    }
    Some(extents)
}

/// A page of a tree.
struct Page {
    is_leaf: bool,
    /// The first one last.
    entries: Vec<Entry>,
}

struct Entry {
    /// Block in the file.
    offset: u64,
    extent: Extent,
}

fn entries(page: &[u8]) -> Option<Page> {
    const LEAF: u8 = 0x02;
    const SIZE: usize = 16;
    /// The header has the room of two entries.
    const FIRST: usize = 2;
    let end = usize::from(page.le16(18)?);
    let bytes = page.get(FIRST * SIZE..end.checked_mul(SIZE)?)?;
    let entries = bytes.chunks_exact(SIZE).rev().map(|entry| {
        let long =
            |high: usize, low: usize| Some(u64::from(entry.u8_at(high)?) << 32 | u64::from(entry.le32(low)?));
        let count = u64::from(entry.le32(8)? & 0xff_ffff);
        Some(Entry { offset: long(3, 4)?, extent: Extent { first: long(11, 12)?, count } })
    });
    Some(Page { is_leaf: page.u8_at(16)? & LEAF != 0, entries: entries.collect::<Option<_>>()? })
}
