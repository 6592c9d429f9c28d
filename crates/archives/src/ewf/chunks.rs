//! Tables of chunks, and chunks.

use super::section::{self, Section, number};
use crate::ReadAt;
use flate2::{Decompress, FlushDecompress, Status};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;

/// Most chunks of a table. Programs write at most 65,534.
const MOST_ENTRIES: u64 = 1 << 22;

/// Bytes of a table's header.
const HEADER: u64 = 24;

/// Most bytes by which a chunk may become longer when it is stored.
const OVERHEAD: u64 = 64 << 10;

/// Tables that are kept.
const CACHED_TABLES: usize = 8;

/// A chunk is damaged.
pub(super) fn damaged(number: u64) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("chunk {number} of the image is damaged"))
}

/// A table: where some consecutive chunks lie in a segment.
pub(super) struct Table {
    /// The number of the segment, from 0.
    pub(super) segment: usize,
    /// The number of its first chunk.
    pub(super) first: u64,
    /// How many chunks it has.
    pub(super) count: u64,
    /// Where the last chunk ends.
    data_end: u64,
    /// Its entries: where they begin, and what is added to their offsets.
    entries: (u64, u64),
    /// The same of its copy.
    copy: Option<(u64, u64)>,
}

impl Table {
    /// The table with this header. `None` if the header is damaged. `data_end` is where the
    /// section with its chunks ends; without one, they are behind the table.
    pub(super) fn new(
        header: &[u8],
        section: &Section,
        segment: usize,
        first: u64,
        data_end: Option<u64>,
    ) -> Option<Self> {
        let count = number::<4>(header, 0);
        let room = (section.end - section.start).checked_sub(HEADER)? / 4;
        // Without the checksum behind the entries, they cannot be trusted.
        let is_possible = (1..=MOST_ENTRIES).contains(&count) && count < room;
        (section::is_sound(header) && is_possible).then(|| Self {
            segment,
            first,
            count,
            data_end: data_end.unwrap_or(section.end),
            entries: (section.start + HEADER, number::<8>(header, 8)),
            copy: None,
        })
    }

    /// Notes where its copy is.
    pub(super) fn copy_is(&mut self, copy: &Self) {
        if self.count == copy.count && self.copy.is_none() {
            self.copy = Some(copy.entries);
        }
    }

    /// Reads its entries, or those of its copy.
    pub(super) fn entries(&self, segment: &impl ReadAt) -> io::Result<Entries> {
        let read = |(start, base): (u64, u64)| {
            let mut bytes = vec![0; (self.count as usize + 1) * 4];
            segment.read_at(&mut bytes, start)?;
            let entries = bytes.chunks_exact(4).take(self.count as usize);
            let words = entries.map(|entry| number::<4>(entry, 0) as u32).collect();
            let is_sound = section::is_sound(&bytes);
            Ok::<_, io::Error>(is_sound.then_some(Entries { words, base, end: self.data_end }))
        };
        if let Ok(Some(entries)) = read(self.entries) {
            return Ok(entries);
        }
        let copy = self.copy.map_or(Ok(None), read)?;
        copy.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "a table of chunks and its copy are damaged")
        })
    }
}

/// The entries of a table.
pub(super) struct Entries {
    words: Vec<u32>,
    /// What is added to each offset.
    base: u64,
    /// Where the last chunk ends.
    end: u64,
}

/// Where a chunk lies in a segment.
#[derive(Clone, Copy)]
pub(super) struct Place {
    start: u64,
    end: u64,
    is_compressed: bool,
}

impl Entries {
    /// The place of the chunk that has the number `index` here. `None` if the table is damaged.
    pub(super) fn place(&self, index: u64) -> Option<Place> {
        const COMPRESSED: u32 = 1 << 31;
        let index = usize::try_from(index).ok()?;
        let offset = |word: u32| self.base.checked_add((word & !COMPRESSED).into());
        let word = *self.words.get(index)?;
        let start = offset(word)?;
        let end = self.words.get(index + 1).map_or(Some(self.end), |next| offset(*next))?;
        (start < end).then_some(Place { start, end, is_compressed: word & COMPRESSED != 0 })
    }
}

/// Reads a chunk: `length` bytes, of at most `chunk`.
pub(super) fn read(
    segment: &impl ReadAt,
    place: Place,
    number: u64,
    chunk: u64,
    length: u64,
) -> io::Result<Vec<u8>> {
    let Place { start, end, is_compressed } = place;
    // What is behind the last chunk of a section is no part of it.
    let stored = (end - start).min(chunk + OVERHEAD);
    let mut bytes = vec![0; stored as usize];
    segment.read_at(&mut bytes, start)?;
    let bytes = if is_compressed {
        let mut whole = Vec::with_capacity(chunk as usize);
        // At the end of its stream, the decoder compares the Adler-32. A chunk that has more bytes
        // than there is room for does not come to its end.
        let status = Decompress::new(true).decompress_vec(&bytes, &mut whole, FlushDecompress::Finish);
        if !matches!(status, Ok(Status::StreamEnd)) {
            return Err(damaged(number));
        }
        whole
    } else {
        // The last chunk of a disk is written whole by some programs.
        let with_sum =
            |length: u64| bytes.get(..length as usize + 4).filter(|bytes| section::is_sound(bytes));
        let data = with_sum(chunk).or_else(|| with_sum(length)).ok_or_else(|| damaged(number))?;
        data[..data.len() - 4].to_vec()
    };
    if (bytes.len() as u64) < length {
        return Err(damaged(number));
    }
    Ok(bytes)
}

/// The chunks and tables that were read last.
pub(super) struct Cache {
    chunks: HashMap<u64, Arc<Vec<u8>>>,
    /// The chunks in the order in which they came.
    order: VecDeque<u64>,
    most: usize,
    tables: VecDeque<(usize, Arc<Entries>)>,
}

impl Cache {
    /// A cache for so many chunks.
    pub(super) fn new(most: usize) -> Self {
        Self { chunks: HashMap::new(), order: VecDeque::new(), most, tables: VecDeque::new() }
    }

    pub(super) fn chunk(&self, number: u64) -> Option<Arc<Vec<u8>>> {
        self.chunks.get(&number).cloned()
    }

    pub(super) fn keep(&mut self, number: u64, bytes: Arc<Vec<u8>>) {
        if self.chunks.insert(number, bytes).is_some() {
            return;
        }
        self.order.push_back(number);
        if self.order.len() > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.chunks.remove(&oldest);
        }
    }

    pub(super) fn table(&self, index: usize) -> Option<Arc<Entries>> {
        self.tables.iter().find(|(kept, _)| *kept == index).map(|(_, entries)| entries.clone())
    }

    pub(super) fn keep_table(&mut self, index: usize, entries: Arc<Entries>) {
        self.tables.push_back((index, entries));
        if self.tables.len() > CACHED_TABLES {
            self.tables.pop_front();
        }
    }
}
