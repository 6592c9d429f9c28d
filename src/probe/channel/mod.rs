//! The host's end of the control disk: takes in what the agent says, and drives the recorder by it.
//!
//! The agent has mounted the file systems of a guest that may be hostile, so its word is checked: each
//! number, name, kind and count. What does not fit ends the conversation.

use super::found::{Found, FoundError, ObjectNumber};
use super::metadata::Remains;
use super::warnings::{Warnings, cause_of};
use crate::appliance::DeviceNumber;
use crate::recorder::{Recorder, Recording};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virt_bmap_agent_protocol::frame::{self, FrameError};
use virt_bmap_agent_protocol::record::{self, ATTRIBUTES, Extent, ObjectKind};
use virt_bmap_agent_protocol::{
    DecodeError, EncodeError, FsKind, REPLY_OFFSET, ReadOrder, Record, Reply, TASK_OFFSET, Task, VERSION,
    codec,
};
use virt_bmap_map::{Attributes, Cause, Filesystem, InodeDigests, Kind, Marks, Warning};

pub use context::WalkContext;
pub use known::Known;
use walk::{Expected, MOST_CHUNKS, Walk};

/// Tags from here on are no objects: what is read under them proves something.
pub const FIRST_PROOF: u32 = 1 << 31;

/// Most extents that are kept at a time: those of one batch of files and one directory.
const MOST_EXTENTS: usize = 1 << 24;

/// Most files of one batch. Small files that need no read pile up until the next tag.
const MOST_FILES: usize = 1 << 20;

