//! Opens files by their inodes, without their names (`open_by_handle_at(2)`).

use rustix::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// Which file of a mounted filesystem it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileHandle {
    /// Number of its inode.
    pub(crate) inode: u64,
    /// Which of the files that have had this number.
    pub(crate) generation: u32,
    /// Whether the filesystem is an XFS, whose handles have inodes of 64 bits.
    pub(crate) is_xfs: bool,
}

impl FileHandle {
    /// Opens the file for reading, past the cache. `root` is an open directory of the filesystem.
    pub(crate) fn open(self, root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        /// `FILEID_INO32_GEN` of `linux/exportfs.h`, and what XFS adds (`xfs_export.h`).
        const INODE_AND_GENERATION: i32 = 1;
        const WIDE: i32 = 0x80;
        /// `struct file_handle` of `linux/fs.h`: two numbers of 32 bits, or one of 64 and one of 32.
        #[repr(C)]
        struct Handle {
            bytes: u32,
            kind: i32,
            numbers: [u32; 3],
        }
        let [low, high] = [self.inode as u32, (self.inode >> 32) as u32];
        let handle = match self.is_xfs {
            true => {
                let inode = self.inode.to_ne_bytes();
                let [first, second] = [0, 4].map(|at| {
                    inode.get(at..).and_then(|part| part.first_chunk()).copied().map_or(0, u32::from_ne_bytes)
                });
                Handle {
                    bytes: 12,
                    kind: INODE_AND_GENERATION | WIDE,
                    numbers: [first, second, self.generation],
                }
            }
            false if high == 0 => {
                Handle { bytes: 8, kind: INODE_AND_GENERATION, numbers: [low, self.generation, 0] }
            }
            false => return Err(Errno::STALE),
        };
        let flags = super::walk::FILE | OFlags::DIRECT;
        #[allow(unsafe_code)]
        // SAFETY: `handle` is laid out like `struct file_handle`, with as many bytes as it says, and
        // outlives the call. A result that is no error is a new descriptor, which nothing else owns.
        unsafe {
            let handle = (&raw const handle).cast_mut().cast();
            match libc::open_by_handle_at(root.as_raw_fd(), handle, flags.bits() as i32) {
                ..0 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
                fd => Ok(OwnedFd::from_raw_fd(fd)),
            }
        }
    }
}
