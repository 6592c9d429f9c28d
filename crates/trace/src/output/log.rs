//! A line for each request, as nbdkit's log filter writes it (nbdkit-log-filter(1)): the time of
//! day in UTC, the connection, the action with its range, the outcome, and the objects, the most
//! specific first.
//!
//! Programs that read the lines of that filter can read these, such as `lookup --ranges`.

use super::{LogOutput, seconds};
use crate::{Op, TraceEvent};
use chrono::{DateTime, Utc};
use std::io::{self, Write};
use std::time::SystemTime;
use virt_bmap_map::Hit;
use virt_bmap_ranges::Printable;

/// See the [module](self).
pub(super) struct Log<W> {
    out: W,
    began: SystemTime,
}

impl<W: Write> Log<W> {
    pub(super) fn new(out: W, began: SystemTime) -> Self {
        Self { out, began }
    }
}

fn action(op: Op) -> &'static str {
    match op {
        Op::Read => "Read",
        Op::Write => "Write",
        Op::Zero => "Zero",
        Op::Trim => "Trim",
        Op::Flush => "Flush",
    }
}

impl<W: Write + Send> LogOutput for Log<W> {
    fn request(&mut self, number: u64, event: &TraceEvent, hits: &[Hit<'_>]) -> io::Result<()> {
        let out = &mut self.out;
        let since_1970 = (self.began + event.time).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let time =
            DateTime::<Utc>::from_timestamp(since_1970.as_secs().cast_signed(), since_1970.subsec_nanos());
        let time = time.unwrap_or_default().format("%Y-%m-%d %H:%M:%S%.6f");
        write!(out, "{time} connection={} {} id={number}", event.connection, action(event.op))?;
        if event.op != Op::Flush {
            write!(out, " offset={:#x} count={:#x}", event.range.start.0, event.range.len())?;
        }
        write!(
            out,
            "{} return={} latency={} disk={}",
            if event.fua { " fua=1" } else { "" },
            if event.failed { -1 } else { 0 },
            seconds(event.latency),
            event.disk
        )?;
        for hit in hits {
            let name = hit.object.name();
            write!(out, " object=\"{} ", char::from(name.kind.letter()))?;
            quoted(out, name.device)?;
            if !name.path.is_empty() {
                out.write_all(b" ")?;
                quoted(out, name.path)?;
            }
            out.write_all(b"\"")?;
        }
        out.write_all(b"\n")
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A name between quotes. Quotes in the name are escaped.
fn quoted(out: &mut impl Write, name: &[u8]) -> io::Result<()> {
    for (number, part) in name.split(|&byte| byte == b'"').enumerate() {
        if number > 0 {
            out.write_all(b"\\042")?;
        }
        write!(out, "{}", Printable(part))?;
    }
    Ok(())
}
