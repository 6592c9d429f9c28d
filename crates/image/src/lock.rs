//! The locks by which qemu keeps two programs from using one image at once.
//!
//! qemu takes open-file-description locks, fcntl(2), on single bytes of an image: byte 100 + *n*
//! says "I use permission *n*", byte 200 + *n* "nobody else may". Permission 0 is to read what
//! stays consistent, 1 is to write (`BLK_PERM_*` in qemu's `include/block/block-common.h`, the
//! bases in `block/file-posix.c`). The bytes need not exist in the file, and a lock changes nothing
//! in it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Byte whose lock says "I read, and count on what I read".
const USES_READ: i64 = 100;
/// Byte whose lock says "I write".
const USES_WRITE: i64 = 101;
/// Byte whose lock says "nobody may read".
const DENIES_READ: i64 = 200;
/// Byte whose lock says "nobody may write".
const DENIES_WRITE: i64 = 201;

/// Whether another program, in practice a running virtual machine, writes to the file or forbids to
/// read it. A filesystem without locks knows of none.
pub(super) fn is_locked(file: &File) -> bool {
    [USES_WRITE, DENIES_READ].into_iter().any(|byte| {
        let mut lock = one_byte(libc::F_WRLCK, byte);
        fcntl(file, libc::F_OFD_GETLK, &mut lock).is_ok() && lock.l_type != libc::F_UNLCK as libc::c_short
    })
}

/// Takes qemu's locks for reading the file and against writers, for as long as `file` is open: a
/// virtual machine that is started meanwhile fails to lock it. Does nothing on a filesystem without
/// locks.
pub(super) fn hold(file: &File) {
    for byte in [USES_READ, DENIES_WRITE] {
        if let Err(error) = fcntl(file, libc::F_OFD_SETLK, &mut one_byte(libc::F_RDLCK, byte)) {
            tracing::debug!(%error, "cannot lock the image");
        }
    }
}

/// Takes qemu's locks for reading and writing the file and against other writers, for as long as
/// `file` is open. False if another program writes to it, or forbids writers.
pub(super) fn hold_for_writing(file: &File) -> bool {
    let is_denied = || {
        let mut lock = one_byte(libc::F_WRLCK, DENIES_WRITE);
        fcntl(file, libc::F_OFD_GETLK, &mut lock).is_ok() && lock.l_type != libc::F_UNLCK as libc::c_short
    };
    // First take ours, then check those of others: of two programs at the same time, at least one
    // notices the other.
    if let Err(error) = fcntl(file, libc::F_OFD_SETLK, &mut one_byte(libc::F_RDLCK, USES_WRITE)) {
        tracing::debug!(%error, "cannot lock the image");
    }
    let is_free = !is_denied();
    hold(file);
    is_free
}

fn one_byte(kind: libc::c_int, byte: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

fn fcntl(file: &File, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as `file` is borrowed, and `lock` is a whole `flock`,
    // which is what these two commands read and write.
    #[allow(unsafe_code)]
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_are_detected_and_readers_are_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (ours, theirs) = (open(), open());
        hold(&theirs);
        assert!(!is_locked(&ours), "another reader");
        fcntl(&theirs, libc::F_OFD_SETLK, &mut one_byte(libc::F_RDLCK, USES_WRITE)).unwrap();
        assert!(is_locked(&ours), "a writer");
        drop(theirs);
        assert!(!is_locked(&ours), "a writer that has gone");
    }
}
