//! Makes a canonical map from objects and pieces in any order.

use thiserror::Error;

use super::header::Header;
use super::model::{Dialect, Map, PieceRecord};
use super::object::{Attributes, NameError, ObjectName, ObjectTable};
use super::role::{PieceFlags, Role};
use virt_bmap_ranges::{DiskNumber, DiskRange, FileOffset};

/// An object of a [`MapBuilder`]. The map will give it another number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NewObject(u32);

/// Why a builder refused an object or a piece.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BuildError {
    /// A map cannot hold this name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Disks are numbered from 1.
    #[error("there is no disk 0: disks are numbered from 1")]
    DiskZero,
    /// The end of the piece in its file does not fit in 64 bits.
    #[error("{length} bytes at offset {file_offset} of a file end past what 64 bits can count")]
    FileOffset {
        /// Where in the file the piece begins.
        file_offset: FileOffset,
        /// Length of the piece.
        length: u64,
    },
    /// More pieces than the map can number.
    #[error("there are more than {limit} pieces")]
    TooManyPieces {
        /// The limit.
        limit: u32,
    },
}

/// Collects objects and pieces, and makes a [`Map`] of them.
///
/// Their order does not matter. Pieces of one object may overlap and repeat: see
/// [`build`](Self::build).
///
/// ```
/// use virt_bmap_map::{Attributes, Header, Kind, MapBuilder, ObjectName, text};
/// use virt_bmap_ranges::{DiskRange, FileOffset};
///
/// let mut builder = MapBuilder::new(Header::default());
/// let name = ObjectName::path(Kind::File, b"/dev/sda1", b"/boot/vmlinuz");
/// let attributes = Attributes { inode: Some(12), size: Some(1800), ..Attributes::default() };
/// let file = builder.object(name, attributes)?;
/// builder.piece(file, 1, DiskRange::new(0x1000, 0x1400), Some(FileOffset(0)))?;
/// builder.piece(file, 1, DiskRange::new(0x1400, 0x1800), Some(FileOffset(0x400)))?;
/// let map = builder.build();
///
/// let mut out = Vec::new();
/// text::write(&map, &mut out)?;
/// assert!(out.ends_with(b"\n1 1000 1800 f /dev/sda1 /boot/vmlinuz\n"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Default)]
pub struct MapBuilder {
    header: Header,
    dialect: Dialect,
    objects: ObjectTable,
    pieces: Vec<PieceRecord>,
}

impl MapBuilder {
    /// A builder with this header and without objects, for a map in our own dialect.
    pub fn new(header: Header) -> Self {
        Self { header, ..Self::default() }
    }

    /// The header, for changes: warnings are complete only at the end.
    pub fn header_mut(&mut self) -> &mut Header {
        &mut self.header
    }

    /// Adds an object, or finds the one with this name, and merges the attributes.
    ///
    /// # Errors
    /// [`BuildError::Name`].
    pub fn object(&mut self, name: ObjectName<'_>, attributes: Attributes) -> Result<NewObject, BuildError> {
        let object = self.objects.intern(name)?;
        self.objects.set_attributes(object, attributes);
        Ok(NewObject(object))
    }

