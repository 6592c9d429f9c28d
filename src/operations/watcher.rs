//! Finds the operations of a running guest, on a thread of its own.

use super::{Ended, Finder, Latest, Missing, States};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use virt_bmap_history::History;

/// Interval of the checks whether there is another state.
const TICK: Duration = Duration::from_millis(10);

/// When to look for operations.
#[derive(Debug)]
pub struct WatcherOptions {
    /// At most so often. What was written meanwhile is looked at together. `None`: look at every
    /// state.
    pub every: Option<Duration>,
    /// Look when this is set; it is then cleared.
    pub look_now: Arc<AtomicBool>,
}

/// Finds the operations of a guest, on its own thread. Call [`finish`](Self::finish) at the end.
#[derive(Debug)]
pub struct Watcher {
    is_ending: Arc<AtomicBool>,
    is_abandoned: Arc<AtomicBool>,
    left: Arc<AtomicU64>,
    latest: Latest,
    thread: JoinHandle<Ended>,
}

impl Watcher {
    /// Begins to watch the writes to the disks of `history`.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(history: Arc<History>, finder: Finder, options: WatcherOptions) -> io::Result<Self> {
        let is_ending = Arc::new(AtomicBool::new(false));
        let is_abandoned = Arc::new(AtomicBool::new(false));
        let left = Arc::new(AtomicU64::new(0));
        let latest = finder.latest();
        let mut work = Work { history, finder, options, looked: Instant::now() };
        let thread = std::thread::Builder::new().name("operations".into()).spawn({
            let (is_ending, is_abandoned) = (is_ending.clone(), is_abandoned.clone());
            let left = left.clone();
            move || {
                work.begin();
                loop {
                    // After the guest's last write.
                    let is_last = is_ending.load(Ordering::SeqCst);
                    let is_wanted = work.options.look_now.swap(false, Ordering::SeqCst) || is_last;
                    if is_wanted {
                        work.history.end_state();
                    }
                    let waiting = work.history.waiting();
                    left.store(waiting as u64, Ordering::SeqCst);
                    if is_abandoned.load(Ordering::SeqCst) {
                        break work.abandon(waiting);
                    }
                    match work.next(is_wanted) {
                        Some(states) => work.look(states),
                        None if is_last => break work.finish(),
                        None => std::thread::sleep(TICK),
                    }
                }
            }
        })?;
        Ok(Self { is_ending, is_abandoned, left, latest, thread })
    }

    /// Requests a last look and the end. Call it after the guest's last write.
    pub fn end(&self) {
        self.is_ending.store(true, Ordering::SeqCst);
    }

    /// Requests the end, whatever has not been looked at. A look that is under way has to be
    /// cancelled.
    pub fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::SeqCst);
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
        let panicked = || Ended { missing: vec![Missing::Panicked], ..Ended::default() };
        self.thread.join().unwrap_or_else(|_| panicked())
    }
}

/// The work of the thread.
struct Work {
    history: Arc<History>,
    finder: Finder,
    options: WatcherOptions,
    looked: Instant,
}

impl Work {
    /// Maps the disks before the first write.
    fn begin(&mut self) {
        if let Err(error) = self.finder.begin(&self.history.beginning()) {
            self.finder.note_missing(Missing::Beginning { error: error.to_string() });
        }
    }

    /// The states to look at next; `None` if it is not time, and a look is not wanted at once.
    fn next(&self, is_wanted: bool) -> Option<States> {
        let next = || self.history.next().map(States::from);
        let Some(every) = self.options.every else { return next() };
        if !is_wanted && self.looked.elapsed() < every {
            return None;
        }
        let mut states = next()?;
        while let Some(next) = next() {
            states.add(next);
        }
        Some(states)
    }

    fn look(&mut self, states: States) {
        let outcome = self.finder.look(states);
        self.note(outcome);
        self.looked = Instant::now();
    }

    /// Ends without the states that wait.
    fn abandon(mut self, waiting: usize) -> Ended {
        if waiting > 0 {
            self.finder.note_missing(Missing::Unseen { states: waiting });
        }
        self.finder.into_result()
    }

    fn finish(mut self) -> Ended {
        let outcome = self.finder.end();
        self.note(outcome);
        self.finder.into_result()
    }

    /// The guest goes on if the operations cannot be written.
    fn note(&mut self, outcome: io::Result<()>) {
        if let Err(error) = outcome {
            self.finder.note_missing(Missing::Unwritten { error: error.to_string() });
        }
    }
}

#[cfg(test)]
mod tests;
