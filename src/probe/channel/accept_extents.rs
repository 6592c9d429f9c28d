//! Spot checks: if the ends of a file's extents were read where the extents say, the extents are
//! accepted without a full read.
//!
//! A full read would be compared with the same extents, so the map is the same either way. A file
//! whose spot check fails is read in full, under a tag of its own. So is a file that lies where the
//! overlay was written: only a read tells whether the image holds the same bytes.

use super::batch::BatchFile;
use super::state::State;
use super::walk::Walk;
use super::{ChannelError, ObjectNumber};
use crate::probe::expected::Expectation;
use crate::recorder::Recording;
use virt_bmap_agent_protocol::{End, Sample};
use virt_bmap_ranges::{DeviceOffset, DiskNumber, DiskRange, Range, RangeSet};

/// After more extent mismatches than this, no extents of the device are accepted. Each mismatch
/// counts as often as the sample makes it count.
const MOST_MISMATCHES: u64 = 3;

impl Walk {
    /// The ends of a file that a spot check reads.
    fn ends<'a>(&self, sample: Sample, file: &'a BatchFile) -> impl Iterator<Item = End> + 'a {
        let block = self.filesystem.map_or(0, |filesystem| filesystem.block_size);
        let block = self.mounted.read_unit(block);
        sample.ends(file.inode, file.extents.as_deref().unwrap_or_default(), file.size, block)
    }

    /// Where on the device the ends of a file lie; `None` if an end is not on the device.
    fn places_of_ends(&self, sample: Sample, file: &BatchFile) -> Option<RangeSet<DeviceOffset>> {
        let ends = self.ends(sample, file).map(|end| Range::at(DeviceOffset(end.physical), end.length));
        let ends: RangeSet<_> = ends.collect::<Option<_>>()?;
        // What is on no disk is not read.
        Some(self.placement.layout.as_deref()?.on_disks(&ends).into_owned())
    }

    /// The expected blocks of a file, on the disks; `None` if they are not exactly known, or if the
    /// overlay was written there.
    pub(super) fn expected_blocks(&self, file: &BatchFile) -> Option<Recording> {
        let layout = self.placement.layout.as_deref().filter(|layout| !layout.is_partial())?;
        let expectation = self.expectation(file);
        let (Expectation::Blocks(blocks) | Expectation::Pages { blocks, .. }) = expectation else {
            return None;
        };
        let mut places = Recording::default();
        for range in blocks.iter() {
            places.extend(layout.places(range)?);
        }
        (!self.context.is_rewritten(&places)).then_some(places)
    }
}

impl State {
    /// Judges the spot checks of a series of files by its reads.
    pub(super) fn ends_recorded(
        &mut self,
        sample: Sample,
        ids: &[ObjectNumber],
        reads: Option<Vec<(DiskNumber, DiskRange)>>,
    ) -> Result<(), ChannelError> {
        let walk = &self.walk;
        let file = |id: &ObjectNumber| walk.places_of_ends(sample, walk.batch.files.get(id)?);
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

    /// Accepts a file's extents, or has the file read in full.
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

    /// Accepts the extents of the files of the batch that got no spot check.
    pub(super) fn accept_remaining_extents(&mut self) -> Result<(), ChannelError> {
        let walk = &self.walk;
        let Some(sample) = walk.spot_checks.sample else { return Ok(()) };
        let is_left = |(id, file): (&ObjectNumber, &BatchFile)| {
            let is_read = file.is_placed || file.unexpected.is_some();
            let is_odd = file.is_system || file.is_link;
            let is_promised = || match walk.expectation(file) {
                Expectation::Blocks(blocks) | Expectation::Pages { blocks, .. } => !blocks.is_empty(),
                _ => false,
            };
            let left = !is_read && !is_odd && is_promised() && walk.ends(sample, file).next().is_none();
            left.then_some(*id)
        };
        let left: Vec<ObjectNumber> = walk.batch.files.iter().filter_map(is_left).collect();
        left.into_iter().try_for_each(|id| self.accept_extents(id))
    }

    /// Counts an extent mismatch: a file that was read in full, twice, and both times elsewhere
    /// than its extents say.
    ///
    /// # Errors
    /// [`ChannelError::ExtentMismatch`] if there were too many to accept further extents.
    pub(super) fn note_mismatch(&mut self) -> Result<(), ChannelError> {
        let Some(sample) = self.walk.spot_checks.sample else { return Ok(()) };
        self.walk.spot_checks.mismatches += u64::from(sample.one_in.get());
        if self.walk.spot_checks.mismatches > MOST_MISMATCHES {
            Err(ChannelError::ExtentMismatch)
        } else {
            Ok(())
        }
    }
}

/// Which files' spot checks succeeded, given all reads of the series.
///
/// The reads run at the same time, so a read cannot be attributed to a file: the set of all reads
/// is compared with the set of all ends. If a file lay elsewhere, its own ends would be missing. A
/// read outside of the set may belong to any file, so it fails them all.
fn verified(ends: &[Option<RangeSet<DeviceOffset>>], read: Option<RangeSet<DeviceOffset>>) -> Vec<bool> {
    let due: RangeSet<DeviceOffset> = ends.iter().flatten().flat_map(RangeSet::iter).collect();
    let read = read.filter(|read| read.iter().all(|range| due.contains(range)));
    let is_read = |ends: &RangeSet<DeviceOffset>| {
        read.as_ref().is_some_and(|read| ends.iter().all(|range| read.contains(range)))
    };
    ends.iter().map(|ends| ends.as_ref().is_some_and(is_read)).collect()
}
