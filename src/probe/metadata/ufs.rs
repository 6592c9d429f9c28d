//! UFS of the BSDs: the superblock says where the parts of each cylinder group lie, and the group
//! which of its fragments are free (see [`virt_bmap_on_disk::ufs`]). The agent has reported the
//! blocks that belong to files besides their data.

use super::{Blocks, Facts};
use crate::probe::device::Device;
use virt_bmap_on_disk::ufs::Volume;
use virt_bmap_ranges::Range;

pub(super) fn describe(facts: &mut Facts, device: &Device<'_>) {
    let read = |at, length| device.read(at, length);
    facts.free = None;
    let Some(volume) = Volume::of(&read).filter(|volume| volume.size() <= device.size) else { return };
    let groups =
        (0..volume.groups).map_while(|group| Some((volume.parts(group)?, volume.group(&read, group))));
    let (mut superblocks, mut descriptors, mut inodes) = (Vec::new(), Vec::new(), Vec::new());
    let mut free = Some(Blocks::new());
    for (parts, group) in groups {
        superblocks.push(parts.superblock);
        descriptors.push(parts.descriptor);
        inodes.push(parts.inodes);
        match (&mut free, group) {
            (Some(free), Some(group)) => free.extend(group.free),
            _ => free = None,
        }
    }
    // Of a damaged group, nobody knows what is free.
    let is_whole = free.is_some() && descriptors.len() as u64 == volume.groups;
    facts.name("[boot blocks]", [volume.boot_blocks()], true);
    facts.name("[superblocks]", superblocks, true);
    facts.name("[cylinder groups]", descriptors, is_whole);
    facts.name("[inodes]", inodes, true);
    facts.name("[cylinder group summary]", volume.summary(), true);
    facts.whole.insert(Range::new(0, volume.size()));
    facts.free = free.filter(|_| is_whole);
}
