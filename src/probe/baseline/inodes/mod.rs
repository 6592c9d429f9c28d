//! Which inodes are as they were when an earlier map was made.
//!
//! Where a file lies is in its inode, unless that points to further blocks, as the inode says. So a
//! file whose inode has not changed lies where it did, and need not even be opened. Inodes are
//! compared by digests, eight of them at a time, of their bytes on the disks; the map keeps these,
//! and the next update compares. That is done here, on the host, because it takes no time there.
//!
//! What is in a directory is in its blocks, so these are in the digest of its inode, too: one in
//! which nothing has changed need not be listed.
//!
//! It goes for ext2, ext3, ext4 and XFS, of which an inode's place follows from its number and a
//! few numbers in the superblock. Elsewhere each file is asked for its extents.

mod blocks;
mod ext;
mod windows;
mod xfs;

pub(in crate::probe) use blocks::Blocks;

use super::{Baseline, Directories, UnchangedObjects};
use crate::probe::Legs;
use crate::probe::device::Device;
use crate::probe::expected::PAGE;
use crate::probe::layout::Layout;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use virt_bmap_agent_protocol::{FsKind, Listings};
use virt_bmap_image::{Overlay, Source};
use virt_bmap_map::{Digest, InodeDigests, MOST_DIGESTS};
use virt_bmap_ranges::{DeviceOffset, DiskNumber, DiskRange, Range};
use windows::Windows;

/// Inodes that have one digest.
const GROUP: u64 = virt_bmap_map::INODES_PER_DIGEST;

/// Most bytes that are read at once. The appliance has memory for some times as much.
const MOST_AHEAD: u64 = 128 << 20;

/// Inodes that have one digest: the first of them, and where they lie.
type Group = (u64, Range<DeviceOffset>);

/// Where a filesystem has its inodes.
trait Table {
    /// Bytes in a block.
    fn block(&self) -> u64;

    /// Bytes in an inode.
    fn inode_size(&self) -> u64;

    /// What the superblock says that changes what inodes and blocks of directories mean.
    fn identity(&self) -> &[u8];

    /// The inode of the root directory.
    fn root(&self) -> u64;

    /// The group of an inode; `None` if there can be no such inode.
    fn group(&self, inode: u64) -> Option<Group>;

    /// What an inode is, of which these are the bytes, if it has all in it of where that lies.
    fn self_contained(&self, inode: &[u8]) -> Option<SelfContained>;

    /// Parts of the device where all inodes that may be in use are, by start and length in bytes,
    /// where it helps to have them in the block device's cache.
    fn parts(&self) -> Vec<(u64, u64)> {
        Vec::new()
    }
}

/// What an inode is that points to no blocks but those of its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SelfContained {
    /// A regular file.
    File,
    /// A directory, whose names are not encrypted.
    Directory,
    /// The same, without blocks: what is in it is in its inode.
    InlineDirectory,
}

/// What each inode of a group is.
type Contents = [Option<SelfContained>; GROUP as usize];

/// What lies where a group of inodes does.
struct State {
    digest: Digest,
    /// What each inode is.
    self_contained: Contents,
}

/// What inodes are read from.
#[derive(Clone, Copy)]
pub(in crate::probe) struct InodeSource<'a> {
    /// The guest's disks, in order.
    pub(in crate::probe) disks: &'a [Arc<dyn Source>],
    /// The overlays of the disks, in order.
    pub(in crate::probe) overlays: &'a [Arc<Overlay>],
    /// Which copies the map has.
    pub(in crate::probe) legs: Legs,
    /// Called while inodes are read, as a sign of life.
    pub(in crate::probe) note_busy: &'a dyn Fn(),
}

/// The inodes of a mounted filesystem.
pub(in crate::probe) struct Inodes<'a> {
    source: InodeSource<'a>,
    layout: Arc<Layout>,
    table: Box<dyn Table>,
    /// Digest of what else decides where on the disks a file lies: goes into each digest.
    rest: Sha256,
    /// Whether they lie on the disks as they are, neither encrypted nor still in memory.
    is_settled: bool,
}

