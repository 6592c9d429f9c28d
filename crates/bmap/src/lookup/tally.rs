//! Divides the bytes of a list among the objects of a map.

use crate::hardlinks::{self, File};
use crate::{Kind, Map, Object, ObjectId, Piece};
use virt_bmap_ranges::{DiskNumber, DiskOffset, DiskRange, IndexedRanges};

/// What some of the bytes belong to.
#[derive(Clone, Copy, Debug)]
pub enum MapHit<'a> {
    /// This file, directory or metadata object.
    Object(File<'a>),
    /// This volume, partition or disk, but no file, directory or metadata object in it, and no
    /// volume inside it: mostly free space.
    Free(Object<'a>),
    /// No object of the map.
    Unmapped,
}

/// An object and its part of the bytes.
#[derive(Clone, Copy, Debug)]
pub struct Share<'a> {
    /// What the bytes belong to.
    pub place: MapHit<'a>,
    /// Number of the bytes. Each counts once, however often the file uses it. A byte that several
    /// files share counts in each of them.
    pub bytes: u64,
}

/// Bytes of a disk, divided among objects.
#[derive(Clone, Debug)]
pub struct Tally<'a> {
    /// The shares, the largest first; equal ones in the order of the map, then free and unmapped
    /// bytes.
    pub shares: Vec<Share<'a>>,
    /// Number of queried bytes.
    pub bytes: u64,
    /// Number of them in at least one file, directory or metadata object.
    pub in_objects: u64,
    /// Number of them on a volume, partition or disk, but in none of these.
    pub free: u64,
    /// Number of them in no object of the map.
    pub unmapped: u64,
}

/// Whether objects of this kind own bytes. The others only hold such objects.
fn is_owner(kind: Kind) -> bool {
    kind.specificity() <= Kind::Metadata.specificity()
}

/// Divides `asked`, bytes of disk number `disk`, among the objects of the map.
///
/// Takes time for each piece of the map and each range, not for each pair of them.
pub fn tally<'a>(map: &'a Map, disk: DiskNumber, asked: &IndexedRanges) -> Tally<'a> {
    let owned = owned(map, disk, asked);
    let bytes_of = |object: Object<'a>| {
        owned.binary_search_by_key(&object.id(), |(id, _)| *id).map_or(0, |place| owned[place].1)
    };
    let mut shares: Vec<_> = hardlinks::files(owned.iter().map(|(id, _)| map.object(*id)))
        .into_iter()
        .map(|file| Share { place: MapHit::Object(file), bytes: bytes_of(file.object) })
        .collect();

    let mut rest = asked.without(owners(map, disk).map(|piece| piece.range));
    let in_objects = asked.bytes() - rest.bytes();
    let mut free = 0;
    // From the inside out: free space of a logical volume is not free space of the partition that
    // holds the volume.
    let mut holders: Vec<_> = map.objects().filter(|object| !is_owner(object.kind())).collect();
    holders.sort_by_key(|holder| holder.kind().specificity());
    for holders in holders.chunk_by(|a, b| a.kind() == b.kind()) {
        let mut held: Vec<DiskRange> = Vec::new();
        for &holder in holders {
            let before = held.len();
            let ranges = hardlinks::disk_ranges(holder).filter(|(number, _)| *number == disk);
            held.extend(ranges.map(|(_, span)| span));
            let bytes = held[before..].iter().map(|&span| rest.bytes_in(span)).sum();
            if bytes > 0 {
                shares.push(Share { place: MapHit::Free(holder), bytes });
            }
        }
        held.sort_unstable();
        let left = rest.without(held);
        free += rest.bytes() - left.bytes();
        rest = left;
    }
    let unmapped = rest.bytes();
    if unmapped > 0 {
        shares.push(Share { place: MapHit::Unmapped, bytes: unmapped });
    }
    shares.sort_by_key(|share| std::cmp::Reverse(share.bytes));
    Tally { shares, bytes: asked.bytes(), in_objects, free, unmapped }
}

/// The pieces on a disk of the objects that own bytes, in the order of the disk.
fn owners(map: &Map, disk: DiskNumber) -> impl Iterator<Item = Piece> {
    map.pieces().filter(move |piece| piece.disk == disk && is_owner(map.object(piece.object).kind()))
}

