//! Spot checks: which bytes of a file are read to verify its extents. These are the first and the
//! last page of each extent, or of every N-th. Agent and host compute them separately, so that no
//! message is needed.

use crate::record::Extent;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU32;

/// Bytes read at an end of an extent: a page, the smallest unit that the kernel reads into its
/// cache.
const END: u64 = 4096;

/// Which extents are spot-checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Every N-th extent; 1 means all.
    pub every: NonZeroU32,
}

/// A part of a file that is read to verify an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Offset in the file, in bytes.
    pub logical: u64,
    /// Offset on the filesystem's device, in bytes.
    pub physical: u64,
    /// Length in bytes.
    pub length: u64,
}

impl Sample {
    /// The parts of file number `id` that are read, in the order of `extents`. `size` is the size
    /// of the file and `block` that of a block of the filesystem, both in bytes: nothing past the
    /// last block of the file is read.
    ///
    /// The choice depends on `id`, so that of many files with one extent each every N-th is
    /// checked.
    pub fn ends<'a>(
        self,
        id: u32,
        extents: &'a [Extent],
        size: u64,
        block: u64,
    ) -> impl Iterator<Item = End> + 'a {
        let limit = size.checked_next_multiple_of(block.max(1)).unwrap_or(u64::MAX);
        let is_hit =
            move |index: usize| (u64::from(id) + index as u64).is_multiple_of(u64::from(self.every.get()));
        let written = extents.iter().filter(|extent| extent.flags & Extent::UNWRITTEN == 0);
        let hit = written.enumerate().filter(move |(index, _)| is_hit(*index));
        hit.flat_map(move |(_, extent)| ends_of(extent, limit)).flatten()
    }
}

/// The first and the last page of an extent, as far as it lies below `limit`.
fn ends_of(extent: &Extent, limit: u64) -> [Option<End>; 2] {
    let start = extent.logical;
    let end = start.saturating_add(extent.length).min(limit);
    if end <= start {
        return [None; 2];
    }
    let part = |from: u64, to: u64| {
        let physical = extent.physical.saturating_add(from - start);
        Some(End { logical: from, physical, length: to - from })
    };
    let first_end = end.min((start / END + 1).saturating_mul(END));
    let last_start = start.max((end - 1) / END * END);
    if first_end >= last_start {
        return [part(start, end), None];
    }
    [part(start, first_end), part(last_start, end)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(logical: u64, physical: u64, length: u64, flags: u32) -> Extent {
        Extent { logical, physical, length, flags }
    }

    fn ends(every: u32, id: u32, extents: &[Extent], size: u64, block: u64) -> Vec<(u64, u64, u64)> {
        let sample = Sample { every: NonZeroU32::new(every).unwrap_or(NonZeroU32::MIN) };
        sample.ends(id, extents, size, block).map(|end| (end.logical, end.physical, end.length)).collect()
    }

    #[test]
    fn both_ends_of_an_extent_are_read_and_a_short_one_whole() {
        let extents = [
            extent(0, 1 << 20, 65536, 0),
            extent(65536, 1 << 30, 4096, 0),
            extent(1 << 20, 0, 1 << 20, Extent::UNWRITTEN),
            extent(1 << 21, 8192, 65536, 0),
        ];
        assert_eq!(
            ends(1, 7, &extents, (1 << 21) + 8193, 4096),
            [
                (0, 1 << 20, 4096),
                (61440, (1 << 20) + 61440, 4096),
                (65536, 1 << 30, 4096),
                (1 << 21, 8192, 4096),
                ((1 << 21) + 8192, 16384, 4096),
            ]
        );
        assert_eq!(ends(1, 1, &[extent(0, 0, 8192, 0)], 8192, 4096), [(0, 0, 8192)]);
        // Small blocks begin and end within pages.
        assert_eq!(
            ends(1, 1, &[extent(1024, 2048, 9216, 0)], 9999, 1024),
            [(1024, 2048, 3072), (8192, 9216, 2048)]
        );
    }

    #[test]
    fn every_nth_extent_is_read() {
        let one = [extent(0, 0, 4096, 0)];
        let hits: Vec<u32> = (1..10).filter(|id| !ends(4, *id, &one, 4096, 4096).is_empty()).collect();
        assert_eq!(hits, [4, 8]);
        let many: Vec<Extent> = (0..9).map(|n| extent(n * 4096, n * 8192, 4096, 0)).collect();
        assert_eq!(ends(4, 1, &many, 9 * 4096, 4096).len(), 2);
    }

    #[test]
    fn impossible_extents_cause_no_overflow() {
        let extents = [extent(u64::MAX, u64::MAX, u64::MAX, 0), extent(u64::MAX - 1, 9, 9, 0)];
        ends(1, 1, &extents, u64::MAX, 4096);
        assert_eq!(ends(1, 1, &extents, 0, 0), []);
    }
}
