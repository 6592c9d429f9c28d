//! The formats of the log.

mod chrome;
mod csv;
mod jsonl;
mod log;
mod text;

use super::event::TraceEvent;
use std::fmt;
use std::io::{self, BufWriter, Write};
use std::str::FromStr;
use std::time::SystemTime;
use virt_bmap_map::{Hit, ImageInfo};

/// Writes requests to a log, in one of the formats.
pub trait LogOutput: Send {
    /// Writes request `number`, from 1, with the objects that it touches, the most specific first.
    ///
    /// # Errors
    /// The log cannot be written.
    fn request(&mut self, number: u64, event: &TraceEvent, hits: &[Hit<'_>]) -> io::Result<()>;

    /// Writes out all buffered requests.
    ///
    /// # Errors
    /// The log cannot be written.
    fn flush(&mut self) -> io::Result<()>;

    /// Ends the log. A log that lacks its end can be read all the same.
    ///
    /// # Errors
    /// The log cannot be written.
    fn finish(&mut self) -> io::Result<()> {
        self.flush()
    }
}

/// The format of a log. `docs/trace.md` describes each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text of the original bmaplogger.
    #[default]
    Text,
    /// A JSON object a line, one for each request.
    Jsonl,
    /// A table, one row for each object of each request.
    Csv,
    /// A line for each request, as nbdkit's log filter writes it.
    Log,
    /// Trace events of Chrome, which Perfetto shows.
    Chrome,
}

impl LogFormat {
    /// All formats.
    pub const ALL: [Self; 5] = [Self::Text, Self::Jsonl, Self::Csv, Self::Log, Self::Chrome];

    /// Its name on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
            Self::Log => "log",
            Self::Chrome => "chrome",
        }
    }

    /// A log of this format. `images` are the guest's disks; the trace begins now.
    ///
    /// # Errors
    /// The beginning of the log cannot be written.
    pub fn output(
        self,
        to: impl Write + Send + 'static,
        images: &[ImageInfo],
    ) -> io::Result<Box<dyn LogOutput>> {
        let to = BufWriter::with_capacity(1 << 16, to);
        Ok(match self {
            Self::Text => Box::new(text::Text::new(to)),
            Self::Jsonl => Box::new(jsonl::Jsonl::begin(to, images)?),
            Self::Csv => Box::new(csv::Csv::begin(to)?),
            Self::Log => Box::new(log::Log::new(to, SystemTime::now())),
            Self::Chrome => Box::new(chrome::Chrome::begin(to, images)?),
        })
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// There is no log format of this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a log is one of text, jsonl, csv, log, chrome")]
pub struct UnknownLogFormat;

impl FromStr for LogFormat {
    type Err = UnknownLogFormat;

    fn from_str(word: &str) -> Result<Self, UnknownLogFormat> {
        Self::ALL.into_iter().find(|format| format.word() == word).ok_or(UnknownLogFormat)
    }
}

/// A duration in seconds, to the microsecond.
fn seconds(time: std::time::Duration) -> String {
    format!("{}.{:06}", time.as_secs(), time.subsec_micros())
}

#[cfg(test)]
mod tests;
