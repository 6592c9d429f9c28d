//! Compares two maps of one guest, made at different times.
//!
//! A map has the places of files and not their contents: a file that was rewritten in place appears
//! unchanged.

use hashbrown::{DefaultHashBuilder, HashMap, HashSet};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

use crate::hardlinks::{File, bytes_on_disk, disk_ranges, files, fingerprint};
use crate::{Format, Kind, Map, Object, ObjectId, ReadError, WriteError};
use virt_bmap_ranges::{DiskNumber, DiskRange, Range};

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It has another name: the same inode if both maps know it, and the same bytes of the disk.
    Renamed,
    /// A new name of a file that also keeps an old one.
    Linked,
    /// A lost name of a file that still has another.
    Unlinked,
    /// The same size, in another place, wholly or in part.
    Moved,
    /// Larger on the disk; or, with as many bytes on the disk, a larger size.
    Grown,
    /// Smaller, likewise.
    Shrunk,
}

impl Change {
    /// All changes, in the order of summaries.
    pub const ALL: [Self; 8] = [
        Self::Added,
        Self::Removed,
        Self::Renamed,
        Self::Linked,
        Self::Unlinked,
        Self::Moved,
        Self::Grown,
        Self::Shrunk,
    ];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Renamed => "renamed",
            Self::Linked => "linked",
            Self::Unlinked => "unlinked",
            Self::Moved => "moved",
            Self::Grown => "grown",
            Self::Shrunk => "shrunk",
        }
    }
}

/// An object that differs.
#[derive(Clone, Copy, Debug)]
pub struct Changed<'a> {
    /// What became of it.
    pub change: Change,
    /// The object in the old map; `None` if it was added. For a new or lost name, the object with
    /// the same bytes.
    pub old: Option<Object<'a>>,
    /// The object in the new map; `None` if it was removed.
    pub new: Option<Object<'a>>,
    /// Number of names of the file that changed in the same way.
    pub names: u32,
    /// Bytes on the disk in the old map.
    pub old_bytes: u64,
    /// Bytes on the disk in the new map.
    pub new_bytes: u64,
    /// Bytes of the disk that it gained: at least these were written.
    pub gained: u64,
    /// Bytes of the disk that it lost.
    pub lost: u64,
}

/// Number of changed objects with bytes of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Added objects.
    pub added: u64,
    /// Removed objects.
    pub removed: u64,
    /// Objects that moved, were renamed, grew or shrank, or gained or lost a name.
    pub changed: u64,
}

impl Counts {
    /// Counts `changes`.
    pub fn of(changes: &[Changed<'_>]) -> Self {
        let mut counts = Self::default();
        for changed in changes.iter().filter(|changed| changed.has_bytes()) {
            *match changed.change {
                Change::Added => &mut counts.added,
                Change::Removed => &mut counts.removed,
                _ => &mut counts.changed,
            } += 1;
        }
        counts
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} added, {} removed, {} changed", self.added, self.removed, self.changed)
    }
}

/// Reduces the richer of two maps to the contents of the other, and of its format. One may have
/// metadata, links and free space, and the other not; text and CSV omit some files and pieces. If
/// only one map had them, they would appear as added or removed.
///
/// A map that is lent is copied only if it is reduced; one that is given is freed before its
/// reduced form is read.
///
/// # Errors
/// When the richer map cannot be written in the other's format.
pub fn level<'a>(old: Cow<'a, Map>, new: Cow<'a, Map>) -> Result<(Cow<'a, Map>, Cow<'a, Map>), LevelError> {
    let (old, new) = match (old.lists_metadata(), new.lists_metadata()) {
        (true, false) => (Cow::Owned(old.without_metadata()), new),
        (false, true) => (old, Cow::Owned(new.without_metadata())),
        _ => (old, new),
    };
    let has_file = |map: &Map, test: fn(Object<'_>) -> bool| {
        map.objects().any(|object| object.kind() == Kind::File && test(object))
    };
    // Text has no inodes; CSV has no header and lists no objects without bytes.
    let rank = |map: &Map| match (
        has_file(map, |_| true),
        has_file(map, |file| file.attributes().inode.is_some()),
        map.header().images.is_empty(),
    ) {
        (true, false, _) => 0,
        (true, true, true) => 1,
        _ => 2,
    };
    let least = rank(&old).min(rank(&new));
    let lower = |map: Cow<'a, Map>| -> Result<Cow<'a, Map>, LevelError> {
        if rank(&map) <= least {
            return Ok(map);
        }
        let header = map.header().clone();
        let format = if least == 0 { Format::Text } else { Format::Csv };
        let mut written = Vec::new();
        format.write(&map, &mut written)?;
        drop(map);
        let mut map = crate::read(&written[..], format)?;
        *map.header_mut() = header;
        Ok(Cow::Owned(map))
    };
    Ok((lower(old)?, lower(new)?))
}

