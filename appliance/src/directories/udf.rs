//! UDF: the inode number of a directory is the block of its file entry (`__udf_iget` in the kernel's
//! `fs/udf/inode.c`).

use super::device::Device;
use super::{Place, extents};
use virt_bmap_agent_protocol::record::Extent;
use virt_bmap_on_disk::udf;

pub(super) struct Udf {
    volume: udf::Volume,
}

impl Udf {
    pub(super) fn new(device: &Device, block: u64) -> Option<Self> {
        let volume = udf::Volume::of(&|at, length| device.read(at, length), block)?;
        Some(Self { volume })
    }

    pub(super) fn place(&self, device: &Device, inode: u64) -> Option<Place> {
        let place = udf::Place::of(&|at, length| device.read(at, length), &self.volume, inode)?;
        let mut extents = extents(place.extents);
        if place.is_embedded {
            let physical = inode.checked_mul(self.volume.block)?;
            extents = vec![Extent { logical: 0, physical, length: self.volume.block, flags: Extent::INLINE }];
        }
        let beside = place.entry.iter().map(|range| (range.start.0, range.len())).collect();
        Some(Place { extents, beside })
    }
}
