//! A raw disk in segments: `guest.001`, `guest.002`, …, or from `guest.000` on.
//!
//! This is how FTK Imager and `split -d -a 3` name them; after `.999` comes `.1000`. All segments
//! but the last have the same size.

use crate::file::PlainFile;
use crate::foreign::Foreign;
use crate::raw::RawFile;
use crate::source::within_file;
use crate::{
    Allocation, Image, ImageFormat, Location, OpenError, OpenOptions, SECTOR, Source, Warning, foreign,
    references,
};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use virt_bmap_ranges::{DiskOffset, DiskRange};

/// Least number of digits in the name of a segment.
const DIGITS: usize = 3;

/// Most segments. Each of them is an open file.
const MOST: usize = 4096;

/// The segments of a disk, all of which are there.
pub(crate) struct Segments(Vec<PathBuf>);

impl Segments {
    /// All segments of the disk, if the name of the file at `path` is that of a first segment.
    /// `None` if it is no segment's name, or the user states that the file is an image that is not
    /// raw.
    ///
    /// # Errors
    /// It is another segment than the first, or one is missing.
    pub(crate) fn of(path: &Path, format: Option<ImageFormat>) -> Result<Option<Self>, OpenError> {
        if format.is_some_and(|format| format != ImageFormat::Raw) || numbered(path).is_none() {
            return Ok(None);
        }
        // The others are beside the file itself, not beside a link to it.
        let Ok(real) = path.canonicalize() else { return Ok(None) };
        let Some((stem, number)) = numbered(&real) else { return Ok(None) };
        if !real.is_file() {
            return Ok(None);
        }
        let fail = |error| OpenError::from_io(path, error);
        let named = |number: u32| {
            let mut name = OsString::from(&stem);
            name.push(format!(".{number:0DIGITS$}"));
            PathBuf::from(name)
        };
        let mut numbers = BTreeSet::new();
        for entry in real.parent().unwrap_or(Path::new("/")).read_dir().map_err(fail)? {
            let entry = entry.map_err(fail)?.path();
            numbers.extend(numbered(&entry).filter(|(other, _)| *other == stem).map(|(_, number)| number));
        }
        let first = u32::from(!numbers.contains(&0));
        if number != first {
            let (path, first) = (path.to_owned(), named(first));
            return Err(OpenError::NotFirstSegment { path, first });
        }
        let mut segments = Vec::new();
        for (expected, number) in (first..).zip(numbers) {
            if number != expected {
                return Err(OpenError::NoSegment { path: named(expected), later: named(number) });
            }
            if segments.len() == MOST {
                return Err(OpenError::TooManySegments { path: path.to_owned(), limit: MOST });
            }
            segments.push(named(number));
        }
        Ok(Some(Self(segments)))
    }

    /// Opens them as one disk.
    ///
    /// # Errors
    /// One is no regular file, leads out of the directory, is in use, or has another size than the
    /// others.
    pub(crate) fn open(self, path: &Path, options: &OpenOptions) -> Result<Image, OpenError> {
        let mut parts: Vec<Part> = Vec::with_capacity(self.0.len());
        let mut end = 0_u64;
        let last = self.0.len() - 1;
        for (index, segment) in self.0.iter().enumerate() {
            let file = super::segment(segment, options)?;
            let size = file.size;
            let usual = parts.first().map_or(size, |first| first.size);
            if size > usual || size < usual && index != last {
                return Err(OpenError::SegmentSize { path: segment.clone(), size, usual });
            }
            if index == 0 && options.format.is_none() {
                whole(segment, &file)?;
            }
            let start = end;
            end = start
                .checked_add(size)
                .ok_or_else(|| OpenError::from_io(segment, io::Error::from(io::ErrorKind::FileTooLarge)))?;
            parts.push(Part { start, size, file: RawFile::new(file.file, size) });
        }
        let joined = Joined { parts, size: end };
        let mut warnings = Vec::new();
        if options.access.force_share {
            warnings.push(Warning::MayBeTorn { path: path.to_owned() });
        }
        if joined.size() != end {
            let (size, rounded) = (end, joined.size());
            warnings.push(Warning::RoundedUp { path: path.to_owned(), size, rounded });
        }
        Ok(Image::of_wrapped(Location::File(path.to_owned()), Arc::new(joined), self.0, warnings))
    }
}

/// Refuses a first segment that begins like an image of a format other than raw: the segments have
/// to be joined before qemu can read it.
fn whole(path: &Path, file: &PlainFile) -> Result<(), OpenError> {
    let fail = |error| OpenError::from_io(path, error);
    let refuse = |Foreign { kind, remedy }| Err(OpenError::Foreign { path: path.to_owned(), kind, remedy });
    if let Some(foreign) = foreign::of(path, file).map_err(fail)? {
        return refuse(foreign);
    }
    match references::sniff(file).map_err(fail)? {
        Some(format) if format != ImageFormat::Raw => refuse(Foreign {
            kind: "a segment of an image that is not raw",
            remedy: "join the segments with cat, and map what that gives",
        }),
        _ => Ok(()),
    }
}

