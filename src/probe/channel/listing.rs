//! Directories that are listed in batches, and the attribution of their reads.
//!
//! No two directories share blocks, and the agent has sent their extents before, so a read belongs
//! to the directory in whose blocks it lies.

use super::state::State;
use super::{ChannelError, ObjectNumber};
use crate::recorder::{Recorder, Recording};
use std::collections::HashMap;
use virt_bmap_ranges::{DeviceOffset, DiskNumber, DiskRange, Range};

impl State {
    pub(super) fn begin_listing(
        &mut self,
        ids: Vec<ObjectNumber>,
        recorder: &Recorder,
    ) -> Result<(), ChannelError> {
        let is_told = |id: &ObjectNumber| {
            self.walk.directories.known.get(id).is_some_and(|known| known.extents.is_some())
        };
        if self.walk.placement.layout.is_none() || !ids.iter().all(is_told) {
            return Err(ChannelError::Protocol("a listing of a directory without extents"));
        }
        self.tag(0, false, recorder)?;
        recorder.begin_series();
        self.walk.directories.listing = ids;
        Ok(())
    }

    /// Gives each directory its reads. Other reads are of metadata.
    pub(super) fn end_listing(&mut self, reads: &[(DiskNumber, DiskRange)]) -> Result<(), ChannelError> {
        let ids = std::mem::take(&mut self.walk.directories.listing);
        let mut blocks: Vec<(Range<DeviceOffset>, ObjectNumber)> = Vec::new();
        for id in &ids {
            for extent in self.walk.directories.extents(*id) {
                blocks.extend(
                    Range::at(DeviceOffset(extent.physical), extent.length).map(|range| (range, *id)),
                );
            }
        }
        blocks.sort_unstable();
        let mut recordings: HashMap<ObjectNumber, Recording> = HashMap::new();
        for &(disk, range) in reads {
            let read = Recording::from_iter([(disk, range)]);
            let Some((layout, on_device)) = self
                .walk
                .placement
                .layout
                .as_deref()
                .and_then(|layout| Some((layout, layout.to_device(&read)?)))
            else {
                continue;
            };
            // Reads of neighbouring blocks may have been merged.
            for on_device in on_device.iter() {
                let first = blocks.partition_point(|(block, _)| block.end <= on_device.start);
                for (block, id) in &blocks[first..] {
                    let Some(part) = block.intersection(on_device) else { break };
                    let places = layout.part(part).unwrap_or_default();
                    let there = places.iter().filter(|place| place.disk == disk);
                    let there = there.filter_map(|place| place.disk_range().intersection(range));
                    recordings.entry(*id).or_default().extend(there.map(|range| (disk, range)));
                }
            }
        }
        let mut listed = Recording::default();
        // The rest of a page may be a directory's that is listed later, and then without a read.
        self.walk.directories.read.extend(reads.iter().copied());
        for id in ids {
            let recording = recordings.remove(&id).unwrap_or_default();
            listed.extend(recording.iter());
            self.snapshot.bytes += recording.bytes();
            self.directory_recorded(id, &recording)?;
            self.directory_listed(id);
        }
        let others = reads.iter().copied().collect::<Recording>().difference(&listed);
        self.walk.untagged(&others);
        Ok(())
    }
}
