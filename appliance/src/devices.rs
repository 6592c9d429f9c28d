//! Describes the guest's block devices for the host, one line each: those that are named, then all that the
//! kernel has.
//!
//! ```text
//! /dev/vg/root 253:0 node=/dev/vg/root size=209715200 dm=vg-root uuid=LVM-… type=ext4
//! /dev/sda 8:16 node=/dev/sdb size=1073741824
//! /dev/sda1 8:17 node=/dev/sdb1 size=1048576 part=8:16+1048576 id=6A5E-33C1 type=vfat
//! /dev/md0 9:0 node=/dev/md0 size=209715200 md=raid1 disks=2 chunk=0 layout=0 member=0,8:1,1048576,209715200 … spare=8:33
//! ```
//!
//! All numbers are bytes; a member of an array is given by its slot, number, offset of its data, and size. The
//! kernel's own tables are the source: `/sys/dev/block/MAJOR:MINOR`, whose `size` and `start` count 512 bytes
//! (`Documentation/ABI/stable/sysfs-block`), and `md/` below it (`Documentation/admin-guide/md.rst`). The type
//! and UUID of the content are what `blkid` says.

use crate::Fatal;
use rustix::fs::{Mode, OFlags, major, minor, open, stat};
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;

const SECTOR: u64 = 512;

/// A block device by two names.
struct Device {
    /// libguestfs's name: disks are called in the order in which they were given.
    name: String,
    /// The kernel's name: disks are called in the order in which they happened to be found.
    node: String,
}

/// `control` is the disk that is the agent's way out.
pub(crate) fn run(control: &str, named: &[&str]) -> Result<(), Fatal> {
    start_arrays();
    let same = |name: &&str| Device { name: (*name).to_owned(), node: (*name).to_owned() };
    let devices: Vec<Device> = named.iter().map(same).chain(kernel_devices(control)?).collect();
    if devices.iter().any(|device| device.node.starts_with("/dev/mapper/")) {
        crate::calm::run();
    }
    let contents = contents(&devices);
    for Device { name, node } in devices {
        match describe(&name, &node) {
            Ok(line) => println!("{line}{}", contents.get(&node).map_or("", String::as_str)),
            // One device less is a warning of the host's, not the end.
            Err(error) => println!("{name} error={error}"),
        }
    }
    Ok(())
}

/// The guest's disks in their order, each followed by its partitions, then what is stacked on them.
fn kernel_devices(control: &str) -> Result<Vec<Device>, Fatal> {
    let control = fs::canonicalize(control)?;
    let appliance = stat("/")?.st_dev;
    let (mut disks, mut stacked) = (Vec::new(), Vec::new());
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let path = format!("/dev/{name}");
        if let Ok(mapped) = fs::read_to_string(format!("/sys/block/{name}/dm/name")) {
            let mapped = format!("/dev/mapper/{}", mapped.trim());
            stacked.push(if Path::new(&mapped).exists() { mapped } else { path });
        } else if name.starts_with("md") {
            stacked.push(path);
        } else if name.starts_with("sd") && Path::new(&path) != control && stat(&path)?.st_rdev != appliance {
            disks.push((scsi_address(&name)?, name));
        }
    }
    disks.sort();
    let in_order = |name: &String| (name.len(), name.clone());
    stacked.sort_by_key(in_order);
    let mut devices = Vec::new();
    for (index, (_, disk)) in disks.into_iter().enumerate() {
        let mut partitions = Vec::new();
        for entry in fs::read_dir(format!("/sys/block/{disk}"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with(&disk) {
                partitions.push(name);
            }
        }
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

/// Host, channel, target and LUN of a SCSI disk. libguestfs counts its drives by target; the kernel looks at
/// them all at once, and names them as they answer.
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

/// What `blkid` takes each device's content for, as words of the device's line.
fn contents(devices: &[Device]) -> HashMap<String, String> {
    let nodes = devices.iter().map(|device| &device.node);
    // It fails when a device has no type that it knows.
    let output = Command::new("blkid").args(["-c", "/dev/null", "-o", "export"]).args(nodes).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let mut contents = HashMap::<String, String>::new();
    let mut device = String::new();
    for line in text.lines() {
        let Some((name, value)) = line.split_once('=') else { continue };
        let word = match name {
            "DEVNAME" => {
                value.clone_into(&mut device);
                continue;
            }
            "TYPE" => "type",
            "UUID" => "id",
            _ => continue,
        };
        // A damaged superblock can hold anything.
        if value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            *contents.entry(device.clone()).or_default() += &format!(" {word}={value}");
        }
    }
    contents
}

fn describe(name: &str, node: &str) -> Result<String, Fatal> {
    let fd = open(node, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let number = rustix::fs::fstat(&fd)?.st_rdev;
    let number = format!("{}:{}", major(number), minor(number));
    let directory = Path::new("/sys/dev/block").join(&number);
    let read = |name: &str| fs::read_to_string(directory.join(name)).map(|text| text.trim().to_owned());
    let sectors = |name: &str| -> Result<u64, Fatal> { Ok(read(name)?.parse::<u64>()? * SECTOR) };

    let mut line = format!("{name} {number} node={node} size={}", sectors("size")?);
    if directory.join("partition").exists() {
        line += &format!(" part={}+{}", read("../dev")?, sectors("start")?);
    } else if let Ok(name) = read("dm/name") {
        line += &format!(" dm={name} uuid={}", read("dm/uuid")?);
    } else if directory.join("md").exists() {
        line += &array(&directory.join("md"))?;
    }
    Ok(line)
}

/// Starts the arrays that lack so many members that nothing else has started them. They write nothing before a
/// file system does (`Documentation/admin-guide/md.rst`, `array_state`).
fn start_arrays() {
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let state = entry.path().join("md/array_state");
        if fs::read_to_string(&state).is_ok_and(|state| state.trim() == "inactive") {
            // One that cannot be started stays as it is, which the host sees by its size.
            fs::write(state, "read-auto").ok();
        }
    }
}

/// What the kernel says of an array. A resync or recovery would read and write behind our back, so it is
/// stopped.
fn array(directory: &Path) -> Result<String, Fatal> {
    // Fails for levels that have no redundancy.
    fs::write(directory.join("sync_action"), "frozen").ok();
    let read = |name: &str| fs::read_to_string(directory.join(name)).map(|text| text.trim().to_owned());
    let number = |name: &str| read(name).ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let mut line = format!(
        " md={} disks={} chunk={} layout={}",
        read("level")?,
        number("raid_disks"),
        number("chunk_size"),
        number("layout")
    );
    let mut members = Vec::new();
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
        let Ok(slot) = member("slot")?.parse::<u32>() else {
            line += &format!(" spare={}", member("block/dev")?);
            continue;
        };
        let offset = member("offset")?.parse::<u64>()? * SECTOR;
        let size = member("size")?.parse::<u64>()? * 1024;
        members.push((slot, format!(" member={slot},{},{offset},{size}", member("block/dev")?)));
    }
    members.sort();
    line.extend(members.into_iter().map(|(_, member)| member));
    Ok(line)
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
