//! Which inodes have not changed since the baseline was made.
//!
//! A self-contained inode says where its file lies, so a file with an unchanged one lies where it
//! did, and need not be opened. Inodes are compared by digests of their bytes on the disks, eight
//! inodes at a time; the map's header keeps the digests for the next update. The host computes
//! them, because that is fast here.
//!
//! The digest of a directory's inode covers the directory's blocks, too, so an unchanged directory
//! need not be listed.
//!
//! This works for ext2, ext3, ext4 and XFS, where an inode's place follows from its number and a
//! few numbers in the superblock, and for NTFS, whose `$MFT` is read here as in the agent. Of btrfs
//! the agent sends all items of inodes. On other filesystems the agent asks for the extents of each
//! file.

mod blocks;
mod btrfs;
mod ext;
mod ntfs;
mod windows;
mod xfs;

pub(in crate::probe) use blocks::Blocks;
pub(in crate::probe) use btrfs::Items;

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

/// Number of inodes with one digest.
const GROUP: u64 = virt_bmap_map::INODES_PER_DIGEST;

/// Most bytes of lookahead, which is enough for the tables of a million inodes of ext4. The
/// appliance has memory for three times as much, and its kernel forgets them when it needs the
/// memory.
const MOST_AHEAD: u64 = 320 << 20;

/// Inodes with one digest: the first of them, and where they lie.
type Group = (u64, Range<DeviceOffset>);

/// Where a filesystem has its inodes.
trait Table {
    /// Bytes in a block.
    fn block(&self) -> u64;

    /// Bytes in an inode.
    fn inode_size(&self) -> u64;

    /// The parts of the superblock that change the meaning of inodes and directory blocks.
    fn identity(&self) -> &[u8];

    /// The inode of the root directory.
    fn root(&self) -> u64;

    /// The group of an inode; `None` if there can be no such inode.
    fn group(&self, inode: u64) -> Option<Group>;

    /// The type of the inode with these bytes, if it is self-contained.
    fn self_contained(&self, inode: &[u8]) -> Option<SelfContained>;

    /// Whether inodes are records of `$MFT`. Their place is part of the digest, because they may
    /// move and hold data of files. They have the names of a file, so its link count, in which a
    /// short name of DOS counts, does not matter. And they say where directories lie.
    fn has_records(&self) -> bool {
        false
    }

    /// Parts of the device with all inodes that may be in use, as start and length in bytes, if it
    /// helps to have them in the block device's cache.
    fn parts(&self) -> Vec<(u64, u64)> {
        Vec::new()
    }
}

/// The type of a self-contained inode. None of them has blocks of extended attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SelfContained {
    /// A regular file.
    File,
    /// A directory, whose names are not encrypted.
    Directory,
    /// The same, without blocks: its entries are in its inode.
    InlineDirectory,
    /// A symbolic link, whose target is in its inode.
    InlineLink,
}

/// The type of each inode of a group, if it is self-contained.
type Contents = [Option<SelfContained>; GROUP as usize];

/// A group of inodes as it is now.
#[derive(Clone)]
struct State {
    digest: Digest,
    /// The types of its inodes.
    self_contained: Contents,
}

/// The disks that inodes are read from, and how.
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
    place: Place,
    /// Whether they are there as they are: not encrypted, and none only in memory.
    is_settled: bool,
}

/// Where the inodes are.
enum Place {
    /// On the disks.
    Disks(OnDisks),
    /// In these groups, by first inode: the agent has sent them.
    Groups(BTreeMap<u64, State>),
}

/// Inodes on the disks.
struct OnDisks {
    layout: Arc<Layout>,
    table: Box<dyn Table>,
    /// Digest of everything else that decides where on the disks a file lies; it goes into each
    /// digest.
    rest: Sha256,
}

/// The digest of what holds for all inodes of a filesystem.
pub(in crate::probe) fn digest_of_rest(kind: &FsKind, legs: Legs) -> Sha256 {
    let mut rest = Sha256::new();
    rest.update(kind.name());
    rest.update([0, u8::from(legs == Legs::All)]);
    rest
}

