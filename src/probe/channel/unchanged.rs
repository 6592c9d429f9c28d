//! Unchanged objects. For a file with an unchanged inode the agent sends only its name, and it does
//! not list an unchanged directory at all; everything else is reused from the baseline.

use super::state::State;
use super::{ChannelError, ObjectNumber};
use crate::probe::baseline::{Directory, UnchangedObjects};
use virt_bmap_map::{Kind, Object, PieceFlags};

impl State {
    /// Reuses an unchanged file or directory that the agent has found.
    pub(super) fn unchanged(
        &mut self,
        id: ObjectNumber,
        parent: ObjectNumber,
        inode: u64,
        name: &[u8],
    ) -> Result<(), ChannelError> {
        if id != self.found.next() {
            return Err(ChannelError::Protocol("an unchanged object out of turn"));
        }
        self.in_walk(parent)?;
        let Some(unchanged) = self.walk.context.unchanged.clone() else {
            return Err(ChannelError::Protocol("an unchanged object in a walk without a baseline"));
        };
        if let Some(file) = unchanged.files.get(&inode) {
            self.unchanged_object(unchanged.baseline.object(*file), parent, name).map(drop)
        } else if let Some(directory) = unchanged.directories.get(inode) {
            self.unchanged_directory(&unchanged, directory, parent, name)
        } else {
            Err(ChannelError::Protocol("an unchanged object that is not in the baseline"))
        }
    }

    /// Reuses a directory with the unchanged objects in it and below it.
    fn unchanged_directory(
        &mut self,
        unchanged: &UnchangedObjects,
        directory: &Directory,
        parent: ObjectNumber,
        name: &[u8],
    ) -> Result<(), ChannelError> {
        let object = |id| unchanged.baseline.object(id);
        let mut waiting = vec![(directory, parent, name)];
        while let Some((directory, parent, name)) = waiting.pop() {
            let id = self.unchanged_object(object(directory.id), parent, name)?;
            for file in directory.files.iter().map(|file| object(*file)) {
                self.unchanged_object(file, id, own_name(file))?;
            }
            let below = directory.directories.iter().filter_map(|inode| unchanged.directories.get(*inode));
            waiting.extend(below.map(|below| (below, id, own_name(object(below.id)))));
        }
        Ok(())
    }

    /// Reuses a file, a directory or a symbolic link.
    fn unchanged_object(
        &mut self,
        object: Object<'_>,
        parent: ObjectNumber,
        name: &[u8],
    ) -> Result<ObjectNumber, ChannelError> {
        let (id, attributes) = (self.found.next(), object.attributes());
        if let (Kind::Directory, Some(inode)) = (object.kind(), attributes.inode) {
            self.only_once(inode)?;
        }
        let result = self.found.object(object.kind(), Some(parent), name, attributes);
        self.unless_too_long(result.map(drop), parent, name)?;
        for piece in object.pieces() {
            self.snapshot.bytes += piece.range.len();
            if !piece.role.flags.contains(PieceFlags::INLINE) {
                self.walk.placement.inputs.owned.insert(piece.disk, piece.range);
            }
            self.found.range(id, piece.disk, piece.range, piece.file_offset, piece.role)?;
        }
        self.inodes.all.extend(attributes.inode);
        self.snapshot.objects += 1;
        self.reused += u64::from(object.kind() == Kind::File);
        Ok(id)
    }

    /// Checks that a directory is found only once: in a damaged filesystem a reused directory may
    /// lie in another one as well.
    pub(super) fn only_once(&mut self, inode: u64) -> Result<(), ChannelError> {
        let is_new = self.walk.context.unchanged.is_none() || self.walk.seen_directories.insert(inode);
        if is_new { Ok(()) } else { Err(ChannelError::Damaged) }
    }
}

/// The name that an object has in its directory.
fn own_name(object: Object<'_>) -> &[u8] {
    object.name().in_directory().map_or(b"", |(_, name)| name)
}
