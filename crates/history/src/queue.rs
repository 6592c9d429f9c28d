//! The states that have ended and were not taken, and the present one.
//!
//! Memory is bounded: when there are too many states or records, each two neighbouring states
//! become one, and of records for the same bytes only the last is kept.

use super::pieces::{DataRun, MOST_PIECES, Pieces, Place};
use std::collections::VecDeque;
use std::time::Duration;
use virt_bmap_ranges::DiskRange;

/// Most states that wait.
const MOST_STATES: usize = 1 << 11;

/// Most records that wait, some 32 MiB, unless more are needed for the present bytes of the disks.
const MOST_RECORDS: usize = MOST_PIECES;

/// A change of a disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    /// From 0.
    pub(crate) disk: u16,
    pub(crate) range: DiskRange,
    pub(crate) place: Place,
}

/// A state that nobody has taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pending {
    /// 0 for the present state.
    pub(crate) number: u64,
    /// Time of the first write.
    pub(crate) from: Duration,
    /// Time of the flush that ended it, or of the last write.
    pub(crate) to: Duration,
    pub(crate) is_flushed: bool,
    /// How many states have ended in it; one more than that if it is the present state.
    pub(crate) together: u64,
    pub(crate) records: Vec<Record>,
}

impl Pending {
    /// Adds the state that comes next.
    fn merge(&mut self, next: Self) {
        let from = if self.records.is_empty() { next.from } else { self.from };
        let mut records = std::mem::take(&mut self.records);
        records.extend(next.records);
        *self = Self { from, together: self.together + next.together, records, ..next };
    }
}

/// The states that nobody has taken.
#[derive(Debug)]
pub(crate) struct Queue {
    waiting: VecDeque<Pending>,
    present: Pending,
    /// Number of states that have ever ended.
    ended: u64,
    quiet: Duration,
    /// Number of all records.
    records: usize,
    /// More than so many records are too many.
    most_records: usize,
    most_states: usize,
    /// Number of states that are no longer there, because they became one with the next.
    merged: u64,
    /// Places of data that no state that waits needs any longer, with their lengths.
    unneeded: Vec<DataRun>,
}

impl Queue {
    /// States end when nothing was written for `quiet`.
    pub(crate) fn new(quiet: Duration) -> Self {
        Self::with_limits(quiet, MOST_STATES, MOST_RECORDS)
    }

