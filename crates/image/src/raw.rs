//! A raw image or a block device, read directly.

use super::{Allocation, SECTOR, Source, within_file};
use rustix::io::{Errno, ReadWriteFlags};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use virt_bmap_ranges::{DiskOffset, DiskRange, Offset};

/// A [`Source`] over a file whose bytes are the disk's bytes.
#[derive(Debug)]
pub(super) struct RawFile {
    file: File,
    /// Size of the file. The disk may be up to a sector longer, and reads as zeroes there.
    file_size: u64,
    /// Whether the filesystem can say "not without waiting"; many cannot.
    has_nowait: AtomicBool,
}

impl RawFile {
    /// A source over `file` of `file_size` bytes, which must have been opened for reading.
    pub(super) fn new(file: File, file_size: u64) -> Self {
        Self { file, file_size, has_nowait: AtomicBool::new(true) }
    }

    /// Start of the next run of data (or, with `hole`, of the next hole), at or after `from`.
    /// `None` if there is none, or if the filesystem does not support it.
    fn next(&self, from: u64, hole: bool) -> rustix::io::Result<Option<u64>> {
        let target = if hole { rustix::fs::SeekFrom::Hole(from) } else { rustix::fs::SeekFrom::Data(from) };
        match rustix::fs::seek(&self.file, target) {
            Ok(offset) => Ok(Some(offset)),
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Source for RawFile {
    fn size(&self) -> u64 {
        self.file_size.next_multiple_of(SECTOR)
    }

    fn try_read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<bool> {
        if !self.has_nowait.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let buf = within_file(buf, offset, self.file_size)?;
        let wanted = buf.len();
        let mut vector = [IoSliceMut::new(buf)];
        match rustix::io::preadv2(&self.file, &mut vector, offset.0, ReadWriteFlags::NOWAIT) {
            // Less than wanted: the rest is not in the page cache, or the file has shrunk.
            Ok(read) => Ok(read == wanted),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                self.has_nowait.store(false, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<()> {
        let buf = within_file(buf, offset, self.file_size)?;
        self.file.read_exact_at(buf, offset.0).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                io::Error::new(io::ErrorKind::UnexpectedEof, "the image has shrunk since it was opened")
            }
            _ => error,
        })
    }

    /// Uses `SEEK_DATA` and `SEEK_HOLE`, see lseek(2). Without their support, all bytes count as
    /// data.
    fn allocation(&self, range: DiskRange) -> io::Result<Vec<Allocation>> {
        let mut all = Vec::new();
        let mut at = range.start.0;
        while at < range.end.0.min(self.file_size) {
            let (end, is_hole) = match self.next(at, false) {
                Ok(Some(data)) if data > at => (data, true),
                Ok(Some(_)) => (self.next(at, true)?.unwrap_or(self.file_size), false),
                Ok(None) => (self.file_size, true),
                Err(Errno::INVAL | Errno::OPNOTSUPP) => (self.file_size, false),
                Err(error) => return Err(error.into()),
            };
            // A file that changes under us must not make this loop stand still.
            let end = end.clamp(at + 1, range.end.0.max(at + 1));
            all.push(Allocation { range: DiskRange::new(at, end), is_hole });
            at = end;
        }
        if at < range.end.0 {
            all.push(Allocation { range: DiskRange::new(at, range.end.bytes()), is_hole: true });
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn raw(content: &[u8]) -> RawFile {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        RawFile::new(file, content.len() as u64)
    }

    #[test]
    fn a_size_that_is_no_multiple_of_512_is_rounded_up_with_zeroes() {
        let source = raw(&[7; 1000]);
        assert_eq!(source.size(), 1024);
        let mut buf = [0xee; 1024];
        source.read_at(&mut buf, DiskOffset(0)).unwrap();
        assert_eq!(buf[..1000], [7; 1000]);
        assert_eq!(buf[1000..], [0; 24]);
        let mut tail = [0xee; 10];
        source.read_at(&mut tail, DiskOffset(1014)).unwrap();
        assert_eq!(tail, [0; 10]);
        let last = *source.allocation(DiskRange::new(0, 1024)).unwrap().last().unwrap();
        assert_eq!(last, Allocation { range: DiskRange::new(1000, 1024), is_hole: true });
    }

    #[test]
    fn a_read_past_the_end_is_an_error() {
        let source = raw(&[7; 1000]);
        for (offset, len) in [(1024, 1), (1020, 5), (u64::MAX, 2)] {
            let error = source.read_at(&mut vec![0; len], DiskOffset(offset)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            assert!(source.try_read_at(&mut vec![0; len], DiskOffset(offset)).is_err());
        }
    }

    #[test]
    fn a_file_that_shrinks_gives_an_error_not_zeroes() {
        let source = raw(&[7; 8192]);
        source.file.set_len(4096).unwrap();
        let mut buf = [0; 8192];
        assert!(!source.try_read_at(&mut buf, DiskOffset(0)).unwrap());
        let error = source.read_at(&mut buf, DiskOffset(0)).unwrap_err();
        assert!(error.to_string().contains("shrunk"), "{error}");
        assert!(source.read_at(&mut buf[..512], DiskOffset(6000)).is_err());
        source.read_at(&mut buf[..4096], DiskOffset(0)).unwrap();
    }

    #[test]
    fn cached_bytes_are_read_without_waiting() {
        // /dev/shm is a tmpfs, on which preadv2(RWF_NOWAIT) has been there since Linux 4.14 or not
        // at all: the answer must be the bytes, or "not this way".
        let source = raw(&[9; 4096]);
        let mut buf = [0; 4096];
        if source.try_read_at(&mut buf, DiskOffset(0)).unwrap() {
            assert_eq!(buf, [9; 4096]);
        } else {
            source.read_at(&mut buf, DiskOffset(0)).unwrap();
            assert_eq!(buf, [9; 4096]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever the filesystem says, it is a partition, and no data is called a hole.
        #[test]
        fn allocation_is_a_partition_that_hides_no_data(
            blocks in prop::collection::vec(any::<bool>(), 1..24),
            start in 0u64..20, len in 1u64..40, odd in 0u64..512,
        ) {
            const BLOCK: u64 = 4096;
            let file = tempfile::tempfile().unwrap();
            file.set_len(blocks.len() as u64 * BLOCK + odd).unwrap();
            for (block, _) in blocks.iter().enumerate().filter(|(_, data)| **data) {
                file.write_all_at(&[1; BLOCK as usize], block as u64 * BLOCK).unwrap();
            }
            let size = file.metadata().unwrap().len();
            let source = RawFile::new(file, size);
            let range = DiskRange::new(start * 1000, start * 1000 + len * 3000);
            let Some(range) = range.intersection(DiskRange::new(0, source.size())) else { return Ok(()) };
            let mut at = range.start;
            for part in source.allocation(range).unwrap() {
                prop_assert_eq!(part.range.start, at);
                prop_assert!(!part.range.is_empty());
                at = part.range.end;
                if part.is_hole {
                    let mut buf = vec![1; part.range.len() as usize];
                    source.read_at(&mut buf, part.range.start).unwrap();
                    prop_assert!(buf.iter().all(|b| *b == 0));
                }
            }
            prop_assert_eq!(at, range.end);
        }
    }
}