    /// The name of an object.
    pub fn name(&self, object: NewObject) -> ObjectName<'_> {
        self.objects.name(object.0)
    }

    /// The attributes of an object.
    pub fn attributes(&self, object: NewObject) -> Attributes {
        self.objects.attributes(object.0)
    }

    /// Adds attributes to those of an object.
    pub fn know(&mut self, object: NewObject, attributes: Attributes) {
        self.objects.set_attributes(object.0, attributes);
    }

    /// Adds a range of a disk that holds data of an object, and its offset in the object if that is
    /// known. An empty range is ignored.
    ///
    /// # Errors
    /// [`BuildError::DiskZero`], [`BuildError::FileOffset`], [`BuildError::TooManyPieces`].
    pub fn piece(
        &mut self,
        object: NewObject,
        disk: DiskNumber,
        range: DiskRange,
        file_offset: Option<FileOffset>,
    ) -> Result<(), BuildError> {
        self.piece_as(object, disk, range, file_offset, Role::default())
    }

    /// Adds a range with a [`Role`]: parity, a further copy, unwritten bytes, and so on.
    ///
    /// ```
    /// use virt_bmap_map::{Attributes, Header, Kind, MapBuilder, ObjectName, PieceFlags, Role, text};
    /// use virt_bmap_ranges::{DiskRange, FileOffset};
    ///
    /// let mut builder = MapBuilder::new(Header::default());
    /// let file = builder.object(ObjectName::path(Kind::File, b"/dev/md0", b"/a"), Attributes::default())?;
    /// let start = Some(FileOffset(0));
    /// for (disk, copy) in [(1, 0), (2, 1)] {
    ///     builder.piece_as(file, disk, DiskRange::new(0, 0x1000), start, Role::copy(copy))?;
    /// }
    /// builder.piece_as(file, 3, DiskRange::new(0, 0x1000), None, PieceFlags::PARITY.into())?;
    /// let map = builder.build();
    ///
    /// let mut out = Vec::new();
    /// text::write(&map, &mut out)?;
    /// assert!(out.ends_with(b" map 1\n1 0 1000 f /dev/md0 /a\n2 0 1000 f /dev/md0 /a\n"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`piece`](Self::piece).
    pub fn piece_as(
        &mut self,
        object: NewObject,
        disk: DiskNumber,
        range: DiskRange,
        file_offset: Option<FileOffset>,
        role: Role,
    ) -> Result<(), BuildError> {
        if disk == 0 {
            return Err(BuildError::DiskZero);
        }
        if range.is_empty() {
            return Ok(());
        }
        let length = range.len();
        if let Some(file_offset) = file_offset
            && file_offset.0.checked_add(length).is_none()
        {
            return Err(BuildError::FileOffset { file_offset, length });
        }
        let limit = u32::MAX - 1;
        if self.pieces.len() >= limit as usize {
            return Err(BuildError::TooManyPieces { limit });
        }
        self.pieces.push(PieceRecord {
            disk,
            start: range.start.0,
            object: object.0,
            end: range.end.0,
            file_offset: file_offset.map_or(PieceRecord::NO_OFFSET, |offset| offset.0),
            role,
        });
        Ok(())
    }

    /// Number of pieces so far.
    pub fn piece_count(&self) -> usize {
        self.pieces.len()
    }

    /// The pieces after the first `count`, in the order in which they were added.
    pub fn pieces_after(
        &self,
        count: usize,
    ) -> impl Iterator<Item = (NewObject, DiskNumber, DiskRange, Role)> + '_ {
        let pieces = self.pieces.get(count..).unwrap_or_default().iter();
        pieces.map(|piece| {
            (NewObject(piece.object), piece.disk, DiskRange::new(piece.start, piece.end), piece.role)
        })
    }

    /// Number of objects so far.
    pub fn object_count(&self) -> usize {
        self.objects.len()
    }

    /// Removes all objects and pieces after the first so many. No remaining piece may belong to a
    /// removed object.
    pub fn truncate(&mut self, objects: usize, pieces: usize) {
        self.objects.truncate(objects);
        self.pieces.truncate(pieces);
    }

    /// A builder with the content of a map, without metadata, symbolic links, free space, and the
    /// pieces of files that lie inside metadata.
    fn without_metadata(map: &Map) -> Self {
        let mut builder = Self { dialect: map.dialect(), ..Self::new(map.header().clone()) };
        let mut numbers = vec![None; map.objects.len()];
        for object in map.objects().filter(|object| !object.kind().needs_metadata()) {
            // The name was interned before, so it can be interned again.
            if let Ok(number) = builder.objects.intern(object.name()) {
                builder.objects.set_attributes(number, object.attributes());
                numbers[object.id().0 as usize] = Some(number);
            }
        }
        let data = map.pieces.iter().filter(|piece| !piece.role.flags.contains(PieceFlags::INLINE));
        let kept = data.filter_map(|piece| {
            let object = numbers[piece.object as usize]?;
            Some(PieceRecord { object, ..*piece })
        });
        builder.pieces = kept.collect();
        builder
    }

    /// Makes the map.
    ///
    /// Pieces of one object and role that touch or overlap are joined if they agree on the file
    /// offset of each byte. If they disagree, both stay: the object uses the bytes twice. A piece
    /// without a file offset loses the bytes for which another piece of the same role has one.
    pub fn build(self) -> Map {
        let Self { header, dialect, objects, mut pieces } = self;
        let (objects, renumbered) = objects.sort();
        for piece in &mut pieces {
            piece.object = renumbered[piece.object as usize];
        }
        drop(renumbered);
        normalise(&mut pieces);
        pieces.sort_unstable();
        pieces.shrink_to_fit();
        Map::new(header, dialect, objects, pieces)
    }
}

impl Map {
    /// The map without metadata, symbolic links and free space: what the original's text format
    /// knows. Files have no pieces inside metadata in it.
    ///
    /// ```
    /// use virt_bmap_map::text;
    ///
    /// let whole = text::read(&b"1 0 400 m /dev/sda [superblock]\n1 400 800 f /dev/sda /a\n"[..])?;
    /// let files = whole.without_metadata();
    /// assert!(whole.lists_metadata() && !files.lists_metadata());
    /// assert_eq!(files.objects().len(), 1);
    /// # Ok::<(), text::ReadError>(())
    /// ```
    pub fn without_metadata(&self) -> Self {
        MapBuilder::without_metadata(self).build()
    }
}

