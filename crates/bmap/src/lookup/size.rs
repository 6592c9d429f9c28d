//! The size of a disk, as far as its map has it.

use crate::hardlinks::disk_ranges;
use crate::{Kind, Map};
use virt_bmap_ranges::DiskNumber;

/// The size of a disk in a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskSize {
    /// The map has no such disk.
    NoDisk,
    /// The map has the disk, but neither its size nor the object of the disk, because lines were
    /// removed. It has at least so many bytes.
    AtLeast(u64),
    /// So many bytes.
    Bytes(u64),
}

/// The size of disk number `disk`: from the map's header, or else from the object that is the disk.
pub fn disk_size(map: &Map, disk: DiskNumber) -> DiskSize {
    if let Some(image) = map.header().images.iter().find(|image| image.disk == disk) {
        return DiskSize::Bytes(image.size);
    }
    let end = |(_, range): (DiskNumber, virt_bmap_ranges::DiskRange)| range.end.0;
    let disks = map.objects().filter(|object| object.kind() == Kind::Disk);
    if let Some(size) = disks.flat_map(disk_ranges).filter(|(number, _)| *number == disk).map(end).max() {
        return DiskSize::Bytes(size);
    }
    let ends = map.pieces().filter(|piece| piece.disk == disk).map(|piece| piece.range.end.0);
    ends.max().map_or(DiskSize::NoDisk, DiskSize::AtLeast)
}
