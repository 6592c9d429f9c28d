//! Metadata objects and free space: what a filesystem keeps for itself, what lies between
//! partitions, and what is free.
//!
//! The kernel reads a filesystem's metadata while it mounts the filesystem and looks up its files.
//! These reads are recorded, too. What remains of them without files, directories and named
//! metadata is [`METADATA`]. The names come from the filesystem itself if it reports the use of its
//! blocks (GETFSMAP), otherwise from the few numbers in its superblock that say where its parts
//! lie. If the filesystem reports what is free, the rest is known as well: it is `[allocated]`, in
//! use for an unknown purpose.

mod balance;
mod btrfs;
mod erofs;
mod exfat;
mod ext;
mod f2fs;
mod facts;
mod fat;
mod hfsplus;
mod iso9660;
mod jfs;
mod nilfs2;
mod ntfs;
mod objects;
mod padding;
mod parts;
mod squashfs;
mod udf;
mod ufs;
mod volumes;

pub(super) use volumes::devices;

use super::ProbeError;
use super::channel::MetadataInputs;
use super::context::Context;
use super::device::Device;
use super::layout::Layout;
use crate::appliance::Content;
use facts::{Facts, Named};
use objects::Put;
use parts::Parts;
use virt_bmap_agent_protocol::FsKind;
use virt_bmap_map::{Kind, Marks};
use virt_bmap_ranges::{DeviceOffset, Range, RangeSet};

/// What was read for the filesystem itself, and has no other name.
const METADATA: &str = "[metadata]";
/// What is in use, but was not read and has no name.
const ALLOCATED: &str = "[allocated]";
/// Zeroes with which a program filled up a filesystem.
const PADDING: &str = "[padding]";
/// What the filesystem never uses: room for boot loaders, or for alignment.
const RESERVED: &str = "[reserved]";
/// Added to the path of an object: the name of the blocks of its extended attributes.
const ATTRIBUTES: &str = " [extended attributes]";

/// Blocks of a device.
type Blocks = RangeSet<DeviceOffset>;

/// Adds the metadata objects of a filesystem that was walked and is still mounted.
pub(super) fn filesystem(
    context: &Context<'_>,
    content: &Content,
    layout: Option<&Layout>,
    inputs: &MetadataInputs,
) -> Result<(), ProbeError> {
    let kind = content.kind.clone().unwrap_or_default();
    let put = Put { context, device: &content.device };
    // The addresses of btrfs are not offsets on its device.
    let layout = if kind.facts().has_address_space { inputs.address_space.as_deref() } else { layout };
    let Some(layout) = layout else {
        return Ok(put.without_layout(inputs)?);
    };
    let read = layout.to_device_partly(&inputs.untagged);
    let mut facts = Facts::of_spaces(&inputs.spaces);
    let mut device = match kind.facts().has_address_space {
        true => Device::new(context.appliance, &content.device, layout.size()),
        false => Device::mounted(context, &content.device, &kind, layout),
    };
    match &kind {
        FsKind::Ext2 | FsKind::Ext3 | FsKind::Ext4 => ext::describe(&mut facts, &device, &read),
        FsKind::Btrfs => btrfs::describe(&mut facts, inputs, layout),
        FsKind::F2fs => f2fs::describe(&mut facts, &mut device, &read),
        FsKind::Vfat => fat::describe(&mut facts, &mut device, &read),
        FsKind::Exfat => exfat::describe(&mut facts, &mut device, &read),
        FsKind::Ntfs => ntfs::describe(&mut facts, &mut device),
        FsKind::Udf => udf::describe(&mut facts, &mut device, inputs.block),
        FsKind::Jfs => jfs::describe(&mut facts, &mut device, &read),
        FsKind::Nilfs2 => nilfs2::describe(&mut facts, &mut device),
        FsKind::Hfsplus => hfsplus::describe(&mut facts, &mut device, &read),
        FsKind::Iso9660 => iso9660::describe(&mut facts, &device),
        FsKind::Squashfs => squashfs::describe(&mut facts, &device),
        FsKind::Erofs => erofs::describe(&mut facts, &device),
        FsKind::Ufs => ufs::describe(&mut facts, &device),
        _ => {}
    }
    // Whatever the filesystem has there, no disk has it.
    facts.whole = layout.on_disks(&facts.whole).into_owned();
    facts.free = facts.free.map(|free| layout.on_disks(&free).into_owned());
    let mut parts = Parts::of(&facts, inputs, layout);
    padding::name(&facts, &mut parts, &device);
    if let Some(free) = &parts.free {
        context.channel.with(|found, warnings| {
            let (balance, causes) = balance::balance(&facts, &parts, layout, &found.owned(), &kind);
            causes.into_iter().for_each(|cause| warnings.on_device(&content.device, cause));
            let filesystem = found.header_mut().filesystems.last_mut();
            if let Some(filesystem) = filesystem.filter(|last| last.device == content.device.as_bytes()) {
                filesystem.free_mapped = Some(free.bytes() + facts.outside.unallocated.bytes());
                filesystem.balance = Some(balance);
            }
        });
        put.blocks(Kind::Free, b"", free, Marks::empty(), layout)?;
        put.places(Kind::Free, b"", &facts.outside.unallocated)?;
    }
    put.places(Kind::Metadata, b"[superblocks]", &facts.outside.superblocks)?;
    put.places(Kind::Metadata, RESERVED.as_bytes(), &facts.outside.reserved)?;
    put.places(Kind::Metadata, METADATA.as_bytes(), &facts.outside.read)?;
    if context.metadata {
        put.inline(&facts, inputs, layout)?;
    }
    for Named { name, blocks, marks } in &parts.named {
        put.blocks(Kind::Metadata, name.as_bytes(), blocks, *marks, layout)?;
    }
    put.attributes(inputs, &parts, layout)?;
    for Named { name, blocks, marks } in &parts.unnamed {
        put.blocks(Kind::Metadata, name.as_bytes(), blocks, *marks, layout)?;
    }
    put.blocks(Kind::Metadata, ALLOCATED.as_bytes(), &parts.unexplained, Marks::UNVERIFIED, layout)?;
    Ok(())
}

