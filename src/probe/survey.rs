//! The order of work with the agent: devices, then their metadata, then the filesystems. An
//! appliance that is kept can examine filesystems again when they have changed.

use super::context::Context;
use super::degraded::warn_of_missing_members;
use super::devices::{Layouts, devices};
use super::filesystems::{Mounted, each_again, each_filesystem};
use super::layout::Layout;
use super::metadata;
use super::mount::unmount_all;
use super::signatures;
use super::unlock::unlock;
use super::walk::walk;
use super::{Phase, ProbeError};
use crate::appliance::{Content, Inventory};
use std::collections::BTreeSet;
use virt_bmap_agent_protocol::{Class, FsKind};
use virt_bmap_map::Cause;
use virt_bmap_ranges::{DiskOffset, RangeSet};

/// What a survey has found of the devices.
#[derive(Default)]
pub struct Surveyed {
    inventory: Inventory,
    layouts: Layouts,
    mounted: Mounted,
}

/// Reads everything with the agent.
///
/// # Errors
/// [`ProbeError`]; a failure of one device or filesystem becomes a warning.
pub fn survey(context: &Context<'_>) -> Result<Surveyed, ProbeError> {
    (context.phase)(Phase::Devices);
    context.channel.begin_survey();
    if !context.metadata {
        context.channel.with(|found, _| found.leave_metadata_out());
    }
    let appliance = context.appliance;
    appliance.stop_udev().map_err(ProbeError::Inventory)?;
    appliance.start_agent()?;
    let inventory = appliance.inventory().map_err(ProbeError::Inventory)?;
    let inventory = unlock(context, inventory)?;
    context.channel.with(|_, warnings| {
        for (device, cause) in &inventory.warnings {
            warnings.on_device(device, cause.clone());
        }
    });
    for (disk, geometry) in inventory.disks.iter().zip(context.geometry) {
        if let Some(described) = geometry.truncated {
            context.warn(&disk.path, Cause::DiskTruncated { described, size: disk.size });
        }
    }
    let layouts = devices(context, &inventory)?;
    if context.metadata {
        metadata::devices(context, &inventory, &layouts)?;
    }
    warn_of_missing_members(context, &inventory, &layouts.by_path);
    let suspended = |content: &&Content| content.kind == Some(FsKind::SwapSuspend);
    for content in inventory.contents.iter().filter(suspended) {
        context.warn(&content.device, Cause::Suspended);
    }
    let signatures = signatures::find(context, &inventory, &layouts);
    let mounted = each_filesystem(context, &inventory, &signatures, |filesystem, is_settled| {
        walk(context, filesystem, &layouts, is_settled)
    })?;
    signatures::warn_of_unused(context, &inventory, &signatures, &mounted.devices);
    warn_of_clones(context, &inventory);
    Ok(Surveyed { inventory, layouts, mounted })
}

impl Surveyed {
    /// Lets the appliance forget the content of the disks, so that they can be exchanged for
    /// another state of them.
    ///
    /// # Errors
    /// [`ProbeError`]
    pub fn leave(&self, context: &Context<'_>) -> Result<(), ProbeError> {
        unmount_all(context, "the guest's filesystems were being unmounted")?;
        Ok(context.appliance.forget()?)
    }

    /// The filesystems of which something is in `written`, a set of ranges for each disk, by
    /// device. `None`: something else was written, so the devices may have changed.
    pub fn concerned(&self, written: &[RangeSet<DiskOffset>]) -> Option<BTreeSet<String>> {
        let mut left = written.to_vec();
        let mut concerned = BTreeSet::new();
        for filesystem in &self.mounted.filesystems {
            for layout in self.layouts_of(filesystem) {
                if take(&mut left, written, layout) {
                    concerned.insert(filesystem.device.clone());
                }
            }
        }
        // What is swapped out is in no file.
        let of_swap = self
            .inventory
            .contents
            .iter()
            .filter(|content| content.kind.as_ref().is_some_and(|kind| kind.class() == Class::Swap));
        for content in of_swap {
            if let Some(layout) = self.layouts.by_path.get(&content.device) {
                take(&mut left, written, layout);
            }
        }
        left.iter().all(RangeSet::is_empty).then_some(concerned)
    }

    /// The layouts of the devices of a filesystem.
    fn layouts_of<'s>(&'s self, filesystem: &'s Content) -> impl Iterator<Item = &'s Layout> {
        let is_member = |content: &&Content| {
            content.kind == Some(FsKind::Btrfs)
                && filesystem.kind == content.kind
                && content.uuid.is_some()
                && content.uuid == filesystem.uuid
                && content.device != filesystem.device
        };
        let members = self.inventory.contents.iter().filter(is_member);
        let devices = members.chain([filesystem]);
        devices.filter_map(|content| self.layouts.by_path.get(&content.device).map(|layout| &**layout))
    }

    /// Walks these filesystems once more, in the present state of the disks. `false`: the devices
    /// must have changed, since one of them cannot be mounted any more.
    ///
    /// # Errors
    /// [`ProbeError`]
    pub fn again(&self, context: &Context<'_>, devices: &BTreeSet<String>) -> Result<bool, ProbeError> {
        if !context.metadata {
            context.channel.with(|found, _| found.leave_metadata_out());
        }
        let filesystems = self.mounted.filesystems.iter();
        let concerned: Vec<_> =
            filesystems.filter(|filesystem| devices.contains(&filesystem.device)).collect();
        each_again(context, &concerned, &self.layouts.by_path, |filesystem, is_settled| {
            walk(context, filesystem, &self.layouts, is_settled)
        })
    }
}

/// Removes the bytes of a device from `left`, and returns whether any of them was written.
fn take(left: &mut [RangeSet<DiskOffset>], written: &[RangeSet<DiskOffset>], layout: &Layout) -> bool {
    let mut is_written = false;
    for segment in layout.segments().chain(layout.parity_segments()) {
        let disk = usize::from(segment.disk).checked_sub(1);
        let (Some(written), Some(left)) =
            (disk.and_then(|disk| written.get(disk)), disk.and_then(|disk| left.get_mut(disk)))
        else {
            continue;
        };
        let range = segment.disk_range();
        if written.overlap(range).next().is_some() {
            is_written = true;
            left.remove(range);
        }
    }
    is_written
}

/// Warns of each btrfs whose UUID another one has: the kernel takes such devices for one
/// filesystem, and mounts only one of them.
fn warn_of_clones(context: &Context<'_>, inventory: &Inventory) {
    let mounted = context.channel.btrfs_members();
    for content in inventory.contents.iter().filter(|content| content.kind == Some(FsKind::Btrfs)) {
        let device = inventory.device(&content.device);
        let Some(device) = device.filter(|device| !mounted.contains(&device.number)) else { continue };
        let same = |other: &&Content| other.uuid == content.uuid && other.device != content.device;
        if let Some(other) = inventory.contents.iter().find(same) {
            context.warn(&device.path, Cause::SameUuid { device: other.device.clone() });
        }
    }
}
