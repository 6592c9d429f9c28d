//! Resource forks of HFS+. The driver shows data forks only, so the forks come from the catalog on
//! the disk (`virt_bmap_on_disk::hfsplus`). A fork is an object of its own, `NAME:rsrc`, and its
//! blocks are read from the device.

use super::Walker;
use super::look_up::{About, report};
use crate::data_ranges::DataRange;
use crate::directories::Device;
use crate::reader::OpenFile;
use crate::{Fatal, buffer};
use rustix::fs::Statx;
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use virt_bmap_agent_protocol::record::{Extent, ObjectKind, Operation};
use virt_bmap_agent_protocol::{End, FsKind};
use virt_bmap_on_disk::hfsplus::{Fork, resource_forks};

/// What follows the name of a file in the name of its resource fork.
const SUFFIX: &[u8] = b":rsrc";

/// The resource forks of a volume.
pub(super) struct Forks {
    device: Device,
    /// By the inode of their file.
    forks: HashMap<u64, Fork>,
}

impl Walker {
    /// Finds the resource forks, if the filesystem is HFS+. `root` is the number of its root.
    pub(super) fn find_forks(&mut self, root: u32) {
        if self.kind != FsKind::Hfsplus {
            return;
        }
        self.forks = Device::open(self.device).and_then(|device| {
            let forks = resource_forks(&|at, length| device.read(at, length))?;
            let forks = forks.into_iter().map(|(id, fork)| (u64::from(id), fork)).collect();
            Some(Forks { device, forks })
        });
        if self.forks.is_none() {
            self.control.read_failure(Operation::Attributes, Errno::UCLEAN, root, b"", 0);
        }
    }

    /// Reports the resource fork of a file that was found, and has it read.
    pub(super) fn resource_fork(&mut self, parent: u32, name: &CStr, stat: &Statx) -> Result<(), Fatal> {
        let Some(forks) = &mut self.forks else { return Ok(()) };
        let Some(fork) = forks.forks.remove(&stat.stx_ino) else { return Ok(()) };
        let device = forks.device.reader()?;
        let mut logical = 0;
        let mut extents = Vec::new();
        for range in &fork.extents {
            extents.push(Extent { logical, physical: range.start.0, length: range.len(), flags: 0 });
            logical += range.len();
        }
        let mut about = *stat;
        about.stx_size = fork.size;
        about.stx_blocks = logical / 512;
        about.stx_nlink = 1;
        let id = self.number()?;
        let name = CString::new([name.to_bytes(), SUFFIX].concat())?;
        report(&mut self.control, id, parent, ObjectKind::File, &About::of(&about), name.to_bytes());
        self.put_extents(id, &extents);
        let size = fork.size.checked_next_multiple_of(self.block).unwrap_or(u64::MAX);
        let data_ranges = extents.iter().filter(|extent| extent.logical < size).map(|extent| DataRange {
            start: extent.physical,
            end: extent.physical + extent.length.min(size - extent.logical),
        });
        let data_ranges: Vec<DataRange> = data_ranges.collect();
        let ends = self.sample.map(|sample| sample.ends(about.stx_ino, &extents, fork.size, self.block));
        // The file descriptor is that of the device.
        let ends = ends.into_iter().flatten().map(|end| End { logical: end.physical, ..end }).collect();
        if !data_ranges.is_empty() {
            let (unit, cached) = (usize::try_from(self.block)?.min(buffer::ALIGNMENT), Vec::new());
            self.batch.push(OpenFile {
                fd: device,
                id,
                parent,
                name,
                data_ranges,
                ends,
                is_promised: true,
                unit,
                cached,
            });
        }
        self.found()
    }
}
