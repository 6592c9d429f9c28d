//! The files that hold what was written.

use super::format::{Kind, RECORD, RecordHeader};
use super::pieces::{DataRun, Origin, Place};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

/// Data that is not in the log begins at a multiple of this many bytes if it has as many: its space
/// can then be given back.
const BLOCK: u64 = 4096;

/// Space of so many bytes, or a run more, is kept to be used again.
const MOST_FREE: u64 = 64 << 20;
/// In at most so many runs.
const MOST_RUNS: usize = 1 << 16;
/// Longer data gets new space.
const MOST_REUSED: u64 = 64 << 10;
/// So many runs are tried for it.
const MOST_TRIED: usize = 8;

/// The log, if there is one, and an unnamed file.
#[derive(Debug)]
pub(crate) struct Store {
    log: Option<File>,
    spill: Option<File>,
}

impl Store {
    /// A log that is only read.
    pub(crate) fn of_log(log: File) -> Self {
        Self { log: Some(log), spill: None }
    }

    /// Fills `buf` from the place of data `place`.
    ///
    /// # Errors
    /// The system's, and if it is no place of data.
    pub(crate) fn read(&self, place: Place, buf: &mut [u8]) -> io::Result<()> {
        let (file, offset) = match place.origin() {
            Origin::Log(offset) => (&self.log, offset),
            Origin::Spill(offset) => (&self.spill, offset),
            Origin::Base | Origin::Zero => return Err(io::ErrorKind::InvalidInput.into()),
        };
        file.as_ref().ok_or(io::ErrorKind::NotFound)?.read_exact_at(buf, offset)
    }

    /// Gives back the space of these runs of the unnamed file.
    pub(crate) fn give_back(&self, runs: impl IntoIterator<Item = Run>) {
        let Some(file) = &self.spill else { return };
        for run in runs {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // A filesystem that cannot do it costs temporary space alone.
            if let Err(error) = rustix::fs::fallocate(file, flags, run.start, run.length) {
                tracing::debug!(%error, ?run, "the history keeps space that it no longer needs");
            }
        }
    }
}

/// A run of bytes of the unnamed file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    start: u64,
    length: u64,
}

/// The runs of these places in the unnamed file, joined where they touch.
pub(crate) fn runs(places: Vec<DataRun>) -> Vec<Run> {
    let in_spill = |(place, length): DataRun| match place.origin() {
        Origin::Spill(start) => Some(Run { start, length }),
        _ => None,
    };
    let mut runs: Vec<Run> = places.into_iter().filter_map(in_spill).collect();
    runs.sort_unstable_by_key(|run| run.start);
    runs.dedup_by(|next, last| {
        let joins = last.start + last.length == next.start;
        if joins {
            last.length += next.length;
        }
        joins
    });
    runs
}

/// Appends to a [`Store`]: there is one for each.
#[derive(Debug)]
pub(crate) struct Appender {
    store: Arc<Store>,
    /// End of the log. `None` if nothing is recorded, or no longer.
    log_end: Option<u64>,
    /// Most bytes of the log.
    log_limit: u64,
    spill_end: u64,
    /// Runs before that that can be used again: this is faster than new space.
    free: VecDeque<Run>,
    free_bytes: u64,
    is_cut_short: bool,
}

impl Appender {
    /// Appends to the unnamed file `spill` and, if there is a log, to that, which begins with
    /// `header` and will have at most `log_limit` bytes.
    ///
    /// # Errors
    /// The header cannot be written.
    pub(crate) fn new(
        log: Option<File>,
        header: &[u8],
        log_limit: u64,
        spill: File,
    ) -> io::Result<(Arc<Store>, Self)> {
        let log_end = match &log {
            Some(file) => {
                file.write_all_at(header, 0)?;
                Some(header.len() as u64)
            }
            None => None,
        };
        let store = Arc::new(Store { log, spill: Some(spill) });
        let appender = Self {
            store: store.clone(),
            log_end,
            log_limit,
            spill_end: 0,
            free: VecDeque::new(),
            free_bytes: 0,
            is_cut_short: false,
        };
        Ok((store, appender))
    }

