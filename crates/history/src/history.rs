//! The history of a running guest: takes turns, limits, and states.

use super::disk::Disk;
use super::format::{Kind, MOST_DISKS, MOST_IDENTITY, RecordHeader, encode_header};
use super::originals::{Original, Originals};
use super::pieces::{DataRun, MOST_PIECES, Pieces, Place};
use super::queue::{Queue, Record};
use super::state::{Lease, State, View};
use super::store::{self, Appender, Run, Store};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, TryLockError, Weak};
use std::time::{Duration, Instant};
use virt_bmap_image::{Source, Writable};
use virt_bmap_ranges::DiskRange;

/// Options of a [`History`].
#[derive(Clone, Debug)]
pub struct HistoryOptions {
    /// Most bytes of data that are kept, and most bytes of the recorded log. See
    /// [Limits](crate#limits).
    pub limit: u64,
    /// Keeps the history in a file.
    pub record: Option<Recording>,
    /// A state ends when nothing was written for this time.
    pub quiet: Duration,
}

impl HistoryOptions {
    /// The usual time after which a state ends.
    pub const QUIET: Duration = Duration::from_millis(50);
}

impl Default for HistoryOptions {
    /// No limit but the sizes of files, and nothing is recorded.
    fn default() -> Self {
        Self { limit: u64::MAX, record: None, quiet: Self::QUIET }
    }
}

/// Where a history is recorded.
#[derive(Clone, Debug)]
pub struct Recording {
    /// The file, which must not exist. It is made readable for its owner only.
    pub path: PathBuf,
    /// For each disk, bytes by which its base is known again, at most 1 MiB. If there are fewer,
    /// the others are empty.
    pub identities: Vec<Vec<u8>>,
}

/// The disks of a guest before its first write, and where its writes go.
#[derive(Clone)]
pub enum Bases {
    /// To the history alone. The bases must not change.
    Private(Vec<Arc<dyn Source>>),
    /// To the history, and to these disks.
    Through(Vec<Arc<dyn Writable>>),
}

impl Bases {
    fn sources(&self) -> Vec<&dyn Source> {
        match self {
            Self::Private(disks) => disks.iter().map(|disk| &**disk).collect(),
            Self::Through(disks) => disks.iter().map(|disk| &**disk as &dyn Source).collect(),
        }
    }
}

/// All that a guest writes to its disks, and the states of these disks. See the [crate].
pub struct History {
    pub(crate) bases: Bases,
    pub(crate) store: Arc<Store>,
    /// The guest's view of each disk.
    guests: Vec<Guest>,
    began: Instant,
    limit: u64,
    /// How often space was freed.
    freed: AtomicU64,
    turn: Mutex<Turn>,
    /// Locked before `turn`.
    taken: Mutex<Taken>,
}

/// What the guest has written to a disk.
#[derive(Default)]
struct Guest {
    pieces: RwLock<Pieces>,
    /// Whether anything was ever written. Until then a read costs one atomic load more than a read
    /// of the base.
    is_touched: AtomicBool,
}

/// What a writer needs. One writer at a time has it.
pub(crate) struct Turn {
    pub(crate) appender: Appender,
    pub(crate) queue: Queue,
    /// Bytes in the unnamed file that are needed by the guest, by states that wait, or by the state
    /// that was taken last.
    kept: u64,
    /// Space is looked for when more are kept.
    most_kept: u64,
    /// Places that only states in use need: the states with this lease, and earlier ones.
    leased: VecDeque<(Weak<Lease>, Vec<DataRun>)>,
    /// Number of pieces that the guest's disks are in.
    pieces: usize,
    /// The bytes that were replaced on the disks that the guest writes through to.
    pub(crate) originals: Arc<Originals>,
    /// How many states had ended when these began.
    ended_before: u64,
}

