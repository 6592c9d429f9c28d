//! Lists a directory.

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, RawDir};
use rustix::io::Errno;
use std::ffi::CString;
use std::mem::MaybeUninit;

/// Bytes of directory entries taken in at a time; more of a directory is listed in a further turn.
const LISTING: usize = 1 << 20;

/// What is in a directory.
pub(super) struct Entry {
    pub(super) name: CString,
    pub(super) kind: FileType,
    pub(super) inode: u64,
}

/// What one turn of listing gave.
pub(super) struct Listed {
    pub(super) entries: Vec<Entry>,
    /// Whether the directory has come to its end.
    pub(super) end: Result<bool, Errno>,
}

/// Takes in at most about [`LISTING`] bytes of entries.
pub(super) fn list(stream: &OwnedFd, memory: &mut [MaybeUninit<u8>]) -> Listed {
    let mut entries = Vec::new();
    let mut bytes = 0;
    let mut raw = RawDir::new(stream, memory);
    let mut last_of_buffer = None;
    let end = loop {
        // A turn ends only where the kernel's buffer does, so that no entry is lost.
        if bytes >= LISTING && raw.is_buffer_empty() {
            break Ok(false);
        }
        match raw.next() {
            None => break Ok(true),
            Some(Err(Errno::INTR)) => {}
            Some(Err(errno)) => break Err(errno),
            Some(Ok(entry)) => {
                let name = entry.file_name();
                let (name, kind, inode) = (name.to_owned(), entry.file_type(), entry.ino());
                let cookie = entry.next_entry_cookie();
                // The driver of UDF gives the entry before a damaged one again and again.
                if raw.is_buffer_empty() {
                    let identity = Some((cookie, name.clone()));
                    if last_of_buffer == identity {
                        break Err(Errno::UCLEAN);
                    }
                    last_of_buffer = identity;
                }
                bytes += name.to_bytes().len() + 32;
                // A damaged file system may hold names that lead elsewhere.
                let escapes =
                    matches!(name.to_bytes(), b"" | b"." | b"..") || name.to_bytes().contains(&b'/');
                if !escapes {
                    entries.push(Entry { name, kind, inode });
                }
            }
        }
    };
    Listed { entries, end }
}
