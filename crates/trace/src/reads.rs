//! The reads of a disk: which bytes, and in which order they were read first.

use std::collections::VecDeque;
use virt_bmap_ranges::{DiskOffset, DiskRange, RangeSet};

/// Number of streams that a reader may have at a time: a read is sequential if it begins where one
/// of the last so many reads of the disk ended.
const STREAMS: usize = 16;

/// Most ranges that are kept. They take 16 bytes each in one order, some 30 in the other.
const MOST: usize = 1 << 20;

/// The smallest gap that is closed if there are more ranges.
const FIRST_GAP: u64 = 4096;

/// What was read of a disk.
///
/// If there are more than [`MOST`] ranges, those with small gaps between them are joined: see
/// [`gap`](Self::gap).
#[derive(Clone, Debug)]
pub(super) struct DiskReads {
    seen: RangeSet<DiskOffset>,
    /// Each range when it was read for the first time, in that order; neighbours are joined.
    first: Vec<DiskRange>,
    /// Ends of the last reads.
    ends: VecDeque<u64>,
    gap: u64,
    most: usize,
}

impl Default for DiskReads {
    fn default() -> Self {
        Self::with_most(MOST)
    }
}

/// A read, compared with earlier reads.
pub(super) struct Read {
    /// It begins where one of the last has ended.
    pub(super) is_sequential: bool,
    /// Some of its bytes were not read before.
    pub(super) is_new: bool,
}

impl DiskReads {
    fn with_most(most: usize) -> Self {
        Self { seen: RangeSet::new(), first: Vec::new(), ends: VecDeque::new(), gap: 0, most }
    }

    /// Adds a read.
    pub(super) fn read(&mut self, range: DiskRange) -> Read {
        let stream = self.ends.iter().position(|&end| end == range.start.0);
        match stream {
            Some(stream) => drop(self.ends.remove(stream)),
            None if self.ends.len() == STREAMS => drop(self.ends.pop_front()),
            None => {}
        }
        self.ends.push_back(range.end.0);
        let mut at = range.start;
        let end = DiskRange { start: range.end, end: range.end };
        let mut is_new = false;
        for known in self.seen.overlap(range).chain([end]) {
            let new = DiskRange { start: at, end: known.start };
            at = known.end;
            if new.is_empty() {
                continue;
            }
            is_new = true;
            match self.first.last_mut() {
                Some(last) if last.end == new.start => last.end = new.end,
                _ => self.first.push(new),
            }
        }
        if is_new {
            self.seen.insert(range);
            if self.first.len() > self.most {
                self.coarsen();
            }
        }
        Read { is_sequential: stream.is_some(), is_new }
    }

    /// Joins ranges until at most half of the limit remain. Begins with ranges that touch, as
    /// [`first`](Self::first) does anyway.
    fn coarsen(&mut self) {
        let mut gap = self.gap;
        self.first = joined(&self.first, gap);
        while self.first.len() > self.most / 2 {
            gap = (gap * 2).max(FIRST_GAP);
            self.first = joined(&self.first, gap);
        }
        if gap > 0 {
            self.seen = self.first.iter().copied().collect();
            self.gap = gap;
        }
    }

    /// Largest gap between two ranges that counts as read; 0 as long as all ranges are kept.
    pub(super) fn gap(&self) -> u64 {
        self.gap
    }

    /// Bytes that were read, each counted once.
    pub(super) fn distinct(&self) -> u64 {
        self.seen.bytes()
    }

    /// The bytes that were read, as ascending ranges.
    pub(super) fn ranges(&self) -> impl Iterator<Item = DiskRange> + '_ {
        self.seen.iter()
    }

    /// The ranges in the order of their first reads, joined where at most `gap` bytes lie between
    /// them.
    pub(super) fn first(&self, gap: u64) -> Vec<DiskRange> {
        joined(&self.first, gap)
    }
}

/// Joins ranges with at most `gap` bytes between them. A joined range takes the place of its first
/// part.
fn joined(first: &[DiskRange], gap: u64) -> Vec<DiskRange> {
    let mut places: Vec<(DiskRange, usize)> = first.iter().copied().zip(0..).collect();
    places.sort_unstable();
    places.dedup_by(|(next, place), (last, first)| {
        let joins = next.start.0 - last.end.0 <= gap;
        if joins {
            last.end = next.end;
            *first = (*first).min(*place);
        }
        joins
    });
    places.sort_unstable_by_key(|(_, place)| *place);
    places.into_iter().map(|(range, _)| range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_number_of_ranges_is_bounded() {
        let mut disk = DiskReads::with_most(1000);
        // Each 512 bytes of a MiB, from its end: all touch in the end, none when they are read.
        for sector in (0..2048u64).rev() {
            disk.read(DiskRange::new(sector * 512, sector * 512 + 512));
            assert!(disk.first.len() <= 1000);
        }
        assert_eq!((disk.gap(), disk.distinct(), disk.first(0).len()), (0, 1 << 20, 1));
        // Every other 4 KiB of the next 64 MiB, of which no neighbour is read.
        let mut bytes = 1 << 20;
        for block in 128..8192u64 {
            let at = block * 8192;
            disk.read(DiskRange::new(at, at + 4096));
            bytes += 4096;
            assert!(disk.first.len() <= 1000 && disk.seen.range_count() <= 1001);
        }
        assert_eq!(disk.gap(), 4096);
        // What lies between counts for read, but no more than the gap.
        assert!((bytes..=2 * bytes).contains(&disk.distinct()), "{}", disk.distinct());
        assert_eq!(disk.first(64 << 10).len(), 1);
        assert!(!disk.read(DiskRange::new(200 * 8192 + 4096, 201 * 8192)).is_new);
    }

    proptest! {
        /// Whatever is read, what is to be prefetched is just that if no gaps are closed, in any
        /// order.
        #[test]
        fn prefetched_ranges_are_those_that_were_read(
            reads in prop::collection::vec((0u64..64, 1u64..16), 1..40),
            most in 2usize..40,
        ) {
            let mut disk = DiskReads::with_most(most);
            let mut bytes = [false; 80];
            for &(start, length) in &reads {
                let new = &mut bytes[start as usize..(start + length) as usize];
                let read = disk.read(DiskRange::new(start, start + length));
                prop_assert!(read.is_new == new.contains(&false) || disk.gap() > 0);
                new.fill(true);
            }
            let mut again = [false; 80];
            for range in disk.first(0) {
                let part = &mut again[range.start.0 as usize..range.end.0 as usize];
                prop_assert!(part.iter().all(|&byte| !byte), "twice");
                part.fill(true);
            }
            let mut seen = [false; 80];
            for range in disk.ranges() {
                seen[range.start.0 as usize..range.end.0 as usize].fill(true);
            }
            prop_assert_eq!(again, seen);
            prop_assert_eq!(seen.iter().filter(|&&byte| byte).count() as u64, disk.distinct());
            let first = disk.first(0)[0];
            if disk.gap() == 0 {
                prop_assert_eq!(again, bytes);
                prop_assert!(first.start.0 <= reads[0].0 && first.end.0 > reads[0].0);
            } else {
                prop_assert!(bytes.iter().zip(again).all(|(&read, again)| !read || again));
                prop_assert!(disk.first.len() <= most);
            }
        }
    }
}
