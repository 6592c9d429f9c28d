//! What the blocks of an XFS without a reverse mapping tree are for. Its GETFSMAP tells only what is
//! free, so the agent reads the headers of the allocation groups and walks their trees ("XFS
//! Algorithms & Data Structures", chapters "Allocation Groups" and "Short Format B+trees";
//! `xfs_format.h` in the kernel's `fs/xfs/libxfs`). Numbers are big-endian.

use crate::getfsmap::{Spaces, push};
use rustix::fd::OwnedFd;
use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use virt_bmap_agent_protocol::record::BlockPurpose;
use virt_bmap_on_disk::xfs::{OwnFile, Volume};
use virt_bmap_on_disk::{Fields as _, Read};

/// Most allocation groups.
const MOST_GROUPS: u64 = 1 << 16;

/// Most blocks of all trees: enough for a thousand million inodes.
const MOST_BLOCKS: usize = 1 << 22;

/// `XFS_BTREE_MAXLEVELS`
const MOST_LEVELS: u32 = 9;

/// Inodes in a chunk (`XFS_INODES_PER_CHUNK`), and those that one bit of a hole mask stands for.
const CHUNK: u64 = 64;
const PER_HOLE_BIT: u64 = 4;

/// Adds the purposes of the filesystem's own blocks. What cannot be read or makes no sense is left
/// out.
pub(crate) fn add_spaces(device: OwnedFd, spaces: &mut Spaces) {
    let device = File::from(device);
    let _ = add_by(&|at, length| read_at(&device, at, length), spaces);
}

/// The chunks of inodes of all groups, without holes: start and length in bytes, in order.
pub(crate) fn inode_chunks(read: Read<'_>, volume: &Volume) -> BTreeSet<(u64, u64)> {
    walk(read, volume, &mut Spaces::new()).chunks
}

/// Reads bytes of a device.
fn read_at(device: &File, at: u64, length: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    device.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}

/// Adds the last block, if it is free and GETFSMAP has left it out.
///
/// With a reverse mapping tree, the kernel reports as free what lies between the records of the
/// tree. Linux 6.1 ends one block too early, Linux 7.2 does not.
pub(crate) fn add_last_block(device: OwnedFd, spaces: &mut Spaces) {
    let mut superblock = [0; 512];
    if File::from(device).read_exact_at(&mut superblock, 0).is_ok()
        && let Some((start, length)) = last_block(&superblock)
    {
        let ends = spaces.values().flatten().map(|(start, length)| start.saturating_add(*length));
        if ends.max() == Some(start) {
            push(spaces, BlockPurpose::Free, start, length);
        }
    }
}

/// Start and length of the filesystem's last block.
fn last_block(superblock: &[u8]) -> Option<(u64, u64)> {
    let volume = Volume::of(superblock)?;
    Some((volume.blocks.checked_sub(1)?.checked_mul(volume.block)?, volume.block))
}

fn add_by(read: Read<'_>, spaces: &mut Spaces) -> Option<()> {
    let volume = Volume::of(&read(0, 512)?)?;
    for (start, length) in walk(read, &volume, spaces).chunks {
        push(spaces, BlockPurpose::Inodes, start, length);
    }
    if let Some((start, length)) = volume.log {
        push(spaces, BlockPurpose::Log, start, length);
    }
    for &(inode, file) in &volume.own_files {
        let purpose = match file {
            OwnFile::Realtime => BlockPurpose::Metadata,
            OwnFile::Quota => BlockPurpose::Quotas,
        };
        let bytes = volume.inode_place(inode).and_then(|at| read(at, volume.inode));
        for part in bytes.and_then(|bytes| volume.extents(&bytes)).unwrap_or_default() {
            push(spaces, purpose, part.range.start.0, part.range.len());
        }
    }
    Some(())
}

/// Walks the trees of all groups.
fn walk<'a>(read: Read<'a>, volume: &'a Volume, spaces: &mut Spaces) -> Walk<'a> {
    let mut walk = Walk { read, volume, seen: HashSet::new(), chunks: BTreeSet::new() };
    for group in 0..volume.groups.min(MOST_GROUPS) {
        walk.group(group, spaces);
    }
    walk
}

/// A walk through the trees of all groups.
struct Walk<'a> {
    read: Read<'a>,
    volume: &'a Volume,
    /// The blocks of trees that were read: each is in one tree, once.
    seen: HashSet<u64>,
    /// Start and length of chunks of inodes: two trees may name one.
    chunks: BTreeSet<(u64, u64)>,
}

