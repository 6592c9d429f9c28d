//! Ranges that are given: as pairs of numbers, or as the list of another program.

use pyo3::prelude::*;
use pyo3::types::PyList;
use std::fs::File;
use std::path::PathBuf;
use virt_bmap_map::rangelist::{self, Kind, RangeListOptions};
use virt_bmap_ranges::{DiskRange, IndexedRanges};

use crate::errors;
use crate::rows::{RowClass, row};

static RANGE_LIST: RowClass = RowClass::new("RangeList");

/// Ranges that were given to a question.
pub(crate) struct Given {
    /// The bytes.
    pub(crate) ranges: IndexedRanges,
    /// Size of the disk that they are for, if it is known.
    pub(crate) disk_size: Option<u64>,
}

/// Reads a `RangeList`, or an iterable of pairs.
pub(crate) fn given(ranges: &Bound<'_, PyAny>) -> PyResult<Given> {
    if ranges.is_instance(RANGE_LIST.class(ranges.py())?)? {
        let disk_size = ranges.getattr("disk_size")?.extract()?;
        return Ok(Given { ranges: pairs(&ranges.getattr("ranges")?)?, disk_size });
    }
    Ok(Given { ranges: pairs(ranges)?, disk_size: None })
}

/// Reads pairs of a first byte and the first byte after.
fn pairs(given: &Bound<'_, PyAny>) -> PyResult<IndexedRanges> {
    let mut ranges = Vec::new();
    for (number, pair) in given.try_iter()?.enumerate() {
        let mut fields = pair?.try_iter()?;
        let (start, end) = match (fields.next(), fields.next(), fields.next()) {
            (Some(start), Some(end), None) => (start?.extract::<u64>()?, end?.extract::<u64>()?),
            _ => return Err(errors::value(format!("range {number} is not a pair (start, end)"))),
        };
        if start > end {
            return Err(errors::value(format!("range {number} ends at {end}, before its start at {start}")));
        }
        if start < end {
            ranges.push(DiskRange::new(start, end));
        }
    }
    Ok(IndexedRanges::from_unsorted(ranges))
}

/// Reads a list of ranges that another program wrote.
///
/// The format is recognised by the contents: `qemu-img map --output=json`, `nbdinfo --map --json`
/// (also of dirty bitmaps), a mapfile of GNU ddrescue, the output of badblocks and others, or lines
/// of OFFSET LENGTH. docs/questions.md lists them, and says which entries count.
///
/// Parameters
/// ----------
/// path: the file.
/// format: its format, a word of the program's option --from; by default it is recognised.
/// block_size: bytes in a block, for formats that count blocks and do not state their size.
///
/// Raises OSError if the file cannot be read, and MapError if it is not such a list.
#[pyfunction]
#[pyo3(signature = (path, *, format = None, block_size = None))]
pub(crate) fn read_ranges<'py>(
    py: Python<'py>,
    path: PathBuf,
    format: Option<&str>,
    block_size: Option<u64>,
) -> PyResult<Bound<'py, PyAny>> {
    let known = |word| Kind::ALL.into_iter().find(|kind: &Kind| kind.word() == word);
    let kind = match format {
        Some(word) => {
            let words = || Kind::ALL.map(Kind::word).join(", ");
            Some(known(word).ok_or_else(|| errors::value(format!("the formats are {}", words())))?)
        }
        None => None,
    };
    if block_size == Some(0) {
        return Err(errors::value("a block has at least one byte"));
    }
    let options = RangeListOptions { kind, block_size, ..RangeListOptions::default() };
    let list = py.detach(|| {
        let file = File::open(&path).map_err(rangelist::ListError::Io)?;
        rangelist::read(file, &options)
    });
    let list = list.map_err(|error| errors::of_list(py, &error, &path))?;
    let ranges = PyList::new(py, list.spans.iter().map(|range| (range.start.0, range.end.0)))?;
    let disk_size = list.kind.covers_disk().then_some(list.end);
    row!(py, RANGE_LIST, list.kind.word(), list.rule, list.entries, list.counted, disk_size, ranges)
}
