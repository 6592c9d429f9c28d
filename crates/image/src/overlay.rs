//! Copy-on-write layer: takes a guest's writes so that they never reach the image.
//!
//! A filesystem that is mounted "read-only" still writes: a journal is replayed, a superblock is
//! marked. [`Overlay`] keeps such writes in an unlinked sparse temporary file, at the same offsets
//! as on the disk, and remembers in memory which bytes they are. It does so byte for byte, so that
//! no write has to read a surrounding block first, and all other bytes are read from the image
//! itself, where the reads can be recorded.
//!
//! # Concurrency
//! Writers take turns. A reader asks the map which bytes come from where and then reads without
//! holding any lock, so neither side waits for the other's input and output. A read that overlaps a
//! write, trim or write-zeroes still under way sees for each byte the old value or the new one,
//! which is what NBD promises. A write publishes its range only when its data is in the file: no
//! reader ever sees a half-written file through the map.

use super::{Allocation, Source, Writable};
use rustix::fs::FallocateFlags;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use virt_bmap_ranges::{DiskOffset, DiskRange, RangeSet};

/// Most ranges that the map of written bytes may hold, some 64 MiB of memory. A guest that writes
/// every other byte gets `ENOSPC` then.
const MAX_RANGES: usize = 1 << 20;

/// A [`Source`] that keeps writes apart from the source below it.
pub struct Overlay {
    base: Arc<dyn Source>,
    /// Written bytes, each at its offset on the disk. Has no name.
    store: File,
    /// Most bytes that `store` may hold.
    limit: u64,
    /// Whether anything was ever written. Until then a read costs one atomic load more than a read
    /// of the base.
    touched: AtomicBool,
    /// Held by a writer from its look at the ceiling until its range is in the map.
    writer: Mutex<()>,
    map: RwLock<Map>,
}

/// Which bytes do not come from the base. The two sets are disjoint.
#[derive(Default)]
struct Map {
    /// Bytes to be read from the store.
    data: RangeSet<DiskOffset>,
    /// Bytes that read as zeroes.
    zero: RangeSet<DiskOffset>,
    /// Number of bytes in `data`.
    data_bytes: u64,
}

/// Where a run of bytes comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Base,
    Store,
    Zero,
}

impl Map {
    fn set_data(&mut self, range: DiskRange) {
        self.data_bytes += self.new_bytes(range);
        self.zero.remove(range);
        self.data.insert(range);
    }

    fn set_zero(&mut self, range: DiskRange) {
        self.data_bytes -= range.len() - self.new_bytes(range);
        self.data.remove(range);
        self.zero.insert(range);
    }

    /// How many bytes of `range` the store does not hold yet.
    fn new_bytes(&self, range: DiskRange) -> u64 {
        range.len() - self.data.overlap(range).map(DiskRange::len).sum::<u64>()
    }

    fn is_untouched(&self, range: DiskRange) -> bool {
        self.data.overlap(range).next().is_none() && self.zero.overlap(range).next().is_none()
    }

    /// Splits `range` by origin: ascending, without gaps.
    fn pieces(&self, range: DiskRange) -> Vec<(DiskRange, Origin)> {
        let mut written: Vec<_> = self.data.overlap(range).map(|part| (part, Origin::Store)).collect();
        written.extend(self.zero.overlap(range).map(|part| (part, Origin::Zero)));
        written.sort_unstable_by_key(|(part, _)| *part);
        let mut pieces = Vec::with_capacity(2 * written.len() + 1);
        let mut at = range.start;
        for (part, origin) in written {
            if at < part.start {
                pieces.push((DiskRange { start: at, end: part.start }, Origin::Base));
            }
            pieces.push((part, origin));
            at = part.end;
        }
        if at < range.end {
            pieces.push((DiskRange { start: at, end: range.end }, Origin::Base));
        }
        pieces
    }
}

