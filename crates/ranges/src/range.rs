//! Offsets and half-open ranges.
//!
//! Offsets on a guest disk, in a file, and on a block device of the appliance are all counts of
//! bytes, and mixing them is the classic mistake of a block map. Each is a type of its own, and
//! [`Range`] and [`RangeSet`] take one of them as parameter.
//!
//! A range is always half-open: `start` belongs to it, `end` does not.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

/// A kind of byte offset. Only [`DiskOffset`], [`DeviceOffset`], [`FileOffset`] and
/// [`ContainerOffset`] implement it.
pub trait Offset: Copy + Ord + fmt::Debug + Send + Sync + 'static {
    /// Makes an offset of a count of bytes.
    fn from_bytes(bytes: u64) -> Self;
    /// The offset as a count of bytes.
    fn bytes(self) -> u64;
}

macro_rules! offset {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl Offset for $name {
            #[inline]
            fn from_bytes(bytes: u64) -> Self {
                Self(bytes)
            }
            #[inline]
            fn bytes(self) -> u64 {
                self.0
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

offset! {
    /// Bytes from the beginning of a guest disk, as the guest sees the disk (never an offset in
    /// the image file that holds it).
    DiskOffset
}
offset! {
    /// Bytes from the beginning of a block device of the appliance: a disk, a partition, a logical
    /// volume.
    DeviceOffset
}
offset! {
    /// Bytes from the beginning of a file inside the guest.
    FileOffset
}
offset! {
    /// Bytes from the beginning of a file of the host that holds a guest disk or a part of one: of
    /// a qcow2, of an extent of a VMDK.
    ContainerOffset
}

/// Number of a guest's disk, from 1, in the order in which the images were given.
pub type DiskNumber = u16;

/// Half-open range of bytes, `start..end`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range<O> {
    /// First byte of the range.
    pub start: O,
    /// First byte after the range. Never before `start`.
    pub end: O,
}

/// Range of bytes on a guest disk.
pub type DiskRange = Range<DiskOffset>;

/// Range of bytes in a file that holds a guest disk.
pub type ContainerRange = Range<ContainerOffset>;

impl<O: Offset> Range<O> {
    /// The range of `length` bytes that begins at `start`; `None` if its end does not fit in 64
    /// bits.
    pub fn at(start: O, length: u64) -> Option<Self> {
        let end = start.bytes().checked_add(length)?;
        Some(Self { start, end: O::from_bytes(end) })
    }

    /// The range of `length` bytes that begins at `start`, cut at the largest offset of 64 bits.
    pub fn saturating(start: u64, length: u64) -> Self {
        Self::new(start, start.saturating_add(length))
    }

    /// The range from `start` to `end`. A reversed pair gives the empty range at `start`.
    pub fn new(start: u64, end: u64) -> Self {
        Self { start: O::from_bytes(start), end: O::from_bytes(end.max(start)) }
    }

    /// Number of bytes.
    pub fn len(self) -> u64 {
        self.end.bytes() - self.start.bytes()
    }

    /// Whether the range is empty.
    pub fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// The bytes that are in both ranges; `None` if there are none.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(Self { start, end })
    }

    /// Whether every byte of `other` is in this range.
    pub fn contains(self, other: Self) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }
}

impl<O: Offset> fmt::Debug for Range<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.bytes(), self.end.bytes())
    }
}

/// A set of bytes, kept as disjoint ranges in ascending order, joined where they touch.
///
/// Memory grows with the number of ranges, not with the number of insertions.
///
/// ```
/// use virt_bmap_ranges::{DiskRange, RangeSet};
///
/// let mut set = RangeSet::new();
/// set.insert(DiskRange::new(0, 10));
/// set.insert(DiskRange::new(20, 30));
/// set.insert(DiskRange::new(10, 20));
/// assert_eq!(set.iter().collect::<Vec<_>>(), [DiskRange::new(0, 30)]);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct RangeSet<O> {
    /// Start of each range to its end.
    ranges: BTreeMap<u64, u64>,
    unit: PhantomData<O>,
}

impl<O: Offset> RangeSet<O> {
    /// The empty set.
    pub fn new() -> Self {
        Self { ranges: BTreeMap::new(), unit: PhantomData }
    }

    /// Whether the set holds no byte.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Number of disjoint ranges.
    pub fn range_count(&self) -> usize {
        self.ranges.len()
    }

    /// Number of bytes in the set.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }

    /// Adds a range, joining it with those that it overlaps or touches. Returns whether any of its
    /// bytes were new.
    pub fn insert(&mut self, range: Range<O>) -> bool {
        if range.is_empty() {
            return false;
        }
        let (mut start, mut end) = (range.start.bytes(), range.end.bytes());
        // Most ranges touch none that is there.
        if self.ranges.range(..=end).next_back().is_none_or(|(_, &last_end)| last_end < start) {
            self.ranges.insert(start, end);
            return true;
        }
        // The one range that begins at or before `start` may reach it; those that begin inside, or
        // just at the end, are all swallowed.
        if let Some((&left, &left_end)) = self.ranges.range(..=start).next_back()
            && left_end >= start
        {
            if left_end >= end {
                return false;
            }
            start = left;
        }
        while let Some((&right, &right_end)) = self.ranges.range(start..=end).next() {
            end = end.max(right_end);
            self.ranges.remove(&right);
        }
        self.ranges.insert(start, end);
        true
    }

