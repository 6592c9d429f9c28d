//! The inventory of block devices, which the agent prints and the host parses.
//!
//! It is text, because it is the output of a command, with one line for each device:
//!
//! ```text
//! /dev/vg/root 253:0 node=/dev/vg/root size=209715200 dm=vg-root uuid=LVM-… type=ext4
//! /dev/sda 8:16 node=/dev/sdb size=1073741824 sector=4096
//! /dev/sda1 8:17 node=/dev/sdb1 size=1048576 part=8:16+1048576 id=6A5E-33C1 type=vfat
//! /dev/md0 9:0 node=/dev/md0 size=209715200 md=raid1 disks=2 chunk=0 layout=0 member=0,8:1,1048576,209715200 … spare=8:33
//! /dev/vg/lost error=No such file or directory
//! ```
//!
//! Numbers are bytes, except device numbers and counts. A sector that is not named has 512 bytes. A member of an array has its slot, device
//! number, offset of its data, and size.

use crate::FsKind;
use crate::bounds::{INVENTORY_LINE_BYTES, INVENTORY_LINES};
use std::fmt;

/// Bytes of a sector that is not named.
const SECTOR: u64 = 512;

/// Largest sector: a page, which was Linux's limit when this was written.
const LARGEST_SECTOR: u64 = 4096;

/// Major and minor number of a block device.
pub type DeviceNumber = (u32, u32);

/// One line of the inventory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The device, under its name in libguestfs, which names disks in the order in which they were
    /// given.
    pub path: String,
    /// Its description.
    pub result: Result<Description, ReportError>,
}

/// Why a device has no description.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// The agent could not find out.
    #[error("{0}")]
    Failed(String),
    /// The line cannot be parsed.
    #[error("the probe agent's description of it is malformed")]
    Malformed,
}

/// Description of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Device number.
    pub number: DeviceNumber,
    /// Its name in the kernel, which names disks in the order in which it finds them.
    pub node: String,
    /// Size in bytes.
    pub size: u64,
    /// Bytes in its logical block, the least that can be read of it.
    pub sector: u64,
    /// Its kind, with the kernel's description of where it lies.
    pub kind: ReportedKind,
    /// Its content, from blkid(8); `None` if unknown.
    pub content: Option<FsKind>,
    /// UUID of the content.
    pub uuid: Option<String>,
}

/// Kinds of block devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReportedKind {
    /// A whole disk.
    Disk,
    /// A partition.
    Partition {
        /// The device that is partitioned.
        of: DeviceNumber,
        /// Offset of the partition on that device, in bytes.
        start: u64,
    },
    /// A device of the device mapper.
    Dm {
        /// The device mapper's name for it.
        name: String,
        /// The device mapper's UUID, which begins with the name of the subsystem that made the
        /// device; may be empty.
        uuid: String,
    },
    /// An md array.
    Md(MdArray),
}

/// An md array, from `/sys/block/md*/md` (`Documentation/admin-guide/md.rst`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MdArray {
    /// `linear`, `raid0`, `raid1`, …
    pub level: String,
    /// Number of members of the complete array.
    pub disks: u64,
    /// Size of a chunk in bytes; 0 if the level has none.
    pub chunk: u64,
    /// Order in which data and parity rotate, as a number of md.
    pub layout: u64,
    /// The members that are present.
    pub members: Vec<MdMember>,
    /// Spare devices.
    pub spares: Vec<DeviceNumber>,
}

