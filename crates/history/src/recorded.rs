//! The states of a recorded history.

use super::format::Kind;
use super::log::{LogEnd, LogError, LogReader, LogRecord};
use super::pieces::{MOST_PIECES, Place};
use super::queue::{Queue, Record};
use super::state::{Lease, State, View};
use super::store::Store;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use virt_bmap_image::Source;

/// A disk before the first write of a recorded history.
#[derive(Clone)]
pub struct RecordedBase {
    /// The disk.
    pub source: Arc<dyn Source>,
    /// Its identity. It must equal the one in [`Recording`](crate::Recording).
    pub identity: Vec<u8>,
}

/// A recorded history: an iterator over its states.
///
/// They are those that a [`History`](crate::History) gives if none are joined. A state that ended
/// without a flush is flushed here if a flush came before the next write.
pub struct Recorded {
    reader: LogReader<BufReader<File>>,
    store: Arc<Store>,
    bases: Vec<Arc<dyn Source>>,
    queue: Queue,
    view: View,
    /// A record that belongs to the state after the one that waits.
    ahead: Option<LogRecord>,
    is_over: bool,
}

impl Recorded {
    /// Opens the log at `path` of these disks.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(path: &Path, bases: Vec<RecordedBase>) -> Result<Self, LogError> {
        let file = File::open(path)?;
        let reader = LogReader::open(BufReader::new(file.try_clone()?))?;
        let logged = reader.disks();
        if logged.len() != bases.len() {
            let what = format!("it has {} disks, and {} were given", logged.len(), bases.len());
            return Err(LogError::AnotherBase { what });
        }
        for (number, (logged, base)) in (1..).zip(logged.iter().zip(&bases)) {
            let size = base.source.size();
            if logged.size != size {
                let what = format!("disk {number} has {} bytes in it, and {size} now", logged.size);
                return Err(LogError::AnotherBase { what });
            }
            if logged.identity != base.identity {
                let what = format!("disk {number} is another, or was changed since");
                return Err(LogError::AnotherBase { what });
            }
        }
        Ok(Self {
            queue: Queue::new(Duration::MAX),
            view: View::new(bases.len()),
            reader,
            store: Arc::new(Store::of_log(file)),
            bases: bases.into_iter().map(|base| base.source).collect(),
            ahead: None,
            is_over: false,
        })
    }

    /// How the log ends, when all states have been read.
    pub fn end(&self) -> Option<LogEnd> {
        self.reader.end()
    }

    /// How many bytes of the log have been read, and how many it has.
    pub fn position(&self) -> (u64, u64) {
        self.reader.position()
    }

    /// Adds a record to the present state.
    fn add(&mut self, record: LogRecord) -> Result<(), LogError> {
        let LogRecord { kind, is_fua, disk, time, range, data } = record;
        let place = match kind {
            Kind::Write => Place::in_log(data),
            Kind::Zero | Kind::Trim => Place::ZERO,
            Kind::Flush => {
                self.queue.flush(time);
                return Ok(());
            }
            Kind::State | Kind::End | Kind::CutShort => {
                self.queue.end_present();
                return Ok(());
            }
        };
        if self.queue.records() > MOST_PIECES {
            self.queue.compact();
            if self.queue.records() > MOST_PIECES {
                return Err(LogError::TooManyPieces);
            }
        }
        // The reader has checked that there is such a disk.
        self.queue.push(Record { disk: disk.saturating_sub(1), range, place }, time);
        if is_fua {
            self.queue.flush(time);
        }
        Ok(())
    }

    fn read_state(&mut self) -> Result<Option<State>, LogError> {
        // A flush may follow a state that has ended.
        while !self.queue.is_last_flushed() {
            let Some(record) =
                self.ahead.take().map_or_else(|| self.reader.next_record(), |r| Ok(Some(r)))?
            else {
                self.queue.end_present();
                break;
            };
            if record.kind.is_change() && self.queue.waiting() > 0 {
                self.ahead = Some(record);
                break;
            }
            self.add(record)?;
        }
        let Some(pending) = self.queue.pop() else { return Ok(None) };
        let lease = Arc::new(Lease);
        let (state, _) = self.view.advance(pending, self.bases.clone(), None, &self.store, &lease);
        self.queue.take_unneeded();
        if self.view.count() > MOST_PIECES {
            return Err(LogError::TooManyPieces);
        }
        Ok(Some(state))
    }
}

impl Iterator for Recorded {
    type Item = Result<State, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let outcome = self.read_state();
        self.is_over = !matches!(outcome, Ok(Some(_)));
        outcome.transpose()
    }
}
