//! Directories that are listed in batches: which of the reads are whose.
//!
//! A directory's blocks are its own alone, and where they lie has been told before, so a read is the directory's
//! in whose blocks it lies.

use super::{ChannelError, ObjectNumber, State, Walk, attribute};
use crate::range::{DeviceOffset, DiskRange, Range};
use crate::recorder::{DiskNumber, Recorder, Recording};
use std::collections::HashMap;
use virt_bmap_agent::Verdict;
use virt_bmap_agent::record::Extent;

impl State {
    pub(super) fn begin_listing(
        &mut self,
        ids: Vec<ObjectNumber>,
        recorder: &Recorder,
    ) -> Result<(), ChannelError> {
        let is_told = |id: &ObjectNumber| self.walk.directories.contains_key(id);
        if ids.len() > Verdict::CAPACITY || !ids.iter().all(is_told) || self.walk.layout.is_none() {
            return Err(ChannelError::Nonsense("a listing of what is no directory of known place"));
        }
        self.tag(0, false, recorder)?;
        recorder.begin_series();
        self.walk.listing = ids;
        Ok(())
    }

    /// Gives each directory its reads. What is nobody's is the file system's.
    pub(super) fn end_listing(&mut self, reads: &[(DiskNumber, DiskRange)]) -> Result<(), ChannelError> {
        let ids = std::mem::take(&mut self.walk.listing);
        let mut blocks: Vec<(Range<DeviceOffset>, ObjectNumber)> = Vec::new();
        for id in &ids {
            for extent in self.walk.directories.get(id).into_iter().flatten() {
                blocks.extend(
                    Range::at(DeviceOffset(extent.physical), extent.length).map(|range| (range, *id)),
                );
            }
        }
        blocks.sort_unstable();
        let owner = |walk: &Walk, read: (DiskNumber, DiskRange)| {
            let on_device = walk.layout.as_ref()?.to_device(&Recording::from_iter([read]))?;
            let range = on_device.iter().next()?;
            let next = blocks.partition_point(|(block, _)| block.start <= range.start);
            let (block, id) = blocks.get(next.checked_sub(1)?)?;
            on_device.iter().all(|range| block.contains(range)).then_some(*id)
        };
        let mut recordings: HashMap<ObjectNumber, Recording> = HashMap::new();
        let mut rest = Recording::default();
        for read in reads {
            let recording = match owner(&self.walk, *read) {
                Some(id) => recordings.entry(id).or_default(),
                None => &mut rest,
            };
            recording.insert(read.0, read.1);
        }
        self.walk.untagged(&rest);
        for id in ids {
            let recording = recordings.remove(&id).unwrap_or_default();
            self.snapshot.bytes += recording.bytes();
            let Walk { directories, context, layout, remains, .. } = &mut self.walk;
            let extents: &[Extent] = directories.get(&id).map_or(&[], Vec::as_slice);
            attribute(&mut self.found, id, &recording, extents, layout.as_deref(), context, remains)?;
            self.walk.forget_directory(id);
        }
        Ok(())
    }
}
