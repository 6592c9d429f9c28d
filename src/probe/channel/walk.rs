//! The filesystem that is being walked: what the agent has reported of it, and what is still due.

use super::WalkContext;
use super::batch::{Batch, BatchFile};
use super::directories::Directories;
use super::placement::Placement;
use crate::probe::expected::Expectation;
use crate::probe::found::ObjectNumber;
use crate::probe::layout::address_space;
use crate::recorder::Recording;
use std::collections::HashSet;
use std::sync::Arc;
use virt_bmap_agent_protocol::record;
use virt_bmap_agent_protocol::{FsKind, Sample};
use virt_bmap_ranges::{DeviceOffset, Range};

/// Most chunks and devices of a btrfs.
pub(super) const MOST_CHUNKS: usize = 1 << 20;

/// The filesystem being walked.
#[derive(Default)]
pub(super) struct Walk {
    pub(super) context: WalkContext,
    /// Number of its root; 0 between walks.
    pub(super) first: ObjectNumber,
    /// Its `statfs(2)`.
    pub(super) filesystem: Option<record::Filesystem>,
    /// Its type by the magic number in that.
    pub(super) mounted: FsKind,
    pub(super) placement: Placement,
    pub(super) batch: Batch,
    pub(super) directories: Directories,
    /// How many extents the batch and the directories hold.
    pub(super) extents_held: usize,
    pub(super) spot_checks: SpotChecks,
    pub(super) encrypted: EncryptedFiles,
    /// Directories of the filesystem's own files (`$Extend` of NTFS).
    pub(super) system: HashSet<ObjectNumber>,
    /// Inodes of all directories so far, if unchanged objects are reused.
    pub(super) seen_directories: HashSet<u64>,
    pub(super) address_space: AddressSpace,
}

/// Spot checks of extents.
#[derive(Default)]
pub(super) struct SpotChecks {
    /// Which files get one; `None` if each file is read in full.
    pub(super) sample: Option<Sample>,
    /// Extent mismatches so far, each counted as often as the sample makes it count.
    pub(super) mismatches: u64,
}

/// Counts of encrypted files.
#[derive(Default)]
pub(super) struct EncryptedFiles {
    pub(super) count: u64,
    /// Those of them whose place is unknown.
    pub(super) unplaced: u64,
}

/// The devices and chunks of a btrfs, until its layout is made of them.
#[derive(Default)]
pub(super) struct AddressSpace {
    pub(super) members: Vec<record::Member>,
    pub(super) chunks: Vec<record::Chunk>,
}

impl Walk {
    /// Chooses the layout that the extents refer to, when all chunks and devices are known.
    pub(super) fn lay_out(&mut self) {
        if !self.mounted.facts().has_address_space {
            self.placement.layout = self.context.layout.clone();
            return;
        }
        let (members, chunks) =
            (std::mem::take(&mut self.address_space.members), std::mem::take(&mut self.address_space.chunks));
        self.placement.layout = address_space(&members, &chunks, &self.context.devices).map(Arc::new);
        let devices =
            members.iter().filter_map(|member| self.context.devices.get(&(member.major, member.minor)));
        self.placement.inputs.members = devices.cloned().collect();
        self.placement.inputs.address_space = self.placement.layout.clone();
    }

    /// Whether all blocks of a link, or of a compressed file, were read: nothing says where they are,
    /// but how many there are.
    pub(super) fn has_all_blocks(&self, file: &BatchFile, recording: &Recording) -> bool {
        (file.is_link || self.mounted.facts().states_encoded_size) && recording.bytes() == file.allocated
    }

    /// The blocks of a file past its end, according to its extents. No read reaches them: a tree of
    /// hashes by which the kernel verifies the file (fs-verity), or room for it to grow.
    pub(super) fn past_the_end(&self, file: &BatchFile) -> Recording {
        let mut past = Recording::default();
        let Some(layout) = self.placement.layout.as_deref().filter(|layout| !layout.is_partial()) else {
            return past;
        };
        let block = self.filesystem.map_or(1, |filesystem| filesystem.block_size.max(1));
        let end = file.size.checked_next_multiple_of(block).unwrap_or(u64::MAX);
        for extent in file.extents.iter().flatten().filter(|extent| extent.is_plain()) {
            let inside = end.saturating_sub(extent.logical).min(extent.length);
            let range = extent.physical.checked_add(inside).map(DeviceOffset);
            let range = range.and_then(|start| Range::at(start, extent.length - inside));
            past.extend(range.and_then(|range| layout.places(range)).into_iter().flatten());
        }
        past
    }

    /// The expected blocks of a file.
    pub(super) fn expectation(&self, file: &BatchFile) -> Expectation {
        let filesystem = self.filesystem.unwrap_or_default();
        let has_layout = self.placement.layout.is_some();
        file.extents.as_deref().map_or(Expectation::None, |extents| {
            Expectation::of(extents, file.size, filesystem.block_size, &self.mounted, has_layout)
        })
    }
}
