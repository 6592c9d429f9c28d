//! What a walk gathers for the metadata objects.

use super::ChannelError;
use super::batch::BatchFile;
use super::walk::Walk;
use crate::probe::found::ObjectNumber;
use crate::probe::layout::Layout;
use crate::recorder::Recording;
use std::collections::BTreeMap;
use std::sync::Arc;
use virt_bmap_agent_protocol::FsKind;
use virt_bmap_agent_protocol::record::{self, BlockPurpose, Extent};
use virt_bmap_ranges::{DeviceOffset, Range, RangeSet};

/// Most ranges of a device whose use the agent may report.
const MOST_PIECES: usize = 1 << 24;

/// What a walk has gathered for the metadata objects.
#[derive(Debug, Default)]
pub struct MetadataInputs {
    /// Bytes of a block of the filesystem, by `statfs(2)`.
    pub(in crate::probe) block: u64,
    /// What was read under no tag.
    pub(in crate::probe) untagged: Recording,
    /// Pieces of files and directories.
    pub(in crate::probe) owned: Recording,
    /// What the filesystem reports of the use of its blocks.
    pub(in crate::probe) spaces: BTreeMap<BlockPurpose, RangeSet<DeviceOffset>>,
    pub(in crate::probe) pieces: usize,
    /// Extents of data, of which files may use parts.
    pub(in crate::probe) data_extents: Vec<Range<DeviceOffset>>,
    /// Blocks of extended attributes, by the number of the object that has them.
    pub(in crate::probe) attributes: BTreeMap<ObjectNumber, AttributeBlocks>,
    /// Objects whose data is inline.
    pub(in crate::probe) inline: Vec<Inline>,
    /// The layout of a btrfs's address space, and the layouts of its devices.
    pub(in crate::probe) address_space: Option<Arc<Layout>>,
    pub(in crate::probe) members: Vec<Arc<Layout>>,
}

/// Blocks of the extended attributes of an object.
#[derive(Debug, Default)]
pub(in crate::probe) struct AttributeBlocks {
    /// What was read for them.
    pub(in crate::probe) recording: Recording,
    /// Their extents.
    pub(in crate::probe) extents: Vec<Extent>,
}

/// Where inline data lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::probe) enum Inline {
    /// At this byte of the device.
    Block { object: ObjectNumber, at: u64 },
    /// In the record of `$MFT` that begins at this byte of the device.
    Record { object: ObjectNumber, at: u64 },
}

impl MetadataInputs {
    /// Notes the use of ranges of the device, given as start and length; `false` if they are
    /// invalid.
    pub(in crate::probe) fn space(&mut self, owner: BlockPurpose, pieces: &[(u64, u64)]) -> bool {
        self.pieces += pieces.len();
        let blocks = self.spaces.entry(owner).or_default();
        self.pieces <= MOST_PIECES
            && pieces.iter().all(|&(start, length)| {
                let Some(range) = Range::at(DeviceOffset(start), length) else { return false };
                blocks.insert(range);
                if owner == BlockPurpose::DataExtents {
                    self.data_extents.push(range);
                }
                true
            })
    }
}

impl Walk {
    /// Whether an object is one of NTFS's metadata files. ntfs-3g shows them on demand.
    pub(super) fn is_system(&self, object: &record::Object) -> bool {
        let reserved = self.context.kind.facts().reserved_inodes;
        let is_reserved = object.parent == self.first && object.inode < reserved;
        reserved > 0
            && object.id != self.first
            && (is_reserved && object.name.starts_with(b"$") || self.system.contains(&object.parent))
    }

    /// Notes what was read under no tag.
    pub(super) fn untagged(&mut self, recording: &Recording) {
        self.placement.inputs.untagged.extend(recording.iter());
    }

    /// Notes the use of ranges of the device.
    pub(super) fn space(&mut self, owner: BlockPurpose, pieces: &[(u64, u64)]) -> Result<(), ChannelError> {
        let is_valid = self.placement.inputs.space(owner, pieces);
        if is_valid { Ok(()) } else { Err(ChannelError::Protocol("an invalid use of space")) }
    }

    /// Notes where the inline data of a file lies.
    pub(super) fn note_inline(&mut self, object: ObjectNumber, file: &BatchFile) {
        self.note_inline_extents(object, file.extents.as_deref().unwrap_or_default());
    }

    /// Notes where the inline extents of a file or directory lie.
    pub(super) fn note_inline_extents(&mut self, object: ObjectNumber, extents: &[Extent]) {
        // btrfs reports no place for data that lies in its tree.
        if self.filesystem.is_none() || self.mounted.facts().has_address_space {
            return;
        }
        let inline = extents.iter().filter(|extent| extent.flags & Extent::INLINE != 0);
        let is_ntfs = self.context.kind == FsKind::Ntfs;
        self.placement.inputs.inline.extend(inline.map(|extent| match extent.physical {
            at if is_ntfs => Inline::Record { object, at },
            at => Inline::Block { object, at },
        }));
    }
}

/// Where plain extents lie on the disks, as if they had been read; `None` if that is unknown.
pub(super) fn places_of(extents: &[Extent], layout: Option<&Layout>) -> Option<Recording> {
    let mut places = Recording::default();
    for extent in extents {
        let range = Range::at(DeviceOffset(extent.physical), extent.length).filter(|_| extent.is_plain())?;
        places.extend(layout?.places(range)?);
    }
    (!extents.is_empty()).then_some(places)
}
