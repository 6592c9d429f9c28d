//! What the kernel says of a file, in one call: what `stat(2)` has, and when the file was made.

use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{AtFlags, Statx, StatxFlags, makedev};
use rustix::io::Errno;
use std::ffi::CStr;
use virt_bmap_on_disk::nanoseconds;

const ASKED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// What it says of an entry of a directory, which may be a symbolic link.
pub(crate) fn of_entry(directory: BorrowedFd<'_>, name: &CStr) -> Result<Statx, Errno> {
    rustix::fs::statx(directory, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, ASKED)
}

/// What it says of an open file.
pub(crate) fn of_open(file: impl AsFd) -> Result<Statx, Errno> {
    rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, ASKED)
}

/// The number of the device with the filesystem, as `st_dev` of `stat(2)`.
pub(crate) fn device(stat: &Statx) -> u64 {
    makedev(stat.stx_dev_major, stat.stx_dev_minor)
}

/// When the file was made, in nanoseconds since 1970; `None` if the filesystem does not say.
pub(crate) fn born(stat: &Statx) -> Option<i64> {
    let is_said = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
    is_said.then(|| nanoseconds(stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec))
}
