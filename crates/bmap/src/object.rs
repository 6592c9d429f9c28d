//! Objects, their names and attributes, and a compact store for them.
//!
//! A guest has millions of files. An object takes 16 bytes plus its path, which lies with all
//! others in one block of memory, and 64 bytes more if it has attributes.

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use std::cmp::Ordering;
use std::fmt;
use std::hash::BuildHasher;
use thiserror::Error;

use crate::reparse::ReparseTag;
use virt_bmap_ranges::Printable;

/// Longest path of an object in bytes. A path this long still fits a line of the text map
/// ([`MAX_LINE`](super::text::MAX_LINE)) if every byte of it has to be escaped.
pub const MAX_PATH: usize = 255 * 1024;

/// Longest device name in bytes.
pub const MAX_DEVICE: usize = 512;

/// The kind of an object.
///
/// The order of the variants is that of [`specificity`](Self::specificity).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// `f`: a regular file.
    File,
    /// `d`: a directory.
    Directory,
    /// `s`: a symbolic link.
    Symlink,
    /// `m`: metadata of a filesystem, a volume group, a partition table.
    Metadata,
    /// `u`: declared unused, such as the free space of a filesystem.
    Free,
    /// `l`: a logical volume.
    LogicalVolume,
    /// `b`: another block device that the guest's kernel assembles, such as a RAID array or an
    /// unlocked encrypted volume.
    MappedDevice,
    /// `p`: a partition.
    Partition,
    /// `v`: a whole disk.
    Disk,
}

impl Kind {
    /// All kinds, the most specific first.
    pub const ALL: [Self; 9] = [
        Self::File,
        Self::Directory,
        Self::Symlink,
        Self::Metadata,
        Self::Free,
        Self::LogicalVolume,
        Self::MappedDevice,
        Self::Partition,
        Self::Disk,
    ];

    /// The letter that stands for the kind in a text map.
    pub fn letter(self) -> u8 {
        match self {
            Self::File => b'f',
            Self::Directory => b'd',
            Self::Symlink => b's',
            Self::Metadata => b'm',
            Self::Free => b'u',
            Self::LogicalVolume => b'l',
            Self::MappedDevice => b'b',
            Self::Partition => b'p',
            Self::Disk => b'v',
        }
    }

    /// The kind that a letter stands for.
    pub fn from_letter(letter: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.letter() == letter)
    }

    /// Whether only maps with metadata have objects of this kind: metadata itself, symbolic links
    /// and free space.
    pub fn needs_metadata(self) -> bool {
        matches!(self, Self::Metadata | Self::Symlink | Self::Free)
    }

    /// How specific the kind is: 0 is the most specific. A byte of a file also belongs to its
    /// partition and its disk, and a look-up should show the file first.
    pub fn specificity(self) -> u8 {
        self as u8
    }

    /// Whether objects of this kind have a path in addition to their device; `None` if the path is
    /// optional.
    pub fn has_path(self) -> Option<bool> {
        match self {
            Self::File | Self::Directory | Self::Symlink => Some(true),
            Self::Metadata => None,
            Self::Free | Self::LogicalVolume | Self::MappedDevice | Self::Partition | Self::Disk => {
                Some(false)
            }
        }
    }
}

/// The name of an object: its kind, its device and, in a filesystem, the path from that
/// filesystem's root. Names are bytes in no particular encoding.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectName<'a> {
    /// The kind.
    pub kind: Kind,
    /// The device, as the appliance calls it: `/dev/sda1`, `/dev/vg/root`.
    pub device: &'a [u8],
    /// The path; empty where the kind has none.
    pub path: &'a [u8],
}

impl<'a> ObjectName<'a> {
    /// The name of a device: a disk, a partition, a volume.
    pub fn device(kind: Kind, device: &'a [u8]) -> Self {
        Self { kind, device, path: b"" }
    }

    /// The name of a file or directory (or of metadata that has a path) on `device`.
    pub fn path(kind: Kind, device: &'a [u8], path: &'a [u8]) -> Self {
        Self { kind, device, path }
    }

