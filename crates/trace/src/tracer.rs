//! The thread that writes the log.

use super::event::TraceEvent;
use super::live::Live;
use super::output::LogOutput;
use super::queue::Queue;
use super::summary::Summary;
use rustix::process::{getpriority_process, setpriority_process};
use std::io;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use virt_bmap_map::Map;

/// The running log of a trace.
pub struct Tracer {
    queue: Arc<Queue>,
    log_error: Arc<OnceLock<io::Error>>,
    thread: JoinHandle<(u64, Summary)>,
}

/// The outcome of a trace.
#[derive(Debug)]
pub struct Outcome {
    /// Number of requests.
    pub requests: u64,
    /// Summary of the requests that were not dropped.
    pub summary: Summary,
    /// Number of them that are not in the log because the queue was full.
    pub dropped: u64,
    /// The error that ended the log early, if there was one.
    pub log_error: Option<io::Error>,
}

impl Outcome {
    /// Whether every request is in the log.
    pub fn is_whole(&self) -> bool {
        self.dropped == 0 && self.log_error.is_none()
    }
}

/// Lowers the priority of this thread below those that answer requests, in case there are too few
/// processors. It still gets a fourth of one, which is enough for a client at full speed.
fn give_way() {
    const NICENESS: i32 = 5;
    let thread = Some(rustix::thread::gettid());
    // A failure does no harm.
    let _ = getpriority_process(thread).and_then(|nice| setpriority_process(thread, nice + NICENESS));
}

impl Tracer {
    /// Starts to write the events of `queue` to `output`, with the objects of `map`, and to add
    /// them to `live`.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        queue: Arc<Queue>,
        map: Arc<Map>,
        mut output: Box<dyn LogOutput>,
        live: Option<Arc<Live>>,
    ) -> io::Result<Self> {
        let log_error = Arc::new(OnceLock::new());
        let thread = std::thread::Builder::new().name("trace".into()).spawn({
            let (queue, log_error) = (queue.clone(), log_error.clone());
            move || {
                give_way();
                let mut requests = 0;
                let mut summary = Summary::default();
                let (mut events, mut ranges) = (Vec::<TraceEvent>::new(), Vec::new());
                while queue.take(&mut events) {
                    for events in events.chunk_by(|a, b| a.disk == b.disk) {
                        ranges.clear();
                        ranges.extend(events.iter().map(|event| event.range));
                        map.over_each(events[0].disk, &ranges, |place, hits| {
                            let event = &events[place];
                            requests += 1;
                            summary.add(event, hits);
                            if let Some(live) = &live {
                                live.add(requests, event, hits);
                            }
                            // A failed log does not stop the guest.
                            if log_error.get().is_none()
                                && let Err(error) = output.request(requests, event, hits)
                            {
                                let _ = log_error.set(error);
                            }
                        });
                    }
                    if log_error.get().is_none()
                        && !events.is_empty()
                        && let Err(error) = output.flush()
                    {
                        let _ = log_error.set(error);
                    }
                }
                if log_error.get().is_none()
                    && let Err(error) = output.finish()
                {
                    let _ = log_error.set(error);
                }
                (requests, summary)
            }
        })?;
        Ok(Self { queue, log_error, thread })
    }

    /// The error that ended the log, if there was one.
    pub fn log_error(&self) -> Option<&io::Error> {
        self.log_error.get()
    }

    /// Number of requests so far that were not logged because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.queue.dropped()
    }

    /// Writes the remaining events. Call it when the server has stopped.
    pub fn finish(self) -> Outcome {
        let Self { queue, log_error, thread } = self;
        queue.close();
        let panicked = || io::Error::other("internal error: the log's thread panicked");
        let ((requests, summary), panic) =
            thread.join().map_or_else(|_| (Default::default(), Some(panicked())), |seen| (seen, None));
        let dropped = queue.dropped();
        let log_error = Arc::into_inner(log_error).and_then(OnceLock::into_inner).or(panic);
        Outcome { requests: requests + dropped, summary, dropped, log_error }
    }
}
