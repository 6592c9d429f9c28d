//! Looks at the states of the disks, one after the other, and writes the operations found.

use super::output::text_line;
use super::{Action, Operation, OperationsFormat, Span, Written, compare};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use virt_bmap_history::{History, State};
use virt_bmap_image::Source;
use virt_bmap_map::hardlinks::disk_ranges;
use virt_bmap_map::{Cause, Header, Hit, Kind, Map, MapBuilder, Marks, Warning};
use virt_bmap_ranges::{DiskNumber, DiskOffset, DiskRange, RangeSet};

/// Interval of the checks whether there is another state.
const TICK: Duration = Duration::from_millis(10);

/// Maps one state of the disks. The caller supplies it, and the means to cancel it.
pub type MapState = Box<dyn FnMut(&StateToMap<'_>) -> Result<Look, LookError> + Send>;

/// Why a state could not be mapped.
pub type LookError = Box<dyn std::error::Error + Send + Sync>;

/// The maps of filesystems, by device.
pub type Maps = BTreeMap<Vec<u8>, Arc<Map>>;

/// A state of the disks that is to be mapped.
pub struct StateToMap<'a> {
    /// The disks, in order.
    pub disks: &'a [Arc<dyn Source>],
    /// For each disk, what may differ from the state that was mapped before.
    pub written: &'a [RangeSet<DiskOffset>],
    /// The maps of that state.
    pub maps: &'a Maps,
}

/// The map of a state.
#[derive(Debug)]
pub struct Look {
    /// The map of the filesystems that may have changed; its warnings list what is missing.
    pub map: Map,
    /// For each disk, the ranges that its filesystems wrote to the private layer when they were
    /// mounted, for example by replaying a journal.
    pub replayed: Vec<RangeSet<DiskOffset>>,
}

/// When to look for operations, and how to write them.
#[derive(Debug)]
pub struct WatcherOptions {
    /// At most so often. What was written meanwhile is looked at together. `None`: look at every
    /// state.
    pub every: Option<Duration>,
    /// Look when this is set; it is then cleared.
    pub look_now: Arc<AtomicBool>,
    /// The output format.
    pub format: OperationsFormat,
}

/// Finds the operations of a guest, on its own thread. Call [`finish`](Self::finish) at the end.
#[derive(Debug)]
pub struct Watcher {
    is_ending: Arc<AtomicBool>,
    left: Arc<AtomicU64>,
    latest: Latest,
    thread: JoinHandle<Ended>,
}

/// The result of a [`Watcher`].
#[derive(Debug, Default)]
pub struct Ended {
    /// Number of operations of each kind.
    pub counts: BTreeMap<Action, u64>,
    /// Number of states of the disks.
    pub states: u64,
    /// Number of times that the disks were mapped after the beginning.
    pub looks: u64,
    /// Time that these took.
    pub looking: Duration,
    /// What could not be determined, as printable messages; empty if the result is complete.
    pub missing: Vec<String>,
}

/// The latest operations, as lines of [`OperationsFormat::Text`].
#[derive(Clone, Debug, Default)]
pub struct Latest(Arc<Mutex<VecDeque<Vec<u8>>>>);

/// Most lines that are kept.
const MOST_LATEST: usize = 100;

impl Latest {
    fn push(&self, line: Vec<u8>) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.truncate(MOST_LATEST - 1);
        lines.push_front(line);
    }

    /// The latest lines, at most `count`, the latest first. Names are escaped.
    pub fn lines(&self, count: usize) -> Vec<Vec<u8>> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().take(count).cloned().collect()
    }
}

/// Maximum number of messages kept in [`Ended::missing`].
const MOST_MISSING: usize = 100;

