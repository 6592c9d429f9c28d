//! Looks up the entries of directories and opens the files among them.
//!
//! The kernel is asked about many files at once, on all processors; what it says is reported in the
//! order of the entries, so a walk reports the same each time.

use super::from_tables::Source;
use super::inspector::{Answer, Inspected};
use super::{Entry, Walker};
use crate::buffer::ALIGNMENT;
use crate::control::Control;
use crate::data_ranges::data_ranges;
use crate::phases::Phase;
use crate::reader::OpenFile;
use crate::{Fatal, fiemap, statx};
use rustix::fd::BorrowedFd;
use rustix::fs::{FileType, Statx, StatxTimestamp};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::{CStr, CString};
use virt_bmap_agent_protocol::Record;
use virt_bmap_agent_protocol::bounds::EXTENTS_PER_RECORD;
use virt_bmap_agent_protocol::record::{Extent, Object, ObjectKind, Operation};
use virt_bmap_on_disk::nanoseconds;

/// Entries looked up at a time. So many files may be open beside those of the batch. With fewer,
/// processors wait for each other: with 256, two of them gain a third less.
const WINDOW: usize = 2048;

/// Entries of a directory that are to be looked up.
pub(super) struct Entries<'a> {
    /// The directory.
    pub(super) directory: BorrowedFd<'a>,
    /// Its number.
    pub(super) id: u32,
    /// The entries.
    pub(super) entries: Vec<Entry>,
}

/// A directory that was found.
pub(super) struct Below {
    pub(super) name: CString,
    /// Its number.
    pub(super) id: u32,
    /// The number of its inode.
    pub(super) inode: u64,
}

impl Walker {
    /// Looks up the entries of directories, in their order. Files join the batch. Returns the
    /// subdirectories of each directory.
    pub(super) fn look_up(&mut self, directories: Vec<Entries<'_>>) -> Result<Vec<Vec<Below>>, Fatal> {
        let before = self.phases.enter(Phase::LookUp);
        let mut below: Vec<Vec<Below>> = directories.iter().map(|_| Vec::new()).collect();
        let mut entries = directories.into_iter().enumerate().flat_map(|(number, entries)| {
            let Entries { directory, id, entries } = entries;
            entries.into_iter().map(move |entry| (number, directory, id, entry))
        });
        loop {
            let window: Vec<_> = entries.by_ref().take(WINDOW).collect();
            if window.is_empty() {
                self.phases.enter(before);
                return Ok(below);
            }
            let doubled = doubled(window.iter().map(|(number, .., entry)| (*number, entry)));
            let is_one = |number, entry: &Entry| !doubled.contains(&(number, &*entry.name));
            let source =
                |(number, .., entry): &(usize, _, _, Entry)| self.source(entry, is_one(*number, entry));
            let sources: Vec<Source> = window.iter().map(source).collect();
            let is_asked = |entry: &Entry, source: &Source| {
                entry.kind == FileType::RegularFile && !matches!(source, Source::Tables(_) | Source::Known)
            };
            let asked = window.iter().zip(&sources).filter(|((.., entry), source)| is_asked(entry, source));
            let files: Vec<_> =
                asked.map(|((_, directory, _, entry), _)| (*directory, &*entry.name)).collect();
            let mut answers = self.inspector.all(&files).into_iter();
            for ((number, directory, id, entry), source) in window.into_iter().zip(sources) {
                let answer = if is_asked(&entry, &source) { answers.next() } else { None };
                self.entry(directory, id, entry, source, answer, &mut below[number])?;
            }
        }
    }

