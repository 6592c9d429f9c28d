//! A disk as it was at one moment, while the guest goes on writing to it.
//!
//! [`Freezable`] wraps a disk that a guest writes to. [`freeze`] freezes all disks of a guest at
//! one moment, at no cost: from then on each write first copies the bytes that it replaces to the
//! [`Frozen`] disk. A reader of the frozen disk gets the copied bytes, and all others from the disk
//! itself. The disk thaws when the last reference to the frozen one is dropped.
//!
//! # Concurrency
//! A write holds its disk's gate for reading as long as it is under way, and freezing holds the
//! gates of all disks for writing: no write lies half before the moment and half behind it. A
//! reader of the frozen disk holds no lock. It reads, then looks whether any of the bytes that it
//! took from the disk itself have been copied meanwhile; as they are copied before they are
//! replaced, it has the old bytes if they have not, and reads once more if they have.

use super::{Allocation, Overlay, Source, Writable};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::Instant;
use virt_bmap_ranges::{DiskOffset, DiskRange, RangeSet};

/// Bytes that are copied at a time.
const CHUNK: u64 = 1 << 20;

/// Most ranges of writes that are kept: some 16 MiB of memory. Beyond it, whole units of [`CHUNK`]
/// bytes count as written.
const MOST_RANGES: usize = 1 << 18;

/// A disk that is written to and can be frozen.
pub struct Freezable {
    disk: Arc<dyn Writable>,
    /// The latest frozen disk, while it is in use.
    gate: RwLock<Weak<Frozen>>,
    activity: Mutex<Activity>,
}

/// The writes to a disk since it was last frozen.
#[derive(Clone, Debug, Default)]
pub struct Activity {
    /// The bytes.
    pub written: RangeSet<DiskOffset>,
    /// The time of the last write.
    pub last: Option<Instant>,
    /// Whether the guest has flushed any of them.
    pub is_flushed: bool,
}

impl Activity {
    fn note(&mut self, range: DiskRange) {
        let range = if self.written.range_count() < MOST_RANGES {
            range
        } else {
            let end = range.end.0.checked_next_multiple_of(CHUNK).unwrap_or(range.end.0);
            DiskRange::new(range.start.0 / CHUNK * CHUNK, end)
        };
        self.written.insert(range);
        self.last = Some(Instant::now());
    }
}

impl Freezable {
    /// Nothing of `disk` is frozen yet, and nothing was written to it.
    pub fn new(disk: Arc<dyn Writable>) -> Self {
        Self { disk, gate: RwLock::new(Weak::new()), activity: Mutex::default() }
    }

    /// The time of the last write since the last freezing, if there was one, and whether any write
    /// was flushed.
    pub fn last_write(&self) -> Option<(Instant, bool)> {
        let activity = self.activity();
        activity.last.map(|last| (last, activity.is_flushed))
    }

    fn activity(&self) -> MutexGuard<'_, Activity> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the bytes of `range`, and then changes them by `write`.
    fn change<T>(
        &self,
        range: DiskRange,
        write: impl FnOnce(&dyn Writable) -> io::Result<T>,
    ) -> io::Result<T> {
        let gate: RwLockReadGuard<'_, _> = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(frozen) = gate.upgrade() {
            frozen.keep(range);
        }
        let written = write(&*self.disk)?;
        self.activity().note(range);
        Ok(written)
    }
}

/// Freezes the disks of a guest at one moment, and returns the writes to each since the last time.
/// Kept bytes lie in unnamed files in directory `dir`. Disks that were frozen before can no longer
/// be read.
///
/// # Errors
/// The files cannot be created.
pub fn freeze(disks: &[Arc<Freezable>], dir: &Path) -> io::Result<Vec<(Arc<Frozen>, Activity)>> {
    let made =
        disks.iter().map(|disk| Frozen::new(disk.disk.clone(), dir)).collect::<io::Result<Vec<_>>>()?;
    // Always in the same order, so that two callers cannot deadlock.
    let gates = disks.iter().map(|disk| disk.gate.write().unwrap_or_else(PoisonError::into_inner));
    let mut gates: Vec<_> = gates.collect();
    let frozen = made.into_iter().zip(&mut gates).zip(disks).map(|((frozen, gate), disk)| {
        let frozen = Arc::new(frozen);
        // From here on, nothing is kept for an earlier moment.
        if let Some(before) = std::mem::replace(&mut **gate, Arc::downgrade(&frozen)).upgrade() {
            before.is_torn.store(true, Ordering::SeqCst);
        }
        (frozen, std::mem::take(&mut *disk.activity()))
    });
    Ok(frozen.collect())
}

