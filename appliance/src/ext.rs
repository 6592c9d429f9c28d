//! ext2, ext3 and ext4: files that the kernel does not open, because they have no name, or because
//! their key is missing. Their inodes say where they lie.

use crate::getfsmap::{Spaces, push};
use crate::walk::block_device;
use rustix::fs::OFlags;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use virt_bmap_agent_protocol::record::{BlockPurpose, Extent};
use virt_bmap_on_disk::Part;
use virt_bmap_on_disk::ext::{Filesystem, Orphan, OwnFile, Place};

/// The longest read: the largest block.
const LARGEST: u64 = 64 << 10;

/// A mounted filesystem.
pub(crate) struct Ext {
    /// Read by the kernel's cache, into which the kernel has replayed the journal.
    device: File,
    filesystem: Filesystem,
}

impl Ext {
    /// The filesystem on the device with this number.
    pub(crate) fn open(device: u64) -> Option<Self> {
        let device = File::from(block_device(device, OFlags::empty())?.1);
        let filesystem = Filesystem::read(&|at, length| read(&device, at, length))?;
        Some(Self { device, filesystem })
    }

    /// Where an inode lies; `None` if the filesystem is damaged there.
    pub(crate) fn place(&self, inode: u64) -> Option<Place> {
        self.filesystem.place(&|at, length| read(&self.device, at, length), inode)
    }

    /// Files that no directory names.
    pub(crate) fn orphans(&self) -> Vec<Orphan> {
        self.filesystem.orphans(&|at, length| read(&self.device, at, length))
    }

    /// Adds the filesystem's own files. The kernel does not say what their blocks are for. A
    /// damaged file is left out.
    pub(crate) fn add_spaces(&self, spaces: &mut Spaces) {
        for (file, inode) in self.filesystem.own_files() {
            let purpose = match file {
                OwnFile::BadBlocks => BlockPurpose::Defective,
                OwnFile::ReservedDescriptors => BlockPurpose::ReservedDescriptors,
                OwnFile::Journal => BlockPurpose::Log,
                OwnFile::Quota => BlockPurpose::Quotas,
                OwnFile::Orphans => BlockPurpose::Orphans,
            };
            for range in self.place(*inode).iter().flat_map(Place::ranges) {
                push(spaces, purpose, range.start.0, range.len());
            }
        }
    }
}

fn read(device: &File, at: u64, length: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(length).ok().filter(|_| length <= LARGEST)?];
    device.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}

/// The data of a file, as the kernel would say it.
pub(crate) fn extents(data: impl IntoIterator<Item = Part>) -> Vec<Extent> {
    let extent = |part: Part| Extent {
        logical: part.offset,
        physical: part.range.start.0,
        length: part.range.len(),
        flags: if part.is_unwritten { Extent::UNWRITTEN } else { 0 },
    };
    data.into_iter().map(extent).collect()
}
