//! EnCase images (E01): the Expert Witness Compression Format, version 1.
//!
//! Joachim Metz, "Expert Witness Compression Format specification" (libewf's documentation, version
//! 0.0.80): an image is one file or several, the segments. Each is a chain of sections. The disk is
//! in chunks, compressed one by one with zlib or followed by their Adler-32, and tables say where
//! they lie. Each table has a copy. All numbers are little-endian.
//!
//! [`Ewf::open`] reads the chain of sections. Tables are read when a chunk of theirs is asked for,
//! so memory does not grow with the disk. A chunk or table that is damaged makes the reads in it
//! fail, and no others.

mod chunks;
mod section;

use crate::ReadAt;
use chunks::{Cache, Table};
use section::{Section, number};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The beginning of a segment file: the signature, the start of its fields, the number of the
/// segment, and their end.
const FILE_HEADER: u64 = 13;
const SIGNATURE: &[u8; 8] = b"EVF\x09\x0d\x0a\xff\0";

/// Most segments, by the names that they can have: `.E01` to `.E99`, then `.EAA` to `.ZZZ`.
pub const MOST_SEGMENTS: usize = 99 + 22 * 26 * 26;

/// Most sections in one segment. One of 2 GiB has some dozens.
const MOST_SECTIONS: usize = 1 << 16;

/// Most sections in all segments.
const MOST_TABLES: usize = 1 << 20;

/// Largest chunk, in bytes. Programs offer up to 16 MiB.
const MOST_CHUNK: u64 = 32 << 20;

/// Largest disk, in bytes.
const MOST_BYTES: u64 = 1 << 60;

/// Bytes of chunks that are kept.
const CACHED: u64 = 64 << 20;

/// A disk in an EnCase image.
pub struct Ewf<S> {
    segments: Vec<S>,
    size: u64,
    /// Bytes of the disk in a chunk.
    chunk: u64,
    /// By their first chunk, without gaps.
    tables: Vec<Table>,
    about: About,
    cache: Mutex<Cache>,
}

/// What the program that made the image noted about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The MD5 of the disk.
    pub md5: Option<[u8; 16]>,
    /// Its SHA-1.
    pub sha1: Option<[u8; 20]>,
    /// Sectors that it could not read from the disk. They are zeroes in the image.
    pub unread_sectors: u64,
}

/// Why a file is not read as an EnCase image. Segments are counted from 1.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EwfError {
    /// It cannot be read.
    #[error("segment {segment} cannot be read")]
    Io {
        /// The segment.
        segment: usize,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A segment has the number of another one, or is of another kind.
    #[error("the file in place of segment {segment} is not that segment")]
    NotThatSegment {
        /// The segment.
        segment: usize,
    },
    /// A section breaks the rules.
    #[error("segment {segment} is damaged: {reason}")]
    Damaged {
        /// The segment.
        segment: usize,
        /// How.
        reason: &'static str,
    },
    /// The last segment is not there.
    #[error("segment {segment} is missing")]
    Missing {
        /// The segment.
        segment: usize,
    },
    /// The tables do not cover the disk.
    #[error("it has {found} of the disk's {needed} chunks")]
    NotWhole {
        /// Chunks in the tables.
        found: u64,
        /// Chunks of the disk.
        needed: u64,
    },
    /// It is of a kind that this reader does not know.
    #[error("it is a SMART image (.s01)")]
    Smart,
}

/// Whether a file that begins with these bytes is the first segment of an EnCase image.
pub fn is_first_segment(head: &[u8]) -> bool {
    head.starts_with(SIGNATURE) && head.get(9..11) == Some(&[1, 0])
}

