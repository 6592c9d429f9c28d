//! The disks, cut where their owners change.
//!
//! Files, directories and metadata own bytes. A byte that none of them owns belongs to the
//! innermost volume, partition or disk that holds it: mostly free space. If several objects own a
//! byte, they are a *group*.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use virt_bmap_ranges::DiskNumber;

use hashbrown::HashMap;

use crate::hardlinks::is_same_file;
use crate::{Kind, Map, Object, Piece, PieceFlags, Role};

/// Most owners of one byte that are listed. A block that thousands of snapshots share would
/// otherwise make thousands of lists of thousands.
const MAX_GROUP: usize = 64;

/// Most pieces over one byte that are examined, including those of further names of a file.
const MAX_PIECES: usize = 256;

/// An object by its place in the map.
pub(super) type Number = u32;

/// The owner of an interval: 0 for none, then the objects, then the groups.
pub(super) type Owner = u32;

/// A range of a disk with one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) owner: Owner,
    /// Offset of the interval in its owner (for a group, in the first), if known.
    pub(super) file_offset: Option<u64>,
    pub(super) role: Role,
}

/// One disk.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) number: DiskNumber,
    /// From the first byte to the last, without gaps.
    pub(super) intervals: Vec<Interval>,
}

/// All disks, cut.
#[derive(Debug, Default)]
pub(super) struct Intervals {
    /// Ascending by number.
    pub(super) disks: Vec<Disk>,
    /// The members of each group, the most specific first.
    pub(super) groups: Vec<Vec<Number>>,
}

/// Whether objects of this kind own bytes. The others only hold those that do.
pub(super) fn owns(kind: Kind) -> bool {
    kind <= Kind::Metadata
}

/// A piece over the present place, in the order in which owners are listed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Active {
    kind: Kind,
    object: Number,
    /// Place in the list of pieces.
    piece: u32,
}

/// Cuts the disks. `first_name` has for each object the first name of its file: known for those
/// that are it, found out here for the others; `None` is left where a file has no bytes. `size`
/// returns the size of a disk, or a lower bound.
pub(super) fn cut(map: &Map, first_name: &mut [Option<Number>], size: impl Fn(u16) -> u64) -> Intervals {
    let objects: Vec<Object<'_>> = map.objects().collect();
    let mut pieces: Vec<(Number, Piece)> = (0u32..)
        .zip(&objects)
        .flat_map(|(number, object)| object.pieces().map(move |piece| (number, piece)))
        .collect();
    pieces.sort_by_key(|(_, piece)| (piece.disk, piece.range.start));
    let mut sharing = Sharing { objects: &objects, first_name, groups: Vec::new(), numbers: HashMap::new() };
    let mut disks = Vec::new();
    for pieces in pieces.chunk_by(|(_, a), (_, b)| a.disk == b.disk) {
        let number = pieces[0].1.disk;
        let mut intervals = cut_disk(pieces, &mut sharing);
        let end = intervals.last().map_or(0, |interval: &Interval| interval.end);
        if end < size(number) {
            push(&mut intervals, Interval { start: end, end: size(number), ..NOBODYS });
        }
        disks.push(Disk { number, intervals });
    }
    Intervals { disks, groups: sharing.groups }
}

const NOBODYS: Interval = Interval {
    start: 0,
    end: 0,
    owner: 0,
    file_offset: None,
    role: Role { copy: 0, flags: PieceFlags::empty() },
};

fn cut_disk(pieces: &[(Number, Piece)], sharing: &mut Sharing<'_, '_>) -> Vec<Interval> {
    let mut intervals = Vec::with_capacity(2 * pieces.len());
    let mut active = BTreeSet::new();
    let mut ends = BinaryHeap::new();
    let mut waiting = (0u32..).zip(pieces).peekable();
    let mut start = 0;
    loop {
        let next_start = waiting.peek().map(|(_, (_, piece))| piece.range.start.0);
        let next_end = ends.peek().map(|Reverse((end, _))| *end);
        let Some(position) = next_start.into_iter().chain(next_end).min() else { break };
        if position > start {
            push(&mut intervals, sharing.interval(start, position, &active, pieces));
            start = position;
        }
        while let Some(&Reverse((end, place))) = ends.peek()
            && end == position
        {
            ends.pop();
            active.remove(&place);
        }
        while let Some((piece, (object, Piece { range, .. }))) =
            waiting.next_if(|(_, (_, piece))| piece.range.start.0 == position)
        {
            let place = Active { kind: sharing.objects[*object as usize].kind(), object: *object, piece };
            active.insert(place);
            ends.push(Reverse((range.end.0, place)));
        }
    }
    intervals
}

