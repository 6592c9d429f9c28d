//! UDF: the kernel reports nothing of its metadata, but its descriptors say where its parts lie,
//! and a plain partition has a bitmap of free blocks (ECMA-167, 3rd edition, part 4; "Universal
//! Disk Format Specification", OSTA).

use super::{Blocks, Facts, RESERVED, bit, units};
use crate::probe::device::{Device, Fields, Read};
use virt_bmap_on_disk::udf::{self, Volume, descriptor};
use virt_bmap_ranges::{DeviceOffset, Range};

/// Largest bitmap that is read: of 2³⁰ blocks.
const LARGEST: u64 = 128 << 20;

/// Bytes of a space bitmap descriptor in front of its bitmap (4/14.12), and its tag.
const BITMAP_HEAD: u64 = 24;
const SPACE_BITMAP: u16 = 264;

/// `block` is the size of the mounted volume's blocks: the device may hold descriptors of an
/// earlier volume, too.
pub(super) fn describe(facts: &mut Facts, device: &mut Device<'_>, block: u64) {
    let of_device = |at, length| device.read(at, length);
    let Some(volume) = Volume::of(&of_device, block) else { return };
    // Small directories and files lie in their file entries.
    facts.unit = Some(block);
    facts.name("[volume recognition sequence]", recognition(&of_device, volume.block), true);
    let last = (device.size / volume.block).saturating_sub(1);
    let is_anchor = |number: &u64| {
        descriptor(&of_device, volume.block, *number).is_some_and(|(tag, _)| tag == udf::ANCHOR)
    };
    let anchors = [udf::ANCHOR_BLOCK, last.saturating_sub(256), last].into_iter().filter(is_anchor);
    facts.name("[anchors]", units(anchors, 0, volume.block).iter(), true);
    for (name, ranges) in
        [("[volume descriptors]", &volume.sequences), ("[integrity descriptors]", &volume.integrity)]
    {
        for range in ranges.iter().filter(|range| range.end.0 <= device.size) {
            let first = descriptor(&of_device, volume.block, range.start.0 / volume.block);
            facts.name(name, [*range], first.is_some());
        }
    }
    let streams = stream_directory(&of_device, &volume);
    facts.name("[stream directory]", streams, true);
    if volume.partition.end.0 <= device.size
        && let Some(bitmap) = volume.bitmap
    {
        let found = space_bitmap(&of_device, &volume, bitmap);
        facts.name("[space bitmap]", [bitmap], found.is_some());
        // After an unclean unmount the bitmap may be out of date.
        facts.free = found.filter(|_| volume.is_closed);
    }
    if facts.free.is_some() {
        let all: Blocks = [Range::new(0, device.size)].into_iter().collect();
        let mut known: Blocks = [volume.partition].into_iter().collect();
        known.extend(facts.named.iter().flat_map(|named| named.blocks.iter()));
        facts.name(RESERVED, all.difference(&known).iter(), true);
        facts.whole = all;
    }
}

/// The descriptors of the filesystem's type (2/8.3), of 2 KiB or one block each.
fn recognition(read: Read<'_>, block: u64) -> Option<Range<DeviceOffset>> {
    const START: u64 = 32768;
    const MOST: u64 = 64;
    const KINDS: [&[u8]; 7] = [b"BEA01", b"BOOT2", b"CD001", b"CDW02", b"NSR02", b"NSR03", b"TEA01"];
    let size = block.max(2048);
    let is_one = |number: &u64| {
        read(START + number * size, 6)
            .is_some_and(|bytes| bytes.get(1..6).is_some_and(|id| KINDS.contains(&id)))
    };
    let count = (0..MOST).take_while(is_one).count() as u64;
    (count > 0).then(|| Range::new(START, START + count * size))
}

/// The file entry of the directory of the volume's own streams, which the file set descriptor names
/// (4/14.1; UDF 2.3.2). What it lists is in the entry itself.
fn stream_directory(read: Read<'_>, volume: &Volume) -> Option<Range<DeviceOffset>> {
    /// Tags of the file set descriptor and of the extended file entry.
    const FILE_SET: u16 = 256;
    const EXTENDED: u16 = 266;
    let block_at = |number: u64| {
        let start = volume.partition.start.0.checked_add(number.checked_mul(volume.block)?)?;
        Range::at(DeviceOffset(start), volume.block).filter(|range| range.end <= volume.partition.end)
    };
    let is_tagged = |range: Range<DeviceOffset>, number: u64, wanted: u16| {
        let bytes = read(range.start.0, range.len())?;
        (udf::tag(&bytes, number)? == wanted).then_some(bytes)
    };
    let set = is_tagged(block_at(volume.file_set)?, volume.file_set, FILE_SET)?;
    let (length, number) = (set.le32(464)?, u64::from(set.le32(468)?));
    let range = block_at(number).filter(|_| length > 0)?;
    is_tagged(range, number, EXTENDED).map(|_| range)
}