/// Why [`level`] failed.
#[derive(Debug, thiserror::Error)]
pub enum LevelError {
    /// The richer map cannot be written in the other's format.
    #[error("the maps have different formats, and one cannot be written in the format of the other")]
    Write(#[from] WriteError),
    /// The reduced map cannot be read; a defect of this library.
    #[error("the maps have different formats, and one cannot be read in the format of the other")]
    Read(#[from] ReadError),
}

/// Finds the changes. They are in the order of the new map, with removed objects sorted among them
/// by name. Names of one file are one change if all of them changed in the same way. Free space is
/// what the other objects leave, and no change of its own.
pub fn diff<'a>(old: &'a Map, new: &'a Map) -> Vec<Changed<'a>> {
    let mut both = HashMap::new();
    let mut differing = Vec::new();
    let mut removed = Vec::new();
    let mut added = Vec::new();
    let objects = |map: &'a Map| map.objects().filter(|object| object.kind() != Kind::Free).peekable();
    let (mut olds, mut news) = (objects(old), objects(new));
    loop {
        let order = match (olds.peek(), news.peek()) {
            (Some(old), Some(new)) => old.name().cmp(&new.name()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => break,
        };
        let old = if order.is_le() { olds.next() } else { None };
        let new = if order.is_ge() { news.next() } else { None };
        match (old, new) {
            (Some(old), Some(new)) => {
                if let Some(changed) = compare(old, new) {
                    both.insert(new.id(), changed);
                    differing.push(new);
                }
            }
            (Some(old), None) => removed.push(old),
            (None, Some(new)) => added.push(new),
            (None, None) => {}
        }
    }
    // A name can have gone to another file, as those of rotated logs do.
    let same = Same::of(old, new);
    let olds: Vec<_> = differing.iter().filter_map(|new| both.get(&new.id())?.old).collect();
    let elsewhere = same.partners(&olds, added.iter().chain(&differing).copied());
    for ((&old, partner), new) in olds.iter().zip(elsewhere).zip(std::mem::take(&mut differing)) {
        // An object that differs only in its size keeps its name.
        if partner.is_none() || same.is_same(old, new) {
            differing.push(new);
        } else {
            removed.push(old);
            added.push(new);
        }
    }
    removed.sort_unstable_by_key(|object| object.id());
    added.sort_unstable_by_key(|object| object.id());
    let mut found = Vec::new();
    for file in files(differing.into_iter()) {
        let changed = both.get(&file.object.id()).copied();
        found.extend(changed.map(|changed| Changed { names: file.names, ..changed }));
    }
    found.extend(renamed(&same, (old, new), &removed, &added));
    found.sort_by(|a, b| {
        let name = |changed: &Changed<'a>| changed.subject().map(Object::name);
        name(a).cmp(&name(b)).then(a.change.cmp(&b.change))
    });
    found
}

/// The change of an object that both maps have under one name.
fn compare<'a>(old: Object<'a>, new: Object<'a>) -> Option<Changed<'a>> {
    let same_place = disk_ranges(old).eq(disk_ranges(new));
    let by_size = match (old.attributes().size, new.attributes().size) {
        (Some(old), Some(new)) => new.cmp(&old),
        _ => Ordering::Equal,
    };
    if same_place && by_size.is_eq() {
        return None;
    }
    let (old_bytes, new_bytes) = (bytes_on_disk(old), bytes_on_disk(new));
    let change = match new_bytes.cmp(&old_bytes).then(by_size) {
        Ordering::Greater => Change::Grown,
        Ordering::Less => Change::Shrunk,
        Ordering::Equal => Change::Moved,
    };
    let kept = common(disk_ranges(old), disk_ranges(new));
    Some(Changed {
        change,
        old: Some(old),
        new: Some(new),
        names: 1,
        old_bytes,
        new_bytes,
        gained: new_bytes - kept,
        lost: old_bytes - kept,
    })
}

/// Number of bytes that are in both. Both ascend.
fn common(
    a: impl Iterator<Item = (DiskNumber, DiskRange)>,
    b: impl Iterator<Item = (DiskNumber, DiskRange)>,
) -> u64 {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    let mut bytes = 0;
    while let (Some(&(disk_a, span_a)), Some(&(disk_b, span_b))) = (a.peek(), b.peek()) {
        if disk_a == disk_b {
            bytes += span_a.intersection(span_b).map_or(0, Range::len);
        }
        if (disk_a, span_a.end) <= (disk_b, span_b.end) {
            a.next();
        } else {
            b.next();
        }
    }
    bytes
}

/// The changes of names that only one map has, or that belong to another file now.
fn renamed<'a>(
    same: &Same,
    (old, new): (&'a Map, &'a Map),
    removed: &[Object<'a>],
    added: &[Object<'a>],
) -> Vec<Changed<'a>> {
    let mut found = Vec::new();
    let mut taken: HashSet<ObjectId> = HashSet::new();
    let mut gone = Vec::new();
    for (&old, new) in removed.iter().zip(same.pairs(removed, added)) {
        match new {
            Some(new) => {
                taken.insert(new.id());
                found.push(Changed::of_name(Change::Renamed, old, new));
            }
            None => gone.push(old),
        }
    }
    let come: Vec<_> = added.iter().copied().filter(|new| !taken.contains(&new.id())).collect();

    let mut fresh = Vec::new();
    for (&new, partner) in come.iter().zip(same.partners(&come, old.objects())) {
        match partner {
            Some(old) => found.push(Changed::of_name(Change::Linked, old, new)),
            None => fresh.push(new),
        }
    }
    found.extend(files(fresh.into_iter()).into_iter().map(|File { object, names }| {
        let bytes = bytes_on_disk(object);
        let new = Some(object);
        Changed {
            change: Change::Added,
            old: None,
            new,
            names,
            old_bytes: 0,
            new_bytes: bytes,
            gained: bytes,
            lost: 0,
        }
    }));

    let mut lost = Vec::new();
    for (&old, partner) in gone.iter().zip(same.partners(&gone, new.objects())) {
        match partner {
            Some(new) => found.push(Changed::of_name(Change::Unlinked, old, new)),
            None => lost.push(old),
        }
    }
    found.extend(files(lost.into_iter()).into_iter().map(|File { object, names }| {
        let bytes = bytes_on_disk(object);
        let old = Some(object);
        Changed {
            change: Change::Removed,
            old,
            new: None,
            names,
            old_bytes: bytes,
            new_bytes: 0,
            gained: 0,
            lost: bytes,
        }
    }));
    found
}

/// Finds the same object in two maps under different names.
struct Same {
    state: DefaultHashBuilder,
    /// Whether both maps have inodes. If not, only the places decide.
    by_inode: bool,
}

impl Same {
    fn of(old: &Map, new: &Map) -> Self {
        let knows = |map: &Map| map.objects().any(|object| object.attributes().inode.is_some());
        Self { state: DefaultHashBuilder::default(), by_inode: knows(old) && knows(new) }
    }

    /// For each of `wanted` the first of `others` that is the same object.
    fn partners<'a>(
        &self,
        wanted: &[Object<'a>],
        others: impl Iterator<Item = Object<'a>>,
    ) -> Vec<Option<Object<'a>>> {
        // A file with one name is no name of another. A stream of NTFS has the inode of its file, and
        // both may lie in one record.
        let may_have_partner =
            |object: Object<'_>| self.can_be_told(object) && object.attributes().links != Some(1);
        let keys: Vec<_> =
            wanted.iter().map(|&object| may_have_partner(object).then(|| self.key(object))).collect();
        let mut by_key: HashMap<u64, Option<Object<'a>>> =
            keys.iter().flatten().map(|&key| (key, None)).collect();
        if !by_key.is_empty() {
            for other in others.filter(|&other| self.can_be_told(other)) {
                if let Some(first) = by_key.get_mut(&self.key(other)) {
                    first.get_or_insert(other);
                }
            }
        }
        let partner = |(&object, key): (&Object<'a>, &Option<u64>)| {
            let partner = (*by_key.get(&(*key)?)?)?;
            self.is_same(object, partner).then_some(partner)
        };
        wanted.iter().zip(&keys).map(partner).collect()
    }

    /// For each of `wanted` one of `others` that is the same object and has no other partner.
    fn pairs<'a>(&self, wanted: &[Object<'a>], others: &[Object<'a>]) -> Vec<Option<Object<'a>>> {
        let mut by_key: HashMap<u64, Vec<Object<'a>>> = HashMap::new();
        for &other in others.iter().rev().filter(|&&other| self.can_be_told(other)) {
            by_key.entry(self.key(other)).or_default().push(other);
        }
        let pair = |&object: &Object<'a>| {
            let left = by_key.get_mut(&self.key(object)).filter(|_| self.can_be_told(object))?;
            left.pop_if(|other| self.is_same(object, *other))
        };
        wanted.iter().map(pair).collect()
    }

    fn key(&self, object: Object<'_>) -> u64 {
        fingerprint(&self.state, object, self.by_inode)
    }

    /// Files without bytes are distinguished by their inodes, or not at all.
    fn can_be_told(&self, object: Object<'_>) -> bool {
        object.kind().has_path() == Some(true)
            && (object.pieces().next().is_some() || self.by_inode && object.attributes().inode.is_some())
    }

    fn is_same(&self, a: Object<'_>, b: Object<'_>) -> bool {
        a.kind() == b.kind()
            && a.name().device == b.name().device
            && (!self.by_inode || a.attributes().inode == b.attributes().inode)
            && disk_ranges(a).eq(disk_ranges(b))
    }
}

impl<'a> Changed<'a> {
    /// Whether the object has bytes of its own. Disks, partitions and volumes only hold those of
    /// others.
    pub fn has_bytes(&self) -> bool {
        self.subject().is_some_and(|object| object.kind().specificity() <= Kind::Metadata.specificity())
    }

