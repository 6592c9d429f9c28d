//! The inventory of block devices: what the agent prints, and how the host parses it.
//!
//! It is text, because it travels as the output of a command: one line for each device.
//!
//! ```text
//! /dev/vg/root 253:0 node=/dev/vg/root size=209715200 dm=vg-root uuid=LVM-… type=ext4
//! /dev/sda 8:16 node=/dev/sdb size=1073741824
//! /dev/sda1 8:17 node=/dev/sdb1 size=1048576 part=8:16+1048576 id=6A5E-33C1 type=vfat
//! /dev/md0 9:0 node=/dev/md0 size=209715200 md=raid1 disks=2 chunk=0 layout=0 member=0,8:1,1048576,209715200 … spare=8:33
//! /dev/vg/lost error=No such file or directory
//! ```
//!
//! All numbers are bytes, but for device numbers and counts. A member of an array is given by its slot, number, offset
//! of its data, and size.

use crate::FsKind;
use crate::bounds::{INVENTORY_LINE_BYTES, INVENTORY_LINES};
use std::fmt;

/// Major and minor number of a block device.
pub type DeviceNumber = (u32, u32);

/// What the agent says of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The device, by the name that libguestfs has for it: disks are called in the order in which they were given.
    pub path: String,
    /// What it is.
    pub result: Result<Description, ReportError>,
}

/// Why it is not known what a device is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// The agent could not find out.
    #[error("{0}")]
    Failed(String),
    /// The line cannot be parsed.
    #[error("the probe agent's description of it is malformed")]
    Malformed,
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its number.
    pub number: DeviceNumber,
    /// The kernel's name for it: disks are called in the order in which they happened to be found.
    pub node: String,
    /// Size in bytes.
    pub size: u64,
    /// What the kernel says of where it lies.
    pub kind: ReportedKind,
    /// What it holds, as blkid(8) says; `None` where that does not know.
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
        /// Where the partition begins on it, in bytes.
        start: u64,
    },
    /// A device of the device mapper.
    Dm {
        /// The device mapper's name for it.
        name: String,
        /// Its UUID there, which begins with the name of the subsystem that made it; may be empty.
        uuid: String,
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
    /// Devices that wait to take the place of a member.
    pub spares: Vec<DeviceNumber>,
}

/// A member of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
        let Self { number: (major, minor), node, size, kind, content, uuid } = self;
        write!(f, "{major}:{minor} node={node} size={size}")?;
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

/// Parses all that the agent has printed. Lines beyond [`INVENTORY_LINES`] are left away.
pub fn parse(text: &str) -> Vec<Report> {
    text.lines().take(INVENTORY_LINES).map(Report::parse).collect()
}

impl Report {
    /// Parses one line. What is wrong with it concerns its device alone.
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
        let mut node = path;
        for word in words {
            let (name, value) = word.split_once('=')?;
            match (name, &mut kind) {
                ("node", _) => node = value,
                ("size", _) => size = Some(value.parse().ok()?),
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
        Some(Self { number, node: node.to_owned(), size: size?, kind, content, uuid: id })
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
    fn lines_are_understood() {
        let kind = |line| Report::parse(line).result.map(|description| description.kind);
        assert_eq!(kind("/dev/sda 8:0 size=1024"), Ok(ReportedKind::Disk));
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
            "/dev/sdb 8:0 size=1 uuid=x",
            "/dev/md0 9:0 size=512 md=raid1 member=1,8:17,0,512,9",
        ] {
            assert_eq!(Report::parse(line).result, Err(ReportError::Malformed), "{line}");
        }
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let line = |bytes: usize| format!("/dev/sda error={}", "x".repeat(bytes - 15));
        assert!(matches!(Report::parse(&line(INVENTORY_LINE_BYTES)).result, Err(ReportError::Failed(_))));
        assert_eq!(Report::parse(&line(INVENTORY_LINE_BYTES + 1)).result, Err(ReportError::Malformed));
        assert_eq!(parse(&"x\n".repeat(INVENTORY_LINES + 1)).len(), INVENTORY_LINES);
    }
}
