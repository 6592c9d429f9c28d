//! What the appliance's kernel found on the guest's disks.

use super::{Appliance, CONTROL_LABEL, CallError};
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

/// Major and minor number of a block device.
pub type DeviceNumber = (u32, u32);

/// A block device of the appliance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDevice {
    /// Its name, `/dev/sda1` or `/dev/vg/root`.
    pub path: String,
    /// Major and minor number.
    pub number: DeviceNumber,
    /// Size in bytes.
    pub size: u64,
    /// What it is.
    pub kind: DeviceKind,
}

/// Kinds of block devices, with what the kernel says of where they lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A whole disk.
    Disk,
    /// A partition.
    Partition {
        /// The device that is partitioned.
        of: DeviceNumber,
        /// Where the partition begins on it, in bytes.
        start: u64,
    },
    /// A device of the device mapper; a logical volume is one.
    Dm {
        /// The targets of its table, in order.
        targets: Vec<DmTarget>,
    },
    /// An md array.
    Md(MdArray),
}

/// An md array, as `/sys/block/md*/md` has it (`Documentation/admin-guide/md.rst`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MdArray {
    /// `linear`, `raid0`, `raid1`, …
    pub level: String,
    /// How many members it should have.
    pub disks: u64,
    /// Bytes of a chunk; 0 where the level has none.
    pub chunk: u64,
    /// How data and parity go round, in md's own numbers.
    pub layout: u64,
    /// Those that are there, by slot.
    pub members: Vec<MdMember>,
}

/// A member of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MdMember {
    /// Its place in the array, from 0.
    pub slot: u64,
    /// The device.
    pub device: DeviceNumber,
    /// Where on it the array's data begins, in bytes.
    pub offset: u64,
    /// How many bytes of it the array uses.
    pub size: u64,
}

/// One line of a device-mapper table (`dmsetup(8)`), sectors turned into bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmTarget {
    /// Where on the mapped device it begins.
    pub start: u64,
    /// How many bytes it maps.
    pub length: u64,
    /// `linear`, `striped`, `crypt`, …
    pub kind: String,
    /// The rest of the line.
    pub arguments: Vec<String>,
}

/// Something that can be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filesystem {
    /// libguestfs's name for it: a device, or `btrfsvol:/dev/sda1/home`.
    pub mountable: String,
    /// `ext4`, `xfs`, `swap`, … or `unknown`.
    pub kind: String,
}

/// All that was found, each list in a fixed order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The guest's disks, in the order in which they were given.
    pub disks: Vec<BlockDevice>,
    /// Partitions, by disk and number.
    pub partitions: Vec<BlockDevice>,
    /// Logical volumes, by name.
    pub volumes: Vec<BlockDevice>,
    /// Other assembled devices: md arrays, unlocked encrypted devices, by name.
    pub others: Vec<BlockDevice>,
    /// Devices that only others are made of: the parts of a mirrored volume, the pool of a thin one.
    pub hidden: Vec<BlockDevice>,
    /// What can be mounted or is at least known, by device.
    pub filesystems: Vec<Filesystem>,
    /// Devices that could not be looked at, and why.
    pub troubles: Vec<(String, String)>,
}

impl Inventory {
    /// All block devices.
    pub fn devices(&self) -> impl Iterator<Item = &BlockDevice> {
        self.disks.iter().chain(&self.partitions).chain(&self.volumes).chain(&self.others)
    }
}

/// Sectors of `dmsetup` and sysfs.
const SECTOR: u64 = 512;

