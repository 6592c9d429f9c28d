//! SIGINT, SIGTERM, SIGHUP and SIGQUIT end a run in an orderly way, which takes a second or two. If
//! that takes longer than [`PATIENCE`], another signal ends the program at once. SIGHUP stays
//! ignored if it was ignored from the start, as under nohup(1).

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use virt_bmap::hangup;
use virt_bmap::mapper::Cancel;

/// Time for an orderly end; after it, another signal ends the program at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// The signals received so far.
#[derive(Clone, Default)]
pub(super) struct Interruption {
    /// The first one; 0 if there was none.
    signal: Arc<AtomicI32>,
    /// How many were received.
    count: Arc<AtomicU32>,
    /// Whether nothing is running that needs an orderly end.
    idle: Arc<AtomicBool>,
}

impl Interruption {
    /// Catches the signals from now on; each sets `cancel`.
    pub(super) fn watch(cancel: Cancel) -> Result<Self> {
        let interruption = Self::default();
        let hangup = Some(SIGHUP).filter(|_| !hangup::is_ignored());
        let caught = [SIGINT, SIGTERM, SIGQUIT].into_iter().chain(hangup);
        let mut signals = Signals::new(caught).context("cannot install the signal handlers")?;
        let Self { signal: first, count, idle } = interruption.clone();
        std::thread::spawn(move || {
            let mut first_at = None;
            for signal in signals.forever() {
                let is_late = first_at.get_or_insert_with(Instant::now).elapsed() > PATIENCE;
                if is_late || idle.load(Ordering::SeqCst) {
                    super::terminal::restore();
                    // The children end too: qemu-nbd by its parent-death signal, qemu by
                    // libguestfs's recovery process.
                    std::process::exit(128 + signal);
                }
                // The first signal decides the exit status.
                let _ = first.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
                count.fetch_add(1, Ordering::SeqCst);
                cancel.cancel();
            }
        });
        Ok(interruption)
    }

    /// Declares whether nothing is running, so that a signal may end the program at once.
    pub(super) fn set_idle(&self, idle: bool) {
        self.idle.store(idle, Ordering::SeqCst);
    }

    /// The number of signals received so far.
    pub(super) fn count(&self) -> u32 {
        self.count.load(Ordering::SeqCst)
    }

    /// The first signal; SIGINT if there was none.
    pub(super) fn signal(&self) -> i32 {
        match self.signal.load(Ordering::SeqCst) {
            0 => SIGINT,
            signal => signal,
        }
    }
}
