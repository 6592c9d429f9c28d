//! NTFS: a record of `$MFT` is the inode of a file. `$MFT` is a file itself, which may be in
//! several pieces and may move.

use super::{GROUP, Group, SelfContained, Table};
use crate::probe::layout::Layout;
use std::io;
use std::sync::Arc;
use virt_bmap_image::Source;
use virt_bmap_ntfs::{AttributeType, File, Namespace, ReadAt, Volume};
use virt_bmap_on_disk::Fields as _;
use virt_bmap_ranges::{DeviceOffset, Range};

/// Records before this one belong to the volume itself.
const FIRST_USER: u32 = 24;

/// Bytes of the boot sector that describe the volume: sizes, places and the serial number (`struct
/// NTFS_BOOT_SECTOR` of `layout.h` in ntfs-3g).
const BOOT: usize = 0x54;

/// The records of a volume.
pub(super) struct Inodes {
    volume: Volume<OnDisks>,
    identity: Vec<u8>,
}

/// A device, read from the guest's disks.
struct OnDisks {
    disks: Vec<Arc<dyn Source>>,
    layout: Arc<Layout>,
}

impl ReadAt for OnDisks {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let read = self.layout.read(&self.disks, offset, bytes.len() as u64);
        bytes.copy_from_slice(&read.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl Inodes {
    /// `None` if the disks have no such volume there.
    pub(super) fn read(disks: &[Arc<dyn Source>], layout: &Arc<Layout>) -> Option<Self> {
        let identity = layout.read(disks, 0, BOOT as u64)?;
        let device = OnDisks { disks: disks.to_vec(), layout: layout.clone() };
        Some(Self { volume: Volume::open(device).ok()?, identity })
    }
}

impl Table for Inodes {
    fn block(&self) -> u64 {
        self.volume.geometry().cluster
    }

    fn inode_size(&self) -> u64 {
        self.volume.geometry().record
    }

    fn identity(&self) -> &[u8] {
        &self.identity
    }

    fn root(&self) -> u64 {
        5
    }

    fn has_records(&self) -> bool {
        true
    }

    /// A group that is in several pieces counts as changed.
    fn group(&self, inode: u64) -> Option<Group> {
        let first = inode / GROUP * GROUP;
        let count = GROUP.min(self.volume.records().checked_sub(first)?);
        let size = self.inode_size();
        let start = self.volume.place_of(first)?;
        let is_whole =
            (0..count).all(|number| self.volume.place_of(first + number) == start.checked_add(number * size));
        let range = Range::at(DeviceOffset(start), count.checked_mul(size)?)?;
        (inode < first + count && is_whole).then_some((first, range))
    }

    fn self_contained(&self, record: &[u8]) -> Option<SelfContained> {
        // Where it has its own number (`mft_record_number`), there is room for it.
        const ROOM: u16 = 0x30;
        if record.le16(4)? < ROOM || record.le32(0x2c)? < FIRST_USER {
            return None;
        }
        self_contained(&self.volume.file_of(record.to_vec()).ok()??)
    }
}

/// The type of a file that is in one record, has one name, and is one object of the map.
fn self_contained(file: &File) -> Option<SelfContained> {
    const I30: &[u8] = b"$I30";
    let main = match file.is_directory {
        true => (AttributeType::INDEX_ALLOCATION, I30),
        false => (AttributeType::DATA, &b""[..]),
    };
    let is_own = |kind: AttributeType, name: &[u8]| (kind, name) == main;
    let is_one_object = file.streams.iter().all(|stream| {
        let is_stream = stream.kind == AttributeType::DATA && !stream.name.is_empty();
        is_own(stream.kind, &stream.name) || !is_stream && stream.clusters() == 0
    });
    let long_names = file.names.iter().filter(|name| name.namespace != Namespace::Dos).count();
    let is_plain = file.problems.is_empty()
        && file.reparse.is_none()
        && file.stream(AttributeType::ATTRIBUTE_LIST).is_none()
        && file.streams.iter().all(|stream| !stream.is_encrypted)
        && (file.is_directory || file.data().is_some());
    let what = if file.is_directory { SelfContained::Directory } else { SelfContained::File };
    (is_plain && is_one_object && long_names == 1).then_some(what)
}
