//! What was written between two states of a guest's disk, file by file.
//!
//! The inputs are a map of each state, and the [`Written`] bytes: those that the image of the newer
//! state holds itself, compared with the older state by [`compare()`]. [`mod@diff`] finds the
//! objects that changed. [`changes`] combines both: for each file the kind of change, the number of
//! bytes written, the former owners of these bytes, and the present owners of the bytes that it
//! gave up. [`Shares`] explains the size of the newer image.

mod compare;
mod owners;
mod shares;

pub use compare::{Compared, compare, not_in_holes};
pub use owners::{Origin, Owner};
pub use shares::Shares;

use hashbrown::{DefaultHashBuilder, HashSet};
use std::cmp::Reverse;

use owners::{is_owner, origin, ranges_of};
use virt_bmap_map::diff::{self, Change, diff};
use virt_bmap_map::hardlinks::{File, bytes_on_disk, fingerprint};
use virt_bmap_map::lookup::{self, HitRange, damage};
use virt_bmap_map::{Kind, Map, Marks, Object, PieceFlags};
use virt_bmap_ranges::{DiskNumber, DiskRange, IndexedRanges};

/// The bytes that were written between two states of a disk.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// The bytes that take space in the newer image.
    pub held: IndexedRanges,
    /// The bytes that the newer image marks as zeroes without storing them.
    pub zeroes: IndexedRanges,
    /// Those of the above that differ from the older state.
    pub differs: IndexedRanges,
    /// Those of the above that could not be compared.
    pub unknown: IndexedRanges,
}

/// A number of bytes, with its uncertainty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount {
    /// Number of bytes that differ.
    pub exact: u64,
    /// Number of further bytes that could not be compared.
    pub unknown: u64,
}

impl Amount {
    /// The maximum number.
    pub fn most(self) -> u64 {
        self.exact + self.unknown
    }
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.exact += other.exact;
        self.unknown += other.unknown;
    }
}

impl Written {
    /// The numbers of bytes in a range that differ and that could not be compared.
    fn amount(&self, range: DiskRange) -> Amount {
        Amount { exact: self.differs.bytes_in(range), unknown: self.unknown.bytes_in(range) }
    }

    fn amounts(&self, spans: &IndexedRanges) -> Amount {
        let mut sum = Amount::default();
        spans.iter().for_each(|range| sum += self.amount(range));
        sum
    }

    /// The bytes that differ or may differ.
    pub fn possible(&self) -> IndexedRanges {
        self.differs.iter().chain(self.unknown.iter()).collect()
    }
}

/// The kind of change of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// A change between the maps, see [`diff`](mod@virt_bmap_map::diff).
    Mapped(Change),
    /// In the same place, with other content.
    Rewritten,
    /// In the same place, which was written; it is not known whether the content differs.
    Touched,
}

impl Fate {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Mapped(change) => change.word(),
            Self::Rewritten => "rewritten",
            Self::Touched => "touched",
        }
    }
}

/// A file, directory or metadata object that changed.
#[derive(Clone, Debug)]
pub struct ChangedFile<'a> {
    /// The kind of change.
    pub fate: Fate,
    /// The object in the old map; absent if it was added.
    pub old: Option<Object<'a>>,
    /// The object in the new map; absent if it was removed.
    pub new: Option<Object<'a>>,
    /// Number of its names that changed in the same way.
    pub names: u32,
    /// Number of its present bytes that differ from the older state.
    pub written: Amount,
    /// The ranges of these bytes, including those that could not be compared.
    pub ranges: Vec<HitRange>,
    /// The former owners of these bytes.
    pub before: Origin<'a>,
    /// Number of bytes that it gave up and that differ from the older state.
    pub overwritten: Amount,
    /// The present owners of these bytes.
    pub after: Origin<'a>,
}

impl<'a> ChangedFile<'a> {
    /// The object by whose name the change is reported: the new one, or else the old one.
    pub fn subject(&self) -> Option<Object<'a>> {
        match self.fate {
            Fate::Mapped(Change::Removed | Change::Unlinked) => self.old,
            _ => self.new,
        }
    }
}

/// All changes.
#[derive(Clone, Debug)]
pub struct Changes<'a> {
    /// The changed objects, by bytes written and then by bytes overwritten, the most first.
    pub files: Vec<ChangedFile<'a>>,
    /// What the size of the newer image consists of.
    pub shares: Shares<'a>,
}

