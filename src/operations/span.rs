//! When operations happened.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use virt_bmap_ranges::Printable;

/// When operations happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Span {
    /// In a trace. Times are counted from its start.
    Time {
        /// The time of the first write.
        from: Duration,
        /// The time of the flush, or of the last write.
        to: Duration,
        /// Whether the guest has flushed its writes.
        is_flushed: bool,
        /// How many states of the disks were looked at as one.
        states: u64,
    },
    /// Between two states of a series of images or snapshots.
    Between {
        /// The name of the earlier one.
        from: Arc<[u8]>,
        /// The name of the later one.
        to: Arc<[u8]>,
    },
}

impl Span {
    /// How many states of the disks were looked at as one.
    pub fn states(&self) -> u64 {
        match self {
            Self::Time { states, .. } => *states,
            Self::Between { .. } => 1,
        }
    }

    /// Whether the guest wanted the state at its end to last.
    pub(super) fn is_lasting(&self) -> bool {
        match self {
            Self::Time { is_flushed, .. } => *is_flushed,
            Self::Between { .. } => true,
        }
    }

    /// Goes on to the end of the span that comes next.
    pub(super) fn add(&mut self, next: Self) {
        match (self, next) {
            (
                Self::Time { to, is_flushed, states, .. },
                Self::Time { to: end, is_flushed: is_end_flushed, states: more, .. },
            ) => (*to, *is_flushed, *states) = (end, is_end_flushed, *states + more),
            (Self::Between { to, .. }, Self::Between { to: end, .. }) => *to = end,
            // A run has states of one sort.
            (this, next) => *this = next,
        }
    }

    /// When it begins, if that is a time.
    pub(super) fn begin(&self) -> Option<Duration> {
        match self {
            Self::Time { from, .. } => Some(*from),
            Self::Between { .. } => None,
        }
    }

    /// Its end, for messages.
    pub(super) fn end(&self) -> String {
        match self {
            Self::Time { to, .. } => format!("{:.1} s", to.as_secs_f64()),
            Self::Between { to, .. } => Printable(to).to_string(),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time { from, to, is_flushed, states } => {
                write!(f, "{:.3} s to {:.3} s", from.as_secs_f64(), to.as_secs_f64())?;
                if !is_flushed {
                    f.write_str(", not flushed")?;
                }
                if *states > 1 {
                    write!(f, ", {states} states together")?;
                }
                Ok(())
            }
            Self::Between { from, to } => write!(f, "{} to {}", Printable(from), Printable(to)),
        }
    }
}
