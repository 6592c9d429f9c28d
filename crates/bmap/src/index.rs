//! Finds the objects at an offset.
//!
//! Each disk is cut at every place where a piece begins or ends. For each of these intervals the
//! index names the active piece that ends first, and for that one the active piece that ends next,
//! and so on: a chain. The piece that ends with an interval is on top of its chain, so the next
//! interval shares the rest of the chain. Where pieces are nested, as files are in partitions and
//! these in disks, all chains together have one link a piece. A piece that begins inside of another
//! and ends outside of it needs one more link for each piece that it crosses in this way; each of
//! them would be one more line in the text map, too.
//!
//! With millions of pieces, the time of a look-up is the time that it waits for memory. It waits a
//! few times: once for the node of ten intervals, and once for each piece that few other places
//! share. The waits of many look-ups overlap.

use std::hint::black_box;

use super::model::{Map, Object, ObjectId, PieceRecord};
use super::role::Role;
use virt_bmap_ranges::{DiskNumber, DiskOffset, DiskRange, FileOffset};

/// One object at the queried place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit<'a> {
    /// The object.
    pub object: Object<'a>,
    /// The part of the query that this piece of the object covers.
    pub range: DiskRange,
    /// Offset of that part in the object, if the map knows it.
    pub file_offset: Option<FileOffset>,
    /// What the bytes are to the object: data, a further copy of it, parity, not yet written.
    pub role: Role,
}

/// No link, no piece.
const NONE: u32 = u32::MAX;

/// Offsets that are looked up at a time, so that the processor's waits for memory overlap.
const BATCH: usize = 16;

/// The index of a map.
#[derive(Clone)]
pub(super) struct Index {
    /// Ascending by number.
    disks: Vec<DiskIndex>,
    /// For each link of a chain the next, or [`NONE`]. The first links are those of [`Map`]'s
    /// pieces, each with the number of its piece.
    below: Vec<u32>,
    /// The pieces of the other links.
    crossed: Vec<u32>,
}

impl Index {
    /// `pieces` are in map order.
    pub(super) fn new(pieces: &[PieceRecord]) -> Self {
        let mut index = Self { disks: Vec::new(), below: vec![NONE; pieces.len()], crossed: Vec::new() };
        let mut first = 0;
        for of_disk in pieces.chunk_by(|a, b| a.disk == b.disk) {
            let end = first + of_disk.len() as u32;
            let intervals = index.cut(pieces, first..end);
            index.disks.push(DiskIndex::new(of_disk[0].disk, first..end, intervals));
            first = end;
        }
        index
    }

    /// Cuts a disk into intervals and makes their chains. Its pieces are `range` of `pieces`.
    fn cut(&mut self, pieces: &[PieceRecord], range: std::ops::Range<u32>) -> Intervals {
        let mut intervals = Intervals::with_capacity(2 * range.len());
        let mut top = NONE;
        let mut crossed = Vec::new();
        for piece in range.clone() {
            let PieceRecord { start, end, .. } = pieces[piece as usize];
            top = self.end_up_to(start, top, pieces, piece, &mut intervals);
            // The new piece goes below those that end before it does.
            while top != NONE && pieces[self.piece(top) as usize].end < end {
                crossed.push(self.piece(top));
                top = self.below[top as usize];
            }
            self.below[piece as usize] = top;
            top = piece;
            for piece in crossed.drain(..).rev() {
                self.crossed.push(piece);
                self.below.push(top);
                top = self.below.len() as u32 - 1;
            }
            intervals.begin(start, top, piece);
        }
        self.end_up_to(u64::MAX, top, pieces, range.end, &mut intervals);
        intervals
    }

    /// Removes the pieces that end at `position` or before from a chain, and returns the rest.
    fn end_up_to(
        &self,
        position: u64,
        mut top: u32,
        pieces: &[PieceRecord],
        next_piece: u32,
        intervals: &mut Intervals,
    ) -> u32 {
        while top != NONE {
            let end = pieces[self.piece(top) as usize].end;
            if end > position {
                break;
            }
            top = self.below[top as usize];
            intervals.begin(end, top, next_piece);
        }
        top
    }

