//! ISO 9660 (ECMA-119), with what Rock Ridge adds to its directory records ("System Use Sharing
//! Protocol", IEEE P1281; "Rock Ridge Interchange Protocol", IEEE P1282).

mod volume;

use crate::{Fields, Read};
pub use volume::{SYSTEM_AREA, Volume};

/// Bytes of a directory record in front of its name (9.1).
const HEAD: usize = 33;

/// A record of this kind of CD-ROM XA is in front of what Rock Ridge has.
const XA: usize = 14;

/// Most continuation areas of one record, as many as the kernel follows (`RR_MAX_CE_ENTRIES` in its
/// `fs/isofs/rock.c`).
const MOST: usize = 32;

/// A record of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its offset in the block.
    pub at: usize,
    bytes: &'a [u8],
}

/// The records in a block of a directory. No record goes past the end of a block.
pub fn records(block: &[u8]) -> impl Iterator<Item = Record<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let length = usize::from(block.u8_at(at)?);
        let bytes = block.get(at..at.checked_add(length)?).filter(|bytes| bytes.len() > HEAD)?;
        let record = Record { at, bytes };
        at += length;
        Some(record)
    })
}

impl<'a> Record<'a> {
    /// The first block of the file or directory.
    pub fn block(&self) -> Option<u64> {
        // Extended attributes are in front of the data (9.1.3).
        Some(u64::from(self.bytes.le32(2)?) + u64::from(self.bytes.u8_at(1)?))
    }

    /// Whether it is the record of its own directory.
    pub fn is_self(&self) -> bool {
        self.bytes.get(32..34) == Some(&[1, 0])
    }

    /// Bytes of the directory that begins in this block, if the record is that directory's own.
    pub fn own_length(&self, block: u64) -> Option<u32> {
        let is_its_own = self.is_self() && self.block() == Some(block);
        self.bytes.le32(10).filter(|_| is_its_own)
    }

    /// What follows the name and its padding.
    fn system_use(&self) -> &'a [u8] {
        let name = usize::from(self.bytes.u8_at(32).unwrap_or(0));
        let start = HEAD + name + usize::from(name.is_multiple_of(2));
        let rest = self.bytes.get(start..).unwrap_or_default();
        if rest.get(6..8) == Some(b"XA") { rest.get(XA..).unwrap_or_default() } else { rest }
    }

    /// The blocks of its continuation areas (SUSP 5.1), and where the directory lies that this
    /// record stands for, if Rock Ridge moved one (RRIP 4.1.5.1, `CL`).
    pub fn continuation(&self, read: Read<'_>, size: u64) -> Continuation {
        let mut found = Continuation::default();
        let mut area = self.system_use().to_vec();
        for _ in 0..MOST {
            let mut next = None;
            for entry in entries(&area) {
                match entry.get(..2) {
                    Some(b"CE") => next = continued(entry),
                    Some(b"CL") => found.moved = entry.le32(4).map(u64::from),
                    _ => {}
                }
            }
            let Some((block, offset, length)) = next.filter(|(_, offset, length)| offset + length <= size)
            else {
                break;
            };
            let Some(bytes) = block.checked_mul(size).and_then(|at| read(at + offset, length)) else { break };
            found.blocks.push(block);
            area = bytes;
        }
        found
    }
}

/// What a record has in other blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Continuation {
    /// The blocks of its continuation areas.
    pub blocks: Vec<u64>,
    /// The first block of the directory that was moved.
    pub moved: Option<u64>,
}

/// The entries of a system use area: a signature of two bytes, and the length of the entry.
fn entries(area: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = area;
    std::iter::from_fn(move || {
        let length = usize::from(rest.u8_at(2)?);
        let (entry, after) = rest.split_at_checked(length).filter(|_| length >= 4)?;
        rest = after;
        Some(entry)
    })
}

/// Block, offset and length of a continuation area.
fn continued(entry: &[u8]) -> Option<(u64, u64, u64)> {
    Some((entry.le32(4)?.into(), entry.le32(12)?.into(), entry.le32(20)?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader;

    const SIZE: u64 = 2048;

    fn record(name: &[u8], block: u32, system_use: &[u8]) -> Vec<u8> {
        let mut record = vec![0; HEAD];
        record[2..6].copy_from_slice(&block.to_le_bytes());
        record[32] = name.len() as u8;
        record.extend_from_slice(name);
        if name.len().is_multiple_of(2) {
            record.push(0);
        }
        record.extend_from_slice(system_use);
        record[0] = record.len() as u8;
        record
    }

    fn entry(signature: &[u8; 2], words: &[(usize, u32)], length: u8) -> Vec<u8> {
        let mut entry = vec![0; length.into()];
        entry[..2].copy_from_slice(signature);
        entry[2] = length;
        words.iter().for_each(|(at, word)| entry[*at..at + 4].copy_from_slice(&word.to_le_bytes()));
        entry
    }

    #[test]
    fn records_end_where_the_block_has_zeroes() {
        let mut block = [record(&[0], 20, &[]), record(b"AB", 21, &[])].concat();
        block.resize(SIZE as usize, 0);
        let found: Vec<_> =
            records(&block).map(|record| (record.at, record.block(), record.is_self())).collect();
        assert_eq!(found, [(0, Some(20), true), (34, Some(21), false)]);
        // A record that goes past the end.
        assert_eq!(records(&block[..60]).count(), 1);
        assert_eq!(records(&[255; 40]).count(), 0);
    }

    #[test]
    fn continuation_areas_are_followed() {
        let mut disk = vec![0; 5 * SIZE as usize];
        let moved = entry(b"CL", &[(4, 77)], 12);
        disk[3 * SIZE as usize + 100..][..12].copy_from_slice(&moved);
        let place = [(4, 3), (12, 100), (20, 12)];
        let block = record(b"X", 9, &[entry(b"RR", &[], 5), entry(b"CE", &place, 28)].concat());
        let of = |block: &[u8]| records(block).next().unwrap().continuation(&reader(&disk), SIZE);
        assert_eq!(of(&block), Continuation { blocks: vec![3], moved: Some(77) });
        // CD-ROM XA has its own 14 bytes first.
        let mut with_xa = vec![0; XA];
        with_xa[6..8].copy_from_slice(b"XA");
        with_xa.extend(entry(b"CL", &[(4, 5)], 12));
        assert_eq!(of(&record(b"X", 9, &with_xa)).moved, Some(5));
        // Places outside of a block, or of the volume.
        for place in [[(4, 3), (12, 2047), (20, 12)], [(4, 9), (12, 0), (20, 12)]] {
            assert_eq!(of(&record(b"X", 9, &entry(b"CE", &place, 28))), Continuation::default());
        }
    }

    #[test]
    fn areas_that_go_round_end() {
        let mut disk = vec![0; 4 * SIZE as usize];
        let round = entry(b"CE", &[(4, 3), (20, 28)], 28);
        disk[3 * SIZE as usize..][..28].copy_from_slice(&round);
        let block = record(b"X", 9, &round);
        let found = records(&block).next().unwrap().continuation(&reader(&disk), SIZE);
        assert_eq!(found.blocks.len(), MOST);
    }
}