/// Adds an interval, or extends the last one if the new one continues it.
fn push(intervals: &mut Vec<Interval>, new: Interval) {
    if let Some(last) = intervals.last_mut()
        && (last.owner, last.role) == (new.owner, new.role)
        && last.file_offset.map(|offset| offset + (new.start - last.start)) == new.file_offset
    {
        last.end = new.end;
    } else {
        intervals.push(new);
    }
}

/// The groups of owners that share bytes.
struct Sharing<'a, 'm> {
    objects: &'a [Object<'m>],
    first_name: &'a mut [Option<Number>],
    groups: Vec<Vec<Number>>,
    /// The owner that stands for each group.
    numbers: HashMap<Vec<Number>, Owner>,
}

impl Sharing<'_, '_> {
    fn interval(
        &mut self,
        start: u64,
        end: u64,
        active: &BTreeSet<Active>,
        pieces: &[(Number, Piece)],
    ) -> Interval {
        let Some(first) = active.first() else { return Interval { start, end, ..NOBODYS } };
        let piece = pieces[first.piece as usize].1;
        let owned = owns(first.kind);
        let owner = if owned { self.owner(active) } else { first.object + 1 };
        let offset_at_start = |offset: u64| offset + (start - piece.range.start.0);
        Interval {
            start,
            end,
            owner,
            file_offset: piece.file_offset.filter(|_| owned).map(|offset| offset_at_start(offset.0)),
            role: if owned { piece.role } else { NOBODYS.role },
        }
    }

    /// The owner of bytes under these pieces, the first of which owns bytes.
    fn owner(&mut self, active: &BTreeSet<Active>) -> Owner {
        let mut members: Vec<Number> = Vec::new();
        for place in active.iter().take_while(|place| owns(place.kind)).take(MAX_PIECES) {
            let file = self.first_name(place.object, &members);
            if !members.contains(&file) {
                if members.len() == MAX_GROUP {
                    break;
                }
                members.push(file);
            }
        }
        if let [single] = members[..] {
            return single + 1;
        }
        let Self { objects, groups, numbers, .. } = self;
        *numbers.entry(members).or_insert_with_key(|members| {
            groups.push(members.clone());
            (objects.len() + groups.len()) as Owner
        })
    }