/// A member of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MdMember {
    /// Slot in the array, from 0.
    pub slot: u64,
    /// The device.
    pub device: DeviceNumber,
    /// Offset on the device where the data of the array begins, in bytes.
    pub offset: u64,
    /// Number of bytes that the array uses.
    pub size: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, result } = self;
        match result {
            Ok(description) => write!(f, "{path} {description}"),
            Err(error) => write!(f, "{path} error={error}"),
        }
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number: (major, minor), node, size, sector, kind, content, uuid } = self;
        write!(f, "{major}:{minor} node={node} size={size}")?;
        if *sector != SECTOR {
            write!(f, " sector={sector}")?;
        }
        match kind {
            ReportedKind::Disk => {}
            ReportedKind::Partition { of: (major, minor), start } => {
                write!(f, " part={major}:{minor}+{start}")?;
            }
            ReportedKind::Dm { name, uuid } => write!(f, " dm={name} uuid={uuid}")?,
            ReportedKind::Md(array) => {
                let MdArray { level, disks, chunk, layout, members, spares } = array;
                write!(f, " md={level} disks={disks} chunk={chunk} layout={layout}")?;
                for MdMember { slot, device: (major, minor), offset, size } in members {
                    write!(f, " member={slot},{major}:{minor},{offset},{size}")?;
                }
                for (major, minor) in spares {
                    write!(f, " spare={major}:{minor}")?;
                }
            }
        }
        if let Some(uuid) = uuid {
            write!(f, " id={uuid}")?;
        }
        if let Some(content) = content {
            write!(f, " type={content}")?;
        }
        Ok(())
    }
}

/// The inventory has more than [`INVENTORY_LINES`] lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the probe agent reports more than {INVENTORY_LINES} devices")]
pub struct TooManyLines;

/// Parses the output of the agent.
///
/// # Errors
/// [`TooManyLines`]; a mistake in a line affects only the device of that line.
pub fn parse(text: &str) -> Result<Vec<Report>, TooManyLines> {
    let reports: Vec<Report> = text.lines().take(INVENTORY_LINES + 1).map(Report::parse).collect();
    if reports.len() > INVENTORY_LINES { Err(TooManyLines) } else { Ok(reports) }
}

impl Report {
    /// Parses one line. A mistake in it affects only this device.
    pub fn parse(line: &str) -> Self {
        let (path, rest) = line.split_once(' ').unwrap_or((line, ""));
        let path = path.to_owned();
        let result = match rest.strip_prefix("error=") {
            _ if line.len() > INVENTORY_LINE_BYTES => Err(ReportError::Malformed),
            Some(error) => Err(ReportError::Failed(error.to_owned())),
            None => Description::parse(&path, rest).ok_or(ReportError::Malformed),
        };
        Self { path, result }
    }
}

impl Description {
    fn parse(path: &str, text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let number = device_number(words.next()?)?;
        let (mut size, mut kind, mut content, mut id) = (None, ReportedKind::Disk, None, None);
        let mut sector = SECTOR;
        let mut node = path;
        for word in words {
            let (name, value) = word.split_once('=')?;
            match (name, &mut kind) {
                ("node", _) => node = value,
                ("size", _) => size = Some(value.parse().ok()?),
                ("sector", _) => {
                    let is_valid = |n: &u64| n.is_power_of_two() && (SECTOR..=LARGEST_SECTOR).contains(n);
                    sector = value.parse().ok().filter(is_valid)?;
                }
                ("id", _) => id = Some(value.to_owned()),
                ("type", _) => content = Some(FsKind::from_name(value)),
                ("part", _) => {
                    let (of, start) = value.split_once('+')?;
                    kind = ReportedKind::Partition { of: device_number(of)?, start: start.parse().ok()? };
                }
                ("dm", _) => kind = ReportedKind::Dm { name: value.to_owned(), uuid: String::new() },
                ("uuid", ReportedKind::Dm { uuid, .. }) => value.clone_into(uuid),
                ("md", _) => {
                    kind = ReportedKind::Md(MdArray { level: value.to_owned(), ..MdArray::default() });
                }
                ("disks", ReportedKind::Md(array)) => array.disks = value.parse().ok()?,
                ("chunk", ReportedKind::Md(array)) => array.chunk = value.parse().ok()?,
                ("layout", ReportedKind::Md(array)) => array.layout = value.parse().ok()?,
                ("member", ReportedKind::Md(array)) => array.members.push(MdMember::parse(value)?),
                ("spare", ReportedKind::Md(array)) => array.spares.push(device_number(value)?),
                _ => return None,
            }
        }
        Some(Self { number, node: node.to_owned(), size: size?, sector, kind, content, uuid: id })
    }
}

