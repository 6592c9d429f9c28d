//! Which of the devices' contents are mounted, and the mounting of one after the other.

use super::context::Context;
use super::layout::{Layout, layouts};
use super::mount::{mount, note_replay, unmount};
use super::unlock::is_encrypted;
use super::{Phase, ProbeError};
use crate::appliance::{Content, Inventory};
use std::cell::LazyCell;
use std::collections::{BTreeSet, HashMap};
use virt_bmap_agent_protocol::{Class, FsKind};
use virt_bmap_map::Cause;
use virt_bmap_ranges::DiskOffset;

/// The filesystems to mount. Warns of other content if it may hide files.
fn to_walk(context: &Context<'_>, inventory: &Inventory) -> Vec<Content> {
    let mut filesystems = Vec::new();
    let mut btrfs = BTreeSet::new();
    let layouts = LazyCell::new(|| layouts(inventory));
    for content in &inventory.contents {
        let device = &content.device;
        match &content.kind {
            None => explain_unknown(context, inventory, &layouts, device),
            Some(kind) if kind.class() == Class::Swap => {}
            // Each member of a btrfs of several devices is listed; one mount shows the whole
            // filesystem.
            Some(FsKind::Btrfs) if content.uuid.is_some() && !btrfs.insert(content.uuid.clone()) => {}
            // It has been unlocked, or a warning says that it was not.
            _ if is_encrypted(content) => {}
            Some(_) => filesystems.push(content.clone()),
        }
    }
    filesystems
}

/// Mounts each filesystem in turn and calls `walk` with it, and with whether all changes that
/// mounting made are on the disks.
pub(super) fn each_filesystem(
    context: &Context<'_>,
    inventory: &Inventory,
    mut walk: impl FnMut(&Content, bool) -> Result<(), ProbeError>,
) -> Result<(), ProbeError> {
    let filesystems = to_walk(context, inventory);
    for (number, filesystem) in (1..).zip(&filesystems) {
        if let Some(why) = context.left_out.get(&filesystem.device) {
            context.warn(&filesystem.device, why.clone());
            continue;
        }
        (context.phase)(Phase::Filesystem {
            name: filesystem.device.clone(),
            kind: filesystem.kind.as_ref().map(FsKind::to_string).unwrap_or_default(),
            number,
            of: filesystems.len(),
        });
        if mount(context, filesystem)? {
            let is_settled = note_replay(context, filesystem);
            walk(filesystem, is_settled)?;
            // The last one is not unmounted: the appliance ends next, and that is faster.
            if number < filesystems.len() {
                unmount(context, filesystem)?;
            }
        }
    }
    Ok(())
}

/// Warns of a device with unknown content.
fn explain_unknown(
    context: &Context<'_>,
    inventory: &Inventory,
    layouts: &HashMap<String, Layout>,
    device: &str,
) {
    let is_disk = inventory.disks.iter().any(|disk| disk.path == *device);
    if is_blank(context, layouts.get(device)) {
        context.warn(device, Cause::Blank { disk: is_disk });
    } else if !is_boot_code(context, device) {
        context.warn(device, Cause::UnknownContent);
    }
}

/// Whether the first megabyte of a device reads as zeroes.
fn is_blank(context: &Context<'_>, layout: Option<&Layout>) -> bool {
    const LOOK: u64 = 1 << 20;
    let Some(first) = layout.and_then(|layout| layout.segments().next()) else { return false };
    let Some(disk) = context.disks.get(usize::from(first.disk) - 1) else { return false };
    let mut bytes = vec![0; first.device.len().min(LOOK) as usize];
    disk.read_at(&mut bytes, DiskOffset(first.start.0)).is_ok() && bytes.iter().all(|byte| *byte == 0)
}

/// Whether a partition is of a type that never holds a filesystem.
fn is_boot_code(context: &Context<'_>, name: &str) -> bool {
    /// BIOS boot partition, Microsoft reserved partition, PowerPC PReP boot, metadata of Windows
    /// dynamic disks.
    const TYPES: [&str; 4] = [
        "21686148-6449-6E6F-744E-656564454649",
        "E3C9E316-0B5C-4DB8-817D-F92DF00215AE",
        "9E1A2D38-C612-4316-AA26-8B49521E5A8B",
        "5808C8AA-7E8F-42E0-85D2-E1E90434CFB3",
    ];
    let kind = context.appliance.call(|g| {
        let device = g.part_to_dev(name)?;
        g.part_get_gpt_type(&device, g.part_to_partnum(name)?)
    });
    kind.is_ok_and(|kind| TYPES.iter().any(|known| known.eq_ignore_ascii_case(&kind)))
}
