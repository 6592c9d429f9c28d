//! Pieces of objects: from recordings and extents to the map.

use super::metadata_inputs::MetadataInputs;
use crate::probe::Legs;
use crate::probe::expected::{PlacedRange, places};
use crate::probe::found::{Found, FoundError, ObjectNumber};
use crate::probe::layout::Layout;
use crate::recorder::Recording;
use std::sync::Arc;
use virt_bmap_agent_protocol::record::Extent;
use virt_bmap_ranges::{DeviceOffset, Range};

/// Turns the recordings of a walk into pieces.
#[derive(Default)]
pub(super) struct Placement {
    /// Which copies are in the map.
    pub(super) legs: Legs,
    /// The layout that the extents refer to: of the filesystem's device, or of the address space of
    /// a btrfs.
    pub(super) layout: Option<Arc<Layout>>,
    /// What the metadata objects will be made of.
    pub(super) inputs: MetadataInputs,
}

impl Placement {
    /// Gives an object its recording as pieces. Their file offsets follow from the extents.
    pub(super) fn attribute(
        &mut self,
        found: &mut Found,
        id: ObjectNumber,
        recording: &Recording,
        extents: &[Extent],
    ) -> Result<(), FoundError> {
        for place in places(recording, extents, self.layout.as_deref(), self.legs) {
            self.add_piece(found, id, &place)?;
        }
        Ok(())
    }

    /// Gives an object its extents as pieces, as if they had been read; `false` if it is not known
    /// where they lie on the disks.
    pub(super) fn place(
        &mut self,
        found: &mut Found,
        id: ObjectNumber,
        extents: &[Extent],
    ) -> Result<bool, FoundError> {
        const ELSEWHERE: u32 = Extent::INLINE | Extent::UNWRITTEN;
        let has_place = |extent: &&Extent| extent.flags & ELSEWHERE == 0;
        let range = |extent: &Extent| Range::at(DeviceOffset(extent.physical), extent.length);
        let read = extents.iter().filter(has_place);
        let mut recording = Recording::default();
        for extent in read {
            let places = self.layout.as_deref().and_then(|layout| layout.places(range(extent)?));
            let Some(places) = places else { return Ok(false) };
            recording.extend(places);
        }
        self.attribute(found, id, &recording, extents)?;
        Ok(true)
    }

    /// The same for bytes that were not read, without the unwritten extents.
    pub(super) fn attribute_plain(
        &mut self,
        found: &mut Found,
        id: ObjectNumber,
        recording: &Recording,
        extents: &[Extent],
    ) -> Result<(), FoundError> {
        if recording.is_empty() {
            return Ok(());
        }
        let plain: Vec<Extent> = extents.iter().filter(|extent| extent.is_plain()).copied().collect();
        self.attribute(found, id, recording, &plain)
    }

    /// Gives an object a piece.
    pub(super) fn add_piece(
        &mut self,
        found: &mut Found,
        id: ObjectNumber,
        place: &PlacedRange,
    ) -> Result<(), FoundError> {
        self.inputs.owned.insert(place.disk, place.range);
        found.range(id, place.disk, place.range, place.file_offset, place.role)
    }
}
