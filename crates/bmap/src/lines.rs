//! Reads the lines of a map, with a limit on their length.

use std::io::{self, BufRead as _, BufReader, Read};

/// Reads line after line.
pub(super) struct Lines<R> {
    pub(super) input: BufReader<R>,
    /// The present line, without its line feed.
    pub(super) line: Vec<u8>,
    /// Its number, from 1.
    pub(super) number: u64,
    /// Longest line, in bytes.
    limit: usize,
}

/// How a line ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With a line feed.
    LineFeed,
    /// With the file, in its middle.
    File,
    /// Not within the limit.
    Limit,
}

impl<R: Read> Lines<R> {
    pub(super) fn new(input: R, limit: usize) -> Self {
        Self { input: BufReader::with_capacity(256 * 1024, input), line: Vec::new(), number: 0, limit }
    }

    /// Reads the next line; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<End>> {
        self.line.clear();
        (&mut self.input).take(self.limit as u64 + 1).read_until(b'\n', &mut self.line)?;
        if self.line.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        Ok(Some(if self.line.pop_if(|byte| *byte == b'\n').is_some() {
            End::LineFeed
        } else if self.line.len() > self.limit {
            End::Limit
        } else {
            End::File
        }))
    }
}