    /// Reports an entry of a directory. `answer` is what the kernel says of a file, if it has been
    /// asked.
    fn entry(
        &mut self,
        directory: BorrowedFd<'_>,
        parent: u32,
        entry: Entry,
        source: Source,
        answer: Option<Answer>,
        below: &mut Vec<Below>,
    ) -> Result<(), Fatal> {
        let Some((entry, answer)) = self.ntfs_entry(directory, parent, entry, answer, below)? else {
            return Ok(());
        };
        let Entry { name, kind, inode } = entry;
        let source = match source {
            Source::Tables(by_tables) => return self.take_from_tables(parent, inode, name, by_tables),
            source => source,
        };
        if kind == FileType::Unknown {
            self.unsure(parent);
        }
        if matches!(kind, FileType::Directory | FileType::Unknown)
            && let Some(listing) = self.listings.take(inode)
        {
            return self.known_directory(parent, inode, name, listing, below);
        }
        let kind = match kind {
            FileType::RegularFile | FileType::Symlink | FileType::Unknown if self.known.contains(inode) => {
                let id = self.number()?;
                self.control.put(&Record::Known { id, parent, inode, name: name.into_bytes() });
                return self.found();
            }
            FileType::Unknown => match statx::of_entry(directory, &name) {
                Ok(stat) => FileType::from_raw_mode(stat.stx_mode.into()),
                Err(errno) => {
                    self.control.read_failure(Operation::Stat, errno, parent, name.to_bytes(), 0);
                    return Ok(());
                }
            },
            kind => kind,
        };
        match kind {
            FileType::Directory => {
                if let Some(id) = self.find_directory(directory, parent, &name)? {
                    below.push(Below { name, id, inode });
                }
                Ok(())
            }
            FileType::RegularFile => {
                let answer = answer.unwrap_or_else(|| self.inspector.one(directory, &name));
                if let Source::Both(by_tables) = source {
                    self.prove(parent, inode, &name, &answer, &by_tables);
                }
                let stat = answer.as_ref().ok().map(|inspected| inspected.stat);
                let computed = stat.zip(self.volume.as_ref());
                let known = computed.and_then(|(stat, volume)| volume.extents(stat.stx_ino));
                let found = self.find_file(directory, parent, &name, answer, known)?;
                self.batch.extend(found.filter(|file| !file.data_ranges.is_empty()));
                if let Some(stat) = stat.filter(|_| self.forks.is_some()) {
                    self.resource_fork(parent, &name, &stat)?;
                }
                self.found()
            }
            FileType::Symlink => {
                self.symlink(directory, parent, &name)?;
                self.found()
            }
            _ => self.special_file(directory, parent, &name),
        }
    }

    /// Reports an unsure directory: its blocks do not show which of its entries are directories.
    pub(super) fn unsure(&mut self, directory: u32) {
        if std::mem::replace(&mut self.last_unsure, directory) != directory {
            self.control.put(&Record::Unsure { id: directory });
        }
    }

    pub(super) fn find_directory(
        &mut self,
        directory: BorrowedFd<'_>,
        parent: u32,
        name: &CStr,
    ) -> Result<Option<u32>, Fatal> {
        let stat = match statx::of_entry(directory, name) {
            Ok(stat) => stat,
            Err(errno) => {
                self.control.read_failure(Operation::Stat, errno, parent, name.to_bytes(), 0);
                return Ok(None);
            }
        };
        if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::Directory || self.is_elsewhere(&stat) {
            self.unsure(parent);
            return Ok(None);
        }
        if !self.directories.insert((statx::device(&stat), stat.stx_ino)) {
            self.control.read_failure(Operation::Loop, Errno::LOOP, parent, name.to_bytes(), 0);
            return Ok(None);
        }
        let id = self.number()?;
        report(&mut self.control, id, parent, ObjectKind::Directory, &About::of(&stat), name.to_bytes());
        if let Some(volume) = &mut self.volume {
            volume.found(id, name.to_bytes());
        }
        if let Some(tails) = &mut self.tails {
            tails.directory(id, parent, name.to_owned());
        }
        Ok(Some(id))
    }

    /// Reports a file. `known`: its extents, if the caller has them.
    pub(super) fn find_file(
        &mut self,
        directory: BorrowedFd<'_>,
        parent: u32,
        name: &CStr,
        answer: Answer,
        known: Option<Vec<Extent>>,
    ) -> Result<Option<OpenFile>, Fatal> {
        let Inspected { fd, stat, extents } = match answer {
            Ok(inspected) => inspected,
            Err((Operation::Open, Errno::NOKEY)) => {
                self.note_encrypted(directory, parent, name);
                return Ok(None);
            }
            Err((operation, errno)) => {
                self.control.read_failure(operation, errno, parent, name.to_bytes(), 0);
                return Ok(None);
            }
        };
        if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::RegularFile || self.is_elsewhere(&stat)
        {
            self.unsure(parent);
            return Ok(None);
        }
        if stat.stx_nlink > 1
            && let Some(&id) = self.links.get(&(statx::device(&stat), stat.stx_ino))
        {
            self.control.put(&Record::Link { id, parent, name: name.to_bytes().to_vec() });
            return Ok(None);
        }
        let id = self.number()?;
        if stat.stx_nlink > 1 {
            self.links.insert((statx::device(&stat), stat.stx_ino), id);
        }
        let mut extents = match extents {
            _ if known.is_some() => known,
            Ok(None) => fiemap::blocks(
                &fd,
                stat.stx_size,
                stat.stx_blocks.saturating_mul(512),
                self.cluster(&stat),
                self.most_blocks(&stat),
            ),
            Ok(extents) => extents,
            Err(errno) => {
                self.control.read_failure(Operation::Fiemap, errno, parent, name.to_bytes(), 0);
                None
            }
        };
        if self.kind.facts().states_encoded_size
            && let Some(extents) = &mut extents
        {
            mark_encoded(extents, &stat);
        }
        report(&mut self.control, id, parent, ObjectKind::File, &About::of(&stat), name.to_bytes());
        if let Some(extents) = &extents {
            self.put_extents(id, extents);
        }
        let mut data_ranges = data_ranges(&fd, &stat, extents.as_deref());
        if let Some(tails) = &mut self.tails {
            tails.postpone(id, parent, name.to_owned(), stat.stx_size, &mut data_ranges);
        }
        let is_plain = |extents: &Vec<Extent>| extents.iter().all(|e| e.is_plain() || e.is_unwritten());
        let is_promised = !self.is_system(&stat) && extents.as_ref().is_some_and(is_plain);
        let size = stat.stx_size;
        let ends = match (self.sample.filter(|_| is_promised), &extents) {
            (Some(sample), Some(extents)) => sample.ends(stat.stx_ino, extents, size, self.block).collect(),
            _ => Vec::new(),
        };
        let cached = extents.clone().filter(|_| self.kind.is_fuse()).unwrap_or_default();
        let (name, unit) = (name.to_owned(), ALIGNMENT);
        let file = OpenFile { fd, id, parent, name, data_ranges, ends, is_promised, unit, cached };
        self.shared_attributes(&file.fd, parent, file.name.to_bytes());
        if self.has_more_blocks(&stat, extents.as_deref()) {
            self.attributes_of_file(&file)?;
        }
        Ok(Some(file))
    }