impl Watcher {
    /// Begins to watch the writes to the disks of `history`; `map` maps them.
    ///
    /// # Errors
    /// If the thread cannot be started, or the output cannot be written.
    pub fn start(
        history: Arc<History>,
        mut output: Box<dyn Write + Send>,
        map: MapState,
        options: WatcherOptions,
    ) -> io::Result<Self> {
        options.format.begin(&mut *output)?;
        let is_ending = Arc::new(AtomicBool::new(false));
        let left = Arc::new(AtomicU64::new(0));
        let latest = Latest::default();
        let mut work = Work {
            maps: Maps::new(),
            before: Before::default(),
            output,
            map,
            options,
            latest: latest.clone(),
            looked: Instant::now(),
            ended: Ended::default(),
        };
        let thread = std::thread::Builder::new().name("operations".into()).spawn({
            let (is_ending, left) = (is_ending.clone(), left.clone());
            move || {
                work.begin(&history);
                loop {
                    // After the guest's last write.
                    let is_last = is_ending.load(Ordering::SeqCst);
                    if work.options.look_now.swap(false, Ordering::SeqCst) || is_last {
                        history.end_state();
                    }
                    left.store(history.waiting() as u64, Ordering::SeqCst);
                    match work.next(&history, is_last) {
                        Some(states) => work.look(&states),
                        None if is_last => break work.end(),
                        None => std::thread::sleep(TICK),
                    }
                }
                work.ended
            }
        })?;
        Ok(Self { is_ending, left, latest, thread })
    }

    /// Requests a last look and the end. Call it after the guest's last write.
    pub fn end(&self) {
        self.is_ending.store(true, Ordering::SeqCst);
    }

    /// Number of states that have not been looked at.
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::SeqCst)
    }

    /// The latest operations.
    pub fn latest(&self) -> Latest {
        self.latest.clone()
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends it, waits for the end, and returns the result.
    pub fn finish(self) -> Ended {
        self.end();
        let panicked = || Ended {
            missing: vec!["internal error: the thread for operations panicked".into()],
            ..Ended::default()
        };
        self.thread.join().unwrap_or_else(|_| panicked())
    }
}

/// States that are looked at together.
struct States {
    disks: Vec<Arc<dyn Source>>,
    written: Vec<RangeSet<DiskOffset>>,
    span: Span,
}

impl States {
    fn of(state: State) -> Self {
        let State { from, to, is_flushed, together, .. } = state;
        let span = Span { from, to, is_flushed, states: together };
        Self { disks: state.disks(), span, written: state.written }
    }

    /// Adds the state that comes next.
    fn add(&mut self, next: Self) {
        let (span, states) = (next.span, self.span.states + next.span.states);
        self.span = Span { from: self.span.from, states, ..span };
        self.disks = next.disks;
        join(&mut self.written, &next.written);
    }
}

/// Adds ranges of each disk.
fn join(ranges: &mut Vec<RangeSet<DiskOffset>>, more: &[RangeSet<DiskOffset>]) {
    ranges.resize_with(ranges.len().max(more.len()), RangeSet::new);
    for (ranges, more) in ranges.iter_mut().zip(more) {
        ranges.extend(more.iter());
    }
}

/// Whether a range holds data of a file, and writing it changes nothing else.
fn is_plain_data(hit: &Hit<'_>) -> bool {
    let is_certain = !hit.object.attributes().marks.intersects(Marks::INEXACT | Marks::UNVERIFIED);
    hit.object.kind() == Kind::File && is_certain && hit.role.flags.is_empty()
}

/// What was written and was not told. `told`: the places of the objects of operations, and whether the
/// operation came earlier than the present writes, of which it is no part then.
fn still_held(
    told: &[((DiskNumber, DiskRange), bool)],
    mut written: Vec<RangeSet<DiskOffset>>,
    present: &[RangeSet<DiskOffset>],
) -> Vec<RangeSet<DiskOffset>> {
    for &((disk, range), is_earlier) in told {
        let Some(disk) = usize::from(disk).checked_sub(1) else { continue };
        let Some(written) = written.get_mut(disk) else { continue };
        written.remove(range);
        let present = present.get(disk).filter(|_| is_earlier);
        written.extend(present.into_iter().flat_map(|present| present.overlap(range)));
    }
    for ranges in &mut written {
        if ranges.range_count() > MOST_HELD {
            *ranges = RangeSet::new();
        }
    }
    written
}

/// What is due from before the present state.
#[derive(Default)]
struct Before {
    /// Written in states that could not be mapped.
    unseen: Vec<RangeSet<DiskOffset>>,
    /// Written, and not yet part of an operation.
    held: Vec<RangeSet<DiskOffset>>,
    /// When that was written last.
    span: Option<Span>,
    /// Files, by device and inode, of which data was told before their inode has changed.
    untimed: HashSet<(Vec<u8>, u64)>,
    /// Written by mounting in the state that was mapped last.
    replayed: Vec<RangeSet<DiskOffset>>,
}

