//! The inventory: the devices that the appliance's kernel has found.

mod dm;
mod groups;
mod sort;

pub use dm::DmTarget;

use super::agent::quote;
use super::{Appliance, CONTROL_LABEL, CallError};
use dm::DmTable;
use sort::sort;
use std::collections::{BTreeMap, BTreeSet};
use virt_bmap_agent_protocol::FsKind;
use virt_bmap_agent_protocol::inventory::{DeviceNumber, MdArray, Report, ReportError, ReportedKind};
use virt_bmap_map::Cause;

/// A block device of the appliance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDevice {
    /// Its name, `/dev/sda1` or `/dev/vg/root`.
    pub path: String,
    /// The kernel's name for it in the appliance, which may differ: the kernel names disks in the
    /// order in which it finds them.
    pub node: String,
    /// Major and minor number.
    pub number: DeviceNumber,
    /// Size in bytes.
    pub size: u64,
    /// Bytes in its logical block, the least that can be read of it.
    pub sector: u64,
    /// What it is.
    pub kind: DeviceKind,
}

/// Kinds of block devices, with the kernel's tables that describe their place.
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

/// The content of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// The device.
    pub device: String,
    /// The kernel's name for that device in the appliance.
    pub node: String,
    /// Its type, according to blkid(8); `None` if unknown.
    pub kind: Option<FsKind>,
    /// The UUID of the filesystem or encrypted device.
    pub uuid: Option<String>,
    /// Mount options that this filesystem needs besides those of its kind.
    pub mount_options: Option<String>,
}

/// All devices and their content, each list in a fixed order.
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
    /// Devices that exist only as parts of others: the legs of a mirrored volume, the pool of a
    /// thin one.
    pub hidden: Vec<BlockDevice>,
    /// The content of the devices, by name: of those that are not split into others, and the
    /// filesystems of [hybrids](Self::hybrids).
    pub contents: Vec<Content>,
    /// Members of arrays, physical volumes and the like, by name.
    pub members: Vec<Content>,
    /// Partitioned devices that have content of their own, such as images of hybrid CDs.
    pub hybrids: BTreeSet<DeviceNumber>,
    /// Devices that could not be examined, and why.
    pub warnings: Vec<(String, Cause)>,
}

impl Inventory {
    /// All block devices.
    pub fn devices(&self) -> impl Iterator<Item = &BlockDevice> {
        self.disks.iter().chain(&self.partitions).chain(&self.volumes).chain(&self.others)
    }

    /// The physical volumes that no mapped device uses, each with the kernel's name for it.
    fn idle_physical_volumes(&self, tables: &DmTable) -> Vec<(String, String)> {
        let used: BTreeSet<&str> = tables.0.values().flatten().flat_map(DmTarget::words).collect();
        let members = self.members.iter().filter(|member| member.kind == Some(FsKind::LvmMember));
        let idle = members.filter(|member| {
            self.device(&member.device).is_some_and(|device| {
                let (major, minor) = device.number;
                !used.contains(format!("{major}:{minor}").as_str())
            })
        });
        idle.map(|member| (member.device.clone(), member.node.clone())).collect()
    }

    /// The content of the device of this name, member or not.
    pub fn content(&self, path: &str) -> Option<&Content> {
        self.contents.iter().chain(&self.members).find(|content| content.device == path)
    }

    /// Whether a device is split into partitions.
    pub fn is_partitioned(&self, number: DeviceNumber) -> bool {
        let is_part =
            |device: &BlockDevice| matches!(device.kind, DeviceKind::Partition { of, .. } if of == number);
        self.partitions.iter().any(is_part)
    }

    /// The device that a partition is a part of.
    pub fn partitioned(&self, partition: &BlockDevice) -> Option<&BlockDevice> {
        let DeviceKind::Partition { of, .. } = partition.kind else { return None };
        self.devices().find(|device| device.number == of)
    }

    /// The device of this name.
    pub fn device(&self, path: &str) -> Option<&BlockDevice> {
        self.devices().find(|device| device.path == path)
    }
}

/// Sectors of `dmsetup` and sysfs.
const SECTOR: u64 = 512;