    /// The object whose name identifies the change: the new one, or else the removed one.
    pub fn subject(&self) -> Option<Object<'a>> {
        match self.change {
            Change::Removed | Change::Unlinked => self.old,
            _ => self.new,
        }
    }

    /// A change of the name alone.
    fn of_name(change: Change, old: Object<'a>, new: Object<'a>) -> Self {
        let bytes = bytes_on_disk(new);
        let (old, new) = (Some(old), Some(new));
        Self { change, old, new, names: 1, old_bytes: bytes, new_bytes: bytes, gained: 0, lost: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attributes, Header, ImageFile, ImageInfo, MapBuilder, ObjectName, PieceFlags, Role, text};
    use proptest::prelude::*;
    use virt_bmap_ranges::FileOffset;

    fn changes(old: &Map, new: &Map) -> Vec<String> {
        let name = |object: Option<Object<'_>>| {
            object.map_or("-".to_owned(), |object| String::from_utf8_lossy(object.name().path).into_owned())
        };
        diff(old, new)
            .iter()
            .map(|c| {
                format!(
                    "{} {} {} x{} {:x} {:x} +{:x} -{:x}",
                    c.change.word(),
                    name(c.old),
                    name(c.new),
                    c.names,
                    c.old_bytes,
                    c.new_bytes,
                    c.gained,
                    c.lost
                )
            })
            .collect()
    }

