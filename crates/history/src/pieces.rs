//! Where the bytes of a disk lie: a map from ranges of the disk to places.

use std::collections::BTreeMap;
use virt_bmap_ranges::{DiskOffset, DiskRange};

/// Most pieces that all disks of a guest may be in, some 40 MiB of memory. A guest that writes
/// every other sector of a very large disk gets `ENOSPC` then.
pub(crate) const MOST_PIECES: usize = 1 << 20;

/// Where the first byte of a piece lies; the others follow it. One number, as there are many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u64);

/// What a [`Place`] means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The bytes of the base.
    Base,
    /// Zeroes.
    Zero,
    /// At this offset of the log.
    Log(u64),
    /// At this offset of the unnamed file.
    Spill(u64),
}

impl Place {
    /// The bytes of the base.
    pub(crate) const BASE: Self = Self(u64::MAX);
    /// Zeroes.
    pub(crate) const ZERO: Self = Self(u64::MAX - 1);
    /// Marks offsets of the log.
    const IN_LOG: u64 = 1 << 63;
    /// Largest offset in either file.
    pub(crate) const MOST: u64 = 1 << 62;

    /// At this offset of the log, at most [`MOST`](Self::MOST).
    pub(crate) fn in_log(offset: u64) -> Self {
        Self(offset | Self::IN_LOG)
    }

    /// At this offset of the unnamed file, at most [`MOST`](Self::MOST).
    pub(crate) fn in_spill(offset: u64) -> Self {
        Self(offset)
    }

    pub(crate) fn origin(self) -> Origin {
        match self {
            Self::BASE => Origin::Base,
            Self::ZERO => Origin::Zero,
            Self(offset) if offset & Self::IN_LOG != 0 => Origin::Log(offset & !Self::IN_LOG),
            Self(offset) => Origin::Spill(offset),
        }
    }

    fn is_data(self) -> bool {
        self != Self::BASE && self != Self::ZERO
    }

    pub(crate) fn is_in_spill(self) -> bool {
        self.0 & Self::IN_LOG == 0
    }

    /// The place of the byte `bytes` after the first.
    fn after(self, bytes: u64) -> Self {
        if self.is_data() { Self(self.0 + bytes) } else { self }
    }
}

/// Data at a place, and its length.
pub(crate) type DataRun = (Place, u64);

#[derive(Clone, Copy, Debug)]
struct Piece {
    end: u64,
    place: Place,
}

/// A map from disjoint ranges to places. All other bytes are the base's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pieces {
    /// By the first byte.
    pieces: BTreeMap<u64, Piece>,
    /// Number of their bytes that are in the unnamed file.
    spilled: u64,
}

impl Pieces {
    /// Number of pieces.
    pub(crate) fn count(&self) -> usize {
        self.pieces.len()
    }

    /// Number of bytes that are in the unnamed file.
    pub(crate) fn spilled(&self) -> u64 {
        self.spilled
    }

