//! Sections: the parts of a segment.

use super::EwfError;
use crate::ReadAt;

/// Size of a section's descriptor.
pub(super) const DESCRIPTOR: u64 = 76;

/// Most entries of a list of read errors that are counted.
const MOST_ERRORS: u64 = 1 << 20;

/// A section.
pub(super) struct Section {
    /// Its kind, without the NULs at its end.
    pub(super) kind: Vec<u8>,
    /// Where its data begin.
    pub(super) start: u64,
    /// Where they end, within the file.
    pub(super) end: u64,
    /// Where the next section's descriptor is.
    pub(super) next: u64,
}

impl Section {
    /// Reads the descriptor at `at` of a segment, of which `index` is the number from 0.
    pub(super) fn read(index: usize, segment: &impl ReadAt, at: u64) -> Result<Self, EwfError> {
        let damaged = |reason| EwfError::Damaged { segment: index + 1, reason };
        if at.checked_add(DESCRIPTOR).is_none_or(|end| end > segment.size()) {
            return Err(damaged("it is cut off"));
        }
        let mut bytes = vec![0; DESCRIPTOR as usize];
        segment.read_at(&mut bytes, at).map_err(|source| EwfError::Io { segment: index + 1, source })?;
        if !is_sound(&bytes) {
            return Err(damaged("the checksum of a section is wrong"));
        }
        let kind = bytes[..16].split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        let (next, size) = (number::<8>(&bytes, 16), number::<8>(&bytes, 24));
        let start = at + DESCRIPTOR;
        // The last section's size is 0 or that of its descriptor, by the program that wrote it.
        let end = at.checked_add(size.max(DESCRIPTOR)).filter(|end| *end <= segment.size());
        let end = end.ok_or_else(|| damaged("it is cut off"))?;
        Ok(Self { kind, start, end, next })
    }

    /// The first `length` bytes of its data.
    pub(super) fn data(&self, index: usize, segment: &impl ReadAt, length: u64) -> Result<Vec<u8>, EwfError> {
        if self.end - self.start < length {
            return Err(EwfError::Damaged { segment: index + 1, reason: "a section is too short" });
        }
        let mut bytes = vec![0; length as usize];
        segment
            .read_at(&mut bytes, self.start)
            .map_err(|source| EwfError::Io { segment: index + 1, source })?;
        Ok(bytes)
    }

    /// The number of sectors in a list of read errors: a header of 520 bytes, and entries of a
    /// first sector and a number of sectors.
    pub(super) fn errors(&self, index: usize, segment: &impl ReadAt) -> Result<u64, EwfError> {
        const HEADER: u64 = 520;
        let header = self.data(index, segment, HEADER)?;
        let room = (self.end - self.start - HEADER) / 8;
        let count = number::<4>(&header, 0).min(room).min(MOST_ERRORS);
        let all = self.data(index, segment, HEADER + count * 8)?;
        let entries = all.get(HEADER as usize..).unwrap_or_default();
        Ok(entries.chunks_exact(8).map(|entry| number::<4>(entry, 4)).sum())
    }
}

/// Whether bytes end with the Adler-32 of those before it.
pub(super) fn is_sound(bytes: &[u8]) -> bool {
    bytes
        .split_last_chunk::<4>()
        .is_some_and(|(data, sum)| adler2::adler32_slice(data) == u32::from_le_bytes(*sum))
}

/// The number of `N` bytes at `at`; 0 past the end.
pub(super) fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(|rest| rest.get(..N)).unwrap_or_default();
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