impl Appliance {
    /// Takes stock. The agent must have been started.
    ///
    /// # Errors
    /// What libguestfs says.
    pub fn inventory(&self) -> Result<Inventory, CallError> {
        let disks = self.guest_disks()?;
        let partitions = self.call(guestfs::Handle::list_partitions)?;
        let volumes: BTreeSet<String> = self.call(guestfs::Handle::lvs)?.into_iter().collect();
        let arrays: BTreeSet<String> = self.call(guestfs::Handle::list_md_devices)?.into_iter().collect();
        let mapped: BTreeSet<String> = self.call(guestfs::Handle::list_dm_devices)?.into_iter().collect();
        let tables = DmTable::parse_all(&self.shell("dmsetup table")?);

        let mut inventory = Inventory::default();
        let all: Vec<&str> = disks
            .iter()
            .chain(&partitions)
            .chain(&volumes)
            .chain(&arrays)
            .chain(&mapped)
            .map(String::as_str)
            .collect();
        let mut seen = BTreeSet::new();
        let text = self.describe(&all).map_err(|error| CallError { message: error.to_string() })?;
        for line in text.lines() {
            match parse_device(line, &tables) {
                Ok(device) => {
                    // The agent adds all that is stacked, also what has been described by another name.
                    let is_new = seen.insert(device.number);
                    let list = match device.kind {
                        DeviceKind::Partition { .. } => &mut inventory.partitions,
                        DeviceKind::Disk => &mut inventory.disks,
                        DeviceKind::Dm { .. } if volumes.contains(&device.path) => &mut inventory.volumes,
                        _ if all.contains(&device.path.as_str()) => &mut inventory.others,
                        _ if is_new => &mut inventory.hidden,
                        _ => continue,
                    };
                    list.push(device);
                }
                Err(trouble) => inventory.troubles.push(trouble),
            }
        }
        inventory.filesystems = self.guest_filesystems()?;
        Ok(inventory)
    }

    /// The guest's disks, in the order in which they were given.
    pub(crate) fn guest_disks(&self) -> Result<Vec<String>, CallError> {
        let control = self.control_device()?;
        let mut disks = self.call(guestfs::Handle::list_devices)?;
        disks.retain(|disk| *disk != control);
        Ok(disks)
    }

    /// What libguestfs takes for file systems, by device.
    pub(crate) fn guest_filesystems(&self) -> Result<Vec<Filesystem>, CallError> {
        let control = self.control_device()?;
        let filesystems: BTreeMap<String, String> =
            self.call(guestfs::Handle::list_filesystems)?.into_iter().collect();
        Ok(filesystems
            .into_iter()
            .filter(|(mountable, _)| *mountable != control)
            .map(|(mountable, kind)| Filesystem { mountable, kind })
            .collect())
    }

    fn control_device(&self) -> Result<String, CallError> {
        let mut labels = self.call(guestfs::Handle::list_disk_labels)?;
        labels.remove(CONTROL_LABEL).ok_or_else(|| CallError { message: "there is no control disk".into() })
    }

    /// Ends udev's daemon. When a device that was open for writing is closed, as a file system's is when it
    /// is unmounted, udev looks at it again, which would be recorded; and when a whole disk is, the
    /// partitions are taken away and found anew.
    ///
    /// # Errors
    /// What libguestfs says.
    pub fn stop_udev(&self) -> Result<(), CallError> {
        self.shell("udevadm settle; udevadm control --exit").map(drop)
    }

    /// What `blkid` takes a device's content for, `None` where it does not know.
    pub fn content_of(&self, device: &str) -> Option<String> {
        self.call(|g| g.vfs_type(device)).ok().filter(|kind| !kind.is_empty())
    }
}

/// The device mapper's tables, by the name of the mapped device.
#[derive(Default)]
struct DmTable(BTreeMap<String, Vec<DmTarget>>);

impl DmTable {
    /// Parses what `dmsetup table` prints: `NAME: START LENGTH KIND ARGUMENTS...`.
    fn parse_all(text: &str) -> Self {
        let mut tables = BTreeMap::<String, Vec<DmTarget>>::new();
        for line in text.lines() {
            let Some((name, target)) = line.split_once(": ") else { continue };
            let mut words = target.split_whitespace();
            let mut sectors = || words.next()?.parse::<u64>().ok()?.checked_mul(SECTOR);
            let (Some(start), Some(length)) = (sectors(), sectors()) else { continue };
            let Some(kind) = words.next() else { continue };
            tables.entry(name.to_owned()).or_default().push(DmTarget {
                start,
                length,
                kind: kind.to_owned(),
                arguments: words.map(str::to_owned).collect(),
            });
        }
        Self(tables)
    }
}