    pub(super) fn at<'a>(&self, map: &'a Map, disk: DiskNumber, offset: DiskOffset) -> Vec<Hit<'a>> {
        let mut hits = Vec::new();
        if let Some(disk) = self.disk(disk) {
            let mut found = [Found::default()];
            disk.find(&[offset], &mut found);
            self.collect(map, offset, found[0].top, &mut hits);
        }
        hits
    }

    /// Looks many offsets up, some at a time, and calls `visit` for each.
    pub(super) fn at_each<'a>(
        &self,
        map: &'a Map,
        disk: DiskNumber,
        offsets: &[DiskOffset],
        mut visit: impl FnMut(DiskOffset, &[Hit<'a>]),
    ) {
        let Some(disk) = self.disk(disk) else {
            return offsets.iter().for_each(|&offset| visit(offset, &[]));
        };
        let mut hits = Vec::new();
        for offsets in offsets.chunks(BATCH) {
            let mut found = [Found::default(); BATCH];
            disk.find(offsets, &mut found);
            self.fetch(map, &found);
            for (&offset, found) in offsets.iter().zip(found) {
                hits.clear();
                self.collect(map, offset, found.top, &mut hits);
                visit(offset, &hits);
            }
        }
    }

    /// The pieces on top of chains are scattered over memory, and so are their objects. This
    /// prefetches all of them before any is needed.
    fn fetch(&self, map: &Map, found: &[Found]) {
        let tops = || found.iter().map(|found| found.top).filter(|&top| top != NONE);
        for top in tops() {
            black_box((map.pieces[self.piece(top) as usize].end, self.below[top as usize]));
        }
        for top in tops() {
            black_box(map.object(ObjectId(map.pieces[self.piece(top) as usize].object)).kind());
        }
    }

    /// Adds the pieces of the chain below `link`, sorted.
    fn collect<'a>(&self, map: &'a Map, offset: DiskOffset, mut link: u32, hits: &mut Vec<Hit<'a>>) {
        let byte = DiskRange { start: offset, end: DiskOffset(offset.0.saturating_add(1)) };
        while link != NONE {
            hits.push(hit(map, self.piece(link), byte));
            link = self.below[link as usize];
        }
        hits.sort_unstable_by_key(|hit| (hit.object.kind().specificity(), hit.object.id(), hit.file_offset));
    }

    pub(super) fn over<'a>(&'a self, map: &'a Map, disk: DiskNumber, range: DiskRange) -> Over<'a> {
        let mut found = [Found::default()];
        let disk = self.disk(disk);
        if let Some(disk) = disk {
            disk.find(&[range.start], &mut found);
        }
        self.over_found(map, disk, found[0], range)
    }

    /// Looks many ranges up, some at a time, and calls `visit` with the place of each and its hits,
    /// the most specific first.
    pub(super) fn over_each<'a>(
        &'a self,
        map: &'a Map,
        disk: DiskNumber,
        ranges: &[DiskRange],
        mut visit: impl FnMut(usize, &[Hit<'a>]),
    ) {
        let disk = self.disk(disk);
        let mut hits = Vec::new();
        for (number, ranges) in ranges.chunks(BATCH).enumerate() {
            let (mut starts, mut found) = ([DiskOffset(0); BATCH], [Found::default(); BATCH]);
            starts.iter_mut().zip(ranges).for_each(|(start, range)| *start = range.start);
            if let Some(disk) = disk {
                disk.find(&starts[..ranges.len()], &mut found[..ranges.len()]);
                self.fetch(map, &found[..ranges.len()]);
            }
            for (place, (&range, found)) in ranges.iter().zip(found).enumerate() {
                self.over_found(map, disk, found, range).most_specific_first_into(&mut hits);
                visit(number * BATCH + place, &hits);
            }
        }
    }

    /// The hits of a range whose start was looked up.
    fn over_found<'a>(
        &'a self,
        map: &'a Map,
        disk: Option<&DiskIndex>,
        Found { top, next_piece, .. }: Found,
        range: DiskRange,
    ) -> Over<'a> {
        let mut over = Over { map, index: self, window: range, link: NONE, pieces: &[] };
        if let Some(disk) = disk
            && !range.is_empty()
        {
            let pieces = &map.pieces[next_piece as usize..disk.pieces.end as usize];
            let first = count_near(pieces, |piece| piece.start <= range.start.0);
            let pieces = &pieces[first..];
            over.link = top;
            over.pieces = &pieces[..count_near(pieces, |piece| piece.start < range.end.0)];
        }
        over
    }

    fn disk(&self, disk: DiskNumber) -> Option<&DiskIndex> {
        let place = self.disks.binary_search_by_key(&disk, |index| index.disk).ok()?;
        self.disks.get(place)
    }

    /// The piece of a link.
    #[inline]
    fn piece(&self, link: u32) -> u32 {
        let pieces = self.below.len() - self.crossed.len();
        if (link as usize) < pieces { link } else { self.crossed[link as usize - pieces] }
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
        role: piece.role,
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
    pub fn most_specific_first(self) -> Vec<Hit<'a>> {
        let mut hits = Vec::new();
        self.most_specific_first_into(&mut hits);
        hits
    }

    /// The same, into a vector that is emptied first.
    fn most_specific_first_into(mut self, hits: &mut Vec<Hit<'a>>) {
        // What begins in the range comes in the right order; what begins before it, as it ends.
        hits.clear();
        while self.link != NONE {
            hits.extend(self.next());
        }
        hits.sort_unstable_by_key(|hit| (hit.object.id(), hit.file_offset));
        hits.extend(self);
        hits.sort_by_key(|hit| hit.object.kind().specificity());
    }
}

