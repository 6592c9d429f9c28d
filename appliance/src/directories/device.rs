//! The device of a mounted filesystem, read past the kernel's cache.

use crate::buffer::{ALIGNMENT, AlignedBuffer};
use crate::walk::block_device;
use rustix::fd::OwnedFd;
use rustix::fs::{Advice, OFlags, fadvise, ioctl_blksszget};
use rustix::io::{Errno, pread};
use std::cell::RefCell;
use std::num::NonZeroU64;
use virt_bmap_agent_protocol::record::Extent;

/// The longest read, of a large directory.
const LARGEST: u64 = 64 << 20;

/// Bytes of the buffer that is kept: more than most reads take.
const KEPT: usize = (64 << 10) + ALIGNMENT;

pub(crate) struct Device {
    /// Opened for reads that leave nothing in the cache.
    direct: OwnedFd,
    /// Opened to empty the cache.
    cached: OwnedFd,
    /// Bytes of a sector: reads begin and end at a multiple of it.
    sector: u64,
    /// For reads that fit.
    buffer: RefCell<AlignedBuffer>,
}

impl Device {
    pub(crate) fn open(number: u64) -> Option<Self> {
        let (_, direct) = block_device(number, OFlags::DIRECT)?;
        let (_, cached) = block_device(number, OFlags::empty())?;
        let sector = u64::from(ioctl_blksszget(&direct).ok()?);
        let buffer = RefCell::new(AlignedBuffer::new(KEPT));
        Some(Self { direct, cached, sector, buffer }).filter(|_| (512..=ALIGNMENT as u64).contains(&sector))
    }

    /// The bytes at an offset; `None` if they cannot be read.
    pub(crate) fn read(&self, at: u64, length: u64) -> Option<Vec<u8>> {
        let start = at / self.sector * self.sector;
        let end = at.checked_add(length)?.checked_next_multiple_of(self.sector)?;
        let whole = usize::try_from(end - start).ok().filter(|_| length <= LARGEST)?;
        let mut kept = self.buffer.borrow_mut();
        let mut large = (whole > KEPT).then(|| AlignedBuffer::new(whole));
        let buffer = &mut large.as_mut().unwrap_or(&mut kept)[..whole];
        let mut done = 0;
        while done < whole {
            match pread(&self.direct, &mut buffer[done..], start + done as u64) {
                Ok(0) => break,
                Ok(got) => done += got,
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
        let from = usize::try_from(at - start).ok()?;
        Some(buffer[..done].get(from..from + usize::try_from(length).ok()?)?.to_vec())
    }

    /// A descriptor of the device for other reads past the cache.
    pub(crate) fn reader(&self) -> std::io::Result<OwnedFd> {
        self.direct.try_clone()
    }

    /// Has the kernel forget what it has read of these extents.
    pub(super) fn forget(&self, extents: &[Extent]) {
        for extent in extents {
            // Of a page that is named in part, nothing would be forgotten.
            let page = ALIGNMENT as u64;
            let start = extent.physical / page * page;
            let end = extent.physical.saturating_add(extent.length).next_multiple_of(page);
            fadvise(&self.cached, start, NonZeroU64::new(end - start), Advice::DontNeed).ok();
        }
    }
}