    /// Whether there is a log, and it goes on.
    pub(crate) fn is_recording(&self) -> bool {
        self.log_end.is_some()
    }

    /// Whether the log ends early.
    pub(crate) fn is_cut_short(&self) -> bool {
        self.is_cut_short
    }

    /// Appends a write: to the log if it has room, and else to the unnamed file.
    ///
    /// # Errors
    /// The unnamed file's.
    pub(crate) fn write(&mut self, header: &RecordHeader, data: &[u8]) -> io::Result<Place> {
        match self.record(header, data) {
            Some(start) => Ok(Place::in_log(start)),
            None => self.spill(data),
        }
    }

    /// Appends a record to the log, if there is one and it has room. Returns where its data begins.
    pub(crate) fn record(&mut self, header: &RecordHeader, data: &[u8]) -> Option<u64> {
        let (log, end) = (self.store.log.as_ref()?, self.log_end?);
        let start = end + RECORD as u64;
        let after = start + data.len() as u64;
        // Room is left for the record that says where the log ends.
        if after + RECORD as u64 > self.log_limit {
            tracing::warn!(limit = self.log_limit, "the recorded history has reached its limit");
            self.cut_short(header.time);
            return None;
        }
        if let Err(error) = write_both(log, &header.encode(), data, end) {
            tracing::warn!(%error, "the history cannot be recorded any further");
            self.cut_short(header.time);
            return None;
        }
        self.log_end = Some(after);
        Some(start)
    }

    /// Ends the log early. What is in it is still read.
    fn cut_short(&mut self, time: Duration) {
        if let (Some(log), Some(end)) = (&self.store.log, self.log_end.take()) {
            self.is_cut_short = true;
            let record = RecordHeader::mark(Kind::CutShort, 0, time).encode();
            // Without the record, a reader says that the log breaks off.
            if let Err(error) = log.set_len(end).and_then(|()| log.write_all_at(&record, end)) {
                tracing::debug!(%error, "the end of the history was not recorded");
            }
        }
    }

    /// Ends the log, if there is one.
    pub(crate) fn finish(&mut self, time: Duration) {
        self.record(&RecordHeader::mark(Kind::End, 0, time), &[]);
        self.log_end = None;
    }

    /// Adds data to the unnamed file.
    ///
    /// # Errors
    /// The system's, and `ENOSPC` when there are no more offsets.
    pub(crate) fn spill(&mut self, data: &[u8]) -> io::Result<Place> {
        let length = data.len() as u64;
        let free = if length <= MOST_REUSED { self.take_free(length) } else { None };
        let start = match free {
            Some(start) => start,
            None => {
                let start = aligned(self.spill_end, length);
                if start + length > Place::MOST {
                    return Err(Errno::NOSPC.into());
                }
                self.spill_end = start + length;
                start
            }
        };
        self.store.spill.as_ref().ok_or(io::ErrorKind::NotFound)?.write_all_at(data, start)?;
        Ok(Place::in_spill(start))
    }

    fn take_free(&mut self, length: u64) -> Option<u64> {
        for _ in 0..self.free.len().min(MOST_TRIED) {
            let run = self.free.pop_front()?;
            let (start, end) = (aligned(run.start, length), run.start + run.length);
            let Some(rest) = end.checked_sub(start + length) else {
                self.free.push_back(run);
                continue;
            };
            if rest > 0 {
                self.free.push_front(Run { start: start + length, length: rest });
            }
            self.free_bytes -= run.length - rest;
            return Some(start);
        }
        None
    }

