//! The map as JSON Lines, the only format that holds everything.
//!
//! The first line is the header, and each further line is an object with its ranges.
//! `docs/formats.md` describes every field. A map that is written and read back is equal to itself.
//! The reader is strict: it refuses unknown versions, fields and kinds of warnings, and maps that
//! were cut off.

mod record;

use serde::{Deserialize, Serialize};
use std::io::{self, BufWriter, Read, Write};
use thiserror::Error;

use super::builder::{BuildError, MapBuilder};
use super::lines::{End, Lines};
use super::model::Map;
pub use record::Text;
use record::{HeaderRecord, ObjectRecord, RangeRecord};
use virt_bmap_ranges::Printable;

/// Version of the format that is written.
///
/// The reader also accepts version 1, whose warnings are sentences without kinds: see
/// [`Cause::Sentence`](super::Cause::Sentence). Nothing else differs.
pub const FORMAT_VERSION: u64 = 2;

/// The oldest version that is read.
const OLDEST_VERSION: u64 = 1;

/// Longest line in bytes that is read.
pub const MAX_LINE: usize = 64 << 20;

/// Most ranges in one line. An object with more of them has several.
pub const MAX_RANGES: usize = 4096;

/// The value of `format` in the first line.
const FORMAT: &str = "virt-bmap";

/// Why a file could not be read as a map in JSON Lines.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The file could not be read at all.
    #[error("the map could not be read")]
    Io(#[from] io::Error),
    /// The file is empty.
    #[error("the file is empty")]
    Empty,
    /// It is not a map.
    #[error("this is not a block map: its first line is not a JSON object with \"format\": \"virt-bmap\"")]
    NotAMap,
    /// Its version is not known.
    #[error(
        "this map is of version {version} of the JSON Lines format; this program reads versions {OLDEST_VERSION} to {FORMAT_VERSION}"
    )]
    Version {
        /// The version.
        version: u64,
    },
    /// Lines are missing at the end.
    #[error("the map is truncated: its first line announces {said} lines, and {found} follow")]
    Records {
        /// Number of lines that the first line announces.
        said: u64,
        /// Number of lines that follow.
        found: u64,
    },
    /// One line is wrong.
    #[error("line {line}: {problem}")]
    Line {
        /// Number of the line, from 1.
        line: u64,
        /// What is wrong.
        problem: LineError,
    },
}

/// What is wrong with one line.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LineError {
    /// The file ends within the line.
    #[error("the file ends within this line: the map is truncated")]
    Truncated,
    /// The line exceeds [`MAX_LINE`].
    #[error("the line is longer than {MAX_LINE} bytes")]
    TooLong,
    /// It is not JSON, or its fields are not valid.
    #[error("{what} (byte {column} of the line)")]
    Json {
        /// What is wrong, printable.
        what: String,
        /// Where, from 1.
        column: usize,
    },
    /// A map cannot hold the object or one of its ranges.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The end is exclusive, and no range is empty.
    #[error("a range ends at {end}, not after its start {start}")]
    EndNotAfterStart {
        /// First byte of the range.
        start: u64,
        /// First byte after it.
        end: u64,
    },
}

impl From<serde_json::Error> for LineError {
    /// Without the line number, which is always 1, as lines are parsed one by one.
    fn from(error: serde_json::Error) -> Self {
        let text = error.to_string();
        let what = text.rfind(" at line ").map_or(&*text, |end| &text[..end]);
        Self::Json { what: Printable(what.as_bytes()).to_string(), column: error.column() }
    }
}

/// The fields of the first line that decide whether the rest can be read.
#[derive(Deserialize)]
struct Version {
    format: String,
    version: u64,
}

/// Writes `map`. Needs no buffered output.
///
/// # Errors
/// If the output fails.
pub fn write(map: &Map, output: impl Write) -> io::Result<()> {
    let mut output = BufWriter::with_capacity(256 * 1024, output);
    write_line(&mut output, &HeaderRecord::new(map))?;
    for object in map.objects() {
        let mut record = ObjectRecord::new(object);
        let mut pieces = object.pieces().map(RangeRecord::new);
        loop {
            record.ranges.extend(pieces.by_ref().take(MAX_RANGES));
            write_line(&mut output, &record)?;
            record.ranges.clear();
            if pieces.len() == 0 {
                break;
            }
        }
    }
    output.flush()
}

/// The first line, without its line feed and without the digests that only an update needs.
pub(super) fn header(map: &Map) -> Vec<u8> {
    // Neither the record nor writing to memory can fail.
    serde_json::to_vec(&HeaderRecord::without_digests(map)).unwrap_or_default()
}

fn write_line(output: &mut impl Write, record: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *output, record)?;
    output.write_all(b"\n")
}

/// Reads a map.
///
/// It is strict: an unknown field is an error, and so is a missing line.
///
/// ```
/// use virt_bmap_map::{jsonl, text};
///
/// let map = text::read(&b"1 0 200 v /dev/sda\n1 200 400 f /dev/sda1 /etc/fstab\n"[..])?;
/// let mut json = Vec::new();
/// jsonl::write(&map, &mut json)?;
/// assert_eq!(jsonl::read(&json[..])?, map);
///
/// let error = jsonl::read(&json[..json.len() - 9]).unwrap_err();
/// assert_eq!(error.to_string(), "line 3: the file ends within this line: the map is truncated");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// See [`ReadError`].
pub fn read(input: impl Read) -> Result<Map, ReadError> {
    let mut lines = Lines::new(input, MAX_LINE);
    if !next(&mut lines)? {
        return Err(ReadError::Empty);
    }
    let version = serde_json::from_slice::<Version>(&lines.line).map_err(|_| ReadError::NotAMap)?;
    if version.format != FORMAT {
        return Err(ReadError::NotAMap);
    }
    if !(OLDEST_VERSION..=FORMAT_VERSION).contains(&version.version) {
        return Err(ReadError::Version { version: version.version });
    }
    let first: HeaderRecord = serde_json::from_slice(&lines.line).map_err(|error| wrong(&lines, error))?;
    let said = first.records;
    let (header, dialect) = first.unpack();
    let mut builder = MapBuilder::new(header);
    while next(&mut lines)? {
        let record: ObjectRecord =
            serde_json::from_slice(&lines.line).map_err(|error| wrong(&lines, error))?;
        record.add_to(&mut builder).map_err(|error| wrong(&lines, error))?;
    }
    let found = lines.number - 1;
    if let Some(said) = said
        && said != found
    {
        return Err(ReadError::Records { said, found });
    }
    let mut map = builder.build();
    map.set_dialect(dialect);
    Ok(map)
}

/// Reads the next line, if there is one.
fn next(lines: &mut Lines<impl Read>) -> Result<bool, ReadError> {
    match lines.next()? {
        None => Ok(false),
        Some(End::LineFeed) => Ok(true),
        Some(_) if lines.number == 1 && !lines.line.starts_with(b"{") => Err(ReadError::NotAMap),
        Some(End::Limit) => Err(wrong(lines, LineError::TooLong)),
        Some(End::File) => Err(wrong(lines, LineError::Truncated)),
    }
}

fn wrong<R>(lines: &Lines<R>, problem: impl Into<LineError>) -> ReadError {
    ReadError::Line { line: lines.number, problem: problem.into() }
}
