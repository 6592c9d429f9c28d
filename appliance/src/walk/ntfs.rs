//! The part of a walk that takes from the `$MFT` of NTFS what ntfs-3g does not show.
//!
//! The walk goes through the directories that ntfs-3g lists. Each entry has the number of its
//! record, and the record says more than the driver: streams, places, initialized sizes, reparse
//! points. The extents of ordinary files come from their records, and are proved by reads like
//! those of any other filesystem. What ntfs-3g cannot open is placed by its record alone; a
//! directory that it does not list, because of a reparse point, is listed by its index. At the end
//! all records are read once, and those that nothing has named become objects, too.

use super::batches::block_device;
use super::inspector::Answer;
use super::list::Entry;
use super::look_up::Below;
use super::{FileType, Walker};
use crate::Fatal;
use crate::ntfs::{Device, extents, is_link, main_stream, part};
use rustix::fd::BorrowedFd;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use virt_bmap_agent_protocol::Record;
use virt_bmap_agent_protocol::record::{self, Extent, Object, ObjectKind, Operation};
use virt_bmap_ntfs::{File, Namespace, Volume};

/// Records before this one belong to the volume itself.
const FIRST_USER: u64 = 24;

/// Record of the root directory.
const ROOT: u64 = 5;

/// Most entries of a directory that is listed by its index: they are kept in memory.
const MOST_ENTRIES: usize = 1 << 20;

/// `st_mode`, as ntfs-3g gives it.
const FILE_MODE: u32 = 0o100_777;
const LINK_MODE: u32 = 0o120_777;
const DIRECTORY_MODE: u32 = 0o040_777;

/// The NTFS volume that is walked.
pub(super) struct Ntfs {
    volume: Rc<Volume<Device>>,
    /// Bits of the records that have been found, 64 in a word.
    found: HashMap<u64, u64>,
    /// The objects of files with several names, by record; each with what follows the name.
    links: HashMap<u64, Vec<(u32, Vec<u8>)>>,
    /// Directories of the volume's own files.
    system: HashSet<u32>,
}

impl Ntfs {
    /// The volume on the device with this number, if it is one.
    pub(super) fn open(device: u64) -> Option<Self> {
        let (_, cached) = block_device(device, OFlags::empty())?;
        let direct = block_device(device, OFlags::DIRECT).map(|(_, device)| device);
        let volume = Rc::new(Volume::open(Device::new(cached, direct)).ok()?);
        Some(Self { volume, found: HashMap::new(), links: HashMap::new(), system: HashSet::new() })
    }

    pub(super) fn volume(&self) -> &Volume<Device> {
        &self.volume
    }

    /// Notes that a record has been found; `false` if it had been before.
    fn find(&mut self, number: u64) -> bool {
        let word = self.found.entry(number / 64).or_default();
        let before = *word;
        *word |= 1 << (number % 64);
        *word != before
    }

    fn is_found(&self, number: u64) -> bool {
        self.found.get(&(number / 64)).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    /// The file of a record that a directory names.
    fn named(&mut self, number: u64) -> Option<File> {
        self.find(number);
        self.volume.file(number).ok().flatten()
    }
}

impl Walker {
    /// Places the root directory, which has the number `id`.
    pub(super) fn ntfs_root(&mut self, id: u32) -> Result<(), Fatal> {
        match self.ntfs.as_mut().and_then(|ntfs| ntfs.named(ROOT)) {
            Some(root) => self.put_ntfs_parts(id, id, b"", &root),
            None => Ok(()),
        }
    }