    /// The path of its directory, and its name there; `None` for a root and for objects without a
    /// path.
    ///
    /// ```
    /// use virt_bmap_map::{Kind, ObjectName};
    ///
    /// let file = |path| ObjectName::path(Kind::File, b"/dev/sda1", path);
    /// assert_eq!(file(b"/boot/vmlinuz").in_directory(), Some((&b"/boot"[..], &b"vmlinuz"[..])));
    /// assert_eq!(file(b"/vmlinuz").in_directory(), Some((&b"/"[..], &b"vmlinuz"[..])));
    /// assert_eq!(file(b"/").in_directory(), None);
    /// ```
    pub fn in_directory(self) -> Option<(&'a [u8], &'a [u8])> {
        let slash = self.path.iter().rposition(|byte| *byte == b'/')?;
        let name = &self.path[slash + 1..];
        (!name.is_empty()).then_some((&self.path[..slash.max(1)], name))
    }

    /// Whether a map can hold such an object.
    ///
    /// # Errors
    /// What is wrong with the name.
    pub fn check(&self) -> Result<(), NameError> {
        if self.device.is_empty() {
            return Err(NameError::NoDevice);
        }
        match (self.kind.has_path(), self.path.is_empty()) {
            (Some(true), true) => return Err(NameError::NoPath(self.kind)),
            (Some(false), false) => return Err(NameError::UnexpectedPath(self.kind)),
            _ => {}
        }
        if self.device.len() > MAX_DEVICE {
            return Err(NameError::TooLong { what: "device", length: self.device.len(), limit: MAX_DEVICE });
        }
        if self.path.len() > MAX_PATH {
            return Err(NameError::TooLong { what: "path", length: self.path.len(), limit: MAX_PATH });
        }
        Ok(())
    }

    /// The bytes after `TYPE `, without escapes: `DEVICE` or `DEVICE PATH`.
    fn tail(self) -> impl Iterator<Item = &'a u8> {
        let space: &[u8] = if self.path.is_empty() { b"" } else { b" " };
        self.device.iter().chain(space).chain(self.path)
    }
}

/// Objects are in the byte order of `TYPE DEVICE PATH`, the order of lines in the text map.
impl Ord for ObjectName<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.kind.letter().cmp(&other.kind.letter()).then_with(|| {
            if self.device == other.device {
                self.path.cmp(other.path)
            } else {
                self.tail().cmp(other.tail()).then_with(|| self.device.cmp(other.device))
            }
        })
    }
}

impl PartialOrd for ObjectName<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// `TYPE DEVICE PATH`, safe for a terminal.
impl fmt::Display for ObjectName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", char::from(self.kind.letter()), Printable(self.device))?;
        if self.path.is_empty() { Ok(()) } else { write!(f, " {}", Printable(self.path)) }
    }
}