    /// All pieces, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (DiskRange, Place)> + '_ {
        self.pieces.iter().map(|(&start, piece)| (DiskRange::new(start, piece.end), piece.place))
    }

    /// Sets the place of `range`, and calls `gone` for each place of data, with its length, that
    /// the range had before.
    pub(crate) fn set(&mut self, range: DiskRange, place: Place, mut gone: impl FnMut(Place, u64)) {
        if range.is_empty() {
            return;
        }
        let (start, end) = (range.start.0, range.end.0);
        if place.is_in_spill() {
            self.spilled += end - start;
        }
        // A guest often writes the same blocks again.
        if let Some(piece) = self.pieces.get_mut(&start)
            && piece.end == end
        {
            let before = std::mem::replace(&mut piece.place, place);
            self.drop_data(before, end - start, &mut gone);
            return;
        }
        self.remove_pieces(start, end, &mut gone);
        // The pieces of consecutive writes become one.
        if let Some((&left, piece)) = self.pieces.range_mut(..start).next_back()
            && piece.end == start
            && piece.place.after(start - left) == place
        {
            piece.end = end;
        } else {
            self.pieces.insert(start, Piece { end, place });
        }
    }

    /// Makes `range` the base's again; `gone` is as in [`set`](Self::set).
    pub(crate) fn clear(&mut self, range: DiskRange, mut gone: impl FnMut(Place, u64)) {
        if !range.is_empty() {
            self.remove_pieces(range.start.0, range.end.0, &mut gone);
        }
    }

    fn remove_pieces(&mut self, start: u64, end: u64, gone: &mut impl FnMut(Place, u64)) {
        // The one piece that begins before the range may reach into it, or over it.
        if let Some((&left, piece)) = self.pieces.range_mut(..start).next_back()
            && piece.end > start
        {
            let (left_end, place) = (piece.end, piece.place.after(start - left));
            piece.end = start;
            if left_end > end {
                self.pieces.insert(end, Piece { end: left_end, place: place.after(end - start) });
            }
            self.drop_data(place, left_end.min(end) - start, gone);
        }
        while let Some((&at, &Piece { end: piece_end, place })) = self.pieces.range(start..end).next() {
            self.pieces.remove(&at);
            if piece_end > end {
                self.pieces.insert(end, Piece { end: piece_end, place: place.after(end - at) });
            }
            self.drop_data(place, piece_end.min(end) - at, gone);
        }
    }

    fn drop_data(&mut self, place: Place, length: u64, gone: &mut impl FnMut(Place, u64)) {
        if place.is_in_spill() {
            self.spilled -= length;
        }
        if place.is_data() {
            gone(place, length);
        }
    }

    /// Number of bytes of `range` that are not in the unnamed file.
    pub(crate) fn not_spilled(&self, range: DiskRange) -> u64 {
        let here = self.over(range).filter(|(_, place)| place.is_in_spill());
        range.len() - here.map(|(part, _)| part.len()).sum::<u64>()
    }

    /// Whether all of `range` is the base's.
    pub(crate) fn is_untouched(&self, range: DiskRange) -> bool {
        self.over(range).next().is_none()
    }

    /// The pieces in `range`, ascending, cut to it.
    fn over(&self, range: DiskRange) -> impl Iterator<Item = (DiskRange, Place)> + '_ {
        let before = self.pieces.range(..range.start.0).next_back();
        let inside = self.pieces.range(range.start.0..range.end.0.max(range.start.0));
        before.into_iter().chain(inside).filter_map(move |(&start, piece)| {
            let part = DiskRange::new(start, piece.end).intersection(range)?;
            Some((part, piece.place.after(part.start.0 - start)))
        })
    }

    /// Splits `range` by place: ascending, without gaps.
    pub(crate) fn find(&self, range: DiskRange) -> Vec<(DiskRange, Place)> {
        let mut found = Vec::new();
        let mut at = range.start;
        for (part, place) in self.over(range) {
            if at < part.start {
                found.push((DiskRange { start: at, end: part.start }, Place::BASE));
            }
            found.push((part, place));
            at = part.end;
        }
        if at < range.end {
            found.push((DiskRange { start: at, end: range.end }, Place::BASE));
        }
        found
    }

    /// The parts of `range` that are the base's.
    pub(crate) fn untouched(&self, range: DiskRange) -> Vec<DiskRange> {
        let parts = self.find(range).into_iter();
        parts.filter(|(_, place)| *place == Place::BASE).map(|(part, _)| part).collect()
    }
}

/// The range of `length` bytes at `offset`, if a disk of `size` bytes has it.
pub(crate) fn on_disk(offset: DiskOffset, length: u64, size: u64) -> Option<DiskRange> {
    DiskRange::at(offset, length).filter(|range| range.end.0 <= size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 200;

    proptest! {
        #[test]
        fn behaves_like_a_vector_of_places(
            steps in prop::collection::vec((0..SIZE, 0..60u64, 0..4u8), 0..60),
            at in 0..SIZE,
            length in 0..SIZE,
        ) {
            let mut pieces = Pieces::default();
            let mut model = vec![Place::BASE; SIZE as usize];
            let mut next = 0;
            for (start, length, kind) in steps {
                let range = DiskRange::new(start, (start + length).min(SIZE));
                let place = match kind {
                    0 => Place::ZERO,
                    1 => Place::in_log(next),
                    2 => Place::in_spill(next),
                    _ => Place::BASE,
                };
                next += range.len();
                let mut gone = Vec::new();
                let note = |place: Place, length| gone.extend((0..length).map(|byte| place.after(byte)));
                if place == Place::BASE { pieces.clear(range, note) } else { pieces.set(range, place, note) }
                let bytes = &mut model[range.start.0 as usize..range.end.0 as usize];
                let wanted: Vec<_> = bytes.iter().copied().filter(|place| place.is_data()).collect();
                prop_assert_eq!(gone, wanted);
                bytes.iter_mut().zip(0..).for_each(|(byte, n)| *byte = place.after(n));
            }
            let spilled = |places: &[Place]| places.iter().filter(|place| place.is_in_spill()).count() as u64;
            prop_assert_eq!(pieces.spilled(), spilled(&model));

            let range = DiskRange::new(at, (at + length).min(SIZE));
            let inside = &model[range.start.0 as usize..range.end.0 as usize];
            let mut found = Vec::new();
            for (part, place) in pieces.find(range) {
                prop_assert!(!part.is_empty());
                found.extend((0..part.len()).map(|byte| place.after(byte)));
            }
            prop_assert_eq!(&found[..], inside);
            prop_assert_eq!(pieces.not_spilled(range), range.len() - spilled(inside));
            prop_assert_eq!(pieces.is_untouched(range), inside.iter().all(|place| *place == Place::BASE));
        }
    }

    #[test]
    fn consecutive_writes_are_one_piece() {
        let mut pieces = Pieces::default();
        for at in 0..100 {
            pieces.set(DiskRange::new(at * 8, at * 8 + 8), Place::in_spill(at * 8), |_, _| {});
        }
        assert_eq!(pieces.count(), 1);
    }
}
