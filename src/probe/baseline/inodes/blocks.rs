//! Where the blocks of directories lie.

use std::collections::{BTreeMap, HashSet};
use virt_bmap_map::{PieceFlags, Role};
use virt_bmap_ranges::{DiskNumber, DiskRange, IndexedRanges};

/// Largest directory that is taken into account, in bytes.
const MOST: u64 = 1 << 20;

/// The blocks of directories: by inode, copy and disk.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::probe) struct Blocks(BTreeMap<(u64, u8, DiskNumber), IndexedRanges>);

impl Blocks {
    /// Blocks of the directories with inodes from `first` up to, not including, `end`: inode, copy,
    /// disk and range.
    pub(super) fn between(
        &self,
        first: u64,
        end: u64,
    ) -> impl Iterator<Item = (u64, u8, DiskNumber, DiskRange)> {
        let blocks = self.0.range((first, 0, 0)..(end, 0, 0));
        blocks.flat_map(|(&(inode, copy, disk), spans)| {
            spans.iter().map(move |range| (inode, copy, disk, range))
        })
    }

    /// Bytes of a directory in the first copy.
    pub(super) fn bytes(&self, inode: u64) -> u64 {
        let first_copy = self.0.range((inode, 0, 0)..(inode, 1, 0));
        first_copy.map(|(_, spans)| spans.bytes()).fold(0, u64::saturating_add)
    }
}

/// From pieces of directories, in any order and cut anywhere. Parity is left out, because it
/// depends on other blocks, too; so are directories that are too large.
impl FromIterator<(u64, DiskNumber, DiskRange, Role)> for Blocks {
    fn from_iter<I: IntoIterator<Item = (u64, DiskNumber, DiskRange, Role)>>(pieces: I) -> Self {
        let mut ranges: BTreeMap<_, Vec<DiskRange>> = BTreeMap::new();
        for (inode, disk, range, role) in pieces {
            if !role.flags.contains(PieceFlags::PARITY) {
                ranges.entry((inode, role.copy, disk)).or_default().push(range);
            }
        }
        let spans = ranges.into_iter().map(|(key, ranges)| (key, IndexedRanges::from_unsorted(ranges)));
        let mut blocks = Self(spans.collect());
        let is_large =
            |(inode, spans): (u64, &IndexedRanges)| spans.bytes() > MOST || blocks.bytes(inode) > MOST;
        let inodes = blocks.0.iter().map(|(&(inode, ..), spans)| (inode, spans));
        let large: HashSet<u64> = inodes.filter(|it| is_large(*it)).map(|(inode, _)| inode).collect();
        blocks.0.retain(|(inode, ..), _| !large.contains(inode));
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_the_same_however_they_are_cut() {
        let piece = |inode, disk, start, end, role| (inode, disk, DiskRange::new(start, end), role);
        let (first, second) = (Role::copy(0), Role::copy(1));
        let parity = Role { copy: 0, flags: PieceFlags::PARITY };
        let pieces = [
            piece(12, 2, 0, 4096, second),
            piece(12, 1, 4096, 8192, first),
            piece(12, 1, 0, 5000, first),
            piece(12, 3, 0, 4096, parity),
            piece(19, 1, 8192, 8192 + MOST + 1, first),
            piece(20, 1, 1 << 30, (1 << 30) + 4096, first),
        ];
        let blocks = Blocks::from_iter(pieces);
        let whole = [pieces[0], piece(12, 1, 0, 8192, first), pieces[5]];
        assert_eq!(blocks, Blocks::from_iter(whole));
        assert_eq!([12, 19, 20].map(|inode| blocks.bytes(inode)), [8192, 0, 4096]);
        let between: Vec<_> = blocks.between(12, 20).collect();
        assert_eq!(between, [(12, 0, 1, DiskRange::new(0, 8192)), (12, 1, 2, DiskRange::new(0, 4096))]);
    }
}
