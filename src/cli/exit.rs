//! Exit statuses, as documented in the help and the man page.

use std::process::ExitCode;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The command did all that it was asked to do.
    Success,
    /// An error.
    Failed,
    /// A usage error.
    Usage,
    /// A map was written, but something could not be examined. `trace` and `operations`:
    /// requests or operations are missing from the output.
    Incomplete,
    /// `damaged`: files are damaged. `diff --exit-code`: the maps differ. `changed --exit-code`:
    /// files changed. `verify`: the disk is another.
    Found,
    /// `damaged`: no file is damaged, but directories or metadata are.
    FoundOutsideFiles,
    /// `trace`: the status of the command that was run.
    Command(u8),
    /// A signal ended the run or its command.
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
            Exit::FoundOutsideFiles => 5,
            Exit::Command(status) => status,
            // The convention of shells: 130 for SIGINT.
            Exit::Signal(signal) => 128 + (signal & 0x7f) as u8,
        })
    }
}