    fn read(lines: &[&str]) -> Map {
        let mut lines: Vec<_> = lines.iter().map(|line| format!("1 {line}\n")).collect();
        lines.sort_by_key(|line| u64::from_str_radix(line.split(' ').nth(1).unwrap(), 16).unwrap());
        text::read(lines.concat().as_bytes()).unwrap()
    }

    #[test]
    fn each_change_is_named() {
        let old = read(&[
            "0 10 f /dev/sda1 /same",
            "10 20 f /dev/sda1 /gone",
            "20 30 f /dev/sda1 /old name",
            "30 40 f /dev/sda1 /moved",
            "40 50 f /dev/sda1 /grown",
            "50 70 f /dev/sda1 /shrunk",
            "70 80 f /dev/sda1 /gets a link",
            "80 90 f /dev/sda1 /loses a link",
            "80 90 f /dev/sda1 /the link",
        ]);
        let new = read(&[
            "0 10 f /dev/sda1 /same",
            "20 30 f /dev/sda1 /new name",
            "a0 b0 f /dev/sda1 /moved",
            "40 58 f /dev/sda1 /grown",
            "60 70 f /dev/sda1 /shrunk",
            "70 80 f /dev/sda1 /a link",
            "70 80 f /dev/sda1 /gets a link",
            "80 90 f /dev/sda1 /loses a link",
            "90 a0 f /dev/sda1 /fresh",
            "90 a0 f /dev/sda1 /fresh link",
        ]);
        assert_eq!(
            changes(&old, &new),
            [
                "linked /gets a link /a link x1 10 10 +0 -0",
                "added - /fresh x2 0 10 +10 -0",
                "removed /gone - x1 10 0 +0 -10",
                "grown /grown /grown x1 10 18 +8 -0",
                "moved /moved /moved x1 10 10 +10 -10",
                "renamed /old name /new name x1 10 10 +0 -0",
                "shrunk /shrunk /shrunk x1 20 10 +0 -10",
                "unlinked /the link /loses a link x1 10 10 +0 -0",
            ]
        );
        assert!(changes(&old, &old).is_empty());
    }