/// The name of a segment without its number, and the number.
fn numbered(path: &Path) -> Option<(PathBuf, u32)> {
    let digits = path.extension()?.as_bytes();
    let is_number = digits.len() == DIGITS || digits.len() > DIGITS && digits[0] != b'0';
    if !is_number || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
    // A year, for instance, is no number of a segment.
    (number < MOST as u32 && (digits.len() == DIGITS || number > 999))
        .then(|| (path.with_extension(""), number))
}

/// A segment and its place on the disk.
struct Part {
    start: u64,
    size: u64,
    file: RawFile,
}

/// A [`Source`] over segments.
struct Joined {
    /// Ascending, without gaps.
    parts: Vec<Part>,
    /// The sum of their sizes. The disk may be up to a sector longer, and reads as zeroes there.
    size: u64,
}

impl Joined {
    /// Calls `read` for the piece of `buf` in each segment, with the offset in that segment, until
    /// it returns false.
    fn fill(
        &self,
        buf: &mut [u8],
        offset: DiskOffset,
        read: impl Fn(&RawFile, &mut [u8], DiskOffset) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let mut rest = within_file(buf, offset, self.size)?;
        let mut at = offset.0;
        let first = self.parts.partition_point(|part| part.start + part.size <= at);
        for part in self.parts.iter().skip(first) {
            let inside = at - part.start;
            let length = (part.size - inside).min(rest.len() as u64) as usize;
            let (piece, behind) = rest.split_at_mut(length);
            if !piece.is_empty() && !read(&part.file, piece, DiskOffset(inside))? {
                return Ok(false);
            }
            (rest, at) = (behind, at + length as u64);
            if rest.is_empty() {
                break;
            }
        }
        Ok(true)
    }
}

impl Source for Joined {
    fn size(&self) -> u64 {
        self.size.next_multiple_of(SECTOR)
    }

    fn try_read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<bool> {
        self.fill(buf, offset, RawFile::try_read_at)
    }

    fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<()> {
        self.fill(buf, offset, |file, piece, offset| file.read_at(piece, offset).map(|()| true)).map(drop)
    }

    fn allocation(&self, range: DiskRange) -> io::Result<Vec<Allocation>> {
        // Clients count holes in sectors, of which one segment may end in the middle.
        if self.parts.iter().any(|part| !part.start.is_multiple_of(SECTOR)) {
            return Ok(vec![Allocation { range, is_hole: false }]);
        }
        let mut all = Vec::new();
        for part in &self.parts {
            let last = part.start + part.size == self.size;
            let end = if last { self.size() } else { part.start + part.size };
            let Some(range) = range.intersection(DiskRange::new(part.start, end)) else { continue };
            let inside = DiskRange::new(range.start.0 - part.start, range.end.0 - part.start);
            all.extend(part.file.allocation(inside)?.into_iter().map(|Allocation { range, is_hole }| {
                let range = DiskRange::new(part.start + range.start.0, part.start + range.end.0);
                Allocation { range, is_hole }
            }));
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn numbers_of_segments_are_recognised() {
        let number =
            |name: &str| numbered(name.as_ref()).map(|(stem, number)| (stem.into_os_string(), number));
        assert_eq!(number("a.dd.001"), Some(("a.dd".into(), 1)));
        assert_eq!(number("a.999"), Some(("a".into(), 999)));
        assert_eq!(number("a.1000"), Some(("a".into(), 1000)));
        for name in ["a.1", "a.01", "a.0001", "a.00x", "a.20261129", "a.raw", "001"] {
            assert_eq!(number(name), None, "{name}");
        }
    }

    /// Odd sizes, so that sectors lie in two segments; a hole in one of them.
    #[test]
    fn bytes_are_those_of_the_segments_in_order() {
        for size in [1000_usize, 4096] {
            let dir = tempfile::tempdir().unwrap();
            let bytes: Vec<u8> = (0..size * 3 + 300).map(|at| (at % 251) as u8).collect();
            for (number, part) in bytes.chunks(size).enumerate() {
                fs::write(dir.path().join(format!("d.{number:03}")), part).unwrap();
            }
            let first = dir.path().join("d.000");
            let options = OpenOptions::default();
            let image = Segments::of(&first, None).unwrap().unwrap().open(&first, &options).unwrap();
            assert_eq!(image.source.size(), bytes.len().next_multiple_of(512) as u64);
            assert_eq!(image.files().unwrap().len(), 4);
            let mut all = vec![1; image.source.size() as usize];
            image.source.read_at(&mut all, DiskOffset(0)).unwrap();
            assert!(all[..bytes.len()] == bytes && all[bytes.len()..].iter().all(|byte| *byte == 0));
            for (offset, length) in [(0, 1), (size - 1, 2), (size, size), (10, size * 2)] {
                let mut part = vec![0; length];
                image.source.read_at(&mut part, DiskOffset(offset as u64)).unwrap();
                assert!(part == bytes[offset..offset + length], "{offset} {length}");
            }
            assert!(image.source.read_at(&mut all, DiskOffset(1)).is_err());
            let range = DiskRange::new(0, image.source.size());
            let mut at = range.start;
            for part in image.source.allocation(range).unwrap() {
                assert_eq!(part.range.start, at);
                at = part.range.end;
            }
            assert_eq!(at, range.end);
        }
    }
}