/// Adds where a device lies to a digest.
fn digest_layout(digest: &mut Sha256, layout: &Layout) {
    let copies = layout.segments().map(|segment| (0, segment));
    for (kind, segment) in copies.chain(layout.parity_segments().map(|segment| (1, segment))) {
        let words = [segment.device.start.0, segment.device.end.0, segment.disk.into(), segment.start.0];
        words.iter().for_each(|word| digest.update(word.to_le_bytes()));
        digest.update([kind, segment.copy]);
    }
}

impl<'a> Inodes<'a> {
    /// Finds out where they lie; `None` if that is not known. `is_settled`: none of them is only in
    /// memory.
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
            FsKind::Ntfs => Box::new(ntfs::Inodes::read(source.disks, layout)?),
            _ => return None,
        };
        let mut rest = digest_of_rest(kind, source.legs);
        rest.update(table.block().to_le_bytes());
        rest.update(table.identity());
        digest_layout(&mut rest, layout);
        let inodes = OnDisks { layout: layout.clone(), table, rest };
        // ntfs-3g writes nothing when it mounts for reading only.
        let is_settled = (is_settled || *kind == FsKind::Ntfs)
            && inodes.are_in_the_clear(source.disks, device) == Some(true);
        Some(Self { source, place: Place::Disks(inodes), is_settled })
    }

    /// The inodes that the agent has sent; `None` if they are not reliable. `is_settled`: none of
    /// them is only in memory.
    pub(in crate::probe) fn sent(source: InodeSource<'a>, items: Items, is_settled: bool) -> Option<Self> {
        Some(Self { source, place: Place::Groups(items.states()?), is_settled })
    }

    /// Parts of the device with inodes, as start and length, if lookahead is worthwhile: otherwise
    /// the kernel reads them block by block.
    pub(in crate::probe) fn parts(&self) -> Vec<(u64, u64)> {
        let Place::Disks(OnDisks { table, .. }) = &self.place else { return Vec::new() };
        let parts = table.parts();
        let bytes = parts.iter().map(|(_, length)| *length).fold(0, u64::saturating_add);
        if bytes <= MOST_AHEAD { parts } else { Vec::new() }
    }

    /// The unchanged files and directories of the baseline, and the host listings of the
    /// directories. `needs_links`: symbolic links are wanted, so that directories must be listed if
    /// the baseline does not have them.
    pub(in crate::probe) fn unchanged(
        &self,
        device: &[u8],
        kind: &FsKind,
        baseline: &Arc<Baseline>,
        needs_links: bool,
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
            let first = self.first(inode)?;
            let (now, then) = (now.get(&first)?, then.get(&first)?);
            let what = now.self_contained.get(usize::try_from(inode - first).ok()?)?;
            what.filter(|_| now.digest == *then)
        };
        let is_touched = |disk, range| self.source.is_rewritten(disk, range) != Some(false);
        let (has_records, has_pages) = match &self.place {
            Place::Disks(OnDisks { table, .. }) => (table.has_records(), table.block() >= PAGE),
            Place::Groups(_) => (false, true),
        };
        let is_file =
            |inode, links| (has_records || links == Some(1)) && unchanged(inode) == Some(SelfContained::File);
        let mut files = baseline.unchanged_files(device, is_file, is_touched);
        files.extend(
            baseline.unchanged_links(device, |inode| unchanged(inode) == Some(SelfContained::InlineLink)),
        );
        let is_directory = |inode, size| match unchanged(inode) {
            Some(SelfContained::Directory) => blocks.bytes(inode) == size,
            Some(SelfContained::InlineDirectory) => blocks.bytes(inode) == 0,
            _ => false,
        };
        // A page of smaller blocks may hold blocks of several directories; then the later ones are
        // not read again, and their blocks would be missing from the map.
        let directories = if (has_records || has_pages) && (baseline.has_links() || !needs_links) {
            baseline.unchanged_directories(device, is_directory, is_touched)
        } else {
            HashMap::new()
        };
        let (directories, listings) = Directories::new(baseline, device, &directories, &files, has_records);
        Some((UnchangedObjects { files, directories, baseline: baseline.clone() }, listings))
    }

    /// The digests of these inodes, for the map's header; `None` if they would be unreliable.
    /// `unsure` are the unsure directories among them, `blocks` the blocks of all directories.
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
            if let Some(first) = self.first(inode) {
                digests.remove(&first);
            }
        }
        Some(digests)
    }

    /// The groups of these inodes, by first inode, without those that cannot be read or that the
    /// overlay holds.
    fn states(&self, inodes: impl IntoIterator<Item = u64>, blocks: &Blocks) -> BTreeMap<u64, State> {
        let on_disks = match &self.place {
            Place::Disks(on_disks) => on_disks,
            Place::Groups(all) => {
                let firsts = inodes.into_iter().filter_map(|inode| self.first(inode));
                return firsts.filter_map(|first| Some((first, all.get(&first)?.clone()))).collect();
            }
        };
        let groups: BTreeMap<u64, Range<DeviceOffset>> =
            inodes.into_iter().filter_map(|inode| on_disks.table.group(inode)).collect();
        let (mut inodes, mut directories) =
            (Windows::new(self.source.disks), Windows::new(self.source.disks));
        groups
            .into_iter()
            .filter_map(|(first, range)| {
                (self.source.note_busy)();
                let blocks = blocks.between(first, first.saturating_add(GROUP));
                Some((first, on_disks.state(&self.source, range, blocks, &mut inodes, &mut directories)?))
            })
            .collect()
    }

    /// The first inode of a group; `None` if there can be no such inode.
    fn first(&self, inode: u64) -> Option<u64> {
        match &self.place {
            Place::Disks(OnDisks { table, .. }) => table.group(inode).map(|(first, _)| first),
            Place::Groups(_) => Some(inode / GROUP * GROUP),
        }
    }
}

