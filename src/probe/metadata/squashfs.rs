//! squashfs: all of it is in use. Data comes first, then one table after the other. The superblock
//! says where each ends, and the list of its blocks where it begins (`struct squashfs_super_block`
//! of the kernel's `fs/squashfs/squashfs_fs.h`; `Documentation/filesystems/squashfs.rst`).

use super::{Facts, PADDING};
use crate::probe::device::{Device, Fields as _, Read};
use virt_bmap_ranges::{DeviceOffset, Range};

/// Bytes of the superblock.
const SUPERBLOCK: u64 = 96;

/// Bytes of a block of metadata before compression, and of its header.
const BLOCK: u64 = 8192;
const HEADER: u64 = 2;

/// Programs pad the filesystem to this.
const PADDED: u64 = 4096;

/// Bytes of the largest list of blocks that is read.
const LARGEST: u64 = 16 << 20;

pub(super) fn describe(facts: &mut Facts, device: &Device<'_>) {
    let _ = describe_by(facts, &|at, length| device.read(at, length), device.size);
}

fn describe_by(facts: &mut Facts, read: Read<'_>, size: u64) -> Option<()> {
    let superblock = read(0, SUPERBLOCK)?;
    let used = superblock.le64(40).filter(|used| superblock.le32(0) == Some(0x7371_7368) && *used <= size)?;
    let end = used.checked_next_multiple_of(PADDED)?.min(size);
    facts.all_in_use(end);
    // The driver may read it together with the last table.
    let is_zero = read(used, end - used).is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0));
    facts.name(PADDING, Some(Range::new(used, end)).filter(|_| is_zero), true);
    facts.name("[superblocks]", [Range::new(0, SUPERBLOCK + options(&superblock, read))], true);
    let long = |at: usize| superblock.le64(at).filter(|place| (SUPERBLOCK..=used).contains(place));
    let (inodes, directories) = (long(64)?, long(72)?);
    let tables = [
        ("[fragment table]", long(80).and_then(|list| table(read, list, superblock.le32(16)?, 16))),
        ("[export table]", long(88).and_then(|list| table(read, list, superblock.le32(4)?, 8))),
        ("[id table]", long(48).and_then(|list| table(read, list, superblock.le16(26)?.into(), 4))),
        ("[extended attributes]", long(56).and_then(|list| attributes(read, list))),
    ];
    let first = tables.iter().filter_map(|(_, table)| table.map(|table| table.start.0)).min();
    let first = first.unwrap_or(used);
    facts.name("[inodes]", [Range::new(inodes, directories.min(first))], true);
    facts.name("[directories]", [Range::new(directories, first)], true);
    for (name, table) in tables {
        facts.name(name, table.filter(|table| table.end.0 <= used), true);
    }
    Some(())
}

/// Bytes of the options of the compressor, a block of metadata behind the superblock.
fn options(superblock: &[u8], read: Read<'_>) -> u64 {
    const HAS_OPTIONS: u16 = 0x400;
    const NOT_COMPRESSED: u16 = 0x8000;
    let has_options = superblock.le16(24).is_some_and(|flags| flags & HAS_OPTIONS != 0);
    let length = read(SUPERBLOCK, HEADER).filter(|_| has_options).and_then(|header| header.le16(0));
    length.map_or(0, |length| HEADER + u64::from(length & !NOT_COMPRESSED))
}

/// A table with so many entries of `size` bytes: its blocks, and the list of them at `list`.
fn table(read: Read<'_>, list: u64, entries: u32, size: u64) -> Option<Range<DeviceOffset>> {
    let length = (u64::from(entries) * size).div_ceil(BLOCK) * 8;
    let first = read(list, 8).filter(|_| (1..=LARGEST).contains(&length))?.le64(0)?;
    Range::at(DeviceOffset(list), length)
        .map(|list| Range { start: DeviceOffset(first), ..list })
        .filter(in_order)
}

/// Where all extended attributes lie: a table whose list has a header, which says where the
/// attributes themselves begin.
fn attributes(read: Read<'_>, list: u64) -> Option<Range<DeviceOffset>> {
    const HEADER: u64 = 16;
    let header = read(list, HEADER)?;
    let (first, count) = (header.le64(0)?, header.le32(8)?);
    let length = (u64::from(count) * 16).div_ceil(BLOCK) * 8;
    let list = Range::at(DeviceOffset(list), HEADER + length)?;
    Some(Range { start: DeviceOffset(first), ..list }).filter(in_order)
}

/// Whether a table begins behind the superblock, and before its end.
fn in_order(table: &Range<DeviceOffset>) -> bool {
    SUPERBLOCK <= table.start.0 && table.start < table.end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::device::reader;

    /// Options of 8 bytes, data until 1000, inodes until 1200, directories until 1300, then
    /// fragments, ids and attributes.
    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 8192];
        let mut put = |at: usize, bytes: &[u8]| disk[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &0x7371_7368u32.to_le_bytes());
        put(16, &600u32.to_le_bytes());
        put(24, &[0, 4, 1, 0]);
        let places =
            [(40, 2000u64), (48, 1500), (56, 1800), (64, 1000), (72, 1200), (80, 1400), (88, u64::MAX)];
        for (at, place) in places {
            put(at, &place.to_le_bytes());
        }
        put(96, &[8, 0x80]);
        put(1400, &1300u64.to_le_bytes());
        put(1500, &1450u64.to_le_bytes());
        put(1800, &1508u64.to_le_bytes());
        put(1808, &1u32.to_le_bytes());
        disk
    }

    fn named(disk: &[u8]) -> Vec<(&'static str, u64, u64)> {
        let mut facts = Facts::default();
        describe_by(&mut facts, &reader(disk), disk.len() as u64);
        let ranges =
            facts.named.iter().flat_map(|named| named.blocks.iter().map(move |range| (named.name, range)));
        ranges.map(|(name, range)| (name, range.start.0, range.end.0)).collect()
    }

    #[test]
    fn tables_lie_between_their_blocks_and_the_ends_of_their_lists() {
        assert_eq!(
            named(&disk()),
            [
                ("[padding]", 2000, 4096),
                ("[superblocks]", 0, 106),
                ("[inodes]", 1000, 1200),
                ("[directories]", 1200, 1300),
                ("[fragment table]", 1300, 1416),
                ("[id table]", 1450, 1508),
                ("[extended attributes]", 1508, 1824),
            ]
        );
        let mut facts = Facts::default();
        describe_by(&mut facts, &reader(&disk()), 8192);
        assert_eq!((facts.whole.bytes(), facts.free.map(|free| free.bytes())), (4096, Some(0)));
    }

    #[test]
    fn what_makes_no_sense_is_left_out() {
        // Another magic number, and more bytes than the device.
        for (at, byte) in [(0, 1), (42, 1)] {
            let mut disk = disk();
            disk[at] = byte;
            assert_eq!(named(&disk), [], "{at}");
        }
        // A table that begins behind its list, one whose list is behind the end, and one without
        // entries.
        for (at, byte) in [(1401, 0xff), (81, 0xff), (16, 0)] {
            let mut disk = disk();
            disk[at] = byte;
            if at == 16 {
                disk[17] = 0;
            }
            assert!(named(&disk).iter().all(|(name, ..)| *name != "[fragment table]"), "{at}");
        }
    }
}