/// The state that was taken last.
struct Taken {
    view: View,
    lease: Weak<Lease>,
    /// Those that the view belongs to.
    originals: Arc<Originals>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl History {
    /// Begins the history of these disks.
    ///
    /// # Errors
    /// The files cannot be made; the log exists; there are more than 1024 disks.
    pub fn start(bases: Bases, options: HistoryOptions) -> io::Result<Arc<Self>> {
        let HistoryOptions { limit, record, quiet } = options;
        let sources = bases.sources();
        let disks = sources.len();
        if disks > MOST_DISKS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let spill = tempfile::tempfile_in(std::env::temp_dir())?;
        let (log, header) = match record {
            None => (None, Vec::new()),
            Some(Recording { path, mut identities }) => {
                identities.resize(disks, Vec::new());
                if identities.iter().any(|identity| identity.len() > MOST_IDENTITY) {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                let sizes = sources.iter().map(|source| source.size());
                let each = sizes.zip(identities.iter().map(Vec::as_slice)).collect::<Vec<_>>();
                let header = encode_header(each.into_iter());
                // It holds the guest's data.
                let log = File::options().read(true).write(true).create_new(true).mode(0o600).open(path)?;
                (Some(log), header)
            }
        };
        let (store, appender) = Appender::new(log, &header, limit, spill)?;
        let originals = Originals::new(disks);
        let taken = Taken { view: View::new(disks), lease: Weak::new(), originals: originals.clone() };
        let turn = Turn {
            appender,
            queue: Queue::new(quiet),
            kept: 0,
            most_kept: limit,
            leased: VecDeque::new(),
            pieces: 0,
            originals,
            ended_before: 0,
        };
        Ok(Arc::new(Self {
            guests: sources.iter().map(|_| Guest::default()).collect(),
            bases,
            store,
            began: Instant::now(),
            limit,
            freed: AtomicU64::new(0),
            turn: Mutex::new(turn),
            taken: Mutex::new(taken),
        }))
    }

    /// The disks, for the guest.
    pub fn disks(self: &Arc<Self>) -> Vec<Arc<Disk>> {
        (0..self.guests.len()).map(|disk| Arc::new(Disk::new(self.clone(), disk))).collect()
    }

    /// Time since the history began: the clock of its states.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Ends the present state, if anything was written in it.
    pub fn end_state(&self) {
        let mut turn = lock(&self.turn);
        let now = self.now();
        turn.appender.record(&RecordHeader::mark(Kind::State, 0, now), &[]);
        turn.queue.end_present();
    }

    /// Number of states that have ended and were not taken.
    pub fn waiting(&self) -> usize {
        let mut turn = lock(&self.turn);
        turn.settle(self.now());
        turn.queue.waiting()
    }

    /// Number of states so far that were joined with the next one to save space. See
    /// [`State::together`].
    pub fn merged(&self) -> u64 {
        lock(&self.turn).queue.merged()
    }

    /// Whether the recorded log ends early, because it has reached its limit or could not be
    /// written. The history itself goes on.
    pub fn is_cut_short(&self) -> bool {
        lock(&self.turn).appender.is_cut_short()
    }

    /// Bytes of data that the unnamed file holds for the guest and for states that may be taken.
    pub fn kept(&self) -> u64 {
        lock(&self.turn).kept
    }

    /// Takes the next state; `None` if none has ended since the last one.
    pub fn next(&self) -> Option<State> {
        let mut taken = lock(&self.taken);
        let (pending, originals) = {
            let mut turn = lock(&self.turn);
            turn.settle(self.now());
            (turn.queue.pop()?, turn.originals.clone())
        };
        if !Arc::ptr_eq(&taken.originals, &originals) {
            taken.view = View::new(self.guests.len());
            taken.originals = originals.clone();
        }
        let (bases, changing) = self.bases_over(&originals);
        let lease = Arc::new(Lease);
        let (state, gone) = taken.view.advance(pending, bases, changing, &self.store, &lease);
        let before = std::mem::replace(&mut taken.lease, Arc::downgrade(&lease));
        let released = {
            let mut turn = lock(&self.turn);
            if Arc::ptr_eq(&originals, &turn.originals) {
                turn.lease(before, gone);
            }
            turn.take_released()
        };
        let runs = self.freed_runs(released);
        if !runs.is_empty() {
            let rest = lock(&self.turn).appender.reuse(runs);
            self.store.give_back(rest);
        }
        Some(state)
    }

    /// The disks below all states: what the guest replaced comes from `originals`.
    pub(crate) fn bases_over<'o>(
        &self,
        originals: &'o Arc<Originals>,
    ) -> (Vec<Arc<dyn Source>>, Option<&'o Arc<Originals>>) {
        match &self.bases {
            Bases::Private(disks) => (disks.clone(), None),
            Bases::Through(disks) => {
                let original = |(disk, image): (usize, &Arc<dyn Writable>)| -> Arc<dyn Source> {
                    let (originals, store) = (originals.clone(), self.store.clone());
                    Arc::new(Original { disk, image: image.clone(), originals, store })
                };
                (disks.iter().enumerate().map(original).collect(), Some(originals))
            }
        }
    }

    /// Waits until it is the caller's turn to write.
    pub(crate) fn turn(&self) -> MutexGuard<'_, Turn> {
        lock(&self.turn)
    }

