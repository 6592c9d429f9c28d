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
        /// `struct file_handle` of `linux/fs.h`. Its content is the number of the inode, in 32 or
        /// 64 bits, and then the generation.
        #[repr(C)]
        struct Handle {
            bytes: u32,
            kind: i32,
            content: [u8; 12],
        }
        let (inode, kind) = match (self.is_xfs, u32::try_from(self.inode)) {
            (true, _) => (self.inode.to_ne_bytes().to_vec(), INODE_AND_GENERATION | WIDE),
            (false, Ok(inode)) => (inode.to_ne_bytes().to_vec(), INODE_AND_GENERATION),
            (false, Err(_)) => return Err(Errno::STALE),
        };
        let mut handle = Handle { bytes: inode.len() as u32 + 4, kind, content: [0; 12] };
        handle.content[..inode.len()].copy_from_slice(&inode);
        handle.content[inode.len()..][..4].copy_from_slice(&self.generation.to_ne_bytes());
        let flags = super::walk::FILE | OFlags::DIRECT;
        #[allow(unsafe_code)]
        // SAFETY: `handle` is laid out like `struct file_handle`, has as many bytes as it says, and
        // outlives the call. A result that is no error is a new descriptor, and nothing else owns
        // it.
        unsafe {
            let handle = (&raw const handle).cast_mut().cast();
            match libc::open_by_handle_at(root.as_raw_fd(), handle, flags.bits() as i32) {
                ..0 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
                fd => Ok(OwnedFd::from_raw_fd(fd)),
            }
        }
    }
}
