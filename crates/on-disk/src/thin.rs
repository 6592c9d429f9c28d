//! The metadata of a thin pool of the device mapper: which block of the pool holds a block of a
//! thin device (`drivers/md/dm-thin-metadata.c` and `drivers/md/persistent-data/dm-btree.h` of the
//! kernel).
//!
//! A tree leads from the number of a thin device to the tree of its blocks. Several devices may
//! share blocks, and parts of trees.

use crate::{Fields, Read};

/// Bytes of a block of the metadata.
const BLOCK: u64 = 4096;
/// The superblock, block 0.
const MAGIC: u64 = 27_022_010;
/// Flags of a node of a tree.
const INTERNAL: u32 = 1;
const LEAF: u32 = 2;
/// Bytes of a node's header. The keys follow, then as many values.
const HEADER: usize = 32;
/// Most levels of a tree.
const DEEPEST: usize = 16;
/// Most nodes that are read for one device.
const MOST_NODES: usize = 1 << 20;

/// The metadata of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Bytes of a block of the pool.
    pub block: u64,
    /// The block of the metadata with the root of the tree of devices.
    devices: u64,
}

/// Blocks of a thin device, by their number, one after the other in the pool, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first block on the thin device.
    pub first: u64,
    /// The block of the pool that holds it.
    pub at: u64,
    /// How many blocks these are.
    pub count: u64,
}

/// A walk of a tree whose keys ascend.
struct Walk<'a> {
    read: Read<'a>,
    nodes: usize,
    next_key: u64,
}

impl Pool {
    /// The pool whose metadata `read` gives.
    pub fn of(read: Read<'_>) -> Option<Self> {
        let superblock = read(0, BLOCK)?;
        if superblock.le64(32)? != MAGIC {
            return None;
        }
        // After the magic number: version, time, transaction, held root, two maps of 128 bytes.
        let devices = superblock.le64(320)?;
        let block = u64::from(superblock.le32(336)?) * 512;
        (block > 0).then_some(Self { block, devices })
    }

    /// The blocks of a thin device, ascending; `None` if the pool does not have it, or is damaged.
    pub fn blocks(&self, read: Read<'_>, device: u64) -> Option<Vec<Run>> {
        let mut root = None;
        Walk { read, nodes: 0, next_key: 0 }.node(self.devices, DEEPEST, &mut |key, value| {
            if key == device {
                root = Some(value);
            }
            Some(())
        })?;
        let mut runs: Vec<Run> = Vec::new();
        Walk { read, nodes: 0, next_key: 0 }.node(root?, DEEPEST, &mut |first, value| {
            // The lower bits are the time at which the block was mapped.
            let at = value >> 24;
            match runs.last_mut() {
                Some(last) if (last.first + last.count, last.at + last.count) == (first, at) => {
                    last.count += 1;
                }
                _ => runs.push(Run { first, at, count: 1 }),
            }
            Some(())
        })?;
        Some(runs)
    }
}

impl Walk<'_> {
    /// Calls `each` with the keys and values below a node.
    fn node(
        &mut self,
        number: u64,
        levels: usize,
        each: &mut dyn FnMut(u64, u64) -> Option<()>,
    ) -> Option<()> {
        self.nodes += 1;
        let levels = levels.checked_sub(1).filter(|_| self.nodes <= MOST_NODES)?;
        let node = (self.read)(number.checked_mul(BLOCK)?, BLOCK)?;
        let (flags, of, count, room) = (node.le32(4)?, node.le64(8)?, node.le32(16)?, node.le32(20)?);
        let (count, room) = (usize::try_from(count).ok()?, usize::try_from(room).ok()?);
        let values = room.checked_mul(8)?.checked_add(HEADER)?;
        if of != number || count > room || values.checked_add(room * 8)? > BLOCK as usize {
            return None;
        }
        for index in 0..count {
            let (key, value) = (node.le64(HEADER + 8 * index)?, node.le64(values + 8 * index)?);
            match flags {
                INTERNAL => self.node(value, levels, each)?,
                LEAF if key >= self.next_key => {
                    self.next_key = key.checked_add(1)?;
                    each(key, value)?;
                }
                _ => return None,
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader;

    fn put(disk: &mut [u8], at: usize, words: &[(usize, u64)]) {
        for (offset, word) in words {
            disk[at + offset..at + offset + 8].copy_from_slice(&word.to_le_bytes());
        }
    }

    /// A node of a tree at a block.
    fn node(disk: &mut [u8], number: u64, flags: u32, entries: &[(u64, u64)]) {
        let at = number as usize * BLOCK as usize;
        disk[at + 4..at + 8].copy_from_slice(&flags.to_le_bytes());
        put(disk, at, &[(8, number), (16, entries.len() as u64 | 252 << 32)]);
        for (index, (key, value)) in entries.iter().enumerate() {
            put(disk, at, &[(32 + 8 * index, *key), (32 + 252 * 8 + 8 * index, *value)]);
        }
    }

    /// A pool with blocks of 64 KiB. Device 7 has blocks 0 to 2 and 9.
    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 8 * BLOCK as usize];
        put(&mut disk, 0, &[(32, MAGIC), (320, 1), (336, 128)]);
        node(&mut disk, 1, LEAF, &[(3, 5), (7, 2)]);
        node(&mut disk, 2, INTERNAL, &[(0, 3), (2, 4)]);
        node(&mut disk, 3, LEAF, &[(0, 10 << 24 | 1), (1, 11 << 24)]);
        node(&mut disk, 4, LEAF, &[(2, 12 << 24), (9, 13 << 24)]);
        node(&mut disk, 5, LEAF, &[]);
        disk
    }

    fn blocks(disk: &[u8], device: u64) -> Option<Vec<Run>> {
        let read = reader(disk);
        Pool::of(&read)?.blocks(&read, device)
    }

    #[test]
    fn blocks_are_found_through_both_trees() {
        let disk = disk();
        let runs = [Run { first: 0, at: 10, count: 3 }, Run { first: 9, at: 13, count: 1 }];
        assert_eq!(blocks(&disk, 7).unwrap(), runs);
        assert_eq!(blocks(&disk, 3), Some(Vec::new()));
        assert_eq!(blocks(&disk, 4), None);
        assert_eq!(Pool::of(&reader(&disk)).map(|pool| pool.block), Some(64 << 10));
    }

    #[test]
    fn trees_that_make_no_sense_are_refused() {
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut disk = disk();
            change(&mut disk);
            assert_eq!(blocks(&disk, 7), None);
        };
        refused(&|disk| put(disk, 0, &[(32, MAGIC + 1)]));
        refused(&|disk| node(disk, 2, INTERNAL, &[(0, 2)]));
        refused(&|disk| node(disk, 4, LEAF, &[(1, 12 << 24)]));
        refused(&|disk| node(disk, 4, LEAF | INTERNAL, &[(2, 12 << 24)]));
        refused(&|disk| put(disk, 4 * BLOCK as usize, &[(8, 3)]));
        refused(&|disk| put(disk, 4 * BLOCK as usize, &[(16, 2 | 300 << 32)]));
        refused(&|disk| put(disk, 4 * BLOCK as usize, &[(16, 253 | 252 << 32)]));
        refused(&|disk| put(disk, 2 * BLOCK as usize, &[(32 + 252 * 8, 99)]));
    }
}