/// The objects that own some of the bytes, in the order of the map, with their numbers of bytes.
fn owned(map: &Map, disk: DiskNumber, asked: &IndexedRanges) -> Vec<(ObjectId, u64)> {
    // In the order of the disk, where neighbours are near in both lists; then by object.
    let mut bytes_in = asked.ascending();
    let mut parts: Vec<(ObjectId, DiskRange, u64)> = owners(map, disk)
        .map(|piece| (piece.object, piece.range, bytes_in(piece.range)))
        .filter(|(_, _, bytes)| *bytes > 0)
        .collect();
    parts.sort_unstable_by_key(|(object, range, _)| (*object, *range));
    let sum = |parts: &[(ObjectId, DiskRange, u64)]| {
        let mut end = DiskOffset(0);
        let mut sum = 0;
        for &(_, range, bytes) in parts {
            // A file may use a byte twice. It counts once.
            let is_twice = range.start < end;
            let rest = DiskRange::new(range.start.max(end).0, range.end.0);
            sum += if is_twice { asked.bytes_in(rest) } else { bytes };
            end = end.max(range.end);
        }
        (parts[0].0, sum)
    };
    parts.chunk_by(|a, b| a.0 == b.0).map(sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attributes, Header, MapBuilder, ObjectName, text};
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};
    use virt_bmap_ranges::FileOffset;

    fn describe(place: MapHit<'_>) -> String {
        match place {
            MapHit::Object(file) => format!("{}+{}", file.object.name(), file.names - 1),
            MapHit::Free(holder) => format!("free {}", holder.name()),
            MapHit::Unmapped => "unmapped".to_owned(),
        }
    }

    #[test]
    fn every_byte_is_divided_among_objects() {
        // A volume in a partition, a hard link, a byte of two files, a gap behind the partition.
        let map = "\
1 0 100 v /dev/sda
1 100 200 f /dev/vg/root /a
1 100 200 f /dev/vg/root /a link
1 100 200 l /dev/vg/root
1 100 200 p /dev/sda1
1 100 200 v /dev/sda
1 200 300 f /dev/vg/root /b
1 200 300 f /dev/vg/root /c
1 200 300 l /dev/vg/root
1 200 300 p /dev/sda1
1 200 300 v /dev/sda
1 300 400 f /dev/vg/root /c
1 300 400 l /dev/vg/root
1 300 400 p /dev/sda1
1 300 400 v /dev/sda
1 400 500 l /dev/vg/root
1 400 500 p /dev/sda1
1 400 500 v /dev/sda
1 500 600 p /dev/sda1
1 500 600 v /dev/sda
1 600 700 v /dev/sda
2 0 1000 v /dev/sdb
";
        let map = text::read(map.as_bytes()).unwrap();
        let asked = IndexedRanges::from_iter([DiskRange::new(0x180, 0x690), DiskRange::new(0x6f0, 0x800)]);
        let tally = tally(&map, 1, &asked);
        let shares: Vec<_> = tally.shares.iter().map(|s| (describe(s.place), s.bytes)).collect();
        assert_eq!(
            shares,
            [
                ("f /dev/vg/root /c+0", 0x200),
                ("f /dev/vg/root /b+0", 0x100),
                ("free l /dev/vg/root", 0x100),
                ("free p /dev/sda1", 0x100),
                ("unmapped", 0x100),
                ("free v /dev/sda", 0xa0),
                ("f /dev/vg/root /a+1", 0x80),
            ]
            .map(|(what, bytes)| (what.to_owned(), bytes))
        );
        assert_eq!((tally.in_objects, tally.free, tally.unmapped), (0x280, 0x2a0, 0x100));
        assert_eq!(tally.bytes, tally.in_objects + tally.free + tally.unmapped);
    }

    proptest! {
        /// Against a model that looks at each byte by itself.
        #[test]
        fn agrees_with_a_look_at_each_byte(
            pieces in prop::collection::vec((0usize..9, 0u64..60, 1u64..15), 0..25),
            asked in prop::collection::vec((0u64..70, 0u64..9), 0..12),
        ) {
            let kinds = [Kind::File, Kind::File, Kind::Directory, Kind::Metadata, Kind::LogicalVolume,
                Kind::MappedDevice, Kind::Partition, Kind::Partition, Kind::Disk];
            let mut builder = MapBuilder::new(Header::default());
            for (number, (which, start, length)) in (0..).zip(pieces) {
                let device = format!("/dev/{which}");
                let path = if kinds[which].has_path().unwrap_or(false) { &b"/x"[..] } else { b"" };
                let name = ObjectName { kind: kinds[which], device: device.as_bytes(), path };
                let object = builder.object(name, Attributes::default()).unwrap();
                // Elsewhere in the file, so that pieces of one file may overlap.
                let inside = Some(FileOffset(1000 * number));
                builder.piece(object, 1, DiskRange::new(start, start + length), inside).unwrap();
            }
            let map = builder.build();
            let asked: Vec<_> = asked.into_iter().map(|(at, len)| DiskRange::new(at, at + len)).collect();
            let bytes: BTreeSet<u64> = asked.iter().flat_map(|r| r.start.0..r.end.0).collect();
            let mut model: BTreeMap<String, u64> = BTreeMap::new();
            for &byte in &bytes {
                let hits = map.at(1, virt_bmap_ranges::DiskOffset(byte));
                let names: BTreeSet<String> = match hits.first() {
                    None => [String::from("unmapped")].into(),
                    Some(hit) if is_owner(hit.object.kind()) => hits.iter()
                        .filter(|hit| is_owner(hit.object.kind()))
                        .map(|hit| format!("{}+0", hit.object.name())).collect(),
                    Some(hit) => hits.iter()
                        .filter(|other| other.object.kind() == hit.object.kind())
                        .map(|hit| format!("free {}", hit.object.name())).collect(),
                };
                for name in names {
                    *model.entry(name).or_default() += 1;
                }
            }
            let tally = tally(&map, 1, &IndexedRanges::from_unsorted(asked));
            let shares: BTreeMap<String, u64> =
                tally.shares.iter().map(|share| (describe(share.place), share.bytes)).collect();
            prop_assert_eq!(shares, model);
            prop_assert_eq!(tally.in_objects + tally.free + tally.unmapped, bytes.len() as u64);
        }
    }
}
