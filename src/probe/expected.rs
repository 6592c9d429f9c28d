//! Expected blocks of a file, to be compared with its recording, and the pieces that follow.

use super::Legs;
use super::layout::{Layout, Segment};
use crate::recorder::Recording;
use virt_bmap_agent_protocol::FsKind;
use virt_bmap_agent_protocol::record::Extent;
use virt_bmap_map::{PieceFlags, Role};
use virt_bmap_ranges::{DeviceOffset, DiskNumber, DiskRange, FileOffset, Range, RangeSet};

/// Bytes in a page of the appliance's kernel.
pub(super) const PAGE: u64 = 4096;

/// What a read of the whole file must touch, according to its extents.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Expectation {
    /// Unknown: the extents are not plain.
    None,
    /// Exactly these blocks of the filesystem's device.
    Blocks(RangeSet<DeviceOffset>),
    /// At least what is due, and at most `most`; the blocks are the file's.
    Pages { blocks: RangeSet<DeviceOffset>, due: RangeSet<DeviceOffset>, most: RangeSet<DeviceOffset> },
    /// This number of bytes, anywhere.
    Bytes(u64),
    /// Unknown; but a second read, with all metadata in memory, touches only data.
    SecondRead,
}

impl Expectation {
    /// What a read of a file of `size` bytes must touch. `block` is the filesystem's block size,
    /// `kind` its type by the magic number in `statfs(2)`; `has_layout`: the layout that the
    /// extents refer to is known.
    pub(super) fn of(extents: &[Extent], size: u64, block: u64, kind: &FsKind, has_layout: bool) -> Self {
        let facts = kind.facts();
        let end = size.checked_next_multiple_of(block.max(1)).unwrap_or(u64::MAX);
        let mut blocks = RangeSet::new();
        let (mut due, mut most) = (RangeSet::new(), RangeSet::new());
        let mut bytes: u64 = 0;
        let last_page = size.checked_next_multiple_of(block.clamp(1, PAGE)).unwrap_or(u64::MAX);
        let mut is_encoded = false;
        for extent in extents.iter().filter(|extent| extent.flags & Extent::UNWRITTEN == 0) {
            if facts.has_address_space && extent.flags & Extent::INLINE != 0 {
                continue;
            }
            if facts.has_address_space && !extent.is_plain() {
                return Self::SecondRead;
            }
            // ntfs-3g reads the clusters of a compressed file, and some of them not to their ends.
            let whole = extent.flags & Extent::ENCODED != 0 && kind.is_fuse();
            is_encoded |= whole;
            let plain = Extent { flags: extent.flags & !if whole { Extent::ENCODED } else { 0 }, ..*extent };
            let mut length = extent.length;
            if !whole {
                length = length.min(end.saturating_sub(extent.logical));
            }
            let mut longest = length;
            if facts.may_read_whole_pages && extent.logical.saturating_add(length) >= size {
                longest = length.max(last_page.saturating_sub(extent.logical));
            }
            let at = |length| Range::at(DeviceOffset(extent.physical), length);
            let (Some(range), Some(whole_pages), true) = (at(length), at(longest), plain.is_plain()) else {
                return Self::None;
            };
            blocks.insert(range);
            most.insert(if kind.is_fuse() { on_pages(range) } else { whole_pages });
            let read = if whole { PAGE } else { last_page.saturating_sub(extent.logical) };
            due.insert(Range::new(range.start.0, range.start.0 + length.min(read)));
            bytes = bytes.saturating_add(length);
        }
        match has_layout {
            true if kind.is_fuse() && (block != PAGE || is_encoded) => Self::Pages { blocks, due, most },
            true if most != blocks && !kind.is_fuse() => Self::Pages { due: blocks.clone(), blocks, most },
            true => Self::Blocks(blocks),
            false => Self::Bytes(bytes),
        }
    }

