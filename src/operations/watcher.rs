//! When the disks are frozen, and what is made of it.

use super::{Form, Span, What, Written, compare};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use virt_bmap_image::{Freezable, Source, freeze};
use virt_bmap_map::{Map, Warning};
use virt_bmap_ranges::{DiskOffset, RangeSet};

/// A guest that has asked for its writes to be made durable, and then writes nothing for so long, has done something.
const QUIET: Duration = Duration::from_secs(1);

/// How often it is looked whether it is time.
const TICK: Duration = Duration::from_millis(50);

/// Maps frozen disks, which are given in their order. It comes from outside, as does the way to end it early.
pub type MapDisks = Box<dyn FnMut(&[Arc<dyn Source>]) -> Result<MappedDisks, MapDisksError> + Send>;

/// Why disks could not be mapped.
pub type MapDisksError = Box<dyn std::error::Error + Send + Sync>;

/// What [`MapDisks`] has found.
#[derive(Debug)]
pub struct MappedDisks {
    /// The map, whose warnings say what is missing from it.
    pub map: Map,
    /// Of each disk, what its filesystems have written as they were mounted, to a private layer: a replayed
    /// journal, for instance.
    pub replayed: Vec<RangeSet<DiskOffset>>,
}

/// When to look for operations, and how to write them down.
#[derive(Debug)]
pub struct WatcherOptions {
    /// Look so often if anything was written, however busy the guest is.
    pub every: Option<Duration>,
    /// Look when this is set, which is unset then.
    pub now: Arc<AtomicBool>,
    /// How operations are written down.
    pub form: Form,
}

/// Finds out what a guest does to its files, on a thread of its own. To be [finished](Self::finish).
#[derive(Debug)]
pub struct Watcher {
    is_ending: Arc<AtomicBool>,
    thread: JoinHandle<Ended>,
}

/// How it has ended.
#[derive(Debug, Default)]
pub struct Ended {
    /// How many operations were found, of each kind.
    pub counts: BTreeMap<What, u64>,
    /// How often the disks were looked at.
    pub spans: u64,
    /// What could not be found out, in sentences fit for a terminal; empty if all was.
    pub missing: Vec<String>,
}

/// Most sentences of what is missing that are kept.
const MOST_MISSING: usize = 100;

impl Watcher {
    /// Begins to watch what is written to `disks`. They are now as `before` says, and `map` maps them again.
    ///
    /// # Errors
    /// There is no thread for it.
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
                // The last look comes when the guest can write no more.
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

    /// Has it look a last time, when nothing is written any more, and end.
    pub fn end(&self) {
        self.is_ending.store(true, Ordering::SeqCst);
    }

    /// Whether it has done so.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends it, waits for that, and tells how it went.
    pub fn finish(self) -> Ended {
        self.end();
        let panicked =
            || Ended { missing: vec!["internal error: a thread panicked".into()], ..Ended::default() };
        self.thread.join().unwrap_or_else(|_| panicked())
    }
}

struct Work {
    disks: Vec<Arc<Freezable>>,
    /// What is known of them.
    before: Map,
    /// What was written since.
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
        let is_wanted = self.options.now.swap(false, Ordering::SeqCst);
        let mut writes = self.disks.iter().filter_map(|disk| disk.last_write()).peekable();
        if writes.peek().is_none() {
            return false;
        }
        let is_due = self.options.every.is_some_and(|every| self.looked.elapsed() >= every);
        is_wanted || is_due || writes.all(|(last, is_flushed)| is_flushed && last.elapsed() >= QUIET)
    }

    /// Freezes the disks, maps them, and writes down what was done to the files.
    fn look(&mut self) {
        let is_written = self.disks.iter().any(|disk| disk.last_write().is_some());
        if !is_written && self.seen.iter().all(RangeSet::is_empty) {
            return;
        }
        if let Err(error) = self.try_look() {
            self.note_missing(format!(
                "what was done until {:.1} s: {error}",
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
            *self.ended.counts.entry(operation.what).or_default() += 1;
        }
        self.ended.spans += 1;
        let result = self.options.form.write(&mut *self.output, Span { from: self.from, to }, &operations);
        let warnings = mapped.map.header().warnings.clone();
        self.before = mapped.map;
        self.from = to;
        for warning in warnings.into_iter().filter(Warning::is_incomplete) {
            self.note_missing(warning.to_string());
        }
        Ok(result?)
    }

    fn note_missing(&mut self, what: String) {
        tracing::debug!("{what}");
        if self.ended.missing.len() < MOST_MISSING && !self.ended.missing.contains(&what) {
            self.ended.missing.push(what);
        }
    }
}
