//! A state of a guest's disks.

use super::originals::Originals;
use super::pieces::{DataRun, Origin, Pieces, Place};
use super::queue::Pending;
use super::store::Store;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use virt_bmap_image::{Allocation, Source};
use virt_bmap_ranges::{DiskOffset, DiskRange, RangeSet};

/// The disks of a guest as they were at one moment, and what was written since the state before.
///
/// The disks can be read as long as they are in use, whatever is written or taken meanwhile.
pub struct State {
    /// Its number, from 1, in the order in which states ended.
    pub number: u64,
    /// When the first write since the state before was made, since the history began.
    pub from: Duration,
    /// When the flush came that ended it; if there was none, when the last write was made.
    pub to: Duration,
    /// Whether a flush, or a change with FUA, made it durable.
    pub is_flushed: bool,
    /// How many states it stands for: the others before it were given up to save space.
    pub together: u64,
    /// For each disk, what was written, zeroed or trimmed since the state before.
    pub written: Vec<RangeSet<DiskOffset>>,
    disks: Vec<Arc<dyn Source>>,
}

impl State {
    /// The disks.
    pub fn disks(&self) -> Vec<Arc<dyn Source>> {
        self.disks.clone()
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("number", &self.number)
            .field("from", &self.from)
            .field("to", &self.to)
            .field("is_flushed", &self.is_flushed)
            .field("together", &self.together)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

/// Held by the disks of a state as long as they are in use.
#[derive(Debug)]
pub(crate) struct Lease;

/// The places of all bytes in a state.
#[derive(Debug)]
pub(crate) struct View {
    disks: Vec<Arc<Pieces>>,
}

impl View {
    /// The state before the first write.
    pub(crate) fn new(disks: usize) -> Self {
        Self { disks: vec![Arc::default(); disks] }
    }

    /// Number of all pieces.
    pub(crate) fn count(&self) -> usize {
        self.disks.iter().map(|disk| disk.count()).sum()
    }

    /// Forgets the places of these bytes, which are all replaced in the next state. Returns those
    /// of data.
    pub(crate) fn forget(&mut self, replaced: impl Iterator<Item = (u16, DiskRange)>) -> Vec<DataRun> {
        let mut gone = Vec::new();
        for (disk, range) in replaced {
            let disk = &mut self.disks[usize::from(disk)];
            if !disk.is_untouched(range) {
                Arc::make_mut(disk).clear(range, |place, length| gone.push((place, length)));
            }
        }
        gone
    }

    /// Goes on to the next state, `pending`. Returns its disks, over these bases, and the places of
    /// data that it no longer has.
    pub(crate) fn advance(
        &mut self,
        pending: Pending,
        bases: Vec<Arc<dyn Source>>,
        originals: Option<&Arc<Originals>>,
        store: &Arc<Store>,
        lease: &Arc<Lease>,
    ) -> (State, Vec<DataRun>) {
        let mut written = vec![RangeSet::new(); self.disks.len()];
        let mut gone = Vec::new();
        for record in pending.records {
            let disk = usize::from(record.disk);
            written[disk].insert(record.range);
            Arc::make_mut(&mut self.disks[disk])
                .set(record.range, record.place, |place, length| gone.push((place, length)));
        }
        let disks = self.disks.iter().zip(bases).map(|(pieces, base)| -> Arc<dyn Source> {
            Arc::new(StateDisk {
                base,
                pieces: pieces.clone(),
                originals: originals.cloned(),
                store: store.clone(),
                _lease: lease.clone(),
            })
        });
        let disks = disks.collect();
        let Pending { number, from, to, is_flushed, together, .. } = pending;
        (State { number, from, to, is_flushed, together, written, disks }, gone)
    }
}

/// A disk in a state.
struct StateDisk {
    base: Arc<dyn Source>,
    pieces: Arc<Pieces>,
    /// Where the base changes.
    originals: Option<Arc<Originals>>,
    store: Arc<Store>,
    _lease: Arc<Lease>,
}

impl StateDisk {
    /// The outcome of a read, unless the state was lost meanwhile.
    fn checked<T>(&self, outcome: io::Result<T>) -> io::Result<T> {
        if let Some(originals) = &self.originals {
            originals.check()?;
        }
        outcome
    }
}

impl Source for StateDisk {
    fn size(&self) -> u64 {
        self.base.size()
    }

    fn try_read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<bool> {
        let range = DiskRange::at(offset, buf.len() as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        let found = self.pieces.find(range);
        self.checked(read_pieces(buf, &found, &self.store, |part, at| self.base.try_read_at(part, at)))
    }

    fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<()> {
        let range = DiskRange::at(offset, buf.len() as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        let found = self.pieces.find(range);
        let read = |part: &mut [u8], at| self.base.read_at(part, at).map(|()| true);
        self.checked(read_pieces(buf, &found, &self.store, read)).map(|_| ())
    }

    fn allocation(&self, range: DiskRange) -> io::Result<Vec<Allocation>> {
        self.checked(allocation(&self.pieces.find(range), |part| self.base.allocation(part)))
    }
}

/// Fills `buf` from these pieces, which begin where it does and are as long. `read_base` and the
/// result are as in [`Source::try_read_at`].
pub(crate) fn read_pieces(
    buf: &mut [u8],
    pieces: &[(DiskRange, Place)],
    store: &Store,
    read_base: impl Fn(&mut [u8], DiskOffset) -> io::Result<bool>,
) -> io::Result<bool> {
    let mut rest = buf;
    for &(range, place) in pieces {
        // The pieces came from splitting the range of `buf`, so each length fits in memory.
        let (part, after) = rest.split_at_mut(range.len() as usize);
        rest = after;
        match place.origin() {
            Origin::Zero => part.fill(0),
            Origin::Log(_) | Origin::Spill(_) => store.read(place, part)?,
            Origin::Base => {
                if !read_base(part, range.start)? {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}

/// What is known of these pieces: see [`Source::allocation`].
pub(crate) fn allocation(
    pieces: &[(DiskRange, Place)],
    of_base: impl Fn(DiskRange) -> io::Result<Vec<Allocation>>,
) -> io::Result<Vec<Allocation>> {
    let mut all = Vec::with_capacity(pieces.len());
    for &(range, place) in pieces {
        match place.origin() {
            Origin::Base => all.extend(of_base(range)?),
            Origin::Zero => all.push(Allocation { range, is_hole: true }),
            Origin::Log(_) | Origin::Spill(_) => all.push(Allocation { range, is_hole: false }),
        }
    }
    Ok(all)
}
