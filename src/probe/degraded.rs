//! Warnings of arrays and volumes that lack a member.

use super::context::Context;
use super::layout::Layout;
use crate::appliance::{DeviceKind, DeviceNumber, DmTarget, Inventory};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use virt_bmap_agent_protocol::FsKind;
use virt_bmap_map::Cause;

/// Warns of arrays and volumes that lack a member, whether or not data is lost.
pub(super) fn warn_of_missing_members(
    context: &Context<'_>,
    inventory: &Inventory,
    layouts: &HashMap<String, Arc<Layout>>,
) {
    let assembled = inventory.devices().filter_map(|device| match &device.kind {
        DeviceKind::Md(array) if device.size > 0 => Some(array),
        _ => None,
    });
    let used: BTreeSet<DeviceNumber> = assembled
        .flat_map(|array| {
            array.members.iter().map(|member| member.device).chain(array.spares.iter().copied())
        })
        .collect();
    for content in inventory.members.iter().filter(|content| content.kind == Some(FsKind::RaidMember)) {
        let device = inventory.device(&content.device);
        if device.is_some_and(|device| !used.contains(&device.number)) {
            context.warn(&content.device, Cause::ArrayMemberUnused);
        }
    }
    for device in inventory.devices().filter(|device| device.size > 0) {
        let missing = match &device.kind {
            DeviceKind::Md(array) => array.disks.saturating_sub(array.members.len() as u64),
            DeviceKind::Dm { targets } => targets.iter().map(DmTarget::missing_members).max().unwrap_or(0),
            _ => 0,
        };
        if missing == 0 {
            continue;
        }
        let lost = layouts.get(&device.path).is_none_or(|layout| layout.is_partial());
        context.warn(&device.path, Cause::MembersMissing { count: missing, lost });
    }
}
