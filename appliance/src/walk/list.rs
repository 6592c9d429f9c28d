//! Lists a directory.

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, RawDir};
use rustix::io::Errno;
use std::ffi::CString;
use std::mem::MaybeUninit;

/// Bytes of directory entries in one turn; a larger directory takes several turns.
const LISTING: usize = 1 << 20;

/// An entry of a directory.
pub(super) struct Entry {
    pub(super) name: CString,
    pub(super) kind: FileType,
    pub(super) inode: u64,
}

/// The result of one turn.
pub(super) struct Listed {
    pub(super) entries: Vec<Entry>,
    /// Whether the end of the directory was reached.
    pub(super) end: Result<bool, Errno>,
}

/// Lists at most about [`LISTING`] bytes of entries.
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
                // The UDF driver returns the entry before a damaged one for ever.
                if raw.is_buffer_empty() {
                    let identity = Some((cookie, name.clone()));
                    if last_of_buffer == identity {
                        break Err(Errno::UCLEAN);
                    }
                    last_of_buffer = identity;
                }
                bytes += name.to_bytes().len() + 32;
                // A damaged filesystem may hold names that lead elsewhere.
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
