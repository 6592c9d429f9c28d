//! The map as a table: one row for each range of each object, as comma-separated values.
//!
//! `docs/formats.md` describes the columns. The table has neither the header of a map nor objects
//! without ranges.

use ::csv::{ByteRecord, Position, ReaderBuilder, StringRecord, Terminator, WriterBuilder};
use std::borrow::Cow;
use std::fmt;
use std::io::{self, Read, Write};
use thiserror::Error;

use super::builder::{BuildError, MapBuilder};
use super::escape::{BadEscape, escape_to_utf8, unescape};
use super::header::Header;
use super::model::{Map, Object, Piece};
use super::object::{Attributes, Kind, Marks, ObjectName};
use super::role::{PieceFlags, Role};
use virt_bmap_ranges::{DiskRange, FileOffset, Printable};

/// The columns, as the first row names them.
pub const COLUMNS: [&str; 19] = [
    "disk",
    "start",
    "end",
    "length",
    "type",
    "device",
    "path",
    "file_offset",
    "copy",
    "flags",
    "inode",
    "size",
    "allocated",
    "links",
    "mode",
    "modified",
    "changed",
    "marks",
    "reparse",
];

/// How many of them maps have that were made before there was the last one.
const FEWER: usize = COLUMNS.len() - 1;

/// Longest row in bytes that is read.
pub const MAX_ROW: usize = 4 << 20;

/// Why a file could not be read as a map in CSV.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The file could not be read at all.
    #[error("the map could not be read")]
    Io(#[from] io::Error),
    /// The first row does not name these columns.
    #[error("this is not a block map: its first row does not name the columns `{}`", COLUMNS.join(","))]
    NotAMap,
    /// One row is wrong.
    #[error("line {line}: {problem}")]
    Row {
        /// Number of the line on which the row begins, from 1.
        line: u64,
        /// What is wrong.
        problem: RowError,
    },
}

/// What is wrong with one row.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RowError {
    /// The file ends within the row.
    #[error("the file ends within this row: the map is truncated")]
    Truncated,
    /// The row exceeds [`MAX_ROW`].
    #[error("the row is longer than {MAX_ROW} bytes")]
    TooLong,
    /// It has more or fewer columns.
    #[error("the row has {found} columns, not {expected}")]
    Columns {
        /// How many it has.
        found: u64,
        /// How many the first row has.
        expected: u64,
    },
    /// A value is not valid in its column.
    #[error("`{found}` is not valid in column {column}")]
    Value {
        /// The column.
        column: &'static str,
        /// The value, printable.
        found: String,
    },
    /// The end is exclusive, and no range is empty; the length is the difference.
    #[error("a range from {start} to {end} cannot be {length} bytes long")]
    Length {
        /// First byte of the range.
        start: u64,
        /// First byte after it.
        end: u64,
        /// The value of the column.
        length: u64,
    },
    /// A backslash does not begin an escape.
    #[error(transparent)]
    Escape(#[from] BadEscape),
    /// A map cannot hold the object or the range.
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// A name in a cell: escaped to UTF-8, and so that a spreadsheet does not read it as a formula.
/// [`unescape`] returns the name.
pub fn cell(name: &[u8]) -> Cow<'_, str> {
    let text = escape_to_utf8(name);
    match text.as_bytes().first() {
        Some(first @ (b'=' | b'+' | b'-' | b'@')) => format!("\\{first:03o}{}", &text[1..]).into(),
        _ => text,
    }
}

/// The names of marks or flags in one cell, separated by spaces.
pub(super) fn list(out: &mut String, names: impl Iterator<Item = &'static str>) {
    for name in names {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(name);
    }
}

/// Writes `map`. Needs no buffered output.
///
/// # Errors
/// If the output fails.
pub fn write(map: &Map, output: impl Write) -> io::Result<()> {
    let mut writer = WriterBuilder::new()
        .terminator(Terminator::Any(b'\n'))
        .buffer_capacity(256 * 1024)
        .from_writer(output);
    writer.write_record(COLUMNS)?;
    let mut row = StringRecord::new();
    for piece in map.pieces() {
        row.clear();
        push_row(&mut row, piece, map.object(piece.object));
        writer.write_record(&row)?;
    }
    writer.flush()
}

