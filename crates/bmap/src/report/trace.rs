//! Logs of a guest's requests, for replay over the map.
//!
//! Two formats are read, and distinguished by their first character. *JSON lines*: an object for
//! each request with `time` (seconds, with a fraction), `op` (`read`, `write` or `zero`), `disk`,
//! `offset` and `length` (bytes); other fields are ignored, and so are lines with another `op`
//! (`trim`, `flush`) or none. The *classical log* of the original virt-bmap: an empty line, a line
//! with the same words and the object, and then ` START-END` in hexadecimal for each request, all
//! of disk 1. It has no times, so each request counts as one second after the one before.
//!
//! `virt-bmap-rs trace` writes both.

use serde::Deserialize;
use std::io::{self, BufRead};
use thiserror::Error;
use virt_bmap_ranges::{DiskNumber, Printable, parse_digits};

/// Most requests that a page replays; more make it slow and show little more.
pub const MAX_REQUESTS: usize = 1_000_000;

/// Longest line in bytes, except for the lists of ranges in a classical log.
const MAX_LINE: usize = 1 << 20;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// It reads.
    Read,
    /// It writes.
    #[serde(alias = "zero")]
    Write,
}

/// A request of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Request {
    /// Seconds.
    pub time: f64,
    /// What it does.
    pub op: Op,
    /// Number of the disk, from 1.
    pub disk: DiskNumber,
    /// First byte of the disk.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// The requests of a log in the order of their times.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// The requests; their times count from the first.
    pub requests: Vec<Request>,
    /// The time of the first, in seconds since the trace began.
    pub began: f64,
    /// Whether the log has times. Otherwise `time` counts requests.
    pub is_timed: bool,
    /// Whether the log had more than [`MAX_REQUESTS`]; then these are the first.
    pub is_cut: bool,
}

/// Why a log could not be read.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The log could not be read.
    #[error("the log could not be read")]
    Read(#[from] io::Error),
    /// A line is not a request.
    #[error(
        "line {line} of the log is no request: an object with time, op, disk, offset and length is wanted"
    )]
    Record {
        /// Its number, from 1.
        line: u64,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A line of a list of operations is none.
    #[error("line {line} of the list is no operation, as `trace --operations FILE.jsonl` writes them")]
    Operation {
        /// Its number, from 1.
        line: u64,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A time is not a number of seconds, or a range is not valid.
    #[error("line {line} of the log has {what}")]
    Value {
        /// Its number, from 1.
        line: u64,
        /// What it has.
        what: &'static str,
    },
    /// A line of a classical log is not valid.
    #[error(
        "line {line} of the log is neither `read OBJECT`, `write OBJECT` nor a list of ` START-END`: `{found}`"
    )]
    Line {
        /// Its number, from 1.
        line: u64,
        /// How it begins, printable.
        found: String,
    },
    /// The log has no request.
    #[error("the log has no request")]
    Empty,
}

/// Reads a log of either kind.
///
/// # Errors
/// [`TraceError`].
pub fn read(mut log: impl BufRead) -> Result<Trace, TraceError> {
    let is_json = log.fill_buf()?.first() == Some(&b'{');
    let mut requests = Vec::new();
    let is_cut = if is_json { json_lines(log, &mut requests)? } else { classical(log, &mut requests)? };
    requests.sort_by(|a, b| a.time.total_cmp(&b.time));
    let first = requests.first().ok_or(TraceError::Empty)?.time;
    requests.iter_mut().for_each(|request| request.time -= first);
    Ok(Trace { requests, began: first, is_timed: is_json, is_cut })
}

/// A line of JSON that may be a request.
#[derive(Deserialize)]
struct Kind {
    op: Option<String>,
}

