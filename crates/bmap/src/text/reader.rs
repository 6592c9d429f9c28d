//! Reads a text map, line by line.

use std::io::{self, Read};
use thiserror::Error;

use super::{FORMAT_VERSION, MAX_LINE, header};
use crate::escape::{BadEscape, unescape};
use crate::header::Header;
use crate::lines::{End, Lines};
use crate::model::{Dialect, Map, PieceRecord};
use crate::object::{Kind, NameError, ObjectName, ObjectTable};
use crate::role::Role;
use virt_bmap_ranges::{DiskRange, Printable};

/// Why a file could not be read as a text map.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The file could not be read at all.
    #[error("the map could not be read")]
    Io(#[from] io::Error),
    /// There is nothing in it.
    #[error("the file is empty, or has nothing in it but comments")]
    Empty,
    /// It is a `.bmap` of bmap-tools, which share the suffix and nothing else.
    #[error(
        "this is a .bmap of bmap-tools (XML: which blocks of an image are in use), not a block map: it has no file names"
    )]
    BmapTools,
    /// It is not a map.
    #[error(
        "this is not a block map: its first line begins with `{found}`, not with the number of a disk; the map of a disk image is made by `virt-bmap-rs IMAGE`"
    )]
    NotAMap {
        /// The beginning of the line, printable.
        found: String,
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
    /// The line ends before this field.
    #[error("the line ends before its {field}")]
    Missing {
        /// Name of the field.
        field: &'static str,
    },
    /// Not a number from 1 to 65535.
    #[error("`{found}` is not a disk number (decimal, from 1 to 65535)")]
    BadDisk {
        /// What stands there, printable.
        found: String,
    },
    /// Not a lower-case hexadecimal number of at most 64 bits.
    #[error("`{found}` is not a valid {field} offset (lower-case hexadecimal without 0x, at most 16 digits)")]
    BadNumber {
        /// `start` or `end`.
        field: &'static str,
        /// What stands there, printable.
        found: String,
    },
    /// The end is exclusive, and no range is empty.
    #[error("the range ends at {end:x}, not after its start {start:x}")]
    EndNotAfterStart {
        /// First byte of the range.
        start: u64,
        /// First byte after it.
        end: u64,
    },
    /// The interval begins before the one above it ends.
    #[error(
        "the range {disk} {range:?} overlaps or comes before the one above it, {above_disk} {above:?}: intervals must ascend"
    )]
    NotAscending {
        /// Disk of this line.
        disk: u16,
        /// Range of this line.
        range: DiskRange,
        /// Disk of the line above.
        above_disk: u16,
        /// Range of the line above.
        above: DiskRange,
    },
    /// No kind of object has this name.
    #[error("`{found}` is not a type of object (one of f, d, s, m, u, l, b, p, v)")]
    UnknownType {
        /// What stands there, printable.
        found: String,
    },
    /// A map cannot hold the object's name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A backslash does not begin an escape.
    #[error(transparent)]
    Escape(#[from] BadEscape),
    /// A header line is not valid.
    #[error("the header lacks {expected} here")]
    Header {
        /// The expected field.
        expected: &'static str,
    },
    /// The format is newer than this program.
    #[error(
        "the map is in version {version} of the format, and this program knows only {FORMAT_VERSION}: use a newer one"
    )]
    Version {
        /// The version.
        version: u32,
    },
    /// A comment below the first range.
    #[error("a comment may stand only above the first range")]
    LateComment,
    /// More pieces than a map can number.
    #[error("there are more than {limit} ranges")]
    TooManyPieces {
        /// The limit.
        limit: u32,
    },
}