    /// Removes every byte of `range` from the set.
    pub fn remove(&mut self, range: Range<O>) {
        if range.is_empty() {
            return;
        }
        let (start, end) = (range.start.bytes(), range.end.bytes());
        if let Some((&left, &left_end)) = self.ranges.range(..start).next_back()
            && left_end > start
        {
            self.ranges.insert(left, start);
            if left_end > end {
                self.ranges.insert(end, left_end);
                return;
            }
        }
        while let Some((&right, &right_end)) = self.ranges.range(start..end).next() {
            self.ranges.remove(&right);
            if right_end > end {
                self.ranges.insert(end, right_end);
                return;
            }
        }
    }

    /// The ranges, disjoint and ascending.
    pub fn iter(&self) -> impl Iterator<Item = Range<O>> + '_ {
        self.ranges.iter().map(|(&start, &end)| Range::new(start, end))
    }

    /// The parts of `range` that are in the set, ascending.
    pub fn overlap(&self, range: Range<O>) -> impl Iterator<Item = Range<O>> + '_ {
        let first = match self.ranges.range(..=range.start.bytes()).next_back() {
            Some((&start, &end)) if end > range.start.bytes() => start,
            _ => range.start.bytes(),
        };
        self.ranges
            .range(first..range.end.bytes().max(first))
            .filter_map(move |(&start, &end)| Range::new(start, end).intersection(range))
    }

    /// Whether every byte of `range` is in the set.
    pub fn contains(&self, range: Range<O>) -> bool {
        range.is_empty() || self.overlap(range).eq([range])
    }

    /// The bytes of this set that are not in `other`.
    pub fn difference(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        for range in other.iter() {
            rest.remove(range);
        }
        rest
    }
}

impl<O: Offset> Default for RangeSet<O> {
    fn default() -> Self {
        Self::new()
    }
}

impl<O: Offset> fmt::Debug for RangeSet<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl<O: Offset> FromIterator<Range<O>> for RangeSet<O> {
    fn from_iter<I: IntoIterator<Item = Range<O>>>(ranges: I) -> Self {
        let mut set = Self::new();
        set.extend(ranges);
        set
    }
}

impl<O: Offset> Extend<Range<O>> for RangeSet<O> {
    fn extend<I: IntoIterator<Item = Range<O>>>(&mut self, ranges: I) {
        for range in ranges {
            self.insert(range);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// The model: one bit a byte.
    fn bytes_of(set: &RangeSet<DiskOffset>) -> BTreeSet<u64> {
        set.iter().flat_map(|r| r.start.0..r.end.0).collect()
    }

    fn check(set: &RangeSet<DiskOffset>) {
        let ranges: Vec<_> = set.iter().collect();
        assert!(ranges.iter().all(|r| !r.is_empty()));
        assert!(ranges.windows(2).all(|w| w[0].end < w[1].start), "not joined: {set:?}");
    }

    proptest! {
        #[test]
        fn behaves_like_a_set_of_bytes(steps in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..20), 0..60)) {
            let mut set = RangeSet::new();
            let mut model = BTreeSet::new();
            for (add, start, len) in steps {
                let range = DiskRange::new(start, start + len);
                if add {
                    set.insert(range);
                    model.extend(start..start + len);
                } else {
                    set.remove(range);
                    model.retain(|b| !(start..start + len).contains(b));
                }
                check(&set);
                prop_assert_eq!(bytes_of(&set), model.clone());
                prop_assert_eq!(set.bytes(), model.len() as u64);
                let seen: BTreeSet<u64> = set.overlap(range).flat_map(|r| r.start.0..r.end.0).collect();
                let wanted: BTreeSet<u64> = model.range(start..start + len).copied().collect();
                prop_assert_eq!(set.contains(range), wanted.len() as u64 == len);
                prop_assert_eq!(seen, wanted);
            }
        }

        #[test]
        fn difference_is_the_sets_difference(a in prop::collection::vec((0u64..64, 0u64..9), 0..20), b in prop::collection::vec((0u64..64, 0u64..9), 0..20)) {
            let make = |v: &[(u64, u64)]| v.iter().map(|&(s, l)| DiskRange::new(s, s + l)).collect::<RangeSet<DiskOffset>>();
            let (a, b) = (make(&a), make(&b));
            let difference = a.difference(&b);
            check(&difference);
            prop_assert_eq!(bytes_of(&difference), bytes_of(&a).difference(&bytes_of(&b)).copied().collect::<BTreeSet<_>>());
        }
    }

    #[test]
    fn a_range_past_the_end_of_64_bits_is_none() {
        assert!(DiskRange::at(DiskOffset(u64::MAX), 1).is_none());
        assert_eq!(DiskRange::at(DiskOffset(u64::MAX - 1), 1).map(Range::len), Some(1));
        assert_eq!(DiskRange::saturating(u64::MAX - 1, 9).len(), 1);
    }

    #[test]
    fn the_top_of_the_address_space_can_be_held() {
        let mut set = RangeSet::new();
        set.insert(DiskRange::new(u64::MAX - 1, u64::MAX));
        set.insert(DiskRange::new(0, 1));
        assert_eq!(set.range_count(), 2);
        assert!(set.contains(DiskRange::new(u64::MAX - 1, u64::MAX)));
    }
}
