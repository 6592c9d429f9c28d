//! Pieces of directories.
//!
//! Where the place of a directory is known before it is listed, its pieces are exactly that place:
//! listing it may read less (a block that is in memory already) or more (the rest of a page, a
//! block of the table of clusters). Otherwise its pieces are what was read.
//!
//! A place that the agent has computed must be proved by the kernel's reads. Each of them lies in
//! the directory, or where the agent says that the kernel may read besides.

use super::state::State;
use super::{ChannelError, ObjectNumber};
use crate::probe::Legs;
use crate::probe::layout::Layout;
use crate::recorder::Recording;
use std::collections::{HashMap, HashSet};
use virt_bmap_agent_protocol::DirectoryBlocks;
use virt_bmap_agent_protocol::record::Extent;
use virt_bmap_map::{Cause, Marks};
use virt_bmap_ranges::{DeviceOffset, Range};

/// The directories of a walk.
#[derive(Default)]
pub(super) struct Directories {
    /// What the agent has said of those whose listing has not ended.
    pub(super) known: HashMap<ObjectNumber, Known>,
    /// Those whose extents are their place, whatever is read under their tags.
    pub(super) placed: HashSet<ObjectNumber>,
    /// The directory that was listed last; its listing may go on.
    pub(super) listed: ObjectNumber,
    /// The directories that are being listed in a batch.
    pub(super) listing: Vec<ObjectNumber>,
    /// What was read while directories were listed, or before they were.
    pub(super) read: Recording,
    /// How many have no place, although the agent should have computed one.
    pub(super) unplaced: u64,
}

/// What the agent has said of a directory.
#[derive(Default)]
pub(super) struct Known {
    pub(super) extents: Option<Vec<Extent>>,
    /// Where the kernel may read besides, if the extents are computed.
    pub(super) beside: Option<Vec<Range<DeviceOffset>>>,
    is_placed: bool,
}

/// A directory's own bytes on the disks.
struct Own {
    /// The first copy.
    first: Recording,
    /// All copies.
    copies: Recording,
}

impl Directories {
    /// How many extents and other parts of the device are held.
    pub(super) fn held(&self) -> usize {
        let of = |known: &Known| {
            known.extents.as_ref().map_or(0, Vec::len) + known.beside.as_ref().map_or(0, Vec::len)
        };
        self.known.values().map(of).sum()
    }

    /// The extents of a directory, as far as they are known.
    pub(super) fn extents(&self, id: ObjectNumber) -> &[Extent] {
        self.known.get(&id).and_then(|known| known.extents.as_deref()).unwrap_or_default()
    }
}

impl State {
    /// Notes where the kernel may read besides the extents of a directory, which are computed.
    pub(super) fn computed(&mut self, id: ObjectNumber, beside: &[(u64, u64)]) -> Result<(), ChannelError> {
        self.in_walk(id)?;
        self.hold(beside.len())?;
        let ranges = beside.iter().filter_map(|(start, length)| Range::at(DeviceOffset(*start), *length));
        let known = self.walk.directories.known.entry(id).or_default();
        known.beside.get_or_insert_default().extend(ranges);
        Ok(())
    }

    /// Attributes what was read under the tag of a directory.
    pub(super) fn directory_recorded(
        &mut self,
        id: ObjectNumber,
        recording: &Recording,
    ) -> Result<(), ChannelError> {
        let walk = &mut self.walk;
        let known = walk.directories.known.entry(id).or_default();
        let extents = known.extents.clone().unwrap_or_default();
        let layout = walk.placement.layout.as_deref();
        let own = layout.filter(|_| known.extents.is_some()).and_then(|layout| own(&extents, layout));
        let (Some(own), Some(layout)) = (own, layout) else {
            walk.placement.attribute(&mut self.found, id, recording, &extents)?;
            return Ok(());
        };
        let other = recording.difference(&own.copies);
        let beside = known.beside.as_deref().map(|beside| anywhere(beside, layout));
        let is_first = !std::mem::replace(&mut known.is_placed, true);
        if walk.placement.legs == Legs::One && layout.copy_count() > 1 {
            let inside = recording.difference(&other);
            walk.placement.attribute(&mut self.found, id, &inside, &extents)?;
        } else if is_first {
            walk.placement.attribute(&mut self.found, id, &own.first, &extents)?;
        }
        walk.untagged(&other);
        walk.directories.read.extend(recording.iter());
        let against = beside.map(|beside| other.difference(&beside)).filter(|against| !against.is_empty());
        if let Some(against) = against {
            let path = self.place(id, b"");
            self.warnings.on_path(&self.walk.context.device, &path, Cause::DirectoryContradicted);
            self.found.mark(id, Marks::INEXACT);
            self.walk.placement.attribute(&mut self.found, id, &against, &[])?;
        }
        Ok(())
    }

