//! A map as one HTML page that shows each disk, its files and, with a log of requests, how they are
//! read.
//!
//! The page needs only a browser and no network. Each disk is cut into intervals of one owner. The
//! page draws them along a Hilbert curve, on which neighbours on the disk are neighbours on the
//! screen. The sizes and fragments of files are those of [`list`](crate::list).
//!
//! ```
//! use virt_bmap_map::text;
//! use virt_bmap_map::report;
//!
//! let map = text::read(&b"1 0 100 v /dev/sda\n1 100 300 f /dev/sda1 /vmlinuz\n1 100 300 v /dev/sda\n"[..])?;
//! let mut page = Vec::new();
//! report::write(&map, &report::ReportOptions { title: "guest.bmap", ..Default::default() }, &mut page)?;
//! assert!(page.starts_with(b"<!DOCTYPE html>"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod columns;
mod intervals;
mod objects;
pub mod operations;
mod page;
pub mod trace;

use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};
use thiserror::Error;
use virt_bmap_ranges::{DiskNumber, Printable};

use self::columns::{Columns, MAX_EXACT, zigzag};
use self::intervals::{Disk, Intervals};
use self::objects::Measured;
use self::operations::{PlayedOperation, PlayedOperations};
use self::trace::{Op, Trace};
use crate::hardlinks;
use crate::lookup::{DiskSize, disk_size};
use crate::{ImageFile, Kind, Map, Marks, PieceFlags};

/// Rows of each table.
const TOP: usize = 200;

/// Warnings of the map that the page shows.
const MAX_WARNINGS: usize = 200;

/// Why the page could not be made.
#[derive(Debug, Error)]
pub enum ReportError {
    /// The map has no ranges.
    #[error("the map is empty: it has no range of any disk")]
    Empty,
    /// A disk that a browser cannot count.
    #[error(
        "disk {disk} has {size} bytes and ranges of odd lengths: a page counts at most 2^53 units, here of {unit} bytes"
    )]
    TooLarge {
        /// Number of the disk.
        disk: DiskNumber,
        /// Its size in bytes.
        size: u64,
        /// The largest power of two that all its ranges are multiples of.
        unit: u64,
    },
    /// The log belongs to another guest.
    #[error("the log has a request for disk {disk}, which the map does not have")]
    NoDisk {
        /// Number of the disk.
        disk: DiskNumber,
    },
    /// The log belongs to another disk.
    #[error(
        "the log has a request for bytes {offset} to {end} of disk {disk}, which has {size} bytes: is it of another guest?"
    )]
    PastEnd {
        /// Number of the disk.
        disk: DiskNumber,
        /// First byte of the request.
        offset: u64,
        /// First byte after the request.
        end: u64,
        /// Size of the disk in bytes.
        size: u64,
    },
    /// The page could not be written.
    #[error("the page could not be written")]
    Write(#[from] io::Error),
}

/// Options of the page.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReportOptions<'a> {
    /// Title of the page.
    pub title: &'a str,
    /// Requests to replay over the map.
    pub trace: Option<&'a Trace>,
    /// Operations to name beside the requests, if these have times.
    pub operations: Option<&'a PlayedOperations>,
    /// Whether sizes and offsets are decimal numbers of bytes, instead of rounded units.
    pub bytes: bool,
}

/// The data that the page's script gets as JSON; all else is in columns.
#[derive(Serialize)]
struct About<'a> {
    title: String,
    bytes: bool,
    generator: String,
    kinds: Vec<char>,
    marks: Vec<&'static str>,
    flags: Vec<&'static str>,
    disks: Vec<AboutDisk>,
    filesystems: Vec<AboutFilesystem>,
    warnings: Vec<String>,
    more_warnings: usize,
    trace: Option<AboutTrace>,
    columns: &'a BTreeMap<String, columns::Place>,
}

#[derive(Serialize)]
struct AboutDisk {
    number: DiskNumber,
    /// Bytes in each unit of the disk's columns.
    unit: u64,
    /// Names and formats of the image and those below it, the top one first.
    images: Vec<String>,
}

#[derive(Serialize)]
struct AboutFilesystem {
    device: String,
    kind: String,
    block_size: Option<u64>,
    /// The share of the bytes in use that have an owner, in hundredths of a percent.
    explained: Option<u64>,
}