/// Returns whether there are more than can be taken.
fn json_lines(mut log: impl BufRead, requests: &mut Vec<Request>) -> Result<bool, TraceError> {
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        if !next_line(&mut log, &mut text, line)? {
            break;
        }
        let record = |source| TraceError::Record { line, source };
        if text.trim_ascii().is_empty() {
            continue;
        }
        let op = serde_json::from_slice::<Kind>(&text).map_err(record)?.op;
        if matches!(op.as_deref(), None | Some("trim" | "flush")) {
            continue;
        }
        if requests.len() == MAX_REQUESTS {
            return Ok(true);
        }
        let request: Request = serde_json::from_slice(&text).map_err(record)?;
        if !request.time.is_finite() || request.time.abs() > 1e12 {
            return Err(TraceError::Value { line, what: "a time that is none" });
        }
        if request.offset.checked_add(request.length).is_none() {
            return Err(TraceError::Value { line, what: "a range that ends after 64 bits" });
        }
        if request.length > 0 {
            requests.push(request);
        }
    }
    Ok(false)
}

/// The lines of a file, each with its number, from 1.
pub(super) struct Lines<R> {
    file: R,
    text: Vec<u8>,
    line: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(file: R) -> Self {
        Self { file, text: Vec::new(), line: 0 }
    }

    /// The next one, without its end.
    pub(super) fn next(&mut self) -> Result<Option<(u64, &[u8])>, TraceError> {
        self.text.clear();
        self.line += 1;
        let is_there = next_line(&mut self.file, &mut self.text, self.line)?;
        Ok(is_there.then_some((self.line, &self.text)))
    }
}

/// Reads a line without its end into `text`; false at the end of the log.
fn next_line(log: &mut impl BufRead, text: &mut Vec<u8>, line: u64) -> Result<bool, TraceError> {
    let length = io::Read::take(&mut *log, MAX_LINE as u64 + 1).read_until(b'\n', text)?;
    if text.len() > MAX_LINE {
        return Err(TraceError::Value { line, what: "more than 1 MiB" });
    }
    if text.last() == Some(&b'\n') {
        text.pop();
    }
    Ok(length > 0)
}

/// Returns whether there are more than can be taken.
fn classical(mut log: impl BufRead, requests: &mut Vec<Request>) -> Result<bool, TraceError> {
    // The operation of the ranges; `None` after a `trim`, which is not replayed.
    let mut op: Option<Option<Op>> = None;
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        if log.fill_buf()?.first() == Some(&b' ') {
            let op = op.ok_or(TraceError::Line { line, found: "a range, and no `read` before it".into() })?;
            if ranges(&mut log, requests, op, line)? {
                return Ok(true);
            }
            continue;
        }
        if !next_line(&mut log, &mut text, line)? {
            break;
        }
        op = match &text[..] {
            b"" => op,
            text if text.starts_with(b"read ") => Some(Some(Op::Read)),
            text if text.starts_with(b"write ") || text.starts_with(b"zero ") => Some(Some(Op::Write)),
            text if text.starts_with(b"trim ") || text == b"flush" => Some(None),
            _ => return Err(not_classical(line, &text)),
        };
    }
    Ok(false)
}

/// Reads a line of ranges, which may be of any length. Returns whether there are more than can be
/// taken.
fn ranges(
    log: &mut impl BufRead,
    requests: &mut Vec<Request>,
    op: Option<Op>,
    line: u64,
) -> Result<bool, TraceError> {
    /// Two numbers of 16 digits, the hyphen, and what parts it from the next.
    const LONGEST: u64 = 34;
    let mut word = Vec::new();
    loop {
        word.clear();
        let is_last = read_word(log, &mut word, LONGEST)?;
        if !word.is_empty() {
            if requests.len() == MAX_REQUESTS {
                return Ok(true);
            }
            let (offset, length) = range(&word).ok_or_else(|| not_classical(line, &word))?;
            if let Some(op) = op {
                requests.push(Request { time: requests.len() as f64, op, disk: 1, offset, length });
            }
        }
        if is_last {
            return Ok(false);
        }
    }
}

