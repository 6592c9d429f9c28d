//! Trace events of Chrome, as JSON: Perfetto and `chrome://tracing` show them on a line of time
//! ("Trace Event Format", JSON Array Format).
//!
//! Each request is a complete event (`X`). A disk is a process, and each request in flight has a
//! thread of its own, as events of one thread must not overlap. `args` is the record of
//! [`jsonl`]. Without its end, after a crash, the array still opens: the format
//! allows that.

use super::{LogOutput, jsonl};
use crate::TraceEvent;
use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Duration;
use virt_bmap_map::tabular::{Value, json_fields};
use virt_bmap_map::{Hit, ImageInfo};
use virt_bmap_ranges::{DiskNumber, Printable};

/// See the [module](self).
pub(super) struct Chrome<W> {
    out: W,
    has_events: bool,
    /// For each thread of a disk, when its last request was answered.
    threads: HashMap<DiskNumber, Vec<Duration>>,
}

impl<W: Write> Chrome<W> {
    pub(super) fn begin(mut out: W, images: &[ImageInfo]) -> io::Result<Self> {
        out.write_all(b"[")?;
        let mut chrome = Self { out, has_events: false, threads: HashMap::new() };
        for image in images {
            let name = format!("disk {}: {}", image.disk, Printable(&image.image.name));
            chrome.separate()?;
            write!(
                chrome.out,
                "{{\"name\": \"process_name\", \"ph\": \"M\", \"pid\": {}, \"args\": {{",
                image.disk
            )?;
            json_fields(&mut chrome.out, &[("name", Value::Word(&name))])?;
            chrome.out.write_all(b"}}")?;
        }
        Ok(chrome)
    }

    fn separate(&mut self) -> io::Result<()> {
        let separator: &[u8] = if self.has_events { b",\n" } else { b"\n" };
        self.has_events = true;
        self.out.write_all(separator)
    }

    /// The first thread of the disk whose last request was answered before this one came. Requests
    /// come in the order of their answers, so it never overlaps an earlier one.
    fn thread(&mut self, event: &TraceEvent) -> usize {
        let threads = self.threads.entry(event.disk).or_default();
        let free = threads.iter().position(|end| *end <= event.time).unwrap_or(threads.len());
        let end = event.time + event.latency;
        match threads.get_mut(free) {
            Some(thread) => *thread = end,
            None => threads.push(end),
        }
        free
    }
}

/// A time in microseconds, the unit of the format, to the nanosecond.
fn microseconds(time: Duration) -> String {
    format!("{}.{:03}", time.as_micros(), time.subsec_nanos() % 1000)
}

impl<W: Write + Send> LogOutput for Chrome<W> {
    fn request(&mut self, number: u64, event: &TraceEvent, hits: &[Hit<'_>]) -> io::Result<()> {
        let thread = self.thread(event);
        let op = event.op.word();
        let name = hits.first().map_or(op.to_owned(), |hit| format!("{op} {}", hit.object.name()));
        self.separate()?;
        self.out.write_all(b"{")?;
        json_fields(&mut self.out, &[("name", Value::Word(&name)), ("cat", Value::Word(op))])?;
        write!(
            self.out,
            ", \"ph\": \"X\", \"ts\": {}, \"dur\": {}, \"pid\": {}, \"tid\": {thread}, \"args\": ",
            microseconds(event.time),
            microseconds(event.latency),
            event.disk
        )?;
        jsonl::record(&mut self.out, number, event, hits)?;
        self.out.write_all(b"}")
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn finish(&mut self) -> io::Result<()> {
        self.out.write_all(b"\n]\n")?;
        self.flush()
    }
}