impl Appliance {
    /// Makes the inventory. The agent must have been started.
    ///
    /// # Errors
    /// libguestfs's error.
    pub fn inventory(&self) -> Result<Inventory, CallError> {
        let describe = |named: &[String]| {
            self.describe(named).map_err(|error| CallError { message: virt_bmap_ranges::error_chain(&error) })
        };
        let mut reports = describe(&[])?;
        let mut volumes = Vec::new();
        let mut why_inactive = BTreeMap::new();
        let mut tables = DmTable::default();
        // Asking for these takes a second under emulation.
        if reports.iter().any(may_have_volumes) {
            volumes = self.guest_volumes()?;
            reports = describe(&volumes)?;
            let is_inactive =
                |volume: &&String, reports: &[Report]| reports.iter().any(|it| has_failed(it, volume));
            // LVM activates none of several groups that share a name.
            if volumes.iter().any(|volume| is_inactive(&volume, &reports)) {
                let nodes: Vec<&str> =
                    reports.iter().filter_map(|it| Some(it.result.as_ref().ok()?.node.as_str())).collect();
                let renamed = self.tell_groups_apart(&nodes)?;
                if !renamed.is_empty() {
                    self.renamed_groups.borrow_mut().extend(renamed);
                    volumes = self.guest_volumes()?;
                    reports = describe(&volumes)?;
                }
            }
            let inactive: Vec<&String> =
                volumes.iter().filter(|volume| is_inactive(volume, &reports)).collect();
            if !inactive.is_empty() {
                why_inactive = self.activate(&inactive);
                reports = describe(&volumes)?;
            }
            tables = DmTable::parse_all(&self.shell("dmsetup table")?);
        }
        let mut inventory = sort(reports, &volumes, &tables);
        let idle = inventory.idle_physical_volumes(&tables);
        if !idle.is_empty() {
            let grouped = self.grouped_volumes()?;
            let is_lost = |(_, node): &(String, String)| !grouped.contains(node);
            let lost = idle.into_iter().filter(is_lost);
            inventory.warnings.extend(lost.map(|(device, _)| (device, Cause::VolumeGroupUnreadable)));
        }
        for volume in &inventory.volumes {
            let group = volume.path.strip_prefix("/dev/").and_then(|path| path.split('/').next());
            if let Some(group) = group.and_then(|group| self.renamed_groups.borrow().get(group).cloned()) {
                let cause = Cause::VolumeGroupRenamed { group };
                inventory.warnings.push((volume.path.clone(), cause));
            }
        }
        for (device, cause) in &mut inventory.warnings {
            if let Some(error) = why_inactive.remove(device) {
                *cause = Cause::VolumeInactive { error };
            }
        }
        Ok(inventory)
    }

    /// Tries to activate volumes of an incomplete group: it succeeds for those that need none of
    /// the missing members. Returns LVM's last message for each volume.
    fn activate(&self, volumes: &[&String]) -> BTreeMap<String, String> {
        let mut why = BTreeMap::new();
        for &volume in volumes {
            // udev was stopped; LVM would wait for it.
            let command = format!("DM_DISABLE_UDEV=1 lvm lvchange -ay {} 2>&1 || true", quote(volume));
            let said = self.shell(&command).unwrap_or_else(|error| error.to_string());
            let last = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
            why.insert(volume.clone(), last.to_owned());
        }
        why
    }

    /// The guest's disks, in the order in which they were given.
    pub(crate) fn guest_disks(&self) -> Result<Vec<String>, CallError> {
        let control = self.control_device()?;
        let mut disks = self.call(guestfs::Handle::list_devices)?;
        disks.retain(|disk| *disk != control);
        Ok(disks)
    }

    /// The guest's logical volumes, by name.
    pub(crate) fn guest_volumes(&self) -> Result<Vec<String>, CallError> {
        let mut volumes = self.call(guestfs::Handle::lvs)?;
        // LVM prints further lines about damaged volume groups, and libguestfs takes each line for
        // a volume.
        volumes.retain(|volume| is_volume(volume));
        volumes.sort();
        volumes.dedup();
        Ok(volumes)
    }

    /// The filesystems that libguestfs lists, by device.
    pub(crate) fn guest_filesystems(&self) -> Result<Vec<Content>, CallError> {
        let control = self.control_device()?;
        let filesystems: BTreeMap<String, String> =
            self.call(guestfs::Handle::list_filesystems)?.into_iter().collect();
        Ok(filesystems
            .into_iter()
            .filter(|(device, _)| *device != control)
            .map(|(device, kind)| Content {
                node: device.clone(),
                device,
                kind: (kind != "unknown").then(|| FsKind::from_name(&kind)),
                uuid: None,
                mount_options: None,
            })
            .collect())
    }

    fn control_device(&self) -> Result<String, CallError> {
        let mut labels = self.call(guestfs::Handle::list_disk_labels)?;
        labels
            .remove(CONTROL_LABEL)
            .ok_or_else(|| CallError { message: "the appliance has no control disk".into() })
    }