/// Reads a map. The first line shows its dialect.
///
/// The reader is strict where a mistake would give a wrong map, and lenient elsewhere: the objects
/// of one interval may be in any order, neighbours that can be joined are joined, and `lvm_lv`,
/// which the first version of the original wrote, is read as `l`.
///
/// ```
/// use virt_bmap_map::{Dialect, text};
///
/// let old = b"1 0 200 v /dev/sda\n1 200 400 f /dev/sda1 /etc/my file\n1 200 400 v /dev/sda\n";
/// let map = text::read(&old[..])?;
/// assert_eq!(map.dialect(), Dialect::Original);
/// assert_eq!(map.pieces().len(), 2);
///
/// let error = text::read(&b"1 0 200 v /dev/sda\n1 100 300 p /dev/sda1\n"[..]).unwrap_err();
/// assert!(error.to_string().starts_with("line 2: the range 1 0x100..0x300 overlaps"));
/// # Ok::<(), text::ReadError>(())
/// ```
///
/// # Errors
/// See [`ReadError`].
pub fn read(input: impl Read) -> Result<Map, ReadError> {
    let mut lines = Lines::new(input, MAX_LINE);
    let mut reader = Reader::default();
    let at = |line, problem: LineError| ReadError::Line { line, problem };

    let mut more = next(&mut lines)?;
    if !more {
        return Err(ReadError::Empty);
    }
    let mut dialect = Dialect::Original;
    let mut header = Header { generator: String::new(), ..Header::default() };
    if let Some(generator) = header::parse_first(&lines.line).map_err(|problem| at(1, problem))? {
        dialect = Dialect::Escaped;
        header.generator = generator;
        more = next(&mut lines)?;
    }
    while more && lines.line.starts_with(b"#") {
        match dialect {
            Dialect::Escaped => {
                header::parse(&mut header, &lines.line).map_err(|problem| at(lines.number, problem))?;
            }
            Dialect::Original => header.comments.push(lines.line[1..].to_vec()),
        }
        more = next(&mut lines)?;
    }
    if dialect == Dialect::Original {
        if !more {
            return Err(ReadError::Empty);
        }
        if !begins_like_a_range(&lines.line) {
            return Err(not_a_map(&mut lines));
        }
    }
    while more {
        reader.line(&lines.line, dialect).map_err(|problem| at(lines.number, problem))?;
        more = next(&mut lines)?;
    }
    Ok(reader.finish(header, dialect))
}

/// Reads the next line, if there is one.
fn next(lines: &mut Lines<impl Read>) -> Result<bool, ReadError> {
    let problem = match lines.next()? {
        None => return Ok(false),
        Some(End::LineFeed) => return Ok(true),
        Some(_)
            if lines.number == 1 && !lines.line.starts_with(b"#") && !begins_like_a_range(&lines.line) =>
        {
            return Err(not_a_map(lines));
        }
        Some(End::Limit) => LineError::TooLong,
        Some(End::File) => LineError::Truncated,
    };
    Err(ReadError::Line { line: lines.number, problem })
}

/// The error for a file that is not a map, by its beginning.
fn not_a_map(lines: &mut Lines<impl Read>) -> ReadError {
    // bmap-tools' files open with an XML declaration and a long comment.
    let mut start = std::mem::take(&mut lines.line);
    if start.trim_ascii_start().starts_with(b"<") || start.starts_with(b"\xef\xbb\xbf<") {
        let limit = 64 * 1024;
        if let Err(error) = (&mut lines.input).take(limit).read_to_end(&mut start) {
            return error.into();
        }
        if memchr::memmem::find(&start, b"<bmap ").is_some() {
            return ReadError::BmapTools;
        }
    }
    let line = start.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let found =
        if line.len() > 40 { format!("{}…", Printable(&line[..40])) } else { Printable(line).to_string() };
    ReadError::NotAMap { found }
}

/// Whether a line begins with a decimal number and a space, as every line of a map without header
/// does.
fn begins_like_a_range(line: &[u8]) -> bool {
    let digits = line.iter().take_while(|byte| byte.is_ascii_digit()).count();
    digits > 0 && line.get(digits) == Some(&b' ')
}

/// The first three fields of a line.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Interval {
    disk: u16,
    start: u64,
    end: u64,
}

impl Interval {
    /// Returns it with the rest of the line.
    fn parse(line: &[u8]) -> Result<(Self, &[u8]), LineError> {
        let (disk, rest) = field(line, "start offset")?;
        let (start, rest) = field(rest, "end offset")?;
        let (end, rest) = field(rest, "type")?;
        let disk = disk_number(disk).ok_or_else(|| LineError::BadDisk { found: shown(disk) })?;
        let offset = |digits, field| {
            hexadecimal(digits).ok_or_else(|| LineError::BadNumber { field, found: shown(digits) })
        };
        let (start, end) = (offset(start, "start")?, offset(end, "end")?);
        if end <= start {
            return Err(LineError::EndNotAfterStart { start, end });
        }
        Ok((Self { disk, start, end }, rest))
    }

    fn range(self) -> DiskRange {
        DiskRange::new(self.start, self.end)
    }
}

/// What is before the first space, and what is after it, where field `next` begins.
fn field<'a>(text: &'a [u8], next: &'static str) -> Result<(&'a [u8], &'a [u8]), LineError> {
    // These fields are short: a loop over the bytes finds the space before memchr has begun.
    let space = text.iter().position(|&byte| byte == b' ').ok_or(LineError::Missing { field: next })?;
    Ok((&text[..space], &text[space + 1..]))
}