    /// Where the bytes of `range` are for the guest, if any of them was written.
    pub(crate) fn find(&self, disk: usize, range: DiskRange) -> Option<Vec<(DiskRange, Place)>> {
        if !self.guests[disk].is_touched.load(Ordering::Acquire) {
            return None;
        }
        let pieces = self.pieces(disk);
        (!pieces.is_untouched(range)).then(|| pieces.find(range))
    }

    /// How often space was freed so far. What was read from a [place](Self::find) means nothing if
    /// that has changed since before the place was found.
    pub(crate) fn freed(&self) -> u64 {
        self.freed.load(Ordering::SeqCst)
    }

    fn pieces(&self, disk: usize) -> RwLockReadGuard<'_, Pieces> {
        self.guests[disk].pieces.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change visible to the guest, and adds it to the present state.
    pub(crate) fn publish(
        &self,
        turn: &mut Turn,
        disk: usize,
        range: DiskRange,
        place: Place,
        now: Duration,
    ) {
        let guest = &self.guests[disk];
        {
            let mut pieces = guest.pieces.write().unwrap_or_else(PoisonError::into_inner);
            turn.pieces -= pieces.count();
            pieces.set(range, place, |_, _| {});
            turn.pieces += pieces.count();
        }
        guest.is_touched.store(true, Ordering::Release);
        if place.is_in_spill() {
            turn.kept += range.len();
        }
        // Disks are numbered with 16 bits.
        turn.queue.push(Record { disk: disk as u16, range, place }, now);
        self.drop_unneeded(turn);
    }

    /// Makes room for a change of `range`; `data` is whether it has data.
    ///
    /// # Errors
    /// `ENOSPC`: the guest's present bytes alone would exceed a limit.
    pub(crate) fn make_room(
        &self,
        turn: &mut Turn,
        disk: usize,
        range: DiskRange,
        data: bool,
    ) -> io::Result<()> {
        if turn.pieces >= MOST_PIECES {
            return Err(Errno::NOSPC.into());
        }
        // All that the guest has is among what is kept.
        let is_room = turn.kept.saturating_add(range.len()) <= self.limit;
        if !data || is_room || turn.appender.is_recording() {
            return Ok(());
        }
        let present: u64 = (0..self.guests.len()).map(|disk| self.pieces(disk).spilled()).sum();
        if range.len() > self.limit.saturating_sub(present)
            && self.pieces(disk).not_spilled(range) > self.limit.saturating_sub(present)
        {
            return Err(Errno::NOSPC.into());
        }
        self.look_for_room(turn, range.len(), present);
        Ok(())
    }

    /// As [`make_room`](Self::make_room), for disks whose present bytes need not be kept.
    ///
    /// # Errors
    /// The states that wait need too much.
    pub(crate) fn make_room_beside(
        &self,
        turn: &mut Turn,
        disk: usize,
        range: DiskRange,
        data: bool,
    ) -> io::Result<()> {
        let data = data && !turn.appender.is_recording();
        let length = turn.originals.missing(disk, range) + if data { range.len() } else { 0 };
        self.look_for_room(turn, length, 0);
        if length > self.limit.saturating_sub(turn.kept) || turn.pieces >= MOST_PIECES {
            return Err(Errno::NOSPC.into());
        }
        Ok(())
    }

    /// Gives up states, as few as possible, if there is no room for `length` bytes; the `present`
    /// bytes stay in any case.
    fn look_for_room(&self, turn: &mut Turn, length: u64, present: u64) {
        if turn.kept.saturating_add(length) <= turn.most_kept {
            return;
        }
        // Some room is left afterwards, so that the work is done seldom.
        let part = self.limit / 8;
        let wanted = (self.limit - part).max(present.saturating_add(part / 2));
        let is_enough = |turn: &Turn| turn.kept.saturating_add(length) <= wanted;
        turn.queue.compact();
        self.drop_unneeded(turn);
        self.forget_replaced(turn);
        while !is_enough(turn) && turn.queue.halve() {
            self.drop_unneeded(turn);
            self.forget_replaced(turn);
        }
        turn.most_kept = self.limit.saturating_add(part).min(turn.kept.saturating_add(part)).max(self.limit);
        let released = turn.take_released();
        self.free(turn, released);
    }

