//! The host's end of the control disk: takes in the agent's records and drives the recorder.
//!
//! The agent has mounted the filesystems of a guest that may be hostile. Each number, name, kind
//! and count that it sends is therefore checked, and the first violation of the protocol ends the
//! conversation.
//!
//! ```text
//! Channel ─► state (one frame, one record at a time) ─┬─► objects, unchanged, encrypted
//!                                                     ├─► reads ─► series, accept_extents, reuse
//!                                                     ├─► listing ─► directories
//!                                                     └─► ntfs
//!                                    all of these ─► walk ─► batch, placement ─► metadata_inputs
//! ```

mod accept_extents;
mod batch;
mod context;
mod directories;
mod encrypted;
mod error;
mod listing;
mod metadata_inputs;
mod ntfs;
mod objects;
mod placement;
mod reads;
mod reuse;
mod series;
mod state;
#[cfg(test)]
mod tests;
mod unchanged;
mod walk;

pub use context::WalkContext;
pub use error::ChannelError;
pub(super) use metadata_inputs::Inline;
pub use metadata_inputs::MetadataInputs;

use super::baseline::Items;
use super::found::{Found, ObjectNumber};
use super::warnings::Warnings;
use crate::appliance::DeviceNumber;
use crate::recorder::{Recorder, Recording};
use placement::Placement;
use state::State;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use virt_bmap_agent_protocol::{
    EncodeError, Ended, REPLY_OFFSET, ReadOrder, Reply, TASK_OFFSET, Task, Unlocked, codec, wipe,
};
use walk::{SpotChecks, Walk};

/// Tags from here on belong to proofs, not to objects.
pub const FIRST_PROOF: u32 = 1 << 31;

/// Progress of the conversation, for progress output and the watchdog.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Counts frames and other signs of life.
    pub frames: u64,
    /// Directories and files of the current filesystem that were found.
    pub objects: u64,
    /// Bytes of these that were read.
    pub bytes: u64,
    /// How many objects there may be; 0: unknown.
    pub objects_expected: u64,
    /// How many bytes there may be.
    pub bytes_expected: u64,
}

/// The host's end of the control disk.
pub struct Channel {
    recorder: Arc<Recorder>,
    state: Mutex<State>,
    /// Notified when an agent that stays has ended its task, or the conversation has ended.
    ended: Condvar,
}

/// What came of waiting for the end of a task.
#[derive(Debug)]
pub(super) enum Waited {
    /// The end.
    Ended(Ended),
    /// The agent has broken the protocol; it does not go on.
    Broken,
    /// Nothing in this time.
    NotYet,
}

impl Channel {
    /// A channel that drives `recorder`.
    pub fn new(recorder: Arc<Recorder>) -> Self {
        Self { recorder, state: Mutex::default(), ended: Condvar::new() }
    }