#[derive(Serialize)]
struct AboutTrace {
    is_timed: bool,
    is_cut: bool,
    /// Times count from the first request.
    operations: Vec<PlayedOperation>,
}

/// Writes the page of a map.
///
/// The same map gives the same page, byte for byte.
///
/// # Errors
/// [`ReportError`].
pub fn write(map: &Map, options: &ReportOptions<'_>, out: &mut impl Write) -> Result<(), ReportError> {
    let measured = Measured::new(map);
    let mut first_names = measured.first_names(map);
    let size = |disk| match disk_size(map, disk) {
        DiskSize::Bytes(size) | DiskSize::AtLeast(size) => size,
        DiskSize::NoDisk => 0,
    };
    let intervals = intervals::cut(map, &mut first_names, size);
    if intervals.disks.is_empty() {
        return Err(ReportError::Empty);
    }
    let mut columns = Columns::default();
    objects::add(map, &measured, &first_names, &mut columns);
    add_volumes(map, &mut columns);
    let disks = add_intervals(map, &intervals, &mut columns)?;
    columns.numbers("table.largest", measured.top(TOP, |listed| listed.on_disk));
    columns.numbers(
        "table.fragmented",
        measured.top(TOP, |listed| if listed.pieces > 1 { listed.pieces } else { 0 }),
    );
    columns.numbers("table.shared", measured.top(TOP, |listed| listed.shared));
    let trace = options.trace.map(|trace| add_trace(trace, &intervals, &mut columns)).transpose()?;
    let trace =
        trace.zip(options.trace).map(|(about, trace)| about.with_operations(trace, options.operations));

    let header = map.header();
    let shown = |text: &str| Printable(text.as_bytes()).to_string();
    let about = About {
        title: shown(options.title),
        bytes: options.bytes,
        generator: shown(&header.generator),
        kinds: Kind::ALL.iter().map(|kind| char::from(kind.letter())).collect(),
        marks: Marks::NAMES.iter().map(|(_, name)| *name).collect(),
        flags: PieceFlags::NAMES.iter().map(|(_, name)| *name).collect(),
        disks,
        filesystems: header
            .filesystems
            .iter()
            .map(|filesystem| AboutFilesystem {
                device: Printable(&filesystem.device).to_string(),
                kind: shown(&filesystem.kind),
                block_size: filesystem.block_size,
                explained: filesystem.balance.map(|balance| balance.explained()),
            })
            .collect(),
        warnings: header.warnings.iter().take(MAX_WARNINGS).map(ToString::to_string).collect(),
        more_warnings: header.warnings.len().saturating_sub(MAX_WARNINGS),
        trace,
        columns: columns.index(),
    };
    Ok(page::write(out, &about, &columns)?)
}

/// Adds the places of the objects that hold others: disks, partitions and volumes.
fn add_volumes(map: &Map, columns: &mut Columns) {
    let volumes = || (0u64..).zip(map.objects()).filter(|(_, object)| !intervals::owns(object.kind()));
    let volume_ranges = || {
        volumes().flat_map(|(number, object)| hardlinks::disk_ranges(object).map(move |span| (number, span)))
    };
    columns.numbers("volume.object", volume_ranges().map(|(number, _)| number));
    columns.numbers("volume.disk", volume_ranges().map(|(_, (disk, _))| u64::from(disk)));
    columns.numbers("volume.start", volume_ranges().map(|(_, (_, span))| span.start.0));
    columns.numbers("volume.length", volume_ranges().map(|(_, (_, span))| span.len()));
}

