//! The file system that is being walked: what has been said of it, and what is still expected.

use super::WalkContext;
use crate::probe::expected::{Expectation, PlacedRange, places};
use crate::probe::found::{Found, FoundError, ObjectNumber};
use crate::probe::layout::{Layout, address_space};
use crate::probe::metadata::Remains;
use crate::recorder::Recording;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use virt_bmap_agent_protocol::record::{self, Extent};
use virt_bmap_agent_protocol::{FsKind, Sample};
use virt_bmap_map::Marks;

/// The file system being walked.
#[derive(Default)]
pub(super) struct Walk {
    pub(super) context: WalkContext,
    /// Number of its root; 0 between walks.
    pub(super) first: ObjectNumber,
    pub(super) filesystem: Option<record::Filesystem>,
    /// What that is, as far as its number in `statfs(2)` tells.
    pub(super) mounted: FsKind,
    /// Files of the current batch whose extents are known.
    pub(super) files: HashMap<ObjectNumber, Expected>,
    /// Extents of directories that have not been listed.
    pub(super) directories: HashMap<ObjectNumber, Vec<Extent>>,
    /// The directory that has been listed last: there may be more of it.
    pub(super) listed: ObjectNumber,
    pub(super) extents_held: usize,
    /// Inodes of the directories that were found, where some are taken over.
    pub(super) seen: HashSet<u64>,
    /// Files that are being read in a series.
    pub(super) series: Vec<ObjectNumber>,
    /// Directories that are being listed in a batch.
    pub(super) listing: Vec<ObjectNumber>,
    /// Which extents are read at their ends, if that is how files are read.
    pub(super) sample: Option<Sample>,
    /// For how many files those stand that are not where the kernel says.
    pub(super) mismatches: u64,
    /// Encrypted files without their key, and for how many of these it is not known where they lie.
    pub(super) encrypted: u64,
    pub(super) lost: u64,
    pub(super) reread: Vec<u32>,
    /// What the agent is told when it asks for a verdict.
    pub(super) answer: Vec<u32>,
    /// Directories of a file system's own files (`$Extend` of NTFS).
    pub(super) system: HashSet<ObjectNumber>,
    /// What the metadata objects are made of.
    pub(super) remains: Remains,
    /// Of a btrfs, its devices and the chunks of its address space, until the layout of that is made of them.
    pub(super) members: Vec<record::Member>,
    pub(super) chunks: Vec<record::Chunk>,
    /// Where the extents lie: on the file system's device, or in the address space of a btrfs.
    pub(super) layout: Option<Arc<Layout>>,
    /// Whether what is read are blocks that files share, and the last of it.
    pub(super) packed: Option<Recording>,
}

impl Walk {
    /// Finds out where the extents lie, when all is known that is needed for it.
    pub(super) fn lay_out(&mut self) {
        if !self.mounted.facts().has_address_space {
            self.layout = self.context.layout.clone();
            return;
        }
        let (members, chunks) = (std::mem::take(&mut self.members), std::mem::take(&mut self.chunks));
        self.layout = address_space(&members, &chunks, &self.context.devices).map(Arc::new);
        let devices =
            members.iter().filter_map(|member| self.context.devices.get(&(member.major, member.minor)));
        self.remains.members = devices.cloned().collect();
        self.remains.address_space = self.layout.clone();
    }

    /// Forgets where a directory lies that will not be listed any more.
    pub(super) fn forget_directory(&mut self, id: ObjectNumber) {
        let extents = self.directories.remove(&id).unwrap_or_default();
        self.extents_held = self.extents_held.saturating_sub(extents.len());
    }

    /// What reading a file must touch.
    pub(super) fn expectation(&self, file: &Expected) -> Expectation {
        let filesystem = self.filesystem.unwrap_or_default();
        let has_layout = self.layout.is_some();
        file.extents.as_deref().map_or(Expectation::None, |extents| {
            Expectation::of(extents, file.size, filesystem.block_size, &self.mounted, has_layout)
        })
    }
}

/// Most chunks and devices of a btrfs.
pub(super) const MOST_CHUNKS: usize = 1 << 20;

pub(super) struct Expected {
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) allocated: u64,
    pub(super) modified: i64,
    pub(super) changed: i64,
    pub(super) extents: Option<Vec<Extent>>,
    /// Whether what was read of it has been taken in.
    pub(super) is_placed: bool,
    /// Whether nothing of it was read.
    pub(super) is_placed_nowhere: bool,
    /// It is the file system's own. Much of it is in memory before it can be read.
    pub(super) is_system: bool,
    /// It is encrypted, and was not opened.
    pub(super) is_encrypted: bool,
    /// It is a symbolic link, which cannot be asked for its extents.
    pub(super) is_link: bool,
    /// What was read of it, if that was not what was expected.
    pub(super) unexpected: Option<Recording>,
}

impl Expected {
    /// What its extents and sizes say of a file.
    pub(super) fn marks(&self) -> Marks {
        let extents = self.extents.as_deref();
        let any = |flag: u32| extents.is_some_and(|extents| extents.iter().any(|e| e.flags & flag != 0));
        let has_no_blocks = match extents {
            Some(extents) => extents.iter().all(|e| e.flags & Extent::INLINE != 0),
            None => self.allocated == 0,
        };
        let mapped: u64 = extents.unwrap_or_default().iter().map(|e| e.length).fold(0, u64::saturating_add);
        let mut marks = Marks::empty();
        marks.set(Marks::NO_BLOCKS, self.size == 0 || has_no_blocks);
        marks.set(Marks::INLINE, any(Extent::INLINE));
        marks.set(Marks::ENCODED, any(Extent::ENCODED));
        marks.set(Marks::PREALLOCATED, any(Extent::UNWRITTEN));
        marks.set(Marks::SPARSE, extents.is_some() && mapped < self.size && !any(Extent::INLINE));
        marks
    }
}

/// Gives an object what was read of it, with its place in the file where the extents tell it.
pub(super) fn attribute(
    found: &mut Found,
    id: ObjectNumber,
    recording: &Recording,
    extents: &[Extent],
    layout: Option<&Layout>,
    context: &WalkContext,
    remains: &mut Remains,
) -> Result<(), FoundError> {
    for place in places(recording, extents, layout, context.legs) {
        give(found, id, &place, context, remains)?;
    }
    Ok(())
}

/// Gives an object a piece.
pub(super) fn give(
    found: &mut Found,
    id: ObjectNumber,
    place: &PlacedRange,
    context: &WalkContext,
    remains: &mut Remains,
) -> Result<(), FoundError> {
    if context.metadata {
        remains.owned.insert(place.disk, place.range);
    }
    found.range(id, place.disk, place.range, place.file_offset, place.role)
}