/// The path of segment number `segment`, from 1, of the image whose first one is at `first`.
/// `None` if the name of the first does not end in `01`, or there is no such number.
pub fn segment_path(first: &Path, segment: usize) -> Option<PathBuf> {
    let extension = first.extension()?.to_str()?;
    let (&letter, digits) = extension.as_bytes().split_first()?;
    if !letter.is_ascii_alphabetic() || digits != b"01" {
        return None;
    }
    let suffix = match segment {
        0 => return None,
        1..=99 => format!("{}{segment:02}", char::from(letter)),
        _ => {
            let (base, last) = if letter.is_ascii_lowercase() { (b'a', b'z') } else { (b'A', b'Z') };
            let after = segment - 100;
            let first = usize::from(letter) + after / (26 * 26);
            let first = u8::try_from(first).ok().filter(|first| *first <= last)?;
            let letter = |number: usize| char::from(base + (number % 26) as u8);
            format!("{}{}{}", char::from(first), letter(after / 26), letter(after))
        }
    };
    Some(first.with_extension(OsString::from(suffix)))
}

impl<S: ReadAt> Ewf<S> {
    /// Reads the sections of an image whose segments these are, in order.
    ///
    /// # Errors
    /// [`EwfError`]
    pub fn open(segments: Vec<S>) -> Result<Self, EwfError> {
        let mut found = Found::default();
        for (index, segment) in segments.iter().enumerate() {
            let number = index + 1;
            let mut header = [0; FILE_HEADER as usize];
            let io = |source| EwfError::Io { segment: number, source };
            segment.read_at(&mut header, 0).map_err(io)?;
            let stated = u16::from_le_bytes([header[9], header[10]]);
            if !header.starts_with(SIGNATURE) || usize::from(stated) != number {
                return Err(EwfError::NotThatSegment { segment: number });
            }
            let is_last = found.segment(index, segment)?;
            if is_last != (number == segments.len()) {
                return Err(match is_last {
                    // Files of an older, longer image would be read as a part of this one.
                    true => EwfError::NotThatSegment { segment: number + 1 },
                    false => EwfError::Missing { segment: number + 1 },
                });
            }
        }
        let Some(Volume { size, chunk }) = found.volume else {
            return Err(EwfError::Damaged { segment: 1, reason: "it does not say how large the disk is" });
        };
        let needed = size.div_ceil(chunk);
        if found.chunks < needed {
            return Err(EwfError::NotWhole { found: found.chunks, needed });
        }
        let cache = Mutex::new(Cache::new((CACHED / chunk).max(4) as usize));
        Ok(Self { segments, size, chunk, tables: found.tables, about: found.about, cache })
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What is noted about the disk.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Fills `buf` with the bytes of the disk from `offset` on.
    ///
    /// # Errors
    /// A chunk in the range is damaged or cannot be read, or the range is not on the disk.
    pub fn read_at(&self, mut buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.size);
        end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut at = offset;
        while !buf.is_empty() {
            let number = at / self.chunk;
            let bytes = self.chunk_at(number)?;
            let inside = bytes.get((at % self.chunk) as usize..).unwrap_or_default();
            let length = inside.len().min(buf.len());
            if length == 0 {
                return Err(chunks::damaged(number));
            }
            let (piece, rest) = buf.split_at_mut(length);
            piece.copy_from_slice(&inside[..length]);
            (buf, at) = (rest, at + length as u64);
        }
        Ok(())
    }

    /// The bytes of a chunk; those of the last end with the disk.
    fn chunk_at(&self, number: u64) -> io::Result<Arc<Vec<u8>>> {
        let cache = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = cache().chunk(number) {
            return Ok(bytes);
        }
        let next = self.tables.partition_point(|table| table.first <= number);
        let table = next.checked_sub(1).ok_or_else(|| chunks::damaged(number))?;
        let (index, table) = (table, &self.tables[table]);
        let segment = self.segments.get(table.segment).ok_or_else(|| chunks::damaged(number))?;
        let known = cache().table(index);
        let entries = match known {
            Some(entries) => entries,
            None => {
                let entries = Arc::new(table.entries(segment)?);
                cache().keep_table(index, entries.clone());
                entries
            }
        };
        let place = entries.place(number - table.first).ok_or_else(|| chunks::damaged(number))?;
        let length = (self.size - number * self.chunk).min(self.chunk);
        let bytes = Arc::new(chunks::read(segment, place, number, self.chunk, length)?);
        cache().keep(number, bytes.clone());
        Ok(bytes)
    }
}

