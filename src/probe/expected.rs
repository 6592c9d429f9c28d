//! What the kernel promises of a file, to be compared with what was read of it.

use super::layout::{Layout, Segment};
use crate::range::{DeviceOffset, DiskRange, FileOffset, Offset as _, Range};
use crate::recorder::{DiskNumber, Recording};
use virt_bmap_agent::record::Extent;

/// `statfs(2)` magic of btrfs. Its FIEMAP gives places in an address space of its own, and it reads
/// checksums, which lie elsewhere, along with data that it reads for the first time.
pub(super) const BTRFS: u64 = 0x9123_683e;

/// What a file's extents promise of a read of all of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Expectation {
    /// They do not tell.
    None,
    /// Exactly these blocks.
    Blocks(Recording),
    /// So many bytes, wherever they are.
    Bytes(u64),
    /// Nothing; but only a second read, with all metadata in memory, touches data alone.
    SecondRead,
}

impl Expectation {
    /// What reading a file of `size` bytes must touch, if its extents lie in the clear on `layout`.
    /// `block` is the file system's block size, `magic` its number in `statfs(2)`.
    pub(super) fn of(extents: &[Extent], size: u64, block: u64, magic: u64, layout: &Layout) -> Self {
        let end = size.checked_next_multiple_of(block.max(1)).unwrap_or(u64::MAX);
        if magic == BTRFS {
            return Self::of_btrfs(extents, end);
        }
        let mut blocks = Recording::default();
        for extent in extents.iter().filter(|extent| extent.flags & Extent::UNWRITTEN == 0) {
            if !extent.is_plain() {
                return Self::None;
            }
            let length = extent.length.min(end.saturating_sub(extent.logical));
            let range = Range::at(DeviceOffset(extent.physical), length);
            let Some(segments) = range.and_then(|range| layout.part(range)) else {
                return Self::None;
            };
            blocks.extend(segments.iter().map(|segment| (segment.disk, segment.disk_range())));
        }
        Self::Blocks(blocks)
    }

    fn of_btrfs(extents: &[Extent], end: u64) -> Self {
        let mut bytes: u64 = 0;
        for extent in extents {
            if extent.flags & (Extent::UNWRITTEN | Extent::INLINE) != 0 {
                continue;
            }
            if !extent.is_plain() {
                return Self::SecondRead;
            }
            bytes = bytes.saturating_add(extent.length.min(end.saturating_sub(extent.logical)));
        }
        Self::Bytes(bytes)
    }

    /// Whether what was read is what was promised; `again`: the file has been read a second time.
    pub(super) fn is_met_by(&self, recording: &Recording, again: bool) -> bool {
        match self {
            Self::None => true,
            Self::SecondRead => again,
            Self::Bytes(bytes) => recording.bytes() == *bytes,
            // Compared as sets: a recording may have looked at more disks without finding anything.
            Self::Blocks(blocks) => blocks.iter().eq(recording.iter()),
        }
    }
}

