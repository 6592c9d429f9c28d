//! The files that hold what was written.

use super::format::{Kind, RECORD, RecordHeader};
use super::pieces::{DataRun, Origin, Place};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

/// Data that is not in the log begins at a multiple of this many bytes if it has as many: its space
/// can then be given back.
const BLOCK: u64 = 4096;

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

    /// Gives back the space of these places in the unnamed file.
    pub(crate) fn free(&self, mut places: Vec<DataRun>) {
        let Some(file) = &self.spill else { return };
        places.sort_unstable_by_key(|(place, _)| offset_in_spill(*place));
        let touches = |a: &DataRun, b: &DataRun| {
            offset_in_spill(a.0).zip(offset_in_spill(b.0)).is_some_and(|(at, next)| at + a.1 >= next)
        };
        for places in places.chunk_by(touches) {
            let ([(first, _), ..], [.., (last, length)]) = (places, places) else { continue };
            let (Some(start), Some(last)) = (offset_in_spill(*first), offset_in_spill(*last)) else {
                continue;
            };
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // A filesystem that cannot do it costs temporary space alone.
            if let Err(error) = rustix::fs::fallocate(file, flags, start, last + length - start) {
                tracing::debug!(%error, start, "the history keeps space that it no longer needs");
            }
        }
    }

    /// Gives back all space of the unnamed file.
    pub(crate) fn free_all(&self) {
        if let Some(file) = &self.spill
            && let Err(error) = file.set_len(0)
        {
            tracing::debug!(%error, "the history keeps space that it no longer needs");
        }
    }
}

fn offset_in_spill(place: Place) -> Option<u64> {
    match place.origin() {
        Origin::Spill(offset) => Some(offset),
        _ => None,
    }
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
        let appender = Self { store: store.clone(), log_end, log_limit, spill_end: 0, is_cut_short: false };
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

    /// Appends to the unnamed file.
    ///
    /// # Errors
    /// The system's, and `ENOSPC` when there are no more offsets.
    pub(crate) fn spill(&mut self, data: &[u8]) -> io::Result<Place> {
        let length = data.len() as u64;
        let start = if length < BLOCK { self.spill_end } else { self.spill_end.next_multiple_of(BLOCK) };
        if start + length > Place::MOST {
            return Err(Errno::NOSPC.into());
        }
        self.store.spill.as_ref().ok_or(io::ErrorKind::NotFound)?.write_all_at(data, start)?;
        self.spill_end = start + length;
        Ok(Place::in_spill(start))
    }
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
