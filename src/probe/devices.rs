//! Disks, partitions and volumes: their objects, and the proofs of their layouts.

use super::channel::FIRST_PROOF;
use super::context::Context;
use super::found::ObjectNumber;
use super::layout::{self, Layout, Proof, Segment, layouts};
use super::{Legs, ProbeError};
use crate::appliance::{BlockDevice, DeviceNumber, Inventory};
use crate::recorder::Recording;
use std::collections::HashMap;
use std::sync::Arc;
use virt_bmap_agent_protocol::{DeviceRead, DeviceReads, Task};
use virt_bmap_map::{Cause, Kind, PieceFlags, Role};
use virt_bmap_ranges::{DiskNumber, DiskOffset, FileOffset, Range};

/// How many segments at each end of a copy are compared with the first copy.
const COMPARED_SEGMENTS: usize = 16;

/// Most segments of a device whose pieces say in the map where on the device they are. Without that,
/// the chunks of a striped device that touch on a disk are one piece.
const MOST_ORDERED: usize = 64;

/// Layouts that were verified by proofs.
#[derive(Default)]
pub(super) struct Layouts {
    pub(super) by_path: HashMap<String, Arc<Layout>>,
    pub(super) by_number: Arc<HashMap<DeviceNumber, Arc<Layout>>>,
    /// What the kernel reads to find the place of other bytes.
    pub(super) lookups: Vec<layout::Lookups>,
}

/// Adds the objects of disks, partitions and volumes with their pieces: from the layout if proofs
/// verify it, otherwise by reading the whole device. Returns the verified layouts.
pub(super) fn devices(context: &Context<'_>, inventory: &Inventory) -> Result<Layouts, ProbeError> {
    let mut numbers: Vec<(&BlockDevice, ObjectNumber)> = Vec::new();
    let kinds = [
        (Kind::Disk, &inventory.disks),
        (Kind::Partition, &inventory.partitions),
        (Kind::LogicalVolume, &inventory.volumes),
        (Kind::MappedDevice, &inventory.others),
    ];
    for (kind, devices) in kinds {
        for device in devices {
            let number = context.channel.with(|found, _| found.device(kind, &device.path))?;
            numbers.push((device, number));
        }
    }

    let layout::Layouts { by_path: mut computed, lookups } = layouts(inventory, &context.as_seen());
    lookups.iter().for_each(|lookups| context.channel.ignore(&lookups.places));
    let mut plan = Vec::new();
    let mut expected: HashMap<u32, (&str, Proof)> = HashMap::new();
    let mut tag = FIRST_PROOF;
    for (device, _) in &numbers {
        let proofs = computed.get(&device.path).map(|layout| layout.proofs(device.sector));
        for proof in proofs.unwrap_or_default() {
            let (node, offset) = (device.node.clone(), proof.at.0);
            plan.push(DeviceRead { tag, device: node, offset, length: device.sector });
            expected.insert(tag, (&device.path, proof));
            tag += 1;
        }
    }
    let names = numbers.iter().map(|(device, _)| (device.node.clone(), device.path.clone()));
    context.channel.name_devices(names.collect());
    read(context, plan)?;
    let proofs = context.channel.take_proofs();
    for (tag, (device, proof)) in &expected {
        let read = proofs.get(tag);
        // An array that lacks a member caches what it reads of the others.
        let may_be_cached = computed.get(*device).is_some_and(Layout::is_partial);
        let is_cached = may_be_cached && read.is_none_or(Recording::is_empty);
        if !is_cached && !read.is_some_and(|read| proof.is_given_by(read)) {
            tracing::debug!("{device}: a proof failed: expected {proof:?}, read {read:?}");
            computed.remove(*device);
        }
    }

    let (mut by_path, mut by_number) = (HashMap::new(), HashMap::new());
    let mut plan = Vec::new();
    for (device, number) in &numbers {
        let Some(mut layout) = computed.remove(&device.path) else {
            plan.push(DeviceRead {
                tag: *number,
                device: device.node.clone(),
                offset: 0,
                length: device.size,
            });
            continue;
        };
        let copies = layout.copy_count();
        layout.retain_copies(|first, copy| holds_the_same(context, first, copy));
        context.channel.with(|found, warnings| -> Result<(), ProbeError> {
            if layout.copy_count() < copies {
                warnings.on_device(&device.path, Cause::CopiesDiffer);
            }
            let all = context.legs == Legs::All;
            let count = layout.segments().filter(|segment| segment.copy == 0).count();
            let is_ordered = (2..=MOST_ORDERED).contains(&count);
            for segment in layout.segments().filter(|segment| all || segment.copy == 0) {
                let role = Role::copy(segment.copy);
                let offset = is_ordered.then_some(FileOffset(segment.device.start.0));
                found.range(*number, segment.disk, segment.disk_range(), offset, role)?;
            }
            for segment in layout.parity_segments().filter(|_| all) {
                let role = Role { copy: segment.copy, flags: PieceFlags::PARITY };
                found.range(*number, segment.disk, segment.disk_range(), None, role)?;
            }
            Ok(())
        })?;
        let layout = Arc::new(layout);
        by_path.insert(device.path.clone(), layout.clone());
        by_number.insert(device.number, layout);
    }
    read(context, plan)?;
    Ok(Layouts { by_path, by_number: Arc::new(by_number), lookups })
}

fn read(context: &Context<'_>, reads: Vec<DeviceRead>) -> Result<(), ProbeError> {
    if reads.is_empty() {
        return Ok(());
    }
    let sequence = context.channel.begin_reads();
    context.channel.hand_over(&Task::ReadDevices(DeviceReads { sequence, reads }))?;
    let read = context.appliance.work();
    context.channel.end()?;
    Ok(read.map(drop)?)
}

/// Whether a copy of a mirrored device has the content of the first copy. Compares both ends of the
/// segments at both ends of the copy.
fn holds_the_same(context: &Context<'_>, first: &Layout, copy: &[Segment]) -> bool {
    const LOOK: u64 = 4096;
    let read = |disk: DiskNumber, at: u64, length: u64| {
        let mut bytes = vec![0; length as usize];
        let disk = context.disks.get(usize::from(disk) - 1)?;
        disk.read_at(&mut bytes, DiskOffset(at)).ok().map(|()| bytes)
    };
    let few = copy.iter().take(COMPARED_SEGMENTS).chain(copy.iter().rev().take(COMPARED_SEGMENTS));
    few.flat_map(|segment| {
        let length = segment.device.len().min(LOOK);
        [0, segment.device.len() - length].map(|skip| (segment, skip, length))
    })
    .all(|(segment, skip, length)| {
        let start = segment.device.start.0 + skip;
        let Some(parts) = first.part(Range::new(start, start + length)) else { return false };
        let of_first: Option<Vec<Vec<u8>>> = parts
            .iter()
            .filter(|part| part.copy == 0)
            .map(|part| read(part.disk, part.start.0, part.device.len()))
            .collect();
        let of_copy = read(segment.disk, segment.start.0 + skip, length);
        of_first.map(|pieces| pieces.concat()) == of_copy && of_copy.is_some()
    })
}
