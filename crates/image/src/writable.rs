//! Disks that can be written to.

use super::raw::RawFile;
use super::{Allocation, Image, ImageFormat, OpenError, SECTOR, Source, lock};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use virt_bmap_ranges::{DiskOffset, DiskRange};

/// A [`Source`] that can be written to. Ranges are checked by the caller.
pub trait Writable: Source {
    /// Writes `buf` at `offset`.
    ///
    /// # Errors
    /// The system's error.
    fn write_at(&self, buf: &[u8], offset: DiskOffset) -> io::Result<()>;

    /// Makes `range` read as zeroes, if there is a faster way than writing them. Returns false, and
    /// changes nothing, if there is none. With `allocate` it must not become a hole.
    ///
    /// # Errors
    /// As for [`write_at`](Self::write_at).
    fn try_write_zeroes(&self, range: DiskRange, allocate: bool) -> io::Result<bool>;

    /// Discards `range`, which is no longer needed: a hint.
    ///
    /// # Errors
    /// As for [`write_at`](Self::write_at).
    fn trim(&self, range: DiskRange) -> io::Result<()>;

    /// Makes all earlier writes durable, if writes last at all.
    ///
    /// # Errors
    /// The writes may not be durable.
    fn flush(&self) -> io::Result<()>;

    /// Makes a change, which is durable before this returns if `fua` is set (force unit access).
    /// Returns false, and changes nothing, as [`try_write_zeroes`](Self::try_write_zeroes) does.
    ///
    /// # Errors
    /// The change was not made, or may not be durable.
    fn change(&self, change: Change<'_>, fua: bool) -> io::Result<bool> {
        let is_done = match change {
            Change::Write(data, offset) => self.write_at(data, offset).map(|()| true)?,
            Change::Zero { range, allocate } => self.try_write_zeroes(range, allocate)?,
            Change::Trim(range) => self.trim(range).map(|()| true)?,
        };
        if fua && is_done {
            self.flush()?;
        }
        Ok(is_done)
    }
}

/// A change of a [`Writable`] disk.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// These bytes, at this offset.
    Write(&'a [u8], DiskOffset),
    /// The range reads as zeroes.
    Zero {
        /// The range.
        range: DiskRange,
        /// It must not become a hole.
        allocate: bool,
    },
    /// The range is no longer needed.
    Trim(DiskRange),
}

/// A raw image that is written to.
///
/// It holds qemu's locks as long as it is open, so that no virtual machine is started on it by
/// accident.
#[derive(Debug)]
pub struct WritableRaw {
    reader: RawFile,
    file: File,
}

impl WritableRaw {
    /// Reopens the raw image or block device `image` for writing.
    ///
    /// # Errors
    /// [`OpenError::NotWritable`] for another format, and for a size that is not a multiple of 512;
    /// [`OpenError::Locked`] if another program uses the image and forbids writers; and the
    /// system's errors.
    pub fn open(image: Image) -> Result<Self, OpenError> {
        let path = PathBuf::from(image.location.name());
        let refuse = |reason| OpenError::NotWritable { path: path.clone(), reason };
        if image.location.file().is_none() {
            return Err(refuse("it is not a file or block device of this host"));
        }
        if image.chain.iter().any(|file| !file.held_in.is_empty()) {
            return Err(refuse("it is not in a file of its own"));
        }
        if image.format != ImageFormat::Raw {
            return Err(refuse("it is no raw image"));
        }
        let size = image.source.size();
        // Our own lock for reading would be in the way.
        drop(image);
        let fail = |error| OpenError::from_io(&path, error);
        let file = File::options().read(true).write(true).open(&path).map_err(fail)?;
        let end =
            rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|error| fail(error.into()))?;
        if !end.is_multiple_of(SECTOR) {
            return Err(refuse("its size is no multiple of 512"));
        }
        if end != size || !lock::hold_for_writing(&file) {
            return Err(OpenError::Locked { path });
        }
        let reader = RawFile::new(file.try_clone().map_err(fail)?, size);
        Ok(Self { reader, file })
    }

    fn fallocate(&self, range: DiskRange, flags: FallocateFlags) -> io::Result<bool> {
        match rustix::fs::fallocate(&self.file, flags, range.start.0, range.len()) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

impl Source for WritableRaw {
    fn size(&self) -> u64 {
        self.reader.size()
    }

    fn try_read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<bool> {
        self.reader.try_read_at(buf, offset)
    }

    fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<()> {
        self.reader.read_at(buf, offset)
    }

    fn allocation(&self, range: DiskRange) -> io::Result<Vec<Allocation>> {
        self.reader.allocation(range)
    }
}

impl Writable for WritableRaw {
    fn write_at(&self, buf: &[u8], offset: DiskOffset) -> io::Result<()> {
        self.file.write_all_at(buf, offset.0)
    }

    fn try_write_zeroes(&self, range: DiskRange, allocate: bool) -> io::Result<bool> {
        let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        Ok(!allocate && self.fallocate(range, PUNCH)? || self.fallocate(range, zero)?)
    }

    fn trim(&self, range: DiskRange) -> io::Result<()> {
        // Only a hint: a filesystem that cannot do it keeps the bytes.
        self.fallocate(range, PUNCH).map(|_| ())
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OpenOptions, open};

    #[test]
    fn writes_reach_the_file() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        let opened = open(
            &image.path().to_owned().into(),
            &OpenOptions { format: Some(ImageFormat::Raw), ..OpenOptions::default() },
        );
        let disk = WritableRaw::open(opened.unwrap()).unwrap();
        disk.write_at(&[7; 8192], DiskOffset(4096)).unwrap();
        for (range, allocate) in [(DiskRange::new(4096, 5000), false), (DiskRange::new(5000, 6000), true)] {
            if !disk.try_write_zeroes(range, allocate).unwrap() {
                disk.write_at(&[0; 1000][..range.len() as usize], range.start).unwrap();
            }
        }
        disk.trim(DiskRange::new(8192, 12288)).unwrap();
        disk.flush().unwrap();
        let mut bytes = vec![1; 12288];
        image.as_file().read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes[..6000].iter().all(|&byte| byte == 0));
        assert!(bytes[6000..8192].iter().all(|&byte| byte == 7));
        let mut read = vec![1; 12288];
        disk.read_at(&mut read, DiskOffset(0)).unwrap();
        assert_eq!(read, bytes);
        assert_eq!(image.as_file().metadata().unwrap().len(), 1 << 20);
    }

    #[test]
    fn an_image_in_use_is_not_written_to() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        let raw = OpenOptions { format: Some(ImageFormat::Raw), ..OpenOptions::default() };
        let open = || open(&image.path().to_owned().into(), &raw);
        let reader = open().unwrap();
        let refused = WritableRaw::open(open().unwrap()).unwrap_err();
        assert!(matches!(refused, OpenError::Locked { .. }), "{refused}");
        drop(reader);
        let writer = WritableRaw::open(open().unwrap()).unwrap();
        assert!(matches!(open(), Err(OpenError::Locked { .. })), "others see that it is written to");
        drop(writer);
        image.as_file().set_len(1000).unwrap();
        assert!(matches!(WritableRaw::open(open().unwrap()), Err(OpenError::NotWritable { .. })));
    }
}