/// The free blocks according to the bitmap at this place: set bits, the lowest of each byte first.
fn space_bitmap(read: Read<'_>, volume: &Volume, place: Range<DeviceOffset>) -> Option<Blocks> {
    let head = read(place.start.0, BITMAP_HEAD)?;
    // Its place is relative to the partition's start.
    let number = (place.start.0 - volume.partition.start.0) / volume.block;
    if udf::tag(&head, number)? != SPACE_BITMAP {
        return None;
    }
    let blocks = u64::from(head.le32(16)?).min(volume.partition.len() / volume.block);
    let length = blocks.div_ceil(8);
    if length > u64::from(head.le32(20)?) || length > LARGEST || BITMAP_HEAD + length > place.len() {
        return None;
    }
    let bits = read(place.start.0 + BITMAP_HEAD, length)?;
    let free = (0..blocks).filter(|number| bit(&bits, *number) == Some(true));
    Some(units(free, volume.partition.start.0, volume.block))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::device::reader;

    /// Completes the descriptor at this offset with its tag.
    fn put(disk: &mut [u8], at: usize, tag: u16, number: u32) {
        disk[at..at + 2].copy_from_slice(&tag.to_le_bytes());
        disk[at + 12..at + 16].copy_from_slice(&number.to_le_bytes());
        disk[at + 4] = 0;
        disk[at + 4] = disk[at..at + 16].iter().fold(0, |sum, byte| sum.wrapping_add(*byte));
    }

    fn volume() -> Volume {
        let range = |first: u64, end: u64| Range::new(first * 512, end * 512);
        Volume {
            block: 512,
            sequences: Vec::new(),
            integrity: Vec::new(),
            partition: range(10, 40),
            bitmap: Some(range(12, 13)),
            file_set: 0,
            is_closed: true,
        }
    }

    /// The bitmap of [`volume`].
    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 40 * 512];
        disk[12 * 512 + 16] = 30;
        disk[12 * 512 + 20] = 4;
        disk[12 * 512 + 24..][..4].copy_from_slice(&[0b1000_0000, 1, 0, 0xff]);
        put(&mut disk, 12 * 512, SPACE_BITMAP, 2);
        disk
    }

    #[test]
    fn set_bits_are_free_blocks() {
        let volume = volume();
        let of = |disk: &[u8]| space_bitmap(&reader(disk), &volume, volume.bitmap?);
        let free = of(&disk()).unwrap();
        let free: Vec<_> = free.iter().map(|range| (range.start.0 / 512, range.end.0 / 512)).collect();
        // The bits after the last block are ignored.
        assert_eq!(free, [(17, 19), (34, 40)]);
        // Another tag, a wrong checksum, another place, a bitmap that is too short, and one without
        // room.
        for (at, byte) in [(0, 9), (4, 0), (12, 3), (20, 3)] {
            let mut disk = disk();
            disk[12 * 512 + at] = byte;
            assert!(of(&disk).is_none(), "{at}");
        }
        let short = Range::new(12 * 512, 12 * 512 + 26);
        assert!(space_bitmap(&reader(&disk()), &volume, short).is_none());
        assert!(of(&disk()[..12 * 512 + 26]).is_none());
    }

    #[test]
    fn the_recognition_sequence_ends_where_nothing_is_known() {
        let mut disk = vec![0; 64 << 10];
        for (number, kind) in [b"BEA01", b"NSR03", b"TEA01"].into_iter().enumerate() {
            disk[32768 + number * 2048 + 1..][..5].copy_from_slice(kind);
        }
        assert_eq!(recognition(&reader(&disk), 512), Some(Range::new(32768, 32768 + 3 * 2048)));
        assert_eq!(recognition(&reader(&disk), 4096), Some(Range::new(32768, 32768 + 2 * 4096)));
        assert_eq!(recognition(&reader(&disk[..32768]), 512), None);
    }
}
