//! Sets of bytes of one disk that are made once and then queried often.
//!
//! [`RangeSet`](crate::RangeSet) is for sets that grow and shrink; this is for sets that are
//! compared with a whole map. A range takes three numbers: its ends, and the number of bytes of the
//! set before it.

use crate::DiskRange;

/// Disjoint ranges of one disk in ascending order, joined where they touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexedRanges {
    ranges: Vec<DiskRange>,
    /// For each range the number of bytes before it; at the end, the number of all bytes.
    before: Vec<u64>,
}

impl IndexedRanges {
    /// The bytes of these ranges, which may come in any order and overlap.
    pub fn from_unsorted(mut ranges: Vec<DiskRange>) -> Self {
        ranges.retain(|range| !range.is_empty());
        if !ranges.is_sorted() {
            ranges.sort_unstable();
        }
        ranges.dedup_by(|next, last| {
            let joins = next.start <= last.end;
            if joins {
                last.end = last.end.max(next.end);
            }
            joins
        });
        let mut total = 0;
        let mut before = Vec::with_capacity(ranges.len() + 1);
        for range in &ranges {
            before.push(total);
            total += range.len();
        }
        before.push(total);
        Self { ranges, before }
    }

    /// The ranges.
    #[inline]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = DiskRange> + '_ {
        self.ranges.iter().copied()
    }

    /// Number of ranges.
    #[inline]
    pub fn count(&self) -> usize {
        self.ranges.len()
    }

    /// Whether the set is empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Number of bytes.
    #[inline]
    pub fn bytes(&self) -> u64 {
        self.before.last().copied().unwrap_or(0)
    }

    /// First byte after the last range.
    pub fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |range| range.end.0)
    }

    /// Number of bytes in `range`.
    #[inline]
    pub fn bytes_in(&self, range: DiskRange) -> u64 {
        self.bytes_from(self.first_ending_after(range.start.0), range)
    }

    /// Computes [`bytes_in`](Self::bytes_in) for ranges that ascend by their starts, several times
    /// as fast.
    #[inline]
    pub fn ascending(&self) -> impl FnMut(DiskRange) -> u64 + '_ {
        let mut first = 0;
        move |range| {
            first += count_near(&self.ranges[first..], |span| span.end <= range.start);
            self.bytes_from(first, range)
        }
    }

    /// Number of bytes in `range`; `first` is the first of the ranges that ends after its start.
    // Called for each object of a map, from another crate.
    #[inline]
    fn bytes_from(&self, first: usize, range: DiskRange) -> u64 {
        let after = first + count_near(&self.ranges[first..], |span| span.start < range.end);
        if first == after {
            return 0;
        }
        let cut = range.start.0.saturating_sub(self.ranges[first].start.0)
            + self.ranges[after - 1].end.0.saturating_sub(range.end.0);
        self.before[after] - self.before[first] - cut
    }

    /// The parts of `range` that are among these bytes, ascending.
    #[inline]
    pub fn overlap(&self, range: DiskRange) -> impl Iterator<Item = DiskRange> + '_ {
        let first = self.first_ending_after(range.start.0);
        self.ranges[first..].iter().map_while(move |span| span.intersection(range))
    }

    /// The bytes that are not in `others`, which ascend by their starts, and may overlap.
    pub fn without(&self, others: impl IntoIterator<Item = DiskRange>) -> Self {
        let mut rest = Vec::new();
        let mut spans = self.ranges.iter().copied();
        let mut span = spans.next();
        for other in others {
            // No later range can remove bytes before the next start.
            while let Some(current) = span
                && current.end <= other.start
            {
                rest.push(current);
                span = spans.next();
            }
            while let Some(current) = span
                && current.start < other.end
            {
                if current.start < other.start {
                    rest.push(DiskRange { start: current.start, end: other.start });
                }
                span = if current.end > other.end {
                    Some(DiskRange { start: other.end, end: current.end })
                } else {
                    spans.next()
                };
            }
        }
        rest.extend(span);
        rest.extend(spans);
        Self::from_unsorted(rest)
    }

    #[inline]
    fn first_ending_after(&self, position: u64) -> usize {
        self.ranges.partition_point(|span| span.end.0 <= position)
    }
}

impl FromIterator<DiskRange> for IndexedRanges {
    fn from_iter<I: IntoIterator<Item = DiskRange>>(ranges: I) -> Self {
        Self::from_unsorted(ranges.into_iter().collect())
    }
}

/// Length of the prefix for which `holds`, found fast where it is short.
fn count_near<T>(items: &[T], holds: impl Fn(&T) -> bool) -> usize {
    let mut step = 1;
    while step < items.len() && holds(&items[step - 1]) {
        step *= 2;
    }
    let low = step / 2;
    low + items[low..step.min(items.len())].partition_point(holds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn model(ranges: &[DiskRange]) -> BTreeSet<u64> {
        ranges.iter().flat_map(|range| range.start.0..range.end.0).collect()
    }

    fn ranges() -> impl Strategy<Value = Vec<DiskRange>> {
        prop::collection::vec((0u64..80, 0u64..12), 0..20)
            .prop_map(|list| list.into_iter().map(|(at, len)| DiskRange::new(at, at + len)).collect())
    }

    proptest! {
        #[test]
        fn behaves_like_a_set_of_bytes(list in ranges(), mut others in ranges(), at in 0u64..90, length in 0u64..40) {
            let spans = IndexedRanges::from_unsorted(list.clone());
            let bytes = model(&list);
            prop_assert!(spans.ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(model(&spans.ranges), bytes.clone());
            prop_assert_eq!(spans.bytes(), bytes.len() as u64);

            let window = DiskRange::new(at, at + length);
            let inside: BTreeSet<u64> = bytes.range(at..at + length).copied().collect();
            prop_assert_eq!(spans.bytes_in(window), inside.len() as u64);
            prop_assert_eq!(model(&spans.overlap(window).collect::<Vec<_>>()), inside);

            others.sort_unstable_by_key(|range| range.start);
            let mut ascending = spans.ascending();
            prop_assert!(others.iter().all(|&other| ascending(other) == spans.bytes_in(other)));
            let rest: BTreeSet<u64> = bytes.difference(&model(&others)).copied().collect();
            prop_assert_eq!(model(&spans.without(others).ranges), rest);
        }
    }

    #[test]
    fn the_top_of_the_address_space_can_be_held() {
        let spans =
            IndexedRanges::from_unsorted(vec![DiskRange::new(u64::MAX - 9, u64::MAX), DiskRange::new(0, 5)]);
        assert_eq!(spans.bytes(), 14);
        assert_eq!(spans.bytes_in(DiskRange::new(0, u64::MAX)), 14);
        assert_eq!(spans.bytes_in(DiskRange::new(u64::MAX - 4, u64::MAX)), 4);
    }
}