    /// Whether a recording matches; `is_reread`: the file has been read a second time.
    pub(super) fn is_met_by(&self, recording: &Recording, layout: Option<&Layout>, is_reread: bool) -> bool {
        match self {
            Self::None => true,
            Self::SecondRead => is_reread,
            Self::Bytes(bytes) => recording.bytes() == *bytes,
            Self::Blocks(blocks) | Self::Pages { blocks, .. } if layout.is_some_and(Layout::is_partial) => {
                layout.is_some_and(|layout| blocks.iter().all(|range| layout.covers(range)))
            }
            Self::Blocks(blocks) => {
                let read = layout.and_then(|layout| Some((layout, layout.to_device(recording)?)));
                read.is_some_and(|(layout, read)| read == *layout.on_disks(blocks))
            }
            Self::Pages { due, most, .. } => {
                layout.and_then(|layout| layout.to_device(recording)).is_some_and(|read| {
                    due.iter().all(|range| read.contains(range))
                        && read.iter().all(|range| most.contains(range))
                })
            }
        }
    }

    /// The part of a matching recording that is the file's own.
    pub(super) fn share(&self, recording: Recording, layout: Option<&Layout>) -> Recording {
        let (Self::Pages { blocks, .. }, Some(layout)) = (self, layout.filter(|layout| !layout.is_partial()))
        else {
            return recording;
        };
        if layout.copy_count() == 1 {
            // What is not due belongs to the file, too.
            return blocks.iter().filter_map(|range| layout.places(range)).flatten().collect();
        }
        let parts = blocks.iter().flat_map(|range| layout.part(range).unwrap_or_default());
        parts
            .flat_map(|part| {
                recording.overlap(part.disk, part.disk_range()).map(move |range| (part.disk, range))
            })
            .collect()
    }
}

/// The pages of the device in which a range lies.
fn on_pages(range: Range<DeviceOffset>) -> Range<DeviceOffset> {
    Range::new(range.start.0 / PAGE * PAGE, range.end.0.next_multiple_of(PAGE))
}

/// A piece of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PlacedRange {
    pub(super) disk: DiskNumber,
    pub(super) range: DiskRange,
    pub(super) file_offset: Option<FileOffset>,
    pub(super) role: Role,
}

/// The pieces of an object: its recording, with the copies on other disks and the parity, cut where
/// extents begin and end; then its unwritten extents. A range that no extent covers has no file
/// offset. With [`Legs::One`] there is only what was read.
///
/// If an array lacks a member, other blocks are read in place of those on it, so the extents count
/// instead of the recording.
pub(super) fn places(
    recording: &Recording,
    extents: &[Extent],
    layout: Option<&Layout>,
    legs: Legs,
) -> Vec<PlacedRange> {
    let on_device = layout.and_then(|layout| {
        let device = if layout.is_partial() { plain(extents) } else { layout.to_device(recording)? };
        Some((layout, device))
    });
    let Some((layout, device)) = on_device else {
        let place = |(disk, range)| PlacedRange { disk, range, file_offset: None, role: Role::default() };
        return recording.iter().map(place).collect();
    };
    let was_read = |part: Segment| -> Vec<Segment> {
        let read = recording.overlap(part.disk, part.disk_range());
        read.filter_map(|range| part.on_disk(range)).collect()
    };
    let unwritten = extents.iter().filter(|extent| extent.is_unwritten());
    let mut extents: Vec<&Extent> = extents.iter().filter(|extent| extent.is_plain()).collect();
    extents.sort_unstable_by_key(|extent| extent.physical);
    let mut places = Vec::new();
    let mut put = |range: Range<DeviceOffset>, offset: Option<u64>, flags: PieceFlags| {
        let mut parts: Vec<(Segment, PieceFlags)> = Vec::new();
        for part in layout.part(range).unwrap_or_default() {
            match legs {
                Legs::All => parts.push((part, flags)),
                Legs::One if flags.contains(PieceFlags::UNWRITTEN) || layout.is_partial() => {
                    parts.extend((part.copy == 0).then_some((part, flags)));
                }
                Legs::One => parts.extend(was_read(part).into_iter().map(|part| (part, flags))),
            }
        }
        if legs == Legs::All {
            parts.extend(layout.parity(range).map(|part| (part, flags | PieceFlags::PARITY)));
        }
        for (part, flags) in parts {
            let into = part.device.start.0 - range.start.0;
            let file_offset = offset.and_then(|offset| Some(FileOffset(offset.checked_add(into)?)));
            let role = Role { copy: part.copy, flags };
            places.push(PlacedRange { disk: part.disk, range: part.disk_range(), file_offset, role });
        }
    };
    let written = PieceFlags::empty();
    for range in device.iter() {
        let mut at = range.start.0;
        let first =
            extents.partition_point(|extent| extent.physical.saturating_add(extent.length) <= range.start.0);
        for extent in &extents[first..] {
            let blocks: Range<DeviceOffset> =
                Range::new(extent.physical, extent.physical.saturating_add(extent.length));
            let Some(part) = blocks.intersection(Range::new(at, range.end.0)) else {
                if extent.physical >= range.end.0 { break } else { continue }
            };
            put(Range::new(at, part.start.0), None, written);
            put(part, extent.logical.checked_add(part.start.0 - extent.physical), written);
            at = part.end.0;
        }
        put(Range::new(at, range.end.0), None, written);
    }
    for extent in unwritten {
        if let Some(range) = Range::at(DeviceOffset(extent.physical), extent.length) {
            put(range, Some(extent.logical), PieceFlags::UNWRITTEN);
        }
    }
    places
}

