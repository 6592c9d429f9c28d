//! Records which bytes are read, and for which object.
//!
//! The recorder knows neither NBD nor appliances. The server of a disk reports each read; the probe
//! sets the *tag* to which the following reads belong. When the tag changes, the caller gets the
//! recording of the former tag, so memory grows only with the number of ranges under one tag, not
//! with the number of requests or tags.
//!
//! If several files are read one after the other, each after the end of the previous one, the order
//! of the reads says as much as tags would: a *series* keeps the reads one by one.

use std::sync::{Mutex, MutexGuard, PoisonError};
use virt_bmap_ranges::{DiskNumber, DiskOffset, DiskRange, RangeSet};

/// What reads are attributed to: the number of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u32);

/// The ranges that were read under one tag, by disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    disks: Vec<RangeSet<DiskOffset>>,
    is_changed: bool,
}

impl Recording {
    /// Adds a range.
    pub fn insert(&mut self, disk: DiskNumber, range: DiskRange) -> bool {
        let index = usize::from(disk.saturating_sub(1));
        if index >= self.disks.len() {
            self.disks.resize_with(index + 1, RangeSet::new);
        }
        self.disks[index].insert(range)
    }

    /// The ranges, by disk and ascending.
    pub fn iter(&self) -> impl Iterator<Item = (DiskNumber, DiskRange)> + '_ {
        (1..).zip(&self.disks).flat_map(|(disk, set)| set.iter().map(move |range| (disk, range)))
    }

    /// Whether the overlay held other bytes than the image where some of it was read.
    pub fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// The parts of `range` on `disk` that were read, ascending.
    pub fn overlap(&self, disk: DiskNumber, range: DiskRange) -> impl Iterator<Item = DiskRange> + '_ {
        let set = usize::from(disk).checked_sub(1).and_then(|index| self.disks.get(index));
        set.into_iter().flat_map(move |set| set.overlap(range))
    }

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.disks.iter().all(RangeSet::is_empty)
    }

    /// Number of bytes read, each counted once.
    pub fn bytes(&self) -> u64 {
        self.disks.iter().map(RangeSet::bytes).sum()
    }

    /// Whether every byte of `range` on `disk` was read.
    pub fn contains(&self, disk: DiskNumber, range: DiskRange) -> bool {
        let set = usize::from(disk).checked_sub(1).and_then(|index| self.disks.get(index));
        set.map_or(range.is_empty(), |set| set.contains(range))
    }

    /// The ranges that are not in `other`.
    pub fn difference(&self, other: &Self) -> Self {
        let nothing = RangeSet::new();
        let others = other.disks.iter().chain(std::iter::repeat(&nothing));
        let disks = self.disks.iter().zip(others).map(|(mine, theirs)| mine.difference(theirs)).collect();
        Self { disks, is_changed: self.is_changed }
    }
}

impl Extend<(DiskNumber, DiskRange)> for Recording {
    fn extend<I: IntoIterator<Item = (DiskNumber, DiskRange)>>(&mut self, ranges: I) {
        for (disk, range) in ranges {
            self.insert(disk, range);
        }
    }
}

impl FromIterator<(DiskNumber, DiskRange)> for Recording {
    fn from_iter<I: IntoIterator<Item = (DiskNumber, DiskRange)>>(ranges: I) -> Self {
        let mut recording = Self::default();
        recording.extend(ranges);
        recording
    }
}

/// Reads in the order in which they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Series {
    reads: Vec<(DiskNumber, DiskRange)>,
    /// All that was read.
    seen: Recording,
    /// Reads that exceeded the capacity, or that found other bytes than those of the image.
    missed: u64,
}

impl Series {
    /// Most reads of one series.
    pub const CAPACITY: usize = 1 << 18;

    /// Adds a read; `true` if some of it had not been read in this series.
    fn push(&mut self, disk: DiskNumber, range: DiskRange) -> bool {
        if self.reads.len() < Self::CAPACITY {
            self.reads.push((disk, range));
        } else {
            self.missed += 1;
        }
        self.seen.insert(disk, range)
    }

    /// The reads; `None` where there were more than [`Series::CAPACITY`], or something had
    /// [changed](Recorder::changed).
    pub fn into_reads(self) -> Option<Vec<(DiskNumber, DiskRange)>> {
        (self.missed == 0).then_some(self.reads)
    }

