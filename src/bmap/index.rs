//! Finds what is at an offset.
//!
//! Each disk is cut at every place where a piece begins or ends. For each of these segments the
//! index names the active piece that ends first, and for that one the active piece that ends next,
//! and so on: a chain. What ends at the end of a segment is on top of its chain, so that the next
//! segment's chain is the rest of it, shared. Where pieces are nested, as files are in partitions
//! and these in disks, all chains together have one link a piece. A piece that begins inside of
//! another and ends outside of it needs one more link for each piece that it crosses in this way;
//! never are there more links than lines in the text map.

use super::model::{Map, Object, ObjectId, PieceRecord};
use super::object::Kind;
use crate::range::{DiskOffset, DiskRange, FileOffset};

/// One object at the place that was asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit<'a> {
    /// The object.
    pub object: Object<'a>,
    /// The part of the question that this piece of the object covers.
    pub range: DiskRange,
    /// Where in the object that part begins, if the map knows it.
    pub file_offset: Option<FileOffset>,
}

/// One piece in a chain.
#[derive(Clone, Copy)]
struct Link {
    /// Place in [`Map`]'s pieces.
    piece: u32,
    /// The link to the piece that ends next, or [`NONE`].
    below: u32,
}

/// No link, no piece.
const NONE: u32 = u32::MAX;

/// The index of a map.
#[derive(Clone)]
pub(super) struct Index {
    /// Ascending by number.
    disks: Vec<DiskIndex>,
    links: Vec<Link>,
}

/// The segments of one disk.
#[derive(Clone)]
struct DiskIndex {
    disk: u16,
    /// Where the disk's pieces begin in [`Map`]'s, and where they end.
    pieces: std::ops::Range<u32>,
    /// Start of each segment, which ends where the next begins. The last has no piece.
    starts: Searchable,
    /// Top of each segment's chain.
    tops: Vec<u32>,
}

impl Index {
    /// `pieces` are in map order.
    pub(super) fn new(pieces: &[PieceRecord]) -> Self {
        let mut links = Vec::with_capacity(pieces.len());
        let mut disks = Vec::new();
        let mut first = 0;
        for of_disk in pieces.chunk_by(|a, b| a.disk == b.disk) {
            let end = first + of_disk.len() as u32;
            disks.push(DiskIndex::new(pieces, first..end, &mut links));
            first = end;
        }
        Self { disks, links }
    }

    pub(super) fn at<'a>(&self, map: &'a Map, disk: u16, offset: DiskOffset) -> Vec<Hit<'a>> {
        let Some(disk) = self.disk(disk) else { return Vec::new() };
        let byte = DiskRange { start: offset, end: DiskOffset(offset.0.saturating_add(1)) };
        let mut hits: Vec<_> = self.chain(disk.top(offset.0)).map(|piece| hit(map, piece, byte)).collect();
        hits.sort_unstable_by_key(|hit| (hit.object.kind().specificity(), hit.object.id(), hit.file_offset));
        hits
    }

    pub(super) fn over<'a>(&'a self, map: &'a Map, disk: u16, range: DiskRange) -> Over<'a> {
        let mut over = Over { map, index: self, window: range, link: NONE, pieces: &[] };
        if let Some(disk) = self.disk(disk)
            && !range.is_empty()
        {
            over.link = disk.top(range.start.0);
            let pieces = &map.pieces[disk.pieces.start as usize..disk.pieces.end as usize];
            let first = pieces.partition_point(|piece| piece.start <= range.start.0);
            let pieces = &pieces[first..];
            over.pieces = &pieces[..count_near(pieces, |piece| piece.start < range.end.0)];
        }
        over
    }

    fn disk(&self, disk: u16) -> Option<&DiskIndex> {
        let place = self.disks.binary_search_by_key(&disk, |index| index.disk).ok()?;
        self.disks.get(place)
    }

    /// The pieces from a link down.
    fn chain(&self, top: u32) -> impl Iterator<Item = u32> + '_ {
        let mut link = top;
        std::iter::from_fn(move || {
            let Link { piece, below } = *self.links.get(link as usize)?;
            link = below;
            Some(piece)
        })
    }
}

/// Length of the prefix for which `holds` is true, found fast where it is short.
fn count_near<T>(items: &[T], holds: impl Fn(&T) -> bool) -> usize {
    let mut step = 1;
    while step < items.len() && holds(&items[step - 1]) {
        step *= 2;
    }
    let low = step / 2;
    let high = step.min(items.len());
    low + items[low..high].partition_point(holds)
}

#[inline]
fn hit<'a>(map: &'a Map, piece: u32, window: DiskRange) -> Hit<'a> {
    let piece = &map.pieces[piece as usize];
    cut(map, piece, window)
}