impl<'a> Inodes<'a> {
    /// Finds out where they lie; `None` if that is not known. `is_settled`: nothing of them is
    /// still in memory.
    pub(in crate::probe) fn of(
        source: InodeSource<'a>,
        device: &Device<'_>,
        kind: &FsKind,
        layout: &Arc<Layout>,
        is_settled: bool,
    ) -> Option<Self> {
        if layout.is_partial() {
            return None;
        }
        let table: Box<dyn Table> = match kind {
            FsKind::Ext2 | FsKind::Ext3 | FsKind::Ext4 => Box::new(ext::Inodes::read(device)?),
            FsKind::Xfs => Box::new(xfs::Inodes::read(device)?),
            _ => return None,
        };
        let mut rest = Sha256::new();
        rest.update(kind.name());
        rest.update([0, u8::from(source.legs == Legs::All)]);
        rest.update(table.block().to_le_bytes());
        rest.update(table.identity());
        let copies = layout.segments().map(|segment| (0, segment));
        for (kind, segment) in copies.chain(layout.parity_segments().map(|segment| (1, segment))) {
            let words = [segment.device.start.0, segment.device.end.0, segment.disk.into(), segment.start.0];
            words.iter().for_each(|word| rest.update(word.to_le_bytes()));
            rest.update([kind, segment.copy]);
        }
        let mut inodes = Self { source, layout: layout.clone(), table, rest, is_settled };
        inodes.is_settled &= inodes.are_in_the_clear(device) == Some(true);
        Some(inodes)
    }

    /// Parts of the device where inodes are, by start and length, if they are worth being read at
    /// once: one after the other, the kernel reads block by block.
    pub(in crate::probe) fn parts(&self) -> Vec<(u64, u64)> {
        let parts = self.table.parts();
        let bytes = parts.iter().map(|(_, length)| *length).fold(0, u64::saturating_add);
        if bytes <= MOST_AHEAD { parts } else { Vec::new() }
    }

    /// The files and directories of an earlier map that have not changed, and what the agent is
    /// told of the directories.
    pub(in crate::probe) fn unchanged(
        &self,
        device: &[u8],
        kind: &FsKind,
        baseline: &Arc<Baseline>,
    ) -> Option<(UnchangedObjects, Listings)> {
        if !self.is_settled {
            return None;
        }
        let then = baseline.inodes(device, kind.name())?;
        if then.len() > MOST_DIGESTS {
            return None;
        }
        let pieces = baseline.directory_pieces(device);
        let blocks = pieces.map(|(inode, piece)| (inode, piece.disk, piece.range, piece.role)).collect();
        let now = self.states(then.keys().copied(), &blocks);
        let unchanged = |inode| {
            let (first, _) = self.table.group(inode)?;
            let (now, then) = (now.get(&first)?, then.get(&first)?);
            let what = now.self_contained.get(usize::try_from(inode - first).ok()?)?;
            what.filter(|_| now.digest == *then)
        };
        let is_touched = |disk, range| self.is_rewritten(disk, range) != Some(false);
        let is_file = |inode| unchanged(inode) == Some(SelfContained::File);
        let files = baseline.unchanged_files(device, is_file, is_touched);
        let is_directory = |inode, size| match unchanged(inode) {
            Some(SelfContained::Directory) => blocks.bytes(inode) == size,
            Some(SelfContained::InlineDirectory) => blocks.bytes(inode) == 0,
            _ => false,
        };
        // Smaller blocks come to memory together with others that may be of other directories,
        // which are not read again then.
        let directories = if self.table.block() >= PAGE {
            baseline.unchanged_directories(device, is_directory, is_touched)
        } else {
            HashMap::new()
        };
        let (directories, listings) = Directories::new(baseline, device, &directories, &files);
        Some((UnchangedObjects { files, directories, baseline: baseline.clone() }, listings))
    }