impl<'a> Iterator for Over<'a> {
    type Item = Hit<'a>;

    #[inline]
    fn next(&mut self) -> Option<Hit<'a>> {
        if self.link != NONE {
            let piece = self.index.piece(self.link);
            self.link = self.index.below[self.link as usize];
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

/// Intervals in a [`Node`].
const INTERVALS: usize = 10;

/// Nodes in a group. The search tree leads to groups: so it is small enough for the processor's
/// cache, and the nodes of one group come from memory together.
const GROUP: usize = 4;

/// Some neighbouring intervals, in two cache lines that the processor fetches together.
#[derive(Clone)]
#[repr(align(128))]
struct Node {
    /// Where each interval begins; it ends where the next begins. `u64::MAX` fills the last node.
    starts: [u64; INTERVALS],
    /// Top of each interval's chain.
    tops: [u32; INTERVALS],
    /// The first of [`Map`]'s pieces that begins in these intervals or after them.
    next_piece: u32,
}

/// The intervals of one disk, as they are found, ascending.
struct Intervals {
    nodes: Vec<Node>,
    /// How many intervals the last node has.
    last: usize,
}

impl Intervals {
    /// A interval less than the capacity is the most that can begin: the memory that is not needed
    /// is never touched.
    fn with_capacity(intervals: usize) -> Self {
        Self { nodes: Vec::with_capacity(intervals.div_ceil(INTERVALS)), last: INTERVALS }
    }

    /// A interval begins; one that began at the same place was none.
    fn begin(&mut self, start: u64, top: u32, next_piece: u32) {
        if let Some(node) = self.nodes.last_mut()
            && node.starts[self.last - 1] == start
        {
            node.tops[self.last - 1] = top;
            return;
        }
        if self.last == INTERVALS {
            self.nodes.push(Node { starts: [u64::MAX; INTERVALS], tops: [NONE; INTERVALS], next_piece });
            self.last = 0;
        }
        if let Some(node) = self.nodes.last_mut() {
            node.starts[self.last] = start;
            node.tops[self.last] = top;
            self.last += 1;
        }
    }
}

/// The index of one disk.
#[derive(Clone)]
struct DiskIndex {
    disk: DiskNumber,
    /// Where the disk's pieces begin in [`Map`]'s, and where they end.
    pieces: std::ops::Range<u32>,
    nodes: Vec<Node>,
    /// Where each group of nodes begins.
    group_starts: Searchable,
}

impl DiskIndex {
    fn new(disk: DiskNumber, pieces: std::ops::Range<u32>, Intervals { nodes, .. }: Intervals) -> Self {
        let group_starts = Searchable::new(nodes.iter().step_by(GROUP).map(|node| node.starts[0]).collect());
        Self { disk, pieces, nodes, group_starts }
    }

    /// Finds the intervals of some offsets. Each step is made for all of them before the next.
    fn find(&self, offsets: &[DiskOffset], found: &mut [Found]) {
        self.group_starts.count_up_to(offsets, found);
        for (found, offset) in found.iter_mut().zip(offsets) {
            if let Some(group) = found.count.checked_sub(1) {
                let first = group * GROUP;
                let group = &self.nodes[first..self.nodes.len().min(first + GROUP)];
                found.count = first + group.iter().filter(|node| node.starts[0] <= offset.0).count();
            }
        }
        for (found, offset) in found.iter_mut().zip(offsets) {
            found.next_piece = self.pieces.start;
            if let Some(node) = found.count.checked_sub(1) {
                let Node { starts, tops, next_piece } = &self.nodes[node];
                let intervals = starts.iter().filter(|&&start| start <= offset.0).count();
                found.top = tops[intervals - 1];
                found.next_piece = *next_piece;
            }
        }
    }
}

/// The state of one look-up.
#[derive(Clone, Copy)]
struct Found {
    /// How many groups or nodes begin at the offset or before it.
    count: usize,
    /// Top of the chain.
    top: u32,
    /// A piece at or before the first that begins after the offset, and not far from that.
    next_piece: u32,
}

impl Default for Found {
    fn default() -> Self {
        Self { count: 0, top: NONE, next_piece: 0 }
    }
}

/// Keys in a node of [`Searchable`]: two cache lines.
const FANOUT: usize = 16;

/// Ascending numbers with a search tree above them, whose nodes are small enough to be compared
/// whole: fewer waits for memory than those of a binary search.
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

    /// Sets each `count` to how many of the numbers are up to the offset.
    fn count_up_to(&self, offsets: &[DiskOffset], found: &mut [Found]) {
        // Of the level above, `count` numbers are up to the offset: the last of these begins the
        // node in which the count of this level is decided.
        found.iter_mut().for_each(|found| found.count = 1);
        for level in self.levels.iter().rev() {
            for (found, offset) in found.iter_mut().zip(offsets) {
                if let Some(node) = found.count.checked_sub(1) {
                    let first = node * FANOUT;
                    let node = &level[first..level.len().min(first + FANOUT)];
                    found.count = first + node.iter().filter(|&&number| number <= offset.0).count();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attributes, Kind, MapBuilder, ObjectName};
    use proptest::prelude::*;

    /// Kind, disk, start, length, file offset of a piece.
    type Drawn = (usize, u16, u64, u64, Option<u64>);

    fn build(drawn: &[Drawn]) -> Map {
        let mut builder = MapBuilder::default();
        for (i, &(kind, disk, start, length, offset)) in drawn.iter().enumerate() {
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
    fn scan(map: &Map, disk: DiskNumber, window: DiskRange) -> Vec<Hit<'_>> {
        let mut hits: Vec<_> = map
            .pieces()
            .filter(|piece| piece.disk == disk)
            .filter_map(|piece| {
                let range = piece.range.intersection(window)?;
                let file_offset =
                    piece.file_offset.map(|at| FileOffset(at.0 + (range.start.0 - piece.range.start.0)));
                Some(Hit { object: map.object(piece.object), range, file_offset, role: piece.role })
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
            drawn in prop::collection::vec((0usize..7, 1u16..3, 0u64..60, 0u64..30, prop::option::of(0u64..50)), 0..24),
            windows in prop::collection::vec((0u16..4, 0u64..100, 0u64..40), 20),
        ) {
            let map = build(&drawn);
            for byte in 0..100 {
                let window = DiskRange::new(byte, byte + 1);
                for disk in 0..4 {
                    prop_assert_eq!(map.at(disk, DiskOffset(byte)), scan(&map, disk, window));
                }
            }
            let offsets: Vec<_> = windows.iter().map(|&(_, start, _)| DiskOffset(start)).collect();
            for disk in 0..4 {
                let mut answers = Vec::new();
                map.at_each(disk, &offsets, |offset, hits| answers.push((offset, hits.to_vec())));
                prop_assert_eq!(answers, offsets.iter().map(|&offset| (offset, map.at(disk, offset))).collect::<Vec<_>>());
            }
            for &(disk, start, length) in &windows {
                let window = DiskRange::new(start, start + length);
                prop_assert_eq!(map.over(disk, window).most_specific_first(), scan(&map, disk, window));
                let starts: Vec<_> = map.over(disk, window).map(|hit| hit.range.start).collect();
                prop_assert!(starts.is_sorted());
            }
            for disk in 0..4 {
                let windows: Vec<_> =
                    windows.iter().map(|&(_, start, length)| DiskRange::new(start, start + length)).collect();
                let mut answers = Vec::new();
                map.over_each(disk, &windows, |place, hits| answers.push((place, hits.to_vec())));
                let each: Vec<_> = windows.iter().map(|&window| scan(&map, disk, window)).enumerate().collect();
                prop_assert_eq!(answers, each);
            }
        }

        #[test]
        fn counts_like_a_binary_search(mut numbers in prop::collection::vec(0u64..5000, 0..700), limits in prop::collection::vec(0u64..5010, 30)) {
            numbers.sort_unstable();
            let searchable = Searchable::new(numbers.clone());
            let limits: Vec<_> = limits.into_iter().map(DiskOffset).collect();
            let mut found = vec![Found::default(); limits.len()];
            searchable.count_up_to(&limits, &mut found);
            for (limit, found) in limits.iter().zip(found) {
                prop_assert_eq!(found.count, numbers.partition_point(|&number| number <= limit.0));
            }
        }
    }

    #[test]
    fn nested_pieces_have_one_link_each() {
        let drawn: Vec<Drawn> =
            (0..1000).map(|i| (i % 7, 1, i as u64, 2 * (1000 - i as u64), None)).collect();
        let map = build(&drawn);
        assert_eq!(Index::new(&map.pieces).crossed.len(), 0);
    }

    #[test]
    fn the_ends_of_the_address_space_can_be_queried() {
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
