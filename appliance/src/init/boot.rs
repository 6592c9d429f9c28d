//! From the initial RAM filesystem to the root disk.

use super::wait_until;
use crate::Fatal;
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{chdir, chroot};
use rustix::system::finit_module;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Where the root disk is mounted before it becomes the root.
const NEW_ROOT: &str = "/root";

/// The virtio port of guestfsd, unless the kernel's command line names another.
const CHANNEL: &str = "/dev/virtio-ports/org.libguestfs.channel.0";

/// What the kernel's command line says.
pub(super) struct Options {
    /// The virtio port of guestfsd's connection to libguestfs.
    pub(super) channel: String,
    /// The root disk: `UUID=…`, or a path.
    root: String,
    /// Whether guestfsd should print what it does.
    pub(super) is_verbose: bool,
    /// Whether the host saves the state of the appliance when it has started.
    pub(super) is_saved: bool,
}

impl Options {
    /// From `/proc/cmdline`, which libguestfs has written.
    fn of_kernel() -> Result<Self, Fatal> {
        let line = fs::read_to_string("/proc/cmdline")?;
        let channel = value(&line, "guestfs_channel").unwrap_or(CHANNEL);
        Ok(Self {
            channel: channel.to_owned(),
            root: value(&line, "root").ok_or("the kernel has no option root")?.to_owned(),
            is_verbose: value(&line, "guestfs_verbose") == Some("1"),
            is_saved: value(&line, "virt_bmap.save") == Some("1"),
        })
    }
}

/// The last value of an option of the kernel.
fn value<'a>(line: &'a str, option: &str) -> Option<&'a str> {
    line.split_whitespace().filter_map(|word| word.strip_prefix(option)?.strip_prefix('=')).next_back()
}

/// Loads the modules that reach the root disk, mounts it, and makes it the root.
///
/// If the host saves the state, the root is read-only: later runs start with the disk as it was
/// built. Otherwise guestfish may use the appliance, and its commands may write to the root.
pub(super) fn enter_root() -> Result<Options, Fatal> {
    mount_new("devtmpfs", "/dev", None)?;
    mount_new("proc", "/proc", None)?;
    mount_new("sysfs", "/sys", None)?;
    load_modules()?;
    let options = Options::of_kernel()?;
    let access = if options.is_saved { MountFlags::RDONLY } else { MountFlags::empty() };
    let device = wait_until(&options.root, || root_device(&options.root))?;
    // supermin's root is an ext2, which the ext4 module mounts as well.
    let mounted = ["ext4", "ext2"].iter().map(|kind| {
        mount(&*device, NEW_ROOT, *kind, access | MountFlags::NOATIME, None)
            .map_err(|error| format!("{device}: {error}"))
    });
    mounted.reduce(Result::or).ok_or("no filesystem")??;
    for directory in ["dev", "proc", "sys"] {
        let to = format!("{NEW_ROOT}/{directory}");
        mount_move(format!("/{directory}"), &*to).map_err(|error| format!("{to}: {error}"))?;
    }
    chdir(NEW_ROOT)?;
    mount_move(".", "/")?;
    chroot(".")?;
    chdir("/")?;
    mount_new("devpts", "/dev/pts", None)?;
    mount_new("tmpfs", "/dev/shm", Some("mode=1777"))?;
    mount_new("tmpfs", "/run", Some("size=20%,mode=0755"))?;
    if options.is_saved {
        for temporary in ["/tmp", "/var/tmp"] {
            mount_new("tmpfs", temporary, Some("mode=1777"))?;
        }
    }
    Ok(options)
}

fn mount_new(kind: &str, to: &str, data: Option<&str>) -> Result<(), Fatal> {
    fs::create_dir_all(to).map_err(|error| format!("{to}: {error}"))?;
    let data = data.map(CString::new).transpose()?;
    mount(kind, to, kind, MountFlags::empty(), data.as_deref()).map_err(|error| format!("{to}: {error}"))?;
    Ok(())
}

/// Loads the modules in `/modules`, in their order.
fn load_modules() -> Result<(), Fatal> {
    for name in fs::read_to_string("/modules")?.lines().filter(|line| !line.is_empty()) {
        let file = open(format!("/{name}"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        // Those for hardware that this machine lacks fail. The root disk then does not appear if
        // one was needed.
        if let Err(error) = finit_module(file, c"", 0) {
            println!("virt-bmap-agent: {name}: {}", io::Error::from(error));
        }
    }
    Ok(())
}

/// The device that the option `root` names, once it is there: `UUID=…` of an ext filesystem, or a
/// path.
fn root_device(root: &str) -> Option<String> {
    let Some(uuid) = root.strip_prefix("UUID=") else {
        return fs::exists(root).ok()?.then(|| root.to_owned());
    };
    // libguestfs makes the root disk its last one, so of two with the same UUID it is the later.
    let disks = fs::read_dir("/sys/block").ok()?.flatten();
    let names = disks.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let of_root = names.filter(|name| ext_uuid(&format!("/dev/{name}")).as_deref() == Some(uuid));
    of_root.max_by_key(|name| (name.len(), name.clone())).map(|name| format!("/dev/{name}"))
}

/// The UUID in the superblock of an ext filesystem (`struct ext4_super_block`: 1024 bytes from the
/// beginning; `s_magic` at 0x38, `s_uuid` at 0x68).
fn ext_uuid(device: &str) -> Option<String> {
    let mut superblock = [0; 0x78];
    fs::File::open(device).ok()?.read_exact_at(&mut superblock, 1024).ok()?;
    if superblock[0x38..0x3a] != [0x53, 0xef] {
        return None;
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let parts = [0x68..0x6c, 0x6c..0x6e, 0x6e..0x70, 0x70..0x72, 0x72..0x78];
    Some(parts.map(|part| hex(&superblock[part])).join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_equal_options_counts() {
        let line = "panic=1 root=UUID=1 guestfs_channel=/dev/virtio-ports/a root=UUID=2 xroot=3\n";
        assert_eq!(value(line, "root"), Some("UUID=2"));
        assert_eq!(value(line, "guestfs_channel"), Some("/dev/virtio-ports/a"));
        assert_eq!(value(line, "guestfs_verbose"), None);
    }
}
