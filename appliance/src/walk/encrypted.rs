//! Files that their filesystem encrypts, without the key.
//!
//! Without the key, the kernel lists directories with encoded names ("no-key names" of fscrypt),
//! but does not open files, so that FIEMAP is not available. On ext4, the inodes say where they
//! lie. The agent checks the sum against `stat`, and reads the file from the block device at these
//! places.

use super::Walker;
use super::batches::block_device;
use super::look_up::{About, report};
use crate::data_ranges::DataRange;
use crate::ext::{Ext, extents};
use crate::reader::OpenFile;
use crate::{Fatal, statx};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{FileType, OFlags, Statx};
use std::ffi::{CStr, CString};
use virt_bmap_agent_protocol::record::{Extent, ObjectKind, Operation};
use virt_bmap_agent_protocol::{End, Record};
use virt_bmap_on_disk::ext::Place;
use virt_bmap_ranges::Range;

/// A file that cannot be opened.
pub(super) struct EncryptedFile {
    parent: u32,
    name: CString,
    stat: Statx,
}

impl Walker {
    /// Notes a file that the kernel does not open without its key.
    pub(super) fn note_encrypted(&mut self, directory: BorrowedFd<'_>, parent: u32, name: &CStr) {
        match statx::of_entry(directory, name) {
            Ok(stat) => {
                let is_file = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile;
                if is_file && !self.is_elsewhere(&stat) {
                    self.encrypted.push(EncryptedFile { parent, name: name.to_owned(), stat });
                }
            }
            Err(errno) => self.control.read_failure(Operation::Stat, errno, parent, name.to_bytes(), 0),
        }
    }

    /// Reads the noted files, as far as their places can be found.
    pub(super) fn read_encrypted(&mut self) -> Result<(), Fatal> {
        let encrypted = std::mem::take(&mut self.encrypted);
        let is_ext = self.kind.is_ext() && !encrypted.is_empty();
        let device = is_ext.then(|| block_device(self.device, OFlags::DIRECT)).flatten();
        let ext = is_ext.then(|| Ext::open(self.device)).flatten();
        for file in &encrypted {
            let place = ext.as_ref().and_then(|ext| ext.place(file.stat.stx_ino));
            self.encrypted_file(file, place.as_ref(), device.as_ref().map(|(_, fd)| fd))?;
        }
        Ok(())
    }

    fn encrypted_file(
        &mut self,
        file: &EncryptedFile,
        place: Option<&Place>,
        device: Option<&OwnedFd>,
    ) -> Result<(), Fatal> {
        let EncryptedFile { parent, name, stat } = file;
        let inode = (statx::device(stat), stat.stx_ino);
        if let Some(&id) = self.links.get(&inode) {
            self.control.put(&Record::Link { id, parent: *parent, name: name.to_bytes().to_vec() });
            return Ok(());
        }
        let id = self.number()?;
        if stat.stx_nlink > 1 {
            self.links.insert(inode, id);
        }
        report(&mut self.control, id, *parent, ObjectKind::File, &About::of(stat), name.to_bytes());
        self.control.put(&Record::Encrypted { id });
        let allocated = stat.stx_blocks.saturating_mul(512);
        let is_all = |place: &&Place| place.ranges().map(Range::len).sum::<u64>() == allocated;
        let (Some(place), Some(device)) = (place.filter(is_all), device) else {
            return self.found();
        };
        let extents = &extents(place.data.iter().copied());
        self.put_extents(id, extents);
        let size = stat.stx_size.checked_next_multiple_of(self.block).unwrap_or(u64::MAX);
        let is_written = |extent: &&Extent| extent.flags & Extent::UNWRITTEN == 0 && extent.logical < size;
        let data_ranges: Vec<DataRange> = extents
            .iter()
            .filter(is_written)
            .map(|extent| {
                let length = extent.length.min(size - extent.logical);
                DataRange { start: extent.physical, end: extent.physical + length }
            })
            .collect();
        let ends = self.sample.map(|sample| sample.ends(stat.stx_ino, extents, size, self.block));
        // The file descriptor is that of the device.
        let ends = ends.into_iter().flatten().map(|end| End { logical: end.physical, ..end }).collect();
        if !data_ranges.is_empty() {
            self.batch.push(OpenFile {
                fd: device.try_clone()?,
                id,
                parent: *parent,
                name: name.clone(),
                data_ranges,
                ends,
                is_promised: true,
                unit: usize::try_from(self.block)?,
                cached: Vec::new(),
            });
        }
        self.found()
    }
}