    #[test]
    fn a_name_can_go_to_another_file() {
        let old = read(&["0 10 f /dev/sda1 /log", "10 20 f /dev/sda1 /x", "20 30 f /dev/sda1 /y"]);
        let new = read(&[
            "0 10 f /dev/sda1 /log.1",
            "10 20 f /dev/sda1 /y",
            "20 30 f /dev/sda1 /x",
            "30 34 f /dev/sda1 /log",
        ]);
        assert_eq!(
            changes(&old, &new),
            [
                "added - /log x1 0 4 +4 -0",
                "renamed /log /log.1 x1 10 10 +0 -0",
                "renamed /y /x x1 10 10 +0 -0",
                "renamed /x /y x1 10 10 +0 -0",
            ]
        );
    }

    #[test]
    fn inodes_distinguish_a_rename_from_reused_blocks() {
        let map = |files: &[(&str, u64, u64)]| {
            let mut builder = MapBuilder::new(Header::default());
            for &(path, inode, bytes) in files {
                let known = Attributes {
                    inode: Some(inode),
                    size: Some(bytes),
                    links: Some(1),
                    ..Attributes::default()
                };
                let name = ObjectName::path(Kind::File, b"/dev/sda1", path.as_bytes());
                let file = builder.object(name, known).unwrap();
                builder.piece(file, 1, DiskRange::new(0x100 * inode, 0x100 * inode + bytes), None).unwrap();
            }
            builder.build()
        };
        let old = map(&[("/a", 1, 16), ("/empty", 2, 0), ("/other", 3, 0)]);
        let new = map(&[("/b", 1, 16), ("/other", 3, 0), ("/renamed", 2, 0)]);
        assert_eq!(
            changes(&old, &new),
            ["renamed /a /b x1 10 10 +0 -0", "renamed /empty /renamed x1 0 0 +0 -0"]
        );
        // Blocks and name of another inode.
        let mut builder = MapBuilder::new(Header::default());
        let known = Attributes { inode: Some(9), size: Some(16), links: Some(1), ..Attributes::default() };
        let file = builder.object(ObjectName::path(Kind::File, b"/dev/sda1", b"/b"), known).unwrap();
        builder.piece(file, 1, DiskRange::new(0x100, 0x110), None).unwrap();
        let reused = builder.build();
        assert_eq!(
            changes(&map(&[("/a", 1, 16)]), &reused),
            ["removed /a - x1 10 0 +0 -10", "added - /b x1 0 10 +10 -0"]
        );
    }

    #[test]
    fn a_change_of_the_size_alone_is_found() {
        let map = |size| {
            let mut builder = MapBuilder::new(Header::default());
            for path in [&b"/log"[..], b"/log link"] {
                let known =
                    Attributes { inode: Some(9), size: Some(size), links: Some(2), ..Attributes::default() };
                let file = builder.object(ObjectName::path(Kind::File, b"/dev/sda1", path), known).unwrap();
                builder.piece(file, 1, DiskRange::new(0x100, 0x200), None).unwrap();
            }
            builder.build()
        };
        assert_eq!(changes(&map(100), &map(114)), ["grown /log /log x2 100 100 +0 -0"]);
        assert_eq!(changes(&map(114), &map(100)), ["shrunk /log /log x2 100 100 +0 -0"]);
    }

