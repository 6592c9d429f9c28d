//! Prints the device inventory: the named devices, then all others of the kernel. The format is
//! that of
//! [`virt_bmap_agent_protocol::inventory`].
//!
//! The kernel's own tables are the source: `/sys/dev/block/MAJOR:MINOR`, whose `size` and `start`
//! count 512 bytes (`Documentation/ABI/stable/sysfs-block`), and `md/` below it
//! (`Documentation/admin-guide/md.rst`). The type and UUID of the content are what `blkid` says.

use crate::Fatal;
use rustix::fs::{Mode, OFlags, major, minor, open, stat};
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use virt_bmap_agent_protocol::FsKind;
use virt_bmap_agent_protocol::inventory::{
    Description, DeviceNumber, MdArray, MdMember, Report, ReportError, ReportedKind, device_number,
};

const SECTOR: u64 = 512;

/// A block device by two names.
struct Device {
    /// Its name in libguestfs, which names disks in the order in which they were given.
    name: String,
    /// Its name in the kernel, which names disks in the order in which it finds them.
    node: String,
}

/// `control` is the control disk, which is left out.
pub(crate) fn run(control: &str, named: &[&str]) -> Result<(), Fatal> {
    // What was unlocked since the boot may hold a partition table; and libguestfs's own appliance
    // looks for none on mapped devices.
    if crate::tables::run() {
        crate::init::scan::run();
    }
    start_arrays();
    let same = |name: &&str| Device { name: (*name).to_owned(), node: (*name).to_owned() };
    let devices: Vec<Device> = named.iter().map(same).chain(kernel_devices(control)?).collect();
    if devices.iter().any(|device| device.node.starts_with("/dev/mapper/")) {
        crate::dm_freeze::run();
    }
    let contents = contents(&devices);
    for Device { name, node } in devices {
        let content = contents.get(&node).cloned().unwrap_or_default();
        // The host warns about a device that cannot be described; the others are still mapped.
        let result = describe(&node, content).map_err(|error| ReportError::Failed(error.to_string()));
        println!("{}", Report { path: name, result });
    }
    Ok(())
}

/// The guest's disks in their order, each followed by its partitions, then what is stacked on them.
fn kernel_devices(control: &str) -> Result<Vec<Device>, Fatal> {
    let control = fs::canonicalize(control)?;
    let in_order = |name: &String| (name.len(), name.clone());
    let appliance = stat("/")?.st_dev;
    let (mut disks, mut stacked) = (Vec::new(), Vec::new());
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let path = format!("/dev/{name}");
        if let Ok(mapped) = fs::read_to_string(format!("/sys/block/{name}/dm/name")) {
            let mapped = format!("/dev/mapper/{}", mapped.trim());
            stacked.push(if Path::new(&mapped).exists() { mapped } else { path });
        } else if name.starts_with("md") {
            let mut partitions = partitions(&name)?;
            partitions.sort_by_key(in_order);
            stacked.push(path);
            stacked.extend(partitions.into_iter().map(|name| format!("/dev/{name}")));
        } else if name.starts_with("sd") && Path::new(&path) != control && stat(&path)?.st_rdev != appliance {
            disks.push((scsi_address(&name)?, name));
        }
    }
    disks.sort();
    stacked.sort_by_key(in_order);
    let mut devices = Vec::new();
    for (index, (_, disk)) in disks.into_iter().enumerate() {
        let mut partitions = partitions(&disk)?;
        partitions.sort_by_key(in_order);
        let called = disk_name(index);
        for node in std::iter::once(disk.clone()).chain(partitions) {
            let name = format!("/dev/{called}{}", &node[disk.len()..]);
            devices.push(Device { name, node: format!("/dev/{node}") });
        }
    }
    devices.extend(stacked.into_iter().map(|path| Device { name: path.clone(), node: path }));
    Ok(devices)
}