    /// Stops udev's daemon. When a device that was open for writing is closed, as happens when its
    /// filesystem is unmounted, udev reads it again, and that would be recorded. After a whole disk
    /// is closed, its partitions are removed and added again. Our own appliance has no udev.
    ///
    /// # Errors
    /// libguestfs's error.
    pub fn stop_udev(&self) -> Result<(), CallError> {
        if self.own.is_some() {
            return Ok(());
        }
        // Drivers that complain of a damaged filesystem would wait for the console, a serial line,
        // with each message. The message of a panic is printed all the same.
        let quieten = "read level _ < /proc/sys/kernel/printk; [ $level -gt 4 ] || dmesg -n 1";
        // libguestfs runs udevadm before each call that concerns a device, to wait for the daemon.
        let no_waiting = "ln -sf /bin/true \"$(command -v udevadm)\" || true";
        self.shell(&format!("udevadm settle; udevadm control --exit; {quieten}; {no_waiting}")).map(drop)
    }
}

/// Whether this is the name of a logical volume, `/dev/GROUP/VOLUME`.
fn is_volume(path: &str) -> bool {
    let name = path.strip_prefix("/dev/").unwrap_or_default();
    let parts: Vec<&str> = name.split('/').collect();
    parts.len() == 2 && parts.iter().all(|part| !part.is_empty()) && !name.contains(char::is_whitespace)
}

/// Whether a device indicates that there are logical volumes.
fn may_have_volumes(report: &Report) -> bool {
    report.result.as_ref().is_ok_and(|device| {
        matches!(device.kind, ReportedKind::Dm { .. }) || device.content == Some(FsKind::LvmMember)
    })
}