    /// Marks a directory whose listing has ended, and forgets what was said of it.
    pub(super) fn directory_listed(&mut self, id: ObjectNumber) {
        let walk = &mut self.walk;
        let Some(known) = walk.directories.known.remove(&id) else { return };
        let is_computed = walk.mounted.facts().directory_blocks == DirectoryBlocks::Computed;
        let mut marks = Marks::empty();
        let mut has_holes = false;
        if let Some(extents) = known.extents {
            walk.extents_held = walk.extents_held.saturating_sub(extents.len());
            let is_inline = |extent: &Extent| extent.flags & Extent::INLINE != 0;
            marks.set(Marks::NO_BLOCKS, extents.iter().all(is_inline));
            marks.set(Marks::INLINE, extents.iter().any(is_inline));
            walk.note_inline_extents(id, &extents);
            let block = walk.placement.inputs.block;
            let size = self.found.size_of(id).filter(|_| walk.mounted.is_ext());
            has_holes = size.is_some_and(|size| !cover(&extents, size, block));
            // Without a layout, what was read is all that counts.
            let is_read = walk.placement.layout.as_deref().is_none_or(|layout| {
                let own = own(&extents, layout).map(|own| own.copies);
                let is_read = |(disk, range)| walk.directories.read.overlap(disk, range).next().is_some();
                own.is_some_and(|own| own.is_empty() || own.iter().any(is_read))
            });
            marks.set(Marks::UNVERIFIED, !is_read);
        } else if is_computed && id >= walk.first {
            marks |= Marks::UNVERIFIED;
            walk.directories.unplaced += 1;
        }
        walk.extents_held = walk.extents_held.saturating_sub(known.beside.map_or(0, |beside| beside.len()));
        self.found.mark(id, marks);
        if has_holes {
            let path = self.place(id, b"");
            self.warnings.on_path(&self.walk.context.device, &path, Cause::DirectoryHoles);
        }
    }

    /// Ends the last listing of a walk.
    pub(super) fn end_directories(&mut self) {
        let last = std::mem::take(&mut self.walk.directories.listed);
        self.directory_listed(last);
        let count = std::mem::take(&mut self.walk.directories.unplaced);
        if count > 0 {
            self.warnings.on_device(&self.walk.context.device, Cause::DirectoriesUnplaced { count });
        }
    }
}

/// Whether extents cover a directory of `size` bytes, and nothing else. The kernel lists what is
/// behind a hole or the end either in part or not at all, and does not say so.
fn cover(extents: &[Extent], size: u64, block: u64) -> bool {
    let is_inline = |extent: &Extent| extent.flags & Extent::INLINE != 0;
    let end = extents
        .iter()
        .try_fold(0, |end, extent| (extent.logical == end).then(|| end.saturating_add(extent.length)));
    extents.iter().any(is_inline) || end == size.checked_next_multiple_of(block.max(1))
}

/// Where plain extents lie; `None` if that is not all on the device. Data inside metadata lies
/// nowhere.
fn own(extents: &[Extent], layout: &Layout) -> Option<Own> {
    let mut own = Own { first: Recording::default(), copies: Recording::default() };
    for extent in extents.iter().filter(|extent| extent.flags & Extent::INLINE == 0) {
        let range = Range::at(DeviceOffset(extent.physical), extent.length).filter(|_| extent.is_plain())?;
        own.first.extend(layout.places(range)?);
        own.copies.extend(layout.part(range)?.into_iter().map(|part| (part.disk, part.disk_range())));
    }
    Some(own)
}

/// All copies of parts of the device, as far as they are there.
fn anywhere(parts: &[Range<DeviceOffset>], layout: &Layout) -> Recording {
    let end = DeviceOffset(layout.size());
    let parts = parts.iter().map(|part| Range { start: part.start.min(end), end: part.end.min(end) });
    let parts = parts.flat_map(|part| layout.part(part).unwrap_or_default());
    parts.map(|part| (part.disk, part.disk_range())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_and_blocks_past_the_end_are_seen() {
        let cover = |extents: &[(u64, u64)], size| {
            let extent = |(logical, length): &(u64, u64)| Extent {
                logical: *logical,
                physical: 9,
                length: *length,
                flags: 0,
            };
            cover(&extents.iter().map(extent).collect::<Vec<_>>(), size, 10)
        };
        assert!(cover(&[], 0) && cover(&[(0, 10), (10, 30)], 40) && cover(&[(0, 10)], 3));
        assert!(!cover(&[(0, 10), (20, 10)], 30) && !cover(&[(10, 10)], 20) && !cover(&[(0, 10)], 20));
        assert!(!cover(&[(0, 20)], 10) && !cover(&[], 10));
        let inline = Extent { logical: 0, physical: 9, length: 60, flags: Extent::INLINE };
        assert!(super::cover(&[inline], 60, 10));
    }
}