/// Whether all of these bytes of a disk are data of files, and of nothing else. If only they were
/// written, the map of the disk is still true: no filesystem has changed what belongs to whom.
pub fn is_data_of_files(map: &Map, disk: DiskNumber, written: &IndexedRanges) -> bool {
    // In these, bytes of a file may be metadata as well, or not be the file's alone.
    let doubtful = PieceFlags::INLINE | PieceFlags::UNWRITTEN;
    let is_owner_of_more = |kind: Kind| is_owner(kind) && kind != Kind::File;
    let mut data = Vec::new();
    for piece in map.pieces().filter(|piece| piece.disk == disk) {
        let object = map.object(piece.object);
        let is_data = object.kind() == Kind::File
            && piece.role.holds_data()
            && !piece.role.flags.intersects(doubtful)
            && !object.attributes().marks.intersects(Marks::INEXACT | Marks::UNVERIFIED)
            // The system files of NTFS, which are its metadata.
            && !object.name().path.starts_with(b"/$");
        if is_data {
            data.push(piece.range);
        } else if is_owner_of_more(object.kind()) && written.bytes_in(piece.range) > 0 {
            return false;
        }
    }
    written.without(data).bytes() == 0
}

/// Finds the changes between two states of a guest, given the bytes `written` to disk number
/// `disk`.
///
/// Both maps must hold the same kinds of attributes, see [`diff::level`]. The run time grows with
/// the sum of objects and written ranges, not with their product.
pub fn changes<'a>(old: &'a Map, new: &'a Map, disk: DiskNumber, written: &Written) -> Changes<'a> {
    let possible = written.possible();
    let find = Finder { old, new, disk, written, possible: &possible };
    let mut files = Vec::new();
    let mut reported = HashSet::new();
    let state = DefaultHashBuilder::default();
    let is_owned =
        |changed: &diff::Changed<'_>| changed.subject().is_some_and(|object| is_owner(object.kind()));
    // Devices only contain the objects that own bytes.
    for changed in diff(old, new).into_iter().filter(is_owned) {
        // Adding or removing a hard link does not change the file's data.
        if !matches!(changed.change, Change::Linked | Change::Unlinked) {
            reported.extend(changed.new.map(|object| fingerprint(&state, object, true)));
        }
        let diff::Changed { change, old, new, names, .. } = changed;
        files.push(find.file(Fate::Mapped(change), old, new, names));
    }
    let hit = damage(new, disk, &possible).hit;
    let in_files = hit.iter().filter(|hit| hit.file.object.kind() == Kind::File);
    let in_files: IndexedRanges = in_files.flat_map(|hit| &hit.ranges).map(|range| range.disk).collect();
    for hit in hit {
        let object = hit.file.object;
        if !reported.contains(&fingerprint(&state, object, true)) {
            let here: IndexedRanges = hit.ranges.iter().map(|range| range.disk).collect();
            let fate = if written.amounts(&here).exact > 0 { Fate::Rewritten } else { Fate::Touched };
            files.push(find.file(fate, old.find(object.name()), Some(object), hit.file.names));
        }
    }
    files.extend(
        rewritten_in_metadata(old, new)
            .filter(|(_, new)| !reported.contains(&fingerprint(&state, *new, true)))
            .map(|(old, new)| find.file(Fate::Rewritten, Some(old), Some(new), 1)),
    );
    files.sort_by_key(|file| (Reverse(file.written.most()), Reverse(file.overwritten.most())));
    Changes { files, shares: Shares::of(new, disk, written, &in_files) }
}

/// Files stored in their inodes whose modification time changed: the only sign that they were
/// rewritten.
fn rewritten_in_metadata<'a>(old: &'a Map, new: &'a Map) -> impl Iterator<Item = (Object<'a>, Object<'a>)> {
    let is_inline = |object: &Object<'_>| {
        object.kind() == Kind::File
            && object.attributes().marks.contains(Marks::INLINE)
            && object.pieces().all(|piece| piece.role.flags.contains(PieceFlags::INLINE))
    };
    new.objects().filter(is_inline).filter_map(|new| {
        let old = old.find(new.name())?;
        let (before, now) = (old.attributes(), new.attributes());
        let is_later = before.modified.is_some() && now.modified.is_some() && before.modified != now.modified;
        (is_later && before.size == now.size && before.inode == now.inode).then_some((old, new))
    })
}

