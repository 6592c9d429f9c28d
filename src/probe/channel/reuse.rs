//! Which files of a batch have to be read, and which are reused from the baseline.
//!
//! A reused file gets the expected blocks of its present extents, as if they had been read. The
//! baseline only takes the place of the spot check, because it has the same file in the same place,
//! so the map is the same as without a baseline.

use super::batch::BatchFile;
use super::state::State;
use super::walk::Walk;
use super::{ChannelError, ObjectNumber};
use crate::probe::baseline::{Baseline, FileStamps};
use crate::probe::expected::places;

impl Walk {
    /// Drops the baseline if it has another filesystem on this device.
    pub(super) fn compare_filesystem(&mut self) {
        let Some(filesystem) = self.filesystem else { return };
        let size = filesystem.blocks.saturating_mul(filesystem.block_size);
        let (device, kind) = (self.context.device.as_bytes(), &self.context.kind);
        let is_same =
            |baseline: &Baseline| baseline.has_filesystem(device, kind.name(), filesystem.block_size, size);
        if !self.context.baseline.as_deref().is_some_and(is_same) {
            self.context.baseline = None;
        }
    }
}

impl State {
    /// Reuses these files where possible; the reply names the others, which are to be read.
    pub(super) fn select_files(&mut self, ids: Vec<ObjectNumber>) -> Result<(), ChannelError> {
        if !ids.iter().all(|id| self.walk.batch.files.contains_key(id)) {
            return Err(ChannelError::Protocol("a question for an object that is not in the batch"));
        }
        let mut due = Vec::new();
        for id in ids {
            let Some(mut file) = self.walk.batch.files.remove(&id) else { continue };
            if !self.reuse(id, &mut file)? {
                due.push(id);
            }
            self.walk.batch.files.insert(id, file);
        }
        self.walk.batch.answer = due;
        Ok(())
    }

    /// Accepts a file's extents if the baseline has the file in the same place and with the same
    /// stamps.
    fn reuse(&mut self, id: ObjectNumber, file: &mut BatchFile) -> Result<bool, ChannelError> {
        if file.is_system || file.is_link || file.is_placed {
            return Ok(false);
        }
        let Some(expected) = self.walk.expected_blocks(file) else { return Ok(false) };
        let Some(baseline) = self.walk.context.baseline.as_deref() else { return Ok(false) };
        let extents = file.extents.as_deref().unwrap_or_default();
        let places =
            places(&expected, extents, self.walk.placement.layout.as_deref(), self.walk.placement.legs);
        let BatchFile { inode, size, modified, changed, .. } = *file;
        let stamps = FileStamps { inode, size, modified, changed };
        if !baseline.has_file(self.walk.context.device.as_bytes(), stamps, &places) {
            return Ok(false);
        }
        for place in &places {
            self.walk.placement.add_piece(&mut self.found, id, place)?;
        }
        self.snapshot.bytes += expected.bytes();
        self.reused += 1;
        file.is_placed = true;
        file.is_placed_nowhere &= expected.is_empty();
        Ok(true)
    }
}
