//! Files of which only the ends of extents are read: when these lie where the kernel said, its word
//! is taken for the rest.
//!
//! What is taken on its word is the very thing that a full read is compared with, so a map comes
//! out the same either way. A file whose proof fails is read in full, under a tag of its own; so is
//! one that lies where something has been written since the image was opened, because only a read
//! tells whether that is still what the image holds.

use super::batch::BatchFile;
use super::state::State;
use super::walk::Walk;
use super::{ChannelError, ObjectNumber};
use crate::probe::expected::Expectation;
use crate::recorder::Recording;
use virt_bmap_agent_protocol::{End, Sample};
use virt_bmap_ranges::{DeviceOffset, DiskNumber, DiskRange, Range, RangeSet};

/// When the files that turn out to lie elsewhere than the kernel said stand for more than so many,
/// it is not believed any more. Each stands for as many as it was chosen out of.
const MOST_MISMATCHES: u64 = 3;

impl Walk {
    /// What is read of a file where only ends are.
    fn ends<'a>(
        &self,
        sample: Sample,
        id: ObjectNumber,
        file: &'a BatchFile,
    ) -> impl Iterator<Item = End> + 'a {
        let block = self.filesystem.map_or(0, |filesystem| filesystem.block_size);
        sample.ends(id, file.extents.as_deref().unwrap_or_default(), file.size, block)
    }

    /// Where the ends of a file lie that are read; `None` where that is on no device.
    fn places_of_ends(
        &self,
        sample: Sample,
        id: ObjectNumber,
        file: &BatchFile,
    ) -> Option<RangeSet<DeviceOffset>> {
        self.ends(sample, id, file).map(|end| Range::at(DeviceOffset(end.physical), end.length)).collect()
    }

    /// Where a file lies if the kernel's word is taken for it; `None` where it does not tell
    /// exactly, or where a read may find what is not the image's.
    pub(super) fn expected_blocks(&self, file: &BatchFile) -> Option<Recording> {
        let layout = self.placement.layout.as_deref().filter(|layout| !layout.is_partial())?;
        let Expectation::Blocks(blocks) = self.expectation(file) else { return None };
        let mut places = Recording::default();
        for range in blocks.iter() {
            places.extend(layout.places(range)?);
        }
        (!self.context.is_rewritten(&places)).then_some(places)
    }
}

impl State {
    /// Takes in what was read of the ends of files.
    pub(super) fn ends_recorded(
        &mut self,
        sample: Sample,
        ids: &[ObjectNumber],
        reads: Option<Vec<(DiskNumber, DiskRange)>>,
    ) -> Result<(), ChannelError> {
        let walk = &self.walk;
        let file = |id: &ObjectNumber| walk.places_of_ends(sample, *id, walk.batch.files.get(id)?);
        let ends: Vec<Option<RangeSet<DeviceOffset>>> = ids.iter().map(file).collect();
        let read = Recording::from_iter(reads.unwrap_or_default());
        self.snapshot.bytes += read.bytes();
        let on_device = walk.placement.layout.as_deref().and_then(|layout| layout.to_device(&read));
        for (id, is_verified) in ids.iter().zip(verified(&ends, on_device)) {
            if is_verified {
                self.accept_extents(*id)?;
            } else if let Some(file) = self.walk.batch.files.get_mut(id) {
                file.unexpected = Some(Recording::default());
            }
        }
        Ok(())
    }

    /// Gives a file what the kernel promises of it, or has it read.
    fn accept_extents(&mut self, id: ObjectNumber) -> Result<(), ChannelError> {
        let Some(mut file) = self.walk.batch.files.remove(&id) else { return Ok(()) };
        if let Some(expected) = self.walk.expected_blocks(&file) {
            self.snapshot.bytes += expected.bytes();
            let extents = file.extents.as_deref().unwrap_or_default();
            self.walk.placement.attribute(&mut self.found, id, &expected, extents)?;
            file.is_placed = true;
            file.is_placed_nowhere &= expected.is_empty();
        } else {
            file.unexpected = Some(Recording::default());
        }
        self.walk.batch.files.insert(id, file);
        Ok(())
    }

    /// Gives the files of the batch that are in no sample, and so were not read, what the kernel
    /// promises.
    pub(super) fn accept_remaining_extents(&mut self) -> Result<(), ChannelError> {
        let walk = &self.walk;
        let Some(sample) = walk.spot_checks.sample else { return Ok(()) };
        let is_left = |(id, file): (&ObjectNumber, &BatchFile)| {
            let is_read = file.is_placed || file.unexpected.is_some();
            let is_odd = file.is_system || file.is_link;
            let is_promised = || match walk.expectation(file) {
                Expectation::Blocks(blocks) => !blocks.is_empty(),
                _ => false,
            };
            let left = !is_read && !is_odd && is_promised() && walk.ends(sample, *id, file).next().is_none();
            left.then_some(*id)
        };
        let left: Vec<ObjectNumber> = walk.batch.files.iter().filter_map(is_left).collect();
        left.into_iter().try_for_each(|id| self.accept_extents(id))
    }

    /// Notes that a file does not lie where the kernel said, although all of it was read, twice.
    ///
    /// # Errors
    /// [`ChannelError::ExtentMismatch`] when that has happened too often to believe what was said
    /// of others.
    pub(super) fn note_mismatch(&mut self) -> Result<(), ChannelError> {
        let Some(sample) = self.walk.spot_checks.sample else { return Ok(()) };
        self.walk.spot_checks.mismatches += u64::from(sample.every.get());
        if self.walk.spot_checks.mismatches > MOST_MISMATCHES {
            Err(ChannelError::ExtentMismatch)
        } else {
            Ok(())
        }
    }
}

/// Which files' ends have been read where they were expected, given where something was read.
///
/// The reads are under way at the same time, so nothing tells which file each was for, and the set
/// of all is compared with the set of what was due. Were a file elsewhere, its own place would be
/// missing. What is read beside may be anybody's.
fn verified(ends: &[Option<RangeSet<DeviceOffset>>], read: Option<RangeSet<DeviceOffset>>) -> Vec<bool> {
    let due: RangeSet<DeviceOffset> = ends.iter().flatten().flat_map(RangeSet::iter).collect();
    let read = read.filter(|read| read.iter().all(|range| due.contains(range)));
    let is_read = |ends: &RangeSet<DeviceOffset>| {
        read.as_ref().is_some_and(|read| ends.iter().all(|range| read.contains(range)))
    };
    ends.iter().map(|ends| ends.as_ref().is_some_and(is_read)).collect()
}
