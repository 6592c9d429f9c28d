//! What the agent takes from the `$MFT` of NTFS: objects that are placed without being read, and the
//! state of the volume.

use super::state::State;
use super::walk::Walk;
use super::{ChannelError, ObjectNumber};
use virt_bmap_agent_protocol::record::{self, Extent};
use virt_bmap_map::{Cause, FileOperation, Kind, Marks};

impl State {
    /// Gives an object the extents that were sent for it.
    pub(super) fn placed(&mut self, id: ObjectNumber) -> Result<(), ChannelError> {
        self.in_walk(id)?;
        let file = self.walk.batch.files.remove(&id);
        let Walk { directories, placement, extents_held, .. } = &mut self.walk;
        let extents: &[Extent] = match &file {
            Some(file) => file.extents.as_deref().unwrap_or_default(),
            None => directories.extents(id),
        };
        *extents_held = extents_held.saturating_sub(extents.len());
        let is_placed = placement.place(&mut self.found, id, extents)?;
        let is_in_blocks = extents.iter().any(Extent::is_plain);
        if let Some(file) = file {
            let marks = file.marks(&self.walk.mounted);
            self.found.mark(id, marks);
            if file.is_link && !is_in_blocks {
                self.found.mark(id, Marks::NO_BLOCKS | Marks::INLINE);
            }
            // Nothing was read that could be compared with the extents.
            if self.found.kind_of(id) == Some(Kind::File) && !marks.contains(Marks::NO_BLOCKS) {
                self.found.mark(id, Marks::UNVERIFIED);
            }
            self.walk.note_inline(id, &file);
        } else {
            directories.known.remove(&id);
            directories.placed.insert(id);
        }
        if !is_placed {
            let path = self.found.path_of(id).unwrap_or_default().to_vec();
            let cause = Cause::FileFailed { operation: FileOperation::Extents, errno: None, offset: None };
            self.warnings.on_path(&self.walk.context.device, &path, cause);
        }
        Ok(())
    }

    /// Adds the warnings that follow from the state of the volume.
    pub(super) fn note_ntfs(&mut self, state: &record::Ntfs) {
        let record::Ntfs { is_hibernated, is_unclean, damaged } = *state;
        let causes = [
            is_hibernated.then_some(Cause::Hibernated),
            is_unclean.then_some(Cause::NotUnmounted),
            (damaged > 0).then_some(Cause::RecordsDamaged { count: damaged }),
        ];
        for cause in causes.into_iter().flatten() {
            self.warnings.on_device(&self.walk.context.device, cause);
        }
    }
}
