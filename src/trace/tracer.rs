//! The thread that writes the log.

use super::output::Output;
use super::queue::Queue;
use crate::bmap::Map;
use std::io;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

/// A trace that is being written.
pub struct Tracer {
    queue: Arc<Queue>,
    trouble: Arc<OnceLock<io::Error>>,
    thread: JoinHandle<Counts>,
}

/// What the thread has seen.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    requests: u64,
    failed: u64,
}

/// How a trace has ended.
#[derive(Debug)]
pub struct Outcome {
    /// How many requests were seen.
    pub requests: u64,
    /// How many of those in the log have failed.
    pub failed: u64,
    /// How many of them are not in the log, as they came faster than it could be written.
    pub dropped: u64,
    /// Why the log ends before its time, if it does.
    pub trouble: Option<io::Error>,
}

impl Outcome {
    /// Whether every request is in the log.
    pub fn is_whole(&self) -> bool {
        self.dropped == 0 && self.trouble.is_none()
    }
}

impl Tracer {
    /// Begins to write the events of `queue`, with the objects of `map`.
    ///
    /// # Errors
    /// There is no thread for it.
    pub fn start(queue: Arc<Queue>, map: Arc<Map>, mut output: Box<dyn Output>) -> io::Result<Self> {
        let trouble = Arc::new(OnceLock::new());
        let thread = std::thread::Builder::new().name("trace".into()).spawn({
            let (queue, trouble) = (queue.clone(), trouble.clone());
            move || {
                let mut counts = Counts::default();
                let mut events = Vec::new();
                while queue.take(&mut events) {
                    for event in &events {
                        counts.requests += 1;
                        counts.failed += u64::from(event.failed);
                        let hits = map.over(event.disk, event.range).most_specific_first();
                        // A log that cannot be written does not keep the guest from running.
                        if trouble.get().is_none()
                            && let Err(error) = output.request(counts.requests, event, &hits)
                        {
                            let _ = trouble.set(error);
                        }
                    }
                    if trouble.get().is_none()
                        && !events.is_empty()
                        && let Err(error) = output.flush()
                    {
                        let _ = trouble.set(error);
                    }
                }
                counts
            }
        })?;
        Ok(Self { queue, trouble, thread })
    }

    /// Why the log has ended already, if it has.
    pub fn trouble(&self) -> Option<&io::Error> {
        self.trouble.get()
    }

    /// Writes what is still on its way. To be called when the server has stopped.
    pub fn finish(self) -> Outcome {
        let Self { queue, trouble, thread } = self;
        queue.close();
        let panicked = || io::Error::other("internal error: the log's thread panicked");
        let (Counts { requests, failed }, panic) =
            thread.join().map_or_else(|_| (Counts::default(), Some(panicked())), |counts| (counts, None));
        let dropped = queue.dropped();
        let trouble = Arc::into_inner(trouble).and_then(OnceLock::into_inner).or(panic);
        Outcome { requests: requests + dropped, failed, dropped, trouble }
    }
}