/// A kind of tree: its magic numbers without and with checksums, and the length of a key.
#[derive(Clone, Copy)]
struct Tree {
    magic: [&'static [u8; 4]; 2],
    key: usize,
    purpose: BlockPurpose,
    holds_inodes: bool,
}

const BY_BLOCK: Tree =
    Tree { magic: [b"ABTB", b"AB3B"], key: 8, purpose: BlockPurpose::FreeSpaceTrees, holds_inodes: false };
const BY_COUNT: Tree = Tree { magic: [b"ABTC", b"AB3C"], ..BY_BLOCK };
const INODES: Tree =
    Tree { magic: [b"IABT", b"IAB3"], key: 4, purpose: BlockPurpose::InodeTrees, holds_inodes: true };
const FREE_INODES: Tree = Tree { magic: [b"FIBT", b"FIB3"], ..INODES };
const REFERENCES: Tree =
    Tree { magic: [b"R3FC", b"R3FC"], key: 4, purpose: BlockPurpose::ReferenceCounts, holds_inodes: false };

impl Walk<'_> {
    /// Adds the blocks of one group: its headers, its free list, and its trees.
    fn group(&mut self, group: u64, spaces: &mut Spaces) -> Option<()> {
        let Volume { block, sector, group_blocks, .. } = *self.volume;
        let start = group.checked_mul(group_blocks)?.checked_mul(block)?;
        // The superblock, the headers of free space and of inodes, and the free list: a sector each.
        let headers = (self.read)(start, 4 * sector)?;
        push(spaces, BlockPurpose::Superblocks, start, (4 * sector).next_multiple_of(block));
        let [space, inodes, list] = [1, 2, 3].map(|number: usize| {
            let sector = sector as usize;
            headers.get(number * sector..(number + 1) * sector).unwrap_or_default()
        });
        if space.get(..4)? == b"XAGF" {
            for number in self.free_list(space, list).unwrap_or_default() {
                push(spaces, BlockPurpose::FreeLists, start.checked_add(u64::from(number) * block)?, block);
            }
            self.tree(start, BY_BLOCK, space.be32(16)?, space.be32(28)?, spaces);
            self.tree(start, BY_COUNT, space.be32(20)?, space.be32(32)?, spaces);
            if self.volume.has_checksums {
                self.tree(start, REFERENCES, space.be32(88)?, space.be32(92)?, spaces);
            }
        }
        if inodes.get(..4)? == b"XAGI" {
            self.tree(start, INODES, inodes.be32(20)?, inodes.be32(24)?, spaces);
            if self.volume.has_checksums {
                self.tree(start, FREE_INODES, inodes.be32(328)?, inodes.be32(332)?, spaces);
            }
        }
        Some(())
    }

    /// The blocks that a group keeps for its own trees, by their numbers in the group.
    fn free_list(&self, space: &[u8], list: &[u8]) -> Option<Vec<u32>> {
        let (first, count) = (space.be32(40)? as usize, space.be32(48)? as usize);
        let slots = if self.volume.has_checksums { list.get(36..)? } else { list };
        let room = slots.len() / 4;
        let slot = |number: usize| slots.be32((first + number) % room * 4);
        (count <= room).then(|| (0..count).filter_map(slot).collect())
    }

    /// Adds the blocks of a tree of the group that begins at byte `start`. A tree that a version of
    /// XFS does not have has no levels.
    fn tree(&mut self, start: u64, tree: Tree, root: u32, levels: u32, spaces: &mut Spaces) {
        if !(1..=MOST_LEVELS).contains(&levels) {
            return;
        }
        let mut waiting = vec![(root, levels - 1)];
        while let Some((number, level)) = waiting.pop() {
            let _ = self.node(start, tree, number, level, spaces, &mut waiting);
        }
    }

    fn node(
        &mut self,
        start: u64,
        tree: Tree,
        number: u32,
        level: u32,
        spaces: &mut Spaces,
        waiting: &mut Vec<(u32, u32)>,
    ) -> Option<()> {
        let Volume { block, group_blocks, has_checksums, .. } = *self.volume;
        let at = start.checked_add(u64::from(number) * block)?;
        if u64::from(number) >= group_blocks || self.seen.len() >= MOST_BLOCKS || !self.seen.insert(at) {
            return None;
        }
        let node = (self.read)(at, block)?;
        let is_one =
            node.get(..4)? == tree.magic[usize::from(has_checksums)] && u32::from(node.be16(4)?) == level;
        if !is_one {
            return None;
        }
        push(spaces, tree.purpose, at, block);
        let body = node.get(if has_checksums { 56 } else { 16 }..)?;
        let count = usize::from(node.be16(6)?);
        if level > 0 {
            let most = body.len() / (tree.key + 4);
            let pointers = body.get(most * tree.key..)?.chunks_exact(4).take(count.min(most));
            waiting.extend(pointers.filter_map(|pointer| Some((pointer.be32(0)?, level - 1))));
        } else if tree.holds_inodes {
            for record in body.chunks_exact(16).take(count) {
                self.chunk(start, record);
            }
        }
        Some(())
    }

