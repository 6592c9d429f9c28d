//! Why operations may be missing from the list.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use virt_bmap_map::Warning;
use virt_bmap_ranges::Printable;

/// Why operations may be missing. An `error` is the text of the error that caused it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The first operations: the disks could not be mapped before the guest began.
    Beginning {
        /// Why.
        error: String,
    },
    /// The states of the disks up to a time or a name could not be mapped.
    Unmapped {
        /// The end of the last of them.
        end: String,
        /// Why.
        error: String,
    },
    /// Something was not examined when a state was mapped.
    Unexamined(Warning),
    /// The run ended before the last states were looked at.
    Unseen {
        /// How many.
        states: usize,
    },
    /// The thread that finds operations panicked.
    Panicked,
    /// The list could not be written.
    Unwritten {
        /// Why.
        error: String,
    },
    /// Two states of a series could not be compared.
    Uncompared {
        /// The name of the earlier one.
        from: Arc<[u8]>,
        /// The name of the later one.
        to: Arc<[u8]>,
        /// Why.
        error: String,
    },
    /// The recorded history reached its limit, or could not be written any more.
    HistoryCutShort {
        /// Its file.
        log: PathBuf,
    },
    /// The recorded history has no end.
    HistoryBrokenOff {
        /// Its file.
        log: PathBuf,
    },
    /// The recorded history cannot be read to its end.
    HistoryUnread {
        /// Its file.
        log: PathBuf,
        /// Why.
        error: String,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Beginning { error } => write!(
                f,
                "the first ones, because the disks could not be mapped before the guest began: {error}"
            ),
            Self::Unmapped { end, error } => {
                write!(f, "those up to {end}, because the disks could not be mapped: {error}")
            }
            Self::Unexamined(warning) => warning.fmt(f),
            Self::Unseen { states } => {
                write!(f, "those of the last {states} states, which nobody looked at")
            }
            Self::Panicked => f.write_str("internal error: the thread for operations panicked"),
            Self::Unwritten { error } => write!(f, "some cannot be written: {error}"),
            Self::Uncompared { from, to, error } => {
                write!(f, "{} and {} cannot be compared: {error}", Printable(from), Printable(to))
            }
            Self::HistoryCutShort { log } => write!(
                f,
                "{} was cut short, because it had reached its limit or could not be written",
                Printable::path(log)
            ),
            Self::HistoryBrokenOff { log } => {
                write!(f, "{} has no end: the trace was killed, or still runs", Printable::path(log))
            }
            Self::HistoryUnread { log, error } => write!(f, "{}: {error}", Printable::path(log)),
        }
    }
}