/// Parses one line of the agent's `devices`; an error is the device and what is wrong with it.
fn parse_device(line: &str, tables: &DmTable) -> Result<BlockDevice, (String, String)> {
    let (path, rest) = line.split_once(' ').unwrap_or((line, ""));
    let trouble = |what: &str| (path.to_owned(), what.to_owned());
    if let Some(error) = rest.strip_prefix("error=") {
        return Err(trouble(error));
    }
    let malformed = || trouble("the probe agent's description of it is malformed");
    let mut words = rest.split(' ');
    let number = words.next().and_then(device_number).ok_or_else(malformed)?;
    let size = words.next().and_then(|w| w.strip_prefix("size=")?.parse().ok()).ok_or_else(malformed)?;
    let kind = match words.next() {
        None => DeviceKind::Disk,
        Some(word) => {
            if let Some(level) = word.strip_prefix("md=") {
                DeviceKind::Md(md_array(level, words).ok_or_else(malformed)?)
            } else if let Some(name) = word.strip_prefix("dm=") {
                DeviceKind::Dm { targets: tables.0.get(name).cloned().unwrap_or_default() }
            } else {
                let (of, start) = word
                    .strip_prefix("part=")
                    .and_then(|part| part.split_once('+'))
                    .and_then(|(of, start)| Some((device_number(of)?, start.parse().ok()?)))
                    .ok_or_else(malformed)?;
                DeviceKind::Partition { of, start }
            }
        }
    };
    Ok(BlockDevice { path: path.to_owned(), number, size, kind })
}

/// Parses the rest of an array's line: `disks=2 chunk=0 layout=0 member=SLOT,MAJOR:MINOR,OFFSET,SIZE …`.
fn md_array<'a>(level: &str, words: impl Iterator<Item = &'a str>) -> Option<MdArray> {
    let mut array = MdArray { level: level.to_owned(), ..MdArray::default() };
    for word in words {
        let (name, value) = word.split_once('=')?;
        match name {
            "disks" => array.disks = value.parse().ok()?,
            "chunk" => array.chunk = value.parse().ok()?,
            "layout" => array.layout = value.parse().ok()?,
            "member" => {
                let [slot, device, offset, size] = value.split(',').collect::<Vec<_>>().try_into().ok()?;
                array.members.push(MdMember {
                    slot: slot.parse().ok()?,
                    device: device_number(device)?,
                    offset: offset.parse().ok()?,
                    size: size.parse().ok()?,
                });
            }
            _ => return None,
        }
    }
    Some(array)
}

/// Parses `MAJOR:MINOR`.
pub(crate) fn device_number(text: &str) -> Option<DeviceNumber> {
    let (major, minor) = text.split_once(':')?;
    Some((u32::from_str(major).ok()?, u32::from_str(minor).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_lines_are_understood() {
        let tables = DmTable::parse_all(
            "vg0-root: 0 409600 linear 8:2 2048\nvg0-root: 409600 8192 linear 8:17 2048\nNo devices found\n",
        );
        let parse = |line| parse_device(line, &tables);
        assert_eq!(parse("/dev/sda 8:0 size=1024").unwrap().kind, DeviceKind::Disk);
        assert_eq!(
            parse("/dev/sda1 8:1 size=512 part=8:0+512").unwrap().kind,
            DeviceKind::Partition { of: (8, 0), start: 512 }
        );
        let DeviceKind::Dm { targets } = parse("/dev/vg0/root 253:0 size=512 dm=vg0-root").unwrap().kind
        else {
            panic!("no device-mapper device");
        };
        assert_eq!(targets.len(), 2);
        assert_eq!((targets[1].start, targets[1].length), (409_600 * 512, 8192 * 512));
        assert_eq!(targets[1].arguments, ["8:17", "2048"]);
        let line = "/dev/md0 9:0 size=512 md=raid1 disks=2 chunk=0 layout=0 member=1,8:17,1048576,512";
        let member = MdMember { slot: 1, device: (8, 17), offset: 1 << 20, size: 512 };
        let array = MdArray { level: "raid1".into(), disks: 2, members: vec![member], ..MdArray::default() };
        assert_eq!(parse(line).unwrap().kind, DeviceKind::Md(array));
        assert_eq!(parse("/dev/sdb error=No medium").unwrap_err(), ("/dev/sdb".into(), "No medium".into()));
        assert!(parse("/dev/sdb").is_err());
    }
}
