//! The exports for the appliance: the guest's disks and the control disk.

use crate::probe::channel::Channel;
use crate::recorder::Recorder;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use virt_bmap_agent_protocol::CONTROL_SIZE;
use virt_bmap_image::{Overlay, ReadError, Source as _};
use virt_bmap_nbd::{Command, Export, Extent, Request, Zeroing};
use virt_bmap_ranges::{DiskNumber, DiskOffset, DiskRange};

/// Name of a guest disk's export.
pub(super) fn disk_export(disk: DiskNumber) -> String {
    format!("disk{disk}")
}

/// Name of the control disk's export.
pub(super) const CONTROL_EXPORT: &str = "control";

/// A guest's disk: reads are recorded, writes stay in the overlay.
pub struct DiskExport {
    /// Its number.
    pub disk: DiskNumber,
    /// The image with its overlay.
    pub overlay: Arc<Overlay>,
    /// Records each read.
    pub recorder: Arc<Recorder>,
    /// The error, once the image as a whole is lost.
    pub lost: Lost,
}

/// The error of an image that was lost as a whole.
pub(super) type Lost = Arc<Mutex<Option<io::Error>>>;

impl DiskExport {
    /// Remembers the error if the image as a whole is lost, not only one place in it.
    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && let Some(ReadError::Gone { .. }) = error.get_ref().and_then(|inner| inner.downcast_ref())
        {
            let error = io::Error::new(error.kind(), error.to_string());
            self.lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
        result
    }
}

impl Export for DiskExport {
    fn size(&self) -> u64 {
        self.overlay.size()
    }

    fn is_read_only(&self) -> bool {
        // Filesystems replay their journals even if they are mounted read-only.
        false
    }

    fn can_multi_conn(&self) -> bool {
        true
    }

    fn observe(&self, request: &Request) {
        if request.command == Command::Read {
            self.recorder.read(self.disk, DiskRange::saturating(request.offset, request.length.into()));
        }
    }

    fn try_read(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        // The comparison may have to wait for the image.
        let is_rewritten = self.overlay.is_rewritten(DiskRange::saturating(offset, buf.len() as u64));
        if is_rewritten { Ok(false) } else { self.overlay.try_read_at(buf, DiskOffset(offset)) }
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.note(self.overlay.read_at(buf, DiskOffset(offset)))?;
        let range = DiskRange::saturating(offset, buf.len() as u64);
        if self.overlay.is_rewritten(range)
            && self.note(self.overlay.differs_from_base(buf, DiskOffset(offset)))?
        {
            self.recorder.changed(self.disk, range);
        }
        Ok(())
    }

    fn write(&self, data: &[u8], offset: u64, _fua: bool) -> io::Result<()> {
        // Writes need not outlive this process, so FUA needs no more than a write.
        self.overlay.write_at(data, DiskOffset(offset))
    }

    fn write_zeroes(&self, length: u32, offset: u64, _how: Zeroing) -> io::Result<()> {
        self.overlay.write_zeroes(DiskRange::saturating(offset, length.into()))
    }

    fn trim(&self, length: u32, offset: u64, _fua: bool) -> io::Result<()> {
        self.overlay.trim(DiskRange::saturating(offset, length.into()))
    }

    fn block_status(&self, length: u32, offset: u64, _one: bool) -> io::Result<Vec<Extent>> {
        let allocation = self.overlay.allocation(DiskRange::saturating(offset, length.into()))?;
        Ok(allocation.into_iter().map(|part| Extent::new(part.range.len(), part.is_hole)).collect())
    }
}

/// The control disk.
pub(super) struct ControlExport {
    pub(super) channel: Arc<Channel>,
}

impl Export for ControlExport {
    fn size(&self) -> u64 {
        CONTROL_SIZE
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn is_fast(&self) -> bool {
        true
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.channel.read(buf, offset).map_err(io::Error::other)
    }

    fn write(&self, data: &[u8], offset: u64, _fua: bool) -> io::Result<()> {
        if offset != 0 {
            return Err(io::Error::other("a write to the control disk that is not a frame"));
        }
        self.channel.frame(data).map_err(io::Error::other)
    }
}