/// The partitions that the kernel has found on a device.
fn partitions(device: &str) -> Result<Vec<String>, Fatal> {
    let mut partitions = Vec::new();
    for entry in fs::read_dir(format!("/sys/block/{device}"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(device) {
            partitions.push(name);
        }
    }
    Ok(partitions)
}

/// Host, channel, target and LUN of a SCSI disk. libguestfs numbers its drives by target; the
/// kernel probes them in parallel, and names them in the order of their answers.
fn scsi_address(disk: &str) -> Result<Vec<u64>, Fatal> {
    let device = fs::canonicalize(format!("/sys/block/{disk}/device"))?;
    let address = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(address.split(':').map(str::parse).collect::<Result<_, _>>()?)
}

/// `sda`, …, `sdz`, `sdaa`, …
fn disk_name(mut index: usize) -> String {
    let mut letters = Vec::new();
    loop {
        letters.push(b'a' + (index % 26) as u8);
        if index < 26 {
            break;
        }
        index = index / 26 - 1;
    }
    letters.reverse();
    format!("sd{}", String::from_utf8_lossy(&letters))
}

/// The content of a device according to `blkid`.
#[derive(Clone, Default)]
struct Content {
    kind: Option<FsKind>,
    uuid: Option<String>,
}

/// The content of each device according to `blkid`.
fn contents(devices: &[Device]) -> HashMap<String, Content> {
    let nodes = devices.iter().map(|device| &device.node);
    // It fails if it does not recognise the content of a device.
    let output = Command::new("blkid").args(["-c", "/dev/null", "-o", "export"]).args(nodes).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let mut contents = HashMap::<String, Content>::new();
    let mut device = String::new();
    for line in text.lines() {
        let Some((name, value)) = line.split_once('=') else { continue };
        if name == "DEVNAME" {
            value.clone_into(&mut device);
            continue;
        }
        // A damaged superblock can hold anything.
        if !value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            continue;
        }
        let content = contents.entry(device.clone()).or_default();
        match name {
            "TYPE" => content.kind = Some(FsKind::from_name(value)),
            "UUID" => content.uuid = Some(value.to_owned()),
            _ => {}
        }
    }
    contents
}

fn describe(node: &str, content: Content) -> Result<Description, Fatal> {
    let fd = open(node, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let number = rustix::fs::fstat(&fd)?.st_rdev;
    let number = (major(number), minor(number));
    let directory = Path::new("/sys/dev/block").join(format!("{}:{}", number.0, number.1));
    let read = |name: &str| fs::read_to_string(directory.join(name)).map(|text| text.trim().to_owned());
    let sectors = |name: &str| -> Result<u64, Fatal> { Ok(read(name)?.parse::<u64>()? * SECTOR) };

    let size = sectors("size")?;
    let is_partition = directory.join("partition").exists();
    let queue = if is_partition { "../queue" } else { "queue" };
    let sector = read(&format!("{queue}/logical_block_size"))?.parse()?;
    let kind = if is_partition {
        ReportedKind::Partition { of: number_in(&read("../dev")?)?, start: sectors("start")? }
    } else if let Ok(name) = read("dm/name") {
        ReportedKind::Dm { name, uuid: read("dm/uuid")? }
    } else if directory.join("md").exists() {
        ReportedKind::Md(array(&directory.join("md"))?)
    } else {
        ReportedKind::Disk
    };
    let Content { kind: content, uuid } = content;
    Ok(Description { number, node: node.to_owned(), size, sector, kind, content, uuid })
}

/// The number of a device in a file of sysfs.
fn number_in(text: &str) -> Result<DeviceNumber, Fatal> {
    device_number(text).ok_or_else(|| format!("{text} is no number of a device").into())
}

/// Starts degraded arrays, which nothing else starts. They write nothing until a filesystem does
/// (`Documentation/admin-guide/md.rst`, `array_state`).
fn start_arrays() {
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let state = entry.path().join("md/array_state");
        if fs::read_to_string(&state).is_ok_and(|state| state.trim() == "inactive") {
            // An array that cannot be started keeps the size 0, which the host recognises.
            fs::write(state, "read-auto").ok();
        }
    }
}

/// The description of an array. A resync or recovery, which would read and write by itself, is
/// stopped.
fn array(directory: &Path) -> Result<MdArray, Fatal> {
    // Fails for levels without redundancy.
    fs::write(directory.join("sync_action"), "frozen").ok();
    let read = |name: &str| fs::read_to_string(directory.join(name)).map(|text| text.trim().to_owned());
    let number = |name: &str| read(name).ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let mut array = MdArray {
        level: read("level")?,
        disks: number("raid_disks"),
        chunk: number("chunk_size"),
        layout: number("layout"),
        ..MdArray::default()
    };
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with("dev-") {
            continue;
        }
        let member =
            |name: &str| fs::read_to_string(entry.path().join(name)).map(|text| text.trim().to_owned());
        // A failed member has no data worth reading, a spare has no slot.
        if member("state")?.split(',').any(|state| state == "faulty") {
            continue;
        }
        let device = number_in(&member("block/dev")?)?;
        let Ok(slot) = member("slot")?.parse::<u32>() else {
            array.spares.push(device);
            continue;
        };
        let offset = member("offset")?.parse::<u64>()? * SECTOR;
        let size = member("size")?.parse::<u64>()? * 1024;
        array.members.push(MdMember { slot: slot.into(), device, offset, size });
    }
    array.members.sort();
    Ok(array)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_named_as_the_kernel_names_them() {
        let names: Vec<String> = [0, 25, 26, 27, 51, 52, 701, 702].map(disk_name).into();
        assert_eq!(names, ["sda", "sdz", "sdaa", "sdab", "sdaz", "sdba", "sdzz", "sdaaa"]);
    }
}
