//! What the channel keeps from one frame to the next, and the way of a record into it.

use super::walk::{MOST_CHUNKS, Walk};
use super::{ChannelError, ObjectNumber, Snapshot};
use crate::appliance::DeviceNumber;
use crate::probe::baseline::Items;
use crate::probe::found::Found;
use crate::probe::warnings::{Warnings, cause_of};
use crate::recorder::{Recorder, Recording};
use std::collections::{HashMap, HashSet};
use virt_bmap_agent_protocol::record::{self, ATTRIBUTES, Extent};
use virt_bmap_agent_protocol::{Ended, FsKind, Record, Unlocked, VERSION, frame};
use virt_bmap_map::{ReparseTag, Warning};

/// Most extents that are kept at a time: those of one batch of files and one directory.
const MOST_EXTENTS: usize = 1 << 24;

#[derive(Default)]
pub(super) struct State {
    pub(super) conversation: Conversation,
    pub(super) found: Found,
    pub(super) warnings: Warnings,
    /// How many files were reused, of all filesystems.
    pub(super) reused: u64,
    /// The state before the current walk, should that be forgotten.
    pub(super) before: BeforeWalk,
    /// What was read while the filesystem was mounted that will be walked.
    pub(super) mounting: Recording,
    pub(super) walk: Walk,
    pub(super) inodes: WalkedInodes,
    /// Items of a btrfs, while the agent sends them.
    pub(super) items: Option<Items>,
    pub(super) btrfs_members: HashSet<DeviceNumber>,
    /// Paths of devices in warnings, by the paths under which the agent opens them.
    pub(super) device_names: HashMap<String, String>,
    /// Recordings of proofs, by tag.
    pub(super) proofs: HashMap<u32, Recording>,
    pub(super) snapshot: Snapshot,
}

/// Where the exchange of messages is.
#[derive(Default)]
pub(super) struct Conversation {
    /// Sequence number of the next frame.
    pub(super) sequence: u32,
    /// The encoded task, as the agent reads it.
    pub(super) task: Vec<u8>,
    /// The beginning of a record whose end has not come yet.
    pub(super) stream: Vec<u8>,
    /// The agent has reported the end of its task.
    pub(super) done: bool,
    /// How an agent that stays has ended its task.
    pub(super) ended: Option<Ended>,
    /// How the last attempt to unlock a device ended.
    pub(super) unlocked: Option<Unlocked>,
    /// Why the conversation was ended.
    pub(super) error: Option<ChannelError>,
}

/// The state to which a walk may have to be taken back.
#[derive(Default)]
pub(super) struct BeforeWalk {
    pub(super) warnings: Warnings,
    pub(super) reused: u64,
}

/// Inodes of the filesystem that is being walked, or was walked last.
#[derive(Default)]
pub(super) struct WalkedInodes {
    /// Of files and directories.
    pub(super) all: Vec<u64>,
    /// Of the unsure directories among them.
    pub(super) unsure: Vec<u64>,
}

impl State {
    pub(super) fn frame(&mut self, bytes: &[u8], recorder: &Recorder) -> Result<(), ChannelError> {
        let payload = frame::open(bytes, self.conversation.sequence)?;
        self.conversation.sequence = self.conversation.sequence.wrapping_add(1);
        self.snapshot.frames += 1;
        let mut stream = std::mem::take(&mut self.conversation.stream);
        stream.extend_from_slice(payload);
        let mut used = 0;
        while let Some((record, length)) = Record::decode(&stream[used..])? {
            used += length;
            self.record(record, recorder)?;
        }
        stream.drain(..used);
        self.conversation.stream = stream;
        Ok(())
    }

