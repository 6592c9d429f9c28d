//! The time that the agent spent in each phase. It is printed at the end, for `--verbose`.
//!
//! The clock is that of the appliance. Under emulation on a busy machine it has run several times
//! too fast, so only the shares are meaningful, not the seconds.

use std::fmt;
use std::time::{Duration, Instant};

/// The phases.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Everything else.
    Rest,
    /// Opening directories.
    Open,
    /// Listing directories, and setting the tags for that.
    List,
    /// Opening files, and getting their attributes and extents.
    LookUp,
    /// Reading files, and setting the tags for that.
    Read,
}

const NAMES: [&str; 5] = ["rest", "open directories", "list directories", "look up files", "read files"];

/// A stopwatch for each phase.
pub(crate) struct Phases {
    spent: [Duration; NAMES.len()],
    current: Phase,
    since: Instant,
}

impl Phases {
    pub(crate) fn new() -> Self {
        Self { spent: [Duration::ZERO; NAMES.len()], current: Phase::Rest, since: Instant::now() }
    }

    /// Begins a phase; returns the previous one.
    pub(crate) fn enter(&mut self, phase: Phase) -> Phase {
        let now = Instant::now();
        self.spent[self.current as usize] += now - self.since;
        self.since = now;
        std::mem::replace(&mut self.current, phase)
    }
}

impl fmt::Display for Phases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (name, spent)) in NAMES.iter().zip(&self.spent).enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{name} {:.2} s", spent.as_secs_f64())?;
        }
        Ok(())
    }
}
