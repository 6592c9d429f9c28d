//! A sweep over the edges of all pieces, which cuts the disks into intervals of one object set.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::model::{ObjectId, PieceRecord};
use virt_bmap_ranges::{DiskNumber, DiskRange};

/// A range of a disk all of whose bytes belong to the same objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval<'a> {
    /// Number of the disk, from 1.
    pub disk: DiskNumber,
    /// The bytes. Never empty.
    pub range: DiskRange,
    /// The objects that have data here, each once, in the byte order of `TYPE DEVICE PATH`. At
    /// least one.
    pub objects: &'a [ObjectId],
}

/// The sweep line: what is active at the present position.
struct Line {
    /// Ends of the active pieces, with their objects.
    ends: BinaryHeap<Reverse<(u64, ObjectId)>>,
    /// For each object, how many of its pieces are active. Two of one object can overlap.
    counts: Vec<u32>,
    /// The active objects, sorted.
    active: Vec<ObjectId>,
    /// Objects of which a piece begins or ends here.
    touched: Vec<ObjectId>,
    /// Takes the next value of `active`.
    next: Vec<ObjectId>,
}

/// Walks over `pieces`, which are in map order. Takes O(n log n) for n pieces, and the time to
/// report the objects of each interval.
pub(super) fn try_for_each_interval<E>(
    pieces: &[PieceRecord],
    object_count: usize,
    mut visit: impl FnMut(Interval<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut line = Line {
        ends: BinaryHeap::new(),
        counts: vec![0; object_count],
        active: Vec::new(),
        touched: Vec::new(),
        next: Vec::new(),
    };
    for pieces in pieces.chunk_by(|a, b| a.disk == b.disk) {
        let disk = pieces[0].disk;
        let mut pieces = pieces;
        let mut start = 0;
        loop {
            let next_start = pieces.first().map(|piece| piece.start);
            let next_end = line.ends.peek().map(|Reverse((end, _))| *end);
            let Some(position) = next_start.into_iter().chain(next_end).min() else { break };
            line.end_at(position);
            let beginning = pieces.iter().take_while(|piece| piece.start == position).count();
            line.begin(&pieces[..beginning]);
            pieces = &pieces[beginning..];
            if line.is_unchanged() {
                continue;
            }
            if !line.active.is_empty() {
                visit(Interval { disk, range: DiskRange::new(start, position), objects: &line.active })?;
            }
            line.change();
            start = position;
        }
    }
    Ok(())
}

impl Line {
    fn end_at(&mut self, position: u64) {
        while let Some(&Reverse((end, object))) = self.ends.peek()
            && end == position
        {
            self.ends.pop();
            self.counts[object.0 as usize] -= 1;
            self.touched.push(object);
        }
    }

    fn begin(&mut self, pieces: &[PieceRecord]) {
        for piece in pieces.iter().filter(|piece| piece.role.holds_data()) {
            let object = ObjectId(piece.object);
            self.ends.push(Reverse((piece.end, object)));
            self.counts[piece.object as usize] += 1;
            self.touched.push(object);
        }
    }

    /// Whether the pieces that begin and end here leave the set of objects unchanged. Leaves in
    /// `touched` the objects that come or go, sorted.
    fn is_unchanged(&mut self) -> bool {
        let Self { counts, active, touched, .. } = self;
        touched.sort_unstable();
        touched.dedup();
        touched.retain(|object| (counts[object.0 as usize] > 0) != active.binary_search(object).is_ok());
        touched.is_empty()
    }

    /// Brings `active` up to date: an object in `touched` leaves if it was active, else it joins.
    fn change(&mut self) {
        let Self { active, touched, next, .. } = self;
        next.clear();
        let mut joining = touched.drain(..).peekable();
        for &object in &*active {
            while let Some(new) = joining.next_if(|&new| new < object) {
                next.push(new);
            }
            if joining.next_if_eq(&object).is_none() {
                next.push(object);
            }
        }
        next.extend(joining);
        std::mem::swap(active, next);
    }
}