impl MdMember {
    /// Parses `SLOT,MAJOR:MINOR,OFFSET,SIZE`.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(',');
        let (slot, device, offset, size) = (words.next()?, words.next()?, words.next()?, words.next()?);
        if words.next().is_some() {
            return None;
        }
        Some(Self {
            slot: slot.parse().ok()?,
            device: device_number(device)?,
            offset: offset.parse().ok()?,
            size: size.parse().ok()?,
        })
    }
}

/// Parses `MAJOR:MINOR`.
pub fn device_number(text: &str) -> Option<DeviceNumber> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed() {
        let kind = |line| Report::parse(line).result.map(|description| description.kind);
        assert_eq!(kind("/dev/sda 8:0 size=1024"), Ok(ReportedKind::Disk));
        let sector = |line| Report::parse(line).result.map(|description| description.sector);
        assert_eq!(sector("/dev/sda 8:0 size=1024"), Ok(512));
        assert_eq!(sector("/dev/sda 8:0 size=8192 sector=4096"), Ok(4096));
        assert_eq!(
            kind("/dev/sda1 8:1 node=/dev/sdb1 size=512 part=8:0+512 type=ext4"),
            Ok(ReportedKind::Partition { of: (8, 0), start: 512 })
        );
        assert_eq!(
            kind("/dev/vg0/root 253:0 size=512 dm=vg0-root uuid=LVM-x"),
            Ok(ReportedKind::Dm { name: "vg0-root".into(), uuid: "LVM-x".into() })
        );
        let line =
            "/dev/md0 9:0 size=512 md=raid1 disks=2 chunk=0 layout=0 member=1,8:17,1048576,512 spare=8:33";
        let member = MdMember { slot: 1, device: (8, 17), offset: 1 << 20, size: 512 };
        let array = MdArray {
            level: "raid1".into(),
            disks: 2,
            members: vec![member],
            spares: vec![(8, 33)],
            ..MdArray::default()
        };
        assert_eq!(kind(line), Ok(ReportedKind::Md(array)));
        let failed = Report::parse("/dev/sdb error=No medium");
        assert_eq!(failed.path, "/dev/sdb");
        assert_eq!(failed.result, Err(ReportError::Failed("No medium".into())));
        for line in [
            "/dev/sdb",
            "/dev/sdb 8:0",
            "/dev/sdb 8:0 size=x",
            "/dev/sdb 8:0 size=1 disks=1",
            "/dev/sdb 8:0 size=1 x=1",
            "/dev/sdb 8:0 size=1 sector=0",
            "/dev/sdb 8:0 size=1 sector=1000",
            "/dev/sdb 8:0 size=1 sector=8192",
            "/dev/sdb 8:0 size=1 uuid=x",
            "/dev/md0 9:0 size=512 md=raid1 member=1,8:17,0,512,9",
        ] {
            assert_eq!(Report::parse(line).result, Err(ReportError::Malformed), "{line}");
        }
    }

    #[test]
    fn long_lines_and_long_inventories_are_bounded() {
        let line = |bytes: usize| format!("/dev/sda error={}", "x".repeat(bytes - 15));
        assert!(matches!(Report::parse(&line(INVENTORY_LINE_BYTES)).result, Err(ReportError::Failed(_))));
        assert_eq!(Report::parse(&line(INVENTORY_LINE_BYTES + 1)).result, Err(ReportError::Malformed));
        let lines = |count| parse(&"x\n".repeat(count)).map(|reports| reports.len());
        assert_eq!(lines(INVENTORY_LINES), Ok(INVENTORY_LINES));
        assert_eq!(lines(INVENTORY_LINES + 1), Err(TooManyLines));
    }
}
