//! Reads each directory and file of a mounted file system, each under its own tag.
//!
//! The order of things is what makes the map exact. A file is opened, `fstat` and FIEMAP are called, all
//! under no tag: that brings its inode and its extent tree into memory, so that the tagged read that
//! follows fetches data and nothing else. To keep the number of round trips down, files are opened in
//! batches, of several directories if these are small; the open descriptors keep what was fetched in
//! memory. A directory is listed under its tag before anything in it is looked up, while its blocks are
//! not in memory yet.
//!
//! Paths are never put together: every step is relative to an open directory, so there is no limit on
//! their length, and no symbolic link is followed.

mod batches;
mod encrypted;
mod host_listings;
mod list;
mod metadata;

use crate::Fatal;
use crate::buffer::ALIGNMENT;
use crate::control::Control;
use crate::phases::{Phase, Phases};
use crate::pieces::pieces;
use crate::reader::{OpenFile, Reader};
use crate::squashfs::Tails;
use crate::{btrfs, disable_readahead, fiemap};
use encrypted::EncryptedFile;
use list::{Entry, Listed, list};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    Advice, AtFlags, FileType, Mode, OFlags, Stat, fadvise, fstat, fstatfs, open, openat, statat,
};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use virt_bmap_agent_protocol::bounds::{EXTENTS_PER_RECORD, FILES_PER_BATCH};
use virt_bmap_agent_protocol::record::{Extent, Filesystem, Object, ObjectKind, Operation};
use virt_bmap_agent_protocol::{FsKind, InodeSet, Listings, ReadOrder, Record, Sample, VERSION, WalkPlan};

/// Files opened at a time. At most [`virt_bmap_agent_protocol::bounds::FILES_PER_BATCH`].
const BATCH: usize = 256;

/// The same where little is read of them.
const BATCH_OF_ENDS: usize = FILES_PER_BATCH;

/// Files found after which a batch ends although few of them have to be read.
const FOUND: usize = 4096;

const TOO_MANY: &str = "more objects than there are numbers";

const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::NOATIME)
    .union(OFlags::CLOEXEC);
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOATIME).union(OFlags::CLOEXEC);
const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

pub(crate) fn run(control: &str, plan: WalkPlan) -> Result<(), Fatal> {
    let WalkPlan { sequence, first, root, order, metadata, asks, known, listings, lookahead } = plan;
    let root = root.as_str();
    // One descriptor is held for each level of the tree.
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(1 << 20).max(1 << 20);
    setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) }).ok();
    disable_readahead::drop_caches()?;

    let place = open(root, PLACE, Mode::empty()).map_err(|error| format!("{root}: {error}"))?;
    let stat = fstat(&place)?;
    let statfs = fstatfs(&place)?;
    let magic = statfs.f_type as u64;
    let kind = FsKind::from_magic(magic).unwrap_or_default();
    let mut walker = Walker {
        control: Control::open(control, sequence)?,
        phases: Phases::new(),
        reader: Reader::new(
            order,
            asks,
            statfs.f_bsize as u64,
            kind.facts().has_address_space,
            kind.is_fuse()
                .then(|| batches::block_device(stat.st_dev, OFlags::empty()))
                .flatten()
                .map(|(_, device)| device),
        ),
        sample: match order {
            ReadOrder::Ends(sample) => Some(sample),
            ReadOrder::Tags | ReadOrder::Series => None,
        },
        block: statfs.f_bsize as u64,
        batch: Vec::new(),
        found: 0,
        next: first,
        device: stat.st_dev,
        block_device: None,
        has_direct: true,
        has_fiemap: true,
        metadata,
        known,
        listings,
        host_listings: HashMap::new(),
        links: HashMap::new(),
        directories: HashSet::new(),
        listed: 0,
        last_unsure: 0,
        encrypted: Vec::new(),
        tails: kind.facts().packs_files.then(|| Tails::new(statfs.f_bsize as u64)),
        kind,
    };
    walker.control.put(&Record::Hello { version: VERSION });
    walker.control.put(&Record::Filesystem(Filesystem {
        magic,
        block_size: statfs.f_bsize as u64,
        blocks: statfs.f_blocks,
        blocks_free: statfs.f_bfree,
        files: statfs.f_files,
        files_free: statfs.f_ffree,
    }));
    if walker.kind.facts().has_address_space {
        walker.address_space(root)?;
    }
    let id = walker.number()?;
    walker.directories.insert((stat.st_dev, stat.st_ino));
    walker.control.put(&object(id, id, ObjectKind::Directory, &stat, b""));
    // An open directory would keep squashfs, which tells nothing of its space, from being mounted afresh.
    let again = (metadata && walker.tails.is_none()).then(|| place.try_clone()).transpose()?;
    if walker.lists_in_batches() {
        let device = batches::block_device(walker.device, OFlags::empty());
        walker.block_device = device.map(|(_, device)| device);
        walker.fetch(lookahead);
        walker.descend_in_batches(place, id)?;
    } else {
        walker.descend(place, id)?;
    }
    walker.read_encrypted()?;
    walker.read()?;
    if let Some(tails) = walker.tails.take() {
        tails.read(&mut walker.control, root)?;
    }
    if let Some(root) = again {
        walker.put_spaces(&root, id);
    }
    walker.control.put(&Record::Done);
    walker.control.flush()?;
    walker.phases.enter(Phase::Rest);
    println!("{} directories listed, {}", walker.listed, walker.phases);
    Ok(())
}