/// Finds the details of a change.
struct Finder<'a, 'w> {
    old: &'a Map,
    new: &'a Map,
    disk: DiskNumber,
    written: &'w Written,
    possible: &'w IndexedRanges,
}

impl<'a> Finder<'a, '_> {
    fn file(
        &self,
        fate: Fate,
        old: Option<Object<'a>>,
        new: Option<Object<'a>>,
        names: u32,
    ) -> ChangedFile<'a> {
        let mut found = ChangedFile {
            fate,
            old,
            new,
            names,
            written: Amount::default(),
            ranges: Vec::new(),
            before: Origin::default(),
            overwritten: Amount::default(),
            after: Origin::default(),
        };
        // For a hard link added or removed, the bytes are reported with the file's own change, if
        // any.
        if let Fate::Mapped(Change::Linked | Change::Unlinked) = fate {
            return found;
        }
        let new_hit = new.and_then(|object| lookup::hit(File { object, names }, self.disk, self.possible));
        if let Some(hit) = new_hit {
            let here: IndexedRanges = hit.ranges.iter().map(|range| range.disk).collect();
            found.written = self.written.amounts(&here);
            found.before = origin(self.old, self.disk, &here, old, self.written);
            found.ranges = hit.ranges;
        }
        let old_hit = old.and_then(|object| lookup::hit(File { object, names }, self.disk, self.possible));
        if let Some(hit) = old_hit {
            let had: IndexedRanges = hit.ranges.iter().map(|range| range.disk).collect();
            let has = new.map(|object| ranges_of(object, self.disk)).unwrap_or_default();
            let lost = had.without(has.iter());
            found.overwritten = self.written.amounts(&lost);
            found.after = origin(self.new, self.disk, &lost, new, self.written);
        }
        found
    }
}

