//! The objects that are no files: what a file system keeps for itself, what lies between partitions, and what
//! is free.
//!
//! What the kernel reads while it mounts a file system and looks its files up, before any of their data, is
//! that file system's metadata: it is recorded, too, and what is left of it when files, directories and all
//! that has a name of its own are taken away, is called [`METADATA`]. Names come from the file system itself
//! where it tells what its blocks are for (GETFSMAP), else from the few numbers of its superblock that say
//! where things have their place. What is free is known where the file system says so, and then the rest is
//! known, too: [`ALLOCATED`], in use for something that nothing told.

mod btrfs;
mod exfat;
mod ext;
mod f2fs;
mod fat;
mod hfsplus;
mod jfs;
mod nilfs2;
mod ntfs;
mod udf;
mod volumes;
mod xfs;

pub(super) use volumes::devices;

use super::ProbeError;
use super::device::Device;
use super::found::{FoundError, ObjectNumber};
use super::layout::Layout;
use super::context::Context;
use crate::appliance::Content;
use crate::recorder::Recording;
use btrfs::Outside;
use std::collections::BTreeMap;
use std::sync::Arc;
use virt_bmap_agent_protocol::FsKind;
use virt_bmap_agent_protocol::record::{Extent, Owner};
use virt_bmap_map::{Kind, Marks, PieceFlags, Role};
use virt_bmap_ranges::{DeviceOffset, Range, RangeSet};

/// What was read for a file system itself, and has no name of its own.
const METADATA: &str = "[metadata]";
/// What is in use, but was not read and has no name.
const ALLOCATED: &str = "[allocated]";
/// Added to the path of an object, the blocks of its extended attributes.
const ATTRIBUTES: &str = " [extended attributes]";

/// More pieces of a device than this make no sense.
const MOST_PIECES: usize = 1 << 24;

/// Blocks of a device.
type Blocks = RangeSet<DeviceOffset>;

/// What a walk leaves over for the metadata objects. Empty unless they are wanted.
#[derive(Debug, Default)]
pub struct Remains {
    /// What was read on no object's behalf.
    pub(super) untagged: Recording,
    /// What files and directories own.
    pub(super) owned: Recording,
    /// What the file system says of its blocks.
    spaces: BTreeMap<Owner, Blocks>,
    pieces: usize,
    /// Extended attributes, by the number of the object that has them.
    pub(super) attributes: BTreeMap<ObjectNumber, Attributes>,
    /// Objects whose data lies in metadata.
    pub(super) inline: Vec<Inline>,
    /// The extents of NTFS's `$MFT`.
    pub(super) mft: Vec<Extent>,
    /// Of a btrfs, what its addresses are of, and its devices.
    pub(super) address_space: Option<Arc<Layout>>,
    pub(super) members: Vec<Arc<Layout>>,
}

/// Extended attributes of an object.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    /// What was read of them.
    pub(super) recording: Recording,
    /// Where the kernel says that they lie.
    pub(super) extents: Vec<Extent>,
}

/// Where an object's data lies that has no blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inline {
    /// At this byte of the device.
    Block { object: ObjectNumber, at: u64 },
    /// In the record of this inode in `$MFT`.
    Record { object: ObjectNumber, inode: u64 },
}

impl Remains {
    /// Takes in what pieces of the device are for; `false`: they make no sense.
    pub(super) fn space(&mut self, owner: Owner, pieces: &[(u64, u64)]) -> bool {
        self.pieces += pieces.len();
        let blocks = self.spaces.entry(owner).or_default();
        self.pieces <= MOST_PIECES
            && pieces.iter().all(|&(start, length)| {
                let range = Range::at(DeviceOffset(start), length);
                range.map(|range| blocks.insert(range)).is_some()
            })
    }
}

/// What is known of a file system's blocks.
#[derive(Default)]
struct Facts {
    named: Vec<Named>,
    /// What is free, if that is known.
    free: Option<Blocks>,
    /// What is either free or in use.
    whole: Blocks,
    /// Size of the units in which data lies inside of metadata, if it is not the block's.
    unit: Option<u64>,
    /// Where the records of `$MFT` begin that objects lie in, and their size.
    records: Option<u64>,
    /// What is not among the addresses of a btrfs.
    outside: Outside,
}