/// The agent said something that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// A frame.
    #[error("the probe agent sent a malformed frame")]
    Frame(#[from] FrameError),
    /// A record.
    #[error("the probe agent sent a malformed record")]
    Record(#[from] DecodeError),
    /// What the agent is to do does not fit into a message.
    #[error("the probe agent cannot be told what to do")]
    Task(#[from] EncodeError),
    /// An agent of another version.
    #[error("the probe agent speaks version {0}, not {VERSION}")]
    Version(u16),
    /// The agent ended, and had not said that it was done.
    #[error("the probe agent ended before it was done")]
    Unfinished,
    /// A record that makes no sense where it came.
    #[error("the probe agent sent what makes no sense: {0}")]
    Nonsense(&'static str),
    /// An object that makes no sense.
    #[error("the probe agent described an impossible object")]
    Object(#[from] FoundError),
    /// Files do not lie where the kernel says, so those that were not read in full may be anywhere.
    #[error("files do not lie where the appliance's kernel says")]
    ExtentMismatch,
    /// Something cannot be examined, or is in two places, and what there is to be said of it may depend on what was come to first.
    #[error("the file system is damaged, and nothing of it is taken over from the earlier map")]
    Damaged,
}

/// Where the conversation is, for progress bars and against hangs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Frames taken in, and what else shows that something is being done.
    pub frames: u64,
    /// Directories and files of the current file system that were found.
    pub objects: u64,
    /// Bytes of them that were read.
    pub bytes: u64,
    /// How many objects there may be; 0: not known.
    pub objects_expected: u64,
    /// How many bytes there may be.
    pub bytes_expected: u64,
}

/// The host's end of the control disk.
pub struct Channel {
    recorder: Arc<Recorder>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sequence: u32,
    /// What the agent reads as its task.
    task: Vec<u8>,
    /// Bytes of a record that is not whole yet.
    stream: Vec<u8>,
    found: Found,
    warnings: Warnings,
    /// What they were before the current walk.
    warnings_before: Warnings,
    walk: Walk,
    btrfs_members: HashSet<DeviceNumber>,
    proofs: HashMap<u32, Recording>,
    /// Inodes of the files and directories of the file system that is being walked, or was last.
    inodes: Vec<u64>,
    /// Inodes of the directories among them of which the blocks do not tell all that is in them.
    unsure: Vec<u64>,
    snapshot: Snapshot,
    /// Files of all file systems that were taken over from an earlier map.
    taken_over: u64,
    /// How many before the current walk.
    taken_over_before: u64,
    done: bool,
    error: Option<ChannelError>,
}

impl Channel {
    /// A channel that drives `recorder`.
    pub fn new(recorder: Arc<Recorder>) -> Self {
        Self { recorder, state: Mutex::default() }
    }

    /// Takes in what was written to the control disk. When this returns, the recorder knows the tag.
    ///
    /// # Errors
    /// The first thing that makes no sense; nothing is taken in after that.
    pub fn frame(&self, bytes: &[u8]) -> Result<(), &'static str> {
        let mut state = self.state();
        if state.error.is_some() {
            return Err("the conversation has ended");
        }
        if let Err(error) = state.frame(bytes, &self.recorder) {
            tracing::warn!("{error}");
            state.error = Some(error);
            self.recorder.switch(None);
            return Err("the frame makes no sense");
        }
        Ok(())
    }

    /// Fills `buf` with what the agent reads at this offset of the control disk.
    ///
    /// # Errors
    /// If a reply does not fit into a message.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), EncodeError> {
        // All else reads as zeroes: the appliance's kernel looks for partitions.
        buf.fill(0);
        if offset == REPLY_OFFSET {
            let reply = codec::encode_area(&self.reply())?;
            let length = reply.len().min(buf.len());
            buf[..length].copy_from_slice(&reply[..length]);
        } else if let Some(into) = offset.checked_sub(TASK_OFFSET) {
            let state = self.state();
            let rest = usize::try_from(into).ok().and_then(|into| state.task.get(into..)).unwrap_or_default();
            let length = rest.len().min(buf.len());
            buf[..length].copy_from_slice(&rest[..length]);
        }
        Ok(())
    }

    /// The reply to the agent's last question.
    pub fn reply(&self) -> Reply {
        Reply { files: self.state().walk.answer.clone() }
    }

    /// Puts what the agent is to do on the control disk, until [`end`](Self::end).
    ///
    /// # Errors
    /// [`ChannelError::Task`] if it is too much for one message.
    pub fn hand_over(&self, task: &Task) -> Result<(), ChannelError> {
        self.state().task = codec::encode_area(task)?;
        Ok(())
    }

    /// Forgets what was read so far: what is read from now on is the mounting of the file system that will be
    /// walked.
    pub fn begin_mount(&self) {
        self.recorder.switch(None);
    }

    /// Prepares for a walk, and returns the numbers of the first frame and of the first object.
    pub fn begin_walk(&self, context: WalkContext) -> (u32, ObjectNumber) {
        let mut state = self.state();
        state.done = false;
        state.inodes.clear();
        state.unsure.clear();
        state.found.begin_filesystem(&context.device);
        state.warnings_before = state.warnings.clone();
        state.taken_over_before = state.taken_over;
        let first = state.found.next();
        let before = self.recorder.switch(None);
        let sample = match context.read_order() {
            ReadOrder::Ends(sample) => Some(sample),
            ReadOrder::Tags | ReadOrder::Series => None,
        };
        state.walk = Walk { context, first, sample, ..Walk::default() };
        state.walk.untagged(&before);
        state.snapshot = Snapshot { frames: state.snapshot.frames, ..Snapshot::default() };
        (state.sequence, first)
    }

    /// Prepares for tagged reads of devices, and returns the number of the first frame.
    pub fn begin_reads(&self) -> u32 {
        let mut state = self.state();
        state.done = false;
        state.walk = Walk::default();
        state.sequence
    }

    /// Ends a walk or reads, and returns what the metadata objects are made of. Whatever was read from here on
    /// belongs to nobody.
    ///
    /// # Errors
    /// What the agent said wrong, or that it ended without saying so.
    pub fn end(&self) -> Result<Remains, ChannelError> {
        self.recorder.end_series();
        let tag = self.recorder.tag();
        let rest = self.recorder.switch(None);
        let mut state = self.state();
        if tag.is_none() {
            state.walk.untagged(&rest);
        }
        state.stream.clear();
        state.task = Vec::new();
        state.note_filesystem();
        state.end_batch()?;
        state.note_encrypted();
        let remains = std::mem::take(&mut state.walk).remains;
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        if !state.done {
            return Err(ChannelError::Unfinished);
        }
        Ok(remains)
    }

    /// The inodes of the files and directories of the last walk.
    pub fn take_inodes(&self) -> Vec<u64> {
        std::mem::take(&mut self.state().inodes)
    }

    /// Those of them that are directories of which the blocks do not tell all that is in them.
    pub fn take_unsure(&self) -> Vec<u64> {
        std::mem::take(&mut self.state().unsure)
    }

    /// Notes that something is being done, though not by the agent.
    pub fn note_busy(&self) {
        self.state().snapshot.frames += 1;
    }

    /// Forgets what was found since [`begin_walk`](Self::begin_walk).
    pub fn forget_walk(&self) {
        let state = &mut *self.state();
        state.found.forget_filesystem();
        state.warnings = state.warnings_before.clone();
        state.taken_over = state.taken_over_before;
    }

    /// The devices of all btrfs file systems that were walked.
    pub fn btrfs_members(&self) -> HashSet<DeviceNumber> {
        self.state().btrfs_members.clone()
    }

    /// What was read under the tags from [`FIRST_PROOF`] on.
    pub fn take_proofs(&self) -> HashMap<u32, Recording> {
        std::mem::take(&mut self.state().proofs)
    }

    /// Lets `change` have the objects and the list of what could not be examined.
    pub fn with<T>(&self, change: impl FnOnce(&mut Found, &mut Warnings) -> T) -> T {
        let state = &mut *self.state();
        change(&mut state.found, &mut state.warnings)
    }

    /// Takes out the objects and the list of what could not be examined.
    pub fn take(&self) -> (Found, Warnings) {
        let mut state = self.state();
        (std::mem::take(&mut state.found), std::mem::take(&mut state.warnings))
    }

    /// How many files were taken over from an earlier map, and not read.
    pub fn taken_over(&self) -> u64 {
        self.state().taken_over
    }

    /// Where the conversation is.
    pub fn snapshot(&self) -> Snapshot {
        self.state().snapshot
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic half-way through a frame leaves an error behind at worst, no broken invariant that
        // anything unsafe rests on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn frame(&mut self, bytes: &[u8], recorder: &Recorder) -> Result<(), ChannelError> {
        let payload = frame::open(bytes, self.sequence)?;
        self.sequence = self.sequence.wrapping_add(1);
        self.snapshot.frames += 1;
        let mut stream = std::mem::take(&mut self.stream);
        stream.extend_from_slice(payload);
        let mut used = 0;
        while let Some((record, length)) = Record::decode(&stream[used..])? {
            used += length;
            self.record(record, recorder)?;
        }
        stream.drain(..used);
        self.stream = stream;
        Ok(())
    }

    fn record(&mut self, record: Record, recorder: &Recorder) -> Result<(), ChannelError> {
        if self.done {
            return Err(ChannelError::Nonsense("a record after the last"));
        }
        match record {
            Record::Hello { version: VERSION } => {}
            Record::Hello { version } => return Err(ChannelError::Version(version)),
            Record::Filesystem(filesystem) => {
                let used = filesystem.blocks.saturating_sub(filesystem.blocks_free);
                self.snapshot.bytes_expected = used.saturating_mul(filesystem.block_size);
                self.snapshot.objects_expected = filesystem.files.saturating_sub(filesystem.files_free);
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
            Record::Known { id, parent, inode, name } => self.known(id, parent, inode, &name)?,
            Record::Unsure { id } => {
                self.in_walk(id)?;
                self.unsure.extend(self.found.inode_of(id));
            }
            Record::Tag { id, reset } => self.tag(id, reset, recorder)?,
            Record::Series { ids } => self.begin_series(ids, recorder)?,
            Record::Listing { ids } => self.begin_listing(ids, recorder)?,
            Record::SelectFiles { ids } => self.select_files(ids)?,
            Record::BatchEnd => self.batch_end()?,
            Record::ReadFailure(failure) => self.read_failure(&failure)?,
            Record::Space { owner, pieces } => self.walk.space(owner, &pieces)?,
            Record::Done => self.done = true,
            Record::Packed => self.walk.packed = Some(Recording::default()),
            Record::Shared { id } => self.shared(id)?,
            Record::Encrypted { id } => self.encrypted(id)?,
            Record::Chunk(chunk) => {
                self.before_the_root(self.walk.chunks.len())?;
                self.walk.chunks.push(chunk);
            }
            Record::Member(member) => {
                self.before_the_root(self.walk.members.len())?;
                self.btrfs_members.insert((member.major, member.minor));
                self.walk.members.push(member);
            }
        }
        Ok(())
    }

    /// Whether one more of what describes the whole file system may come, `held` of which are there.
    fn before_the_root(&self, held: usize) -> Result<(), ChannelError> {
        let is_in_turn = self.walk.first != 0 && self.found.next() == self.walk.first && held < MOST_CHUNKS;
        if is_in_turn { Ok(()) } else { Err(ChannelError::Nonsense("a chunk out of turn")) }
    }

    /// Gives an object what was read last, for another.
    fn shared(&mut self, id: ObjectNumber) -> Result<(), ChannelError> {
        self.in_walk(id)?;
        let Some(last) = self.walk.packed.clone() else {
            return Err(ChannelError::Nonsense("a shared block where none was read"));
        };
        Ok(self.attribute_packed(id, &last)?)
    }

    fn object(&mut self, object: &record::Object) -> Result<(), ChannelError> {
        if self.walk.first == 0 || object.id != self.found.next() {
            return Err(ChannelError::Nonsense("an object out of turn"));
        }
        let is_root = object.id == self.walk.first;
        if !is_root {
            self.in_walk(object.parent)?;
        } else if object.kind != ObjectKind::Directory {
            return Err(ChannelError::Nonsense("a root that is no directory"));
        }
        if object.kind == ObjectKind::Directory {
            self.only_once(object.inode)?;
        }
        let is_system = self.walk.is_system(object);
        if is_root {
            self.walk.lay_out();
            self.walk.compare_filesystem();
            if self.walk.layout.is_none() && self.walk.mounted.facts().has_address_space {
                self.warnings.on_device(&self.walk.context.device, Cause::ChunksUnknown);
            }
        }
        let kind = match object.kind {
            _ if is_system => Kind::Metadata,
            ObjectKind::Directory => Kind::Directory,
            ObjectKind::File => Kind::File,
            ObjectKind::Symlink => Kind::Symlink,
        };
        if object.kind == ObjectKind::Directory && is_system {
            self.walk.system.insert(object.id);
        }
        let attributes = Attributes {
            inode: Some(object.inode),
            size: Some(object.size),
            links: Some(object.links),
            allocated: Some(object.allocated),
            mode: u16::try_from(object.mode).ok(),
            modified: Some(object.modified),
            changed: Some(object.changed),
            marks: Marks::empty(),
        };
        let parent = (!is_root).then_some(object.parent);
        let result = self.found.object(kind, parent, &object.name, attributes).map(drop);
        self.unless_too_long(result, object.parent, &object.name)?;
        if matches!(kind, Kind::File | Kind::Directory) {
            self.inodes.push(object.inode);
        }
        if object.kind != ObjectKind::Directory {
            let expected = Expected {
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
            self.walk.files.insert(object.id, expected);
            if self.walk.files.len() > MOST_FILES {
                return Err(ChannelError::Nonsense("a batch without end"));
            }
        }
        self.snapshot.objects += 1;
        Ok(())
    }

    /// Puts what is known of the file system that was walked into the map's header.
    fn note_filesystem(&mut self) {
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
            directories: counts.directories,
            files: counts.files,
            inodes: InodeDigests::new(),
        });
    }

    /// A path that is too long for a map is worth a warning, and does not end the walk.
    fn unless_too_long(
        &mut self,
        result: Result<(), FoundError>,
        parent: ObjectNumber,
        name: &[u8],
    ) -> Result<(), ChannelError> {
        match result {
            Err(FoundError::Build(error)) => {
                let path = self.place(parent, name);
                // The path itself is what is too long.
                let shown = &path[path.len().saturating_sub(64)..];
                let cause = Cause::Unmappable { error: error.to_string() };
                self.warnings.on_path(&self.walk.context.device, shown, cause);
                Ok(())
            }
            result => Ok(result?),
        }
    }

    fn extents(&mut self, id: ObjectNumber, extents: Vec<Extent>) -> Result<(), ChannelError> {
        if id & ATTRIBUTES != 0 {
            self.in_walk(id & !ATTRIBUTES)?;
            let attributes = self.walk.remains.attributes.entry(id & !ATTRIBUTES).or_default();
            attributes.extents.extend(extents.iter().filter(|extent| extent.is_plain()));
            return Ok(());
        }
        self.in_walk(id)?;
        self.walk.extents_held += extents.len();
        if self.walk.extents_held > MOST_EXTENTS {
            return Err(ChannelError::Nonsense("too many extents"));
        }
        if let Some(file) = self.walk.files.get_mut(&id) {
            file.extents.get_or_insert_default().extend(extents);
        } else {
            self.walk.directories.entry(id).or_default().extend(extents);
        }
        Ok(())
    }

    fn read_failure(&mut self, failure: &record::ReadFailure) -> Result<(), ChannelError> {
        // NTFS's own files in `$Extend` have no data that could be opened, only named streams.
        if self.walk.system.contains(&failure.parent) {
            return Ok(());
        }
        if self.walk.context.known.as_ref().is_some_and(|known| !known.directories.is_empty()) {
            return Err(ChannelError::Damaged);
        }
        if self.walk.first == 0 {
            self.warnings.push(Warning::on_device(&failure.name, cause_of(failure, false)));
        } else {
            let path = self.place(failure.parent, &failure.name);
            self.warnings.on_path(&self.walk.context.device, &path, cause_of(failure, true));
        }
        Ok(())
    }

    /// The path of a name in a directory, or of the directory itself, for messages.
    fn place(&self, parent: ObjectNumber, name: &[u8]) -> Vec<u8> {
        let directory = self.found.directory_path(parent).unwrap_or(b"...");
        match (directory, name) {
            (directory, b"") => directory.to_vec(),
            (b"/", name) => [b"/", name].concat(),
            (directory, name) => [directory, b"/", name].concat(),
        }
    }

    /// Whether this is an object of the file system being walked.
    fn in_walk(&self, id: ObjectNumber) -> Result<(), ChannelError> {
        let known = self.walk.first != 0 && (self.walk.first..self.found.next()).contains(&id);
        if known { Ok(()) } else { Err(ChannelError::Nonsense("an object of no file system")) }
    }
}

mod accept_extents;
mod context;
mod encrypted;
mod known;
mod listing;
mod metadata_inputs;
mod reads;
mod select_files;
mod series;
#[cfg(test)]
mod tests;
mod walk;