    fn with_limits(quiet: Duration, most_states: usize, most_records: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            present: Pending { together: 1, ..Pending::default() },
            ended: 0,
            quiet,
            records: 0,
            most_records,
            most_states,
            merged: 0,
            unneeded: Vec::new(),
        }
    }

    /// Number of states that have ended and were not taken.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether states wait and the last one is flushed.
    pub(crate) fn is_last_flushed(&self) -> bool {
        self.waiting.back().is_some_and(|last| last.is_flushed)
    }

    /// Number of states that have ever ended.
    pub(crate) fn ended(&self) -> u64 {
        self.ended
    }

    /// Number of states that became one with the next.
    pub(crate) fn merged(&self) -> u64 {
        self.merged
    }

    /// Number of records.
    pub(crate) fn records(&self) -> usize {
        self.records
    }

    /// The records of the state that is taken next, or will be.
    pub(crate) fn next_records(&self) -> &[Record] {
        &self.waiting.front().unwrap_or(&self.present).records
    }

    /// The places of data that no state that waits needs, since the last call.
    pub(crate) fn take_unneeded(&mut self) -> Vec<DataRun> {
        std::mem::take(&mut self.unneeded)
    }

    /// Ends the present state if nothing was written for some time. Returns whether it did.
    pub(crate) fn settle(&mut self, now: Duration) -> bool {
        let is_quiet = now.saturating_sub(self.present.to) > self.quiet;
        let ends = is_quiet && !self.present.records.is_empty();
        if ends {
            self.end_present();
        }
        ends
    }

    /// Adds a change.
    pub(crate) fn push(&mut self, record: Record, now: Duration) {
        if self.present.records.is_empty() {
            self.present.from = now;
        }
        self.present.to = now;
        self.present.records.push(record);
        self.records += 1;
        if self.records > self.most_records {
            self.shorten();
        }
    }

    /// A flush: ends the present state. If nothing was written since the last one, that is flushed.
    pub(crate) fn flush(&mut self, now: Duration) {
        if self.present.records.is_empty() {
            if let Some(last) = self.waiting.back_mut()
                && !last.is_flushed
            {
                last.is_flushed = true;
                last.to = now;
            }
            return;
        }
        self.present.to = now;
        self.present.is_flushed = true;
        self.end_present();
    }

    /// Ends the present state, if anything was written.
    pub(crate) fn end_present(&mut self) {
        if self.present.records.is_empty() {
            return;
        }
        self.ended += 1;
        let next = Pending { together: 1, ..Pending::default() };
        let present = std::mem::replace(&mut self.present, next);
        self.waiting.push_back(Pending { number: self.ended, ..present });
        if self.waiting.len() > self.most_states {
            self.halve();
        }
    }

    /// Takes the first state that has ended.
    pub(crate) fn pop(&mut self) -> Option<Pending> {
        let first = self.waiting.pop_front()?;
        self.records -= first.records.len();
        Some(first)
    }

    /// Keeps only the last record of each byte of each state.
    pub(crate) fn compact(&mut self) {
        for state in self.waiting.iter_mut().chain([&mut self.present]) {
            compact(&mut state.records, &mut self.unneeded);
        }
        self.count();
    }

    /// Joins each two neighbours of the states that have ended; the last one with the present
    /// state. Returns false if there was nothing to join.
    pub(crate) fn halve(&mut self) -> bool {
        let before = self.waiting.len();
        if before > 1 {
            let mut states = std::mem::take(&mut self.waiting).into_iter();
            while let Some(mut state) = states.next() {
                if let Some(next) = states.next() {
                    state.merge(next);
                    compact(&mut state.records, &mut self.unneeded);
                }
                self.waiting.push_back(state);
            }
        } else if !self.present.records.is_empty()
            && let Some(mut state) = self.waiting.pop_front()
        {
            state.merge(std::mem::take(&mut self.present));
            compact(&mut state.records, &mut self.unneeded);
            self.present = Pending { number: 0, is_flushed: false, ..state };
        }
        self.merged += (before - self.waiting.len()) as u64;
        self.count();
        self.waiting.len() < before
    }

    /// Joins all states with the present one, whose bytes are from now on the base's.
    pub(crate) fn rebase(&mut self) {
        while let Some(mut state) = self.waiting.pop_back() {
            state.merge(std::mem::take(&mut self.present));
            self.present = Pending { number: 0, is_flushed: false, ..state };
            self.merged += 1;
        }
        for record in &mut self.present.records {
            record.place = Place::BASE;
        }
        compact(&mut self.present.records, &mut self.unneeded);
        self.unneeded.clear();
        self.count();
    }

    fn shorten(&mut self) {
        self.compact();
        // Joining states cannot make fewer than one state would have.
        let all = self.waiting.iter().chain([&self.present]).flat_map(|state| state.records.iter().copied());
        let fewest: usize = pieces(all, |_, _| {}).iter().map(Pieces::count).sum();
        // Much is free afterwards, so that the work is done seldom.
        let goal = (self.most_records / 2).max(fewest + fewest / 2);
        while self.records > goal && self.halve() {}
        self.most_records = self.most_records.max(2 * self.records);
    }

    fn count(&mut self) {
        let states = self.waiting.iter().chain([&self.present]);
        self.records = states.map(|state| state.records.len()).sum();
    }
}

/// Keeps only the last record of each byte, in no order of time. Adds the places of the others'
/// data to `unneeded`.
fn compact(records: &mut Vec<Record>, unneeded: &mut Vec<DataRun>) {
    if records.len() < 2 {
        return;
    }
    let last = pieces(std::mem::take(records).into_iter(), |place, length| unneeded.push((place, length)));
    for (disk, pieces) in (0..).zip(&last) {
        records.extend(pieces.iter().map(|(range, place)| Record { disk, range, place }));
    }
}

