//! Sorts the agent's reports on devices into an inventory.

use super::dm::DmTable;
use super::{BlockDevice, Content, DeviceKind, Inventory, SECTOR};
use std::collections::BTreeSet;
use virt_bmap_agent_protocol::inventory::{Description, DeviceNumber, Report, ReportedKind, device_number};
use virt_bmap_agent_protocol::{Class, FsKind};
use virt_bmap_map::Cause;

/// Sorts the agent's reports.
pub(super) fn sort(reports: Vec<Report>, volumes: &[String], tables: &DmTable) -> Inventory {
    let mut inventory = Inventory::default();
    let mut seen = BTreeSet::new();
    let mut kinds = Vec::new();
    for Report { path, result } in reports {
        let (device, facts) = match result {
            Ok(description) => facts(path, description, tables),
            Err(error) => {
                let error = error.to_string();
                inventory.warnings.push((path, Cause::DeviceFailed { error }));
                continue;
            }
        };
        // After the named devices, all devices are reported once more.
        if !seen.insert(device.number) {
            continue;
        }
        let is_hidden = facts.is_volume && !volumes.contains(&device.path) || facts.is_dynamic_part;
        // The kernel shows an extended partition as a device of two sectors.
        if !is_hidden && device.size > 2 * SECTOR {
            let content = Content {
                device: device.path.clone(),
                node: device.node.clone(),
                kind: facts.content,
                uuid: facts.uuid,
                mount_options: None,
            };
            kinds.push((device.number, content));
        }
        let list = match device.kind {
            _ if is_hidden => &mut inventory.hidden,
            DeviceKind::Disk => &mut inventory.disks,
            DeviceKind::Partition { .. } => &mut inventory.partitions,
            _ if facts.is_volume => &mut inventory.volumes,
            DeviceKind::Dm { .. } | DeviceKind::Md(_) => &mut inventory.others,
        };
        list.push(device);
    }
    leave_out_copies(&mut inventory, &mut kinds);
    let of = |partition: &BlockDevice| match partition.kind {
        DeviceKind::Partition { of, .. } => Some(of),
        _ => None,
    };
    let partitioned: BTreeSet<DeviceNumber> = inventory.partitions.iter().filter_map(of).collect();
    let dynamic = dynamic_pieces(&inventory);
    for partition in &inventory.partitions {
        let DeviceKind::Partition { of, start } = partition.kind else { continue };
        let end = start.saturating_add(partition.size);
        let is_volume = dynamic.iter().any(|piece| piece.0 == of && piece.1 < end && start < piece.2);
        let is_on_dynamic_disk = dynamic.iter().any(|piece| piece.0 == of);
        let is_it = |(number, content): &(DeviceNumber, Content)| {
            *number == partition.number && (is_volume || is_on_dynamic_disk && content.kind.is_some())
        };
        if let Some(index) = kinds.iter().position(is_it) {
            kinds.remove(index);
            // The kernel lets the device mapper have the whole disk, so the partition cannot be
            // mounted.
            if !is_volume {
                inventory.warnings.push((partition.path.clone(), Cause::OutsideDynamicVolumes));
            }
        }
    }
    let holds = |(number, content): &(DeviceNumber, Content)| content.kind.is_some().then_some(*number);
    inventory.hybrids =
        kinds.iter().filter_map(holds).filter(|number| partitioned.contains(number)).collect();
    let of_parts: BTreeSet<(Option<FsKind>, Option<String>)> = kinds
        .iter()
        .filter(|(number, _)| inventory.partitions.iter().any(|partition| partition.number == *number))
        .map(|(_, content)| (content.kind.clone(), content.uuid.clone()))
        .collect();
    // A table may have been written over a filesystem, or beside one as on hybrid CDs, where a
    // partition may show the same filesystem once more.
    kinds.retain(|(number, content)| {
        let is_filesystem = content.kind.as_ref().is_some_and(|kind| kind.class() == Class::Filesystem);
        let is_shown = of_parts.contains(&(content.kind.clone(), content.uuid.clone()));
        !partitioned.contains(number) || is_filesystem && !is_shown
    });
    let contents = kinds.into_iter().map(|(_, content)| content);
    let is_member =
        |content: &Content| content.kind.as_ref().is_some_and(|kind| kind.class() == Class::Member);
    (inventory.members, inventory.contents) = contents.partition(is_member);
    inventory.members.sort_by(|a, b| a.device.cmp(&b.device));
    inventory.contents.sort_by(|a, b| a.device.cmp(&b.device));
    inventory
}