struct Walker {
    control: Control,
    phases: Phases,
    reader: Reader,
    /// Which extents are read at their ends, where that is enough.
    sample: Option<Sample>,
    /// Block size of the file system, in bytes.
    block: u64,
    /// Files that have been opened and are to be read.
    batch: Vec<OpenFile>,
    /// Files found since the last batch was read.
    found: usize,
    /// Number of the next object.
    next: u32,
    /// `st_dev` of the file system: others that are mounted below it are not entered.
    device: u64,
    /// That device, where directories are listed in batches.
    block_device: Option<OwnedFd>,
    /// As far as `statfs` tells it.
    kind: FsKind,
    /// Until the file system says no.
    has_direct: bool,
    has_fiemap: bool,
    /// Whether what belongs to no file's data is wanted, too.
    metadata: bool,
    /// Files that need not be looked at.
    known: InodeSet,
    /// Directories that have not been found, and need not be listed.
    listings: Listings,
    /// What there is to look at in those that have been found, and not been entered, by number.
    host_listings: HashMap<u32, Vec<Entry>>,
    /// Device and inode to number, of files with more than one name.
    links: HashMap<(u64, u64), u32>,
    /// Devices and inodes of the directories seen, against loops in damaged file systems.
    directories: HashSet<(u64, u64)>,
    /// How many directories were listed.
    listed: u64,
    /// The directory that was last said to be unsure.
    last_unsure: u32,
    /// Files that the kernel does not open, because their key is not there.
    encrypted: Vec<EncryptedFile>,
    /// Of squashfs: what is read only at the end.
    tails: Option<Tails>,
}

/// A directory on the way from the root to where the walk is.
struct Level {
    place: OwnedFd,
    id: u32,
    /// Directories in it that have not been entered.
    below: std::vec::IntoIter<(CString, u32)>,
}

impl Walker {
    /// Says where a btrfs lies. Without that, what was read counts.
    fn address_space(&mut self, root: &str) -> Result<(), Fatal> {
        let root = open(root, DIRECTORY, Mode::empty())?;
        if let (Ok(members), Ok(chunks)) = (btrfs::members(&root), btrfs::chunks(&root)) {
            members.into_iter().for_each(|member| self.control.put(&Record::Member(member)));
            chunks.into_iter().for_each(|chunk| self.control.put(&Record::Chunk(chunk)));
        }
        Ok(())
    }

    fn number(&mut self) -> Result<u32, Fatal> {
        let id = self.next;
        self.next = id.checked_add(1).ok_or(TOO_MANY)?;
        Ok(id)
    }

    /// Whether something lies in another file system. The subvolumes of btrfs have device numbers of their
    /// own, but nothing else can be mounted in there.
    fn is_elsewhere(&self, stat: &Stat) -> bool {
        stat.st_dev != self.device && !self.kind.facts().has_address_space
    }

    /// Visits a directory and all below it, without recursion: a tree may be deeper than any stack.
    fn descend(&mut self, root: OwnedFd, id: u32) -> Result<(), Fatal> {
        let below = self.directory(&root, id)?.into_iter();
        let mut levels = vec![Level { place: root, id, below }];
        while let Some(level) = levels.last_mut() {
            let parent = level.id;
            let Some((name, id)) = level.below.next() else {
                levels.pop();
                continue;
            };
            match openat(&level.place, &name, PLACE, Mode::empty()) {
                Ok(place) => {
                    let below = self.directory(&place, id)?.into_iter();
                    levels.push(Level { place, id, below });
                }
                Err(errno) => self.control.read_failure(Operation::Open, errno, parent, name.to_bytes(), 0),
            }
        }
        Ok(())
    }

