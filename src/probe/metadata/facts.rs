//! Named, free and used blocks of a filesystem.

use super::btrfs::Outside;
use super::{Blocks, METADATA};
use std::collections::BTreeMap;
use virt_bmap_agent_protocol::record::BlockPurpose;
use virt_bmap_map::Marks;
use virt_bmap_ranges::{DeviceOffset, Range};

/// The name of the blocks of a journal.
pub(super) const JOURNAL: &str = "[journal]";

/// What is known of a filesystem's blocks.
#[derive(Default)]
pub(super) struct Facts {
    pub(super) named: Vec<Named>,
    /// The free blocks, if they are known.
    pub(super) free: Option<Blocks>,
    /// All blocks that are free or in use.
    pub(super) whole: Blocks,
    /// The clusters in which space is allocated, if they are larger than the blocks of extents. An
    /// object has whole clusters, whatever its extents.
    pub(super) clusters: Option<Clusters>,
    /// Whether files of this filesystem may have blocks in common, though its kind usually has none
    /// that do.
    pub(super) shares_blocks: bool,
    /// Whether the filesystem was made in one step, without free space, and may have padding.
    pub(super) is_packed: bool,
    /// Size of the units in which inline data lies, if that is not the block size.
    pub(super) unit: Option<u64>,
    /// Size of the records of `$MFT`.
    pub(super) records: Option<u64>,
    /// What lies outside of the address space of a btrfs.
    pub(super) outside: Outside,
}

/// Clusters, one after the other.
#[derive(Clone, Copy)]
pub(super) struct Clusters {
    /// Where the first one begins, in bytes.
    pub(super) start: u64,
    /// Bytes of each.
    pub(super) size: u64,
}

/// Blocks that have a name.
pub(super) struct Named {
    pub(super) name: &'static str,
    pub(super) blocks: Blocks,
    pub(super) marks: Marks,
}

impl Facts {
    pub(super) fn of_spaces(spaces: &BTreeMap<BlockPurpose, Blocks>) -> Self {
        let mut facts = Self::default();
        for (&owner, blocks) in spaces {
            let name = match owner {
                BlockPurpose::Free
                | BlockPurpose::Unknown
                | BlockPurpose::DataExtents
                | BlockPurpose::LogSegments => None,
                BlockPurpose::Metadata => Some(METADATA),
                BlockPurpose::Superblocks => Some("[superblocks]"),
                BlockPurpose::Log => Some(JOURNAL),
                BlockPurpose::GroupDescriptors => Some("[group descriptors]"),
                BlockPurpose::ReservedDescriptors => Some("[reserved group descriptors]"),
                BlockPurpose::BlockBitmaps => Some("[block bitmaps]"),
                BlockPurpose::InodeBitmaps => Some("[inode bitmaps]"),
                BlockPurpose::Inodes => Some("[inodes]"),
                BlockPurpose::FreeSpaceTrees => Some("[free space trees]"),
                BlockPurpose::InodeTrees => Some("[inode trees]"),
                BlockPurpose::ReferenceCounts => Some("[reference counts]"),
                BlockPurpose::Staging => Some("[copy-on-write staging]"),
                BlockPurpose::Defective => Some("[bad blocks]"),
                BlockPurpose::Attributes => Some("[extended attributes]"),
                BlockPurpose::ExtentMaps => Some("[extent maps]"),
                BlockPurpose::FreeLists => Some("[free list]"),
                BlockPurpose::Quotas => Some("[quota]"),
                BlockPurpose::Nodes => Some("[nodes]"),
                BlockPurpose::Orphans => Some("[orphan file]"),
            };
            facts.named.extend(name.map(|name| Named {
                name,
                blocks: blocks.clone(),
                marks: Marks::empty(),
            }));
            facts.whole.extend(blocks.iter());
        }
        if !spaces.is_empty() {
            facts.free = Some(spaces.get(&BlockPurpose::Free).cloned().unwrap_or_default());
        }
        facts
    }

    /// Notes that the first `length` bytes are the filesystem, and that nothing of it is free.
    pub(super) fn all_in_use(&mut self, length: u64) {
        self.whole.insert(Range::new(0, length));
        self.free = Some(Blocks::new());
        self.is_packed = true;
    }

    /// Names blocks. `verified`: something confirms that they are what their name says.
    pub(super) fn name(
        &mut self,
        name: &'static str,
        ranges: impl IntoIterator<Item = Range<DeviceOffset>>,
        verified: bool,
    ) {
        let blocks = ranges.into_iter().collect();
        let marks = if verified { Marks::empty() } else { Marks::UNVERIFIED };
        self.named.push(Named { name, blocks, marks });
    }
}
