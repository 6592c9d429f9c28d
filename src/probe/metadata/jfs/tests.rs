//! A filesystem made by hand.

use super::*;
use crate::probe::device::reader;

fn put(disk: &mut [u8], at: u64, words: &[(usize, u32)]) {
    for (offset, word) in words {
        disk[at as usize + offset..][..4].copy_from_slice(&word.to_le_bytes());
    }
}

/// A page of a tree with these extents: of the file, the block and the count.
fn tree(disk: &mut [u8], at: u64, flags: u32, extents: &[(u32, u32, u32)]) {
    put(disk, at, &[(16, flags | (extents.len() as u32 + 2) << 16)]);
    for (number, (offset, first, count)) in extents.iter().enumerate() {
        put(disk, at + 32 + 16 * number as u64, &[(4, *offset), (8, *count), (12, *first)]);
    }
}

const BLOCKS: u64 = 9000;
const INODE_2: u64 = INODE_TABLE + BLOCK_MAP * INODE;

/// 9000 blocks; the map is in two pieces, and its second page of bits is the last.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; 64 * PAGE as usize];
    put(&mut disk, INODE_2, &[(8, 2)]);
    tree(&mut disk, INODE_2 + ROOT as u64, 0x83, &[(0, 20, 5), (5, 30, 1)]);
    put(&mut disk, 20 * PAGE, &[(0, BLOCKS as u32)]);
    put(&mut disk, 24 * PAGE, &[(0, 8192), (8, 0)]);
    put(&mut disk, 30 * PAGE, &[(0, 808), (8, 8192)]);
    for (page, words) in [(24, 256), (30, 26)] {
        (0..words).for_each(|word| put(&mut disk, page * PAGE, &[(3072 + 4 * word, u32::MAX)]));
    }
    put(&mut disk, 24 * PAGE, &[(3072, 0x0fff_fff7)]);
    put(&mut disk, 30 * PAGE, &[(3072 + 4 * 25, 0)]);
    disk
}

fn free_of(disk: &[u8]) -> Option<Vec<(u64, u64)>> {
    let read = reader(disk);
    let free = free(&read, &block_map(&read, INODE_TABLE)?, BLOCKS)?;
    Some(free.iter().map(|range| (range.start.0 / PAGE, range.end.0 / PAGE)).collect())
}

#[test]
fn free_blocks_are_zeroes_from_the_highest_bit_on() {
    // The last word has bits of blocks that are not there.
    assert_eq!(free_of(&disk()).unwrap(), [(0, 4), (28, 29), (8992, 9000)]);
}

#[test]
fn trees_may_have_levels() {
    let mut disk = disk();
    tree(&mut disk, INODE_2 + ROOT as u64, 0x85, &[(0, 40, 1), (5, 41, 1)]);
    tree(&mut disk, 40 * PAGE, 0x02, &[(0, 20, 2), (2, 22, 3)]);
    tree(&mut disk, 41 * PAGE, 0x02, &[(5, 30, 1)]);
    assert_eq!(free_of(&disk).unwrap().len(), 3);
    // A page that is its own child, and a file with a hole.
    tree(&mut disk, 40 * PAGE, 0x04, &[(0, 40, 1)]);
    assert_eq!(free_of(&disk), None);
    tree(&mut disk, 40 * PAGE, 0x02, &[(0, 20, 2), (3, 22, 2)]);
    assert_eq!(free_of(&disk), None);
}

#[test]
fn invalid_maps_are_refused() {
    // Another inode, a map of more blocks, pages of other ones or too few, a tree with more entries
    // than it has room for.
    let places =
        [INODE_2 + 8, 20 * PAGE, 24 * PAGE, 24 * PAGE + 8, 30 * PAGE + 9, INODE_2 + ROOT as u64 + 18];
    for at in places {
        let mut disk = disk();
        disk[at as usize] ^= 0x80;
        assert_eq!(free_of(&disk), None, "{at:#x}");
    }
    let mut short = disk();
    tree(&mut short, INODE_2 + ROOT as u64, 0x83, &[(0, 20, 5)]);
    assert_eq!(free_of(&short), None);
    tree(&mut short, INODE_2 + ROOT as u64, 0x83, &[(0, 20, 0xff_ffff)]);
    assert_eq!(free_of(&short), None);
}

/// The pages that sum up a thousand others are skipped.
#[test]
fn there_is_a_page_after_each_1024() {
    let blocks = 1025 * 8192;
    let mut disk = vec![0; 1030 * PAGE as usize];
    put(&mut disk, 0, &[(0, blocks)]);
    for number in 0..1025 {
        let page = number + number / 1024 + 4;
        put(&mut disk, u64::from(page) * PAGE, &[(0, 8192), (8, number * 8192), (3072, u32::MAX)]);
    }
    let read = reader(&disk);
    let free = free(&read, &[Extent { first: 0, count: 1030 }], blocks.into()).unwrap();
    assert_eq!(free.bytes() / PAGE, u64::from(blocks) - 1025 * 32);
}

#[test]
fn the_superblock_says_where_things_are() {
    let mut superblock = vec![0; SUPERBLOCK_SIZE as usize];
    superblock[..4].copy_from_slice(Volume::MAGIC);
    let words = [
        (8, 72000),
        (16, 4096),
        (24, 512),
        (36, 0x800),
        (48, 4),
        (52, 27),
        (72, 0x0100_0010),
        (80, 52),
        (84, 9000),
    ];
    put(&mut superblock, 0, &words);
    let range = |first, count| Extent { first, count }.range();
    let volume = Volume::of(&superblock).unwrap();
    assert_eq!((volume.blocks, volume.is_clean), (BLOCKS, true));
    assert_eq!((volume.second_table, volume.work), (range(27, 4), range(9000, 52)));
    assert_eq!(volume.log, Some(range(1 << 32, 16)));
    // Another magic number, other blocks, none of them, more than there can be.
    for (at, byte) in [(0, 0), (17, 8), (25, 0), (15, 0xff)] {
        let mut superblock = superblock.clone();
        superblock[at] = byte;
        assert_eq!(Volume::of(&superblock), None, "{at}");
    }
    superblock[40] = 1;
    assert!(!Volume::of(&superblock).unwrap().is_clean);
}
