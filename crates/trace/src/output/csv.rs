//! A table with a row for each object that a request touches, or one row without an object if it
//! touches none.

use super::{LogOutput, seconds};
use crate::TraceEvent;
use std::io::{self, Write};
use virt_bmap_map::Hit;
use virt_bmap_map::tabular::{Value, csv_row, device, letter, path};

const COLUMNS: [&str; 16] = [
    "request",
    "time",
    "latency",
    "connection",
    "disk",
    "op",
    "offset",
    "length",
    "fua",
    "failed",
    "type",
    "device",
    "path",
    "object_offset",
    "object_length",
    "file_offset",
];

/// See the [module](self).
pub(super) struct Csv<W: Write>(::csv::Writer<W>);

impl<W: Write> Csv<W> {
    pub(super) fn begin(out: W) -> io::Result<Self> {
        let mut csv = ::csv::Writer::from_writer(out);
        csv.write_record(COLUMNS)?;
        Ok(Self(csv))
    }
}

impl<W: Write + Send> LogOutput for Csv<W> {
    fn request(&mut self, number: u64, event: &TraceEvent, hits: &[Hit<'_>]) -> io::Result<()> {
        let (time, latency) = (seconds(event.time), seconds(event.latency));
        let flag = |is_set: bool| Value::Number(is_set.into());
        let objects = hits.iter().map(Some).chain(hits.is_empty().then_some(None));
        for hit in objects {
            let name = hit.map(|hit| hit.object.name());
            let cells = [
                number.into(),
                Value::Word(&time),
                Value::Word(&latency),
                event.connection.into(),
                u64::from(event.disk).into(),
                Value::Word(event.op.word()),
                event.range.start.0.into(),
                event.range.len().into(),
                flag(event.fua),
                flag(event.failed),
                letter(name),
                device(name),
                path(name),
                hit.map(|hit| hit.range.start.0).into(),
                hit.map(|hit| hit.range.len()).into(),
                hit.and_then(|hit| hit.file_offset).map(|offset| offset.0).into(),
            ];
            let mut columns = COLUMNS.into_iter();
            let row = cells.map(|value| (columns.next().unwrap_or_default(), value));
            csv_row(&mut self.0, &row)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
