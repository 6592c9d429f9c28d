//! The descriptors of a volume (ECMA-167, 3rd edition, part 3), one in each block.

use crate::{Fields, Read};
use std::collections::BTreeMap;
use virt_bmap_ranges::{DeviceOffset, Range};

/// The tag of an anchor (3/7.2.1).
pub const ANCHOR: u16 = 2;
// Tags of further descriptors.
const POINTER: u16 = 3;
const PARTITION: u16 = 5;
const LOGICAL_VOLUME: u16 = 6;
const TERMINATOR: u16 = 8;
const INTEGRITY: u16 = 9;

/// Where the first anchor lies.
pub const ANCHOR_BLOCK: u64 = 256;

/// Most descriptors of a sequence.
const MOST: usize = 256;

/// Where the parts of the filesystem lie, in bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Volume {
    /// Bytes of a block.
    pub block: u64,
    /// The descriptors, twice.
    pub sequences: Vec<Range<DeviceOffset>>,
    /// The extents of its integrity descriptors.
    pub integrity: Vec<Range<DeviceOffset>>,
    /// Its partition: places in the filesystem count from here.
    pub partition: Range<DeviceOffset>,
    /// The bitmap of unallocated blocks, if free space is described by nothing else.
    pub bitmap: Option<Range<DeviceOffset>>,
    /// The block of the partition that holds the file set descriptor.
    pub file_set: u64,
    /// Whether it was unmounted cleanly.
    pub is_closed: bool,
}

impl Volume {
    /// The volume with blocks of this size, if its only partition is a plain part of the device.
    ///
    /// A device may hold descriptors of an earlier volume with other blocks. The size of the
    /// mounted one is what `statfs(2)` gives.
    pub fn of(read: Read<'_>, block: u64) -> Option<Self> {
        if !matches!(block, 512 | 1024 | 2048 | 4096) {
            return None;
        }
        let (_, anchor) = descriptor(read, block, ANCHOR_BLOCK).filter(|(tag, _)| *tag == ANCHOR)?;
        let sequences = [extent(&anchor, 16, block)?, extent(&anchor, 24, block)?];
        let (logical, partition) = sequences.iter().find_map(|range| sequence(read, block, *range))?;
        let place = logical.le32(432)?;
        let integrity = if place > 0 { vec![extent(&logical, 432, block)?] } else { Vec::new() };
        let is_closed = integrity.first().is_some_and(|range| is_closed(read, block, *range));
        let (start, length) = (u64::from(partition.le32(188)?), u64::from(partition.le32(192)?));
        let range = Range::new(start * block, (start + length) * block);
        let bitmap = bitmap(&partition, block, range);
        let file_set = logical.le32(252)?.into();
        let sequences = sequences.into_iter().filter(|range| !range.is_empty()).collect();
        Some(Self { block, sequences, integrity, partition: range, bitmap, file_set, is_closed })
    }
}

/// The tag and the bytes of the descriptor in this block of the volume; `None` if it is not a
/// descriptor.
pub fn descriptor(read: Read<'_>, block: u64, number: u64) -> Option<(u16, Vec<u8>)> {
    let bytes = read(number.checked_mul(block)?, block)?;
    Some((tag(&bytes, number)?, bytes))
}

/// The tag of a descriptor that says that it is in this block (3/7.2).
pub fn tag(bytes: &[u8], number: u64) -> Option<u16> {
    let sum =
        (0..16).filter(|at| *at != 4).try_fold(0u8, |sum, at| Some(sum.wrapping_add(bytes.u8_at(at)?)))?;
    (sum == bytes.u8_at(4)? && u64::from(bytes.le32(12)?) == number).then_some(bytes.le16(0)?)
}

/// The blocks of an extent descriptor (3/7.1).
fn extent(bytes: &[u8], at: usize, block: u64) -> Option<Range<DeviceOffset>> {
    let (length, first) = (u64::from(bytes.le32(at)?), u64::from(bytes.le32(at + 4)?));
    Some(Range::new(first * block, first * block + length.next_multiple_of(block)))
}

/// The descriptors of the logical volume and of its partition, if it has one plain partition. Of
/// several descriptors of one kind, that with the highest number counts (3/8.4.3).
fn sequence(read: Read<'_>, block: u64, range: Range<DeviceOffset>) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut logical: Option<(u32, Vec<u8>)> = None;
    let mut partitions: BTreeMap<u16, (u32, Vec<u8>)> = BTreeMap::new();
    let (mut at, mut end) = (range.start.0, range.end.0);
    for _ in 0..MOST {
        // A block that was never written ends the sequence, too.
        let Some((tag, bytes)) = descriptor(read, block, at / block).filter(|_| at < end) else { break };
        at += block;
        match tag {
            POINTER => {
                let next = extent(&bytes, 20, block)?;
                (at, end) = (next.start.0, next.end.0);
            }
            PARTITION | LOGICAL_VOLUME => {
                let number = bytes.le32(16)?;
                let is_newer = |known: Option<&(u32, Vec<u8>)>| known.is_none_or(|known| known.0 <= number);
                if tag == LOGICAL_VOLUME && is_newer(logical.as_ref()) {
                    logical = Some((number, bytes));
                } else if tag == PARTITION && is_newer(partitions.get(&bytes.le16(22)?)) {
                    partitions.insert(bytes.le16(22)?, (number, bytes));
                }
            }
            TERMINATOR => break,
            _ => {}
        }
    }
    let (_, logical) = logical?;
    // One map, of type 1: an ordinary partition (3/10.7.2).
    let is_plain = logical.le32(268)? == 1 && logical.le16(440)? == 0x0601;
    if !is_plain || u64::from(logical.le32(212)?) != block {
        return None;
    }
    let (_, partition) = partitions.remove(&logical.le16(444)?)?;
    Some((logical, partition))
}

/// The bitmap that the partition's header names (4/14.3), if the partition has neither a table of
/// free space nor one of freed space.
fn bitmap(partition: &[u8], block: u64, range: Range<DeviceOffset>) -> Option<Range<DeviceOffset>> {
    let is_known = matches!(partition.get(25..31)?, b"+NSR02" | b"+NSR03");
    let others = [partition.le32(56)?, partition.le32(80)?, partition.le32(88)?];
    let (length, first) = (u64::from(partition.le32(64)?), u64::from(partition.le32(68)?));
    // The upper two bits mark extents where nothing is recorded.
    if !is_known || others != [0; 3] || length == 0 || length >= 1 << 30 {
        return None;
    }
    let start = range.start.0 + first * block;
    let place = Range::new(start, start + length.next_multiple_of(block));
    (place.end <= range.end).then_some(place)
}

/// Whether the last integrity descriptor says that the volume was closed (3/10.10).
fn is_closed(read: Read<'_>, block: u64, range: Range<DeviceOffset>) -> bool {
    const CLOSED: u32 = 1;
    let (mut at, mut end) = (range.start.0, range.end.0);
    let mut last = None;
    for _ in 0..MOST {
        let found = descriptor(read, block, at / block).filter(|(tag, _)| at < end && *tag == INTEGRITY);
        let Some((_, bytes)) = found else { break };
        (last, at) = (bytes.le32(28), at + block);
        if bytes.le32(32).is_some_and(|length| length > 0)
            && let Some(next) = extent(&bytes, 32, block)
        {
            (at, end) = (next.start.0, next.end.0);
        }
    }
    last == Some(CLOSED)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
