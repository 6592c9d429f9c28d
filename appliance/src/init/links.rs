//! The nodes and links in `/dev` that udev would make.

use super::wait_until;
use crate::Fatal;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Makes all of them. Returns the device of guestfsd's virtio port, once the port is there.
pub(super) fn make(channel: &str) -> Result<PathBuf, Fatal> {
    static_nodes();
    let by_path = Path::new("/dev/disk/by-path");
    let by_label = Path::new("/dev/disk/guestfs");
    for directory in [by_path, by_label, Path::new("/dev/virtio-ports")] {
        fs::create_dir_all(directory)?;
    }
    for entry in fs::read_dir("/sys/block")?.flatten() {
        let disk = entry.file_name().to_string_lossy().into_owned();
        let device = entry.path().join("device");
        let Ok(place) = fs::canonicalize(&device) else { continue };
        // libguestfs orders its drives by these links.
        link(&disk, &by_path.join(path_name(&place)))?;
        if let Some(serial) = serial(&fs::read(device.join("vpd_pg80")).unwrap_or_default()) {
            link(&disk, &by_label.join(serial))?;
        }
        // Remote images may take long to answer. Not every device has the setting.
        let _ = fs::write(device.join("timeout"), "300");
    }
    let name = channel.strip_prefix("/dev/virtio-ports/").unwrap_or(channel);
    let port = wait_until(channel, || port(name))?;
    let port = Path::new("/dev").join(port);
    link_to(&port, &Path::new("/dev/virtio-ports").join(name))?;
    Ok(port)
}

fn link(disk: &str, at: &Path) -> io::Result<()> {
    link_to(&Path::new("/dev").join(disk), at)
}

fn link_to(device: &Path, at: &Path) -> io::Result<()> {
    match symlink(device, at) {
        // Two disks with one serial number: the first keeps the name.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// The name of a SCSI disk in `/dev/disk/by-path`, as udev's `path_id` forms it:
/// `pci-0000:00:03.0-scsi-0:0:1:0`.
fn path_name(device: &Path) -> String {
    let parts: Vec<&str> = device.iter().filter_map(|part| part.to_str()).collect();
    let is_pci = |part: &&&str| part.len() == 12 && part.as_bytes()[4] == b':' && part.as_bytes()[10] == b'.';
    let bus = parts.iter().rfind(is_pci).map_or_else(|| "platform".to_owned(), |part| format!("pci-{part}"));
    format!("{bus}-scsi-{}", parts.last().copied().unwrap_or_default())
}

/// The serial number in SCSI's page of vital product data 0x80 (SPC-4, 7.8.15): four bytes of head,
/// then the number, padded by spaces.
fn serial(page: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(page.get(4..)?).ok()?.trim_matches(['\0', ' ']);
    // It names a file, and is the host's own, or qemu's.
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    (!text.is_empty() && text.chars().all(is_name)).then(|| text.to_owned())
}

/// The device of the virtio port of this name.
fn port(name: &str) -> Option<String> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?.flatten();
    let is_it = |entry: &fs::DirEntry| {
        fs::read_to_string(entry.path().join("name")).is_ok_and(|found| found.trim() == name)
    };
    ports.filter(is_it).map(|entry| entry.file_name().to_string_lossy().into_owned()).next()
}

/// Makes the nodes whose opening loads a module (`/lib/modules/VERSION/modules.devname`, see
/// kmod-static-nodes.service(8)): `/dev/fuse`, `/dev/mapper/control` and the like.
fn static_nodes() {
    let version = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let list = format!("/lib/modules/{}/modules.devname", version.trim());
    for line in fs::read_to_string(list).unwrap_or_default().lines() {
        let Some((path, kind, major, minor)) = static_node(line) else { continue };
        let path = Path::new("/dev").join(path);
        if let Some(directory) = path.parent() {
            let _ = fs::create_dir_all(directory);
        }
        // A module that is loaded already has its node.
        let _ = mknodat(CWD, &path, kind, Mode::from_raw_mode(0o600), makedev(major, minor));
    }
}

/// A line of `modules.devname`: module, path below `/dev`, and type and number of the node.
fn static_node(line: &str) -> Option<(&str, FileType, u32, u32)> {
    let mut words = line.split_whitespace();
    let (module, path, number) = (words.next()?, words.next()?, words.next()?);
    if module.starts_with('#') {
        return None;
    }
    let kind = match number.get(..1)? {
        "c" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        _ => return None,
    };
    let (major, minor) = number.get(1..)?.split_once(':')?;
    Some((path, kind, major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_have_the_names_of_udev() {
        let device = "/sys/devices/pci0000:00/0000:00:03.0/virtio1/host0/target0:0:11/0:0:11:0";
        assert_eq!(path_name(Path::new(device)), "pci-0000:00:03.0-scsi-0:0:11:0");
    }

    #[test]
    fn serial_numbers_are_file_names() {
        assert_eq!(serial(b"\0\x80\0\x07control").as_deref(), Some("control"));
        assert_eq!(serial(b"\0\x80\0\x04ab  ").as_deref(), Some("ab"));
        for page in [&b""[..], b"\0\x80", b"\0\x80\0\x00", b"\0\x80\0\x02..", b"\0\x80\0\x03a/b"] {
            assert_eq!(serial(page), None);
        }
    }

    #[test]
    fn static_nodes_are_parsed() {
        let node = static_node("dm_mod mapper/control c10:236");
        assert_eq!(node, Some(("mapper/control", FileType::CharacterDevice, 10, 236)));
        for line in ["", "# Device nodes to trigger on-demand module loading.", "fuse fuse", "fuse fuse x1:2"]
        {
            assert_eq!(static_node(line), None);
        }
    }
}
