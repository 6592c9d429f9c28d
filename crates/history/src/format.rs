//! The format of a recorded history, as numbers.
//!
//! All numbers are little-endian. A log begins with a header of [`HEADER`] bytes:
//!
//! | bytes | contents |
//! |---|---|
//! | 0–7 | [`MAGIC`] |
//! | 8–11 | [`VERSION`] |
//! | 12–15 | number of disks |
//!
//! For each disk follow its size in bytes (8 bytes), the length of its identity (4 bytes, at most
//! [`MOST_IDENTITY`]) and the identity: bytes by which the base of the disk is known again.
//!
//! Then there are records, each a header of [`RECORD`] bytes and, for a write, its data:
//!
//! | bytes | contents |
//! |---|---|
//! | 0 | [`Kind`] |
//! | 1 | flags: 1 for FUA |
//! | 2–3 | number of the disk, from 1; 0 if the record is of no disk |
//! | 4–7 | 0 |
//! | 8–15 | time in nanoseconds since the beginning, by a monotonic clock; it never decreases |
//! | 16–23 | offset on the disk |
//! | 24–31 | length in bytes |
//!
//! A flush has neither offset nor length; the other kinds have none and are of no disk. The order
//! of the records is that in which the guest's other requests saw the writes.

use std::time::Duration;
use virt_bmap_ranges::DiskRange;

/// The first bytes.
pub(crate) const MAGIC: [u8; 8] = *b"VBHISTRY";
pub(crate) const VERSION: u32 = 1;
/// Length of the header without the disks.
pub(crate) const HEADER: usize = 16;
/// Length of a record's header.
pub(crate) const RECORD: usize = 32;
/// Most disks. qemu has fewer.
pub(crate) const MOST_DISKS: usize = 1024;
/// Most bytes of a disk's identity.
pub(crate) const MOST_IDENTITY: usize = 1 << 20;
/// Set for a change that was durable before it was answered.
const FUA: u8 = 1;

/// The kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Bytes were written; the data follows.
    Write = 1,
    /// A range was zeroed.
    Zero = 2,
    /// A range was discarded, and reads as zeroes from then on.
    Trim = 3,
    /// A flush: all earlier records of the disk are durable.
    Flush = 4,
    /// A state ended without a flush: nothing was written for some time, or the user wished it.
    State = 5,
    /// The trace has ended.
    End = 6,
    /// The recording was cut short here, and the guest went on.
    CutShort = 7,
}

impl Kind {
    /// Whether a record of this kind changes bytes.
    pub fn is_change(self) -> bool {
        matches!(self, Self::Write | Self::Zero | Self::Trim)
    }

    fn of(byte: u8) -> Option<Self> {
        let all = [Self::Write, Self::Zero, Self::Trim, Self::Flush, Self::State, Self::End, Self::CutShort];
        all.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// The header of a record, not checked against the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) kind: Kind,
    pub(crate) is_fua: bool,
    /// From 1.
    pub(crate) disk: u16,
    pub(crate) time: Duration,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl RecordHeader {
    /// A record without a range.
    pub(crate) fn mark(kind: Kind, disk: u16, time: Duration) -> Self {
        Self { kind, is_fua: false, disk, time, offset: 0, length: 0 }
    }

    /// A change of `range`.
    pub(crate) fn change(kind: Kind, disk: u16, time: Duration, range: DiskRange, is_fua: bool) -> Self {
        Self { kind, is_fua, disk, time, offset: range.start.0, length: range.len() }
    }

    pub(crate) fn encode(&self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        bytes[0] = self.kind as u8;
        bytes[1] = if self.is_fua { FUA } else { 0 };
        bytes[2..4].copy_from_slice(&self.disk.to_le_bytes());
        bytes[8..16].copy_from_slice(&nanoseconds(self.time).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes[24..].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    /// `None` if the kind or a flag is unknown.
    pub(crate) fn decode(bytes: &[u8; RECORD]) -> Option<Self> {
        let [kind, flags, disk0, disk1, 0, 0, 0, 0, ..] = *bytes else { return None };
        let is_fua = match flags {
            0 => false,
            FUA => true,
            _ => return None,
        };
        Some(Self {
            kind: Kind::of(kind)?,
            is_fua,
            disk: u16::from_le_bytes([disk0, disk1]),
            time: Duration::from_nanos(number(&bytes[8..])),
            offset: number(&bytes[16..]),
            length: number(&bytes[24..]),
        })
    }
}

/// The header of a log.
pub(crate) fn encode_header<'a>(disks: impl ExactSizeIterator<Item = (u64, &'a [u8])>) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((disks.len() as u32).to_le_bytes());
    for (size, identity) in disks {
        bytes.extend(size.to_le_bytes());
        bytes.extend((identity.len() as u32).to_le_bytes());
        bytes.extend(identity);
    }
    bytes
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The first 8 bytes as a number; 0 if there are fewer.
pub(crate) fn number(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_decoded_as_they_were_encoded() {
        let range = DiskRange::new(4096, 8192);
        let record = RecordHeader::change(Kind::Trim, 3, Duration::from_nanos(1 << 40), range, true);
        let bytes = record.encode();
        assert_eq!(RecordHeader::decode(&bytes), Some(record));
        for (at, value) in [(0, 0), (0, 8), (1, 2), (5, 1)] {
            let mut bad = bytes;
            bad[at] = value;
            assert_eq!(RecordHeader::decode(&bad), None);
        }
    }
}
