//! Encrypted files. Their objects have the encrypted names that the kernel shows without the key.
//! The agent asks for their extents without opening them; if it cannot, a warning counts them.

use super::batch::BatchFile;
use super::state::State;
use super::walk::Walk;
use super::{ChannelError, ObjectNumber};
use virt_bmap_map::{Cause, Marks};

impl Walk {
    /// Counts a file of a batch that ends, if it is encrypted.
    pub(super) fn count_encrypted(&mut self, file: &BatchFile) {
        self.encrypted.count += u64::from(file.is_encrypted);
        self.encrypted.unplaced +=
            u64::from(file.is_encrypted && file.extents.is_none() && file.allocated > 0);
    }
}

impl State {
    /// Marks a file as encrypted.
    pub(super) fn encrypted(&mut self, id: ObjectNumber) -> Result<(), ChannelError> {
        let Some(file) = self.walk.batch.files.get_mut(&id) else {
            return Err(ChannelError::Protocol("an encrypted object that is not in the batch"));
        };
        file.is_encrypted = true;
        self.found.mark(id, Marks::ENCRYPTED | Marks::ENCODED);
        Ok(())
    }

    /// Adds the warnings with their numbers, at the end of a walk.
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