/// Number of bytes of an object on all disks; 0 if it does not exist.
pub fn bytes(object: Option<Object<'_>>) -> u64 {
    object.map_or(0, bytes_on_disk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use virt_bmap_map::{Attributes, Header, MapBuilder, ObjectName};
    use virt_bmap_ranges::FileOffset;

    /// Kind, path, inode, size, and pieces of 0x100 bytes each.
    type Known<'a> = (Kind, &'a str, u64, u64, &'a [u64]);

    fn map(objects: &[Known<'_>]) -> Map {
        let mut builder = MapBuilder::new(Header::default());
        for &(kind, path, inode, size, pieces) in objects {
            let known =
                Attributes { inode: Some(inode), size: Some(size), links: Some(1), ..Default::default() };
            let name = ObjectName::path(kind, b"/dev/sda1", path.as_bytes());
            let object = builder.object(name, known).unwrap();
            for (number, &piece) in (0..).zip(pieces) {
                let (start, inside) = (piece * 0x100, FileOffset(number * 0x100));
                builder.piece(object, 1, DiskRange::new(start, start + 0x100), Some(inside)).unwrap();
            }
        }
        let disk =
            builder.object(ObjectName::device(Kind::Disk, b"/dev/sda"), Attributes::default()).unwrap();
        builder.piece(disk, 1, DiskRange::new(0, 0x2000), None).unwrap();
        builder.build()
    }

    fn spans(ranges: &[(u64, u64)]) -> IndexedRanges {
        ranges.iter().map(|&(start, end)| DiskRange::new(start, end)).collect()
    }

    fn lines(changes: &Changes<'_>) -> Vec<String> {
        let path = |object: Object<'_>| String::from_utf8_lossy(object.name().path).into_owned();
        let origin = |origin: &Origin<'_>| -> String {
            let part = |(owner, amount): (Owner<'_>, Amount)| {
                let name = match owner {
                    Owner::Itself => "itself".to_owned(),
                    Owner::Other(object) => path(object),
                    Owner::Nobody => "nobody".to_owned(),
                };
                format!(" {name}:{:x}?{:x}", amount.exact, amount.unknown)
            };
            origin.parts().map(part).collect()
        };
        let line = |file: &ChangedFile<'_>| {
            let name = file.subject().map(path).unwrap();
            let (written, lost) = (file.written, file.overwritten);
            let (was, now) = (origin(&file.before), origin(&file.after));
            format!(
                "{} {name} {:x}?{:x} was{was}; {:x}?{:x} now{now}",
                file.fate.word(),
                written.exact,
                written.unknown,
                lost.exact,
                lost.unknown
            )
        };
        changes.files.iter().map(line).collect()
    }

    #[test]
    fn each_byte_has_an_owner_before_and_now() {
        use Kind::{Directory, File};
        let old = map(&[
            (Directory, "/", 2, 0x100, &[0]),
            (File, "/appended", 11, 0x180, &[1, 2]),
            (File, "/deleted", 12, 0x200, &[3, 4]),
            (File, "/moved", 13, 0x100, &[5]),
            (File, "/neighbour", 14, 0x100, &[6]),
            (File, "/rewritten", 15, 0x100, &[7]),
            (File, "/shrunk", 16, 0x200, &[8, 9]),
            (File, "/uncertain", 17, 0x100, &[10]),
        ]);
        let new = map(&[
            (Directory, "/", 2, 0x100, &[0]),
            (File, "/added", 18, 0x300, &[3, 9, 11]),
            (File, "/appended", 11, 0x1c0, &[1, 2]),
            (File, "/moved", 13, 0x100, &[12]),
            (File, "/neighbour", 14, 0x100, &[6]),
            (File, "/rewritten", 15, 0x100, &[7]),
            (File, "/shrunk", 16, 0x100, &[8]),
            (File, "/uncertain", 17, 0x100, &[10]),
        ]);
        let written = Written {
            held: spans(&[(0, 0x1000)]),
            zeroes: spans(&[(0x1000, 0x1100)]),
            differs: spans(&[
                (0x40, 0x80),
                // The end of the file, and bytes after it.
                (0x280, 0x2f0),
                (0x300, 0x400),
                (0x410, 0x420),
                (0x780, 0x790),
                (0x900, 0xa00),
                (0xb00, 0xc00),
                (0xc00, 0xd00),
                (0xf00, 0xf80),
                (0x1000, 0x1010),
            ]),
            unknown: spans(&[(0xa00, 0xb00)]),
        };
        let changes = changes(&old, &new, 1, &written);
        assert_eq!(
            lines(&changes),
            [
                "added /added 300?0 was /deleted:100?0 /shrunk:100?0 nobody:100?0; 0?0 now",
                "moved /moved 100?0 was nobody:100?0; 0?0 now",
                "touched /uncertain 0?100 was itself:0?100; 0?0 now",
                "grown /appended 40?0 was itself:40?0; 0?0 now",
                "rewritten / 40?0 was itself:40?0; 0?0 now",
                "rewritten /rewritten 10?0 was itself:10?0; 0?0 now",
                "removed /deleted 0?0 was; 110?0 now /added:100?0 nobody:10?0",
                "shrunk /shrunk 0?0 was; 100?0 now /added:100?0",
            ]
        );
        let shares = &changes.shares;
        assert_eq!(shares.files, Amount { exact: 0x300 + 0x100 + 0x40 + 0x10, unknown: 0x100 });
        assert_eq!(shares.tails, Amount { exact: 0x30, unknown: 0 });
        assert_eq!(shares.directories, Amount { exact: 0x40, unknown: 0 });
        assert_eq!(shares.free.len(), 1);
        assert_eq!(shares.free[0].1, Amount { exact: 0x10 + 0x80, unknown: 0 });
        assert_eq!(shares.zeroed, Amount { exact: 0x10, unknown: 0 });
        let all = [shares.files, shares.tails, shares.directories, shares.free[0].1];
        let sum: u64 = all.iter().map(|amount| amount.most()).sum();
        assert_eq!(sum + shares.same, shares.held);
    }

    #[test]
    fn a_rewritten_inline_file_is_found_by_its_time() {
        let map = |modified| {
            let mut builder = MapBuilder::new(Header::default());
            for (path, modified) in [(&b"/small"[..], modified), (b"/other", 5)] {
                let known = Attributes {
                    inode: Some(modified as u64),
                    modified: Some(modified),
                    marks: Marks::INLINE | Marks::NO_BLOCKS,
                    ..Attributes::default()
                };
                let known = Attributes { inode: Some(9), ..known };
                builder.object(ObjectName::path(Kind::File, b"/dev/sda1", path), known).unwrap();
            }
            builder.build()
        };
        let (old, new) = (map(1), map(2));
        let changes = changes(&old, &new, 1, &Written::default());
        assert_eq!(lines(&changes), ["rewritten /small 0?0 was; 0?0 now"]);
    }
}