impl Before {
    /// Whether an operation is only the new time of an inode whose data was told before. The inode is
    /// often written long after the data (`fdatasync(2)`).
    fn explains(&mut self, operation: &Operation<'_>) -> bool {
        let attributes = operation.after.or(operation.before).unwrap_or_default();
        let Some(inode) = attributes.inode else { return false };
        let key = (operation.name.device.to_vec(), inode);
        if operation.is_earlier {
            if self.untimed.len() == MOST_UNTIMED {
                self.untimed.clear();
            }
            self.untimed.insert(key);
            return false;
        }
        let is_modified =
            operation.before.map(|before| before.modified) != operation.after.map(|after| after.modified);
        is_modified && self.untimed.remove(&key) && operation.action == Action::Touch
    }
}

/// Most files of which data was told without a change of the inode.
const MOST_UNTIMED: usize = 1 << 16;

/// Most ranges that are held of a disk. The journal and other metadata are among them, which never
/// become part of an operation.
const MOST_HELD: usize = 1 << 16;

struct Work {
    /// The state that was mapped last.
    maps: Maps,
    before: Before,
    output: Box<dyn Write + Send>,
    map: MapState,
    options: WatcherOptions,
    latest: Latest,
    looked: Instant,
    ended: Ended,
}

impl Work {
    /// Maps the disks before the first write.
    fn begin(&mut self, history: &History) {
        let disks = history.beginning();
        let everything: Vec<RangeSet<DiskOffset>> = vec![RangeSet::new(); disks.len()];
        let state = StateToMap { disks: &disks, written: &everything, maps: &self.maps };
        match (self.map)(&state) {
            Ok(Look { map, replayed }) => {
                self.note_warnings(&map, |_, _| true);
                self.keep(&Arc::new(map));
                self.before.replayed = replayed;
            }
            Err(error) => self.note_missing(format!(
                "the first ones, because the disks could not be mapped before the guest began: {error}"
            )),
        }
    }

    /// The states to look at next; `None` if it is not time.
    fn next(&self, history: &History, is_last: bool) -> Option<States> {
        let Some(every) = self.options.every else { return history.next().map(States::of) };
        if !is_last && self.looked.elapsed() < every {
            return None;
        }
        let mut states = history.next().map(States::of)?;
        while let Some(next) = history.next() {
            states.add(States::of(next));
        }
        Some(states)
    }

    /// Maps the disks in their last state, and writes the operations.
    fn look(&mut self, states: &States) {
        let began = Instant::now();
        self.ended.states += states.span.states;
        if let Err(error) = self.try_look(states) {
            join(&mut self.before.unseen, &states.written);
            self.note_missing(format!(
                "those up to {:.1} s, because the disks could not be mapped: {error}",
                states.span.to.as_secs_f64()
            ));
        }
        self.looked = Instant::now();
        self.ended.looking += began.elapsed();
    }

    fn try_look(&mut self, states: &States) -> Result<(), LookError> {
        if self.before.unseen.is_empty()
            && let Some(maps) = self.maps_of_data(&states.written)
        {
            let same = maps.iter().map(|(device, map)| (device.as_slice(), map, map));
            return Ok(self.tell(same.collect(), states, Vec::new())?);
        }
        let mut written = states.written.clone();
        join(&mut written, &self.before.unseen);
        join(&mut written, &self.before.replayed);
        let look = (self.map)(&StateToMap { disks: &states.disks, written: &written, maps: &self.maps })?;
        self.ended.looks += 1;
        let Look { map, replayed } = look;
        // A partition is there before the filesystem that is made in it.
        self.note_warnings(&map, |maps, warning| {
            let is_known = warning.device().is_some_and(|device| maps.contains_key(device));
            is_known || warning.cause != Cause::UnknownContent
        });
        let map = Arc::new(map);
        let before = std::mem::take(&mut self.maps);
        self.keep(&map);
        let nothing = Arc::new(MapBuilder::new(Header::default()).build());
        let each = map.header().filesystems.iter().map(|filesystem| {
            let device = filesystem.device.as_slice();
            (device, before.get(device).unwrap_or(&nothing), &map)
        });
        let result = self.tell(each.collect(), states, replayed.clone());
        for (device, map) in before {
            self.maps.entry(device).or_insert(map);
        }
        self.before.unseen.clear();
        self.before.replayed = replayed;
        Ok(result?)
    }