impl Overlay {
    /// A layer over `base` that holds at most `limit` written bytes, in an unnamed file that is
    /// made in directory `dir`.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn new(base: Arc<dyn Source>, limit: u64, dir: &Path) -> io::Result<Self> {
        Ok(Self {
            base,
            store: tempfile::tempfile_in(dir)?,
            limit,
            touched: AtomicBool::new(false),
            writer: Mutex::new(()),
            map: RwLock::default(),
        })
    }

    /// Writes `buf` at `offset`.
    ///
    /// # Errors
    /// `ENOSPC` when the layer would hold more than its limit, and then nothing was written;
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) past the end of the disk; what the operating
    /// system says of the temporary file, and then the bytes of `buf` that had been written before
    /// may be the old or the new ones.
    pub fn write_at(&self, buf: &[u8], offset: DiskOffset) -> io::Result<()> {
        let range = self.checked(offset, buf.len() as u64)?;
        if range.is_empty() {
            return Ok(());
        }
        let _turn = self.take_turn();
        {
            let map = self.map();
            if map.new_bytes(range) > self.limit.saturating_sub(map.data_bytes) {
                return Err(rustix::io::Errno::NOSPC.into());
            }
            check_range_count(&map)?;
        }
        self.store.write_all_at(buf, offset.0)?;
        self.publish(|map| map.set_data(range));
        Ok(())
    }

    /// Makes `range` read as zeroes, and gives back the space that its data took.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) past the end of the disk; `ENOSPC` when the
    /// guest's writes are in too many pieces.
    pub fn write_zeroes(&self, range: DiskRange) -> io::Result<()> {
        let range = self.checked(range.start, range.len())?;
        if range.is_empty() {
            return Ok(());
        }
        let _turn = self.take_turn();
        let had_data = {
            let map = self.map();
            check_range_count(&map)?;
            map.new_bytes(range) < range.len()
        };
        self.publish(|map| map.set_zero(range));
        if had_data {
            // Only gives space back. A filesystem that cannot do it costs temporary space alone, as
            // the map no longer points there.
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if let Err(error) = rustix::fs::fallocate(&self.store, flags, range.start.0, range.len()) {
                tracing::debug!(%error, ?range, "the copy-on-write layer keeps the space of zeroed bytes");
            }
        }
        Ok(())
    }

    /// Discards `range`, which reads as zeroes from then on.
    ///
    /// # Errors
    /// As for [`write_zeroes`](Self::write_zeroes).
    pub fn trim(&self, range: DiskRange) -> io::Result<()> {
        self.write_zeroes(range)
    }

    /// Does nothing: all writes are visible to every reader already, and none of them outlives the
    /// process.
    ///
    /// # Errors
    /// None.
    pub fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Forgets everything that was written.
    ///
    /// # Errors
    /// The system's error of giving the space back; the writes are forgotten all the same.
    pub fn reset(&self) -> io::Result<()> {
        let _turn = self.take_turn();
        *self.map.write().unwrap_or_else(PoisonError::into_inner) = Map::default();
        self.touched.store(false, Ordering::Release);
        self.store.set_len(0)
    }

    /// Whether any byte of `range` was written, zeroed or trimmed.
    pub fn is_rewritten(&self, range: DiskRange) -> bool {
        self.touched.load(Ordering::Acquire) && !self.map().is_untouched(range)
    }

    /// The parts of `range` of which nothing was written, zeroed or trimmed, ascending.
    pub fn untouched(&self, range: DiskRange) -> Vec<DiskRange> {
        let pieces = self.map().pieces(range).into_iter();
        pieces.filter(|(_, origin)| *origin == Origin::Base).map(|(part, _)| part).collect()
    }

    /// Whether `buf`, which was read at `offset`, is not what the base holds there.
    ///
    /// # Errors
    /// The base's.
    pub fn differs_from_base(&self, buf: &[u8], offset: DiskOffset) -> io::Result<bool> {
        let mut rest = buf;
        for (range, origin) in self.pieces_of_read(buf.len(), offset).unwrap_or_default() {
            let (part, after) = rest.split_at(range.len() as usize);
            rest = after;
            if origin != Origin::Base {
                let mut base = vec![0; part.len()];
                self.base.read_at(&mut base, range.start)?;
                if part != base {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// The bytes that were written, zeroed or trimmed: all that may differ from the base.
    pub fn written(&self) -> RangeSet<DiskOffset> {
        let map = self.map();
        let mut written = map.data.clone();
        written.extend(map.zero.iter());
        written
    }

    /// Readers see the map through this. A thread that panicked cannot have left it half changed
    /// in a way that matters more than ending the run does.
    fn map(&self) -> RwLockReadGuard<'_, Map> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_turn(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, change: impl FnOnce(&mut Map)) {
        change(&mut self.map.write().unwrap_or_else(PoisonError::into_inner));
        self.touched.store(true, Ordering::Release);
    }

    /// The range of `length` bytes at `offset`, if the disk has it.
    fn checked(&self, offset: DiskOffset, length: u64) -> io::Result<DiskRange> {
        DiskRange::at(offset, length).filter(|range| range.end.0 <= self.size()).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "write past the end of the guest disk")
        })
    }

    /// The parts of a read of `buf.len()` bytes at `offset`; `None` if all of it is the base's.
    fn pieces_of_read(&self, length: usize, offset: DiskOffset) -> Option<Vec<(DiskRange, Origin)>> {
        if !self.touched.load(Ordering::Acquire) {
            return None;
        }
        // A read whose end does not fit in 64 bits is the base's to refuse.
        let range = DiskRange::at(offset, length as u64)?;
        let map = self.map();
        (!map.is_untouched(range)).then(|| map.pieces(range))
    }

    /// Fills `buf`, which begins at `offset`, piece by piece. `read_base` and the result are as in
    /// [`Source::try_read_at`].
    fn read_pieces(
        &self,
        buf: &mut [u8],
        pieces: &[(DiskRange, Origin)],
        read_base: impl Fn(&mut [u8], DiskOffset) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let mut rest = buf;
        for &(range, origin) in pieces {
            // The pieces came from splitting `buf`, so each length fits in memory.
            let (part, after) = rest.split_at_mut(range.len() as usize);
            rest = after;
            match origin {
                Origin::Zero => part.fill(0),
                Origin::Store => self.store.read_exact_at(part, range.start.0)?,
                Origin::Base => {
                    if !read_base(part, range.start)? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }
}

/// Refuses another write when the map is in too many pieces. Each write adds two ranges at most.
fn check_range_count(map: &Map) -> io::Result<()> {
    if map.data.range_count() + map.zero.range_count() >= MAX_RANGES {
        return Err(rustix::io::Errno::NOSPC.into());
    }
    Ok(())
}

impl Writable for Overlay {
    fn write_at(&self, buf: &[u8], offset: DiskOffset) -> io::Result<()> {
        Overlay::write_at(self, buf, offset)
    }

    fn try_write_zeroes(&self, range: DiskRange, _allocate: bool) -> io::Result<bool> {
        self.write_zeroes(range).map(|()| true)
    }

    fn trim(&self, range: DiskRange) -> io::Result<()> {
        Overlay::trim(self, range)
    }

    fn flush(&self) -> io::Result<()> {
        Overlay::flush(self)
    }
}

impl Source for Overlay {
    fn size(&self) -> u64 {
        self.base.size()
    }

    /// What was written is most likely in the page cache, so it is read without asking.
    fn try_read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<bool> {
        match self.pieces_of_read(buf.len(), offset) {
            None => self.base.try_read_at(buf, offset),
            Some(pieces) => self.read_pieces(buf, &pieces, |part, at| self.base.try_read_at(part, at)),
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<()> {
        match self.pieces_of_read(buf.len(), offset) {
            None => self.base.read_at(buf, offset),
            Some(pieces) => self
                .read_pieces(buf, &pieces, |part, at| self.base.read_at(part, at).map(|()| true))
                .map(|_| ()),
        }
    }

    fn allocation(&self, range: DiskRange) -> io::Result<Vec<Allocation>> {
        if !self.touched.load(Ordering::Acquire) {
            return self.base.allocation(range);
        }
        let pieces = self.map().pieces(range);
        let mut all = Vec::with_capacity(pieces.len());
        for (range, origin) in pieces {
            match origin {
                Origin::Base => all.extend(self.base.allocation(range)?),
                Origin::Store => all.push(Allocation { range, is_hole: false }),
                Origin::Zero => all.push(Allocation { range, is_hole: true }),
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests;