    /// Gives back the space of what no state that waits needs any longer. The guest does not need
    /// it either, and no state has it that was taken.
    fn drop_unneeded(&self, turn: &mut Turn) {
        let unneeded = turn.queue.take_unneeded();
        if !unneeded.is_empty() {
            turn.kept = turn.kept.saturating_sub(spilled(&unneeded));
            self.free(turn, unneeded);
        }
    }

    /// Forgets what the state that was taken last has, and the next one replaces.
    fn forget_replaced(&self, turn: &mut Turn) {
        let mut taken = match self.taken.try_lock() {
            Ok(taken) => taken,
            Err(TryLockError::Poisoned(taken)) => taken.into_inner(),
            // The next state is being taken just now.
            Err(TryLockError::WouldBlock) => return,
        };
        if Arc::ptr_eq(&taken.originals, &turn.originals) {
            let replaced = turn.queue.next_records().iter().map(|record| (record.disk, record.range));
            let gone = taken.view.forget(replaced);
            turn.lease(taken.lease.clone(), gone);
        }
    }

    /// The runs of places that nobody needs. Whoever still reads them without a lock reads again.
    fn freed_runs(&self, places: Vec<DataRun>) -> Vec<Run> {
        let runs = store::runs(places);
        if !runs.is_empty() {
            self.freed.fetch_add(1, Ordering::SeqCst);
        }
        runs
    }

    fn free(&self, turn: &mut Turn, places: Vec<DataRun>) {
        let rest = turn.appender.reuse(self.freed_runs(places));
        self.store.give_back(rest);
    }

    /// Begins anew with the present bytes of the disks that the guest writes through to: `range`
    /// was changed, and the change or what it has replaced could not be kept. All states that wait
    /// become the present one, and those that were taken can no longer be read.
    pub(crate) fn rebase(&self, turn: &mut Turn, disk: usize, range: DiskRange, now: Duration) {
        turn.originals.lose();
        turn.originals = Originals::new(self.guests.len());
        turn.queue.push(Record { disk: disk as u16, range, place: Place::BASE }, now);
        turn.queue.rebase();
        turn.leased.clear();
        turn.ended_before = turn.queue.ended();
        (turn.kept, turn.pieces, turn.most_kept) = (0, 0, self.limit);
        for guest in &self.guests {
            *guest.pieces.write().unwrap_or_else(PoisonError::into_inner) = Pieces::default();
        }
        turn.appender.free_all();
    }
}

impl Drop for History {
    fn drop(&mut self) {
        let now = self.now();
        let turn = self.turn.get_mut().unwrap_or_else(PoisonError::into_inner);
        turn.appender.finish(now);
    }
}

impl Turn {
    /// Ends the present state if nothing was written for some time.
    pub(crate) fn settle(&mut self, now: Duration) {
        if self.queue.settle(now) {
            self.appender.record(&RecordHeader::mark(Kind::State, 0, now), &[]);
        }
    }

    /// Notes that only states with this lease, and earlier ones, need these places.
    fn lease(&mut self, lease: Weak<Lease>, mut places: Vec<DataRun>) {
        places.retain(|(place, _)| place.is_in_spill());
        self.kept = self.kept.saturating_sub(spilled(&places));
        self.leased.push_back((lease, places));
    }

    /// The places that no state in use needs any longer.
    fn take_released(&mut self) -> Vec<DataRun> {
        let mut released = Vec::new();
        while let Some((lease, _)) = self.leased.front()
            && lease.strong_count() == 0
        {
            released.extend(self.leased.pop_front().into_iter().flat_map(|(_, places)| places));
        }
        released
    }

    /// Whether any state has ended since the replaced bytes are kept.
    pub(crate) fn has_states(&self) -> bool {
        self.queue.ended() > self.ended_before
    }

    /// Adds what was kept of the disks' bytes.
    pub(crate) fn add_kept(&mut self, bytes: u64) {
        self.kept += bytes;
    }
}

/// How many of these bytes are in the unnamed file.
fn spilled(places: &[DataRun]) -> u64 {
    places.iter().filter(|(place, _)| place.is_in_spill()).map(|(_, length)| length).sum()
}