/// The part of `piece` that lies in `window`, which it touches.
#[inline]
fn cut<'a>(map: &'a Map, piece: &PieceRecord, window: DiskRange) -> Hit<'a> {
    let range = DiskRange::new(piece.start.max(window.start.0), piece.end.min(window.end.0));
    Hit {
        object: Object { map, id: ObjectId(piece.object) },
        range,
        file_offset: piece.offset_at(range.start.0),
    }
}

/// The pieces that a range of a disk touches. See [`Map::over`].
#[derive(Clone)]
pub struct Over<'a> {
    map: &'a Map,
    index: &'a Index,
    window: DiskRange,
    /// The chain of the first byte, as far as it is not yet gone through.
    link: u32,
    /// The pieces that begin after the first byte, as far as they are not yet gone through.
    pieces: &'a [PieceRecord],
}

impl<'a> Over<'a> {
    /// The hits, sorted: files first, then directories, metadata, logical volumes, other mapped
    /// devices, partitions and whole disks, and within each kind as they lie on the disk.
    pub fn most_specific_first(mut self) -> Vec<Hit<'a>> {
        // What begins in the range comes in the right order; what begins before it, as it ends.
        let mut hits = Vec::new();
        while self.link != NONE {
            hits.extend(self.next());
        }
        hits.sort_unstable_by_key(|hit| (hit.object.id(), hit.file_offset));
        hits.extend(self);
        hits.sort_by_key(|hit| hit.object.kind().specificity());
        hits
    }
}

impl<'a> Iterator for Over<'a> {
    type Item = Hit<'a>;

    #[inline]
    fn next(&mut self) -> Option<Hit<'a>> {
        if self.link != NONE {
            let Link { piece, below } = self.index.links[self.link as usize];
            self.link = below;
            return Some(hit(self.map, piece, self.window));
        }
        let (piece, rest) = self.pieces.split_first()?;
        self.pieces = rest;
        Some(cut(self.map, piece, self.window))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.pieces.len(), None)
    }
}

impl DiskIndex {
    /// Index of the pieces `range` of `pieces`, which are those of one disk.
    fn new(pieces: &[PieceRecord], range: std::ops::Range<u32>, links: &mut Vec<Link>) -> Self {
        let end_of = |links: &[Link], link: u32| pieces[links[link as usize].piece as usize].end;
        let mut segments = Segments::default();
        let mut top = NONE;
        let mut crossed = Vec::new();
        for piece in range.clone() {
            let PieceRecord { start, end, .. } = pieces[piece as usize];
            while top != NONE && end_of(links, top) <= start {
                let position = end_of(links, top);
                top = links[top as usize].below;
                segments.begin(position, top);
            }
            // Put the new piece below those that end before it does.
            while top != NONE && end_of(links, top) < end {
                crossed.push(links[top as usize].piece);
                top = links[top as usize].below;
            }
            for piece in std::iter::once(piece).chain(crossed.drain(..).rev()) {
                links.push(Link { piece, below: top });
                top = links.len() as u32 - 1;
            }
            segments.begin(start, top);
        }
        while top != NONE {
            let position = end_of(links, top);
            top = links[top as usize].below;
            segments.begin(position, top);
        }
        Self {
            disk: pieces[range.start as usize].disk,
            pieces: range,
            starts: Searchable::new(segments.starts),
            tops: segments.tops,
        }
    }

    /// Top of the chain at an offset.
    fn top(&self, offset: u64) -> u32 {
        match self.starts.count_up_to(offset) {
            0 => NONE,
            count => self.tops[count - 1],
        }
    }
}

/// Segments as they are found, ascending.
#[derive(Default)]
struct Segments {
    starts: Vec<u64>,
    tops: Vec<u32>,
}

impl Segments {
    /// A segment begins; one that began at the same place was none.
    fn begin(&mut self, start: u64, top: u32) {
        match self.starts.last() {
            Some(&last) if last == start => {
                self.tops.pop();
            }
            _ => self.starts.push(start),
        }
        self.tops.push(top);
    }
}

/// Keys in a node of [`Searchable`]: two cache lines.
const FANOUT: usize = 16;

/// Ascending numbers with a search tree above them, whose nodes are small enough to be compared
/// whole. A plain binary search over 10 million numbers waits for memory nine times; this, twice.
#[derive(Clone)]
struct Searchable {
    /// The numbers first; then, of each level, every 16th number of the one before.
    levels: Vec<Vec<u64>>,
}

impl Searchable {
    fn new(numbers: Vec<u64>) -> Self {
        let mut levels = vec![numbers];
        while let Some(level) = levels.last()
            && level.len() > FANOUT
        {
            levels.push(level.iter().copied().step_by(FANOUT).collect());
        }
        Self { levels }
    }

