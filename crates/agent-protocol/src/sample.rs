//! Spot checks: which files are read to verify their extents, and which of their bytes. The files
//! are one in N, and all that are unusual; of each extent, the first and the last page are read.
//! Agent and host compute them separately, so that no message is needed.

use crate::record::Extent;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU32;

/// Bytes read at an end of an extent: a page, the smallest unit that the kernel reads into its
/// cache.
const END: u64 = 4096;

/// More extents than this make a file unusual.
const MANY: usize = 4;

/// A longer file is unusual, in bytes.
const LARGE: u64 = 1 << 30;

/// Which files are spot-checked.
///
/// Whoever makes an image must not know which: they could hide a file from all checks. So the
/// choice depends on a seed that is drawn for each run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// One file in so many; 1 means all.
    pub one_in: NonZeroU32,
    /// The seed of the choice.
    pub seed: u64,
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
    /// All files.
    pub const ALL: Self = Self { one_in: NonZeroU32::MIN, seed: 0 };

    /// Whether a file is in the sample: the one with this number of its inode, with these extents,
    /// and of this size in bytes.
    pub fn has(self, inode: u64, extents: &[Extent], size: u64) -> bool {
        let is_unusual =
            || extents.len() > MANY || size > LARGE || extents.iter().any(|extent| !extent.is_plain());
        mix(inode.wrapping_add(mix(self.seed))).is_multiple_of(self.one_in.get().into()) || is_unusual()
    }

    /// The parts of a file that are read, in the order of `extents`. `inode` is the number of its
    /// inode, `size` the size of the file and `block` that of a block of the filesystem, both in
    /// bytes: nothing past the last block of the file is read.
    pub fn ends<'a>(
        self,
        inode: u64,
        extents: &'a [Extent],
        size: u64,
        block: u64,
    ) -> impl Iterator<Item = End> + 'a {
        let limit = size.checked_next_multiple_of(block.max(1)).unwrap_or(u64::MAX);
        let extents = if self.has(inode, extents, size) { extents } else { &[] };
        let written = extents.iter().filter(|extent| extent.flags & Extent::UNWRITTEN == 0);
        written.flat_map(move |extent| ends_of(extent, limit)).flatten()
    }
}

/// Spreads numbers over all values (the finalizer of SplitMix64).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
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

    fn ends(extents: &[Extent], size: u64, block: u64) -> Vec<(u64, u64, u64)> {
        let ends = Sample::ALL.ends(7, extents, size, block);
        ends.map(|end| (end.logical, end.physical, end.length)).collect()
    }

    fn sample(one_in: u32, seed: u64) -> Sample {
        Sample { one_in: NonZeroU32::new(one_in).unwrap_or(NonZeroU32::MIN), seed }
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
            ends(&extents, (1 << 21) + 8193, 4096),
            [
                (0, 1 << 20, 4096),
                (61440, (1 << 20) + 61440, 4096),
                (65536, 1 << 30, 4096),
                (1 << 21, 8192, 4096),
                ((1 << 21) + 8192, 16384, 4096),
            ]
        );
        assert_eq!(ends(&[extent(0, 0, 8192, 0)], 8192, 4096), [(0, 0, 8192)]);
        // Small blocks begin and end within pages.
        assert_eq!(
            ends(&[extent(1024, 2048, 9216, 0)], 9999, 1024),
            [(1024, 2048, 3072), (8192, 9216, 2048)]
        );
    }

    #[test]
    fn one_file_in_n_is_in_the_sample_and_which_depends_on_the_seed() {
        let one = [extent(0, 0, 4096, 0)];
        let hits = |seed| -> Vec<u64> {
            (0..100_000).filter(|inode| sample(50, seed).has(*inode, &one, 4096)).collect()
        };
        let (first, second) = (hits(1), hits(2));
        // Four standard deviations from 2000.
        assert!((1820..2180).contains(&first.len()), "{}", first.len());
        let both = first.iter().filter(|inode| second.contains(inode)).count();
        assert!(both < 80, "{both}");
        assert_eq!(first, hits(1));
    }

    #[test]
    fn wrong_files_are_found_as_often_as_the_documentation_says() {
        const RUNS: u64 = 4000;
        let one = [extent(0, 0, 4096, 0)];
        // One wrong file, two that were swapped, and a hundred side by side, of the default sample.
        for (wrong, missed) in [(1, 0.969), (2, 0.939), (32, 0.362), (100, 0.042)] {
            let is_missed =
                |seed: &u64| (5000..5000 + wrong).all(|inode| !sample(32, *seed).has(inode, &one, 4096));
            let rate = (0..RUNS).filter(is_missed).count() as f64 / RUNS as f64;
            assert!((rate - missed).abs() < 0.03, "{wrong}: {rate}");
        }
    }

    #[test]
    fn unusual_files_are_in_every_sample() {
        let never = sample(u32::MAX, 3);
        let plain = |count: u64| (0..count).map(|n| extent(n * 4096, n * 8192, 4096, 0)).collect::<Vec<_>>();
        let unwritten = [extent(0, 0, 4096, Extent::UNWRITTEN)];
        let found = [
            never.has(9, &plain(4), 4 * 4096),
            never.has(9, &plain(5), 5 * 4096),
            never.has(9, &plain(1), 2 << 30),
            never.has(9, &unwritten, 4096),
        ];
        assert_eq!(found, [false, true, true, true]);
        assert_eq!(never.ends(9, &plain(4), 4 * 4096, 4096).count(), 0);
        assert_eq!(never.ends(9, &plain(5), 5 * 4096, 4096).count(), 5);
    }

    #[test]
    fn impossible_extents_cause_no_overflow() {
        let extents = [extent(u64::MAX, u64::MAX, u64::MAX, 0), extent(u64::MAX - 1, 9, 9, 0)];
        ends(&extents, u64::MAX, 4096);
        assert_eq!(ends(&extents, 0, 0), []);
    }
}
