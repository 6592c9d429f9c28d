//! What was written between two states of a guest's disk, file by file.
//!
//! Two maps tell where everything lay before and where it lies now; [`mod@diff`] makes
//! the names of changes of them. [`Written`] are the bytes of the disk that the newer state's image holds
//! itself, compared with those of the older one by [`compare()`]. [`changes`] puts them together: what became
//! of each file, how many of its bytes were written, whose these were before, and whose those are now that
//! it has no more. And it shares out what the image holds, so that its size is explained.

mod compare;
mod owners;
mod shares;

pub use compare::{Compared, compare, not_in_holes};
pub use owners::{Origin, Owner};
pub use shares::Shares;

use hashbrown::{DefaultHashBuilder, HashSet};
use std::cmp::Reverse;

use owners::{is_owner, origin, place_of};
use virt_bmap_map::diff::{self, Change, diff};
use virt_bmap_map::hardlinks::{File, bytes_on_disk, fingerprint};
use virt_bmap_map::lookup::{self, HitRange, damage};
use virt_bmap_map::{Kind, Map, Marks, Object, PieceFlags};
use virt_bmap_ranges::{DiskNumber, DiskRange, IndexedRanges};

/// What the newer state of a disk has written over the older one.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// The bytes that take room in the newer image.
    pub held: IndexedRanges,
    /// The bytes that it only says to be zeroes.
    pub zeroes: IndexedRanges,
    /// Of all of these, those that are not what they were.
    pub differs: IndexedRanges,
    /// Of the others, those that could not be compared.
    pub unknown: IndexedRanges,
}

/// A number of bytes, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount {
    /// So many differ.
    pub exact: u64,
    /// So many more could not be compared.
    pub unknown: u64,
}

impl Amount {
    /// How many it can be at most.
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
    /// Of a range, the bytes that differ and those that could not be compared.
    fn amount(&self, range: DiskRange) -> Amount {
        Amount { exact: self.differs.bytes_in(range), unknown: self.unknown.bytes_in(range) }
    }

    fn amounts(&self, spans: &IndexedRanges) -> Amount {
        let mut sum = Amount::default();
        spans.iter().for_each(|range| sum += self.amount(range));
        sum
    }

    /// The bytes that differ, and those that may.
    fn possible(&self) -> IndexedRanges {
        self.differs.iter().chain(self.unknown.iter()).collect()
    }
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// What the maps tell, see [`diff`](mod@virt_bmap_map::diff).
    Mapped(Change),
    /// It lies where it lay, and its bytes are others.
    Rewritten,
    /// It lies where it lay, in what was written; whether its bytes are others is not known.
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

/// A file, directory or piece of metadata that changed.
#[derive(Clone, Debug)]
pub struct ChangedFile<'a> {
    /// What became of it.
    pub fate: Fate,
    /// It before; absent if it was added.
    pub old: Option<Object<'a>>,
    /// It now; absent if it was removed.
    pub new: Option<Object<'a>>,
    /// Number of its names that changed alike.
    pub names: u32,
    /// Of the bytes that it has now, those that are not what they were.
    pub written: Amount,
    /// Where these are. Those that could not be compared are among them.
    pub ranges: Vec<HitRange>,
    /// Whose these were before.
    pub before: Origin<'a>,
    /// Of the bytes that it had and has no more, those that are not what they were.
    pub overwritten: Amount,
    /// Whose these are now.
    pub after: Origin<'a>,
}

impl<'a> ChangedFile<'a> {
    /// The object whose name tells what this is about: it as it is now, or else as it was.
    pub fn subject(&self) -> Option<Object<'a>> {
        match self.fate {
            Fate::Mapped(Change::Removed | Change::Unlinked) => self.old,
            _ => self.new,
        }
    }
}

/// All that changed.
#[derive(Clone, Debug)]
pub struct Changes<'a> {
    /// What changed: the most written first, and then the most overwritten.
    pub files: Vec<ChangedFile<'a>>,
    /// What the image's size is made of.
    pub shares: Shares<'a>,
}

/// Finds what changed between two states of a guest, of whose disk number `disk` it is known what was
/// `written`.
///
/// Both maps are to be equally rich, see [`diff::level`]. Takes time for each object and each written
/// range, not for each pair of them.
pub fn changes<'a>(old: &'a Map, new: &'a Map, disk: DiskNumber, written: &Written) -> Changes<'a> {
    let possible = written.possible();
    let find = Finder { old, new, disk, written, possible: &possible };
    let mut files = Vec::new();
    let mut told = HashSet::new();
    let state = DefaultHashBuilder::default();
    let is_owned =
        |changed: &diff::Changed<'_>| changed.subject().is_some_and(|object| is_owner(object.kind()));
    // Devices only hold what these are.
    for changed in diff(old, new).into_iter().filter(is_owned) {
        // A name more or less is no change of the file.
        if !matches!(changed.change, Change::Linked | Change::Unlinked) {
            told.extend(changed.new.map(|object| fingerprint(&state, object, true)));
        }
        let diff::Changed { change, old, new, names, .. } = changed;
        files.push(find.file(Fate::Mapped(change), old, new, names));
    }
    let hit = damage(new, disk, &possible).hit;
    let in_files = hit.iter().filter(|hit| hit.file.object.kind() == Kind::File);
    let in_files: IndexedRanges = in_files.flat_map(|hit| &hit.ranges).map(|range| range.disk).collect();
    for hit in hit {
        let object = hit.file.object;
        if !told.contains(&fingerprint(&state, object, true)) {
            let here: IndexedRanges = hit.ranges.iter().map(|range| range.disk).collect();
            let fate = if written.amounts(&here).exact > 0 { Fate::Rewritten } else { Fate::Touched };
            files.push(find.file(fate, old.find(object.name()), Some(object), hit.file.names));
        }
    }
    files.extend(
        rewritten_in_metadata(old, new)
            .filter(|(_, new)| !told.contains(&fingerprint(&state, *new, true)))
            .map(|(old, new)| find.file(Fate::Rewritten, Some(old), Some(new), 1)),
    );
    files.sort_by_key(|file| (Reverse(file.written.most()), Reverse(file.overwritten.most())));
    Changes { files, shares: Shares::of(new, disk, written, &in_files) }
}

/// Files that lie in their inodes, and are of another time. Nothing else tells that they changed.
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

/// What it takes to say more of a change.
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
        // Of a name more or less the bytes are told with the file's own change, if it has one.
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
            let has = new.map(|object| place_of(object, self.disk)).unwrap_or_default();
            let lost = had.without(has.iter());
            found.overwritten = self.written.amounts(&lost);
            found.after = origin(self.new, self.disk, &lost, new, self.written);
        }
        found
    }
}

/// Number of bytes that an object has on all disks, before or now; 0 if it was not there.
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

    fn told(changes: &Changes<'_>) -> Vec<String> {
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
                // The end of the file, and what lies behind it.
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
            told(&changes),
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
    fn a_file_in_its_inode_is_told_by_its_time() {
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
        assert_eq!(told(&changes), ["rewritten /small 0?0 was; 0?0 now"]);
    }
}