    pub(super) fn put_extents(&mut self, id: u32, extents: &[Extent]) {
        if extents.is_empty() {
            self.control.put(&Record::Extents { id, extents: Vec::new() });
        }
        for extents in extents.chunks(EXTENTS_PER_RECORD) {
            self.control.put(&Record::Extents { id, extents: extents.to_vec() });
        }
    }
}

/// The names that a directory has more than once, because it is damaged: the kernel finds only the
/// first of them.
fn doubled<'a>(entries: impl Iterator<Item = (usize, &'a Entry)>) -> HashSet<(usize, &'a CStr)> {
    // There are hardly ever any. Sorting takes a third of the time of a set of all names.
    let mut names: Vec<(usize, &CStr)> = entries.map(|(number, entry)| (number, &*entry.name)).collect();
    names.sort_unstable();
    names.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect()
}

/// Marks the extents of a compressed file, which has fewer blocks than its extents are long.
fn mark_encoded(extents: &mut [Extent], stat: &Statx) {
    let in_blocks = |extent: &&mut Extent| extent.flags & Extent::INLINE == 0;
    let length = extents.iter().filter(|extent| extent.flags & Extent::INLINE == 0).map(|e| e.length);
    if length.fold(0, u64::saturating_add) > stat.stx_blocks.saturating_mul(512) {
        extents.iter_mut().filter(in_blocks).for_each(|extent| extent.flags |= Extent::ENCODED);
    }
}

/// The attributes of an object. Its name and its place are sent apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct About {
    pub(super) inode: u64,
    pub(super) size: u64,
    /// Bytes of its blocks.
    pub(super) allocated: u64,
    pub(super) links: u32,
    pub(super) mode: u32,
    /// User and group.
    pub(super) owner: (u32, u32),
    /// In nanoseconds since 1970, as `changed` and `born`.
    pub(super) modified: i64,
    pub(super) changed: i64,
    pub(super) born: Option<i64>,
}

impl About {
    /// What the kernel says.
    pub(super) fn of(stat: &Statx) -> Self {
        let time = |time: StatxTimestamp| nanoseconds(time.tv_sec, time.tv_nsec);
        Self {
            inode: stat.stx_ino,
            size: stat.stx_size,
            allocated: stat.stx_blocks.saturating_mul(512),
            links: stat.stx_nlink,
            mode: stat.stx_mode.into(),
            owner: (stat.stx_uid, stat.stx_gid),
            modified: time(stat.stx_mtime),
            changed: time(stat.stx_ctime),
            born: statx::born(stat),
        }
    }
}

/// Reports an object that has a name.
pub(super) fn report(
    control: &mut Control,
    id: u32,
    parent: u32,
    kind: ObjectKind,
    about: &About,
    name: &[u8],
) {
    let About { inode, size, allocated, links, mode, owner, modified, changed, born } = *about;
    control.put(&Record::Object(Object {
        id,
        parent,
        kind,
        inode,
        size,
        allocated,
        links,
        mode,
        owner: Some(owner),
        modified,
        changed,
        born,
        name: name.to_vec(),
    }));
}