/// The blocks of plain extents.
fn plain(extents: &[Extent]) -> RangeSet<DeviceOffset> {
    let plain = extents.iter().filter(|extent| extent.is_plain());
    plain.filter_map(|extent| Range::at(DeviceOffset(extent.physical), extent.length)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::layout::address_space;
    use std::sync::Arc;
    use virt_bmap_agent_protocol::record::{Chunk, Member};

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
        let expectation = Expectation::of(&extents, 5000, 4096, &FsKind::Ext4, true);
        let blocks = [Range::new(8192, 12288), Range::new(65536, 65536 + 4096)].into_iter().collect();
        assert_eq!(expectation, Expectation::Blocks(blocks));
        let met = |ranges: &[(u64, u64)]| expectation.is_met_by(&read(ranges), Some(&disk()), false);
        assert!(met(&[(65536, 65536 + 4096), (8192, 12288)]));
        assert!(!met(&[(8192, 12288)]));
        assert!(!met(&[(8192, 12288), (65536, 65536 + 8192)]));
        assert!(!met(&[(8192, 12288), (65536, 65536 + 4096), (1 << 20, (1 << 20) + 512)]));
        assert_eq!(Expectation::of(&extents, 5000, 4096, &FsKind::Ext4, false), Expectation::Bytes(8192));
    }

    #[test]
    fn exfat_may_read_the_last_page_up_to_the_cluster_end() {
        let of =
            |cluster: u64| Expectation::of(&[extent(0, 8192, 5120, 0)], 5000, cluster, &FsKind::Exfat, true);
        let met =
            |cluster, length| of(cluster).is_met_by(&read(&[(8192, 8192 + length)]), Some(&disk()), false);
        for (cluster, most) in [(512, 5120), (2048, 6144), (32768, 8192)] {
            assert!(met(cluster, 5120) && met(cluster, most), "{cluster}");
            assert!(!met(cluster, 4608) && !met(cluster, most + 512), "{cluster}");
            // The file has its sectors, however much was read.
            let share = of(cluster).share(read(&[(8192, 8192 + most)]), Some(&disk()));
            assert!(share.iter().eq([(1, DiskRange::new(8192, 8192 + 5120))]), "{cluster}");
        }
    }

    #[test]
    fn fuse_drivers_read_whole_pages_of_the_device() {
        let extents = [extent(0, 5120, 1024, 0), extent(1024, 13312, 512, Extent::LAST)];
        let of = |cluster: u64| Expectation::of(&extents, 1500, cluster, &FsKind::Ntfs, true);
        let met = |ranges: &[(u64, u64)]| of(512).is_met_by(&read(ranges), Some(&disk()), true);
        assert!(met(&[(4096, 8192), (12288, 16384)]));
        assert!(met(&[(5120, 6144), (12288, 16384)]));
        assert!(!met(&[(4096, 8192)]));
        assert!(!met(&[(4096, 8704), (12288, 16384)]));
        assert!(!met(&[(0, 512), (4096, 8192), (12288, 16384)]));
        let share = of(512).share(read(&[(4096, 8192), (12288, 16384)]), Some(&disk()));
        assert!(share.iter().eq([(1, DiskRange::new(5120, 6144)), (1, DiskRange::new(13312, 13824))]));
        assert!(matches!(of(4096), Expectation::Blocks(_)));
    }

    #[test]
    fn what_the_kernel_does_not_promise_is_not_expected() {
        for extent in [extent(0, 8192, 4096, Extent::INLINE), extent(0, u64::MAX, 9, 0)] {
            assert_eq!(Expectation::of(&[extent], 5000, 4096, &FsKind::Ext4, true), Expectation::None);
        }
    }

    #[test]
    fn btrfs_inline_and_compressed_extents_are_not_expected() {
        let of =
            |extents: &[Extent], has_layout| Expectation::of(extents, 5000, 4096, &FsKind::Btrfs, has_layout);
        let extents = [extent(0, 1 << 40, 4096, 0), extent(4096, 1 << 41, 8192, 0)];
        let plain = of(&extents, false);
        assert_eq!(plain, Expectation::Bytes(8192));
        assert!(plain.is_met_by(&read(&[(0, 8192)]), None, false));
        assert!(!plain.is_met_by(&read(&[(0, 8192), (16384, 32768)]), None, false));
        assert!(matches!(of(&extents, true), Expectation::Blocks(_)));
        assert_eq!(of(&[extent(0, 0, 4096, Extent::INLINE)], false), Expectation::Bytes(0));
        let compressed = of(&[extent(0, 1 << 40, 131_072, Extent::ENCODED)], true);
        assert!(!compressed.is_met_by(&read(&[]), None, false));
        assert!(compressed.is_met_by(&read(&[]), None, true));
    }

    #[test]
    fn one_leg_is_what_was_read() {
        let members = [1, 2].map(|id| Member { id, major: 8, minor: 16 * id as u32 });
        let below = [1, 2].map(|disk| ((8, 16 * u32::from(disk)), Arc::new(Layout::of_disk(disk, 1 << 20))));
        let chunk = Chunk {
            start: 0,
            length: 1 << 20,
            stripe_length: 65536,
            profile: 1 << 4,
            sub_stripes: 1,
            stripes: vec![(1, 0), (2, 0)],
        };
        let mirror = address_space(&members, &[chunk], &below.into_iter().collect()).unwrap();
        let recording: Recording =
            [(1, DiskRange::new(0, 4096)), (2, DiskRange::new(4096, 8192))].into_iter().collect();
        let of = |legs| {
            let places = places(&recording, &[extent(0, 0, 8192, 0)], Some(&mirror), legs);
            places.iter().map(|p| (p.disk, p.range.start.0, p.range.end.0, p.role.copy)).collect::<Vec<_>>()
        };
        assert_eq!(of(Legs::All), [(1, 0, 8192, 0), (2, 0, 8192, 1)]);
        assert_eq!(of(Legs::One), [(1, 0, 4096, 0), (2, 4096, 8192, 1)]);
    }

    #[test]
    fn recorded_ranges_get_their_place_in_the_file() {
        let extents = [
            extent(0, 8192, 4096, 0),
            extent(4096, 4096, 4096, 0),
            extent(8192, 65536, 4096, Extent::UNWRITTEN),
            extent(12288, 70000, 100, Extent::INLINE),
        ];
        let disk = disk();
        let places = |ranges: &[(u64, u64)], layout: Option<&Layout>| {
            let places = places(&read(ranges), &extents, layout, Legs::All);
            let brief =
                |p: &PlacedRange| (p.range.start.0, p.range.end.0, p.file_offset.map(|o| o.0), p.role.flags);
            places.iter().map(brief).collect::<Vec<_>>()
        };
        let (written, unwritten) = (PieceFlags::empty(), PieceFlags::UNWRITTEN);
        assert_eq!(
            places(&[(4096, 16384)], Some(&disk)),
            [
                (4096, 8192, Some(4096), written),
                (8192, 12288, Some(0), written),
                (12288, 16384, None, written),
                (65536, 69632, Some(8192), unwritten),
            ]
        );
        assert_eq!(places(&[(9000, 9100)], Some(&disk))[0], (9000, 9100, Some(808), written));
        assert_eq!(places(&[(0, 512)], None), [(0, 512, None, written)]);
    }
}
