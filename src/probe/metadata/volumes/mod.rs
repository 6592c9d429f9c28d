//! What lies around filesystems: partition tables, boot code and unpartitioned space, labels and
//! metadata of LVM, superblocks of md, headers of LUKS and BitLocker, databases of dynamic disks,
//! swap.
//!
//! The kernel and LVM have used all of these by now, so the devices that they describe exist. Only
//! their places are read here; each is recognised by its magic number.

mod dynamic;
mod encrypted;
mod lvm;
mod md;
mod partitions;

use super::{Blocks, Put};
use crate::appliance::Inventory;
use crate::probe::ProbeError;
use crate::probe::context::Context;
use crate::probe::device::Device;
use crate::probe::devices::Layouts;
use crate::probe::layout::Lookups;
use virt_bmap_agent_protocol::{Class, FsKind};
use virt_bmap_map::{Kind, Marks};
use virt_bmap_ranges::{DeviceOffset, Range};

const SECTOR: u64 = 512;

/// A name, the ranges that have it, and whether they are verified: by a magic number and consistent
/// content.
type Found = (&'static str, Vec<(u64, u64)>, bool);

/// Adds the metadata objects of devices with verified layouts.
pub(in crate::probe) fn devices(
    context: &Context<'_>,
    inventory: &Inventory,
    layouts: &Layouts,
) -> Result<(), ProbeError> {
    for Lookups { device, name, places } in &layouts.lookups {
        Put { context, device }.places(Kind::Metadata, name.as_bytes(), places)?;
    }
    let mut free_extents = None;
    for block_device in inventory.devices() {
        let Some(layout) = layouts.by_path.get(&block_device.path) else { continue };
        let device = Device::new(context.appliance, &block_device.path, block_device.size);
        let put = Put { context, device: &block_device.path };
        let all = inventory.contents.iter().chain(&inventory.members);
        let content = all.filter(|content| content.device == block_device.path).find_map(|c| c.kind.as_ref());
        let partitions = partitions::partitions(inventory, block_device);
        let found = match content {
            _ if !partitions.is_empty() => {
                let sector = context.table_sector(inventory, block_device);
                partitions::tables(&device, &partitions, sector)
            }
            Some(FsKind::LvmMember) => {
                let free = free_extents.get_or_insert_with(|| lvm::ask_for_free_extents(&device));
                if let Some(free) = free.get(&block_device.node) {
                    let free: Blocks = free.iter().copied().collect();
                    put.blocks(Kind::Free, b"", &free, Marks::empty(), layout)?;
                }
                lvm::physical_volume(&device)
            }
            Some(FsKind::RaidMember) => md::array_member(&device),
            Some(FsKind::Luks) => encrypted::luks(&device),
            Some(FsKind::BitLocker) => encrypted::bitlocker(&device),
            Some(kind) if kind.is_journal() => Some(vec![("[journal]", vec![(0, block_device.size)], true)]),
            Some(kind) if kind.class() == Class::Swap => {
                Some(vec![("[swap]", vec![(0, block_device.size)], true)])
            }
            _ => None,
        };
        let found = found.unwrap_or_default();
        if !found.is_empty() && !partitions.is_empty() && !inventory.hybrids.contains(&block_device.number) {
            let free = partitions::unpartitioned(block_device.size, &partitions, &found);
            put.blocks(Kind::Free, b"", &free, Marks::empty(), layout)?;
        }
        for (name, pieces, verified) in found {
            let inside = pieces.into_iter().filter_map(|(start, length)| {
                let range = Range::at(DeviceOffset(start), length)?;
                (range.end.0 <= block_device.size).then_some(range)
            });
            let marks = if verified { Marks::empty() } else { Marks::UNVERIFIED };
            put.blocks(Kind::Metadata, name.as_bytes(), &inside.collect(), marks, layout)?;
        }
    }
    Ok(())
}