    /// Notes the blocks of a chunk of inodes, without those of a hole mask.
    fn chunk(&mut self, start: u64, record: &[u8]) -> Option<()> {
        let first = u64::from(record.be32(0)?);
        let holes = if self.volume.has_sparse_inodes { record.be16(4)? } else { 0 };
        for bit in (0..CHUNK / PER_HOLE_BIT).filter(|bit| holes >> bit & 1 == 0) {
            let inode = first + bit * PER_HOLE_BIT;
            let length = PER_HOLE_BIT * self.volume.inode;
            self.chunks.insert((start.checked_add(inode.checked_mul(self.volume.inode)?)?, length));
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }

    /// A group of 64 blocks of 4 KiB, with checksums and sparse inodes. The tree of inodes has a root
    /// above a leaf, and a loop.
    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 64 * 4096];
        put(&mut disk, 0, b"XFSB");
        for (at, word) in [(4, 4096u32), (84, 64), (88, 1), (216, 2)] {
            put(&mut disk, at, &word.to_be_bytes());
        }
        put(&mut disk, 64, &[0xff; 16]);
        put(&mut disk, 160, &[0xff; 16]);
        put(&mut disk, 232, &[0xff; 8]);
        put(&mut disk, 100, &[0xb4, 0xa5, 2, 0]);
        put(&mut disk, 122, &[9, 3, 6]);
        // The free list has two blocks and goes round: 118 is the last of 119 slots.
        put(&mut disk, 512, b"XAGF");
        for (at, word) in [(16, 1u32), (28, 1), (20, 2), (32, 1), (40, 118), (48, 2)] {
            put(&mut disk, 512 + at, &word.to_be_bytes());
        }
        put(&mut disk, 1536 + 36, &9u32.to_be_bytes());
        put(&mut disk, 2044, &7u32.to_be_bytes());
        put(&mut disk, 1024, b"XAGI");
        for (at, word) in [(20, 3u32), (24, 2), (328, 5), (332, 1)] {
            put(&mut disk, 1024 + at, &word.to_be_bytes());
        }
        for (block, magic, level, count) in [
            (1, b"AB3B", 0u8, 0u8),
            (2, b"AB3C", 0, 0),
            (3, b"IAB3", 1, 3),
            (4, b"IAB3", 0, 1),
            (5, b"FIB3", 0, 0),
        ] {
            put(&mut disk, block * 4096, magic);
            put(&mut disk, block * 4096 + 4, &[0, level, 0, count]);
        }
        // Half of the chunk at inode 128 is a hole.
        put(&mut disk, 4 * 4096 + 56, &[0, 0, 0, 128, 0xff, 0x00]);
        let pointers = 3 * 4096 + 56 + (4096 - 56) / 8 * 4;
        for (number, block) in [4u32, 3, 99].into_iter().enumerate() {
            put(&mut disk, pointers + 4 * number, &block.to_be_bytes());
        }
        disk
    }

    fn spaces(disk: &[u8]) -> Spaces {
        let read = |at: u64, length: u64| Some(disk.get(at as usize..)?.get(..length as usize)?.to_vec());
        let mut spaces = Spaces::new();
        add_by(&read, &mut spaces);
        spaces
    }

    #[test]
    fn trees_are_walked_once() {
        let spaces = spaces(&disk());
        let blocks = |first: u64, count: u64| (first * 4096, count * 4096);
        assert_eq!(spaces[&BlockPurpose::Superblocks], [blocks(0, 1)]);
        assert_eq!(spaces[&BlockPurpose::FreeLists], [blocks(7, 1), blocks(9, 1)]);
        assert_eq!(spaces[&BlockPurpose::FreeSpaceTrees], [blocks(1, 2)]);
        assert_eq!(spaces[&BlockPurpose::InodeTrees], [blocks(3, 3)]);
        assert_eq!(spaces[&BlockPurpose::Inodes], [blocks(16, 4)]);
        assert!(!spaces.contains_key(&BlockPurpose::ReferenceCounts));
    }

    #[test]
    fn the_last_block_is_that_of_the_superblock() {
        let mut disk = disk();
        disk[8..16].copy_from_slice(&77u64.to_be_bytes());
        assert_eq!(last_block(&disk), Some((76 * 4096, 4096)));
        disk[8..16].fill(0);
        assert_eq!(last_block(&disk), None);
        disk[8..16].fill(0xff);
        assert_eq!(last_block(&disk), None);
    }

    #[test]
    fn what_makes_no_sense_is_left_out() {
        for (at, byte) in [(0, 0), (7, 1), (102, 0x80), (122, 70), (124, 40)] {
            let mut disk = disk();
            disk[at] = byte;
            assert_eq!(spaces(&disk), Spaces::new(), "{at}");
        }
        // A root with another magic number, at another level, and beyond the group.
        for (at, byte) in [(3 * 4096, 0), (3 * 4096 + 5, 7), (1024 + 22, 9)] {
            let mut disk = disk();
            disk[at] = byte;
            assert!(!spaces(&disk).contains_key(&BlockPurpose::Inodes), "{at}");
        }
        assert_eq!(spaces(&disk()[..300]), Spaces::new());
    }
}