/// Reads up to the next space or the end of the line into `word`, but not much more than `longest`.
/// Returns whether the line is at its end.
fn read_word(log: &mut impl BufRead, word: &mut Vec<u8>, longest: u64) -> io::Result<bool> {
    loop {
        let buffer = log.fill_buf()?;
        let end = memchr::memchr2(b' ', b'\n', buffer);
        let length = end.unwrap_or(buffer.len());
        word.extend_from_slice(&buffer[..length.min(longest as usize + 1)]);
        let is_last = match end {
            Some(end) => Some(buffer[end] == b'\n'),
            None => (buffer.is_empty() || word.len() as u64 > longest).then_some(true),
        };
        log.consume(end.map_or(length, |end| end + 1));
        if let Some(is_last) = is_last {
            return Ok(is_last);
        }
    }
}

/// `START-END`, as offset and length.
fn range(word: &[u8]) -> Option<(u64, u64)> {
    let hyphen = memchr::memchr(b'-', word)?;
    let (start, end) = (parse_digits(&word[..hyphen], 16)?, parse_digits(&word[hyphen + 1..], 16)?);
    (end > start).then(|| (start, end - start))
}

fn not_classical(line: u64, text: &[u8]) -> TraceError {
    let found = Printable(&text[..text.len().min(60)]).to_string();
    TraceError::Line { line, found }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn told(log: &str) -> String {
        match read(log.as_bytes()) {
            Ok(trace) => trace
                .requests
                .iter()
                .map(|r| format!("{} {:?} {}:{}+{};", r.time, r.op, r.disk, r.offset, r.length))
                .collect(),
            Err(error) => virt_bmap_ranges::error_chain(&error),
        }
    }

    #[test]
    fn json_lines_are_read_in_the_order_of_time() {
        let log = r#"{"version":1,"guest":"x"}
{"time":12.5,"op":"write","disk":2,"offset":4096,"length":512,"path":"/a"}

{"time":12.25,"op":"read","disk":1,"offset":0,"length":1024}
{"time":13,"op":"read","disk":1,"offset":7,"length":0}
"#;
        assert_eq!(told(log), "0 Read 1:0+1024;0.25 Write 2:4096+512;");
    }

    #[test]
    fn the_classical_log_is_read() {
        let log = "\nread f /dev/sda1 /grub2/x\n 1000-2000 2000-3000\nwrite p /dev/sda1\n 0-200";
        assert_eq!(told(log), "0 Read 1:4096+4096;1 Read 1:8192+4096;2 Write 1:0+512;");
    }

    #[test]
    fn a_very_long_line_of_ranges_is_read() {
        let mut log = "\nread f /dev/sda1 /x\n".to_owned();
        for number in 0..200_000 {
            log.push_str(&format!(" {:x}-{:x}", number * 4096, number * 4096 + 512));
        }
        let trace = read(io::BufReader::with_capacity(7, log.as_bytes())).unwrap();
        assert_eq!(trace.requests.len(), 200_000);
        assert_eq!(trace.requests[199_999].offset, 199_999 * 4096);
    }

    #[test]
    fn invalid_logs_are_refused() {
        for (log, word) in [
            ("", "no request"),
            ("{\"version\":1}\n", "no request"),
            ("{\"op\":\"read\"}\n", "line 1"),
            ("{\"op\":\"copy\",\"time\":0,\"disk\":1,\"offset\":0,\"length\":1}", "copy"),
            ("{\"op\":\"read\",\"time\":1e300,\"disk\":1,\"offset\":0,\"length\":1}", "time"),
            (
                "{\"op\":\"read\",\"time\":0,\"disk\":1,\"offset\":18446744073709551615,\"length\":1}",
                "64 bits",
            ),
            ("{\"op\":\"re", "EOF"),
            ("{}\nhello\n", "line 2"),
            ("\nhello \u{1b}[2J\n", r"hello \033"),
            (" 0-200\n", "no `read`"),
            ("\nread f x\n 200-0\n", "200-0"),
            ("\nread f x\n 0-10000000000000000000\n", "0-1000000"),
            ("\nread f x\n xyz\n", "xyz"),
        ] {
            assert!(told(log).contains(word), "{log}: {}", told(log));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(log in prop::collection::vec(prop_oneof![prop::sample::select(&b" \n-0a{}\":read"[..]), any::<u8>()], 0..200)) {
            let _ = read(&log[..]);
        }
    }
}