    /// The digests of these inodes, for the map's header; `None` if they say nothing. `unsure` are
    /// the unsure directories among them, `blocks` the blocks of all directories.
    pub(in crate::probe) fn digests(
        &self,
        inodes: Vec<u64>,
        unsure: Vec<u64>,
        blocks: &Blocks,
    ) -> Option<InodeDigests> {
        if !self.is_settled {
            return None;
        }
        let digests = self.states(inodes, blocks).into_iter().map(|(first, state)| (first, state.digest));
        let mut digests: InodeDigests = digests.collect();
        for inode in unsure {
            if let Some((first, _)) = self.table.group(inode) {
                digests.remove(&first);
            }
        }
        Some(digests)
    }

    /// The groups of these inodes, by their first. What cannot be read, or has been written since
    /// the image was opened, is left out.
    fn states(&self, inodes: impl IntoIterator<Item = u64>, blocks: &Blocks) -> BTreeMap<u64, State> {
        let groups: BTreeMap<u64, Range<DeviceOffset>> =
            inodes.into_iter().filter_map(|inode| self.table.group(inode)).collect();
        let (mut inodes, mut directories) =
            (Windows::new(self.source.disks), Windows::new(self.source.disks));
        groups
            .into_iter()
            .filter_map(|(first, range)| {
                (self.source.note_busy)();
                let blocks = blocks.between(first, first.saturating_add(GROUP));
                Some((first, self.state(range, blocks, &mut inodes, &mut directories)?))
            })
            .collect()
    }

    /// Whether the root's inode is on the disks as the device has it: not so if that is encrypted.
    fn are_in_the_clear(&self, device: &Device<'_>) -> Option<bool> {
        let (_, range) = self.table.group(self.table.root())?;
        let mut bytes: Vec<u8> = Vec::new();
        for part in self.layout.part(range)?.iter().filter(|part| part.copy == 0) {
            bytes.extend(Windows::new(self.source.disks).read(part.copy, part.disk, part.disk_range())?);
        }
        Some(device.read(range.start.0, range.len())? == bytes)
    }

    /// What the inodes in these bytes are.
    fn self_contained(&self, inodes: &[u8]) -> Contents {
        let size = usize::try_from(self.table.inode_size()).unwrap_or(usize::MAX);
        let mut inodes = inodes.chunks_exact(size);
        std::array::from_fn(|_| inodes.next().and_then(|inode| self.table.self_contained(inode)))
    }

    /// Whether something has been written there since the image was opened; `None` where there is
    /// no such disk.
    fn is_rewritten(&self, disk: DiskNumber, range: DiskRange) -> Option<bool> {
        let overlay = self.source.overlays.get(usize::from(disk).checked_sub(1)?)?;
        Some(overlay.is_rewritten(range))
    }

    fn state(
        &self,
        range: Range<DeviceOffset>,
        blocks: impl Iterator<Item = (u64, u8, DiskNumber, DiskRange)>,
        inodes: &mut Windows<'_>,
        directories: &mut Windows<'_>,
    ) -> Option<State> {
        let mut digest = self.rest.clone();
        let mut copies: Vec<Vec<u8>> = Vec::new();
        for part in self.layout.part(range)? {
            let place = part.disk_range();
            if self.is_rewritten(part.disk, place)? {
                return None;
            }
            let copy = usize::from(part.copy);
            let bytes = inodes.read(part.copy, part.disk, place)?;
            digest.update(bytes);
            copies.resize_with(copies.len().max(copy + 1), Vec::new);
            copies[copy].extend(bytes);
        }
        for (inode, copy, disk, range) in blocks {
            if self.is_rewritten(disk, range)? {
                return None;
            }
            [inode, range.len()].iter().for_each(|word| digest.update(word.to_le_bytes()));
            digest.update(directories.read(copy, disk, range)?);
        }
        // The kernel reads whichever copy it likes.
        let same = |one: Contents, other: Contents| {
            std::array::from_fn(|inode| one[inode].filter(|_| one[inode] == other[inode]))
        };
        let self_contained = copies.iter().map(|copy| self.self_contained(copy)).reduce(same)?;
        Some(State { digest: *digest.finalize().first_chunk()?, self_contained })
    }
}