/// Blocks that have a name.
struct Named {
    name: &'static str,
    blocks: Blocks,
    marks: Marks,
}

impl Facts {
    fn of_spaces(spaces: &BTreeMap<Owner, Blocks>) -> Self {
        let mut facts = Self::default();
        for (&owner, blocks) in spaces {
            let name = match owner {
                Owner::Free | Owner::Unknown => None,
                Owner::Metadata => Some(METADATA),
                Owner::Superblocks => Some("[superblocks]"),
                Owner::Log => Some("[journal]"),
                Owner::GroupDescriptors => Some("[group descriptors]"),
                Owner::ReservedDescriptors => Some("[reserved group descriptors]"),
                Owner::BlockBitmaps => Some("[block bitmaps]"),
                Owner::InodeBitmaps => Some("[inode bitmaps]"),
                Owner::Inodes => Some("[inodes]"),
                Owner::FreeSpaceTrees => Some("[free space trees]"),
                Owner::InodeTrees => Some("[inode trees]"),
                Owner::ReferenceCounts => Some("[reference counts]"),
                Owner::Staging => Some("[copy-on-write staging]"),
                Owner::Defective => Some("[bad blocks]"),
                Owner::Attributes => Some("[extended attributes]"),
                Owner::ExtentMaps => Some("[extent maps]"),
            };
            facts.named.extend(name.map(|name| Named {
                name,
                blocks: blocks.clone(),
                marks: Marks::empty(),
            }));
            facts.whole.extend(blocks.iter());
        }
        if !spaces.is_empty() {
            facts.free = Some(spaces.get(&Owner::Free).cloned().unwrap_or_default());
        }
        facts
    }

    /// Names blocks. `proved`: something shows that they are what they are said to be.
    fn name(
        &mut self,
        name: &'static str,
        ranges: impl IntoIterator<Item = Range<DeviceOffset>>,
        verified: bool,
    ) {
        let blocks = ranges.into_iter().collect();
        let marks = if verified { Marks::empty() } else { Marks::UNVERIFIED };
        self.named.push(Named { name, blocks, marks });
    }
}

/// Adds the metadata objects of a file system that was walked and is still mounted.
pub(super) fn filesystem(
    context: &Context<'_>,
    content: &Content,
    layout: Option<&Layout>,
    remains: &Remains,
) -> Result<(), ProbeError> {
    let kind = content.kind.clone().unwrap_or_default();
    let put = Put { context, device: &content.device };
    // The addresses of btrfs are none of its device.
    let layout = if kind.facts().has_address_space { remains.address_space.as_deref() } else { layout };
    let Some(layout) = layout else {
        return Ok(put.without_layout(remains)?);
    };
    let read = layout.to_device_partly(&remains.untagged);
    let owned = layout.to_device_partly(&remains.owned);
    let mut facts = Facts::of_spaces(&remains.spaces);
    let mut device = Device::new(context.appliance, &content.device, &content.node, layout.size());
    match kind {
        FsKind::Ext2 | FsKind::Ext3 | FsKind::Ext4 => ext::tell(&mut facts, &mut device, &read),
        FsKind::Xfs => xfs::tell(&mut facts, &mut device, &read),
        FsKind::Btrfs => btrfs::tell(&mut facts, remains, layout),
        FsKind::F2fs => f2fs::tell(&mut facts, &mut device, &read),
        FsKind::Vfat => fat::tell(&mut facts, &mut device, &read),
        FsKind::Exfat => exfat::tell(&mut facts, &mut device, &read),
        FsKind::Ntfs => ntfs::tell(&mut facts, &mut device),
        FsKind::Udf => udf::tell(&mut facts, &mut device),
        FsKind::Jfs => jfs::tell(&mut facts, &mut device, &read),
        FsKind::Nilfs2 => nilfs2::tell(&mut facts, &mut device),
        FsKind::Hfsplus => hfsplus::tell(&mut facts, &mut device, &read),
        _ => {}
    }
    put.places(Kind::Metadata, b"[superblocks]", &facts.outside.superblocks)?;
    put.places(Kind::Metadata, METADATA.as_bytes(), &facts.outside.read)?;
    put.inline(&facts, remains, layout)?;

    let mut known = owned.clone();
    let free = facts.free.as_ref().map(|free| free.difference(&owned));
    for Named { name, blocks, marks } in &facts.named {
        let mut blocks = blocks.difference(&owned);
        if let Some(free) = &free {
            blocks = blocks.difference(free);
        }
        put.blocks(Kind::Metadata, name.as_bytes(), &blocks, *marks, layout)?;
        add(&mut known, &blocks);
    }
    put.attributes(remains, &read, &mut known, layout)?;
    let mut rest = read.difference(&known);
    if let Some(free) = &free {
        put.blocks(Kind::Free, b"", free, Marks::empty(), layout)?;
        put.places(Kind::Free, b"", &facts.outside.unallocated)?;
        let bytes = free.bytes() + facts.outside.unallocated.bytes();
        context.channel.with(|found, _| {
            let filesystem = found.header_mut().filesystems.last_mut();
            if let Some(filesystem) = filesystem.filter(|last| last.device == content.device.as_bytes()) {
                filesystem.free_mapped = Some(bytes);
            }
        });
        rest = rest.difference(free);
    }
    put.blocks(Kind::Metadata, METADATA.as_bytes(), &rest, Marks::empty(), layout)?;
    if let Some(free) = &free {
        let used = facts.whole.difference(free).difference(&known).difference(&rest);
        put.blocks(Kind::Metadata, ALLOCATED.as_bytes(), &used, Marks::UNVERIFIED, layout)?;
    }
    Ok(())
}