    /// Takes in a frame that was written to the control disk. When this returns, the recorder has
    /// the new tag.
    ///
    /// # Errors
    /// If the frame breaks the protocol, or an earlier frame did.
    pub fn frame(&self, bytes: &[u8]) -> Result<(), &'static str> {
        let mut state = self.state();
        if state.conversation.error.is_some() {
            return Err("the conversation with the agent has ended");
        }
        if let Err(error) = state.frame(bytes, &self.recorder) {
            tracing::warn!("{error}");
            state.conversation.error = Some(error);
            self.recorder.switch(None);
            self.ended.notify_all();
            return Err("the frame breaks the protocol");
        }
        if state.conversation.ended.is_some() {
            self.ended.notify_all();
        }
        Ok(())
    }

    /// Fills `buf` with the content of the control disk at this offset.
    ///
    /// # Errors
    /// If a reply does not fit into a message.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), EncodeError> {
        // Everything else is zeroes: the appliance's kernel looks for partitions there.
        buf.fill(0);
        if offset == REPLY_OFFSET {
            let reply = codec::encode_area(&self.reply())?;
            let length = reply.len().min(buf.len());
            buf[..length].copy_from_slice(&reply[..length]);
        } else if let Some(into) = offset.checked_sub(TASK_OFFSET) {
            let state = self.state();
            let rest = usize::try_from(into)
                .ok()
                .and_then(|into| state.conversation.task.get(into..))
                .unwrap_or_default();
            let length = rest.len().min(buf.len());
            buf[..length].copy_from_slice(&rest[..length]);
        }
        Ok(())
    }

    /// The reply to the agent's last question.
    pub fn reply(&self) -> Reply {
        Reply { files: self.state().walk.batch.answer.clone() }
    }

    /// Puts the agent's task on the control disk, until [`end`](Self::end).
    ///
    /// # Errors
    /// [`ChannelError::Task`] if it is too large.
    pub fn hand_over(&self, task: &Task) -> Result<(), ChannelError> {
        let mut state = self.state();
        state.conversation.ended = None;
        state.conversation.task = codec::encode_area(task)?;
        Ok(())
    }

    /// Number of the next frame.
    pub fn sequence(&self) -> u32 {
        self.state().conversation.sequence
    }

    /// Waits at most so long until an agent that stays has ended its task.
    pub(super) fn wait_for_end(&self, time: Duration) -> Waited {
        let is_going_on =
            |state: &mut State| state.conversation.ended.is_none() && state.conversation.error.is_none();
        let waited = self.ended.wait_timeout_while(self.state(), time, is_going_on);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match state.conversation.ended.take() {
            Some(ended) => Waited::Ended(ended),
            None if state.conversation.error.is_some() => Waited::Broken,
            None => Waited::NotYet,
        }
    }

    /// Forgets what earlier surveys have found of the devices.
    pub fn begin_survey(&self) {
        self.recorder.ignore_nothing();
        let state = &mut *self.state();
        state.btrfs_members.clear();
        state.proofs.clear();
        state.device_names.clear();
    }

    /// From now on does not record reads of these places: see [`Recorder::ignore`].
    pub fn ignore(&self, places: &Recording) {
        self.recorder.ignore(places);
    }

    /// Forgets earlier reads: the following ones are those of mounting the filesystem that will be
    /// walked.
    pub fn begin_mount(&self) {
        self.recorder.switch(None);
        self.state().mounting = Recording::default();
    }

    /// Notes that the filesystem has been mounted: what is read from now on, until the walk begins,
    /// is read by this program for itself.
    pub fn end_mount(&self) {
        let read = self.recorder.switch(None);
        self.state().mounting.extend(read.iter());
    }

    /// Prepares for a walk, and returns the numbers of the first frame and of the first object.
    pub fn begin_walk(&self, context: WalkContext) -> (u32, ObjectNumber) {
        let mut state = self.state();
        state.conversation.done = false;
        state.inodes.all.clear();
        state.inodes.unsure.clear();
        state.found.begin_filesystem(&context.device);
        state.before.warnings = state.warnings.clone();
        state.before.reused = state.reused;
        let first = state.found.next();
        self.recorder.switch(None);
        let before = std::mem::take(&mut state.mounting);
        let sample = match context.read_order() {
            ReadOrder::Ends(sample) => Some(sample),
            ReadOrder::Tags | ReadOrder::Series => None,
        };
        let placement = Placement { legs: context.legs, ..Placement::default() };
        let spot_checks = SpotChecks { sample, mismatches: 0 };
        state.walk = Walk { context, first, placement, spot_checks, ..Walk::default() };
        state.walk.untagged(&before);
        state.snapshot = Snapshot { frames: state.snapshot.frames, ..Snapshot::default() };
        (state.conversation.sequence, first)
    }

    /// States the devices' paths in warnings, by the paths under which the agent opens them.
    pub fn name_devices(&self, names: HashMap<String, String>) {
        self.state().device_names = names;
    }

    /// Prepares for tagged reads of devices, or for unlocking one, and returns the number of the
    /// first frame.
    pub fn begin_reads(&self) -> u32 {
        let mut state = self.state();
        state.conversation.done = false;
        state.walk = Walk::default();
        state.conversation.sequence
    }

    /// Prepares for the items of a btrfs, and returns the number of the first frame. What mounting
    /// has read stays noted.
    pub(super) fn begin_items(&self, items: Items) -> u32 {
        let mut state = self.state();
        state.conversation.done = false;
        state.walk = Walk::default();
        state.items = Some(items);
        state.conversation.sequence
    }

    /// Takes the items out.
    ///
    /// # Errors
    /// How the agent broke the protocol, or that it ended before its task was done.
    pub(super) fn end_items(&self) -> Result<Items, ChannelError> {
        let mut state = self.state();
        state.conversation.stream.clear();
        state.conversation.task = Vec::new();
        let items = state.items.take();
        if let Some(error) = state.conversation.error.take() {
            return Err(error);
        }
        items.filter(|_| state.conversation.done).ok_or(ChannelError::Unfinished)
    }

    /// Ends a walk or device reads, and returns the inputs of the metadata objects. Later reads
    /// belong to no object.
    ///
    /// # Errors
    /// How the agent broke the protocol, or that it ended before its task was done.
    pub fn end(&self) -> Result<MetadataInputs, ChannelError> {
        self.recorder.end_series();
        let tag = self.recorder.tag();
        let rest = self.recorder.switch(None);
        let mut state = self.state();
        if tag.is_none() {
            state.walk.untagged(&rest);
        }
        state.conversation.stream.clear();
        // It may have held a key.
        wipe(&mut state.conversation.task);
        state.conversation.task = Vec::new();
        state.note_filesystem();
        state.end_batch()?;
        state.end_directories();
        state.note_encrypted();
        let inputs = std::mem::take(&mut state.walk).placement.inputs;
        if let Some(error) = state.conversation.error.take() {
            return Err(error);
        }
        if !state.conversation.done {
            return Err(ChannelError::Unfinished);
        }
        Ok(inputs)
    }

    /// How the last attempt to unlock a device ended.
    ///
    /// # Errors
    /// [`ChannelError::Protocol`] if the agent has not said.
    pub fn take_unlocked(&self) -> Result<Unlocked, ChannelError> {
        let unlocked = self.state().conversation.unlocked.take();
        unlocked.ok_or(ChannelError::Protocol("no word of the device to unlock"))
    }

    /// The inodes of the files and directories of the last walk, and of its unsure directories.
    pub fn take_inodes(&self) -> (Vec<u64>, Vec<u64>) {
        let inodes = std::mem::take(&mut self.state().inodes);
        (inodes.all, inodes.unsure)
    }

    /// Notes a sign of life of the host.
    pub fn note_busy(&self) {
        self.state().snapshot.frames += 1;
    }

    /// Forgets everything that was found since [`begin_walk`](Self::begin_walk).
    pub fn forget_walk(&self) {
        let state = &mut *self.state();
        state.found.forget_filesystem();
        state.warnings = state.before.warnings.clone();
        state.reused = state.before.reused;
    }

    /// The devices of all btrfs filesystems that were walked.
    pub fn btrfs_members(&self) -> HashSet<DeviceNumber> {
        self.state().btrfs_members.clone()
    }

    /// The recordings under tags from [`FIRST_PROOF`] on.
    pub fn take_proofs(&self) -> HashMap<u32, Recording> {
        std::mem::take(&mut self.state().proofs)
    }

    /// Calls `change` with the objects and the warnings.
    pub fn with<T>(&self, change: impl FnOnce(&mut Found, &mut Warnings) -> T) -> T {
        let state = &mut *self.state();
        change(&mut state.found, &mut state.warnings)
    }

    /// Takes out the objects and the warnings.
    pub fn take(&self) -> (Found, Warnings) {
        let mut state = self.state();
        (std::mem::take(&mut state.found), std::mem::take(&mut state.warnings))
    }

    /// How many files were reused from the baseline, and not read.
    pub fn reused(&self) -> u64 {
        self.state().reused
    }

    /// The progress so far.
    pub fn snapshot(&self) -> Snapshot {
        self.state().snapshot
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No invariant that unsafe code depends on spans several statements, so a poisoned lock is
        // usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
