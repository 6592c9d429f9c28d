//! The log of the original bmaplogger.
//!
//! Whenever the operation or the object changes: an empty line, and a line with both. Then the
//! ranges of the requests, on one line, in hexadecimal. A request that touches several objects
//! counts for the most specific; of several such, for the first on the disk. A request that touches
//! no object of the map is left out.
//!
//! The original has only reads and writes. `zero`, `trim` and `flush` are additions; a flush has
//! neither object nor range.

use super::LogOutput;
use crate::{Op, TraceEvent};
use std::io::{self, Write};
use virt_bmap_map::{Hit, ObjectId, text};

/// See the [module](self).
pub(super) struct Text<W> {
    out: W,
    last: Option<(Op, Option<ObjectId>)>,
    line: Vec<u8>,
}

impl<W: Write> Text<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, last: None, line: Vec::new() }
    }
}

impl<W: Write + Send> LogOutput for Text<W> {
    fn request(&mut self, _number: u64, event: &TraceEvent, hits: &[Hit<'_>]) -> io::Result<()> {
        let object = hits.first().map(|hit| hit.object);
        if object.is_none() && event.op != Op::Flush {
            return Ok(());
        }
        let line = &mut self.line;
        line.clear();
        let now = (event.op, object.map(virt_bmap_map::Object::id));
        if self.last != Some(now) {
            self.last = Some(now);
            line.push(b'\n');
            line.extend(event.op.word().as_bytes());
            if let Some(object) = object {
                line.push(b' ');
                text::push_name(line, object.name());
            }
            line.push(b'\n');
        }
        if event.op != Op::Flush {
            write!(line, " {:x}-{:x}", event.range.start, event.range.end)?;
        }
        self.out.write_all(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
