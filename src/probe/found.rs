//! The objects that a probe finds, by number, on their way into the map.

mod owned;

pub use owned::Owned;

use rustix::fs::FileType;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;
use virt_bmap_agent_protocol::record::ATTRIBUTES;
use virt_bmap_map::{
    Attributes, BuildError, Header, Kind, MapBuilder, Marks, NewObject, ObjectName, ReparseTag, Role,
};
use virt_bmap_ranges::{DiskNumber, DiskRange, FileOffset};

/// Number of an object; the first is 1, because tag 0 means no object.
pub type ObjectNumber = u32;

/// Most objects of one guest. Numbers above are left for tags that are no objects.
pub const MOST_OBJECTS: u32 = ATTRIBUTES - 1;

/// Counts of objects, as in the summary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Partitions.
    pub partitions: u64,
    /// Logical volumes.
    pub volumes: u64,
    /// Filesystems that were walked.
    pub filesystems: u64,
    /// Directories.
    pub directories: u64,
    /// Names of regular files.
    pub files: u64,
}

/// Why an object was not taken in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FoundError {
    /// The map cannot hold it.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// Its parent is unknown, or is not a directory.
    #[error("object {0} is not a directory of this filesystem")]
    Parent(ObjectNumber),
    /// It is not known.
    #[error("there is no object {0}")]
    Unknown(ObjectNumber),
    /// An invalid name.
    #[error("an invalid file name")]
    Name,
    /// More than [`MOST_OBJECTS`].
    #[error("there are more than {MOST_OBJECTS} objects")]
    TooMany,
}

/// The object of a number.
#[derive(Clone, Copy)]
enum Entry {
    Object(NewObject),
    /// It is not in the map: it is of a kind that is left out, or its path is longer than a map
    /// can hold.
    Unnamed,
}

/// The objects found so far.
pub struct Found {
    builder: MapBuilder,
    /// Whether metadata, symbolic links and free space are kept, too.
    keeps_metadata: bool,
    entries: Vec<Entry>,
    /// Paths of the directories of the filesystem being walked, without a slash at the end.
    directories: HashMap<ObjectNumber, Arc<[u8]>>,
    /// Files with several names, by number.
    shared: HashMap<ObjectNumber, Shared>,
    /// Their other names, each with the number of the file.
    links: Vec<(ObjectNumber, NewObject)>,
    device: String,
    counts: Counts,
    /// How much there was at the start of the current filesystem.
    before: Before,
}

/// How much there is.
#[derive(Clone, Copy, Default)]
struct Before {
    counts: Counts,
    links: usize,
    objects: usize,
    pieces: usize,
    filesystems: usize,
    /// Number of the next object.
    next: ObjectNumber,
}

/// What all names of a file share.
struct Shared {
    kind: Kind,
    attributes: Attributes,
    pieces: Vec<(DiskNumber, DiskRange, Option<FileOffset>, Role)>,
}

impl Default for Found {
    fn default() -> Self {
        Self {
            builder: MapBuilder::new(Header::default()),
            keeps_metadata: true,
            entries: Vec::new(),
            directories: HashMap::new(),
            shared: HashMap::new(),
            links: Vec::new(),
            device: String::new(),
            counts: Counts::default(),
            before: Before::default(),
        }
    }
}

impl Found {
    /// The number that the next object gets.
    pub fn next(&self) -> ObjectNumber {
        self.entries.len() as u32 + 1
    }

    /// Nothing of metadata, symbolic links and free space gets into the map.
    pub fn leave_metadata_out(&mut self) {
        self.keeps_metadata = false;
    }

    /// The pieces of the directories of the current filesystem, each with the inode of its
    /// directory.
    pub fn directory_pieces(&self) -> impl Iterator<Item = (u64, DiskNumber, DiskRange, Role)> {
        self.builder.pieces_after(self.before.pieces).filter_map(|(object, disk, range, role)| {
            let is_directory = self.builder.name(object).kind == Kind::Directory;
            let inode = is_directory.then(|| self.builder.attributes(object).inode).flatten();
            inode.map(|inode| (inode, disk, range, role))
        })
    }