/// The balance of a filesystem that reports the use of all its blocks.
#[cfg(test)]
pub(super) fn balance_of_reported(
    inputs: &MetadataInputs,
    layout: &Layout,
    found: &super::found::Found,
    kind: &FsKind,
) -> (virt_bmap_map::Balance, Vec<virt_bmap_map::Cause>) {
    let facts = Facts::of_spaces(&inputs.spaces);
    let parts = Parts::of(&facts, inputs, layout);
    balance::balance(&facts, &parts, layout, &found.owned(), kind)
}

/// A bit of a bitmap whose bytes begin with the lowest bit; `None` past the end.
fn bit(bitmap: &[u8], number: u64) -> Option<bool> {
    let byte = bitmap.get(usize::try_from(number / 8).ok()?)?;
    Some(byte >> (number % 8) & 1 == 1)
}

/// Units of `size` bytes, counted from `start`, by their ascending numbers.
fn units(numbers: impl Iterator<Item = u64>, start: u64, size: u64) -> Blocks {
    let mut blocks = Blocks::new();
    // There may be millions of units, mostly adjacent.
    let mut run: Range<DeviceOffset> = Range::new(0, 0);
    for number in numbers {
        let unit = Range::new(start + number * size, start + (number + 1) * size);
        if run.end == unit.start {
            run.end = unit.end;
        } else {
            blocks.insert(std::mem::replace(&mut run, unit));
        }
    }
    blocks.insert(run);
    blocks
}

fn add(blocks: &mut Blocks, more: &Blocks) {
    blocks.extend(more.iter());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use virt_bmap_agent_protocol::record::BlockPurpose;

    #[test]
    fn units_side_by_side_are_one_range() {
        let ranges = |numbers: &[u64], start| -> Vec<(u64, u64)> {
            let blocks = units(numbers.iter().copied(), start, 8);
            blocks.iter().map(|range| (range.start.0, range.end.0)).collect()
        };
        assert_eq!(ranges(&[0, 1, 3, 4, 9], 100), [(100, 116), (124, 140), (172, 180)]);
        assert_eq!(ranges(&[0, 1], 0), [(0, 16)]);
        assert_eq!(ranges(&[], 0), []);
    }

    #[test]
    fn invalid_space_is_refused() {
        let mut inputs = MetadataInputs::default();
        assert!(inputs.space(BlockPurpose::Free, &[(0, 4096), (8192, 4096)]));
        assert!(inputs.space(BlockPurpose::Unknown, &[(4096, 4096)]));
        assert!(!inputs.space(BlockPurpose::Free, &[(u64::MAX, 2)]));
        let facts = Facts::of_spaces(&inputs.spaces);
        assert_eq!(facts.free.map(|free| free.bytes()), Some(8192));
        assert_eq!(facts.whole.bytes(), 12288);
        assert!(Facts::of_spaces(&BTreeMap::new()).free.is_none());
    }
}