/// Whether this reports that the agent could not examine the device of this name.
fn has_failed(report: &Report, path: &str) -> bool {
    report.path == path && matches!(report.result, Err(ReportError::Failed(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use virt_bmap_agent_protocol::inventory;

    #[test]
    fn the_tables_of_mapped_devices_are_joined() {
        let tables = DmTable::parse_all(
            "vg0-root: 0 409600 linear 8:2 2048\nvg0-root: 409600 8192 linear 8:17 2048\nNo devices found\n",
        );
        let reports = inventory::parse("/dev/vg0/root 253:0 size=512 dm=vg0-root uuid=LVM-x\n").unwrap();
        let inventory = sort(reports, &["/dev/vg0/root".to_owned()], &tables);
        let DeviceKind::Dm { targets } = &inventory.volumes[0].kind else {
            panic!("no device-mapper device");
        };
        assert_eq!(targets.len(), 2);
        assert_eq!((targets[1].start, targets[1].length), (409_600 * 512, 8192 * 512));
        assert_eq!(targets[1].arguments, ["8:17", "2048"]);
    }

    #[test]
    fn a_device_that_could_not_be_examined_is_worth_a_warning() {
        let reports = inventory::parse("/dev/sdb error=No medium\n/dev/sdc 8:32\n").unwrap();
        assert!(has_failed(&reports[0], "/dev/sdb") && !has_failed(&reports[1], "/dev/sdc"));
        let warnings = sort(reports, &[], &DmTable::default()).warnings;
        let malformed = "the probe agent's description of it is malformed";
        let failed = |(device, error): (&str, &str)| {
            (device.to_owned(), Cause::DeviceFailed { error: error.to_owned() })
        };
        assert_eq!(warnings, [("/dev/sdb", "No medium"), ("/dev/sdc", malformed)].map(failed));
    }

    #[test]
    fn what_a_dynamic_disk_holds_is_in_its_volumes() {
        let text = "/dev/sda 8:0 size=1048576\n\
                    /dev/sda1 8:1 size=8192 part=8:0+1024 type=ext4\n\
                    /dev/sda2 8:2 size=8192 part=8:0+65536 type=vfat\n\
                    /dev/sdb 8:16 size=1048576\n\
                    /dev/sdb1 8:17 size=4096 part=8:16+4096 type=ext4\n\
                    /dev/mapper/ldm_part_g_V-1-1 253:0 size=2048 dm=ldm_part_g_V-1-1 uuid=LDM-V-1-1-x type=ext4\n\
                    /dev/mapper/ldm_vol_g_S 253:1 size=8192 dm=ldm_vol_g_S uuid=LDM-S-y type=ext4\n\
                    /dev/mapper/ldm_vol_g_T 253:2 size=8192 dm=ldm_vol_g_T uuid=LDM-T-z type=ntfs\n";
        let tables = DmTable::parse_all(
            "ldm_part_g_V-1-1: 0 4 linear 8:0 64\nldm_vol_g_S: 0 16 linear 8:0 2\n\
             ldm_vol_g_T: 0 16 striped 2 4 8:0 40 8:16 8\n",
        );
        let inventory = sort(inventory::parse(text).unwrap(), &[], &tables);
        let contents: Vec<&str> = inventory.contents.iter().map(|c| c.device.as_str()).collect();
        assert_eq!(contents, ["/dev/mapper/ldm_vol_g_S", "/dev/mapper/ldm_vol_g_T"]);
        assert_eq!(inventory.warnings, [("/dev/sda2".to_owned(), Cause::OutsideDynamicVolumes)]);
        assert_eq!(inventory.partitions.len(), 3);
        assert_eq!((inventory.others.len(), inventory.hidden.len()), (2, 1));
    }

    #[test]
    fn a_partition_that_is_the_boot_sector_of_its_disk_is_left_out() {
        let sorted = |start: u64, kind: &str, id: &str| {
            let text = format!(
                "/dev/sda 8:0 size=1048576 id=A-1 type={kind}\n\
                 /dev/sda1 8:1 size=1040384 part=8:0+{start} id={id} type={kind}\n"
            );
            let inventory = sort(inventory::parse(&text).unwrap(), &[], &DmTable::default());
            let contents = inventory.contents.iter().map(|content| content.device.clone());
            (inventory.partitions.len(), inventory.hybrids.len(), contents.collect::<Vec<_>>())
        };
        assert_eq!(sorted(0, "vfat", "A-1"), (0, 0, vec!["/dev/sda".to_owned()]));
        let both = vec!["/dev/sda".to_owned(), "/dev/sda1".to_owned()];
        assert_eq!(sorted(0, "vfat", "B-2"), (1, 1, both));
        // A hybrid CD: its filesystem begins after the table.
        for (start, kind) in [(512, "vfat"), (0, "iso9660")] {
            assert_eq!(sorted(start, kind, "A-1"), (1, 1, vec!["/dev/sda1".to_owned()]));
        }
    }

    #[test]
    fn devices_are_told_apart() {
        let text = "/dev/vg/root 253:2 size=4096 dm=vg-root uuid=LVM-a type=xfs\n\
                    /dev/sda 8:0 size=1048576\n\
                    /dev/sda1 8:1 size=4096 part=8:0+512 type=linux_raid_member\n\
                    /dev/sda2 8:2 size=1024 part=8:0+8192\n\
                    /dev/sda5 8:5 size=4096 part=8:0+9216 type=swap\n\
                    /dev/sdb 8:16 size=1048576\n\
                    /dev/dm-0 253:0 size=4096 dm=vg-root_rimage_0 uuid=LVM-b\n\
                    /dev/dm-1 253:1 size=4096 dm=luks uuid=CRYPT-c type=ext4\n\
                    /dev/dm-2 253:2 size=4096 dm=vg-root uuid=LVM-a type=xfs\n\
                    /dev/md127 9:127 size=4096 md=raid1 type=crypto_LUKS\n";
        let inventory =
            sort(inventory::parse(text).unwrap(), &["/dev/vg/root".to_owned()], &DmTable::default());
        let paths = |devices: &[BlockDevice]| devices.iter().map(|d| d.path.clone()).collect::<Vec<_>>();
        assert_eq!(paths(&inventory.disks), ["/dev/sda", "/dev/sdb"]);
        assert_eq!(paths(&inventory.partitions), ["/dev/sda1", "/dev/sda2", "/dev/sda5"]);
        assert_eq!(paths(&inventory.volumes), ["/dev/vg/root"]);
        assert_eq!(paths(&inventory.others), ["/dev/dm-1", "/dev/md127"]);
        assert_eq!(paths(&inventory.hidden), ["/dev/dm-0"]);
        let contents: Vec<_> = inventory
            .contents
            .iter()
            .map(|c| (c.device.as_str(), c.kind.as_ref().map(FsKind::name)))
            .collect();
        assert_eq!(
            contents,
            [
                ("/dev/dm-1", Some("ext4")),
                ("/dev/md127", Some("crypto_LUKS")),
                ("/dev/sda5", Some("swap")),
                ("/dev/sdb", None),
                ("/dev/vg/root", Some("xfs")),
            ]
        );
    }
}