/// The size of the disk and of a chunk, in bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Volume {
    size: u64,
    chunk: u64,
}

/// What the sections say.
#[derive(Default)]
struct Found {
    volume: Option<Volume>,
    tables: Vec<Table>,
    /// Chunks in these tables.
    chunks: u64,
    about: About,
}

impl Found {
    /// Reads the sections of a segment, and returns whether it is the last.
    fn segment(&mut self, index: usize, segment: &impl ReadAt) -> Result<bool, EwfError> {
        let damaged = |reason| EwfError::Damaged { segment: index + 1, reason };
        // Where the chunks before a table end, and whether they have one.
        let (mut data_end, mut has_table) = (None, false);
        let mut at = FILE_HEADER;
        for _ in 0..MOST_SECTIONS {
            let section = Section::read(index, segment, at)?;
            let part = |length| section.data(index, segment, length);
            match section.kind.as_slice() {
                b"volume" | b"disk" => self.volume(index, &section, segment)?,
                b"sectors" => (data_end, has_table) = (Some(section.end), false),
                b"table" | b"table2" => {
                    let is_copy = has_table && section.kind == b"table2";
                    let table = Table::new(&part(24)?, &section, index, self.chunks, data_end);
                    has_table = is_copy || table.is_some();
                    match (table, self.tables.last_mut()) {
                        (Some(copy), Some(table)) if is_copy => table.copy_is(&copy),
                        (Some(table), _) => {
                            if self.tables.len() == MOST_TABLES {
                                return Err(damaged("it has too many tables of chunks"));
                            }
                            self.chunks += table.count;
                            self.tables.push(table);
                        }
                        // Its copy may be whole.
                        (None, _) if is_copy || section.kind == b"table" => {}
                        (None, _) => return Err(damaged("a table of chunks and its copy have bad headers")),
                    }
                }
                b"hash" => {
                    let bytes = part(36)?;
                    if section::is_sound(&bytes) {
                        self.about.md5 = bytes.first_chunk().copied();
                    }
                }
                b"digest" => {
                    let bytes = part(80)?;
                    if section::is_sound(&bytes) {
                        self.about.md5 = bytes.first_chunk().copied();
                        self.about.sha1 = bytes.get(16..).and_then(<[u8]>::first_chunk).copied();
                    }
                }
                b"error2" => self.about.unread_sectors += section.errors(index, segment)?,
                b"next" => return Ok(false),
                b"done" => return Ok(true),
                _ => {}
            }
            if section.next < section.start {
                return Err(damaged("its sections do not follow each other"));
            }
            at = section.next;
        }
        Err(damaged("it has too many sections"))
    }

    fn volume(&mut self, index: usize, section: &Section, segment: &impl ReadAt) -> Result<(), EwfError> {
        let damaged = |reason| EwfError::Damaged { segment: index + 1, reason };
        if section.end - section.start == 94 {
            return Err(EwfError::Smart);
        }
        let bytes = section.data(index, segment, 1052)?;
        if !section::is_sound(&bytes) {
            return Err(damaged("the checksum of the disk's description is wrong"));
        }
        let (per_chunk, sector) = (number::<4>(&bytes, 8), number::<4>(&bytes, 12));
        let chunk = per_chunk.saturating_mul(sector);
        let size = number::<8>(&bytes, 16).saturating_mul(sector);
        if !(1..=MOST_CHUNK).contains(&chunk) || !(1..=MOST_BYTES).contains(&size) {
            return Err(damaged("the disk's description has impossible sizes"));
        }
        let volume = Volume { size, chunk };
        if *self.volume.get_or_insert(volume) != volume {
            return Err(damaged("it describes another disk"));
        }
        Ok(())
    }
}
