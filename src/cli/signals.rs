//! SIGINT, SIGTERM and SIGHUP end a run in good order; a second one ends it at once.

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use virt_bmap::mapper::Cancel;

/// The first signal that came.
#[derive(Clone, Default)]
pub(super) struct Interruption {
    signal: Arc<AtomicI32>,
}

impl Interruption {
    /// Has the signals cancel a run from now on.
    pub(super) fn watch(cancel: Cancel) -> Result<Self> {
        let interruption = Self::default();
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot catch signals")?;
        let first = interruption.signal.clone();
        std::thread::spawn(move || {
            for signal in signals.forever() {
                if first.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_err() {
                    // Children follow: qemu-nbd by its parent-death signal, qemu by libguestfs's recovery
                    // process.
                    std::process::exit(128 + signal);
                }
                cancel.cancel();
            }
        });
        Ok(interruption)
    }

    /// The signal; SIGINT if none came.
    pub(super) fn signal(&self) -> i32 {
        match self.signal.load(Ordering::SeqCst) {
            0 => SIGINT,
            signal => signal,
        }
    }
}