    /// How many of the numbers are `limit` or less.
    fn count_up_to(&self, limit: u64) -> usize {
        // Of the level above, `count` numbers are up to `limit`: the last of these begins the node
        // in which the count of this level is decided.
        let mut count = 1;
        for level in self.levels.iter().rev() {
            let Some(node) = usize::checked_sub(count, 1) else { return 0 };
            let first = node * FANOUT;
            let node = &level[first..level.len().min(first + FANOUT)];
            count = first + node.iter().filter(|&&number| number <= limit).count();
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bmap::{Attributes, MapBuilder, ObjectName};
    use proptest::prelude::*;

    /// Kind, disk, start, length, file offset of a piece.
    type Told = (usize, u16, u64, u64, Option<u64>);

    fn build(told: &[Told]) -> Map {
        let mut builder = MapBuilder::default();
        for (i, &(kind, disk, start, length, offset)) in told.iter().enumerate() {
            let kind = Kind::ALL[kind];
            let path = format!("/{}", i % 5);
            let path = if kind.has_path() == Some(false) { "" } else { &path };
            let name = ObjectName::path(kind, b"/dev/sda1", path.as_bytes());
            let object = builder.object(name, Attributes::default()).unwrap();
            let range = DiskRange::new(start, start + length);
            builder.piece(object, disk, range, offset.map(FileOffset)).unwrap();
        }
        builder.build()
    }

    /// The answer by looking at all pieces.
    fn scan(map: &Map, disk: u16, window: DiskRange) -> Vec<Hit<'_>> {
        let mut hits: Vec<_> = map
            .pieces()
            .filter(|piece| piece.disk == disk)
            .filter_map(|piece| {
                let range = piece.range.intersection(window)?;
                let file_offset =
                    piece.file_offset.map(|at| FileOffset(at.0 + (range.start.0 - piece.range.start.0)));
                Some(Hit { object: map.object(piece.object), range, file_offset })
            })
            .collect();
        hits.sort_by_key(|hit| {
            (hit.object.kind().specificity(), hit.range.start, hit.object.id(), hit.file_offset)
        });
        hits
    }

    proptest! {
        #[test]
        fn look_ups_find_what_a_scan_finds(
            told in prop::collection::vec((0usize..7, 1u16..3, 0u64..60, 0u64..30, prop::option::of(0u64..50)), 0..24),
            windows in prop::collection::vec((0u16..4, 0u64..100, 0u64..40), 20),
        ) {
            let map = build(&told);
            for byte in 0..100 {
                let window = DiskRange::new(byte, byte + 1);
                for disk in 0..4 {
                    prop_assert_eq!(map.at(disk, DiskOffset(byte)), scan(&map, disk, window));
                }
            }
            for (disk, start, length) in windows {
                let window = DiskRange::new(start, start + length);
                prop_assert_eq!(map.over(disk, window).most_specific_first(), scan(&map, disk, window));
                let starts: Vec<_> = map.over(disk, window).map(|hit| hit.range.start).collect();
                prop_assert!(starts.is_sorted());
            }
        }

        #[test]
        fn counts_like_a_binary_search(mut numbers in prop::collection::vec(0u64..5000, 0..700), limits in prop::collection::vec(0u64..5010, 30)) {
            numbers.sort_unstable();
            let searchable = Searchable::new(numbers.clone());
            for limit in limits {
                prop_assert_eq!(searchable.count_up_to(limit), numbers.partition_point(|&number| number <= limit));
            }
        }
    }

    #[test]
    fn nested_pieces_have_one_link_each() {
        let told: Vec<Told> = (0..1000).map(|i| (i % 7, 1, i as u64, 2 * (1000 - i as u64), None)).collect();
        let map = build(&told);
        assert_eq!(Index::new(&map.pieces).links.len(), map.pieces.len());
    }

    #[test]
    fn the_ends_of_the_address_space_can_be_asked_for() {
        let map = build(&[(0, 1, u64::MAX - 4, 4, None)]);
        assert_eq!(map.at(1, DiskOffset(u64::MAX - 1)).len(), 1);
        assert_eq!(map.at(1, DiskOffset(u64::MAX)).len(), 0);
        assert_eq!(map.at(1, DiskOffset(0)).len(), 0);
        assert_eq!(map.over(1, DiskRange::new(0, u64::MAX)).count(), 1);
        assert_eq!(map.over(1, DiskRange::new(9, 9)).count(), 0);
    }

    #[test]
    fn an_empty_map_has_nothing_anywhere() {
        let map = MapBuilder::default().build();
        assert!(map.at(1, DiskOffset(0)).is_empty());
        assert_eq!(map.over(1, DiskRange::new(0, u64::MAX)).count(), 0);
    }
}
