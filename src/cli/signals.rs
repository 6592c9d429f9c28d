//! SIGINT, SIGTERM, SIGHUP and SIGQUIT end a run in good order, which takes a second or two. Who has waited for
//! longer and sends another one ends it at once. nohup(1) has SIGHUP ignored, and that it stays.

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use virt_bmap::hangup;
use virt_bmap::mapper::Cancel;

/// How long an orderly end may take before a further signal ends the program at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// The first signal that came.
#[derive(Clone, Default)]
pub(super) struct Interruption {
    signal: Arc<AtomicI32>,
    /// How many came.
    count: Arc<AtomicU32>,
    /// Nothing is under way that has to be ended in good order.
    at_rest: Arc<AtomicBool>,
}

impl Interruption {
    /// Has the signals cancel a run from now on.
    pub(super) fn watch(cancel: Cancel) -> Result<Self> {
        let interruption = Self::default();
        let hangup = Some(SIGHUP).filter(|_| !hangup::is_ignored());
        let caught = [SIGINT, SIGTERM, SIGQUIT].into_iter().chain(hangup);
        let mut signals = Signals::new(caught).context("cannot catch signals")?;
        let Self { signal: first, count, at_rest } = interruption.clone();
        std::thread::spawn(move || {
            let mut began = None;
            for signal in signals.forever() {
                let is_late = began.get_or_insert_with(Instant::now).elapsed() > PATIENCE;
                if is_late || at_rest.load(Ordering::SeqCst) {
                    super::terminal::give_back();
                    // Children follow: qemu-nbd by its parent-death signal, qemu by libguestfs's recovery
                    // process.
                    std::process::exit(128 + signal);
                }
                // Only the first one counts for the exit status.
                let _ = first.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
                count.fetch_add(1, Ordering::SeqCst);
                cancel.cancel();
            }
        });
        Ok(interruption)
    }

    /// Says whether nothing is under way, so that a signal may end the program at once.
    pub(super) fn set_at_rest(&self, at_rest: bool) {
        self.at_rest.store(at_rest, Ordering::SeqCst);
    }

    /// How many signals have come.
    pub(super) fn count(&self) -> u32 {
        self.count.load(Ordering::SeqCst)
    }

    /// The signal; SIGINT if none came.
    pub(super) fn signal(&self) -> i32 {
        match self.signal.load(Ordering::SeqCst) {
            0 => SIGINT,
            signal => signal,
        }
    }
}
