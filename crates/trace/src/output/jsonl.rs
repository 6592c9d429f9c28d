//! JSON Lines: an object for each request, with all its properties.

use super::{LogOutput, seconds};
use crate::TraceEvent;
use std::io::{self, Write};
use virt_bmap_map::tabular::{Cell, Value, device, json_fields, json_object, letter, path};
use virt_bmap_map::{Hit, ImageInfo};

/// See the [module](self).
pub(super) struct Jsonl<W>(W);

impl<W: Write> Jsonl<W> {
    pub(super) fn begin(mut out: W, images: &[ImageInfo]) -> io::Result<Self> {
        let generator = virt_bmap_map::GENERATOR;
        let head: [Cell<'_>; 3] = [
            ("format", Value::Word("virt-bmap-rs trace")),
            ("version", Value::Number(1)),
            ("generator", Value::Word(generator)),
        ];
        out.write_all(b"{")?;
        json_fields(&mut out, &head)?;
        out.write_all(b", \"images\": [")?;
        for (number, image) in images.iter().enumerate() {
            out.write_all(if number == 0 { b"" } else { b", " })?;
            json_object(
                &mut out,
                &[
                    ("disk", u64::from(image.disk).into()),
                    ("size", image.size.into()),
                    ("name", Value::Name(&image.image.name)),
                ],
            )?;
        }
        out.write_all(b"]}\n")?;
        Ok(Self(out))
    }
}

impl<W: Write + Send> LogOutput for Jsonl<W> {
    fn request(&mut self, number: u64, event: &TraceEvent, hits: &[Hit<'_>]) -> io::Result<()> {
        record(&mut self.0, number, event, hits)?;
        self.0.write_all(b"\n")
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Writes the object of a request.
pub(super) fn record(
    out: &mut impl Write,
    number: u64,
    event: &TraceEvent,
    hits: &[Hit<'_>],
) -> io::Result<()> {
    write!(
        out,
        "{{\"request\": {number}, \"time\": {}, \"latency\": {}, \"connection\": {}, \"disk\": {}, \
             \"op\": \"{}\", \"offset\": {}, \"length\": {}",
        seconds(event.time),
        seconds(event.latency),
        event.connection,
        event.disk,
        event.op.word(),
        event.range.start,
        event.range.len()
    )?;
    for (name, is_set) in [("fua", event.fua), ("failed", event.failed)] {
        if is_set {
            write!(out, ", \"{name}\": true")?;
        }
    }
    out.write_all(b", \"objects\": [")?;
    for (number, hit) in hits.iter().enumerate() {
        out.write_all(if number == 0 { b"" } else { b", " })?;
        let name = Some(hit.object.name());
        json_object(
            out,
            &[
                ("type", letter(name)),
                ("device", device(name)),
                ("path", path(name)),
                ("offset", hit.range.start.0.into()),
                ("length", hit.range.len().into()),
                ("file_offset", hit.file_offset.map(|offset| offset.0).into()),
            ],
        )?;
    }
    out.write_all(b"]}")
}