/// Pieces that can be joined have this in common: the difference between disk offset and file
/// offset. Unknown offsets come last.
fn join_key(piece: &PieceRecord) -> (u32, DiskNumber, Role, bool, u64) {
    let shift = if piece.has_offset() { piece.start.wrapping_sub(piece.file_offset) } else { 0 };
    (piece.object, piece.disk, piece.role, !piece.has_offset(), shift)
}

/// Joins pieces as [`MapBuilder::build`] describes, and sorts them by object.
fn normalise(pieces: &mut Vec<PieceRecord>) {
    pieces.sort_unstable_by_key(|piece| (join_key(piece), piece.start));
    pieces.dedup_by(|piece, kept| {
        let joins = join_key(piece) == join_key(kept) && piece.start <= kept.end;
        if joins {
            kept.end = kept.end.max(piece.end);
        }
        joins
    });

    // Now cut the known offsets out of the unknown ones. Both are neighbours, so the few objects
    // that have both are easy to find.
    let mut extra = Vec::new();
    for pieces in pieces.chunk_by_mut(|a, b| (a.object, a.disk, a.role) == (b.object, b.disk, b.role)) {
        let known = pieces.partition_point(PieceRecord::has_offset);
        let (known, unknown) = pieces.split_at_mut(known);
        if !known.is_empty() && !unknown.is_empty() {
            subtract(unknown, known, &mut extra);
        }
    }
    pieces.retain(|piece| piece.start < piece.end);
    pieces.append(&mut extra);
}