    #[test]
    fn maps_of_two_formats_are_compared() {
        let mut builder = MapBuilder::new(Header::default());
        let image = ImageFile { name: b"guest.raw".to_vec(), format: "raw".into() };
        builder.header_mut().images =
            vec![ImageInfo { disk: 1, size: 4096, sector: 512, image, snapshot: None, chain: Vec::new() }];
        for (path, inode, bytes) in [(&b"/a"[..], 9, 0x100), (b"/empty", 10, 0)] {
            let known = Attributes { inode: Some(inode), size: Some(bytes), ..Attributes::default() };
            let file = builder.object(ObjectName::path(Kind::File, b"/dev/sda1", path), known).unwrap();
            builder.piece(file, 1, DiskRange::new(0x100, 0x100 + bytes), Some(FileOffset(0))).unwrap();
            let unwritten = Role::from(PieceFlags::UNWRITTEN);
            let range = DiskRange::new(0x800, 0x800 + bytes);
            builder.piece_as(file, 1, range, Some(FileOffset(0x1000)), unwritten).unwrap();
        }
        let rich = builder.build();
        for format in [Format::Text, Format::Csv, Format::JsonLines] {
            let mut written = Vec::new();
            format.write(&rich, &mut written).unwrap();
            let poor = crate::read(&written[..], format).unwrap();
            let (old, new) = level(Cow::Owned(poor.clone()), Cow::Borrowed(&rich)).unwrap();
            assert!(changes(&old, &new).is_empty(), "{format}: {:?}", changes(&old, &new));
            let (old, new) = level(Cow::Borrowed(&rich), Cow::Owned(poor)).unwrap();
            assert!(changes(&old, &new).is_empty(), "{format}: {:?}", changes(&old, &new));
            assert_eq!(old.header().images, rich.header().images);
        }
    }

    proptest! {
        /// What is gained and lost accounts for the difference, and a map does not differ from
        /// itself.
        #[test]
        fn bytes_add_up(
            a in prop::collection::vec((0usize..6, 0u64..40, 1u64..9), 0..12),
            b in prop::collection::vec((0usize..6, 0u64..40, 1u64..9), 0..12),
        ) {
            let map = |pieces: &[(usize, u64, u64)]| {
                let mut builder = MapBuilder::new(Header::default());
                for &(which, start, length) in pieces {
                    let path = format!("/{which}");
                    let name = ObjectName::path(Kind::File, b"/dev/sda1", path.as_bytes());
                    let file = builder.object(name, Attributes::default()).unwrap();
                    builder.piece(file, 1, DiskRange::new(start, start + length), None).unwrap();
                }
                builder.build()
            };
            let (a, b) = (map(&a), map(&b));
            for changed in diff(&a, &b) {
                prop_assert_eq!(changed.old_bytes + changed.gained, changed.new_bytes + changed.lost);
            }
            prop_assert!(diff(&a, &a).is_empty());
            // Each name that only one of them has is accounted for; so are those that change hands.
            let only = |a: &Map, b: &Map| a.objects().filter(|object| b.find(object.name()).is_none()).count() as u32;
            let sum = |changes: &[Change]| -> u32 {
                diff(&a, &b).iter().filter(|c| changes.contains(&c.change)).map(|c| c.names).sum()
            };
            let handed_on = sum(&[Change::Renamed, Change::Removed, Change::Unlinked]) - only(&a, &b);
            prop_assert_eq!(sum(&[Change::Renamed, Change::Added, Change::Linked]), only(&b, &a) + handed_on);
        }
    }

    /// A stream of NTFS has the inode of its file, and may lie in the same record.
    #[test]
    fn a_new_stream_is_no_other_name_of_its_file() {
        let map = |paths: &[&[u8]]| {
            let mut builder = MapBuilder::new(Header::default());
            for path in paths {
                let known = Attributes { inode: Some(64), links: Some(1), ..Attributes::default() };
                let file = builder.object(ObjectName::path(Kind::File, b"/dev/sda", path), known).unwrap();
                builder.piece(file, 1, DiskRange::new(0x400, 0x800), None).unwrap();
            }
            builder.build()
        };
        let (one, two) = (map(&[b"/a"]), map(&[b"/a", b"/a:stream"]));
        assert_eq!(changes(&one, &two), ["added - /a:stream x1 0 400 +400 -0"]);
        assert_eq!(changes(&two, &one), ["removed /a:stream - x1 400 0 +0 -400"]);
    }
}
