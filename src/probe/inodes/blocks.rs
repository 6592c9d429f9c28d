//! Where the blocks of directories lie: what is in a directory is in these.

use crate::bmap::{PieceFlags, Role};
use crate::range::DiskRange;
use crate::recorder::DiskNumber;
use std::collections::BTreeMap;

/// Most bytes of a directory that is looked at.
const MOST: u64 = 1 << 20;

/// A part of a directory: in which copy, on which disk, and where there.
pub(super) type Block = (u8, DiskNumber, DiskRange);

/// The blocks of directories, by their inodes, each in order and joined where they touch.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Blocks(BTreeMap<u64, Vec<Block>>);

impl Blocks {
    /// Those with an inode from `first` on, up to `end`.
    pub(super) fn between(&self, first: u64, end: u64) -> impl Iterator<Item = (u64, &[Block])> {
        self.0.range(first..end).map(|(inode, blocks)| (*inode, &blocks[..]))
    }

    /// How many bytes of a directory are here, in the first copy.
    pub(super) fn bytes(&self, inode: u64) -> u64 {
        let blocks = self.0.get(&inode).map(Vec::as_slice).unwrap_or_default();
        first_copy(blocks)
    }
}

/// Of pieces of directories with these inodes, in whatever order and however they are cut. Parity stands for other blocks, too,
/// and is left away, as are directories that are too large.
impl FromIterator<(u64, DiskNumber, DiskRange, Role)> for Blocks {
    fn from_iter<I: IntoIterator<Item = (u64, DiskNumber, DiskRange, Role)>>(pieces: I) -> Self {
        let mut all: BTreeMap<u64, Vec<Block>> = BTreeMap::new();
        for (inode, disk, range, role) in pieces {
            if !role.flags.contains(PieceFlags::PARITY) {
                all.entry(inode).or_default().push((role.copy, disk, range));
            }
        }
        all.retain(|_, blocks| {
            blocks.sort_unstable();
            blocks.dedup_by(|next, kept| {
                let is_one = (next.0, next.1) == (kept.0, kept.1) && next.2.start <= kept.2.end;
                if is_one {
                    kept.2.end = kept.2.end.max(next.2.end);
                }
                is_one
            });
            blocks.iter().all(|(_, _, range)| range.len() <= MOST) && first_copy(blocks) <= MOST
        });
        Self(all)
    }
}

/// How many bytes these are in the first copy.
fn first_copy(blocks: &[Block]) -> u64 {
    let blocks = blocks.iter().filter(|(copy, ..)| *copy == 0);
    blocks.map(|(_, _, range)| range.len()).fold(0, u64::saturating_add)
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
        assert_eq!(
            blocks.between(12, 20).map(|(inode, blocks)| (inode, blocks.len())).collect::<Vec<_>>(),
            [(12, 2)]
        );
    }
}