    /// Lists one directory under its tag, unless the host knows it, and reads the files in it; returns the directories in
    /// it.
    fn directory(&mut self, place: &OwnedFd, id: u32) -> Result<Vec<(CString, u32)>, Fatal> {
        let mut below = Vec::new();
        if let Some(entries) = self.host_listings.remove(&id) {
            self.phases.enter(Phase::LookUp);
            self.look_up(place.as_fd(), id, entries, &mut below)?;
            return Ok(below);
        }
        self.listed += 1;
        self.phases.enter(Phase::Open);
        let open = || openat(place, c".", DIRECTORY, Mode::empty());
        let mut stream = None;
        let mut is_first = true;
        if !self.kind.facts().reads_when_opened {
            match open() {
                Ok(fd) => {
                    if let Ok(Some(extents)) = self.extents(&fd) {
                        self.put_extents(id, &extents);
                    }
                    stream = Some(fd);
                }
                Err(errno) => {
                    self.control.read_failure(Operation::Open, errno, id, b"", 0);
                    return Ok(below);
                }
            }
        }
        let mut memory = vec![MaybeUninit::uninit(); 64 << 10];
        loop {
            self.phases.enter(Phase::List);
            self.control.settle()?;
            self.control.tag(id, false)?;
            let listed = match &stream {
                Some(stream) => list(stream, &mut memory),
                None => match open() {
                    Ok(fd) => list(stream.insert(fd), &mut memory),
                    Err(errno) => Listed { entries: Vec::new(), end: Err(errno) },
                },
            };
            self.control.settle()?;
            if let Some(stream) = stream.as_ref().filter(|_| is_first && self.metadata) {
                self.attributes_of_directory(stream, id)?;
            }
            is_first = false;
            self.control.tag(0, false)?;
            self.phases.enter(Phase::LookUp);
            if let Some(stream) = &stream {
                self.look_up(stream.as_fd(), id, listed.entries, &mut below)?;
            }
            match listed.end {
                Ok(true) => return Ok(below),
                Ok(false) => {}
                Err(errno) => {
                    self.control.read_failure(Operation::List, errno, id, b"", 0);
                    return Ok(below);
                }
            }
        }
    }

    /// Reads the files of the batch.
    fn read(&mut self) -> Result<(), Fatal> {
        self.found = 0;
        let before = self.phases.enter(Phase::Read);
        self.reader.read(&mut self.control, &self.batch)?;
        self.batch.clear();
        self.phases.enter(before);
        Ok(())
    }

    /// Counts what was found, and reads the batch when it is full.
    fn found(&mut self) -> Result<(), Fatal> {
        self.found += 1;
        let most = if self.sample.is_some() || self.reader.asks() { BATCH_OF_ENDS } else { BATCH };
        if self.batch.len() >= most || self.found == FOUND { self.read() } else { Ok(()) }
    }