/// What was read, cut where the extents begin and end, each part with its place in the file. What no
/// extent covers has none.
pub(super) fn split_by_extents(
    recording: &Recording,
    extents: &[Extent],
    layout: Option<&Layout>,
) -> Vec<(DiskNumber, DiskRange, Option<FileOffset>)> {
    let mut places: Vec<(Segment, u64)> = Vec::new();
    for extent in extents.iter().filter(|extent| extent.is_plain()) {
        let range = Range::at(DeviceOffset(extent.physical), extent.length);
        let segments = layout.and_then(|layout| layout.part(range?)).unwrap_or_default();
        for segment in segments {
            let into = segment.device.start.bytes() - extent.physical;
            places.push((segment, extent.logical.saturating_add(into)));
        }
    }
    places.sort_unstable_by_key(|(segment, _)| (segment.disk, segment.start));
    let mut parts = Vec::new();
    for (disk, range) in recording.iter() {
        let mut at = range.start;
        let first = places
            .partition_point(|(segment, _)| (segment.disk, segment.disk_range().end) <= (disk, range.start));
        for (segment, logical) in &places[first..] {
            let blocks = segment.disk_range();
            if segment.disk != disk || blocks.start >= range.end {
                break;
            }
            let Some(part) = blocks.intersection(DiskRange { start: at, end: range.end }) else { continue };
            if at < part.start {
                parts.push((disk, DiskRange { start: at, end: part.start }, None));
            }
            let offset = logical.saturating_add(part.start.0 - blocks.start.0);
            parts.push((disk, part, Some(FileOffset(offset))));
            at = part.end;
        }
        if at < range.end {
            parts.push((disk, DiskRange { start: at, end: range.end }, None));
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXT4: u64 = 0xef53;

    fn extent(logical: u64, physical: u64, length: u64, flags: u32) -> Extent {
        Extent { logical, physical, length, flags }
    }

    fn disk() -> Layout {
        Layout::of_disk(1, 1 << 20)
    }

    fn read(ranges: &[(u64, u64)]) -> Recording {
        ranges.iter().map(|&(start, end)| (1, DiskRange::new(start, end))).collect()
    }

    #[test]
    fn a_file_is_expected_where_its_extents_are_up_to_its_last_block() {
        let extents = [
            extent(0, 8192, 4096, 0),
            extent(4096, 65536, 8192, Extent::LAST),
            extent(12288, 0, 4096, Extent::UNWRITTEN),
        ];
        let expectation = Expectation::of(&extents, 5000, 4096, EXT4, &disk());
        assert_eq!(expectation, Expectation::Blocks(read(&[(8192, 12288), (65536, 65536 + 4096)])));
        assert!(expectation.is_met_by(&read(&[(65536, 65536 + 4096), (8192, 12288)]), false));
        assert!(!expectation.is_met_by(&read(&[(8192, 12288)]), false));
        assert!(!expectation.is_met_by(&read(&[(8192, 12288), (65536, 65536 + 8192)]), true));
    }

    #[test]
    fn what_the_kernel_does_not_promise_is_not_expected() {
        for extent in
            [extent(0, 8192, 4096, Extent::INLINE), extent(0, 1 << 20, 4096, 0), extent(0, u64::MAX, 9, 0)]
        {
            assert_eq!(Expectation::of(&[extent], 5000, 4096, EXT4, &disk()), Expectation::None);
        }
    }

    #[test]
    fn of_btrfs_the_amount_is_known_but_not_the_place() {
        let of = |extents: &[Extent]| Expectation::of(extents, 5000, 4096, BTRFS, &disk());
        let plain = of(&[extent(0, 1 << 40, 4096, 0), extent(4096, 1 << 41, 8192, 0)]);
        assert_eq!(plain, Expectation::Bytes(8192));
        assert!(plain.is_met_by(&read(&[(0, 8192)]), false));
        assert!(!plain.is_met_by(&read(&[(0, 8192), (16384, 32768)]), false));
        assert_eq!(of(&[extent(0, 0, 4096, Extent::INLINE)]), Expectation::Bytes(0));
        let compressed = of(&[extent(0, 1 << 40, 131_072, Extent::ENCODED)]);
        assert!(!compressed.is_met_by(&read(&[]), false));
        assert!(compressed.is_met_by(&read(&[]), true));
    }

    #[test]
    fn recorded_ranges_get_their_place_in_the_file() {
        let extents = [extent(0, 8192, 4096, 0), extent(4096, 4096, 4096, 0)];
        let parts = split_by_extents(&read(&[(4096, 16384)]), &extents, Some(&disk()));
        assert_eq!(
            parts,
            [
                (1, DiskRange::new(4096, 8192), Some(FileOffset(4096))),
                (1, DiskRange::new(8192, 12288), Some(FileOffset(0))),
                (1, DiskRange::new(12288, 16384), None),
            ]
        );
        let parts = split_by_extents(&read(&[(9000, 9100)]), &extents, Some(&disk()));
        assert_eq!(parts, [(1, DiskRange::new(9000, 9100), Some(FileOffset(808)))]);
        let parts = split_by_extents(&read(&[(0, 512)]), &extents, None);
        assert_eq!(parts, [(1, DiskRange::new(0, 512), None)]);
    }
}
