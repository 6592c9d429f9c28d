//! Objects that the agent reports, on their way into the map.

use super::batch::BatchFile;
use super::state::State;
use super::{ChannelError, ObjectNumber};
use crate::probe::found::FoundError;
use virt_bmap_agent_protocol::DirectoryBlocks;
use virt_bmap_agent_protocol::record::{self, ObjectKind};
use virt_bmap_map::{Attributes, Cause, Filesystem, InodeDigests, Kind, Marks, Owner};

/// Most files of one batch. Small files that need no read pile up until the next tag.
const MOST_FILES: usize = 1 << 20;

impl State {
    pub(super) fn object(&mut self, object: &record::Object) -> Result<(), ChannelError> {
        if self.walk.first == 0 || object.id != self.found.next() {
            return Err(ChannelError::Protocol("an object out of turn"));
        }
        let is_root = object.id == self.walk.first;
        let is_orphan = !is_root && object.parent == 0;
        if is_orphan {
            check_part(&object.name)?;
        } else if !is_root {
            self.in_walk(object.parent)?;
        } else if object.kind != ObjectKind::Directory {
            return Err(ChannelError::Protocol("a root that is not a directory"));
        }
        if object.kind == ObjectKind::Directory {
            self.only_once(object.inode)?;
        }
        let is_system = self.walk.is_system(object);
        if is_root {
            self.walk.lay_out();
            self.walk.compare_filesystem();
            if self.walk.placement.layout.is_none() && self.walk.mounted.facts().has_address_space {
                self.warnings.on_device(&self.walk.context.device, Cause::ChunksUnknown);
            }
        }
        let kind = match object.kind {
            _ if is_system => Kind::Metadata,
            ObjectKind::Directory => Kind::Directory,
            ObjectKind::File => Kind::File,
            ObjectKind::Symlink => Kind::Symlink,
            ObjectKind::Metadata => Kind::Metadata,
        };
        if object.kind == ObjectKind::Directory && is_system {
            self.walk.system.insert(object.id);
        }
        let directory_blocks = self.walk.mounted.facts().directory_blocks;
        let is_shared = kind == Kind::Directory && directory_blocks == DirectoryBlocks::Shared;
        let attributes = Attributes {
            inode: Some(object.inode),
            size: Some(object.size),
            links: Some(object.links),
            allocated: Some(object.allocated),
            mode: u16::try_from(object.mode).ok(),
            modified: Some(object.modified),
            changed: Some(object.changed),
            marks: if is_shared { Marks::NO_BLOCKS | Marks::INLINE } else { Marks::empty() },
            reparse: None,
            owner: object.owner.map(|(user, group)| Owner { user, group }),
            // Nothing was made in 1970: some programs that write filesystems do not set the time.
            born: object.born.filter(|born| *born != 0),
        };
        let result = if is_orphan {
            self.found.orphan(kind, object.inode, &object.name, attributes).map(drop)
        } else {
            let parent = (!is_root).then_some(object.parent);
            self.found.object(kind, parent, &object.name, attributes).map(drop)
        };
        self.unless_too_long(result, object.parent, &object.name)?;
        if matches!(kind, Kind::File | Kind::Directory | Kind::Symlink) {
            self.inodes.all.push(object.inode);
        }
        if object.kind != ObjectKind::Directory {
            let expected = BatchFile {
                inode: object.inode,
                size: object.size,
                allocated: object.allocated,
                modified: object.modified,
                changed: object.changed,
                extents: None,
                is_placed: false,
                is_placed_nowhere: true,
                is_system,
                is_encrypted: false,
                is_link: object.kind == ObjectKind::Symlink,
                unexpected: None,
            };
            self.walk.batch.files.insert(object.id, expected);
            if self.walk.batch.files.len() > MOST_FILES {
                return Err(ChannelError::Protocol("too many files in a batch"));
            }
        }
        if object.kind == ObjectKind::Symlink && object.allocated > 0 && !self.found.keeps(kind) {
            // The map does not have the link, so its blocks must be found again in an update.
            self.inodes.unsure.extend(self.found.inode_of(object.parent));
        }
        self.snapshot.objects += 1;
        Ok(())
    }

    /// Puts the filesystem that was walked into the map's header.
    pub(super) fn note_filesystem(&mut self) {
        if self.walk.first == 0 {
            return;
        }
        let statfs = self.walk.filesystem;
        let bytes = |blocks: fn(&record::Filesystem) -> u64| {
            statfs.as_ref().map(|fs| blocks(fs).saturating_mul(fs.block_size))
        };
        let counts = self.found.filesystem_counts();
        self.found.header_mut().filesystems.push(Filesystem {
            device: self.walk.context.device.clone().into_bytes(),
            kind: self.walk.context.kind.name().to_owned(),
            block_size: statfs.map(|fs| fs.block_size),
            size: bytes(|fs| fs.blocks),
            free: bytes(|fs| fs.blocks_free),
            free_mapped: None,
            balance: None,
            directories: counts.directories,
            files: counts.files,
            inodes: InodeDigests::new(),
        });
    }

    /// Makes a warning of a path that is too long for a map: it does not end the walk.
    pub(super) fn unless_too_long(
        &mut self,
        result: Result<(), FoundError>,
        parent: ObjectNumber,
        name: &[u8],
    ) -> Result<(), ChannelError> {
        match result {
            Err(FoundError::Build(error)) => {
                let path = self.place(parent, name);
                // The path itself is too long.
                let shown = &path[path.len().saturating_sub(64)..];
                let cause = Cause::Unmappable { error: error.to_string() };
                self.warnings.on_path(&self.walk.context.device, shown, cause);
                Ok(())
            }
            result => Ok(result?),
        }
    }

    /// The path of a name in a directory, or of the directory itself, for messages.
    pub(super) fn place(&self, parent: ObjectNumber, name: &[u8]) -> Vec<u8> {
        let directory = self.found.directory_path(parent).unwrap_or(b"...");
        match (directory, name) {
            (directory, b"") => directory.to_vec(),
            (b"/", name) => [b"/", name].concat(),
            (directory, name) => [directory, b"/", name].concat(),
        }
    }

    /// Checks that this is an object of the filesystem being walked.
    pub(super) fn in_walk(&self, id: ObjectNumber) -> Result<(), ChannelError> {
        let known = self.walk.first != 0 && (self.walk.first..self.found.next()).contains(&id);
        if known { Ok(()) } else { Err(ChannelError::Protocol("an object outside of the filesystem")) }
    }
}

/// Checks what follows the name of an orphaned inode: nothing, a stream or metadata in brackets.
fn check_part(name: &[u8]) -> Result<(), ChannelError> {
    let is_part = matches!(name, [] | [b':', ..] | [b' ', b'[', ..]);
    let is_path = name.iter().any(|byte| matches!(byte, b'/' | 0));
    if is_part && !is_path { Ok(()) } else { Err(ChannelError::Protocol("an orphan with a name")) }
}