/// A field in an error message: printable, and of limited length.
fn shown(field: &[u8]) -> String {
    Printable(&field[..field.len().min(40)]).to_string()
}

fn disk_number(digits: &[u8]) -> Option<u16> {
    if digits.is_empty() || digits[0] == b'0' {
        return None;
    }
    digits.iter().try_fold(0u16, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| digit - b'0')?;
        number.checked_mul(10)?.checked_add(u16::from(digit))
    })
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0u64, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u64::from(digit))
    })
}

/// What has been read.
#[derive(Default)]
struct Reader {
    objects: ObjectTable,
    pieces: Vec<PieceRecord>,
    /// For each object the last of its pieces.
    last: Vec<u32>,
    above: Option<Interval>,
    /// The latest device of each kind: nearly every file has lines of its partition and its disk as
    /// well.
    recent: [Option<(Vec<u8>, u32)>; Kind::ALL.len()],
}

/// The object has no piece yet.
const NONE: u32 = u32::MAX;

impl Reader {
    fn line(&mut self, line: &[u8], dialect: Dialect) -> Result<(), LineError> {
        if line.starts_with(b"#") {
            return Err(LineError::LateComment);
        }
        let (interval, rest) = Interval::parse(line)?;
        let Interval { disk, start, end } = interval;
        if let Some(above) = self.above
            && above != interval
            && (disk, start) < (above.disk, above.end)
        {
            let (above_disk, above) = (above.disk, above.range());
            return Err(LineError::NotAscending { disk, range: interval.range(), above_disk, above });
        }
        self.above = Some(interval);

        let object = self.object(rest, dialect)?;
        if self.last.len() <= object as usize {
            self.last.resize(object as usize + 1, NONE);
        }
        let last = &mut self.last[object as usize];
        if let Some(piece) = self.pieces.get_mut(*last as usize)
            && piece.disk == disk
            && piece.end >= start
        {
            piece.end = end;
            return Ok(());
        }
        let limit = NONE - 1;
        *last = u32::try_from(self.pieces.len())
            .ok()
            .filter(|&place| place < limit)
            .ok_or(LineError::TooManyPieces { limit })?;
        let (file_offset, role) = (PieceRecord::NO_OFFSET, Role::default());
        self.pieces.push(PieceRecord { disk, start, object, end, file_offset, role });
        Ok(())
    }

    /// The object that `TYPE DEVICE [PATH]` names.
    fn object(&mut self, text: &[u8], dialect: Dialect) -> Result<u32, LineError> {
        let (letter, rest) = field(text, "device")?;
        let kind = match letter {
            [letter] => Kind::from_letter(*letter),
            b"lvm_lv" => Some(Kind::LogicalVolume),
            _ => None,
        };
        let kind = kind.ok_or_else(|| LineError::UnknownType { found: shown(letter) })?;
        let is_device = kind.has_path() == Some(false);
        let recent = usize::from(kind.specificity());
        if let Some((name, object)) = &self.recent[recent]
            && name == rest
        {
            return Ok(*object);
        }
        // The original escapes nothing: the rest of a device's line is its name, including spaces.
        let whole = dialect == Dialect::Original && is_device;
        let space = if whole { None } else { memchr::memchr(b' ', rest) };
        let (device, path) = space.map_or((rest, &b""[..]), |space| (&rest[..space], &rest[space + 1..]));
        let object = match dialect {
            Dialect::Original => self.objects.intern(ObjectName { kind, device, path }),
            Dialect::Escaped => {
                let (device, path) = (unescape(device)?, unescape(path)?);
                self.objects.intern(ObjectName { kind, device: &device, path: &path })
            }
        }?;
        if is_device {
            self.recent[recent] = Some((rest.to_vec(), object));
        }
        Ok(object)
    }

    fn finish(self, header: Header, dialect: Dialect) -> Map {
        let Self { objects, mut pieces, .. } = self;
        let (objects, renumbered) = objects.sort();
        for piece in &mut pieces {
            piece.object = renumbered[piece.object as usize];
        }
        // They came in the order of disk and start; what may be out of order is the objects of an
        // interval.
        for same in pieces.chunk_by_mut(|a, b| (a.disk, a.start) == (b.disk, b.start)) {
            same.sort_unstable();
        }
        Map::new(header, dialect, objects, pieces)
    }
}