impl InodeSource<'_> {
    /// Whether the overlay was written there; `None` if there is no such disk.
    fn is_rewritten(&self, disk: DiskNumber, range: DiskRange) -> Option<bool> {
        let overlay = self.overlays.get(usize::from(disk).checked_sub(1)?)?;
        Some(overlay.is_rewritten(range))
    }
}

impl OnDisks {
    /// Whether the disks have the root's inode as the device has it: an encrypted device differs.
    fn are_in_the_clear(&self, disks: &[Arc<dyn Source>], device: &Device<'_>) -> Option<bool> {
        let (_, range) = self.table.group(self.table.root())?;
        let mut bytes: Vec<u8> = Vec::new();
        for part in self.layout.part(range)?.iter().filter(|part| part.copy == 0) {
            bytes.extend(Windows::new(disks).read(part.copy, part.disk, part.disk_range())?);
        }
        Some(device.read(range.start.0, range.len())? == bytes)
    }

    /// The types of the inodes in these bytes.
    fn self_contained(&self, inodes: &[u8]) -> Contents {
        let size = usize::try_from(self.table.inode_size()).unwrap_or(usize::MAX);
        let mut inodes = inodes.chunks_exact(size);
        std::array::from_fn(|_| inodes.next().and_then(|inode| self.table.self_contained(inode)))
    }

    fn state(
        &self,
        source: &InodeSource<'_>,
        range: Range<DeviceOffset>,
        blocks: impl Iterator<Item = (u64, u8, DiskNumber, DiskRange)>,
        inodes: &mut Windows<'_>,
        directories: &mut Windows<'_>,
    ) -> Option<State> {
        let mut digest = self.rest.clone();
        let mut copies: Vec<Vec<u8>> = Vec::new();
        if self.table.has_records() {
            digest.update(range.start.0.to_le_bytes());
        }
        for part in self.layout.part(range)? {
            let place = part.disk_range();
            if source.is_rewritten(part.disk, place)? {
                return None;
            }
            let copy = usize::from(part.copy);
            let bytes = inodes.read(part.copy, part.disk, place)?;
            digest.update(bytes);
            copies.resize_with(copies.len().max(copy + 1), Vec::new);
            copies[copy].extend(bytes);
        }
        for (inode, copy, disk, range) in blocks {
            if source.is_rewritten(disk, range)? {
                return None;
            }
            [inode, range.len()].iter().for_each(|word| digest.update(word.to_le_bytes()));
            digest.update(directories.read(copy, disk, range)?);
        }
        // The kernel may read any copy.
        let same = |one: Contents, other: Contents| {
            std::array::from_fn(|inode| one[inode].filter(|_| one[inode] == other[inode]))
        };
        let self_contained = copies.iter().map(|copy| self.self_contained(copy)).reduce(same)?;
        Some(State { digest: *digest.finalize().first_chunk()?, self_contained })
    }
}