fn push_row(row: &mut StringRecord, piece: Piece, object: Object<'_>) {
    let Piece { disk, range, file_offset, role, .. } = piece;
    let (name, attributes) = (object.name(), object.attributes());
    number(row, Some(disk));
    number(row, Some(range.start.0));
    number(row, Some(range.end.0));
    number(row, Some(range.len()));
    row.push_field(char::from(name.kind.letter()).encode_utf8(&mut [0; 4]));
    row.push_field(&cell(name.device));
    row.push_field(&cell(name.path));
    number(row, file_offset.map(|offset| offset.0));
    number(row, Some(role.copy));
    let mut names = String::new();
    list(&mut names, role.flags.names());
    row.push_field(&names);
    number(row, attributes.inode);
    number(row, attributes.size);
    number(row, attributes.allocated);
    number(row, attributes.links);
    number(row, attributes.mode);
    number(row, attributes.modified);
    number(row, attributes.changed);
    names.clear();
    list(&mut names, attributes.marks.names());
    row.push_field(&names);
    row.push_field(&attributes.reparse.map(|tag| tag.to_string()).unwrap_or_default());
}

/// A cell with a number, or an empty one.
fn number(row: &mut StringRecord, value: Option<impl fmt::Display>) {
    let mut digits = [0; 20];
    let mut rest = &mut digits[..];
    if let Some(value) = value {
        // No number of 64 bits has more digits, a sign included.
        let _ = write!(rest, "{value}");
    }
    let left = rest.len();
    row.push_field(std::str::from_utf8(&digits[..20 - left]).unwrap_or_default());
}

/// Reads a map. It gets the header of a new map.
///
/// ```
/// use virt_bmap_map::csv;
///
/// let map = csv::read(&b"disk,start,end,length,type,device,path,file_offset,copy,flags,inode,size,allocated,links,mode,modified,changed,marks,reparse
/// 1,512,1024,512,f,/dev/sda1,/etc/fstab,0,0,,12,500,,1,,,,,
/// "[..])?;
/// let file = map.objects().next().unwrap();
/// assert_eq!(file.name().path, b"/etc/fstab");
/// assert_eq!(file.attributes().size, Some(500));
/// # Ok::<(), csv::ReadError>(())
/// ```
///
/// # Errors
/// See [`ReadError`].
pub fn read(input: impl Read) -> Result<Map, ReadError> {
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .buffer_capacity(256 * 1024)
        .from_reader(Guard { input, row: 0, ended: None });
    let mut row = ByteRecord::new();
    let mut builder = MapBuilder::new(Header::default());
    let mut columns = None;
    loop {
        let line = reader.position().line();
        let more = reader.read_byte_record(&mut row);
        let wrong = |problem| ReadError::Row { line: row.position().map_or(line, Position::line), problem };
        if !more.map_err(|error| from_csv(error, line))? {
            break;
        }
        match columns {
            None if row.len() >= FEWER
                && COLUMNS.iter().map(|name| name.as_bytes()).take(row.len()).eq(&row) =>
            {
                columns = Some(row.len());
            }
            None => return Err(ReadError::NotAMap),
            Some(columns) => add_row(&mut builder, &row, columns).map_err(wrong)?,
        }
    }
    if columns.is_none() {
        return Err(ReadError::NotAMap);
    }
    let line = reader.position().line();
    if reader.into_inner().ended != Some(b'\n') {
        return Err(ReadError::Row { line, problem: RowError::Truncated });
    }
    Ok(builder.build())
}

/// Whether [`Guard`] caused the error.
fn is_too_long(error: &io::Error) -> bool {
    error.get_ref().and_then(|inner| inner.downcast_ref()) == Some(&RowError::TooLong)
}

