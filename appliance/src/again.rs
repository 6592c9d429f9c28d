//! Mounting and leaving a filesystem of an appliance that is kept. Both return the kernel's
//! messages since the last time.

use crate::{Fatal, forget, kernel_log};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::CString;
use virt_bmap_agent_protocol::Mount;

/// Options of mount(8) that are flags of mount(2). All others are for the filesystem's driver.
const FLAGS: [(&str, MountFlags); 4] = [
    ("ro", MountFlags::RDONLY),
    ("nodev", MountFlags::NODEV),
    ("nosuid", MountFlags::NOSUID),
    ("noexec", MountFlags::NOEXEC),
];

/// Mounts a device.
pub(crate) fn mount_with_options(task: &Mount) -> Result<String, Fatal> {
    let Mount { device, kind, options, root, .. } = task;
    let mut flags = MountFlags::empty();
    let mut rest = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match FLAGS.iter().find(|(name, _)| *name == option) {
            Some((_, flag)) => flags |= *flag,
            None => rest.push(option),
        }
    }
    let rest = CString::new(rest.join(","))?;
    mount(device, root, kind, flags, Some(rest.as_c_str())).map_err(|error| format!("{device}: {error}"))?;
    kernel_log::messages()
}

/// Unmounts what is mounted at `root`, and drops what the kernel remembers of the disks.
pub(crate) fn leave(root: &str) -> Result<String, Fatal> {
    unmount(root, UnmountFlags::empty()).map_err(|error| format!("{root}: {error}"))?;
    forget::run()?;
    kernel_log::messages()
}
