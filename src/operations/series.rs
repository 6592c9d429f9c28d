//! A series of states of one disk that are given as images: backups, the overlays of a chain,
//! snapshots inside a qcow2 image.

use super::{Span, States};
use crate::changed::{Compared, compare, not_in_holes};
use std::io;
use std::sync::Arc;
use virt_bmap_image::{Image, ImageFile, OpenError};
use virt_bmap_map::SECTOR;
use virt_bmap_ranges::{DiskOffset, DiskRange, IndexedRanges, RangeSet};

/// A state of a disk.
pub struct NamedState {
    /// What the user calls it.
    pub name: Arc<[u8]>,
    /// The disk.
    pub image: Image,
}

/// Why two states cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum SeriesError {
    /// It is not known which bytes an image holds itself.
    #[error(transparent)]
    Layer(#[from] OpenError),
    /// It is not known which parts are holes.
    #[error("cannot find out which parts of the images are holes")]
    Holes(#[source] io::Error),
}

/// The parts of the disk that can differ between two states of it.
///
/// # Errors
/// [`SeriesError`]
pub fn possible(old: &NamedState, new: &NamedState) -> Result<IndexedRanges, SeriesError> {
    let (old, new) = (&old.image, &new.image);
    if old.snapshot.is_none() && new.snapshot.is_none() && is_below(old, new) {
        let layer = new.layer()?;
        return Ok(layer.data.iter().chain(layer.zeroes.iter()).collect());
    }
    not_in_holes(&*old.source, &*new.source).map_err(SeriesError::Holes)
}

/// Whether `old` is the image right below `new`, which then holds all that differs.
fn is_below(old: &Image, new: &Image) -> bool {
    let path = |image: Option<&ImageFile>| image?.location.file()?.canonicalize().ok();
    let (old, below) = (path(old.chain.first()), path(new.chain.get(1)));
    old.is_some() && old == below
}

/// Compares two states of the disk where they [can](possible) differ. The result is the later state
/// with what was written since the earlier one: whole sectors, since a disk has no smaller unit.
/// What could not be compared counts as written; the first error says why.
///
/// `progress` is called as by [`compare`].
pub fn between(
    old: &NamedState,
    new: &NamedState,
    possible: &IndexedRanges,
    progress: &(dyn Fn(u64) + Sync),
) -> (States, Option<io::Error>) {
    let (before, after) = (&*old.image.source, &*new.image.source);
    let Compared { differs, unknown, error } = compare(before, after, possible, progress);
    let size = after.size();
    let sectors = |range: DiskRange| {
        let (start, end) = (range.start.0 / SECTOR * SECTOR, range.end.0.next_multiple_of(SECTOR));
        DiskRange::new(start, end.min(size))
    };
    let written: RangeSet<DiskOffset> = differs.iter().chain(unknown.iter()).map(sectors).collect();
    let span = Span::Between { from: old.name.clone(), to: new.name.clone() };
    (States { disks: vec![new.image.source.clone()], written: vec![written], span }, error)
}