/// What each disk has after these records; `gone` is as in [`Pieces::set`].
fn pieces(records: impl Iterator<Item = Record>, mut gone: impl FnMut(Place, u64)) -> Vec<Pieces> {
    let mut disks: Vec<Pieces> = Vec::new();
    for Record { disk, range, place } in records {
        let disk = usize::from(disk);
        if disks.len() <= disk {
            disks.resize_with(disk + 1, Pieces::default);
        }
        disks[disk].set(range, place, &mut gone);
    }
    disks
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_millis(50);

    fn record(at: u64) -> Record {
        Record { disk: 0, range: DiskRange::new(at, at + 1), place: Place::in_spill(at) }
    }

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn bytes(records: &[Record]) -> u64 {
        records.iter().map(|record| record.range.len()).sum()
    }

    #[test]
    fn states_end_at_flushes_and_in_quiet_times() {
        let mut queue = Queue::new(QUIET);
        queue.flush(at(1));
        queue.settle(at(1000));
        assert!(queue.pop().is_none(), "nothing was written");
        queue.push(record(0), at(1000));
        queue.push(record(1), at(1050));
        queue.flush(at(1051));
        queue.flush(at(1052));
        queue.push(record(2), at(1060));
        assert!(!queue.settle(at(1110)));
        assert!(queue.settle(at(1111)));
        queue.push(record(3), at(1111));
        queue.settle(at(1162));
        queue.flush(at(1170));
        queue.push(record(4), at(1171));
        queue.end_present();
        let mut states = Vec::new();
        while let Some(state) = queue.pop() {
            states.push((state.number, state.from, state.to, state.is_flushed, state.records.len()));
            assert_eq!(state.together, 1);
        }
        assert_eq!(
            states,
            [
                (1, at(1000), at(1051), true, 2),
                (2, at(1060), at(1060), false, 1),
                (3, at(1111), at(1170), true, 1),
                (4, at(1171), at(1171), false, 1),
            ]
        );
        assert_eq!((queue.records(), queue.waiting()), (0, 0));
    }

    #[test]
    fn neither_states_nor_records_grow_without_bound() {
        let mut queue = Queue::with_limits(QUIET, 8, 1000);
        for number in 0..10_000 {
            queue.push(record(number % 100), at(number));
            queue.flush(at(number));
            assert!(queue.waiting() <= 8);
        }
        let unneeded: u64 = queue.take_unneeded().iter().map(|(_, length)| length).sum();
        let states = queue.waiting.iter();
        assert_eq!(unneeded + states.map(|state| bytes(&state.records)).sum::<u64>(), 10_000);
        let (mut count, mut last) = (0, 0);
        while let Some(state) = queue.pop() {
            count += 1;
            assert_eq!(state.number, last + state.together);
            last = state.number;
        }
        assert_eq!((count + queue.merged(), last), (10_000, 10_000));

        // One long state.
        let mut queue = Queue::with_limits(QUIET, 8, 1000);
        (0..10_000).for_each(|number| queue.push(record(number % 1500), at(0)));
        assert!(queue.records() <= 3000, "{}", queue.records());
        queue.end_present();
        assert_eq!(queue.pop().unwrap().together, 1);
    }

    #[test]
    fn states_are_not_joined_where_that_saves_nothing() {
        let mut queue = Queue::with_limits(QUIET, 10_000, 1000);
        for number in 0..3000 {
            queue.push(record(2 * number), at(number));
            queue.flush(at(number));
        }
        assert_eq!((queue.waiting(), queue.merged()), (3000, 0));
        // Each is written many times: fewer are kept.
        for number in 0..60_000 {
            queue.push(record(number % 3000 * 2), at(number));
            queue.flush(at(number));
            assert!(queue.records() <= 9000);
        }
        assert!(queue.merged() > 0);
    }

    #[test]
    fn a_state_becomes_one_with_the_present_one() {
        let mut queue = Queue::new(QUIET);
        for number in 0..3 {
            queue.push(record(number), at(number));
            queue.flush(at(number));
        }
        queue.push(record(0), at(3));
        assert!(queue.halve() && queue.halve() && queue.halve());
        assert!(!queue.halve());
        assert_eq!((queue.waiting(), queue.merged()), (0, 3));
        queue.flush(at(9));
        let state = queue.pop().unwrap();
        assert_eq!((state.number, state.together, bytes(&state.records)), (4, 4, 3));
        assert_eq!((state.from, state.to, state.is_flushed), (at(0), at(9), true));
    }
}
