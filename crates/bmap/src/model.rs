//! The map: objects, and the ranges of the guest's disks that belong to each.

use std::fmt;
use std::sync::OnceLock;

use super::header::Header;
use super::index::{Hit, Index, Over};
use super::object::{Attributes, Kind, ObjectName, Objects};
use super::role::Role;
use super::sweep::{self, Interval};
use virt_bmap_ranges::{DiskNumber, DiskOffset, DiskRange, FileOffset};

/// How a text map writes names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Ours: a header, and bytes that would break a line escaped.
    #[default]
    Escaped,
    /// That of the original virt-bmap: without header and without escapes.
    Original,
}

/// An object of one particular map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub(super) u32);

impl ObjectId {
    /// Its number, less than the number of objects in its map.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A range of one disk that belongs to one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The object.
    pub object: ObjectId,
    /// Number of the disk, from 1.
    pub disk: DiskNumber,
    /// The bytes of the disk. Never empty.
    pub range: DiskRange,
    /// Offset of the range in the object, if known. Maps that were read from text have none.
    pub file_offset: Option<FileOffset>,
    /// What the bytes are to the object. In maps that were read from text all pieces are plain
    /// data.
    pub role: Role,
}

/// A [`Piece`] as it is stored. The order of records in a map is that of the fields here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PieceRecord {
    pub(super) disk: DiskNumber,
    pub(super) start: u64,
    pub(super) object: u32,
    /// [`NO_OFFSET`](Self::NO_OFFSET) if it is unknown.
    pub(super) file_offset: u64,
    pub(super) end: u64,
    pub(super) role: Role,
}

impl PieceRecord {
    /// No byte of a file has this offset, since the offset after it would not fit in 64 bits.
    pub(super) const NO_OFFSET: u64 = u64::MAX;

    #[inline]
    pub(super) fn has_offset(&self) -> bool {
        self.file_offset != Self::NO_OFFSET
    }

    /// The offset in the object of byte `at` of the disk, which must be in the piece.
    #[inline]
    pub(super) fn offset_at(&self, at: u64) -> Option<FileOffset> {
        self.has_offset().then(|| FileOffset(self.file_offset + (at - self.start)))
    }

    fn unpack(self) -> Piece {
        Piece {
            object: ObjectId(self.object),
            disk: self.disk,
            range: DiskRange::new(self.start, self.end),
            file_offset: self.offset_at(self.start),
            role: self.role,
        }
    }
}

/// An object of a map, with its attributes and pieces.
#[derive(Clone, Copy)]
pub struct Object<'a> {
    pub(super) map: &'a Map,
    pub(super) id: ObjectId,
}

impl<'a> Object<'a> {
    /// The object's number in its map.
    pub fn id(self) -> ObjectId {
        self.id
    }

    /// Its kind.
    pub fn kind(self) -> Kind {
        self.map.objects.kind(self.id.0)
    }

    /// Its name: kind, device and path.
    pub fn name(self) -> ObjectName<'a> {
        self.map.objects.name(self.id.0)
    }

    /// Its attributes: inode, size, times, marks.
    pub fn attributes(self) -> Attributes {
        self.map.objects.attributes(self.id.0)
    }

    /// Its pieces, ascending by disk and offset. An empty file has none.
    ///
    /// The first call on any object of a map takes time in proportion to the map.
    pub fn pieces(self) -> impl ExactSizeIterator<Item = Piece> + 'a {
        let by_object = self.map.by_object.get_or_init(|| ByObject::new(self.map));
        let map = self.map;
        by_object.pieces(self.id.0).iter().map(move |&piece| map.pieces[piece as usize].unpack())
    }

    /// The piece of this number among [its pieces](Self::pieces), for callers that cannot keep an
    /// iterator. Takes the same time for every number.
    pub fn nth_piece(self, number: usize) -> Option<Piece> {
        let by_object = self.map.by_object.get_or_init(|| ByObject::new(self.map));
        let &piece = by_object.pieces(self.id.0).get(number)?;
        Some(self.map.pieces[piece as usize].unpack())
    }
}

impl PartialEq for Object<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && std::ptr::eq(self.map, other.map)
    }
}

impl fmt::Debug for Object<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name().fmt(f)
    }
}

/// A block map. A [`MapBuilder`](super::MapBuilder) or a reader makes it; afterwards only its
/// header can be changed.
///
/// It is canonical: two maps with the same contents are equal, whatever the order in which the
/// contents were added. Objects are in the byte order of `TYPE DEVICE PATH`, pieces in the order of
/// disk, start and object. Of one object no two pieces touch or overlap, unless their file offsets
/// or their [`Role`]s differ: a file may use one block of the disk in two places.
#[derive(Clone)]
pub struct Map {
    header: Header,
    dialect: Dialect,
    pub(super) objects: Objects,
    pub(super) pieces: Vec<PieceRecord>,
    index: OnceLock<Index>,
    by_object: OnceLock<ByObject>,
}