    /// Takes runs that nobody reads any longer, to be used again. Returns those that are too many:
    /// their space is to be given back.
    pub(crate) fn reuse(&mut self, runs: Vec<Run>) -> Vec<Run> {
        let mut runs = runs.into_iter();
        while self.free_bytes < MOST_FREE && self.free.len() < MOST_RUNS {
            let Some(run) = runs.next() else { break };
            self.free_bytes += run.length;
            self.free.push_back(run);
        }
        runs.collect()
    }

    /// Gives back all space of the unnamed file.
    pub(crate) fn free_all(&mut self) {
        self.free.clear();
        self.free_bytes = 0;
        if let Some(file) = &self.store.spill
            && let Err(error) = file.set_len(0)
        {
            tracing::debug!(%error, "the history keeps space that it no longer needs");
        }
    }
}

/// Where data of `length` bytes may begin, from `start` on.
fn aligned(start: u64, length: u64) -> u64 {
    if length < BLOCK { start } else { start.next_multiple_of(BLOCK) }
}

/// Writes two buffers one after the other, mostly with one system call.
fn write_both(file: &File, first: &[u8], second: &[u8], offset: u64) -> io::Result<()> {
    let done = loop {
        match rustix::io::pwritev(file, &[IoSlice::new(first), IoSlice::new(second)], offset) {
            Ok(done) => break done,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    if done < first.len() {
        file.write_all_at(&first[done..], offset + done as u64)?;
    }
    let done = done.saturating_sub(first.len());
    file.write_all_at(&second[done..], offset + (first.len() + done) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    fn appender() -> (Arc<Store>, Appender) {
        Appender::new(None, &[], 0, tempfile::tempfile().unwrap()).unwrap()
    }

    #[test]
    fn freed_space_is_used_again() {
        let (store, mut appender) = appender();
        let places: Vec<DataRun> =
            (0..8).map(|byte| (appender.spill(&[byte; 4096]).unwrap(), 4096)).collect();
        let (small, last) = (appender.spill(&[8; 512]).unwrap(), appender.spill(&[9; 8192]).unwrap());
        let rest = appender.reuse(runs(vec![places[5], places[2], places[3], (Place::in_log(0), 9)]));
        assert!(rest.is_empty());
        // In blocks 2 and 3 together, then block 5, then behind the last one.
        assert_eq!(appender.spill(&[1; 8192]).unwrap(), places[2].0);
        assert_eq!(appender.spill(&[2; 512]).unwrap(), places[5].0);
        assert_eq!(appender.spill(&[3; 4096]).unwrap(), Place::in_spill(8 * 4096 + 4096 + 8192));
        let mut bytes = [0; 8192];
        store.read(last, &mut bytes).unwrap();
        assert_eq!(bytes, [9; 8192]);
        store.read(small, &mut bytes[..512]).unwrap();
        assert_eq!(bytes[..512], [8; 512]);
        store.read(places[4].0, &mut bytes[..4096]).unwrap();
        assert_eq!(bytes[..4096], [4; 4096]);
    }

    #[test]
    fn only_some_freed_space_is_kept() {
        let (store, mut appender) = appender();
        let data = vec![7; 1 << 20];
        let places: Vec<DataRun> = (0..100).map(|_| (appender.spill(&data).unwrap(), 1 << 20)).collect();
        let rest = appender.reuse(runs(places.into_iter().step_by(2).collect()));
        assert!(rest.is_empty());
        let places: Vec<DataRun> =
            (0..50).map(|number| (Place::in_spill((2 * number + 1) << 20), 1 << 20)).collect();
        let rest = appender.reuse(runs(places));
        assert_eq!(rest.len(), 36, "64 MiB are kept");
        let spill = store.spill.as_ref().unwrap();
        let before = spill.metadata().unwrap().blocks();
        store.give_back(rest);
        // A filesystem may need blocks of its own for the holes.
        assert!(before - spill.metadata().unwrap().blocks() >= (35 << 20) / 512);
    }
}
