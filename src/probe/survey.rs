//! The order of work with the agent: devices, then their metadata, then the filesystems.

use super::context::Context;
use super::degraded::warn_of_missing_members;
use super::devices::devices;
use super::filesystems::each_filesystem;
use super::metadata;
use super::signatures;
use super::unlock::unlock;
use super::walk::walk;
use super::{Phase, ProbeError};
use crate::appliance::{Content, Inventory};
use virt_bmap_agent_protocol::FsKind;
use virt_bmap_map::Cause;

/// Reads everything with the agent.
///
/// # Errors
/// [`ProbeError`]; a failure of one device or filesystem becomes a warning.
pub fn survey(context: &Context<'_>) -> Result<(), ProbeError> {
    (context.phase)(Phase::Devices);
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
    signatures::warn_of_unused(context, &inventory, &signatures, &mounted);
    warn_of_clones(context, &inventory);
    Ok(())
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
