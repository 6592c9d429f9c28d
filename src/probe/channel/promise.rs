//! Files of which only the ends of extents are read: when these lie where the kernel said, its word is taken for
//! the rest.
//!
//! What is taken on its word is the very thing that a full read is compared with, so a map comes out the same
//! either way. A file whose proof fails is read in full, under a tag of its own; so is one that lies where
//! something has been written since the image was opened, because only a read tells whether that is still
//! what the image holds.

use super::super::expected::Expectation;
use super::{ChannelError, Expected, ObjectNumber, State, Walk, attribute};
use crate::range::{DeviceOffset, Range};
use crate::recorder::Recording;
use virt_bmap_agent::sample::{End, Sample};

/// When the files that turn out to lie elsewhere than the kernel said stand for more than so many, it is not
/// believed any more. Each stands for as many as it was chosen out of.
const MOST_LIES: u64 = 3;

impl Walk {
    /// What is read of a file where only ends are.
    fn ends<'a>(
        &self,
        sample: Sample,
        id: ObjectNumber,
        file: &'a Expected,
    ) -> impl Iterator<Item = End> + 'a {
        let block = self.filesystem.map_or(0, |filesystem| filesystem.block_size);
        sample.ends(id, file.extents.as_deref().unwrap_or_default(), file.size, block)
    }

    /// What reading a file of a series must touch.
    pub(super) fn expectation_in_series(&self, id: ObjectNumber, file: &Expected) -> Expectation {
        let Some(sample) = self.sample else { return self.expectation(file) };
        let ends = self.ends(sample, id, file);
        let ranges = ends.map(|end| Range::at(DeviceOffset(end.physical), end.length)).collect::<Option<_>>();
        ranges.map_or(Expectation::None, Expectation::Blocks)
    }

    /// Where a file lies if the kernel's word is taken for it; `None` where it does not tell exactly, or where
    /// a read may find what is not the image's.
    fn promise(&self, file: &Expected) -> Option<Recording> {
        let layout = self.layout.as_deref().filter(|layout| !layout.is_partial())?;
        let Expectation::Blocks(blocks) = self.expectation(file) else { return None };
        let mut places = Recording::default();
        for range in blocks.iter() {
            let parts = layout.part(range)?;
            let first = parts.iter().filter(|part| part.copy == 0);
            places.extend(first.map(|part| (part.disk, part.disk_range())));
        }
        (!self.context.is_rewritten(&places)).then_some(places)
    }
}

impl State {
    /// Takes in what was read of a file in a series, of which `expectation` was due.
    pub(super) fn recorded_in_series(
        &mut self,
        id: ObjectNumber,
        recording: Recording,
        expectation: &Expectation,
    ) -> Result<(), ChannelError> {
        if self.walk.sample.is_none() {
            return self.recorded(id, recording);
        }
        let layout = self.walk.layout.as_deref();
        if layout.is_some() && expectation.is_met_by(&recording, layout, false) {
            self.believe(id)
        } else {
            self.doubt(id, recording);
            Ok(())
        }
    }

    /// Gives a file what the kernel promises of it, or has it read.
    fn believe(&mut self, id: ObjectNumber) -> Result<(), ChannelError> {
        let Some(mut file) = self.walk.files.remove(&id) else { return Ok(()) };
        if let Some(promise) = self.walk.promise(&file) {
            self.snapshot.bytes += promise.bytes();
            let extents = file.extents.as_deref().unwrap_or_default();
            let Walk { context, layout, remains, .. } = &mut self.walk;
            attribute(&mut self.found, id, &promise, extents, layout.as_deref(), context, remains)?;
            file.is_placed = true;
            file.is_placed_nowhere &= promise.is_empty();
        } else {
            file.unexpected = Some(Recording::default());
        }
        self.walk.files.insert(id, file);
        Ok(())
    }

    /// Has a file read in full.
    fn doubt(&mut self, id: ObjectNumber, recording: Recording) {
        if let Some(file) = self.walk.files.get_mut(&id) {
            file.unexpected = Some(recording);
        }
    }

    /// Gives the files of the batch that are in no sample, and so were not read, what the kernel promises.
    pub(super) fn believe_the_rest(&mut self) -> Result<(), ChannelError> {
        let walk = &self.walk;
        let Some(sample) = walk.sample else { return Ok(()) };
        let is_left = |(id, file): (&ObjectNumber, &Expected)| {
            let is_read = file.is_placed || file.unexpected.is_some();
            let is_odd = file.is_system || file.is_link;
            let is_promised = || match walk.expectation(file) {
                Expectation::Blocks(blocks) => !blocks.is_empty(),
                _ => false,
            };
            let left = !is_read && !is_odd && is_promised() && walk.ends(sample, *id, file).next().is_none();
            left.then_some(*id)
        };
        let left: Vec<ObjectNumber> = walk.files.iter().filter_map(is_left).collect();
        left.into_iter().try_for_each(|id| self.believe(id))
    }

    /// Notes that a file does not lie where the kernel said, although all of it was read, twice.
    ///
    /// # Errors
    /// [`ChannelError::Lies`] when that has happened too often to believe what was said of others.
    pub(super) fn note_lie(&mut self) -> Result<(), ChannelError> {
        let Some(sample) = self.walk.sample else { return Ok(()) };
        self.walk.lies += u64::from(sample.every.get());
        if self.walk.lies > MOST_LIES { Err(ChannelError::Lies) } else { Ok(()) }
    }
}
