//! Exit statuses, as documented in the help and the man page.

use std::process::ExitCode;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All that was asked for was done.
    Success,
    /// Failed.
    Failed,
    /// The command line makes no sense.
    Usage,
    /// A map was written, but something could not be examined. `trace`: requests are missing from the log.
    Incomplete,
    /// `damaged`: files are hit. `diff --exit-code`: the maps differ.
    Found,
    /// `damaged`: no file is hit, but directories or metadata are.
    FoundBesideFiles,
    /// `trace`: the status of the command that was run.
    Command(u8),
    /// Ended by this signal.
    Signal(i32),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Success => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Incomplete => 3,
            Exit::Found => 4,
            Exit::FoundBesideFiles => 5,
            Exit::Command(status) => status,
            // As shells say it: 130 for SIGINT.
            Exit::Signal(signal) => 128 + (signal & 0x7f) as u8,
        })
    }
}