impl fmt::Debug for ObjectName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{self}`")
    }
}

/// Why a map cannot hold an object of this name.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NameError {
    /// There is no device.
    #[error("the object has no device")]
    NoDevice,
    /// A file or directory without path.
    #[error("an object of type `{}` needs a path after its device", char::from(.0.letter()))]
    NoPath(Kind),
    /// A device with a path.
    #[error("an object of type `{}` is a device and has no path", char::from(.0.letter()))]
    UnexpectedPath(Kind),
    /// The name is too long.
    #[error("the {what} is {length} bytes long; at most {limit} can be mapped")]
    TooLong {
        /// Which part of the name.
        what: &'static str,
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// More devices or objects than the store can number.
    #[error("there are more than {limit} {what}")]
    TooMany {
        /// Devices or objects.
        what: &'static str,
        /// The limit.
        limit: u32,
    },
}

/// The attributes of an object: all but its name and its ranges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Inode number in its filesystem. No filesystem uses 0, which means unknown.
    pub inode: Option<u64>,
    /// Size in bytes, as `stat` gives it.
    pub size: Option<u64>,
    /// Number of hard links. 0 means unknown.
    pub links: Option<u32>,
    /// Bytes that the filesystem has allocated for it: `st_blocks` of `stat`, times 512.
    pub allocated: Option<u64>,
    /// File type and permissions, as `st_mode` of Linux has them, which is 16 bits wide. 0 means
    /// unknown.
    pub mode: Option<u16>,
    /// When its data was last modified: nanoseconds since 1970 in UTC.
    pub modified: Option<i64>,
    /// When its inode was last changed: nanoseconds since 1970 in UTC.
    pub changed: Option<i64>,
    /// Its marks.
    pub marks: Marks,
    /// The tag of its reparse point.
    pub reparse: Option<ReparseTag>,
    /// Whom it belongs to. No format has it: it is known only of a map that was just made.
    pub owner: Option<Owner>,
    /// When it was made: nanoseconds since 1970 in UTC, as `stx_btime` of `statx(2)` gives it.
    /// `None` also if the filesystem has no such time. No format has it, as for `owner`.
    pub born: Option<i64>,
}

/// The owner of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Number of the user.
    pub user: u32,
    /// Number of the group.
    pub group: u32,
}

impl Owner {
    /// Stands for an unknown owner: `chown(2)` sets no file to this number.
    const UNKNOWN: Self = Self { user: u32::MAX, group: u32::MAX };
}

bitflags::bitflags! {
    /// Special properties of an object, or of its ranges in the map.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct Marks: u16 {
        /// It has no blocks of its own: it is empty, one hole, or its data lies in metadata.
        const NO_BLOCKS = 1;
        /// Its data, or the end of it, lies in metadata.
        const INLINE = 1 << 1;
        /// It has holes.
        const SPARSE = 1 << 2;
        /// Some of its data is compressed or otherwise encoded, so bytes on the disk differ from
        /// those of the file.
        const ENCODED = 1 << 3;
        /// It is encrypted by its filesystem.
        const ENCRYPTED = 1 << 4;
        /// It has blocks that are allocated and never written.
        const PREALLOCATED = 1 << 5;
        /// The reads of its data did not match the place that the kernel reports.
        const INEXACT = 1 << 6;
        /// Nothing was available to compare its ranges with.
        const UNVERIFIED = 1 << 7;
        /// It has a reparse point of Windows: opening it means what a program makes of that.
        const REPARSE_POINT = 1 << 8;
    }
}

impl Marks {
    /// The name of each mark in the formats.
    pub const NAMES: [(Self, &'static str); 9] = [
        (Self::NO_BLOCKS, "no-blocks"),
        (Self::INLINE, "inline"),
        (Self::SPARSE, "sparse"),
        (Self::ENCODED, "encoded"),
        (Self::ENCRYPTED, "encrypted"),
        (Self::PREALLOCATED, "preallocated"),
        (Self::INEXACT, "inexact"),
        (Self::UNVERIFIED, "unverified"),
        (Self::REPARSE_POINT, "reparse-point"),
    ];

    /// The names of the marks that are set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(mark, _)| self.contains(*mark)).map(|(_, name)| name)
    }

    /// The mark of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|(_, known)| *known == name).map(|(mark, _)| mark)
    }
}

/// [`Attributes`] with a value each for what is unknown, at a half of the size.
#[derive(Clone, Copy)]
struct PackedAttributes {
    inode: u64,
    size: u64,
    allocated: u64,
    modified: i64,
    changed: i64,
    links: u32,
    mode: u16,
    marks: Marks,
    owner: Owner,
    born: i64,
}

/// A map of millions of files has as many of them.
const _: () = assert!(size_of::<PackedAttributes>() == 64);

impl PackedAttributes {
    const UNKNOWN: Self = Self {
        inode: 0,
        size: u64::MAX,
        allocated: u64::MAX,
        modified: i64::MIN,
        changed: i64::MIN,
        links: 0,
        mode: 0,
        marks: Marks::empty(),
        owner: Owner::UNKNOWN,
        born: i64::MIN,
    };

    fn unpack(self) -> Attributes {
        Attributes {
            inode: (self.inode != 0).then_some(self.inode),
            size: (self.size != u64::MAX).then_some(self.size),
            links: (self.links != 0).then_some(self.links),
            allocated: (self.allocated != u64::MAX).then_some(self.allocated),
            mode: (self.mode != 0).then_some(self.mode),
            modified: (self.modified != i64::MIN).then_some(self.modified),
            changed: (self.changed != i64::MIN).then_some(self.changed),
            marks: self.marks,
            reparse: None,
            owner: (self.owner != Owner::UNKNOWN).then_some(self.owner),
            born: (self.born != i64::MIN).then_some(self.born),
        }
    }
}

/// One object: the place of its name.
#[derive(Clone, Copy)]
struct Record {
    path: u64,
    path_length: u32,
    device: u16,
    kind: Kind,
}

/// The store of objects. An object is its place in it, a `u32`.
#[derive(Clone, Default)]
pub(super) struct Objects {
    records: Vec<Record>,
    /// All paths, one after the other.
    paths: Vec<u8>,
    devices: Vec<Box<[u8]>>,
    /// As long as `records`, or empty while nothing is known of any object.
    attributes: Vec<PackedAttributes>,
    /// The tags of the few objects with a reparse point.
    reparse: HashMap<u32, ReparseTag>,
    /// In a sorted store, where the objects of each kind end. They follow one another in the order
    /// of the kinds' letters.
    kind_ends: Vec<(u32, Kind)>,
}

impl Objects {
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn devices(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.devices.iter().map(|device| &**device)
    }

    pub(super) fn name(&self, object: u32) -> ObjectName<'_> {
        let record = self.records[object as usize];
        ObjectName {
            kind: record.kind,
            device: &self.devices[usize::from(record.device)],
            path: &self.paths[record.path as usize..][..record.path_length as usize],
        }
    }

    /// The kind of an object in a sorted store. Look-ups need it often, and an answer without the
    /// record saves a wait for memory.
    #[inline]
    pub(super) fn kind(&self, object: u32) -> Kind {
        let known = self.kind_ends.iter().find(|(end, _)| object < *end);
        known.map_or_else(|| self.records[object as usize].kind, |(_, kind)| *kind)
    }

    pub(super) fn attributes(&self, object: u32) -> Attributes {
        let known = self.attributes.get(object as usize).map(|packed| packed.unpack());
        // Most maps have none, and then there is nothing to look up.
        let reparse = if self.reparse.is_empty() { None } else { self.reparse.get(&object).copied() };
        Attributes { reparse, ..known.unwrap_or_default() }
    }

    /// The object of this name, in a store that is [sorted](ObjectTable::sort).
    pub(super) fn find(&self, name: ObjectName<'_>) -> Option<u32> {
        let (mut low, mut high) = (0, self.records.len() as u32);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.name(middle).cmp(&name) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Some(middle),
            }
        }
        None
    }
}

impl PartialEq for Objects {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len()
            && (0..self.len() as u32).all(|object| {
                self.name(object) == other.name(object) && self.attributes(object) == other.attributes(object)
            })
    }
}

/// A store of objects that finds each by its name, so that none is in it twice.
#[derive(Default)]
pub(super) struct ObjectTable {
    objects: Objects,
    by_name: HashTable<u32>,
    devices: HashMap<Box<[u8]>, u16>,
    hasher: DefaultHashBuilder,
}

impl ObjectTable {
    pub(super) fn name(&self, object: u32) -> ObjectName<'_> {
        self.objects.name(object)
    }

    /// The object of this name, which is added if it is new.
    pub(super) fn intern(&mut self, name: ObjectName<'_>) -> Result<u32, NameError> {
        let Self { objects, by_name, devices, hasher } = self;
        let hash = hasher.hash_one(name);
        if let Some(&object) = by_name.find(hash, |&object| objects.name(object) == name) {
            return Ok(object);
        }
        name.check()?;
        let limit = u32::MAX - 1;
        let object = u32::try_from(objects.len()).ok().filter(|&object| object < limit);
        let object = object.ok_or(NameError::TooMany { what: "objects", limit })?;
        let device = match devices.get(name.device) {
            Some(&device) => device,
            None => {
                let device = objects.push_device(name.device)?;
                devices.insert(name.device.into(), device);
                device
            }
        };
        objects.push(name, device);
        by_name.insert_unique(hash, object, |&object| hasher.hash_one(objects.name(object)));
        Ok(object)
    }

    pub(super) fn attributes(&self, object: u32) -> Attributes {
        self.objects.attributes(object)
    }

    /// Merges attributes into those of the object.
    pub(super) fn set_attributes(&mut self, object: u32, attributes: Attributes) {
        if attributes == Attributes::default() {
            return;
        }
        let table = &mut self.objects.attributes;
        if table.len() <= object as usize {
            table.resize(object as usize + 1, PackedAttributes::UNKNOWN);
        }
        let packed = &mut table[object as usize];
        packed.inode = attributes.inode.unwrap_or(packed.inode);
        packed.size = attributes.size.unwrap_or(packed.size);
        packed.links = attributes.links.unwrap_or(packed.links);
        packed.allocated = attributes.allocated.unwrap_or(packed.allocated);
        packed.mode = attributes.mode.unwrap_or(packed.mode);
        packed.modified = attributes.modified.unwrap_or(packed.modified);
        packed.changed = attributes.changed.unwrap_or(packed.changed);
        packed.marks |= attributes.marks;
        packed.owner = attributes.owner.unwrap_or(packed.owner);
        packed.born = attributes.born.unwrap_or(packed.born);
        if let Some(tag) = attributes.reparse {
            self.objects.reparse.insert(object, tag);
        }
    }

    /// How many objects there are.
    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    /// Removes all objects after the first `count`.
    pub(super) fn truncate(&mut self, count: usize) {
        let Objects { records, paths, attributes, reparse, .. } = &mut self.objects;
        if let Some(first) = records.get(count) {
            paths.truncate(first.path as usize);
        }
        records.truncate(count);
        attributes.truncate(count);
        reparse.retain(|object, _| (*object as usize) < count);
        self.by_name.retain(|object| (*object as usize) < count);
    }

    /// Sorts the objects by name. Returns them and, for each old number, the new one.
    pub(super) fn sort(self) -> (Objects, Vec<u32>) {
        let Self { mut objects, by_name, .. } = self;
        drop(by_name); // before the sort needs memory of its own
        let mut order: Vec<u32> = (0..objects.len() as u32).collect();
        order.sort_unstable_by(|&a, &b| objects.name(a).cmp(&objects.name(b)));
        permute(&mut objects.records, &order);
        if !objects.attributes.is_empty() {
            objects.attributes.resize(order.len(), PackedAttributes::UNKNOWN);
            permute(&mut objects.attributes, &order);
        }
        let mut end = 0;
        for of_kind in objects.records.chunk_by(|a, b| a.kind == b.kind) {
            end += of_kind.len() as u32;
            objects.kind_ends.push((end, of_kind[0].kind));
        }
        let mut renumbered = vec![0; order.len()];
        for (new, &old) in order.iter().enumerate() {
            renumbered[old as usize] = new as u32;
        }
        let tags = std::mem::take(&mut objects.reparse).into_iter();
        objects.reparse = tags.map(|(old, tag)| (renumbered[old as usize], tag)).collect();
        (objects, renumbered)
    }
}

/// Reorders by the permutation `order`: each place gets the element from the place that `order`
/// names. In place, since a second copy of all objects would set the peak of memory use.
fn permute<T: Copy>(items: &mut [T], order: &[u32]) {
    let mut done = vec![false; order.len()];
    for first in 0..order.len() {
        if done[first] {
            continue;
        }
        let (saved, mut place) = (items[first], first);
        loop {
            done[place] = true;
            let from = order[place] as usize;
            if from == first {
                items[place] = saved;
                break;
            }
            items[place] = items[from];
            place = from;
        }
    }
}

impl Objects {
    fn push(&mut self, name: ObjectName<'_>, device: u16) {
        let record = Record {
            path: self.paths.len() as u64,
            path_length: name.path.len() as u32,
            device,
            kind: name.kind,
        };
        self.paths.extend_from_slice(name.path);
        self.records.push(record);
    }

    fn push_device(&mut self, device: &[u8]) -> Result<u16, NameError> {
        let limit = u16::MAX;
        let number = u16::try_from(self.devices.len())
            .map_err(|_| NameError::TooMany { what: "devices", limit: u32::from(limit) + 1 })?;
        self.devices.push(device.into());
        Ok(number)
    }
}