    /// The first [`Series::CAPACITY`] reads, even if there were more.
    pub fn into_first_reads(self) -> Vec<(DiskNumber, DiskRange)> {
        self.reads
    }
}

/// The current tag, and the recording under it.
///
/// ```
/// use virt_bmap_ranges::DiskRange;
/// use virt_bmap::recorder::{Recorder, Tag};
///
/// let recorder = Recorder::new();
/// recorder.switch(Some(Tag(7)));
/// recorder.read(1, DiskRange::new(0, 512));
/// recorder.read(1, DiskRange::new(512, 1024));
/// let recording = recorder.switch(None);
/// assert!(recording.iter().eq([(1, DiskRange::new(0, 1024))]));
/// ```
#[derive(Debug, Default)]
pub struct Recorder {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tag: Option<Tag>,
    current: Recording,
    series: Option<Series>,
    requests: u64,
    bytes: u64,
    news: u64,
    /// Parts of the disks whose reads are not recorded.
    ignored: Recording,
}

impl Recorder {
    /// A recorder with no tag set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that `range` of `disk` has been asked for.
    pub fn read(&self, disk: DiskNumber, range: DiskRange) {
        let mut guard = self.state();
        let state = &mut *guard;
        state.requests += 1;
        state.bytes += range.len();
        let mut at = range.start;
        let ignored: Vec<DiskRange> = state.ignored.overlap(disk, range).collect();
        for end in ignored.into_iter().chain([DiskRange { start: range.end, end: range.end }]) {
            let part = DiskRange { start: at, end: end.start };
            at = end.end;
            if part.is_empty() {
                continue;
            }
            let is_new = match &mut state.series {
                Some(series) => series.push(disk, part),
                None => state.current.insert(disk, part),
            };
            state.news += u64::from(is_new);
        }
    }

    /// From now on does not record reads of these parts of the disks: what the kernel reads there
    /// to find the place of other bytes, at times that cannot be foreseen.
    pub fn ignore(&self, parts: &Recording) {
        self.state().ignored.extend(parts.iter());
    }

    /// From now on records reads of all parts of the disks.
    pub fn ignore_nothing(&self) {
        self.state().ignored = Recording::default();
    }

    /// Notes that a read found other bytes than those of the image, because the overlay was written
    /// there.
    ///
    /// In a series that read cannot be attributed, so the series is given up.
    pub fn changed(&self, disk: DiskNumber, range: DiskRange) {
        let mut state = self.state();
        if state.ignored.contains(disk, range) {
            return;
        }
        match &mut state.series {
            Some(series) => series.missed += 1,
            None => state.current.is_changed = true,
        }
    }

    /// Sets another tag, or none, and returns the recording since the previous change.
    pub fn switch(&self, tag: Option<Tag>) -> Recording {
        let mut state = self.state();
        state.tag = tag;
        std::mem::take(&mut state.current)
    }

    /// Begins a series, under no tag, and returns the recording since the previous change.
    pub fn begin_series(&self) -> Recording {
        let mut state = self.state();
        state.tag = None;
        state.series = Some(Series::default());
        std::mem::take(&mut state.current)
    }

    /// Ends the series, if there is one.
    pub fn end_series(&self) -> Option<Series> {
        self.state().series.take()
    }

    /// A number that grows with each read of something that had not been read under the same tag.
    /// If a damaged filesystem leads its driver in a circle, the number stops growing.
    pub fn news(&self) -> u64 {
        self.state().news
    }

    /// The current tag.
    pub fn tag(&self) -> Option<Tag> {
        self.state().tag
    }