    /// The pieces of the files and directories of the current filesystem.
    pub fn owned(&self) -> Owned<'_> {
        Owned::new(&self.builder, self.before.pieces)
    }

    /// The inode of an object, if that is known.
    pub fn inode_of(&self, number: ObjectNumber) -> Option<u64> {
        match self.entry(number) {
            Ok(Entry::Object(object)) => self.builder.attributes(object).inode,
            _ => None,
        }
    }

    /// The size of an object, if that is known.
    pub fn size_of(&self, number: ObjectNumber) -> Option<u64> {
        match self.entry(number) {
            Ok(Entry::Object(object)) => self.builder.attributes(object).size,
            _ => None,
        }
    }

    /// The path of the directory with this inode in the current filesystem, if there is one that
    /// has a path.
    pub fn directory_of_inode(&self, inode: u64) -> Option<&[u8]> {
        let has_it = |number: &&ObjectNumber| self.inode_of(**number) == Some(inode);
        self.directories.keys().filter(has_it).min().and_then(|number| self.directory_path(*number))
    }

    /// The counts.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The counts of the current filesystem.
    pub fn filesystem_counts(&self) -> Counts {
        Counts {
            directories: self.counts.directories - self.before.counts.directories,
            files: self.counts.files - self.before.counts.files,
            ..Counts::default()
        }
    }

    /// The header of the map to be.
    pub fn header_mut(&mut self) -> &mut Header {
        self.builder.header_mut()
    }

    /// Makes the map.
    ///
    /// # Errors
    /// [`FoundError::Build`] where there are more pieces than a map can hold.
    pub fn into_map(mut self) -> Result<virt_bmap_map::Map, FoundError> {
        for (number, object) in &self.links {
            let Some(shared) = self.shared.get(number) else { continue };
            self.builder.know(*object, shared.attributes);
            for &(disk, range, file_offset, role) in &shared.pieces {
                self.builder.piece_as(*object, disk, range, file_offset, role)?;
            }
        }
        Ok(self.builder.build())
    }

    /// Adds a disk, partition or volume.
    ///
    /// # Errors
    /// [`FoundError`]
    pub fn device(&mut self, kind: Kind, path: &str) -> Result<ObjectNumber, FoundError> {
        let number = self.number()?;
        let object = self.builder.object(ObjectName::device(kind, path.as_bytes()), Attributes::default())?;
        self.entries.push(Entry::Object(object));
        match kind {
            Kind::Partition => self.counts.partitions += 1,
            Kind::LogicalVolume => self.counts.volumes += 1,
            _ => {}
        }
        Ok(number)
    }

    /// Adds a metadata object of a device, or its free space, which has no name. Two additions of
    /// the same name are one object.
    ///
    /// # Errors
    /// [`FoundError`]
    pub fn metadata_object(
        &mut self,
        kind: Kind,
        device: &str,
        name: &[u8],
        marks: Marks,
    ) -> Result<ObjectNumber, FoundError> {
        let number = self.number()?;
        if self.keeps(kind) {
            let attributes = Attributes { marks, ..Attributes::default() };
            let object = self.builder.object(ObjectName::path(kind, device.as_bytes(), name), attributes)?;
            self.entries.push(Entry::Object(object));
        } else {
            self.entries.push(Entry::Unnamed);
        }
        Ok(number)
    }

    /// The path of an object that has one in the map.
    pub fn path_of(&self, number: ObjectNumber) -> Option<&[u8]> {
        match self.entry(number) {
            Ok(Entry::Object(object)) => Some(self.builder.name(object).path),
            _ => None,
        }
    }

    /// The objects that follow lie in the filesystem on `device`.
    pub fn begin_filesystem(&mut self, device: &str) {
        self.directories.clear();
        device.clone_into(&mut self.device);
        self.before = Before {
            counts: self.counts,
            links: self.links.len(),
            objects: self.builder.object_count(),
            pieces: self.builder.piece_count(),
            filesystems: self.builder.header_mut().filesystems.len(),
            next: self.next(),
        };
        self.counts.filesystems += 1;
    }

    /// Forgets the objects of the current filesystem, which will be found again. Their numbers are
    /// not used again.
    pub fn forget_filesystem(&mut self) {
        let Before { counts, links, objects, pieces, filesystems, next } = self.before;
        self.counts = counts;
        self.links.truncate(links);
        self.builder.truncate(objects, pieces);
        let first = (next as usize).saturating_sub(1).min(self.entries.len());
        self.entries[first..].fill(Entry::Unnamed);
        self.builder.header_mut().filesystems.truncate(filesystems);
        self.shared.retain(|number, _| *number < next);
    }

    /// Adds a directory or file named `name` in `parent`; the root has no parent.
    ///
    /// # Errors
    /// [`FoundError`]. A name that is too long for a map is an error of kind [`FoundError::Build`],
    /// but the object has its number all the same.
    pub fn object(
        &mut self,
        kind: Kind,
        parent: Option<ObjectNumber>,
        name: &[u8],
        attributes: Attributes,
    ) -> Result<ObjectNumber, FoundError> {
        let number = self.number()?;
        let path = match parent {
            None => Some(Vec::new()),
            Some(parent) => self.path(parent, name)?,
        };
        self.count(kind);
        // Objects below a directory without a path have no path, either.
        self.entries.push(Entry::Unnamed);
        let is_directory = kind == Kind::Directory || attributes.mode.is_some_and(is_directory);
        if !is_directory && attributes.links.is_some_and(|links| links > 1) {
            self.shared.insert(number, Shared { kind, attributes, pieces: Vec::new() });
        }
        let Some(path) = path else { return Ok(number) };
        if self.keeps(kind) {
            let object = self.named(kind, &path, attributes)?;
            self.entries[number as usize - 1] = Entry::Object(object);
        }
        if is_directory {
            self.directories.insert(number, path.into());
        }
        Ok(number)
    }

    /// Adds a file or directory that is in no directory, or a part of one: `part` is what follows
    /// the name of the whole.
    ///
    /// # Errors
    /// [`FoundError`]. A name that is too long for a map is an error of kind [`FoundError::Build`],
    /// but the object has its number all the same.
    pub fn orphan(
        &mut self,
        kind: Kind,
        inode: u64,
        part: &[u8],
        attributes: Attributes,
    ) -> Result<ObjectNumber, FoundError> {
        let number = self.number()?;
        // A path never begins with a bracket.
        let path = [format!("[orphan inode {inode}]").as_bytes(), part].concat();
        self.count(kind);
        self.entries.push(Entry::Unnamed);
        if self.keeps(kind) {
            let object = self.named(kind, &path, attributes)?;
            self.entries[number as usize - 1] = Entry::Object(object);
        }
        Ok(number)
    }

    /// Adds another name of a file: an object of its own that shares the file's ranges.
    ///
    /// # Errors
    /// [`FoundError`]
    pub fn link(
        &mut self,
        number: ObjectNumber,
        parent: ObjectNumber,
        name: &[u8],
    ) -> Result<(), FoundError> {
        let shared = self.shared.get(&number).ok_or(FoundError::Unknown(number))?;
        let Shared { kind, attributes, .. } = *shared;
        self.counts.files += u64::from(kind == Kind::File);
        if let Some(path) = self.path(parent, name)?.filter(|_| self.keeps(kind)) {
            let object = self.named(kind, &path, attributes)?;
            self.links.push((number, object));
        }
        Ok(())
    }

    /// The kind of an object that has a path in the map.
    pub fn kind_of(&self, number: ObjectNumber) -> Option<Kind> {
        match self.entry(number) {
            Ok(Entry::Object(object)) => Some(self.builder.name(object).kind),
            _ => None,
        }
    }

    /// Marks an object.
    pub fn mark(&mut self, number: ObjectNumber, marks: Marks) {
        self.know(number, Attributes { marks, ..Attributes::default() });
    }

    /// Notes the tag of an object's reparse point.
    pub fn reparse(&mut self, number: ObjectNumber, tag: ReparseTag) {
        let marks = Marks::REPARSE_POINT;
        self.know(number, Attributes { marks, reparse: Some(tag), ..Attributes::default() });
    }

    fn know(&mut self, number: ObjectNumber, attributes: Attributes) {
        if let Ok(Entry::Object(object)) = self.entry(number) {
            self.builder.know(object, attributes);
        }
        if let Some(shared) = self.shared.get_mut(&number) {
            shared.attributes.marks |= attributes.marks;
            shared.attributes.reparse = attributes.reparse.or(shared.attributes.reparse);
        }
    }

    /// Gives an object a piece.
    ///
    /// # Errors
    /// [`FoundError`]
    pub fn range(
        &mut self,
        number: ObjectNumber,
        disk: DiskNumber,
        range: DiskRange,
        file_offset: Option<FileOffset>,
        role: Role,
    ) -> Result<(), FoundError> {
        match self.entry(number)? {
            Entry::Object(object) => self.builder.piece_as(object, disk, range, file_offset, role)?,
            Entry::Unnamed => {}
        }
        if let Some(shared) = self.shared.get_mut(&number) {
            shared.pieces.push((disk, range, file_offset, role));
        }
        Ok(())
    }

    /// The path of a name in a directory; `None` if the directory has no path in the map.
    pub fn path(&self, parent: ObjectNumber, name: &[u8]) -> Result<Option<Vec<u8>>, FoundError> {
        if matches!(name, b"" | b"." | b"..") || name.iter().any(|b| matches!(b, b'/' | 0)) {
            return Err(FoundError::Name);
        }
        let Some(parent_path) = self.directories.get(&parent) else {
            return match self.entry(parent)? {
                Entry::Unnamed => Ok(None),
                Entry::Object(_) => Err(FoundError::Parent(parent)),
            };
        };
        Ok(Some([parent_path, &b"/"[..], name].concat()))
    }

    /// The path of a directory, for messages; `None` if it is not a directory, or has no path.
    pub fn directory_path(&self, number: ObjectNumber) -> Option<&[u8]> {
        let path = self.directories.get(&number)?;
        Some(if path.is_empty() { b"/" } else { path })
    }

    fn count(&mut self, kind: Kind) {
        match kind {
            Kind::Directory => self.counts.directories += 1,
            Kind::File => self.counts.files += 1,
            _ => {}
        }
    }

    /// Whether objects of this kind get into the map.
    pub fn keeps(&self, kind: Kind) -> bool {
        self.keeps_metadata || !kind.needs_metadata()
    }

    fn named(&mut self, kind: Kind, path: &[u8], attributes: Attributes) -> Result<NewObject, FoundError> {
        let path = if path.is_empty() { b"/" } else { path };
        Ok(self.builder.object(ObjectName::path(kind, self.device.as_bytes(), path), attributes)?)
    }

    fn number(&self) -> Result<ObjectNumber, FoundError> {
        if self.next() > MOST_OBJECTS { Err(FoundError::TooMany) } else { Ok(self.next()) }
    }

    fn entry(&self, number: ObjectNumber) -> Result<Entry, FoundError> {
        let index = (number as usize).checked_sub(1);
        index.and_then(|index| self.entries.get(index)).copied().ok_or(FoundError::Unknown(number))
    }
}

