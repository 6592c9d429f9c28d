//! Where directories lie, on filesystems whose driver does not say: FAT, exFAT, ISO 9660, UDF, UFS.
//!
//! The place follows from the filesystem's own structures: from the table of clusters, a directory
//! record, a file entry, or an inode. The agent reads these from the device past its cache, so that
//! the kernel still has to read a directory when it lists it. The host compares that read with the
//! place: the kernel proves the computation.
//!
//! A volume may be hostile. What makes no sense has no place, and the host says so.

mod chain;
mod device;
mod exfat;
mod fat;
mod iso9660;
mod udf;
mod ufs;

use crate::ufs::Ufs;
pub(crate) use device::Device;
use rustix::fd::OwnedFd;
use rustix::fs::fstat;
use virt_bmap_agent_protocol::FsKind;
use virt_bmap_agent_protocol::record::Extent;
use virt_bmap_ranges::{DeviceOffset, Range};

/// A mounted volume whose directories have computed places.
pub(crate) struct Volume {
    device: Device,
    kind: Kind,
}

enum Kind {
    Fat(fat::Fat),
    Exfat(exfat::Exfat),
    Iso9660(iso9660::Iso9660),
    Udf(udf::Udf),
    Ufs(Ufs),
}

/// The place of a directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its extents.
    pub(crate) extents: Vec<Extent>,
    /// Parts of the device (start and length) that the kernel may read besides while it lists the
    /// directory.
    pub(crate) beside: Vec<(u64, u64)>,
}

impl Volume {
    /// The volume on the device with this number, with blocks of `block` bytes by `statfs(2)`.
    pub(crate) fn new(kind: &FsKind, device: u64, block: u64) -> Option<Self> {
        let device = Device::open(device)?;
        let kind = match kind {
            // FAT with and without long names have one magic number.
            FsKind::Vfat | FsKind::Msdos => Kind::Fat(fat::Fat::new(&device)?),
            FsKind::Exfat => Kind::Exfat(exfat::Exfat::new(&device)?),
            FsKind::Iso9660 => Kind::Iso9660(iso9660::Iso9660::new(block)?),
            FsKind::Udf => Kind::Udf(udf::Udf::new(&device, block)?),
            FsKind::Ufs => Kind::Ufs(Ufs::open(&device)?),
            _ => return None,
        };
        Some(Self { device, kind })
    }

    /// The place of an open directory; `None` if the structures of the volume make no sense. The
    /// kernel forgets what it has in memory of the directory.
    pub(crate) fn place(&mut self, directory: &OwnedFd, id: u32) -> Option<Place> {
        let (device, stat) = (&self.device, fstat(directory).ok()?);
        let place = match &mut self.kind {
            Kind::Fat(fat) => fat.place(device, directory),
            Kind::Exfat(exfat) => exfat.place(device, id),
            Kind::Iso9660(iso) => iso.place(device, stat.st_ino, stat.st_size as u64),
            Kind::Udf(udf) => udf.place(device, stat.st_ino),
            Kind::Ufs(ufs) => ufs::place(ufs, device, stat.st_ino),
        }?;
        device.forget(&place.extents);
        Some(place)
    }

    /// The extents of the file with this inode number, where they say more than the driver: those
    /// of UFS reach to the end of the last block.
    pub(crate) fn extents(&self, inode: u64) -> Option<Vec<Extent>> {
        match &self.kind {
            Kind::Ufs(ufs) => Some(ufs::place(ufs, &self.device, inode)?.extents),
            _ => None,
        }
    }

    /// Notes the number of a directory that was found by its name in the directory whose place was
    /// asked for last.
    pub(crate) fn found(&mut self, id: u32, name: &[u8]) {
        if let Kind::Exfat(exfat) = &mut self.kind {
            exfat.found(id, name);
        }
    }
}

/// Extents of a directory, whose blocks lie at these places, one after the other.
fn extents(ranges: impl IntoIterator<Item = Range<DeviceOffset>>) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut logical = 0;
    for range in ranges {
        match extents.last_mut() {
            Some(last) if last.physical + last.length == range.start.0 => last.length += range.len(),
            _ => extents.push(Extent { logical, physical: range.start.0, length: range.len(), flags: 0 }),
        }
        logical += range.len();
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_blocks_are_one_extent() {
        let ranges = [(4, 5), (5, 7), (2, 3)].map(|(start, end)| Range::new(start, end));
        let extent = |logical, physical, length| Extent { logical, physical, length, flags: 0 };
        assert_eq!(extents(ranges), [extent(0, 4, 3), extent(3, 2, 1)]);
    }
}