    /// How many reads have been noted since the beginning, and of how many bytes: a sign of life.
    pub fn totals(&self) -> (u64, u64) {
        let state = self.state();
        (state.requests, state.bytes)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No change panics half-way, so a poisoned lock guards a consistent state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_reads_are_not_news() {
        let recorder = Recorder::new();
        let read = |start| recorder.read(1, DiskRange::new(start, start + 512));
        (0..9).for_each(|_| read(0));
        assert_eq!(recorder.news(), 1);
        read(512);
        recorder.switch(Some(Tag(1)));
        read(0);
        assert_eq!((recorder.news(), recorder.totals().0), (3, 11));
        recorder.begin_series();
        (0..9).for_each(|_| read(0));
        assert_eq!(recorder.news(), 4);
    }

    #[test]
    fn reads_belong_to_the_tag_that_was_set_when_they_came() {
        let recorder = Recorder::new();
        recorder.read(1, DiskRange::new(0, 4));
        assert_eq!(recorder.switch(Some(Tag(1))).bytes(), 4);
        recorder.read(2, DiskRange::new(4, 8));
        recorder.read(1, DiskRange::new(8, 9));
        recorder.read(2, DiskRange::new(0, 4));
        assert_eq!(recorder.tag(), Some(Tag(1)));
        let first = recorder.switch(Some(Tag(2)));
        assert!(first.iter().eq([(1, DiskRange::new(8, 9)), (2, DiskRange::new(0, 8))]));
        assert!(recorder.switch(None).is_empty());
        assert_eq!(recorder.totals(), (4, 13));
    }

    #[test]
    fn a_change_belongs_to_the_tag_under_which_it_was_seen() {
        let recorder = Recorder::new();
        recorder.read(1, DiskRange::new(0, 4));
        recorder.changed(1, DiskRange::new(0, 4));
        assert!(recorder.switch(Some(Tag(1))).is_changed());
        recorder.read(1, DiskRange::new(2, 8));
        let recording = recorder.switch(None);
        assert!(!recording.is_changed());
        assert!(recording.overlap(1, DiskRange::new(0, 4)).eq([DiskRange::new(2, 4)]));
        assert_eq!(recording.overlap(2, DiskRange::new(0, 4)).count(), 0);
    }

    #[test]
    fn look_ups_are_not_recorded() {
        let recorder = Recorder::new();
        recorder.ignore(&[(1, DiskRange::new(4, 8))].into_iter().collect());
        for (start, end) in [(0, 6), (5, 7), (7, 10)] {
            recorder.read(1, DiskRange::new(start, end));
        }
        recorder.read(2, DiskRange::new(4, 8));
        recorder.changed(1, DiskRange::new(5, 7));
        let recording = recorder.switch(None);
        let read = [(1, DiskRange::new(0, 4)), (1, DiskRange::new(8, 10)), (2, DiskRange::new(4, 8))];
        assert!(recording.iter().eq(read) && !recording.is_changed());
    }

    #[test]
    fn a_series_keeps_the_order_of_reads() {
        let recorder = Recorder::new();
        recorder.switch(Some(Tag(1)));
        recorder.read(1, DiskRange::new(0, 4));
        assert_eq!(recorder.begin_series().bytes(), 4);
        assert_eq!(recorder.tag(), None);
        let reads = [(1, DiskRange::new(8, 12)), (2, DiskRange::new(0, 4)), (1, DiskRange::new(4, 8))];
        for (disk, range) in reads {
            recorder.read(disk, range);
        }
        assert_eq!(recorder.end_series().and_then(Series::into_reads), Some(reads.to_vec()));
        assert_eq!(recorder.end_series(), None);
        assert!(recorder.switch(None).is_empty());
    }

    #[test]
    fn a_series_that_is_too_long_says_so() {
        let mut series =
            Series { reads: vec![(1, DiskRange::new(0, 1)); Series::CAPACITY], ..Series::default() };
        assert!(series.clone().into_reads().is_some());
        series.push(1, DiskRange::new(0, 1));
        assert_eq!(series.into_reads(), None);
    }

    #[test]
    fn the_difference_is_taken_disk_by_disk() {
        let a: Recording = [(1, DiskRange::new(0, 8)), (3, DiskRange::new(0, 8))].into_iter().collect();
        let b: Recording = [(1, DiskRange::new(2, 4)), (2, DiskRange::new(0, 8))].into_iter().collect();
        let rest = a.difference(&b);
        assert!(rest.iter().eq([
            (1, DiskRange::new(0, 2)),
            (1, DiskRange::new(4, 8)),
            (3, DiskRange::new(0, 8))
        ]));
        assert!(b.contains(2, DiskRange::new(1, 2)) && !b.contains(9, DiskRange::new(1, 2)));
        assert!(b.contains(9, DiskRange::new(1, 1)));
    }
}
