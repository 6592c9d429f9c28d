//! UFS: an inode has the numbers of its blocks. The driver says them only of the data of files.
//!
//! A file has other blocks, too. Some have the numbers of further blocks; the driver reads them a
//! fragment at a time. Others have extended attributes; the driver does not know them.

use crate::directories::Device;
use crate::getfsmap::{Spaces, push};
use std::cell::RefCell;
use virt_bmap_agent_protocol::record::BlockPurpose;
use virt_bmap_on_disk::ufs::{Place, Volume};

/// Most parts that are reported.
const MOST: usize = 1 << 22;

/// A volume.
pub(crate) struct Ufs {
    volume: Volume,
    /// The bytes that were read last, and where they begin: inodes lie side by side.
    last: RefCell<(u64, Vec<u8>)>,
}

impl Ufs {
    pub(crate) fn open(device: &Device) -> Option<Self> {
        let volume = Volume::of(&|at, length| device.read(at, length))?;
        Some(Self { volume, last: RefCell::default() })
    }

    /// Where the blocks of an inode lie; `None` if the volume is damaged there.
    pub(crate) fn place(&self, device: &Device, inode: u64) -> Option<Place> {
        let read = |at, length| self.read(device, at, length);
        self.volume.place(&read, &self.volume.inode(&read, inode)?)
    }

    fn read(&self, device: &Device, at: u64, length: u64) -> Option<Vec<u8>> {
        let mut last = self.last.borrow_mut();
        if (last.0, last.1.len() as u64) != (at, length) {
            *last = (at, device.read(at, length)?);
        }
        Some(last.1.clone())
    }
}

/// The purposes of blocks that belong to files besides their data. What is damaged is left out.
pub(crate) fn spaces(device: &Device) -> Option<Spaces> {
    let ufs = Ufs::open(device)?;
    let mut spaces = Spaces::new();
    for group in 0..ufs.volume.groups {
        let read = |at, length| device.read(at, length);
        let inodes = ufs.volume.group(&read, group).map_or_else(Vec::new, |group| group.inodes);
        for place in inodes.into_iter().filter_map(|number| ufs.place(device, number)) {
            for (purpose, ranges) in
                [(BlockPurpose::ExtentMaps, place.indirect), (BlockPurpose::Attributes, place.attributes)]
            {
                ranges.iter().for_each(|range| push(&mut spaces, purpose, range.start.0, range.len()));
            }
        }
        if spaces.values().map(Vec::len).sum::<usize>() > MOST {
            return None;
        }
    }
    Some(spaces)
}