    /// Reports an entry of a directory by its record. Returns the entry if the record says nothing.
    pub(super) fn ntfs_entry(
        &mut self,
        directory: BorrowedFd<'_>,
        parent: u32,
        entry: Entry,
        answer: Option<Answer>,
        below: &mut Vec<Below>,
    ) -> Result<Option<(Entry, Option<Answer>)>, Fatal> {
        let is_known = match entry.kind {
            FileType::RegularFile => self.known.contains(entry.inode),
            FileType::Directory => self.listings.contains(entry.inode),
            _ => false,
        };
        if let Some(ntfs) = self.ntfs.as_mut().filter(|_| is_known) {
            ntfs.find(entry.inode);
            return Ok(Some((entry, answer)));
        }
        let Some(file) = self.ntfs.as_mut().and_then(|ntfs| ntfs.named(entry.inode)) else {
            return Ok(Some((entry, answer)));
        };
        let name = entry.name.to_bytes();
        if self.ntfs_link(parent, name, &file) {
            return self.found().map(|()| None);
        }
        let is_system = self.is_system_entry(parent, name, &file);
        let data = file.data();
        let is_encrypted = data.is_some_and(|data| data.is_encrypted);
        match (entry.kind, answer) {
            (FileType::Directory, _) if file.is_directory => {
                if let Some(id) = self.find_directory(directory, parent, &entry.name)? {
                    self.put_ntfs_parts(id, parent, name, &file)?;
                    if is_system && let Some(ntfs) = &mut self.ntfs {
                        ntfs.system.insert(id);
                    }
                    below.push(Below { name: entry.name, id, inode: entry.inode });
                }
            }
            (FileType::RegularFile, Some(Ok(inspected))) if !is_system && !is_encrypted => {
                let is_sound = file.problems.is_empty();
                let known = match (&self.ntfs, data) {
                    (Some(ntfs), Some(data)) if is_sound => Some(extents(&ntfs.volume, &file, data)),
                    _ => None,
                };
                // The record is in memory, with all that it holds.
                let is_elsewhere = |extent: &Extent| extent.flags & (Extent::INLINE | Extent::UNWRITTEN) == 0;
                let is_read = known.as_ref().is_none_or(|extents| extents.iter().any(is_elsewhere));
                let found = self.find_file(directory, parent, &entry.name, Ok(inspected), known)?;
                if let Some(mut open) = found {
                    open.data_ranges.truncate(if is_read { usize::MAX } else { 0 });
                    self.put_ntfs_parts(open.id, parent, name, &file)?;
                    self.batch.extend(Some(open).filter(|open| !open.data_ranges.is_empty()));
                }
            }
            _ => {
                let id = self.put_ntfs_object(parent, name, &file)?;
                if is_system && let Some(ntfs) = &mut self.ntfs {
                    ntfs.system.insert(id);
                }
                if file.is_directory && !is_link(file.reparse) {
                    self.list_by_index(file, id)?;
                }
            }
        }
        self.found().map(|()| None)
    }

    /// Whether it is a file in which the volume keeps metadata.
    fn is_system_entry(&self, parent: u32, name: &[u8], file: &File) -> bool {
        let is_own = file.number < FIRST_USER && name.starts_with(b"$");
        let is_below = |ntfs: &Ntfs| ntfs.system.contains(&parent);
        is_own || self.ntfs.as_ref().is_some_and(is_below)
    }

    /// Reports another name of a file and of its parts; `false` if it is the first.
    fn ntfs_link(&mut self, parent: u32, name: &[u8], file: &File) -> bool {
        let objects = self.ntfs.as_ref().and_then(|ntfs| ntfs.links.get(&file.number));
        for (id, suffix) in objects.into_iter().flatten() {
            self.control.put(&Record::Link { id: *id, parent, name: [name, suffix].concat() });
        }
        objects.is_some()
    }

    /// Reports a file that ntfs-3g does not open, and its parts. Returns its number.
    fn put_ntfs_object(&mut self, parent: u32, name: &[u8], file: &File) -> Result<u32, Fatal> {
        let kind = match is_link(file.reparse) {
            true => ObjectKind::Symlink,
            false if file.is_directory => ObjectKind::Directory,
            false => ObjectKind::File,
        };
        let main = main_stream(file);
        let (size, clusters) = main.map_or((0, 0), |stream| (stream.size, stream.clusters()));
        let id = self.put_ntfs_part(kind, parent, name.to_vec(), file, size, clusters)?;
        self.place(id, file, main);
        self.put_ntfs_streams(id, parent, name, file)?;
        Ok(id)
    }

    /// Reports the index of a directory that has been found, and the parts of a file or directory.
    fn put_ntfs_parts(&mut self, id: u32, parent: u32, name: &[u8], file: &File) -> Result<(), Fatal> {
        if file.is_directory && file.problems.is_empty() {
            self.place(id, file, main_stream(file));
        }
        self.put_ntfs_streams(id, parent, name, file)
    }

    /// Reports the parts of a file or directory: its streams, and its metadata in clusters. `id` is
    /// its own number.
    fn put_ntfs_streams(&mut self, id: u32, parent: u32, name: &[u8], file: &File) -> Result<(), Fatal> {
        if let Some(tag) = file.reparse {
            self.control.put(&Record::Reparse { id, tag });
        }
        let mut objects: Vec<(u32, Vec<u8>)> = vec![(id, Vec::new())];
        for stream in &file.streams {
            let Some((kind, suffix)) = part(file, stream) else { continue };
            let path = [name, &suffix].concat();
            let id = self.put_ntfs_part(kind, parent, path, file, stream.size, stream.clusters())?;
            self.place(id, file, Some(stream));
            objects.push((id, suffix));
        }
        if let Some(ntfs) = self.ntfs.as_mut().filter(|_| file.links > 1 && !file.is_directory) {
            ntfs.links.insert(file.number, objects);
        }
        Ok(())
    }