/// With rows of bytes, and of any number of columns, only reading can fail.
fn from_csv(error: ::csv::Error, line: u64) -> ReadError {
    match error.into_kind() {
        ::csv::ErrorKind::Io(error) if is_too_long(&error) => {
            ReadError::Row { line, problem: RowError::TooLong }
        }
        ::csv::ErrorKind::Io(error) => error.into(),
        other => io::Error::other(format!("{other:?}")).into(),
    }
}

fn add_row(builder: &mut MapBuilder, row: &ByteRecord, columns: usize) -> Result<(), RowError> {
    if row.len() != columns {
        return Err(RowError::Columns { found: row.len() as u64, expected: columns as u64 });
    }
    let mut cells = Cells { row, next: 0 };
    let (disk, start, end, length) =
        (cells.needed::<u16>()?, cells.needed::<u64>()?, cells.needed()?, cells.needed()?);
    if end <= start || end - start != length {
        return Err(RowError::Length { start, end, length });
    }
    let (column, letter) = cells.next();
    let kind = if let [letter] = letter { Kind::from_letter(*letter) } else { None };
    let kind = kind.ok_or_else(|| wrong(column, letter))?;
    let (device, path) = (unescape(cells.next().1)?, unescape(cells.next().1)?);
    let file_offset = cells.value()?.map(FileOffset);
    let role = Role { copy: cells.needed()?, flags: cells.set(PieceFlags::named)? };
    let attributes = Attributes {
        owner: None,
        born: None,
        inode: cells.value()?,
        size: cells.value()?,
        allocated: cells.value()?,
        links: cells.value()?,
        mode: cells.value()?,
        modified: cells.value()?,
        changed: cells.value()?,
        marks: cells.set(Marks::named)?,
        reparse: if columns > FEWER { cells.value()? } else { None },
    };
    let object = builder.object(ObjectName { kind, device: &device, path: &path }, attributes)?;
    Ok(builder.piece_as(object, disk, DiskRange::new(start, end), file_offset, role)?)
}

/// The cells of a row, one after the other.
struct Cells<'a> {
    row: &'a ByteRecord,
    next: usize,
}

impl<'a> Cells<'a> {
    /// The next cell, with the name of its column.
    fn next(&mut self) -> (&'static str, &'a [u8]) {
        let place = self.next;
        self.next += 1;
        (COLUMNS[place], &self.row[place])
    }

    fn value<T: std::str::FromStr>(&mut self) -> Result<Option<T>, RowError> {
        let (column, text) = self.next();
        if text.is_empty() {
            return Ok(None);
        }
        let value = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        value.map(Some).ok_or_else(|| wrong(column, text))
    }

    fn needed<T: std::str::FromStr>(&mut self) -> Result<T, RowError> {
        let column = COLUMNS[self.next];
        self.value()?.ok_or_else(|| wrong(column, b""))
    }

    fn set<T: FromIterator<T>>(&mut self, named: impl Fn(&str) -> Option<T>) -> Result<T, RowError> {
        let (column, names) = self.next();
        let names = names.split(|&byte| byte == b' ').filter(|name| !name.is_empty());
        let known = |name| std::str::from_utf8(name).ok().and_then(&named).ok_or_else(|| wrong(column, name));
        names.map(known).collect()
    }
}

fn wrong(column: &'static str, found: &[u8]) -> RowError {
    RowError::Value { column, found: Printable(&found[..found.len().min(40)]).to_string() }
}

/// Guards the input of the CSV reader, which would accept a row of any length, and would not notice
/// that the last row was cut off.
struct Guard<R> {
    input: R,
    /// Bytes since the last line feed.
    row: usize,
    /// The last byte.
    ended: Option<u8>,
}

impl<R: Read> Read for Guard<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.input.read(buffer)?;
        let bytes = &buffer[..length];
        self.ended = bytes.last().copied().or(self.ended);
        self.row = memchr::memrchr(b'\n', bytes).map_or(self.row + length, |feed| length - feed);
        if self.row > MAX_ROW { Err(io::Error::other(RowError::TooLong)) } else { Ok(length) }
    }
}