/// Leaves out partitions that begin with their disk and show its filesystem once more, where that
/// filesystem's own first sector is the boot sector with the table: a FAT that covers the whole
/// disk (`mkfs.fat -I --mbr=y`), in whose boot sector Linux sees a partition table, and libblkid
/// none.
fn leave_out_copies(inventory: &mut Inventory, kinds: &mut Vec<(DeviceNumber, Content)>) {
    let content = |number: DeviceNumber| {
        let of = kinds.iter().find(|(other, _)| *other == number);
        of.map(|(_, content)| (content.kind.clone(), content.uuid.clone()))
    };
    let is_copy = |partition: &BlockDevice| {
        let DeviceKind::Partition { of, start: 0 } = partition.kind else { return false };
        let whole = content(of);
        let has_boot_sector = |(kind, _): &(Option<FsKind>, Option<String>)| {
            matches!(kind, Some(FsKind::Vfat | FsKind::Exfat | FsKind::Ntfs))
        };
        whole.as_ref().is_some_and(has_boot_sector) && content(partition.number) == whole
    };
    let copies: BTreeSet<DeviceNumber> =
        inventory.partitions.iter().filter(|it| is_copy(it)).map(|it| it.number).collect();
    inventory.partitions.retain(|partition| !copies.contains(&partition.number));
    kinds.retain(|(number, _)| !copies.contains(number));
}

/// The pieces of disks that make up volumes of Windows dynamic disks: disk, first byte, and the
/// byte after the last. The kernel shows some of them as partitions, too, but their content belongs
/// to a volume.
fn dynamic_pieces(inventory: &Inventory) -> Vec<(DeviceNumber, u64, u64)> {
    let disks: BTreeSet<DeviceNumber> = inventory.disks.iter().map(|disk| disk.number).collect();
    let mut pieces = Vec::new();
    let is_dynamic = |device: &&BlockDevice| device.path.starts_with("/dev/mapper/ldm_");
    for device in inventory.others.iter().chain(&inventory.hidden).filter(is_dynamic) {
        let DeviceKind::Dm { targets } = &device.kind else { continue };
        for target in targets {
            // `linear` has a device and a sector; `striped` has the number of stripes, a size, and
            // then such pairs.
            let (pairs, length) = match target.kind.as_str() {
                "linear" => (target.arguments.as_slice(), target.length),
                "striped" => {
                    let stripes = target.arguments.first().and_then(|count| count.parse::<u64>().ok());
                    let pairs = target.arguments.get(2..).unwrap_or_default();
                    (pairs, target.length / stripes.unwrap_or(1).max(1))
                }
                _ => continue,
            };
            pieces.extend(pairs.chunks_exact(2).filter_map(|pair| {
                let disk = device_number(&pair[0]).filter(|disk| disks.contains(disk))?;
                let start = pair[1].parse::<u64>().ok()?.checked_mul(SECTOR)?;
                Some((disk, start, start.checked_add(length)?))
            }));
        }
    }
    pieces
}

/// What is known of a device, apart from its place.
#[derive(Debug, Default)]
struct Facts {
    /// It belongs to LVM, though perhaps not as a volume that the guest's administrator sees.
    is_volume: bool,
    /// It is a part of a volume of Windows dynamic disks.
    is_dynamic_part: bool,
    content: Option<FsKind>,
    uuid: Option<String>,
}

/// Combines the agent's report on a device with the device mapper's tables.
fn facts(path: String, description: Description, tables: &DmTable) -> (BlockDevice, Facts) {
    let Description { number, node, size, sector, kind, content, uuid } = description;
    let mut facts = Facts { content, uuid, ..Facts::default() };
    let kind = match kind {
        ReportedKind::Disk => DeviceKind::Disk,
        ReportedKind::Partition { of, start } => DeviceKind::Partition { of, start },
        ReportedKind::Dm { name, uuid } => {
            facts.is_dynamic_part = name.starts_with("ldm_part_");
            facts.is_volume = uuid.starts_with("LVM-");
            // The agent makes the partitions of mapped devices, as kpartx(8) would.
            let part = uuid.starts_with("part").then(|| tables.partition(&name)).flatten();
            let targets = || tables.0.get(&name).cloned().unwrap_or_default();
            part.unwrap_or_else(|| DeviceKind::Dm { targets: targets() })
        }
        ReportedKind::Md(array) => DeviceKind::Md(array),
    };
    (BlockDevice { path, node, number, size, sector, kind }, facts)
}
