//! btrfs: its extent tree says what its address space is used for, but neither superblocks nor
//! unallocated space have an address there ("On-disk Format" in the documentation of btrfs;
//! `btrfs_sb_offset` in the kernel's `fs/btrfs/disk-io.h`).

use super::{Blocks, Facts, MetadataInputs};
use crate::probe::layout::{Layout, Segment};
use crate::recorder::Recording;
use virt_bmap_ranges::Range;

/// Where the superblock and its copies lie on each device that is large enough.
const SUPERBLOCKS: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
const SUPERBLOCK: u64 = 4 << 10;
/// The beginning of each device is left to boot loaders (`BTRFS_DEVICE_RANGE_RESERVED`).
const FOR_BOOT_LOADERS: u64 = 1 << 20;

/// What has no address, as places on the disks.
#[derive(Default)]
pub(super) struct Outside {
    pub(super) superblocks: Recording,
    /// Room for boot loaders, and what shares its address with a superblock.
    pub(super) reserved: Recording,
    /// Other metadata that was read.
    pub(super) read: Recording,
    /// Space in no chunk, and parity that protects nothing.
    pub(super) unallocated: Recording,
}

pub(super) fn describe(facts: &mut Facts, inputs: &MetadataInputs, space: &Layout) {
    let of_members = |from: u64, length: u64| -> Recording {
        let parts = inputs.members.iter().filter_map(move |member| {
            let end = from.saturating_add(length).min(member.size());
            member.part(Range::new(from.min(end), end))
        });
        on_disks(parts.flatten())
    };
    let mut superblocks = Recording::default();
    for at in SUPERBLOCKS {
        superblocks.extend(of_members(at, SUPERBLOCK).iter());
    }
    let chunks = on_disks(space.segments().chain(space.parity_segments()).copied());
    let mut unallocated = of_members(FOR_BOOT_LOADERS, u64::MAX).difference(&chunks).difference(&superblocks);
    // A chunk may contain a superblock. The address of that is never used, in any copy.
    let never = space.to_device_partly(&superblocks);
    let used = std::mem::replace(&mut facts.whole, of_chunks(space).difference(&never));
    facts.free = facts.free.take().map(|_| facts.whole.difference(&used));
    let mut reserved = of_members(0, FOR_BOOT_LOADERS);
    reserved.extend(on_disks(never.iter().flat_map(|range| space.part(range).unwrap_or_default())).iter());
    let reserved = reserved.difference(&superblocks);
    if let Some(free) = &facts.free {
        let parity = |blocks: &Blocks| on_disks(blocks.iter().flat_map(|range| space.parity(range)));
        unallocated.extend(parity(free).difference(&parity(&used)).difference(&superblocks).iter());
    }
    let read = inputs.untagged.difference(&inputs.owned).difference(&chunks);
    let read = read.difference(&superblocks).difference(&unallocated).difference(&reserved);
    facts.outside = Outside { superblocks, reserved, read, unallocated };
}

/// All addresses of the chunks.
fn of_chunks(space: &Layout) -> Blocks {
    space.segments().map(|segment| segment.device).collect()
}

fn on_disks(segments: impl Iterator<Item = Segment>) -> Recording {
    let mut places = Recording::default();
    places.extend(segments.map(|segment| (segment.disk, segment.disk_range())));
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use virt_bmap_ranges::DeviceOffset;

    #[test]
    fn space_outside_of_chunks_is_free_except_superblocks() {
        const MIB: u64 = 1 << 20;
        let member = Arc::new(Layout::of_disk(1, 100 * MIB));
        // The only chunk is at its own address, around a copy of the superblock.
        let space = Layout::of_disk(1, 80 * MIB);
        let mut inputs = MetadataInputs { members: vec![member], ..MetadataInputs::default() };
        inputs.untagged.insert(1, Range::new(90 * MIB, 90 * MIB + 512));
        let used = [Range::new(0, 60 * MIB)].into_iter().collect();
        let mut facts = Facts { whole: used, free: Some(Blocks::new()), ..Facts::default() };
        describe(&mut facts, &inputs, &space);
        let outside = &facts.outside;
        let ranges = |places: &Recording| -> Vec<(u64, u64)> {
            places.iter().map(|(_, range)| (range.start.0, range.end.0)).collect()
        };
        let blocks = |blocks: &Blocks| -> Vec<(u64, u64)> {
            blocks.iter().map(|range: Range<DeviceOffset>| (range.start.0, range.end.0)).collect()
        };
        let (first, second) = ((65536, 65536 + 4096), (64 * MIB, 64 * MIB + 4096));
        assert_eq!(ranges(&outside.superblocks), [first, second]);
        assert_eq!(ranges(&outside.unallocated), [(80 * MIB, 100 * MIB)]);
        assert_eq!(ranges(&outside.reserved), [(0, first.0), (first.1, MIB)]);
        assert_eq!(ranges(&outside.read), []);
        assert_eq!(blocks(&facts.free.unwrap()), [(60 * MIB, second.0), (second.1, 80 * MIB)]);
    }
}
