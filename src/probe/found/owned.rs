//! The pieces of a filesystem's files and directories, and of what it keeps in files, by place.

use crate::probe::layout::Layout;
use crate::recorder::Recording;
use virt_bmap_map::{Kind, MapBuilder, NewObject, PieceFlags};
use virt_bmap_ranges::{DeviceOffset, DiskNumber, DiskRange, RangeSet};

/// The pieces of the objects that the walk of one filesystem has found, but not of symbolic links.
///
/// Of a mirrored device, they are those of the first copy.
pub struct Owned<'a> {
    builder: &'a MapBuilder,
    /// Ascending by disk and offset.
    pieces: Vec<OwnedPiece>,
}

/// A piece of an object.
#[derive(Clone, Copy)]
pub struct OwnedPiece {
    /// The object.
    pub object: NewObject,
    /// The disk.
    pub disk: DiskNumber,
    /// Its bytes there.
    pub range: DiskRange,
    kind: Kind,
}

impl<'a> Owned<'a> {
    /// The pieces that were added to the builder after the first `count`.
    pub(super) fn new(builder: &'a MapBuilder, count: usize) -> Self {
        let pieces = builder.pieces_after(count).filter_map(|(object, disk, range, role)| {
            // Inline data lies in blocks of metadata, parity in those of several objects.
            if role.copy > 0 || role.flags.intersects(PieceFlags::INLINE | PieceFlags::PARITY) {
                return None;
            }
            let kind = builder.name(object).kind;
            let is_one = matches!(kind, Kind::File | Kind::Directory | Kind::Metadata);
            is_one.then_some(OwnedPiece { object, disk, range, kind })
        });
        let mut pieces: Vec<OwnedPiece> = pieces.collect();
        // Which of several owners is named must not hang on the order of the walk.
        pieces.sort_by(|a, b| {
            let place = (a.disk, a.range).cmp(&(b.disk, b.range));
            place.then_with(|| builder.name(a.object).path.cmp(builder.name(b.object).path))
        });
        Self { builder, pieces }
    }

    /// The pieces, ascending by disk and offset.
    pub fn pieces(&self) -> &[OwnedPiece] {
        &self.pieces
    }

    /// All bytes of files, and all bytes of directories.
    pub fn recordings(&self) -> [Recording; 2] {
        [Kind::File, Kind::Directory].map(|kind| {
            let of_kind = self.pieces.iter().filter(|piece| piece.kind == kind);
            of_kind.map(|piece| (piece.disk, piece.range)).collect()
        })
    }

    /// The path of the object of a piece, by the number of the piece.
    pub fn path(&self, piece: usize) -> String {
        let path = self.pieces.get(piece).map(|piece| self.builder.name(piece.object).path);
        String::from_utf8_lossy(path.unwrap_or_default()).into_owned()
    }

    /// The path of an object that has some of these bytes.
    pub fn path_at(&self, layout: &Layout, blocks: &RangeSet<DeviceOffset>) -> String {
        let on_disk = |piece: &OwnedPiece| {
            let mut places = blocks.iter().filter_map(|range| layout.places(range)).flatten();
            places.any(|(disk, range)| disk == piece.disk && range.intersection(piece.range).is_some())
        };
        self.pieces.iter().position(on_disk).map(|piece| self.path(piece)).unwrap_or_default()
    }
}