    /// Looks the entries of a directory up; the files among them join the batch.
    fn look_up(
        &mut self,
        directory: BorrowedFd<'_>,
        parent: u32,
        entries: Vec<Entry>,
        below: &mut Vec<(CString, u32)>,
    ) -> Result<(), Fatal> {
        for Entry { name, kind, inode } in entries {
            if kind == FileType::Unknown {
                self.unsure(parent);
            }
            if matches!(kind, FileType::Directory | FileType::Unknown)
                && let Some(listing) = self.listings.take(inode)
            {
                self.known_directory(parent, inode, name, listing, below)?;
                continue;
            }
            let kind = match kind {
                FileType::RegularFile | FileType::Unknown if self.known.contains(inode) => {
                    let id = self.number()?;
                    self.control.put(&Record::Known { id, parent, inode, name: name.into_bytes() });
                    self.found()?;
                    continue;
                }
                FileType::Unknown => match statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    Err(errno) => {
                        self.control.read_failure(Operation::Stat, errno, parent, name.to_bytes(), 0);
                        continue;
                    }
                },
                kind => kind,
            };
            match kind {
                FileType::Directory => {
                    if let Some(id) = self.find_directory(directory, parent, &name)? {
                        below.push((name, id));
                    }
                }
                FileType::RegularFile => {
                    let found = self.find_file(directory, parent, &name)?;
                    self.batch.extend(found.filter(|file| !file.pieces.is_empty()));
                    self.found()?;
                }
                FileType::Symlink if self.metadata => {
                    self.symlink(directory, parent, &name)?;
                    self.found()?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Tells that it is not the blocks of a directory that say what is in it.
    fn unsure(&mut self, directory: u32) {
        if std::mem::replace(&mut self.last_unsure, directory) != directory {
            self.control.put(&Record::Unsure { id: directory });
        }
    }

    fn find_directory(
        &mut self,
        directory: BorrowedFd<'_>,
        parent: u32,
        name: &CStr,
    ) -> Result<Option<u32>, Fatal> {
        let stat = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(errno) => {
                self.control.read_failure(Operation::Stat, errno, parent, name.to_bytes(), 0);
                return Ok(None);
            }
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory || self.is_elsewhere(&stat) {
            self.unsure(parent);
            return Ok(None);
        }
        if !self.directories.insert((stat.st_dev, stat.st_ino)) {
            self.control.read_failure(Operation::Loop, Errno::LOOP, parent, name.to_bytes(), 0);
            return Ok(None);
        }
        let id = self.number()?;
        self.control.put(&object(id, parent, ObjectKind::Directory, &stat, name.to_bytes()));
        if let Some(tails) = &mut self.tails {
            tails.directory(id, parent, name.to_owned());
        }
        Ok(Some(id))
    }

    fn find_file(
        &mut self,
        directory: BorrowedFd<'_>,
        parent: u32,
        name: &CStr,
    ) -> Result<Option<OpenFile>, Fatal> {
        let fd = match self.open_file(directory, name) {
            Ok(fd) => fd,
            Err(Errno::NOKEY) => {
                self.note_encrypted(directory, parent, name);
                return Ok(None);
            }
            Err(errno) => {
                self.control.read_failure(Operation::Open, errno, parent, name.to_bytes(), 0);
                return Ok(None);
            }
        };
        let stat = fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || self.is_elsewhere(&stat) {
            self.unsure(parent);
            return Ok(None);
        }
        if stat.st_nlink > 1
            && let Some(&id) = self.links.get(&(stat.st_dev, stat.st_ino))
        {
            self.control.put(&Record::Link { id, parent, name: name.to_bytes().to_vec() });
            return Ok(None);
        }
        let id = self.number()?;
        if stat.st_nlink > 1 {
            self.links.insert((stat.st_dev, stat.st_ino), id);
        }
        let extents = match self.extents(&fd) {
            Ok(None) => fiemap::blocks(
                &fd,
                stat.st_size as u64,
                (stat.st_blocks as u64).saturating_mul(512),
                self.most_blocks(&stat),
            ),
            Ok(extents) => extents,
            Err(errno) => {
                self.control.read_failure(Operation::Fiemap, errno, parent, name.to_bytes(), 0);
                None
            }
        };
        self.control.put(&object(id, parent, ObjectKind::File, &stat, name.to_bytes()));
        if let Some(extents) = &extents {
            self.put_extents(id, extents);
        }
        let mut pieces = pieces(&fd, &stat, extents.as_deref());
        if let Some(tails) = &mut self.tails {
            tails.put_off(id, parent, name.to_owned(), stat.st_size as u64, &mut pieces);
        }
        let is_plain = |extents: &Vec<Extent>| extents.iter().all(|e| e.is_plain() || e.is_unwritten());
        let is_promised = !self.is_system(&stat) && extents.as_ref().is_some_and(is_plain);
        let size = stat.st_size as u64;
        let ends = match (self.sample.filter(|_| is_promised), &extents) {
            (Some(sample), Some(extents)) => sample.ends(id, extents, size, self.block).collect(),
            _ => Vec::new(),
        };
        let cached = extents.clone().filter(|_| self.kind.is_fuse()).unwrap_or_default();
        let (name, unit) = (name.to_owned(), ALIGNMENT);
        let file = OpenFile { fd, id, parent, name, pieces, ends, is_promised, unit, cached };
        if self.metadata && self.has_more_blocks(&stat, extents.as_deref()) {
            self.attributes_of_file(&file)?;
        }
        Ok(Some(file))
    }

    /// Opens a file to be read past the page cache, where the file system can do that.
    fn open_file(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
        if self.has_direct {
            match openat(directory, name, FILE | OFlags::DIRECT, Mode::empty()) {
                Err(Errno::INVAL) => self.has_direct = false,
                other => return other,
            }
        }
        let fd = openat(directory, name, FILE, Mode::empty())?;
        fadvise(&fd, 0, None, Advice::Random).ok();
        Ok(fd)
    }

    fn extents(&mut self, fd: &OwnedFd) -> Result<Option<Vec<Extent>>, Errno> {
        if self.has_fiemap { fiemap::extents(fd) } else { Ok(None) }
    }

    fn put_extents(&mut self, id: u32, extents: &[Extent]) {
        if extents.is_empty() {
            self.control.put(&Record::Extents { id, extents: Vec::new() });
        }
        for extents in extents.chunks(EXTENTS_PER_RECORD) {
            self.control.put(&Record::Extents { id, extents: extents.to_vec() });
        }
    }
}

fn object(id: u32, parent: u32, kind: ObjectKind, stat: &Stat, name: &[u8]) -> Record {
    let time =
        |seconds: i64, nanoseconds: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds);
    Record::Object(Object {
        id,
        parent,
        kind,
        inode: stat.st_ino,
        size: stat.st_size as u64,
        allocated: (stat.st_blocks as u64).saturating_mul(512),
        links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        mode: stat.st_mode,
        modified: time(stat.st_mtime, stat.st_mtime_nsec as i64),
        changed: time(stat.st_ctime, stat.st_ctime_nsec as i64),
        name: name.to_vec(),
    })
}
