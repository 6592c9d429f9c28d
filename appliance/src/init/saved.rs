//! The state that the host saves of the started appliance. Later runs go on from it.
//!
//! The appliance is started once with blank disks, and with the kernel's option `virt_bmap.save=1`.
//! When guestfsd has started, the host saves memory and devices (qemu's migration to a file). A
//! later run starts qemu from that file, with the guest's disks in the place of the blank ones.
//! Nothing tells the appliance but the disks' other sizes.

use super::scan::program;
use crate::Fatal;
use crate::disable_readahead::devices;
use rustix::time::{ClockId, Timespec, clock_settime};
use std::fs;
use std::io::Write as _;
use std::time::Duration;

/// What guestfsd writes when it is ready: `GUESTFS_LAUNCH_FLAG` of libguestfs's
/// `common/protocol/guestfs_protocol.x`, as XDR.
const LAUNCH_FLAG: [u8; 4] = 0xf5f5_5ff5_u32.to_be_bytes();

/// Modules that most guests need, and that take long to load.
const MODULES: [&str; 5] = ["xfs", "btrfs", "dm_mod", "vfat", "fuse"];

/// Programs that most guests need. The page cache has them afterwards.
const PROGRAMS: [(&str, &str); 5] =
    [("lvm", "version"), ("dmsetup", "--version"), ("blkid", "-V"), ("wipefs", "-V"), ("ntfs-3g", "-V")];

/// Loads what most guests need.
pub(super) fn load() {
    let modules: Vec<&str> = ["-q", "-a"].into_iter().chain(MODULES).collect();
    program("modprobe", &modules);
    for (name, option) in PROGRAMS {
        program(name, &[option]);
    }
}

/// Waits until the disks are others, which is when a later run goes on from here. The host takes
/// the state while this waits.
pub(super) fn wait_for_disks() -> Result<(), Fatal> {
    const PAUSE: Duration = Duration::from_millis(5);
    let blank = sizes()?;
    loop {
        rescan()?;
        if sizes()? != blank {
            // Those that were asked before the state was taken.
            rescan()?;
            return set_clock();
        }
        std::thread::sleep(PAUSE);
    }
}

/// Tells the host that guestfsd is ready. guestfsd did so itself, but to the run that saved it.
pub(super) fn tell_ready(mut channel: &fs::File) -> Result<(), Fatal> {
    Ok(channel.write_all(&LAUNCH_FLAG)?)
}

/// The sizes of all devices, in sectors of 512 bytes.
fn sizes() -> Result<Vec<String>, Fatal> {
    let size = |device: &std::path::PathBuf| fs::read_to_string(device.join("size")).unwrap_or_default();
    Ok(devices()?.iter().map(size).collect())
}

/// Has the kernel ask each disk what it is.
fn rescan() -> Result<(), Fatal> {
    for device in devices()? {
        let rescan = device.join("device/rescan");
        if rescan.exists() {
            fs::write(&rescan, "1").map_err(|error| format!("{}: {error}", rescan.display()))?;
        }
    }
    Ok(())
}

/// Sets the clock, which has stood still since the state was taken.
fn set_clock() -> Result<(), Fatal> {
    // Without a hardware clock it stays behind. No map depends on it.
    let Ok(now) = fs::read_to_string("/sys/class/rtc/rtc0/since_epoch") else { return Ok(()) };
    clock_settime(ClockId::Realtime, Timespec { tv_sec: now.trim().parse()?, tv_nsec: 0 })?;
    Ok(())
}