    fn record(&mut self, record: Record, recorder: &Recorder) -> Result<(), ChannelError> {
        if let Record::Ended(ended) = record {
            self.conversation.ended = Some(ended);
            self.conversation.task = Vec::new();
            return Ok(());
        }
        if self.conversation.done {
            return Err(ChannelError::Protocol("a record after the end of the task"));
        }
        match record {
            Record::Hello { version: VERSION } => {}
            Record::Hello { version } => return Err(ChannelError::Version(version)),
            Record::Filesystem(filesystem) => {
                let used = filesystem.blocks.saturating_sub(filesystem.blocks_free);
                self.snapshot.bytes_expected = used.saturating_mul(filesystem.block_size);
                self.snapshot.objects_expected = filesystem.files.saturating_sub(filesystem.files_free);
                self.walk.placement.inputs.block = filesystem.block_size;
                self.walk.mounted = FsKind::from_magic(filesystem.magic).unwrap_or_default();
                self.walk.filesystem = Some(filesystem);
            }
            Record::Object(object) => self.object(&object)?,
            Record::Extents { id, extents } => self.extents(id, extents)?,
            Record::Link { id, parent, name } => {
                self.in_walk(id)?;
                self.in_walk(parent)?;
                let result = self.found.link(id, parent, &name);
                self.unless_too_long(result, parent, &name)?;
                self.snapshot.objects += 1;
            }
            Record::Known { id, parent, inode, name } => self.unchanged(id, parent, inode, &name)?,
            Record::Unsure { id } => {
                self.in_walk(id)?;
                self.inodes.unsure.extend(self.found.inode_of(id));
            }
            Record::Tag { id, reset } => self.tag(id, reset, recorder)?,
            Record::Series { ids } => self.begin_series(ids, recorder)?,
            Record::Listing { ids } => self.begin_listing(ids, recorder)?,
            Record::SelectFiles { ids } => self.select_files(ids)?,
            Record::BatchEnd => self.batch_end()?,
            Record::ReadFailure(failure) => self.read_failure(&failure)?,
            Record::Space { purpose, parts } => self.walk.space(purpose, &parts)?,
            Record::Done => self.conversation.done = true,
            Record::Ended(_) => {}
            Record::Packed => self.walk.batch.packed = Some(Recording::default()),
            Record::Shared { id } => self.shared(id)?,
            Record::Computed { id, beside } => self.computed(id, &beside)?,
            Record::Encrypted { id } => self.encrypted(id)?,
            Record::Chunk(chunk) => {
                self.before_the_root(self.walk.address_space.chunks.len())?;
                self.walk.address_space.chunks.push(chunk);
            }
            Record::Placed { id } => self.placed(id)?,
            Record::Reparse { id, tag } => {
                self.in_walk(id)?;
                self.found.reparse(id, ReparseTag(tag));
            }
            Record::Ntfs(state) => self.note_ntfs(&state),
            Record::Unlocked(unlocked) => self.conversation.unlocked = Some(unlocked),
            Record::Contradiction { parent, name } => {
                self.in_walk(parent)?;
                return Err(ChannelError::Contradiction(self.place(parent, &name)));
            }
            Record::Items { tree, items: bytes } => match &mut self.items {
                Some(items) => items.items(tree, &bytes),
                None => return Err(ChannelError::Protocol("items that were not asked for")),
            },
            Record::Member(member) if self.items.is_some() => {
                self.items.as_mut().into_iter().for_each(|items| items.member(member));
            }
            Record::Member(member) => {
                self.before_the_root(self.walk.address_space.members.len())?;
                self.btrfs_members.insert((member.major, member.minor));
                self.walk.address_space.members.push(member);
            }
        }
        Ok(())
    }

    /// Checks that a device or chunk may come now: before the root, and not more than
    /// [`MOST_CHUNKS`]; `held` of them are there.
    fn before_the_root(&self, held: usize) -> Result<(), ChannelError> {
        let is_in_turn = self.walk.first != 0 && self.found.next() == self.walk.first && held < MOST_CHUNKS;
        if is_in_turn { Ok(()) } else { Err(ChannelError::Protocol("a chunk out of turn")) }
    }

    /// Gives an object the packed blocks that were last read for another one.
    fn shared(&mut self, id: ObjectNumber) -> Result<(), ChannelError> {
        self.in_walk(id)?;
        let Some(last) = self.walk.batch.packed.clone() else {
            return Err(ChannelError::Protocol("shared blocks before any were read"));
        };
        Ok(self.attribute_packed(id, &last)?)
    }

    fn extents(&mut self, id: ObjectNumber, extents: Vec<Extent>) -> Result<(), ChannelError> {
        if id & ATTRIBUTES != 0 {
            self.in_walk(id & !ATTRIBUTES)?;
            let attributes = self.walk.placement.inputs.attributes.entry(id & !ATTRIBUTES).or_default();
            attributes.extents.extend(extents.iter().filter(|extent| extent.is_plain()));
            return Ok(());
        }
        self.in_walk(id)?;
        self.hold(extents.len())?;
        if let Some(file) = self.walk.batch.files.get_mut(&id) {
            file.extents.get_or_insert_default().extend(extents);
        } else {
            let known = self.walk.directories.known.entry(id).or_default();
            known.extents.get_or_insert_default().extend(extents);
        }
        Ok(())
    }

    /// Counts extents, or other parts of the device, that are kept until they are used.
    pub(super) fn hold(&mut self, count: usize) -> Result<(), ChannelError> {
        self.walk.extents_held += count;
        let is_too_many = self.walk.extents_held > MOST_EXTENTS;
        if is_too_many { Err(ChannelError::Protocol("too many extents")) } else { Ok(()) }
    }

    fn read_failure(&mut self, failure: &record::ReadFailure) -> Result<(), ChannelError> {
        // NTFS's own files in `$Extend` have only named streams, no data that could be opened.
        if self.walk.system.contains(&failure.parent) {
            return Ok(());
        }
        if self.walk.context.unchanged.as_ref().is_some_and(|known| !known.directories.is_empty()) {
            return Err(ChannelError::Damaged);
        }
        if self.walk.first == 0 {
            let known = std::str::from_utf8(&failure.name).ok().and_then(|name| self.device_names.get(name));
            let device = known.map_or(&failure.name[..], |name| name.as_bytes());
            self.warnings.push(Warning::on_device(device, cause_of(failure, false)));
        } else {
            let path = self.place(failure.parent, &failure.name);
            self.warnings.on_path(&self.walk.context.device, &path, cause_of(failure, true));
        }
        Ok(())
    }
}