/// A bit of a bitmap each byte of which begins with its lowest bit; `None` past the end.
fn bit(bitmap: &[u8], number: u64) -> Option<bool> {
    let byte = bitmap.get(usize::try_from(number / 8).ok()?)?;
    Some(byte >> (number % 8) & 1 == 1)
}

/// Units of `size` bytes, counted from `start`, by their ascending numbers.
fn units(numbers: impl Iterator<Item = u64>, start: u64, size: u64) -> Blocks {
    let mut blocks = Blocks::new();
    // There may be millions of them, mostly side by side.
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

/// Puts objects of one device into the map.
struct Put<'a> {
    context: &'a Context<'a>,
    device: &'a str,
}

impl Put<'_> {
    /// Of a device that lies nobody knows where, what was read is known all the same.
    fn without_layout(&self, remains: &Remains) -> Result<(), FoundError> {
        let mut owned = remains.owned.clone();
        for (&object, attributes) in &remains.attributes {
            let number = self.attributes_object(object, Marks::empty(), attributes.recording.is_empty())?;
            self.recording(number, &attributes.recording)?;
            owned.extend(attributes.recording.iter());
        }
        self.places(Kind::Metadata, METADATA.as_bytes(), &remains.untagged.difference(&owned))
    }

    /// An object of what lies there on the disks, if there is anything.
    fn places(&self, kind: Kind, name: &[u8], places: &Recording) -> Result<(), FoundError> {
        if places.is_empty() {
            return Ok(());
        }
        let number = self
            .context
            .channel
            .with(|found, _| found.metadata_object(kind, self.device, name, Marks::empty()))?;
        self.recording(Some(number), places)
    }

    fn recording(&self, number: Option<ObjectNumber>, recording: &Recording) -> Result<(), FoundError> {
        let Some(number) = number else { return Ok(()) };
        self.context.channel.with(|found, _| {
            recording
                .iter()
                .try_for_each(|(disk, range)| found.range(number, disk, range, None, Role::default()))
        })
    }

    /// An object of these blocks. Of metadata there must be some; that nothing is free is worth saying.
    fn blocks(
        &self,
        kind: Kind,
        name: &[u8],
        blocks: &Blocks,
        marks: Marks,
        layout: &Layout,
    ) -> Result<(), FoundError> {
        if kind == Kind::Metadata && blocks.is_empty() {
            return Ok(());
        }
        let number =
            self.context.channel.with(|found, _| found.metadata_object(kind, self.device, name, marks))?;
        blocks.iter().try_for_each(|range| self.range(number, range, PieceFlags::empty(), layout))
    }

    fn range(
        &self,
        number: ObjectNumber,
        range: Range<DeviceOffset>,
        flags: PieceFlags,
        layout: &Layout,
    ) -> Result<(), FoundError> {
        self.context.channel.with(|found, _| {
            // A file system may be larger than its device, if it is damaged.
            for part in layout.part(range).unwrap_or_default() {
                let role = Role { copy: part.copy, flags };
                found.range(number, part.disk, part.disk_range(), None, role)?;
            }
            Ok(())
        })
    }

    /// What holds the data of objects that have no blocks.
    fn inline(&self, facts: &Facts, remains: &Remains, layout: &Layout) -> Result<(), FoundError> {
        for inline in &remains.inline {
            let (object, at, length) = match *inline {
                // Nobody's data is in the boot sector: the file system does not say where it is.
                Inline::Block { at: 0, .. } => continue,
                Inline::Block { object, at } => {
                    let unit = facts.unit.unwrap_or(4096);
                    (object, at / unit * unit, unit)
                }
                Inline::Record { object, inode } => {
                    let Some(record) = facts.records else { continue };
                    let Some(at) = ntfs::place_of(inode, record, &remains.mft) else { continue };
                    (object, at, record)
                }
            };
            if let Some(range) = Range::at(DeviceOffset(at), length) {
                self.range(object, range, PieceFlags::INLINE, layout)?;
            }
        }
        Ok(())
    }

    /// The blocks of extended attributes: those that were read for them, and those that the kernel names and
    /// that were read for them or before.
    fn attributes(
        &self,
        remains: &Remains,
        read: &Blocks,
        known: &mut Blocks,
        layout: &Layout,
    ) -> Result<(), FoundError> {
        // Files share blocks of attributes, and only the first of them has them read.
        let mut seen = read.clone();
        for attributes in remains.attributes.values() {
            add(&mut seen, &layout.to_device_partly(&attributes.recording));
        }
        for (&object, attributes) in &remains.attributes {
            let mut blocks = layout.to_device_partly(&attributes.recording).difference(known);
            let mut marks = Marks::empty();
            for extent in &attributes.extents {
                let Some(range) = Range::at(DeviceOffset(extent.physical), extent.length) else { continue };
                marks |= if seen.contains(range) { Marks::empty() } else { Marks::UNVERIFIED };
                blocks.insert(range);
            }
            if let Some(number) = self.attributes_object(object, marks, blocks.is_empty())? {
                blocks.iter().try_for_each(|range| self.range(number, range, PieceFlags::empty(), layout))?;
            }
            // Known only at the end: the next file may share them.
        }
        seen = seen.difference(read);
        add(known, &seen);
        for extent in remains.attributes.values().flat_map(|attributes| &attributes.extents) {
            known.extend(Range::at(DeviceOffset(extent.physical), extent.length));
        }
        Ok(())
    }

    fn attributes_object(
        &self,
        object: ObjectNumber,
        marks: Marks,
        is_empty: bool,
    ) -> Result<Option<ObjectNumber>, FoundError> {
        self.context.channel.with(|found, _| {
            let Some(path) = found.path_of(object).filter(|_| !is_empty) else { return Ok(None) };
            let path = [path, ATTRIBUTES.as_bytes()].concat();
            match found.metadata_object(Kind::Metadata, self.device, &path, marks) {
                // The path was just short enough.
                Err(FoundError::Build(_)) => Ok(None),
                result => result.map(Some),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn space_that_makes_no_sense_is_refused() {
        let mut remains = Remains::default();
        assert!(remains.space(Owner::Free, &[(0, 4096), (8192, 4096)]));
        assert!(remains.space(Owner::Unknown, &[(4096, 4096)]));
        assert!(!remains.space(Owner::Free, &[(u64::MAX, 2)]));
        let facts = Facts::of_spaces(&remains.spaces);
        assert_eq!(facts.free.map(|free| free.bytes()), Some(8192));
        assert_eq!(facts.whole.bytes(), 12288);
        assert!(Facts::of_spaces(&BTreeMap::new()).free.is_none());
    }
}
