//! Takes apart everything that lies on the guest's disks, and puts it together again when the disks
//! were exchanged for another state of them. This is for virt-bmap-rs's own appliance, which has no
//! udev.

use crate::disable_readahead::{self, devices};
use crate::{Fatal, forget, init};
use std::path::Path;

/// `BLKRRPART` of `linux/fs.h`: drops the partitions of a disk, and reads its table.
const BLKRRPART: libc::Ioctl = 0x125f;

/// Layers of volumes on arrays on volumes … that are taken apart.
const MOST_LAYERS: usize = 8;

/// Ends all arrays and mapped devices. Nothing may be mounted.
pub(crate) fn detach() -> Result<(), Fatal> {
    for _ in 0..MOST_LAYERS {
        if !has_assembled()? {
            break;
        }
        init::scan::program("lvm", &["vgchange", "-an"]);
        init::scan::program("mdadm", &["--stop", "--scan"]);
        init::scan::program("ldmtool", &["remove", "all"]);
        // Partitions of mapped devices.
        init::scan::program("dmsetup", &["remove_all"]);
    }
    if has_assembled()? {
        return Err("some arrays or volumes are still there".into());
    }
    forget::run()
}

/// Whether there is an array or a mapped device.
fn has_assembled() -> Result<bool, Fatal> {
    Ok(devices()?.iter().any(|device| {
        // An array that was stopped may be there for a moment without a state.
        let is_array = std::fs::read_to_string(device.join("md/array_state"))
            .is_ok_and(|state| state.trim() != "clear" && state.trim() != "inactive");
        is_array || device.join("dm").exists()
    }))
}

/// Reads the partition tables, and assembles what can be.
pub(crate) fn attach() -> Result<(), Fatal> {
    for device in devices()? {
        // The root disk is in use, and keeps its partitions.
        let Some(name) = device.file_name().filter(|_| device.join("device").exists()) else { continue };
        forget::request(&Path::new("/dev").join(name), BLKRRPART);
    }
    init::scan::run();
    disable_readahead::run()
}
