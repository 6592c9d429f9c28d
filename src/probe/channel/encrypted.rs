//! Files that their filesystem encrypts, without the key. They are objects under the names that the
//! kernel gives them then; where they lie is found out without opening them, or it is said that it
//! was not.

use super::batch::BatchFile;
use super::state::State;
use super::walk::Walk;
use super::{ChannelError, ObjectNumber};
use virt_bmap_map::{Cause, Marks};

impl Walk {
    /// Counts a file whose batch ends, if it is one of these.
    pub(super) fn count_encrypted(&mut self, file: &BatchFile) {
        self.encrypted.count += u64::from(file.is_encrypted);
        self.encrypted.unplaced +=
            u64::from(file.is_encrypted && file.extents.is_none() && file.allocated > 0);
    }
}

impl State {
    /// Takes in that a file is one of these.
    pub(super) fn encrypted(&mut self, id: ObjectNumber) -> Result<(), ChannelError> {
        let Some(file) = self.walk.batch.files.get_mut(&id) else {
            return Err(ChannelError::Protocol("an encrypted object that is no file of the batch"));
        };
        file.is_encrypted = true;
        self.found.mark(id, Marks::ENCRYPTED | Marks::ENCODED);
        Ok(())
    }

    /// Says how many there were, at the end of a walk.
    pub(super) fn note_encrypted(&mut self) {
        let (encrypted, lost) = (self.walk.encrypted.count, self.walk.encrypted.unplaced);
        let device = &self.walk.context.device;
        if lost > 0 {
            self.warnings.on_device(device, Cause::EncryptedFilesUnplaced { count: lost });
        }
        if encrypted > lost {
            self.warnings.on_device(device, Cause::EncryptedNames { count: encrypted - lost });
        }
    }
}
