//! Decides when to freeze and map the disks, and writes the operations found.

use super::{Action, OperationsFormat, Span, Written, compare};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use virt_bmap_image::{Freezable, Source, freeze};
use virt_bmap_map::{Map, Warning};
use virt_bmap_ranges::{DiskOffset, RangeSet};

/// A guest that flushed its writes and then wrote nothing for this time has finished an action.
const QUIET: Duration = Duration::from_secs(1);

/// Interval of the checks whether it is time to look.
const TICK: Duration = Duration::from_millis(50);

/// Maps frozen disks, given in their order. The caller supplies it, and the means to cancel it.
pub type MapDisks = Box<dyn FnMut(&[Arc<dyn Source>]) -> Result<MappedDisks, MapDisksError> + Send>;

/// Why disks could not be mapped.
pub type MapDisksError = Box<dyn std::error::Error + Send + Sync>;

/// The result of [`MapDisks`].
#[derive(Debug)]
pub struct MappedDisks {
    /// The map; its warnings list what is missing.
    pub map: Map,
    /// For each disk, the ranges that its filesystems wrote to the private layer when they were
    /// mounted, for example by replaying a journal.
    pub replayed: Vec<RangeSet<DiskOffset>>,
}

/// When to look for operations, and how to write them.
#[derive(Debug)]
pub struct WatcherOptions {
    /// Look after this time if anything was written, however busy the guest is.
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
    thread: JoinHandle<Ended>,
}

/// The result of a [`Watcher`].
#[derive(Debug, Default)]
pub struct Ended {
    /// Number of operations of each kind.
    pub counts: BTreeMap<Action, u64>,
    /// Number of times that the disks were mapped.
    pub looks: u64,
    /// What could not be determined, as printable messages; empty if the result is complete.
    pub missing: Vec<String>,
}

/// Maximum number of messages kept in [`Ended::missing`].
const MOST_MISSING: usize = 100;

impl Watcher {
    /// Begins to watch the writes to `disks`, whose present state `before` describes; `map` maps
    /// them again.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(
        disks: Vec<Arc<Freezable>>,
        before: Map,
        output: Box<dyn Write + Send>,
        map: MapDisks,
        options: WatcherOptions,
    ) -> io::Result<Self> {
        let is_ending = Arc::new(AtomicBool::new(false));
        let began = Instant::now();
        let mut work = Work {
            seen: vec![RangeSet::new(); disks.len()],
            disks,
            before,
            output,
            map,
            options,
            began,
            from: Duration::ZERO,
            looked: began,
            ended: Ended::default(),
        };
        let thread = std::thread::Builder::new().name("operations".into()).spawn({
            let is_ending = is_ending.clone();
            move || {
                // The last look happens after the guest's last write.
                while !is_ending.load(Ordering::SeqCst) {
                    if work.is_time() {
                        work.look();
                    }
                    std::thread::sleep(TICK);
                }
                work.look();
                work.ended
            }
        })?;
        Ok(Self { is_ending, thread })
    }

    /// Requests a last look and the end. Call it after the guest's last write.
    pub fn end(&self) {
        self.is_ending.store(true, Ordering::SeqCst);
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

struct Work {
    disks: Vec<Arc<Freezable>>,
    /// Their previous map.
    before: Map,
    /// The ranges written since then.
    seen: Vec<RangeSet<DiskOffset>>,
    output: Box<dyn Write + Send>,
    map: MapDisks,
    options: WatcherOptions,
    began: Instant,
    from: Duration,
    looked: Instant,
    ended: Ended,
}

impl Work {
    fn is_time(&self) -> bool {
        let is_wanted = self.options.look_now.swap(false, Ordering::SeqCst);
        let mut writes = self.disks.iter().filter_map(|disk| disk.last_write()).peekable();
        if writes.peek().is_none() {
            return false;
        }
        let is_due = self.options.every.is_some_and(|every| self.looked.elapsed() >= every);
        is_wanted || is_due || writes.all(|(last, is_flushed)| is_flushed && last.elapsed() >= QUIET)
    }

    /// Freezes the disks, maps them, and writes the operations.
    fn look(&mut self) {
        let is_written = self.disks.iter().any(|disk| disk.last_write().is_some());
        if !is_written && self.seen.iter().all(RangeSet::is_empty) {
            return;
        }
        if let Err(error) = self.try_look() {
            self.note_missing(format!(
                "those up to {:.1} s, because the disks could not be mapped: {error}",
                self.began.elapsed().as_secs_f64()
            ));
        }
        self.looked = Instant::now();
    }

    fn try_look(&mut self) -> Result<(), MapDisksError> {
        let frozen = freeze(&self.disks, &std::env::temp_dir())?;
        let to = self.began.elapsed();
        let mut sources: Vec<Arc<dyn Source>> = Vec::new();
        for ((disk, activity), seen) in frozen.into_iter().zip(&mut self.seen) {
            seen.extend(activity.written.iter());
            sources.push(disk);
        }
        let mapped = (self.map)(&sources)?;
        drop(sources);
        let seen = std::mem::replace(&mut self.seen, vec![RangeSet::new(); self.disks.len()]);
        let written = Written { seen, replayed: mapped.replayed };
        let operations = compare(&self.before, &mapped.map, &written);
        for operation in &operations {
            *self.ended.counts.entry(operation.action).or_default() += 1;
        }
        self.ended.looks += 1;
        let result = self.options.format.write(&mut *self.output, Span { from: self.from, to }, &operations);
        let warnings = mapped.map.header().warnings.clone();
        self.before = mapped.map;
        self.from = to;
        for warning in warnings.into_iter().filter(Warning::is_incomplete) {
            self.note_missing(warning.to_string());
        }
        Ok(result?)
    }

    fn note_missing(&mut self, reason: String) {
        tracing::debug!("{reason}");
        if self.ended.missing.len() < MOST_MISSING && !self.ended.missing.contains(&reason) {
            self.ended.missing.push(reason);
        }
    }
}