impl Map {
    /// `pieces` are normalised and in order; `objects` are sorted.
    pub(super) fn new(header: Header, dialect: Dialect, objects: Objects, pieces: Vec<PieceRecord>) -> Self {
        debug_assert!(pieces.is_sorted());
        Self { header, dialect, objects, pieces, index: OnceLock::new(), by_object: OnceLock::new() }
    }

    /// Images, filesystems, warnings and comments.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The header, for changes.
    pub fn header_mut(&mut self) -> &mut Header {
        &mut self.header
    }

    /// How the map is written as text.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Whether it has other objects than devices, directories and files: metadata, symbolic links,
    /// free space.
    pub fn lists_metadata(&self) -> bool {
        self.objects().any(|object| object.kind().needs_metadata())
    }

    /// Whether it has inodes of files, or no files.
    pub fn knows_inodes(&self) -> bool {
        let mut files = self.objects().filter(|object| object.kind() == Kind::File);
        files.next().is_none_or(|file| file.attributes().inode.is_some())
    }

    /// Chooses how the map is written as text.
    pub fn set_dialect(&mut self, dialect: Dialect) {
        self.dialect = dialect;
    }

    /// All objects, in the byte order of `TYPE DEVICE PATH`.
    pub fn objects(&self) -> impl ExactSizeIterator<Item = Object<'_>> {
        (0..self.objects.len() as u32).map(|id| Object { map: self, id: ObjectId(id) })
    }

    /// The object of this number.
    ///
    /// # Panics
    /// If the number is another map's, and this one has fewer objects.
    pub fn object(&self, id: ObjectId) -> Object<'_> {
        assert!((id.0 as usize) < self.objects.len(), "the object is of another map");
        Object { map: self, id }
    }

    /// The object of this number among [all objects](Self::objects), for callers that cannot keep
    /// an iterator. Takes the same time for every number.
    pub fn nth_object(&self, number: usize) -> Option<Object<'_>> {
        let id = u32::try_from(number).ok().filter(|_| number < self.objects.len())?;
        Some(Object { map: self, id: ObjectId(id) })
    }

    /// The devices that objects are, or are on: each once, in no particular order.
    pub fn devices(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.objects.devices()
    }

    /// The object of this name, if the map has it.
    pub fn find(&self, name: ObjectName<'_>) -> Option<Object<'_>> {
        let id = ObjectId(self.objects.find(name)?);
        Some(Object { map: self, id })
    }

    /// All pieces, ascending by disk and start.
    pub fn pieces(&self) -> impl ExactSizeIterator<Item = Piece> {
        self.pieces.iter().map(|piece| piece.unpack())
    }

    /// The piece of this number among [all pieces](Self::pieces), for callers that cannot keep an
    /// iterator. Takes the same time for every number.
    pub fn nth_piece(&self, number: usize) -> Option<Piece> {
        self.pieces.get(number).map(|piece| piece.unpack())
    }

    /// Calls `visit` for each interval of the disks that belongs to one set of objects, ascending.
    /// Intervals are disjoint; two that touch differ in their objects. This is what the text map
    /// lists: of all pieces those that [hold data](Role::holds_data).
    ///
    /// # Errors
    /// The first that `visit` returns, which ends the walk.
    pub fn try_for_each_interval<E>(
        &self,
        visit: impl FnMut(Interval<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        sweep::try_for_each_interval(&self.pieces, self.objects.len(), visit)
    }

    /// The objects that a byte belongs to, the most specific first, with its offset in each. An
    /// object appears as often as it uses the byte.
    ///
    /// The first look-up builds the index, in time and memory proportional to the map.
    ///
    /// ```
    /// use virt_bmap_map::{Map, text};
    /// use virt_bmap_ranges::DiskOffset;
    ///
    /// let map: Map = text::read(&b"1 0 100 v /dev/sda\n1 100 300 f /dev/sda1 /vmlinuz\n1 100 300 v /dev/sda\n"[..])?;
    /// let names: Vec<String> = map.at(1, DiskOffset(0x120)).iter().map(|hit| hit.object.name().to_string()).collect();
    /// assert_eq!(names, ["f /dev/sda1 /vmlinuz", "v /dev/sda"]);
    /// assert!(map.at(2, DiskOffset(0)).is_empty());
    /// # Ok::<(), virt_bmap_map::text::ReadError>(())
    /// ```
    pub fn at(&self, disk: DiskNumber, offset: DiskOffset) -> Vec<Hit<'_>> {
        self.index().at(self, disk, offset)
    }

    /// Looks up many offsets, and calls `visit` with each, in the order given, and with the result
    /// of [`at`](Self::at). On a large map this is several times as fast as single look-ups,
    /// because their waits for memory overlap.
    ///
    /// ```
    /// use virt_bmap_map::text;
    /// use virt_bmap_ranges::DiskOffset;
    ///
    /// let map = text::read(&b"1 0 100 v /dev/sda\n1 100 300 f /dev/sda1 /vmlinuz\n"[..])?;
    /// let mut in_files = 0;
    /// map.at_each(1, &[DiskOffset(0), DiskOffset(0x100), DiskOffset(0x400)], |_offset, hits| {
    ///     in_files += hits.iter().filter(|hit| hit.object.name().path == b"/vmlinuz").count();
    /// });
    /// assert_eq!(in_files, 1);
    /// # Ok::<(), text::ReadError>(())
    /// ```
    pub fn at_each<'a>(
        &'a self,
        disk: DiskNumber,
        offsets: &[DiskOffset],
        visit: impl FnMut(DiskOffset, &[Hit<'a>]),
    ) {
        self.index().at_each(self, disk, offsets, visit);
    }

    /// The objects that a range of a disk touches: one [`Hit`] for each piece, cut to the range.
    /// The pieces that begin before the range come first, then the others by their starts.
    ///
    /// [`Over::most_specific_first`] sorts them.
    ///
    /// ```
    /// use virt_bmap_map::{Attributes, Header, Kind, MapBuilder, ObjectName};
    /// use virt_bmap_ranges::{DiskRange, FileOffset};
    ///
    /// let mut builder = MapBuilder::new(Header::default());
    /// let disk = builder.object(ObjectName::device(Kind::Disk, b"/dev/sda"), Attributes::default())?;
    /// builder.piece(disk, 1, DiskRange::new(0, 0x1000), None)?;
    /// let file = builder.object(ObjectName::path(Kind::File, b"/dev/sda1", b"/etc/fstab"), Attributes::default())?;
    /// builder.piece(file, 1, DiskRange::new(0x200, 0x400), Some(FileOffset(0x8000)))?;
    /// let map = builder.build();
    ///
    /// let hits = map.over(1, DiskRange::new(0x300, 0x800)).most_specific_first();
    /// assert_eq!(hits[0].object.name().path, b"/etc/fstab");
    /// assert_eq!(hits[0].range, DiskRange::new(0x300, 0x400));
    /// assert_eq!(hits[0].file_offset, Some(FileOffset(0x8100)));
    /// assert_eq!(hits[1].range, DiskRange::new(0x300, 0x800));
    /// # Ok::<(), virt_bmap_map::BuildError>(())
    /// ```
    pub fn over(&self, disk: DiskNumber, range: DiskRange) -> Over<'_> {
        self.index().over(self, disk, range)
    }

    /// Looks up many ranges of a disk, and calls `visit` with the index of each in `ranges`, in the
    /// order given, and with the result of [`over`](Self::over), the most specific first. On a
    /// large map this is faster than single look-ups, because their waits for memory overlap.
    pub fn over_each<'a>(
        &'a self,
        disk: DiskNumber,
        ranges: &[DiskRange],
        visit: impl FnMut(usize, &[Hit<'a>]),
    ) {
        self.index().over_each(self, disk, ranges, visit);
    }

    fn index(&self) -> &Index {
        self.index.get_or_init(|| Index::new(&self.pieces))
    }
}

impl PartialEq for Map {
    fn eq(&self, other: &Self) -> bool {
        self.header == other.header
            && self.dialect == other.dialect
            && self.objects == other.objects
            && self.pieces == other.pieces
    }
}

/// The numbers of objects and pieces: a map is too large to be printed whole.
impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map")
            .field("header", &self.header)
            .field("dialect", &self.dialect)
            .field("objects", &self.objects.len())
            .field("pieces", &self.pieces.len())
            .finish_non_exhaustive()
    }
}

/// The pieces of each object.
#[derive(Clone)]
struct ByObject {
    /// Where each object's pieces begin in `pieces`, and where the last one's end.
    first: Vec<u32>,
    /// Places in [`Map::pieces`], by object and then in that order.
    pieces: Vec<u32>,
}

impl ByObject {
    fn new(map: &Map) -> Self {
        let mut first = vec![0u32; map.objects.len() + 1];
        for piece in &map.pieces {
            first[piece.object as usize + 1] += 1;
        }
        for object in 1..first.len() {
            first[object] += first[object - 1];
        }
        let mut next = first.clone();
        let mut pieces = vec![0; map.pieces.len()];
        for (place, piece) in map.pieces.iter().enumerate() {
            let slot = &mut next[piece.object as usize];
            pieces[*slot as usize] = place as u32;
            *slot += 1;
        }
        Self { first, pieces }
    }

    fn pieces(&self, object: u32) -> &[u32] {
        let object = object as usize;
        &self.pieces[self.first[object] as usize..self.first[object + 1] as usize]
    }
}
