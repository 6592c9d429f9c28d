//! The lines of a list, and what can be wrong with one.

use std::io::{BufRead, Read as _};
use thiserror::Error;

use super::{Entries, ListError, RangeListOptions};
use virt_bmap_ranges::{BadNumber, Printable};

/// Longest line that is read, in bytes. Only nbdkit's names of exports make long ones.
const MAX_LINE: u64 = 64 * 1024;

/// What is wrong with one entry of a list.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LineProblem {
    /// The line is longer than any that a program writes.
    #[error("the line is longer than {MAX_LINE} bytes")]
    TooLongLine,
    /// Something else was expected.
    #[error("`{found}` where {expected} should be")]
    Unexpected {
        /// What stands there, printable.
        found: String,
        /// The expected text.
        expected: &'static str,
    },
    /// A number is not valid.
    #[error(transparent)]
    Number(#[from] BadNumber),
    /// The range ends past what 64 bits can count.
    #[error("{length} bytes from {start} end past what 64 bits can count")]
    TooLong {
        /// First byte.
        start: u64,
        /// Number of bytes.
        length: u64,
    },
    /// The list ends where it should not.
    #[error("the list ends in the middle; it is not whole")]
    CutOff,
    /// The log is of several devices.
    #[error("the log has errors of {first} and of {other}; choose one with --device")]
    OtherDevice {
        /// The device above.
        first: String,
        /// The device here.
        other: String,
    },
    /// The range begins before the end of the one above it.
    #[error(
        "the range begins at {start}, before the end of the one above it at {end}; the list is damaged, or two were mixed"
    )]
    Descending {
        /// First byte.
        start: u64,
        /// Where the one above it ends.
        end: u64,
    },
}

/// The device that a log of several is about.
pub(super) struct OneDevice<'o> {
    wanted: Option<&'o str>,
    first: Option<Vec<u8>>,
}

impl<'o> OneDevice<'o> {
    /// The one that the options name, or else the only one of the log.
    pub(super) fn of(options: &'o RangeListOptions) -> Self {
        Self { wanted: options.device.as_deref(), first: None }
    }

    /// Whether entries of the device `name` count.
    pub(super) fn is(&mut self, name: &[u8]) -> Result<bool, LineProblem> {
        if let Some(wanted) = self.wanted {
            return Ok(wanted.as_bytes() == name);
        }
        match self.first.get_or_insert_with(|| name.to_vec()) {
            first if *first == name => Ok(true),
            first => Err(LineProblem::OtherDevice { first: short(first), other: short(name) }),
        }
    }
}

impl LineProblem {
    /// `found` stands where `expected` should.
    pub(super) fn unexpected(found: &[u8], expected: &'static str) -> Self {
        Self::Unexpected { found: short(found), expected }
    }
}

/// The beginning of what stands there, safe for a terminal.
pub(super) fn short(found: &[u8]) -> String {
    Printable(&found[..found.len().min(40)]).to_string()
}

/// Calls `visit` with each line that is not blank, without its `#` comment.
pub(super) fn for_each(
    input: &mut dyn BufRead,
    entries: &mut Entries,
    mut visit: impl FnMut(&[u8], &mut Entries) -> Result<(), LineProblem>,
) -> Result<(), ListError> {
    for_each_whole(input, entries, |line, entries| match without_comment(line) {
        b"" => Ok(()),
        text => visit(text, entries),
    })
}

/// Calls `visit` with each line as it is, for lists in which `#` begins no comment.
pub(super) fn for_each_whole(
    input: &mut dyn BufRead,
    entries: &mut Entries,
    mut visit: impl FnMut(&[u8], &mut Entries) -> Result<(), LineProblem>,
) -> Result<(), ListError> {
    let mut buffer = Vec::new();
    for line in 1.. {
        buffer.clear();
        let length = (&mut *input).take(MAX_LINE + 1).read_until(b'\n', &mut buffer)?;
        let error = |problem| ListError::Line { line, problem };
        if length == 0 {
            break;
        }
        if length as u64 > MAX_LINE {
            return Err(error(LineProblem::TooLongLine));
        }
        visit(&buffer, entries).map_err(error)?;
    }
    Ok(())
}

/// The line up to a `#`, without the space around it.
pub(super) fn without_comment(line: &[u8]) -> &[u8] {
    let end = memchr::memchr(b'#', line).unwrap_or(line.len());
    line[..end].trim_ascii()
}

/// The words of a line.
pub(super) fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}
