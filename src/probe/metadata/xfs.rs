//! XFS without a reverse mapping tree: its GETFSMAP reports only what is free. Numbers are
//! big-endian ("XFS Algorithms & Data Structures", chapter "Allocation Groups").

use super::{Blocks, Facts};
use crate::probe::device::{Device, Fields};
use crate::probe::superblock::Xfs;
use virt_bmap_ranges::{DeviceOffset, Range};

/// Most allocation groups whose headers are named.
const MOST_GROUPS: u64 = 1 << 16;

pub(super) fn describe(facts: &mut Facts, device: &mut Device<'_>, read: &Blocks) {
    if let Some(superblock) = device.read(0, 512) {
        let _ = describe_by(facts, device, &superblock, read);
    }
}

fn describe_by(facts: &mut Facts, device: &Device<'_>, superblock: &[u8], read: &Blocks) -> Option<()> {
    let Xfs { block, group_blocks, groups } = Xfs::of(superblock)?;
    let sector = u64::from(superblock.be16(102)?);
    let has_header = superblock.be16(100)? & 0xf == 5;
    // The superblock, the two headers of free space and inodes, and the free list: a sector each.
    let headers = (0..groups.min(MOST_GROUPS)).map_while(|group| {
        let start = group.checked_mul(group_blocks)?.checked_mul(block)?;
        Range::at(DeviceOffset(start), sector * 4)
    });
    let headers: Vec<_> = headers.collect();
    // The kernel has read the first group's headers, except the list.
    let verified = headers.first().is_some_and(|first| read.overlap(*first).next().is_some());
    let mut list = Vec::new();
    for header in &headers {
        let Some(bytes) = device.read(header.start.0, header.len()) else { break };
        let numbers = free_list(&bytes, usize::from(superblock.be16(102)?), has_header).unwrap_or_default();
        list.extend(numbers.into_iter().filter_map(|number| {
            let start = header.start.0.checked_add(u64::from(number).checked_mul(block)?)?;
            Range::at(DeviceOffset(start), block)
        }));
    }
    facts.name("[superblocks]", headers, verified);
    facts.name("[free list]", list, verified);

    let (log, log_blocks) = (superblock.be64(48)?, u64::from(superblock.be32(96)?));
    let bits = u32::from(superblock.u8_at(124)?);
    if log > 0 && bits < 32 {
        let number = (log >> bits).checked_mul(group_blocks)?.checked_add(log & ((1 << bits) - 1))?;
        let log = Range::at(DeviceOffset(number.checked_mul(block)?), log_blocks.checked_mul(block)?)?;
        facts.name("[journal]", [log], read.overlap(log).next().is_some());
    }
    Some(())
}

/// The blocks that a group reserves for its own trees, by their numbers in the group.
fn free_list(group: &[u8], sector: usize, has_header: bool) -> Option<Vec<u32>> {
    let (agf, agfl) = (group.get(sector..2 * sector)?, group.get(3 * sector..4 * sector)?);
    if agf.get(..4)? != b"XAGF" {
        return None;
    }
    let (first, count) = (agf.be32(40)? as usize, agf.be32(48)? as usize);
    let slots = if has_header { agfl.get(36..)? } else { agfl };
    let room = slots.len() / 4;
    (count <= room).then(|| (0..count).filter_map(|n| slots.be32((first + n) % room * 4)).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_free_list_goes_round() {
        let mut group = vec![0; 2048];
        group[512..516].copy_from_slice(b"XAGF");
        // 119 slots of 4 bytes fit behind the header of 36; the last one and the first are used.
        group[512 + 40 + 3] = 118;
        group[512 + 48 + 3] = 2;
        group[1536 + 36 + 3] = 9;
        group[2047] = 7;
        assert_eq!(super::free_list(&group, 512, true), Some(vec![7, 9]));
        group[512 + 48] = 1;
        assert_eq!(super::free_list(&group, 512, true), None);
        assert_eq!(super::free_list(&group[..1024], 512, true), None);
    }
}
