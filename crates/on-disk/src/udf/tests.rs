//! Volumes made by hand.

use super::*;
use crate::reader;

/// Completes the descriptor at this offset with its tag.
fn put(disk: &mut [u8], at: usize, tag: u16, number: u32) {
    disk[at..at + 2].copy_from_slice(&tag.to_le_bytes());
    disk[at + 12..at + 16].copy_from_slice(&number.to_le_bytes());
    disk[at + 4] = 0;
    disk[at + 4] = disk[at..at + 16].iter().fold(0, |sum, byte| sum.wrapping_add(*byte));
}

const COUNT: usize = 300;

/// A volume of blocks of this size; its partition is the blocks from 270 on, and has a bitmap in
/// its first.
fn disk(block: usize) -> Vec<u8> {
    let mut disk = vec![0; COUNT * block];
    let size = block as u32;
    let mut add = |number: usize, tag: u16, words: &[(usize, u32)]| {
        for (at, word) in words {
            disk[number * block + at..][..4].copy_from_slice(&word.to_le_bytes());
        }
        put(&mut disk, number * block, tag, number as u32);
    };
    add(256, ANCHOR, &[(16, 4 * size), (20, 260), (24, 4 * size), (28, 265)]);
    // One of before, which is another partition.
    add(260, LOGICAL_VOLUME, &[(16, 1), (212, size), (268, 1), (440, 0x0601), (444, 7)]);
    add(261, POINTER, &[(16, 2), (20, 3 * size), (24, 280)]);
    add(280, LOGICAL_VOLUME, &[(16, 3), (212, size), (268, 1), (440, 0x0601), (432, size), (436, 268)]);
    let partition =
        [(16, 4), (25, u32::from_le_bytes(*b"+NSR")), (29, 0x3330), (64, 24 + 4), (188, 270), (192, 30)];
    add(281, PARTITION, &partition);
    add(282, TERMINATOR, &[]);
    add(268, INTEGRITY, &[(28, 1)]);
    disk
}

fn with(number: usize, at: usize, byte: u8) -> Vec<u8> {
    let mut disk = disk(512);
    disk[number * 512 + at] = byte;
    let tag = u16::from_le_bytes([disk[number * 512], disk[number * 512 + 1]]);
    put(&mut disk, number * 512, tag, number as u32);
    disk
}

fn find(disk: &[u8]) -> Option<Volume> {
    Volume::of(&reader(disk), 512)
}

#[test]
fn a_volume_is_found_whatever_its_blocks() {
    for block in [512, 1024, 2048, 4096] {
        let range = |first, end| Range::new(first * block, end * block);
        let volume = Volume {
            block,
            sequences: vec![range(260, 264), range(265, 269)],
            integrity: vec![range(268, 269)],
            partition: range(270, 300),
            bitmap: Some(range(270, 271)),
            file_set: 0,
            is_closed: true,
        };
        assert_eq!(Volume::of(&reader(&disk(block as usize)), block), Some(volume));
        let other = if block == 512 { 2048 } else { 512 };
        assert_eq!(Volume::of(&reader(&disk(block as usize)), other), None);
    }
}

#[test]
fn only_plain_volumes_are_understood() {
    // No anchor, a tag with another sum or of another block, another size of blocks, two
    // partitions, a map of another kind, and a partition that is not there.
    assert_eq!(find(&[0; 512 * COUNT]), None);
    assert_eq!(find(&with(256, 0, 3)), None);
    for (number, at) in [(256, 4), (256, 13)] {
        let mut disk = disk(512);
        disk[number * 512 + at] ^= 1;
        assert_eq!(find(&disk), None, "{at}");
    }
    for (at, byte) in [(212, 1), (268, 2), (440, 2), (444, 1)] {
        assert_eq!(find(&with(280, at, byte)), None, "{at}");
    }
}

#[test]
fn free_space_is_a_bitmap_or_nothing() {
    let bitmap = |disk: &[u8]| find(disk).unwrap().bitmap;
    assert!(bitmap(&disk(512)).is_some());
    // Tables, bitmaps of freed blocks, no bitmap, one outside of the partition, and contents that
    // are something else.
    for (at, byte) in [(56, 1), (80, 1), (88, 1), (64, 0), (67, 0x40), (68, 30), (71, 0xff), (30, b'1')] {
        assert_eq!(bitmap(&with(281, at, byte)), None, "{at}");
    }
}

#[test]
fn what_is_open_is_not_closed() {
    assert!(!find(&with(268, 28, 0)).unwrap().is_closed);
    // The next one counts, and is not there; or it is this one again, which ends.
    let mut next = with(268, 32, 1);
    assert!(find(&next).unwrap().is_closed);
    next[268 * 512 + 36..][..2].copy_from_slice(&268u16.to_le_bytes());
    assert!(find(&next).unwrap().is_closed);
}

#[test]
fn sequences_that_point_to_themselves_end() {
    let mut disk = disk(512);
    disk[261 * 512 + 24..][..2].copy_from_slice(&260u16.to_le_bytes());
    assert_eq!(find(&disk), None);
}