impl Source for Freezable {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn try_read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<bool> {
        self.disk.try_read_at(buf, offset)
    }

    fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<()> {
        self.disk.read_at(buf, offset)
    }

    fn allocation(&self, range: DiskRange) -> io::Result<Vec<Allocation>> {
        self.disk.allocation(range)
    }
}

impl Writable for Freezable {
    fn write_at(&self, buf: &[u8], offset: DiskOffset) -> io::Result<()> {
        let range = DiskRange::at(offset, buf.len() as u64).ok_or(io::ErrorKind::InvalidInput)?;
        self.change(range, |disk| disk.write_at(buf, offset))
    }

    fn try_write_zeroes(&self, range: DiskRange, allocate: bool) -> io::Result<bool> {
        self.change(range, |disk| disk.try_write_zeroes(range, allocate))
    }

    fn trim(&self, range: DiskRange) -> io::Result<()> {
        self.change(range, |disk| disk.trim(range))
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.flush()?;
        let mut activity = self.activity();
        activity.is_flushed = activity.last.is_some();
        Ok(())
    }
}

/// A disk as it was when it was frozen.
pub struct Frozen {
    disk: Arc<dyn Writable>,
    /// The former bytes of the ranges that have been written to since.
    kept: Overlay,
    /// Writers take turns at keeping: of two that replace the same bytes, the second must not copy
    /// the data of the first.
    turn: Mutex<()>,
    /// Something could not be kept.
    is_torn: AtomicBool,
}

impl Frozen {
    fn new(disk: Arc<dyn Writable>, dir: &Path) -> io::Result<Self> {
        let size = disk.size();
        let kept = Overlay::new(disk.clone(), size, dir)?;
        Ok(Self { disk, kept, turn: Mutex::default(), is_torn: AtomicBool::new(false) })
    }

    /// Copies the bytes of a range that is about to be written, unless they were copied before. If
    /// that fails, for example because the disk is full, the guest's write still succeeds, and the
    /// frozen disk can no longer be read.
    fn keep(&self, range: DiskRange) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_torn.load(Ordering::SeqCst) {
            return;
        }
        if let Err(error) = self.try_keep(range) {
            tracing::warn!(%error, ?range, "what is written over cannot be kept");
            self.is_torn.store(true, Ordering::SeqCst);
        }
    }

    fn try_keep(&self, range: DiskRange) -> io::Result<()> {
        let mut buf = Vec::new();
        for left in self.kept.untouched(range) {
            // Trims are mostly of holes already.
            for Allocation { range, is_hole } in self.disk.allocation(left)? {
                if is_hole {
                    self.kept.write_zeroes(range)?;
                    continue;
                }
                let mut at = range.start.0;
                while at < range.end.0 {
                    let length = CHUNK.min(range.end.0 - at);
                    buf.resize(length as usize, 0);
                    self.disk.read_at(&mut buf, DiskOffset(at))?;
                    self.kept.write_at(&buf, DiskOffset(at))?;
                    at += length;
                }
            }
        }
        Ok(())
    }

    fn check(&self) -> io::Result<()> {
        if self.is_torn.load(Ordering::SeqCst) {
            return Err(io::Error::other("what the guest has written over could not be kept"));
        }
        Ok(())
    }

    /// Repeats `read` until no bytes of `range` were replaced meanwhile.
    fn steadily<T>(&self, range: DiskRange, mut read: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut untouched = self.kept.untouched(range);
        loop {
            let done = read()?;
            let now = self.kept.untouched(range);
            if now == untouched {
                // Checked last: bytes that were read before a copy failed are correct.
                self.check()?;
                return Ok(done);
            }
            untouched = now;
        }
    }
}

impl Source for Frozen {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<()> {
        let range = DiskRange::at(offset, buf.len() as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.steadily(range, || self.kept.read_at(buf, offset))
    }