/// Whether an `st_mode` is that of a directory.
fn is_directory(mode: u16) -> bool {
    FileType::from_raw_mode(mode.into()).is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_put_together_and_bad_names_refused() {
        let mut found = Found::default();
        assert_eq!(found.device(Kind::Disk, "/dev/sda"), Ok(1));
        found.begin_filesystem("/dev/sda");
        let root = found.object(Kind::Directory, None, b"", Attributes::default()).unwrap();
        let etc = found.object(Kind::Directory, Some(root), b"etc", Attributes::default()).unwrap();
        let file = found.object(Kind::File, Some(etc), b"a\xff", Attributes::default()).unwrap();
        assert_eq!(found.path(etc, b"b"), Ok(Some(b"/etc/b".to_vec())));
        assert_eq!(found.directory_path(root), Some(&b"/"[..]));
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert_eq!(found.path(etc, name), Err(FoundError::Name));
        }
        assert_eq!(found.path(file, b"b"), Err(FoundError::Parent(file)));
        assert_eq!(found.path(99, b"b"), Err(FoundError::Unknown(99)));
        assert_eq!(
            found.range(99, 1, DiskRange::new(0, 1), None, Role::default()),
            Err(FoundError::Unknown(99))
        );
        assert_eq!(found.counts().directories, 2);
    }

    #[test]
    fn what_was_forgotten_is_not_in_the_map_and_its_numbers_are_not_given_again() {
        let mut found = Found::default();
        found.device(Kind::Disk, "/dev/sda").unwrap();
        let inode = |inode| Attributes { inode: Some(inode), ..Attributes::default() };
        found.begin_filesystem("/dev/sda");
        let root = found.object(Kind::Directory, None, b"", inode(2)).unwrap();
        let first = found.object(Kind::Directory, Some(root), b"first", inode(12)).unwrap();
        found.range(first, 1, DiskRange::new(0, 4096), None, Role::default()).unwrap();
        assert_eq!((found.inode_of(first), found.directory_pieces().count()), (Some(12), 1));
        found.forget_filesystem();
        assert_eq!((found.inode_of(first), found.directory_pieces().count()), (None, 0));

        found.begin_filesystem("/dev/sda");
        let root = found.object(Kind::Directory, None, b"", inode(2)).unwrap();
        assert_eq!(root, first + 1);
        let second = found.object(Kind::Directory, Some(root), b"second", inode(12)).unwrap();
        found.range(second, 1, DiskRange::new(0, 4096), None, Role::default()).unwrap();
        assert_eq!(found.counts().directories, 2);
        let map = found.into_map().unwrap();
        let paths: Vec<&[u8]> = map.objects().map(|object| object.name().path).collect();
        assert_eq!(paths, [&b"/"[..], b"/second", b""]);
        assert_eq!(map.pieces().len(), 1);
    }

    #[test]
    fn without_metadata_parts_of_orphans_are_left_out() {
        let mut found = Found::default();
        found.leave_metadata_out();
        found.begin_filesystem("/dev/sda");
        for (kind, part) in [(Kind::File, &b":a"[..]), (Kind::Metadata, b" [attribute list]")] {
            let number = found.orphan(kind, 7, part, Attributes::default()).unwrap();
            found.range(number, 1, DiskRange::new(0, 1), None, Role::default()).unwrap();
        }
        let map = found.into_map().unwrap();
        let paths: Vec<&[u8]> = map.objects().map(|object| object.name().path).collect();
        assert_eq!(paths, [&b"[orphan inode 7]:a"[..]]);
    }

    #[test]
    fn below_a_path_that_is_too_long_objects_are_counted_but_not_named() {
        let mut found = Found::default();
        found.begin_filesystem("/dev/sda");
        let mut parent = found.object(Kind::Directory, None, b"", Attributes::default()).unwrap();
        let name = [b'x'; 255];
        let mut failed = 0;
        for _ in 0..2000 {
            let next = found.next();
            failed += usize::from(
                found.object(Kind::Directory, Some(parent), &name, Attributes::default()).is_err(),
            );
            parent = next;
        }
        assert_eq!(failed, 1);
        assert_eq!(found.counts().directories, 2001);
        assert!(found.range(parent, 1, DiskRange::new(0, 1), None, Role::default()).is_ok());
    }
}