/// Adds the intervals of each disk and the members of each group.
fn add_intervals(
    map: &Map,
    intervals: &Intervals,
    columns: &mut Columns,
) -> Result<Vec<AboutDisk>, ReportError> {
    columns.numbers("group.count", intervals.groups.iter().map(|group| group.len() as u64));
    columns.numbers("group.member", intervals.groups.iter().flatten().map(|&member| u64::from(member)));
    let images = &map.header().images;
    let image_name =
        |file: &ImageFile| format!("{} ({})", Printable(&file.name), Printable(file.format.as_bytes()));
    // Offset in each owner at which the next interval begins, if it continues the last one.
    let mut next = vec![0u64; map.objects().len() + intervals.groups.len() + 1];
    intervals
        .disks
        .iter()
        .map(|disk| {
            let Disk { number, intervals } = disk;
            let unit = unit(disk)?;
            let name = |column: &str| format!("disk{number}.{column}");
            columns.numbers(
                name("length"),
                intervals.iter().map(|interval| (interval.end - interval.start) / unit),
            );
            let mut last = 0;
            let owners = intervals.iter().map(|interval| {
                let step =
                    i64::from(interval.owner) - i64::from(std::mem::replace(&mut last, interval.owner));
                zigzag(step)
            });
            columns.numbers(name("owner"), owners);
            let offsets = intervals.iter().map(|interval| {
                let Some(offset) = interval.file_offset.filter(|&offset| offset <= MAX_EXACT) else {
                    return 0;
                };
                let expected = &mut next[interval.owner as usize];
                let step = offset.cast_signed() - expected.cast_signed();
                *expected = (offset + (interval.end - interval.start)).min(MAX_EXACT);
                zigzag(step) + 1
            });
            columns.numbers(name("file_offset"), offsets);
            columns.numbers(name("copy"), intervals.iter().map(|interval| u64::from(interval.role.copy)));
            columns.numbers(
                name("flags"),
                intervals.iter().map(|interval| u64::from(interval.role.flags.bits())),
            );
            let image = images.iter().find(|image| image.disk == *number);
            let files = image.into_iter().flat_map(|image| [&image.image].into_iter().chain(&image.chain));
            Ok(AboutDisk { number: *number, unit, images: files.map(image_name).collect() })
        })
        .collect()
}

/// The largest power of two that all edges of a disk are multiples of.
fn unit(disk: &Disk) -> Result<u64, ReportError> {
    let edges = disk.intervals.iter().fold(0, |edges, interval| edges | interval.end);
    let size = disk.intervals.last().map_or(0, |interval| interval.end);
    let unit = 1u64 << edges.trailing_zeros().min(63);
    if size / unit > MAX_EXACT {
        return Err(ReportError::TooLarge { disk: disk.number, size, unit });
    }
    Ok(unit)
}

/// Adds the requests of a log.
fn add_trace(trace: &Trace, intervals: &Intervals, columns: &mut Columns) -> Result<AboutTrace, ReportError> {
    let requests = &trace.requests;
    for request in requests {
        let disk = request.disk;
        let known =
            intervals.disks.iter().find(|known| known.number == disk).ok_or(ReportError::NoDisk { disk })?;
        let size = known.intervals.last().map_or(0, |interval| interval.end);
        let end = request.offset.saturating_add(request.length);
        if end > size {
            return Err(ReportError::PastEnd { disk, offset: request.offset, end, size });
        }
    }
    let microseconds = |time: f64| (time * 1e6) as u64;
    let mut last = 0;
    let steps = requests.iter().map(|request| {
        let time = microseconds(request.time);
        time - std::mem::replace(&mut last, time)
    });
    columns.numbers("trace.time", steps);
    columns.numbers("trace.write", requests.iter().map(|request| u64::from(request.op == Op::Write)));
    columns.numbers("trace.disk", requests.iter().map(|request| u64::from(request.disk)));
    columns.numbers("trace.offset", requests.iter().map(|request| request.offset.min(MAX_EXACT)));
    columns.numbers("trace.length", requests.iter().map(|request| request.length.min(MAX_EXACT)));
    Ok(AboutTrace { is_timed: trace.is_timed, is_cut: trace.is_cut, operations: Vec::new() })
}

impl AboutTrace {
    fn with_operations(mut self, trace: &Trace, list: Option<&PlayedOperations>) -> Self {
        let list = list.filter(|_| trace.is_timed).map(|list| &list.operations[..]).unwrap_or_default();
        let moved = |operation: &PlayedOperation| {
            let [from, to] = [operation.from, operation.to].map(|time| (time - trace.began).max(0.0));
            PlayedOperation { from, to, text: operation.text.clone() }
        };
        self.operations = list.iter().map(moved).collect();
        self
    }
}
