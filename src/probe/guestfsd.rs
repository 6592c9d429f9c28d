//! Reads everything with calls that every libguestfs since 1.29.11 has, and uploads nothing.
//!
//! `debug bmap_file PATH` opens a file or directory, `debug bmap_device DEVICE` a device, and
//! `debug bmap` drops all caches and reads what was opened from end to end. That is slow: about a
//! tenth of a second for each object under emulation. And because the caches are cold, the metadata
//! of a file is recorded together with its data. The original virt-bmap worked like this. It serves
//! as a reference, and where the agent cannot run.

use super::context::Context;
use super::filesystems::each_filesystem;
use super::signatures::Signatures;
use super::{Phase, ProbeError};
use crate::appliance::{BlockDevice, CallError, Content, DeviceKind, Inventory};
use crate::recorder::{Recorder, Tag};
use rustix::fs::FileType;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use virt_bmap_agent_protocol::{Class, FsKind};
use virt_bmap_map::{Attributes, Cause, Kind, LockReason, Role};

/// Names looked up in one call.
const NAMES_PER_CALL: usize = 1000;

/// Longest list of names that is accepted from the appliance, in bytes.
const MOST_NAMES: u64 = 4 << 30;

/// Reads everything with libguestfs's own daemon.
///
/// # Errors
/// [`ProbeError`]; a failure of one device, filesystem or file becomes a warning.
pub fn survey(context: &Context<'_>, recorder: &Recorder) -> Result<(), ProbeError> {
    (context.phase)(Phase::Devices);
    let probe = Probe { context, recorder };
    context.appliance.stop_udev().map_err(ProbeError::Inventory)?;
    let inventory = probe.inventory().map_err(ProbeError::Inventory)?;
    probe.devices(&inventory)?;
    probe.note_encrypted(&inventory);
    each_filesystem(context, &inventory, &Signatures::new(), |filesystem, _| probe.walk(filesystem))?;
    Ok(())
}

struct Probe<'a> {
    context: &'a Context<'a>,
    recorder: &'a Recorder,
}

