//! Opens the plain files that images are made of, and reads their headers with care.

use super::OpenError;
use rustix::fs::OFlags;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// A file or block device, open for reading.
#[derive(Debug)]
pub(super) struct PlainFile {
    pub(super) file: File,
    /// Where its bytes begin in `file`: not at 0 for a part of an archive.
    pub(super) start: u64,
    /// Size in bytes.
    pub(super) size: u64,
    pub(super) is_device: bool,
    /// The identity of the file: device and inode number.
    pub(super) identity: (u64, u64),
}

impl PlainFile {
    /// Opens a regular file or block device for reading, and nothing else.
    ///
    /// # Errors
    /// [`OpenError`] says what `path` is instead.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let fail = |error| OpenError::from_io(path, error);
        // Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
        let file = match File::options().read(true).custom_flags(flags.cast_signed()).open(path) {
            Ok(file) => file,
            // open(2) fails in this way for a socket.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
                return Err(OpenError::NotAFile { path: path.to_owned(), kind: "socket" });
            }
            Err(error) => return Err(fail(error)),
        };
        let metadata = file.metadata().map_err(fail)?;
        let kind = metadata.file_type();
        let other = |kind| Err(OpenError::NotAFile { path: path.to_owned(), kind });
        if kind.is_dir() {
            return Err(OpenError::Directory { path: path.to_owned() });
        } else if kind.is_fifo() {
            return other("pipe");
        } else if kind.is_char_device() {
            return other("character device");
        } else if !kind.is_file() && !kind.is_block_device() {
            return other("special file");
        }
        // A block device's metadata gives no size, but its end can be sought.
        let size =
            rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|error| fail(error.into()))?;
        if size == 0 {
            return Err(OpenError::Empty { path: path.to_owned() });
        }
        let is_device = kind.is_block_device();
        let identity = if is_device { (u64::MAX, metadata.rdev()) } else { (metadata.dev(), metadata.ino()) };
        Ok(Self { file, start: 0, size, is_device, identity })
    }

    /// A file of `size` bytes without a name.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn unnamed(file: File, size: u64) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { file, start: 0, size, is_device: false, identity: (metadata.dev(), metadata.ino()) })
    }

    /// The part of it of `size` bytes from `start` on.
    pub(super) fn part(self, start: u64, size: u64) -> Self {
        Self { start, size, ..self }
    }

    /// The bytes from `offset` on, up to `length` or the end of the file.
    pub(super) fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let there = self.size.saturating_sub(offset).min(length as u64) as usize;
        let mut bytes = vec![0; there];
        self.file.read_exact_at(&mut bytes, self.start.saturating_add(offset))?;
        Ok(bytes)
    }
}

/// The number of `N` bytes at `offset` of a header, if the header is that long.
pub(super) fn bytes_at<const N: usize>(header: &[u8], offset: usize) -> Option<[u8; N]> {
    header.get(offset..)?.first_chunk().copied()
}
