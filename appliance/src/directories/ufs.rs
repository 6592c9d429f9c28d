//! UFS: an inode has the numbers of its blocks.

use super::Place;
use super::device::Device;
use crate::ufs::Ufs;
use virt_bmap_agent_protocol::record::Extent;

/// The place of a directory or file.
pub(super) fn place(ufs: &Ufs, device: &Device, inode: u64) -> Option<Place> {
    let place = ufs.place(device, inode)?;
    let beside = place.indirect.iter().map(|range| (range.start.0, range.len())).collect();
    let extents = place.data.iter().map(|part| Extent {
        logical: part.offset,
        physical: part.range.start.0,
        length: part.range.len(),
        flags: 0,
    });
    Some(Place { extents: extents.collect(), beside })
}