impl Probe<'_> {
    /// The devices that libguestfs lists. Their places are found by reading them.
    fn inventory(&self) -> Result<Inventory, CallError> {
        let appliance = self.context.appliance;
        // As in the original, but before anything is mounted: filesystems copy the setting.
        appliance.shell(
            "for f in /sys/block/*/queue/read_ahead_kb; do echo 0 > $f; done; \
             for f in /sys/block/*/queue/scheduler; do echo none > $f 2>/dev/null; done; true",
        )?;
        // The `debug` calls take the kernel's names, which follow the order in which disks
        // answered; libguestfs's follow their SCSI addresses.
        let found = appliance.shell(
            "cd /sys/block; for d in sd*; do a=$(readlink -f $d/device); echo ${a##*/} $d; done | sort -t: -k3n",
        )?;
        let found: Vec<&str> = found.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        let disks = appliance.guest_disks()?;
        let node_of = |path: &str| {
            let mut of_disk = disks.iter().zip(&found).filter_map(|(disk, node)| {
                let rest = path.strip_prefix(disk.as_str())?;
                rest.bytes().all(|b| b.is_ascii_digit()).then(|| format!("/dev/{node}{rest}"))
            });
            of_disk.next().unwrap_or_else(|| path.to_owned())
        };
        let device = |path: &String, kind| BlockDevice {
            path: path.clone(),
            node: node_of(path),
            number: (0, 0),
            size: 0,
            sector: 512,
            kind,
        };
        let partition = DeviceKind::Partition { of: (0, 0), start: 0 };
        let volumes: BTreeSet<String> = appliance.guest_volumes()?.into_iter().collect();
        Ok(Inventory {
            disks: disks.iter().map(|path| device(path, DeviceKind::Disk)).collect(),
            partitions: appliance
                .call(guestfs::Handle::list_partitions)?
                .iter()
                .map(|path| device(path, partition.clone()))
                .collect(),
            volumes: volumes
                .iter()
                .map(|path| device(path, DeviceKind::Dm { targets: Vec::new() }))
                .collect(),
            contents: appliance.guest_filesystems()?,
            ..Inventory::default()
        })
    }

    /// Warns of encrypted devices, which libguestfs does not list among the filesystems.
    fn note_encrypted(&self, inventory: &Inventory) {
        let is_listed = |path: &str| inventory.contents.iter().any(|content| content.device == path);
        for device in inventory.devices().filter(|device| !is_listed(&device.path)) {
            let kind = self.context.appliance.call(|g| g.vfs_type(&device.path));
            if kind.is_ok_and(|kind| FsKind::from_name(&kind).class() == Class::Encrypted) {
                self.context.warn(&device.path, Cause::Locked { reason: LockReason::ProbeTakesNoKeys });
            }
        }
    }

    fn devices(&self, inventory: &Inventory) -> Result<(), ProbeError> {
        let channel = self.context.channel;
        for (disk, (device, source)) in (1..).zip(inventory.disks.iter().zip(self.context.disks)) {
            channel.with(|found, _| {
                let number = found.device(Kind::Disk, &device.path)?;
                found.range(
                    number,
                    disk,
                    virt_bmap_ranges::DiskRange::new(0, source.size()),
                    None,
                    Role::default(),
                )
            })?;
        }
        let others = inventory.partitions.iter().map(|device| (Kind::Partition, device));
        let others = others.chain(inventory.volumes.iter().map(|device| (Kind::LogicalVolume, device)));
        for (kind, device) in others {
            let number = channel.with(|found, _| found.device(kind, &device.path))?;
            if let Err(error) = self.read("bmap_device", &device.node, number)? {
                self.context.warn(&device.path, call_failed(&error));
            }
        }
        Ok(())
    }

    fn walk(&self, filesystem: &Content) -> Result<(), ProbeError> {
        let channel = self.context.channel;
        let device = &filesystem.device;
        channel.end_mount();
        channel.begin_walk(super::channel::WalkContext {
            device: device.clone(),
            kind: filesystem.kind.clone().unwrap_or_default(),
            ..Default::default()
        });
        let root =
            channel.with(|found, _| found.object(Kind::Directory, None, b"", Attributes::default()))?;
        if let Err(error) = self.read("bmap_file", "/", root)? {
            channel.with(|_, warnings| warnings.on_path(device, b"/", call_failed(&error)));
        }
        let names = match self.names() {
            Ok(names) => names,
            Err(error) => {
                self.context.still_alive(&format!("{device} was being listed"))?;
                self.context.warn(device, Cause::WalkCutShort { error });
                return Ok(());
            }
        };
        // A directory is listed before what it holds.
        let mut numbers = BTreeMap::from([(String::new(), root)]);
        let mut by_directory = BTreeMap::<String, Vec<String>>::new();
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            match std::str::from_utf8(name) {
                Ok(path) => {
                    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
                    by_directory.entry(directory.to_owned()).or_default().push(name.to_owned());
                }
                Err(_) => {
                    let path = [b"/", name].concat();
                    channel.with(|_, warnings| warnings.on_path(device, &path, Cause::NameNotUtf8));
                }
            }
        }
        for (directory, mut names) in by_directory {
            names.sort();
            let Some(&parent) = numbers.get(&directory) else { continue };
            for names in names.chunks(NAMES_PER_CALL) {
                let list: Vec<&str> = names.iter().map(String::as_str).collect();
                let place = format!("/{directory}");
                let stats = match self.context.appliance.call(|g| g.lstatnslist(&place, &list)) {
                    Ok(stats) => stats,
                    Err(error) => {
                        self.context.still_alive(&format!("{device} was being read"))?;
                        let cause = call_failed(&error);
                        channel.with(|_, warnings| warnings.on_path(device, place.as_bytes(), cause));
                        continue;
                    }
                };
                for (name, stat) in names.iter().zip(stats) {
                    let kind = match FileType::from_raw_mode(stat.st_mode as u32) {
                        FileType::Directory => Kind::Directory,
                        FileType::RegularFile => Kind::File,
                        _ => continue,
                    };
                    let attributes = Attributes {
                        inode: u64::try_from(stat.st_ino).ok(),
                        size: u64::try_from(stat.st_size).ok(),
                        // Each name is read separately here.
                        links: Some(1),
                        ..Attributes::default()
                    };
                    let number = channel
                        .with(|found, _| found.object(kind, Some(parent), name.as_bytes(), attributes))?;
                    let path =
                        if directory.is_empty() { name.clone() } else { format!("{directory}/{name}") };
                    if let Err(error) = self.read("bmap_file", &format!("/{path}"), number)? {
                        let cause = call_failed(&error);
                        channel.with(|_, warnings| {
                            warnings.on_path(device, format!("/{path}").as_bytes(), cause);
                        });
                    }
                    if kind == Kind::Directory {
                        numbers.insert(path, number);
                    }
                }
            }
        }
        Ok(())
    }

    /// All names below `/`, relative to it, each ended by a zero byte.
    fn names(&self) -> Result<Vec<u8>, String> {
        let file = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
        let path = file.path().to_string_lossy();
        self.context.appliance.call(|g| g.find0("/", &path)).map_err(|error| error.to_string())?;
        let mut names = Vec::new();
        let result = file.reopen().and_then(|file| file.take(MOST_NAMES).read_to_end(&mut names));
        result.map_err(|error| error.to_string())?;
        Ok(names)
    }

    /// Opens something, then reads it under the tag of an object. The inner error concerns only
    /// this object.
    fn read(&self, open: &str, path: &str, number: u32) -> Result<Result<(), CallError>, ProbeError> {
        let appliance = self.context.appliance;
        if let Err(error) = appliance.call(|g| g.debug(open, &[path])) {
            self.context.still_alive(&format!("{path} was being opened"))?;
            return Ok(Err(error));
        }
        self.recorder.switch(Some(Tag(number)));
        let result = appliance.call(|g| g.debug("bmap", &[]));
        let recording = self.recorder.switch(None);
        self.context.channel.with(|found, _| -> Result<(), ProbeError> {
            for (disk, range) in recording.iter() {
                found.range(number, disk, range, None, Role::default())?;
            }
            Ok(())
        })?;
        if result.is_err() {
            self.context.still_alive(&format!("{path} was being read"))?;
        }
        Ok(result.map(drop))
    }
}

fn call_failed(error: &CallError) -> Cause {
    Cause::CallFailed { error: error.to_string() }
}
