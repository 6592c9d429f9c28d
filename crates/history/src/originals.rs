//! What an image held before the guest's writes replaced it, where these go to the image.
//!
//! The bytes are copied before they are replaced. A reader that has read the image looks whether
//! any of its bytes have been copied meanwhile: if not, it has the old ones, and if so, it reads
//! again.

use super::pieces::{MOST_PIECES, Pieces, Place};
use super::state::{allocation, read_pieces};
use super::store::{Appender, Store};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use virt_bmap_image::{Allocation, Source, Writable};
use virt_bmap_ranges::{DiskOffset, DiskRange};

/// Bytes that are copied at a time.
const CHUNK: u64 = 1 << 20;

/// The replaced bytes of all disks since a moment.
#[derive(Debug)]
pub(crate) struct Originals {
    disks: Vec<RwLock<Pieces>>,
    /// Something could not be kept: states since that moment can no longer be read.
    is_lost: AtomicBool,
}

impl Originals {
    /// Nothing has been replaced yet.
    pub(crate) fn new(disks: usize) -> Arc<Self> {
        let disks = std::iter::repeat_with(RwLock::default).take(disks).collect();
        Arc::new(Self { disks, is_lost: AtomicBool::new(false) })
    }

    /// The states can no longer be read.
    pub(crate) fn lose(&self) {
        self.is_lost.store(true, Ordering::SeqCst);
    }

    /// # Errors
    /// The states can no longer be read.
    pub(crate) fn check(&self) -> io::Result<()> {
        if self.is_lost.load(Ordering::SeqCst) {
            return Err(io::Error::other("what the guest has written over could not be kept"));
        }
        Ok(())
    }

    fn disk(&self, disk: usize) -> RwLockReadGuard<'_, Pieces> {
        self.disks[disk].read().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes of `range` would have to be copied.
    pub(crate) fn missing(&self, disk: usize, range: DiskRange) -> u64 {
        self.disk(disk).untouched(range).iter().map(|part| part.len()).sum()
    }

    /// Copies the bytes of `range` of `image`, which are about to be replaced, unless they were
    /// copied before. Returns how many bytes that took. Callers take turns.
    ///
    /// # Errors
    /// Those of the image and of the unnamed file.
    pub(crate) fn keep(
        &self,
        disk: usize,
        image: &dyn Writable,
        range: DiskRange,
        appender: &mut Appender,
    ) -> io::Result<u64> {
        let mut copied = 0;
        let mut buf = Vec::new();
        let untouched = self.disk(disk).untouched(range);
        for left in untouched {
            // Trims are mostly of holes already.
            for Allocation { range, is_hole } in image.allocation(left)? {
                if is_hole {
                    self.set(disk, range, Place::ZERO)?;
                    continue;
                }
                let mut at = range.start.0;
                while at < range.end.0 {
                    let part = DiskRange::new(at, range.end.0.min(at + CHUNK));
                    buf.resize(part.len() as usize, 0);
                    image.read_at(&mut buf, part.start)?;
                    self.set(disk, part, appender.spill(&buf)?)?;
                    copied += part.len();
                    at = part.end.0;
                }
            }
        }
        Ok(copied)
    }

    fn set(&self, disk: usize, range: DiskRange, place: Place) -> io::Result<()> {
        let mut pieces = self.disks[disk].write().unwrap_or_else(PoisonError::into_inner);
        if pieces.count() >= MOST_PIECES {
            return Err(rustix::io::Errno::NOSPC.into());
        }
        pieces.set(range, place, |_, _| {});
        Ok(())
    }
}

/// An image with its first content: the guest's writes replace none of it here.
pub(crate) struct Original {
    pub(crate) disk: usize,
    pub(crate) image: Arc<dyn Writable>,
    pub(crate) originals: Arc<Originals>,
    pub(crate) store: Arc<Store>,
}

impl Original {
    /// Repeats `read` until no bytes of `range` were replaced meanwhile.
    fn steadily<T>(&self, range: DiskRange, mut read: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut untouched = self.originals.disk(self.disk).untouched(range);
        loop {
            let done = read();
            // Checked first: what was lost is the cause of other errors.
            self.originals.check()?;
            let now = self.originals.disk(self.disk).untouched(range);
            if now == untouched {
                return done;
            }
            untouched = now;
        }
    }
}

impl Source for Original {
    fn size(&self) -> u64 {
        self.image.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<()> {
        let range = DiskRange::at(offset, buf.len() as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.steadily(range, || {
            let found = self.originals.disk(self.disk).find(range);
            read_pieces(buf, &found, &self.store, |part, at| self.image.read_at(part, at).map(|()| true))
        })?;
        Ok(())
    }

    fn allocation(&self, range: DiskRange) -> io::Result<Vec<Allocation>> {
        self.steadily(range, || {
            let found = self.originals.disk(self.disk).find(range);
            allocation(&found, |part| self.image.allocation(part))
        })
    }
}
