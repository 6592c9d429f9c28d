//! Whose bytes of a disk are, of those that hold data and not only others.

use super::{Amount, Written};
use hashbrown::HashMap;
use std::cmp::Reverse;
use virt_bmap_map::hardlinks::{self, is_same_file};
use virt_bmap_map::{Kind, Map, Object};
use virt_bmap_ranges::{DiskNumber, DiskRange, IndexedRanges};

/// Whose some bytes are, or were.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Owner<'a> {
    /// The file's that is asked about.
    Itself,
    /// Another file's, directory's or metadata's.
    Other(Object<'a>),
    /// Nobody's that the map knows.
    Nobody,
}

/// Some bytes, by their owners.
#[derive(Clone, Debug, Default)]
pub struct Origin<'a> {
    /// The file that is asked about.
    pub itself: Amount,
    /// Others: the one with the most bytes first.
    pub others: Vec<(Object<'a>, Amount)>,
    /// Nobody that the map knows: free space, mostly.
    pub nobody: Amount,
}

impl<'a> Origin<'a> {
    /// All owners that have some of the bytes.
    pub fn parts(&self) -> impl Iterator<Item = (Owner<'a>, Amount)> + '_ {
        let others = self.others.iter().map(|&(object, amount)| (Owner::Other(object), amount));
        let all = std::iter::once((Owner::Itself, self.itself)).chain(others);
        all.chain([(Owner::Nobody, self.nobody)]).filter(|(_, amount)| amount.most() > 0)
    }
}

/// The bytes that an object has on a disk.
pub(super) fn place_of(object: Object<'_>, disk: DiskNumber) -> IndexedRanges {
    hardlinks::disk_ranges(object).filter(|(number, _)| *number == disk).map(|(_, span)| span).collect()
}

/// Whose the bytes `asked` are in `map`. A byte of several objects is that of `itself` if it is one of
/// them, and else the most specific one's that begins first.
pub(super) fn origin<'a>(
    map: &'a Map,
    disk: DiskNumber,
    asked: &IndexedRanges,
    itself: Option<Object<'a>>,
    written: &Written,
) -> Origin<'a> {
    let mut origin = Origin::default();
    let mut others: HashMap<_, (Object<'a>, Amount)> = HashMap::new();
    let is_itself =
        |object: Object<'a>| itself.is_some_and(|itself| object == itself || is_same_file(object, itself));
    for range in asked.iter() {
        let mut hits: Vec<(u8, DiskRange, Object<'a>)> = map
            .over(disk, range)
            .filter(|hit| hit.role.holds_data() && is_owner(hit.object.kind()))
            .map(|hit| (rank(hit.object.kind(), is_itself(hit.object)), hit.range, hit.object))
            .collect();
        hits.sort_by_key(|(rank, range, _)| (*rank, range.start, Reverse(range.end)));
        let mut rest = IndexedRanges::from_iter([range]);
        for hits in hits.chunk_by(|a, b| a.0 == b.0) {
            let mut taken = range.start;
            for &(rank, range, object) in hits {
                let fresh = DiskRange::new(range.start.max(taken).0, range.end.0);
                taken = taken.max(range.end);
                for part in rest.overlap(fresh) {
                    let amount = written.amount(part);
                    if rank == 0 {
                        origin.itself += amount;
                    } else {
                        others.entry(object.id()).or_insert((object, Amount::default())).1 += amount;
                    }
                }
            }
            rest = rest.without(hits.iter().map(|(_, range, _)| *range));
        }
        origin.nobody += written.amounts(&rest);
    }
    origin.others = others.into_values().filter(|(_, amount)| amount.most() > 0).collect();
    origin.others.sort_by_key(|(object, amount)| (Reverse(*amount), object.id()));
    origin
}

/// Whether an object says whose a byte is. The others only hold such objects.
pub(super) fn is_owner(kind: Kind) -> bool {
    kind.specificity() <= Kind::Metadata.specificity()
}

/// Who of several owners is named.
fn rank(kind: Kind, is_itself: bool) -> u8 {
    if is_itself { 0 } else { kind.specificity() + 1 }
}
