//! Padding of filesystems that are made in one step: zeroes with which programs fill a block, or
//! reach a size that a drive or a kernel wants. Nothing refers to them. What is not all zeroes is
//! never padding.

use super::facts::Named;
use super::parts::Parts;
use super::{Blocks, Facts, PADDING};
use crate::probe::device::{Device, Read};
use virt_bmap_map::Marks;
use virt_bmap_ranges::Range;

/// The unit that is padding, or is not.
const UNIT: u64 = 512;

/// Bytes that are read at a time, and of one filesystem.
const PIECE: u64 = 1 << 20;
const MOST: u64 = 64 << 20;

/// Names the padding among the bytes in use that have no owner.
pub(super) fn name(facts: &Facts, parts: &mut Parts, device: &Device<'_>) {
    if facts.is_packed {
        let padding = find(&parts.unexplained, &|at, length| device.read(at, length));
        parts.unexplained = parts.unexplained.difference(&padding);
        parts.unnamed.push(Named { name: PADDING, blocks: padding, marks: Marks::empty() });
    }
}

/// The zeroes among these bytes.
fn find(blocks: &Blocks, read: Read<'_>) -> Blocks {
    let mut zeroes = Blocks::new();
    let mut left = MOST;
    for range in blocks.iter() {
        let mut at = range.start.0;
        while at < range.end.0 && left > 0 {
            let length = PIECE.min(range.end.0 - at).min(left);
            let Some(bytes) = read(at, length) else { break };
            for (number, unit) in (0..).zip(bytes.chunks(UNIT as usize)) {
                if unit.iter().all(|byte| *byte == 0) {
                    zeroes.insert(Range::saturating(at + number * UNIT, unit.len() as u64));
                }
            }
            (at, left) = (at + length, left - length);
        }
    }
    zeroes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::device::reader;

    #[test]
    fn only_zeroes_are_padding() {
        let mut disk = vec![0; 8192];
        (disk[100], disk[4095]) = (1, 1);
        let blocks: Blocks =
            [Range::new(0, 700), Range::new(2048, 4096), Range::new(8000, 9000)].into_iter().collect();
        let found: Vec<_> =
            find(&blocks, &reader(&disk)).iter().map(|range| (range.start.0, range.end.0)).collect();
        // The last one cannot be read.
        assert_eq!(found, [(512, 700), (2048, 3584)]);
    }
}