    /// The maps of the filesystems of which data was written, if nothing else was: then the state has
    /// the same maps as the one before.
    fn maps_of_data(&self, written: &[RangeSet<DiskOffset>]) -> Option<Maps> {
        let mut maps = Maps::new();
        for (disk, range) in (1..).zip(written).flat_map(|(disk, set)| set.iter().map(move |it| (disk, it))) {
            let mut left = RangeSet::from_iter([range]);
            for (device, map) in &self.maps {
                let hits = map
                    .over(disk, range)
                    .filter(|hit| is_plain_data(hit) && hit.object.name().device == device);
                for hit in hits {
                    left.remove(hit.range);
                    maps.entry(device.clone()).or_insert_with(|| map.clone());
                }
            }
            if !left.is_empty() {
                return None;
            }
        }
        Some(maps)
    }

    /// Writes the operations between maps of a device before and after.
    fn tell(
        &mut self,
        maps: Vec<(&[u8], &Arc<Map>, &Arc<Map>)>,
        states: &States,
        replayed: Vec<RangeSet<DiskOffset>>,
    ) -> io::Result<()> {
        let held = std::mem::take(&mut self.before.held);
        let mut seen = states.written.clone();
        join(&mut seen, &self.before.unseen);
        join(&mut seen, &held);
        let written = Written { seen, held, replayed };
        let mut operations = Vec::new();
        let mut told = Vec::new();
        for (device, old, new) in &maps {
            let mut found = compare(old, new, device, &written);
            found.retain(|operation| !self.before.explains(operation));
            for operation in &found {
                let places = new.find(operation.name).into_iter().flat_map(disk_ranges);
                told.extend(places.map(|place| (place, operation.is_earlier)));
            }
            operations.extend(found);
        }
        operations.sort_by_key(|operation| !operation.is_earlier);
        for operation in &operations {
            *self.ended.counts.entry(operation.action).or_default() += 1;
            self.latest.push(text_line(operation));
        }
        let earlier = operations.partition_point(|operation| operation.is_earlier);
        let (earlier, present) = operations.split_at(earlier);
        let format = self.options.format;
        let span = self.before.span.unwrap_or(states.span);
        let result = format
            .write(&mut *self.output, span, earlier)
            .and_then(|()| format.write(&mut *self.output, states.span, present));
        self.before.held = still_held(&told, written.seen, &states.written);
        self.before.span = Some(states.span);
        result
    }

    /// Writes what was held, since no further state follows.
    fn end(&mut self) {
        let Some(span) = self.before.span else { return };
        let maps = std::mem::take(&mut self.maps);
        let same = maps.iter().map(|(device, map)| (device.as_slice(), map, map)).collect();
        let states = States { disks: Vec::new(), written: Vec::new(), span };
        if let Err(error) = self.tell(same, &states, Vec::new()) {
            self.note_missing(format!("the last ones, because they cannot be written: {error}"));
        }
    }

    /// Keeps the map of filesystems that were looked at.
    fn keep(&mut self, map: &Arc<Map>) {
        for filesystem in &map.header().filesystems {
            self.maps.insert(filesystem.device.clone(), map.clone());
        }
    }

    /// Notes what could not be examined, as far as it matters.
    fn note_warnings(&mut self, map: &Map, matters: impl Fn(&Maps, &Warning) -> bool) {
        for warning in map.header().warnings.iter().filter(|warning| warning.is_incomplete()) {
            if matters(&self.maps, warning) {
                self.note_missing(warning.to_string());
            }
        }
    }

    fn note_missing(&mut self, reason: String) {
        tracing::debug!("{reason}");
        if self.ended.missing.len() < MOST_MISSING && !self.ended.missing.contains(&reason) {
            self.ended.missing.push(reason);
        }
    }
}

#[cfg(test)]
mod tests;