    fn put_ntfs_part(
        &mut self,
        kind: ObjectKind,
        parent: u32,
        name: Vec<u8>,
        file: &File,
        size: u64,
        clusters: u64,
    ) -> Result<u32, Fatal> {
        let id = self.number()?;
        let (modified, changed) = file.times.unwrap_or_default();
        let cluster = self.ntfs.as_ref().map_or(0, |ntfs| ntfs.volume.geometry().cluster);
        self.control.put(&Record::Object(Object {
            id,
            parent,
            kind,
            inode: file.number,
            size,
            allocated: clusters.saturating_mul(cluster),
            links: u32::from(file.links),
            mode: match kind {
                ObjectKind::Directory => DIRECTORY_MODE,
                ObjectKind::Symlink => LINK_MODE,
                ObjectKind::File | ObjectKind::Metadata => FILE_MODE,
            },
            owner: None,
            modified,
            changed,
            // Programs of Windows set the time at which a file was made as they like.
            born: None,
            name,
        }));
        Ok(id)
    }

    /// Reports where an object lies.
    fn place(&mut self, id: u32, file: &File, stream: Option<&virt_bmap_ntfs::Stream>) {
        let Some(ntfs) = &self.ntfs else { return };
        let extents = stream.map(|stream| extents(&ntfs.volume, file, stream)).unwrap_or_default();
        self.put_extents(id, &extents);
        self.control.put(&Record::Placed { id });
    }

    /// Reports what is in a directory that ntfs-3g does not list, and below it.
    fn list_by_index(&mut self, directory: File, id: u32) -> Result<(), Fatal> {
        let Some(volume) = self.ntfs.as_ref().map(|ntfs| ntfs.volume.clone()) else { return Ok(()) };
        let mut waiting = vec![(directory, id)];
        while let Some((directory, parent)) = waiting.pop() {
            let mut entries = Vec::new();
            let mut count = 0;
            let listed = volume.entries(&directory, |entry| {
                count += 1;
                entries.extend(Some(entry).filter(|_| count <= MOST_ENTRIES));
            });
            if listed.is_err() || count > MOST_ENTRIES {
                self.control.read_failure(Operation::List, Errno::UCLEAN, parent, b"", 0);
            }
            for entry in entries.into_iter().filter(|entry| entry.name.namespace != Namespace::Dos) {
                let name = entry.name.name;
                let number = entry.file.number;
                let is_odd =
                    matches!(&*name, b"" | b"." | b"..") || name.iter().any(|b| matches!(b, b'/' | 0));
                let was_found = self.ntfs.as_ref().is_some_and(|ntfs| ntfs.is_found(number));
                let file = self.ntfs.as_mut().filter(|_| !is_odd).and_then(|ntfs| ntfs.named(number));
                let Some(file) = file.filter(|file| file.sequence == entry.file.sequence) else {
                    self.control.read_failure(Operation::Stat, Errno::UCLEAN, parent, b"", 0);
                    continue;
                };
                if self.ntfs_link(parent, &name, &file) {
                    continue;
                }
                if file.is_directory && was_found {
                    self.control.read_failure(Operation::Loop, Errno::LOOP, parent, &name, 0);
                    continue;
                }
                let id = self.put_ntfs_object(parent, &name, &file)?;
                self.found()?;
                if file.is_directory && !is_link(file.reparse) {
                    waiting.push((file, id));
                }
            }
        }
        Ok(())
    }

    /// Reads all records: reports files that nothing has named, and the state of the volume.
    pub(super) fn finish_ntfs(&mut self) -> Result<(), Fatal> {
        let Some(volume) = self.ntfs.as_ref().map(|ntfs| ntfs.volume.clone()) else { return Ok(()) };
        if !self.listings.is_empty() {
            // Nothing names an unchanged directory any more, so the host has not added what is in
            // it.
            self.control.read_failure(Operation::List, Errno::UCLEAN, 0, b"", 0);
        }
        let mut damaged = 0;
        for (_, file) in volume.files() {
            let Ok(file) = file else {
                damaged += 1;
                continue;
            };
            damaged += u64::from(!file.problems.is_empty());
            let Some(ntfs) = &self.ntfs else { continue };
            let is_named = file.number < FIRST_USER || ntfs.is_found(file.number);
            // The host adds what is in unchanged directories.
            let is_added = || {
                let mut parents = file.names.iter().map(|name| name.parent.number);
                self.known.contains(file.number) && parents.any(|parent| self.known.contains(parent))
            };
            if !is_named && !is_added() {
                self.put_ntfs_object(0, b"", &file)?;
                self.found()?;
            }
        }
        self.control.put(&Record::Ntfs(record::Ntfs {
            is_hibernated: volume.is_hibernated(),
            is_unclean: volume.is_dirty() || volume.is_log_open(),
            damaged,
        }));
        Ok(())
    }
}
