//! Turns off everything in the appliance that reads a guest's disk without a request.

use crate::{Fatal, forget, kernel_log};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, major, minor, open, stat};
use std::fs;
use std::path::{Path, PathBuf};

const BLOCK: &str = "/sys/block";

/// Readahead of the root disk in KiB. guestfsd has some seventy libraries, whose pages it touches
/// here and there: with requests of one page its start takes several times as long.
const OF_ROOT: &str = "1024";

/// Sets the readahead of each block device to zero and its scheduler to `none`, drops the caches,
/// and skips the kernel's messages so far. Must come before the first mount: filesystems copy the
/// readahead setting when they are mounted. The appliance's root disk is read ahead: nobody records
/// its reads.
pub(crate) fn run() -> Result<(), Fatal> {
    let root = root()?;
    for device in devices()? {
        let queue = device.join("queue");
        if is_device(&device, &root) {
            write(&queue.join("read_ahead_kb"), OF_ROOT)?;
            continue;
        }
        // Devices stacked on others (dm, md) have no scheduler; loop and ram devices do not matter.
        write(&queue.join("read_ahead_kb"), "0")?;
        write(&queue.join("scheduler"), "none").ok();
    }
    kernel_log::clear()?;
    forget::flush_disks()
}

/// Makes the kernel drop clean pages, directory entries and inodes.
pub(crate) fn drop_caches() -> Result<(), Fatal> {
    write(Path::new("/proc/sys/vm/drop_caches"), "3")
}

/// For each disk, the file with the number of its requests in flight.
pub(crate) fn inflight_counters() -> Result<Vec<OwnedFd>, Fatal> {
    let mut counters = Vec::new();
    for device in devices()? {
        // Stacked devices (dm-0, md0) have no `device` link; their requests end on a disk that has
        // one.
        if device.join("device").exists() {
            let path = device.join("inflight");
            counters.push(open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
        }
    }
    Ok(counters)
}

/// The number of the appliance's root disk, as `dev` in `/sys` has it.
pub(crate) fn root() -> Result<String, Fatal> {
    let root = stat("/")?.st_dev;
    Ok(format!("{}:{}", major(root), minor(root)))
}

/// Whether the directory in `/sys` is that of the device with this number.
pub(crate) fn is_device(directory: &Path, number: &str) -> bool {
    fs::read_to_string(directory.join("dev")).is_ok_and(|found| found.trim() == number)
}

/// The directories of all block devices in `/sys`.
pub(crate) fn devices() -> Result<Vec<PathBuf>, Fatal> {
    let mut devices = Vec::new();
    for entry in fs::read_dir(BLOCK).map_err(|error| format!("{BLOCK}: {error}"))? {
        devices.push(entry?.path());
    }
    devices.sort();
    Ok(devices)
}

fn write(path: &Path, text: &str) -> Result<(), Fatal> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()).into())
}
