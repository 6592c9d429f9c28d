//! Files that need not be looked at, because their inodes are as they were when an earlier map was made: the agent tells
//! only their names, and all else is taken over from that map.

use super::{ChannelError, LONGEST_NAME, ObjectNumber, State};
use crate::bmap::{Kind, ObjectId};
use crate::probe::former::Former;
use std::collections::HashMap;
use std::sync::Arc;

/// Such files.
pub struct Known {
    /// The earlier map.
    pub former: Arc<Former>,
    /// What they are in that map, by their inodes.
    pub files: HashMap<u64, ObjectId>,
}

impl State {
    /// Takes in that such a file has been found.
    pub(super) fn known(
        &mut self,
        id: ObjectNumber,
        parent: ObjectNumber,
        inode: u64,
        name: &[u8],
    ) -> Result<(), ChannelError> {
        if id != self.found.next() || name.len() > LONGEST_NAME {
            return Err(ChannelError::Nonsense("a file that is known, out of turn"));
        }
        self.in_walk(parent)?;
        let Some(known) = self.walk.context.known.clone() else {
            return Err(ChannelError::Nonsense("a file that is known, where none is"));
        };
        let Some(object) = known.files.get(&inode).map(|file| known.former.file(*file)) else {
            return Err(ChannelError::Nonsense("a file that is known, and is not"));
        };
        let result = self.found.object(Kind::File, Some(parent), name, object.attributes());
        self.unless_too_long(result.map(drop), parent, name)?;
        for piece in object.pieces() {
            self.snapshot.bytes += piece.range.len();
            self.found.range(id, piece.disk, piece.range, piece.file_offset, piece.role)?;
        }
        self.inodes.push(inode);
        self.snapshot.objects += 1;
        self.taken_over += 1;
        Ok(())
    }
}