/// Cuts what `known` covers out of `unknown`, whose pieces are disjoint and ascending. A piece may
/// be left empty; what remains of one besides its first part goes to `extra`.
fn subtract(unknown: &mut [PieceRecord], known: &[PieceRecord], extra: &mut Vec<PieceRecord>) {
    let mut cuts: Vec<(u64, u64)> = known.iter().map(|piece| (piece.start, piece.end)).collect();
    cuts.sort_unstable();
    cuts.dedup_by(|cut, kept| {
        let joins = cut.0 <= kept.1;
        if joins {
            kept.1 = kept.1.max(cut.1);
        }
        joins
    });
    let mut cuts = &cuts[..];
    for piece in unknown {
        let whole = *piece;
        piece.end = piece.start;
        let mut position = whole.start;
        let mut keep = |start: u64, end: u64| {
            if start < end {
                if piece.start < piece.end {
                    extra.push(PieceRecord { start, end, ..whole });
                } else {
                    (piece.start, piece.end) = (start, end);
                }
            }
        };
        while let Some(&(start, end)) = cuts.first()
            && start < whole.end
        {
            keep(position, start.max(position));
            position = position.max(end);
            if end > whole.end {
                break; // it may cut the next piece too
            }
            cuts = &cuts[1..];
        }
        keep(position, whole.end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind, Marks, Object, Owner, Piece};
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    const NAMES: [&[u8]; 3] = [b"/a", b"/b", b"/b c"];

    /// An object's number and the piece's copy, and the start, length and file offset of it.
    type Told = ((usize, u8), u64, u64, Option<u64>);

    fn build(told: &[Told]) -> Map {
        let mut builder = MapBuilder::default();
        for &((name, copy), start, length, offset) in told {
            let name = ObjectName::path(Kind::File, b"/dev/sda1", NAMES[name]);
            let object = builder.object(name, Attributes::default()).unwrap();
            let range = DiskRange::new(start, start + length);
            builder.piece_as(object, 1, range, offset.map(FileOffset), Role::copy(copy)).unwrap();
        }
        builder.build()
    }

    fn told() -> impl Strategy<Value = Vec<Told>> {
        // Few different offsets, so that pieces often agree.
        let offset = prop_oneof![Just(None), (0u64..3).prop_map(Some)];
        let who = (0usize..3, prop_oneof![3 => Just(0u8), 1 => Just(1u8)]);
        prop::collection::vec((who, 0u64..40, 0u64..12, offset), 0..16).prop_map(|mut told| {
            for (_, start, _, offset) in &mut told {
                *offset = offset.map(|offset| *start + offset);
            }
            told
        })
    }

    /// For each byte of each object, the file offsets that are known.
    fn model(told: &[Told]) -> BTreeMap<((usize, u8), u64), BTreeSet<u64>> {
        let mut bytes: BTreeMap<_, BTreeSet<u64>> = BTreeMap::new();
        for &(name, start, length, offset) in told {
            for i in 0..length {
                bytes.entry((name, start + i)).or_default().extend(offset.map(|offset| offset + i));
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn each_byte_keeps_what_was_said_of_it(told in told()) {
            let map = build(&told);
            let back: Vec<Told> = map.pieces().map(|Piece { object, range, file_offset, role, .. }| {
                let path = map.object(object).name().path;
                let name = NAMES.iter().position(|name| *name == path).unwrap();
                ((name, role.copy), range.start.0, range.len(), file_offset.map(|offset| offset.0))
            }).collect();
            prop_assert_eq!(model(&back), model(&told));
            // Only bytes without any known offset have an unknown one.
            let known = model(&told);
            for &(name, start, length, offset) in &back {
                if offset.is_none() {
                    prop_assert!((start..start + length).all(|byte| known[&(name, byte)].is_empty()));
                }
            }
            // Joined: no two pieces that agree touch.
            for (i, a) in back.iter().enumerate() {
                for b in &back[i + 1..] {
                    let agree = a.0 == b.0 && a.3.map(|o| a.1.wrapping_sub(o)) == b.3.map(|o| b.1.wrapping_sub(o));
                    prop_assert!(!agree || a.1 + a.2 < b.1 || b.1 + b.2 < a.1, "{:?} {:?}", a, b);
                }
            }
        }

        #[test]
        fn the_order_of_telling_does_not_matter(told in told().prop_flat_map(|told| (Just(told.clone()), Just(told).prop_shuffle()))) {
            prop_assert_eq!(build(&told.0), build(&told.1));
        }
    }

    #[test]
    fn pieces_of_an_object_are_its_own_in_disk_order() {
        let map = build(&[((1, 0), 30, 5, Some(0)), ((0, 0), 0, 10, None), ((1, 0), 10, 5, Some(5))]);
        let object = map.find(ObjectName::path(Kind::File, b"/dev/sda1", b"/b")).unwrap();
        let pieces: Vec<_> = object.pieces().map(|piece| (piece.range, piece.file_offset)).collect();
        assert_eq!(
            pieces,
            [(DiskRange::new(10, 15), Some(FileOffset(5))), (DiskRange::new(30, 35), Some(FileOffset(0)))]
        );
        assert!(map.find(ObjectName::path(Kind::File, b"/dev/sda1", b"/c")).is_none());
    }

    #[test]
    fn attributes_are_kept_and_added_to() {
        let mut builder = MapBuilder::default();
        let name = ObjectName::path(Kind::File, b"/dev/sda1", b"/z");
        let first = Attributes { inode: Some(7), marks: Marks::SPARSE, ..Attributes::default() };
        builder.object(name, first).unwrap();
        builder.object(ObjectName::device(Kind::Partition, b"/dev/sda1"), Attributes::default()).unwrap();
        let then = Attributes {
            size: Some(0),
            links: Some(2),
            allocated: Some(4096),
            mode: Some(0o100_644),
            modified: Some(-1),
            changed: Some(1_400_000_000_000_000_001),
            marks: Marks::ENCODED,
            owner: Some(Owner { user: 0, group: 70_001 }),
            born: Some(1_300_000_000_000_000_001),
            ..Attributes::default()
        };
        builder.object(name, then).unwrap();
        builder.object(name, Attributes { size: Some(0), ..Attributes::default() }).unwrap();
        let map = builder.build();
        let attributes: Vec<_> = map.objects().map(Object::attributes).collect();
        assert_eq!(
            attributes,
            [
                Attributes { inode: Some(7), marks: Marks::SPARSE | Marks::ENCODED, ..then },
                Attributes::default()
            ]
        );
    }

    #[test]
    fn invalid_names_are_refused() {
        let mut builder = MapBuilder::default();
        let none = Attributes::default();
        let mut refused = |kind, device: &[u8], path: &[u8]| {
            builder.object(ObjectName::path(kind, device, path), none).unwrap_err().to_string()
        };
        assert_eq!(refused(Kind::Disk, b"", b""), "the object has no device");
        assert_eq!(
            refused(Kind::File, b"/dev/sda1", b""),
            "an object of type `f` needs a path after its device"
        );
        assert_eq!(
            refused(Kind::Disk, b"/dev/sda", b"/x"),
            "an object of type `v` is a device and has no path"
        );
        assert!(refused(Kind::File, b"/dev/sda1", &[b'a'; 300_000]).starts_with("the path is 300000 bytes"));

        let object = builder.object(ObjectName::device(Kind::Disk, b"/dev/sda"), none).unwrap();
        let range = DiskRange::new(0, 2);
        assert_eq!(builder.piece(object, 0, range, None), Err(BuildError::DiskZero));
        let file_offset = FileOffset(u64::MAX - 1);
        assert_eq!(
            builder.piece(object, 1, range, Some(file_offset)),
            Err(BuildError::FileOffset { file_offset, length: 2 })
        );
    }
}