    /// The first name of an object's file, which is among `candidates` if it is not its own.
    fn first_name(&mut self, object: Number, candidates: &[Number]) -> Number {
        let Self { objects, first_name, .. } = self;
        *first_name[object as usize].get_or_insert_with(|| {
            let is_it = |&other: &Number| is_same_file(objects[other as usize], objects[object as usize]);
            candidates.iter().copied().find(is_it).unwrap_or(object)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attributes, Header, MapBuilder, ObjectName, text};
    use proptest::prelude::*;
    use virt_bmap_ranges::{DiskRange, FileOffset};

    /// Each interval as `start-end owner[,owner]`; objects by the last part of their names.
    fn cuts(map: &Map, size: u64) -> Vec<String> {
        let count = map.objects().len();
        let mut first_name = vec![None; count];
        let intervals = cut(map, &mut first_name, |_| size);
        let objects: Vec<_> = map.objects().collect();
        let name = |number: Number| {
            let name = objects[number as usize].name().to_string();
            name.rsplit(['/', ' ']).next().unwrap().to_owned()
        };
        let tell = |interval: &Interval| {
            let owners = match interval.owner as usize {
                0 => "nobody".to_owned(),
                owner if owner <= count => name(owner as u32 - 1),
                owner => {
                    let members = &intervals.groups[owner - count - 1];
                    members.iter().map(|&member| name(member)).collect::<Vec<_>>().join(",")
                }
            };
            let offset = interval.file_offset.map_or(String::new(), |offset| format!("@{offset:x}"));
            format!("{:x}-{:x} {owners}{offset}", interval.start, interval.end)
        };
        intervals.disks.iter().flat_map(|disk| disk.intervals.iter().map(tell)).collect()
    }

    #[test]
    fn disks_are_cut_where_owners_change() {
        let map = text::read(
            &b"1 0 100 v /dev/sda
1 100 180 f /dev/sda1 /a
1 100 180 p /dev/sda1
1 180 200 f /dev/sda1 /a
1 180 200 f /dev/sda1 /b
1 200 300 p /dev/sda1
1 400 500 f /dev/sda1 /link
1 400 500 f /dev/sda1 /motd
"[..],
        )
        .unwrap();
        assert_eq!(
            cuts(&map, 0x600),
            [
                "0-100 sda",
                "100-180 a",
                "180-200 a,b",
                "200-300 sda1",
                "300-400 nobody",
                "400-500 link",
                "500-600 nobody"
            ]
        );
    }

    #[test]
    fn offsets_and_roles_are_kept_and_continuing_neighbours_are_joined() {
        let mut builder = MapBuilder::new(Header::default());
        let file =
            builder.object(ObjectName::path(Kind::File, b"/dev/sda1", b"/a"), Attributes::default()).unwrap();
        let part =
            builder.object(ObjectName::device(Kind::Partition, b"/dev/sda1"), Attributes::default()).unwrap();
        builder.piece(file, 1, DiskRange::new(0, 0x80), Some(FileOffset(0))).unwrap();
        builder.piece(file, 1, DiskRange::new(0x80, 0xa0), Some(FileOffset(0x100))).unwrap();
        builder
            .piece_as(
                file,
                1,
                DiskRange::new(0xa0, 0xb0),
                Some(FileOffset(0x120)),
                PieceFlags::UNWRITTEN.into(),
            )
            .unwrap();
        builder.piece(part, 1, DiskRange::new(0x40, 0x60), None).unwrap();
        let map = builder.build();
        assert_eq!(cuts(&map, 0), ["0-80 a@0", "80-a0 a@100", "a0-b0 a@120"]);
    }

    #[test]
    fn owners_of_a_shared_block_are_bounded() {
        let mut builder = MapBuilder::new(Header::default());
        for file in 0..2000u64 {
            let path = format!("/{file:04}");
            let name = ObjectName::path(Kind::File, b"/dev/sda1", path.as_bytes());
            let object = builder.object(name, Attributes::default()).unwrap();
            builder.piece(object, 1, DiskRange::new(0, 4096 + file), None).unwrap();
        }
        let map = builder.build();
        let mut first_name = vec![None; 2000];
        let intervals = cut(&map, &mut first_name, |_| 0);
        assert!(intervals.groups.iter().all(|group| group.len() <= MAX_GROUP));
        assert_eq!(intervals.disks[0].intervals.first().unwrap().start, 0);
        assert_eq!(intervals.disks[0].intervals.last().unwrap().end, 4096 + 1999);
    }

    proptest! {
        /// The model: for each byte the set of pieces over it.
        #[test]
        fn every_byte_has_its_owners(pieces in prop::collection::vec((0u8..4, 0u64..60, 1u64..20), 1..20)) {
            let mut builder = MapBuilder::new(Header::default());
            let handles: Vec<_> = (0..4u64).map(|file| {
                let path = format!("/{file}");
                let attributes = Attributes { inode: Some(file + 1), ..Attributes::default() };
                builder.object(ObjectName::path(Kind::File, b"/dev/sda1", path.as_bytes()), attributes).unwrap()
            }).collect();
            for &(file, start, length) in &pieces {
                builder.piece(handles[usize::from(file)], 1, DiskRange::new(start, start + length), None).unwrap();
            }
            let map = builder.build();
            let mut first_name = vec![None; 4];
            let intervals = cut(&map, &mut first_name, |_| 100);
            let rows = &intervals.disks[0].intervals;
            prop_assert!(rows.windows(2).all(|w| w[0].end == w[1].start && w[0].owner != w[1].owner));
            prop_assert_eq!((rows[0].start, rows[rows.len() - 1].end), (0, 100));
            for byte in 0..100u64 {
                let row = rows.iter().find(|row| row.end > byte).unwrap();
                let mut expected: Vec<u32> = pieces.iter().filter(|(_, start, length)| (*start..start + length).contains(&byte)).map(|(file, ..)| u32::from(*file)).collect();
                expected.sort_unstable();
                expected.dedup();
                let found = match row.owner { 0 => vec![], owner @ 1..=4 => vec![owner - 1], group => intervals.groups[group as usize - 5].clone() };
                prop_assert_eq!(found, expected);
            }
        }
    }
}
