//! What a walk gathers for the metadata objects, when they are wanted.

use super::super::layout::Layout;
use super::super::metadata::Inline;
use super::walk::{Expected, Walk};
use super::{ChannelError, ObjectNumber};
use crate::recorder::Recording;
use virt_bmap_agent_protocol::FsKind;
use virt_bmap_agent_protocol::record::{self, Extent, Owner};
use virt_bmap_ranges::{DeviceOffset, Range};

impl Walk {
    /// Whether an object is one of the files in which NTFS keeps its metadata. ntfs-3g shows them on demand.
    pub(super) fn is_system(&self, object: &record::Object) -> bool {
        let reserved = self.context.kind.facts().reserved_inodes;
        let is_reserved = object.parent == self.first && object.inode < reserved;
        self.context.metadata
            && reserved > 0
            && object.id != self.first
            && (is_reserved && object.name.starts_with(b"$") || self.system.contains(&object.parent))
    }

    /// Whether files of this size lie in a record of NTFS's `$MFT` when they have no blocks.
    pub(super) fn is_resident(&self, file: &Expected) -> bool {
        let block = self.filesystem.map_or(0, |filesystem| filesystem.block_size);
        self.context.kind == FsKind::Ntfs
            && file.is_placed_nowhere
            && file.size > 0
            && (1..block).contains(&file.allocated)
    }

    /// Takes in what was read on no object's behalf.
    pub(super) fn untagged(&mut self, recording: &Recording) {
        if self.context.metadata {
            self.remains.untagged.extend(recording.iter());
        }
    }

    /// Takes in what pieces of the device are for.
    pub(super) fn space(&mut self, owner: Owner, pieces: &[(u64, u64)]) -> Result<(), ChannelError> {
        if !self.context.metadata {
            return Err(ChannelError::Nonsense("the use of space, which was not asked for"));
        }
        let makes_sense = self.remains.space(owner, pieces);
        if makes_sense { Ok(()) } else { Err(ChannelError::Nonsense("an impossible use of space")) }
    }

    /// Notes where the data of a file lies that has no blocks.
    pub(super) fn note_inline(&mut self, object: ObjectNumber, file: &Expected) {
        if !self.context.metadata {
            return;
        }
        // btrfs gives no place for what lies in its tree.
        let has_places = self.filesystem.is_some() && !self.mounted.facts().has_address_space;
        let is_inline = |extent: &&Extent| has_places && extent.flags & Extent::INLINE != 0;
        let inline = file.extents.iter().flatten().filter(is_inline);
        let places = inline.map(|extent| Inline::Block { object, at: extent.physical });
        let record = self.is_resident(file).then_some(Inline::Record { object, inode: file.inode });
        self.remains.inline.extend(places.chain(record));
    }
}

/// Where plain extents lie, as if they had been read; `None` where that is not known.
pub(super) fn places_of(extents: &[Extent], layout: Option<&Layout>) -> Option<Recording> {
    let mut places = Recording::default();
    for extent in extents {
        let range = Range::at(DeviceOffset(extent.physical), extent.length).filter(|_| extent.is_plain())?;
        places.extend(layout?.places(range)?);
    }
    (!extents.is_empty()).then_some(places)
}
