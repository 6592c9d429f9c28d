//! Where the time goes: how long the agent spent with what. Said at the end, for whoever asks with `--verbose`.
//!
//! The clock is the appliance's. Where it is emulated on a busy machine that clock has been seen to run several
//! times too fast, so the shares count, not the seconds.

use std::fmt;
use std::time::{Duration, Instant};

/// What the agent can be busy with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// All else.
    Rest,
    /// Opening directories.
    Open,
    /// Reading the names in directories, and saying whose reads these are.
    List,
    /// Opening files, and asking for their attributes and extents.
    LookUp,
    /// Reading files, and saying whose reads these are.
    Read,
}

const NAMES: [&str; 5] = ["rest", "open directories", "list directories", "look up files", "read files"];

/// A stopwatch with a hand for each phase.
pub(crate) struct Phases {
    spent: [Duration; NAMES.len()],
    current: Phase,
    since: Instant,
}

impl Phases {
    pub(crate) fn new() -> Self {
        Self { spent: [Duration::ZERO; NAMES.len()], current: Phase::Rest, since: Instant::now() }
    }

    /// From now on it is this; returns what it was.
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
