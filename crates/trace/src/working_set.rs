//! Writes the working set of a guest, for prefetching: as files, since ranges go stale when an
//! image is rebuilt; and as ranges, since whole files are more than the guest reads.

use super::summary::Summary;
use std::io::{self, Write};
use virt_bmap_map::tabular::{device, json_object, letter, path};
use virt_bmap_map::{Kind, Map};

/// Writes files and ranges as one JSON document: files in the order of their first reads, ranges
/// ascending.
///
/// # Errors
/// The output's.
pub fn write(summary: &Summary, map: &Map, out: &mut impl Write) -> io::Result<()> {
    out.write_all(b"{\"version\": 1, ")?;
    if summary.gap() > 0 {
        write!(out, "\"gap\": {}, ", summary.gap())?;
    }
    out.write_all(b"\"files\": [")?;
    for (number, read) in summary.objects(map).iter().enumerate() {
        out.write_all(if number == 0 { b"\n" } else { b",\n" })?;
        let name = Some(read.file.object.name());
        json_object(
            out,
            &[
                ("type", letter(name)),
                ("device", device(name)),
                ("path", path(name)),
                ("names", u64::from(read.file.names).into()),
                ("first_us", (read.first.as_micros() as u64).into()),
                ("bytes", read.bytes.into()),
                ("on_disk", read.on_disk.into()),
            ],
        )?;
    }
    out.write_all(b"\n], \"ranges\": [")?;
    let ranges =
        summary.ranges().flat_map(|(disk, ranges)| ranges.into_iter().map(move |range| (disk, range)));
    for (number, (disk, range)) in ranges.enumerate() {
        out.write_all(if number == 0 { b"\n" } else { b",\n" })?;
        let cells = [
            ("disk", u64::from(disk).into()),
            ("offset", range.start.0.into()),
            ("length", range.len().into()),
        ];
        json_object(out, &cells)?;
    }
    out.write_all(b"\n]}\n")
}

/// Largest gap between two ranges that is read with them instead of splitting the request.
const GAP: u64 = 64 << 10;

/// Writes lines of `OFFSET LENGTH` in bytes, in the order of the guest's first reads. A comment
/// with the number of the disk comes before its ranges.
///
/// # Errors
/// The output's.
pub fn write_prefetch(summary: &Summary, out: &mut impl Write) -> io::Result<()> {
    for (disk, ranges) in summary.prefetch(GAP) {
        writeln!(out, "# disk {disk}")?;
        for range in ranges {
            writeln!(out, "{} {}", range.start, range.len())?;
        }
    }
    Ok(())
}

/// Writes the paths of the files that were read, one a line, in the order of their first reads: the
/// file list that overlaybd's `trace` accepts. Paths with a line feed are left out.
///
/// # Errors
/// The output's.
pub fn write_file_list(summary: &Summary, map: &Map, out: &mut impl Write) -> io::Result<()> {
    for read in summary.objects(map) {
        let name = read.file.object.name();
        if name.kind == Kind::File && !name.path.contains(&b'\n') {
            out.write_all(name.path)?;
            out.write_all(b"\n")?;
        }
    }
    Ok(())
}
