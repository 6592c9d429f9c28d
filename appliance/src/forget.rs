//! Lets the kernel forget the content of the guest's disks, which are then exchanged for another
//! state of them. No filesystem is mounted.

use crate::Fatal;
use crate::disable_readahead::{devices, drop_caches, is_device, root};
use rustix::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use rustix::fs::{Mode, OFlags, open};
use std::path::Path;

/// `BLKFLSBUF` of `linux/fs.h`: writes a device's cached blocks back and drops them.
const BLKFLSBUF: libc::Ioctl = 0x1261;

/// `BTRFS_IOC_FORGET_DEV` of `linux/btrfs.h`, an `_IOW` of 4096 bytes: the name of a device, or
/// nothing for all that are not mounted.
const BTRFS_IOC_FORGET_DEV: libc::Ioctl = 0x5000_9405;

/// Drops the caches of all devices and their partitions, and the devices that btrfs remembers.
pub(crate) fn run() -> Result<(), Fatal> {
    flush_disks()?;
    forget_btrfs();
    drop_caches()
}

/// Drops what the page cache has of all devices but the root disk, and of their partitions.
pub(crate) fn flush_disks() -> Result<(), Fatal> {
    let root = root()?;
    for device in devices()? {
        if is_device(&device, &root) {
            continue;
        }
        let Some(name) = device.file_name() else { continue };
        request(&Path::new("/dev").join(name), BLKFLSBUF);
        let parts = std::fs::read_dir(&device).into_iter().flatten().flatten();
        for part in parts.filter(|part| part.path().join("partition").exists()) {
            request(&Path::new("/dev").join(part.file_name()), BLKFLSBUF);
        }
    }
    Ok(())
}

/// Makes a request without an argument (ioctl(2)) of a block device, if that can be opened.
pub(crate) fn request(device: &Path, request: libc::Ioctl) {
    if let Ok(device) = open(device, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        #[allow(unsafe_code)]
        // SAFETY: the request has no argument.
        unsafe {
            libc::ioctl(device.as_fd().as_raw_fd(), request, 0);
        }
    }
}

/// The kernel takes the devices of a btrfs from their first scan on for what they were then.
/// Without btrfs there is nothing to forget.
fn forget_btrfs() {
    let control: OwnedFd = match open("/dev/btrfs-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(control) => control,
        Err(_) => return,
    };
    let nothing = [0_u8; 4096];
    #[allow(unsafe_code)]
    // SAFETY: the kernel reads 4096 bytes, which are there.
    unsafe {
        libc::ioctl(control.as_raw_fd(), BTRFS_IOC_FORGET_DEV, nothing.as_ptr());
    }
}
