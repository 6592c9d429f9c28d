//! The owners of bytes of a disk: files, directories and metadata.

use super::{Amount, Written};
use hashbrown::HashMap;
use std::cmp::Reverse;
use virt_bmap_map::hardlinks::{self, is_same_file};
use virt_bmap_map::{Kind, Map, Object};
use virt_bmap_ranges::{DiskNumber, DiskRange, IndexedRanges};

/// The owner of some bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Owner<'a> {
    /// The file in question.
    Itself,
    /// Another file, a directory or metadata.
    Other(Object<'a>),
    /// No owner in the map.
    Nobody,
}

/// Numbers of bytes by owner.
#[derive(Clone, Debug, Default)]
pub struct Origin<'a> {
    /// Of the file in question.
    pub itself: Amount,
    /// Of other owners: the one with the most bytes first.
    pub others: Vec<(Object<'a>, Amount)>,
    /// Without an owner in the map: mostly free space.
    pub nobody: Amount,
}

impl<'a> Origin<'a> {
    /// All owners with at least one of the bytes.
    pub fn parts(&self) -> impl Iterator<Item = (Owner<'a>, Amount)> + '_ {
        let others = self.others.iter().map(|&(object, amount)| (Owner::Other(object), amount));
        let all = std::iter::once((Owner::Itself, self.itself)).chain(others);
        all.chain([(Owner::Nobody, self.nobody)]).filter(|(_, amount)| amount.most() > 0)
    }
}

/// The ranges of an object on a disk.
pub(super) fn ranges_of(object: Object<'_>, disk: DiskNumber) -> IndexedRanges {
    hardlinks::disk_ranges(object).filter(|(number, _)| *number == disk).map(|(_, span)| span).collect()
}

/// The owners of the bytes `asked` in `map`. A byte of several objects belongs to `itself` if that
/// is one of them, otherwise to the most specific object, and of several to the one that begins
/// first.
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
                let remaining = DiskRange::new(range.start.max(taken).0, range.end.0);
                taken = taken.max(range.end);
                for part in rest.overlap(remaining) {
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

/// Whether objects of this kind own bytes. All others only contain such objects.
pub(super) fn is_owner(kind: Kind) -> bool {
    kind.specificity() <= Kind::Metadata.specificity()
}

/// The rank among several owners; the lowest one is used.
fn rank(kind: Kind, is_itself: bool) -> u8 {
    if is_itself { 0 } else { kind.specificity() + 1 }
}