    fn allocation(&self, range: DiskRange) -> io::Result<Vec<Allocation>> {
        self.steadily(range, || self.kept.allocation(range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::thread;

    const SIZE: usize = 64 << 10;

    struct Memory(Vec<u8>);

    impl Source for Memory {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<()> {
            let at = offset.0 as usize;
            buf.copy_from_slice(&self.0[at..at + buf.len()]);
            Ok(())
        }
    }

    fn disk() -> Arc<Freezable> {
        let bytes: Vec<u8> = (0..SIZE).map(|at| (at / 512) as u8).collect();
        let base = Overlay::new(Arc::new(Memory(bytes)), SIZE as u64, &std::env::temp_dir());
        Arc::new(Freezable::new(Arc::new(base.unwrap())))
    }

    fn content(disk: &dyn Source) -> Vec<u8> {
        let mut bytes = vec![0xee; SIZE];
        disk.read_at(&mut bytes, DiskOffset(0)).unwrap();
        bytes
    }

    fn freeze_one(disk: &Arc<Freezable>) -> (Arc<Frozen>, Activity) {
        freeze(std::slice::from_ref(disk), &std::env::temp_dir()).unwrap().remove(0)
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(usize, usize, u8),
        Zero(usize, usize),
        Trim(usize, usize),
        Freeze,
    }

    fn step() -> impl Strategy<Value = Step> {
        let place = || (0..SIZE, 1..9000usize).prop_map(|(at, length)| (at, length.min(SIZE - at)));
        prop_oneof![
            4 => (place(), any::<u8>()).prop_map(|((at, length), byte)| Step::Write(at, length, byte)),
            1 => place().prop_map(|(at, length)| Step::Zero(at, length)),
            1 => place().prop_map(|(at, length)| Step::Trim(at, length)),
            1 => Just(Step::Freeze),
        ]
    }

    proptest! {
        #[test]
        fn what_was_frozen_stays_as_it_was(steps in prop::collection::vec(step(), 1..60)) {
            let disk = disk();
            let mut frozen = freeze_one(&disk).0;
            let mut then = content(&*disk);
            let mut written: RangeSet<DiskOffset> = RangeSet::new();
            for step in steps {
                let range = |at: usize, length: usize| DiskRange::new(at as u64, (at + length) as u64);
                let place = match step {
                    Step::Write(at, length, byte) => {
                        disk.write_at(&vec![byte; length], DiskOffset(at as u64)).unwrap();
                        range(at, length)
                    }
                    Step::Zero(at, length) => {
                        disk.try_write_zeroes(range(at, length), false).unwrap();
                        range(at, length)
                    }
                    Step::Trim(at, length) => {
                        disk.trim(range(at, length)).unwrap();
                        range(at, length)
                    }
                    Step::Freeze => {
                        let (now, activity) = freeze_one(&disk);
                        prop_assert_eq!(&activity.written, &written);
                        written = RangeSet::new();
                        frozen = now;
                        then = content(&*disk);
                        continue;
                    }
                };
                written.insert(place);
                prop_assert!(content(&*frozen) == then);
            }
        }
    }

    #[test]
    fn readers_of_a_frozen_disk_see_the_moment() {
        let disk = disk();
        let then = content(&*disk);
        let frozen = freeze_one(&disk).0;
        thread::scope(|scope| {
            for writer in 0..3u8 {
                let disk = &disk;
                scope.spawn(move || {
                    for round in 0..400usize {
                        let at = (round * 7919 + usize::from(writer) * 4093) % (SIZE - 3000);
                        disk.write_at(&[0xf0 | writer; 3000], DiskOffset(at as u64)).unwrap();
                    }
                });
            }
            for _ in 0..2 {
                scope.spawn(|| (0..200).for_each(|_| assert!(content(&*frozen) == then)));
            }
        });
        assert!(content(&*frozen) == then);
        assert!(content(&*disk) != then);
    }

    #[test]
    fn disks_are_frozen_at_one_moment() {
        let disks = [disk(), disk()];
        // One writes the same number to both disks, one after the other.
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for number in 1..=2000u16 {
                    for disk in &disks {
                        disk.write_at(&number.to_le_bytes(), DiskOffset(512)).unwrap();
                    }
                }
            });
            while !writer.is_finished() {
                let numbers =
                    freeze(&disks, &std::env::temp_dir()).unwrap().into_iter().map(|(frozen, _)| {
                        let mut bytes = [0; 2];
                        frozen.read_at(&mut bytes, DiskOffset(512)).unwrap();
                        u16::from_le_bytes(bytes)
                    });
                let numbers: Vec<u16> = numbers.collect();
                assert!(
                    numbers[0] == numbers[1] || numbers[0] == numbers[1] + 1 || numbers[1] == 257,
                    "{numbers:?}"
                );
            }
        });
    }

    #[test]
    fn a_dropped_frozen_disk_keeps_nothing() {
        let disk = disk();
        let (frozen, _) = freeze_one(&disk);
        disk.write_at(&[1; 512], DiskOffset(0)).unwrap();
        assert_eq!(frozen.kept.written().bytes(), 512);
        drop(frozen);
        assert!(disk.gate.read().unwrap().upgrade().is_none());
        assert!(disk.last_write().is_some_and(|(_, is_flushed)| !is_flushed));
        disk.flush().unwrap();
        assert!(disk.last_write().is_some_and(|(_, is_flushed)| is_flushed));
        freeze_one(&disk);
        assert!(disk.last_write().is_none());
    }
}
