//! Attribution of reads: tags, series and batches, and the comparison with the expected blocks.

use super::batch::BatchFile;
use super::metadata_inputs::places_of;
use super::series::assign;
use super::state::State;
use super::{ChannelError, FIRST_PROOF};
use crate::probe::expected::{Expectation, PlacedRange, places};
use crate::probe::found::{FoundError, ObjectNumber};
use crate::recorder::{Recorder, Recording, Tag};
use virt_bmap_agent_protocol::bounds::FILES_PER_BATCH;
use virt_bmap_agent_protocol::record::ATTRIBUTES;
use virt_bmap_map::{Marks, PieceFlags, Role};

impl State {
    pub(super) fn tag(&mut self, id: u32, reset: bool, recorder: &Recorder) -> Result<(), ChannelError> {
        if id >= FIRST_PROOF && self.walk.first != 0 {
            return Err(ChannelError::Protocol("a proof's tag during a walk"));
        }
        if id != 0 && id < FIRST_PROOF && !(1..self.found.next()).contains(&(id & !ATTRIBUTES)) {
            return Err(ChannelError::Protocol("a tag of an unknown object"));
        }
        self.end_series(recorder)?;
        let before = recorder.tag();
        let recording = recorder.switch((id != 0).then_some(Tag(id)));
        match before {
            Some(Tag(before)) => self.recorded(before, recording)?,
            None => self.walk.untagged(&recording),
        }
        if reset && let Some(file) = self.walk.batch.files.get_mut(&id) {
            file.unexpected = None;
        }
        Ok(())
    }

    pub(super) fn begin_series(
        &mut self,
        ids: Vec<ObjectNumber>,
        recorder: &Recorder,
    ) -> Result<(), ChannelError> {
        if !ids.iter().all(|id| self.walk.batch.files.contains_key(id)) {
            return Err(ChannelError::Protocol("a series with an object that is not in the batch"));
        }
        self.tag(0, false, recorder)?;
        recorder.begin_series();
        self.walk.batch.series = ids;
        Ok(())
    }

    /// Gives each file of the series its reads.
    pub(super) fn end_series(&mut self, recorder: &Recorder) -> Result<(), ChannelError> {
        let Some(series) = recorder.end_series() else { return Ok(()) };
        if !self.walk.directories.listing.is_empty() {
            return self.end_listing(&series.into_first_reads());
        }
        let ids = std::mem::take(&mut self.walk.batch.series);
        let reads = series.into_reads();
        if let Some(sample) = self.walk.spot_checks.sample {
            return self.ends_recorded(sample, &ids, reads);
        }
        let reads = reads.unwrap_or_default();
        let Some(layout) = self.walk.placement.layout.clone() else {
            return Err(ChannelError::Protocol("a series on a device without a layout"));
        };
        let files = ids.iter().filter_map(|id| self.walk.batch.files.get(id));
        let expectations: Vec<Expectation> = files.map(|file| self.walk.expectation(file)).collect();
        for (id, recording) in ids.into_iter().zip(assign(&reads, &expectations, &layout)) {
            self.recorded(id, recording)?;
        }
        Ok(())
    }

    /// Judges a batch. Files that were not read as expected are in the reply: the agent reads them
    /// once more, and ends the batch again.
    pub(super) fn batch_end(&mut self) -> Result<(), ChannelError> {
        if self.walk.batch.reread.is_empty() {
            self.accept_remaining_extents()?;
        }
        let unexpected = self.walk.batch.files.iter().filter(|(_, file)| file.unexpected.is_some());
        let reread: Vec<ObjectNumber> = unexpected.map(|(&id, _)| id).collect();
        if !self.walk.batch.reread.is_empty() || reread.is_empty() {
            return self.end_batch();
        }
        // The agent opens fewer files at a time. It has more only of those that need not be opened.
        if reread.len() > FILES_PER_BATCH {
            return Err(ChannelError::ExtentMismatch);
        }
        self.walk.batch.answer.clone_from(&reread);
        self.walk.batch.reread = reread;
        Ok(())
    }

    /// Attributes what was read under a tag.
    pub(super) fn recorded(&mut self, id: u32, recording: Recording) -> Result<(), ChannelError> {
        self.snapshot.bytes += recording.bytes();
        if id >= FIRST_PROOF {
            self.proofs.insert(id, recording);
        } else if id & ATTRIBUTES != 0 {
            let attributes = self.walk.placement.inputs.attributes.entry(id & !ATTRIBUTES).or_default();
            attributes.recording.extend(recording.iter());
        } else if self.walk.batch.packed.is_some() {
            self.attribute_packed(id, &recording)?;
            if !recording.is_empty() {
                self.walk.batch.packed = Some(recording);
            }
        } else if let Some(file) = self.walk.batch.files.remove(&id) {
            let file = self.file_recorded(id, file, recording)?;
            self.walk.batch.files.insert(id, file);
        } else {
            if self.walk.directories.listed != id {
                let before = std::mem::replace(&mut self.walk.directories.listed, id);
                self.directory_listed(before);
            }
            if self.walk.directories.placed.contains(&id) {
                // What was read besides belongs to others.
                self.walk.untagged(&recording);
                return Ok(());
            }
            self.directory_recorded(id, &recording)?;
        }
        Ok(())
    }

    /// Gives an object blocks in which several files are packed together.
    pub(super) fn attribute_packed(
        &mut self,
        id: ObjectNumber,
        recording: &Recording,
    ) -> Result<(), FoundError> {
        let placement = &mut self.walk.placement;
        for place in places(recording, &[], placement.layout.as_deref(), placement.legs) {
            let role = Role { flags: place.role.flags | PieceFlags::ENCODED, ..place.role };
            placement.add_piece(&mut self.found, id, &PlacedRange { role, ..place })?;
        }
        Ok(())
    }

    /// Compares a file's recording with its expected blocks.
    pub(super) fn file_recorded(
        &mut self,
        id: ObjectNumber,
        mut file: BatchFile,
        recording: Recording,
    ) -> Result<BatchFile, ChannelError> {
        file.is_placed_nowhere &= recording.is_empty();
        if file.is_system {
            let extents = file.extents.as_deref().unwrap_or_default();
            let whole = places_of(extents, self.walk.placement.layout.as_deref()).unwrap_or(recording);
            self.walk.placement.attribute(&mut self.found, id, &whole, extents)?;
            file.is_placed = true;
            return Ok(file);
        }
        let expectation = self.walk.expectation(&file);
        let is_reread = self.walk.batch.reread.contains(&id);
        let is_met = expectation.is_met_by(&recording, self.walk.placement.layout.as_deref(), is_reread);
        if !is_met && !is_reread {
            file.unexpected = Some(recording);
            return Ok(file);
        }
        if !is_met {
            self.note_mismatch()?;
            self.warnings.count_not_exact(&self.walk.context.device);
            self.found.mark(id, Marks::INEXACT);
        } else if self.walk.has_all_blocks(&file, &recording) {
            // The recording is verified.
        } else if matches!(expectation, Expectation::None | Expectation::SecondRead) {
            self.found.mark(id, Marks::UNVERIFIED);
        }
        if recording.is_changed() {
            self.warnings.count_rewritten(&self.walk.context.device);
            self.found.mark(id, Marks::INEXACT);
        }
        let recording = if is_met {
            expectation.share(recording, self.walk.placement.layout.as_deref())
        } else {
            recording
        };
        let extents = file.extents.as_deref().unwrap_or_default();
        self.walk.placement.attribute(&mut self.found, id, &recording, extents)?;
        file.unexpected = None;
        file.is_placed = true;
        Ok(file)
    }

    /// Finishes the files of the batch. A file that was not read as expected keeps what was read.
    pub(super) fn end_batch(&mut self) -> Result<(), ChannelError> {
        for (id, file) in std::mem::take(&mut self.walk.batch.files) {
            self.found.mark(id, file.marks(&self.walk.mounted));
            if file.is_link && file.is_placed_nowhere {
                self.found.mark(id, Marks::NO_BLOCKS | Marks::INLINE);
            }
            self.walk.note_inline(id, &file);
            self.walk.count_encrypted(&file);
            if file.unexpected.is_some() {
                self.warnings.count_not_exact(&self.walk.context.device);
                self.found.mark(id, Marks::INEXACT);
            }
            if file.is_placed {
                let past = self.walk.past_the_end(&file);
                let extents = file.extents.as_deref().unwrap_or_default();
                self.walk.placement.attribute_plain(&mut self.found, id, &past, extents)?;
            } else {
                // The unwritten extents of a file are known even if it was not read.
                let recording = file.unexpected.unwrap_or_default();
                let extents = file.extents.as_deref().unwrap_or_default();
                self.walk.placement.attribute(&mut self.found, id, &recording, extents)?;
            }
        }
        self.walk.batch.reread.clear();
        self.walk.batch.answer.clear();
        self.walk.extents_held = self.walk.directories.held();
        Ok(())
    }
}
