//! Walks a mounted filesystem and reads its directories and files, so that the host can attribute
//! each read.
//!
//! The order of the steps makes the map exact. The agent opens a file and calls `statx` and FIEMAP
//! under no tag. That brings the inode and the extent tree into memory, so that the tagged read
//! that follows reads data and nothing else. Files are opened in batches, of several directories if
//! these are small, to save round trips; the open descriptors keep inodes and extent trees in
//! memory. A directory is listed under its tag before its entries are looked up, while its blocks
//! are not in memory yet.
//!
//! The agent never builds a path: every step is relative to an open directory. So the length of
//! paths has no limit, and no symbolic link is followed.

mod batches;
mod encrypted;
mod forks;
mod from_tables;
mod host_listings;
mod inspector;
mod list;
mod look_up;
mod metadata;
mod ntfs;
mod orphans;

use crate::Fatal;
use crate::control::Control;
use crate::inode_tables::InodeTables;
use crate::phases::{Phase, Phases};
use crate::reader::{OpenFile, Reader, UnopenedFile};
use crate::squashfs::Tails;
use crate::{bmapx, btrfs, directories, disable_readahead, fiemap, statx};
pub(crate) use batches::block_device;
use encrypted::EncryptedFile;
use forks::Forks;
use inspector::Inspector;
use list::{Entry, Listed, list};
use look_up::{About, Below, Entries, report};
use ntfs::Ntfs;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Advice, FileType, Mode, OFlags, Statx, fadvise, fstatfs, open, openat};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::{HashMap, HashSet};
use std::mem::MaybeUninit;
use virt_bmap_agent_protocol::bounds::{EXTENTS_PER_RECORD, FILES_PER_BATCH};
use virt_bmap_agent_protocol::record::{Extent, Filesystem, ObjectKind, Operation};
use virt_bmap_agent_protocol::{
    DirectoryBlocks, FsKind, InodeSet, Listings, ReadOrder, Record, Sample, VERSION, WalkPlan,
};

/// Files opened at a time. At most [`virt_bmap_agent_protocol::bounds::FILES_PER_BATCH`].
const BATCH: usize = 256;

/// The same if only the ends of their extents are read.
const BATCH_OF_ENDS: usize = FILES_PER_BATCH;

/// Number of files found after which a batch ends, even if few of them must be opened.
const FOUND: usize = 16_384;

const TOO_MANY: &str = "more objects than there are numbers";

/// How files are opened.
pub(crate) const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::NOATIME)
    .union(OFlags::CLOEXEC);
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOATIME).union(OFlags::CLOEXEC);
const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Walks a filesystem. Returns how long that took.
pub(crate) fn run(control: &str, plan: WalkPlan) -> Result<String, Fatal> {
    let WalkPlan { sequence, first, root, order, asks, uses_tables, known, listings, lookahead } = plan;
    let root = root.as_str();
    // The walk holds a descriptor for each level of the tree.
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(1 << 20).max(1 << 20);
    setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) }).ok();

    let place = open(root, PLACE, Mode::empty()).map_err(|error| format!("{root}: {error}"))?;
    let stat = statx::of_open(&place)?;
    let device = statx::device(&stat);
    // What a replay of the journal has just read and written may wait in a processor's list of new
    // pages, and would stay in the cache. This empties the list (`generic_fadvise` in
    // mm/fadvise.c).
    if let Some((_, opened)) = block_device(device, OFlags::empty()) {
        fadvise(&opened, 0, None, Advice::DontNeed).ok();
    }
    disable_readahead::drop_caches()?;
    let statfs = fstatfs(&place)?;
    let magic = statfs.f_type as u64;
    let kind = FsKind::from_magic(magic).unwrap_or_default();
    let mut walker = Walker {
        control: Control::open(control, sequence)?,
        phases: Phases::new(),
        reader: Reader::new(
            order,
            asks,
            kind.read_unit(statfs.f_bsize as u64),
            kind.facts().has_address_space,
            kind.is_fuse()
                .then(|| batches::block_device(device, OFlags::empty()))
                .flatten()
                .map(|(_, device)| device),
        ),
        sample: match order {
            ReadOrder::Ends(sample) => Some(sample),
            ReadOrder::Tags | ReadOrder::Series => None,
        },
        block: kind.read_unit(statfs.f_bsize as u64),
        batch: Vec::new(),
        unopened: Vec::new(),
        tables: uses_tables.then(|| InodeTables::open(&kind, device)).flatten(),
        root: root.to_owned(),
        found: 0,
        next: first,
        device,
        block_device: None,
        inspector: Inspector::default(),
        known,
        listings,
        host_listings: HashMap::new(),
        links: HashMap::new(),
        directories: HashSet::new(),
        listed: 0,
        last_unsure: 0,
        encrypted: Vec::new(),
        ntfs: kind.is_fuse().then(|| Ntfs::open(device)).flatten(),
        tails: kind.facts().packs_files.then(|| Tails::new(statfs.f_bsize as u64)),
        forks: None,
        volume: match kind.facts().directory_blocks {
            DirectoryBlocks::Computed => directories::Volume::new(&kind, device, statfs.f_bsize as u64),
            DirectoryBlocks::Asked | DirectoryBlocks::Shared => None,
        },
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
    walker.directories.insert((device, stat.stx_ino));
    report(&mut walker.control, id, id, ObjectKind::Directory, &About::of(&stat), b"");
    walker.ntfs_root(id)?;
    walker.find_forks(id);
    // An open directory would keep squashfs, which does not report the purpose of its blocks, from
    // being mounted again.
    let reopened = walker.tails.is_none().then(|| place.try_clone()).transpose()?;
    if walker.lists_in_batches() {
        let device = batches::block_device(walker.device, OFlags::empty());
        walker.block_device = device.map(|(_, device)| device);
        walker.fetch(lookahead);
        walker.descend_in_batches(place, id, stat.stx_ino)?;
    } else {
        walker.descend(place, id)?;
    }
    walker.read_encrypted()?;
    walker.finish_ntfs()?;
    walker.find_orphans()?;
    walker.read()?;
    if let Some(tails) = walker.tails.take() {
        tails.read(&mut walker.control, root)?;
    }
    if let Some(root) = reopened {
        walker.put_spaces(&root, id);
    }
    walker.control.put(&Record::Done);
    walker.control.flush()?;
    walker.phases.enter(Phase::Rest);
    Ok(format!("{} directories listed, {}\n", walker.listed, walker.phases))
}

struct Walker {
    control: Control,
    phases: Phases,
    reader: Reader,
    /// Which extents are spot-checked, with [`ReadOrder::Ends`].
    sample: Option<Sample>,
    /// The unit in bytes in which files are read up to their ends: mostly a block of the
    /// filesystem.
    block: u64,
    /// Files that have been opened and are to be read.
    batch: Vec<OpenFile>,
    /// Files that were taken from the tables of inodes since then.
    unopened: Vec<UnopenedFile>,
    /// Files found since the last batch was read.
    found: usize,
    /// The tables of inodes, if files may be taken from them.
    tables: Option<InodeTables>,
    /// The directory in which the filesystem is mounted.
    root: String,
    /// Number of the next object.
    next: u32,
    /// `st_dev` of the filesystem: others that are mounted below it are not entered.
    device: u64,
    /// That device, where directories are listed in batches.
    block_device: Option<OwnedFd>,
    /// Kind of the filesystem, by its magic number.
    kind: FsKind,
    /// Asks the kernel about files.
    inspector: Inspector,
    /// Unchanged inodes.
    known: InodeSet,
    /// Host listings of directories that have not been found yet.
    listings: Listings,
    /// Host listings of directories that have been found and not entered yet, by the number of the
    /// directory.
    host_listings: HashMap<u32, Vec<Entry>>,
    /// Numbers of the files with more than one name, by device and inode.
    links: HashMap<(u64, u64), u32>,
    /// Devices and inodes of the directories found so far: a second visit is a loop in a damaged
    /// filesystem.
    directories: HashSet<(u64, u64)>,
    /// Number of directories listed.
    listed: u64,
    /// The directory that was last reported as unsure.
    last_unsure: u32,
    /// Files that the kernel does not open, because their key is missing.
    encrypted: Vec<EncryptedFile>,
    /// With NTFS: what its `$MFT` says.
    ntfs: Option<Ntfs>,
    /// With squashfs: ends of files, which are read last.
    tails: Option<Tails>,
    /// With HFS+: the resource forks of files that have not been found yet.
    forks: Option<Forks>,
    /// Where the driver does not say where directories lie: what computes that.
    volume: Option<directories::Volume>,
}

/// A directory between the root and the current directory of the walk.
struct Level {
    place: OwnedFd,
    id: u32,
    /// Its subdirectories that have not been entered yet.
    below: std::vec::IntoIter<Below>,
}

impl Walker {
    /// Sends devices and chunks of a btrfs. If they cannot be had, the host uses recordings alone.
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

    /// Whether a file is in another filesystem. Subvolumes of btrfs have device numbers of their
    /// own, but no other filesystem can be mounted there.
    fn is_elsewhere(&self, stat: &Statx) -> bool {
        statx::device(stat) != self.device && !self.kind.facts().has_address_space
    }

    /// Visits a directory and everything below it. There is no recursion, because a tree may be
    /// deeper than any stack.
    fn descend(&mut self, root: OwnedFd, id: u32) -> Result<(), Fatal> {
        let below = self.directory(&root, id)?.into_iter();
        let mut levels = vec![Level { place: root, id, below }];
        while let Some(level) = levels.last_mut() {
            let parent = level.id;
            let Some(Below { name, id, .. }) = level.below.next() else {
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

    /// Lists one directory under its tag, unless there is a host listing, and looks up its entries.
    /// Returns its subdirectories.
    fn directory(&mut self, place: &OwnedFd, id: u32) -> Result<Vec<Below>, Fatal> {
        let mut below = Vec::new();
        if let Some(known) = self.host_listings.remove(&id) {
            let entries = Entries { directory: place.as_fd(), id, entries: known };
            return Ok(self.look_up(vec![entries])?.into_iter().flatten().collect());
        }
        self.listed += 1;
        self.phases.enter(Phase::Open);
        let open = || openat(place, c".", DIRECTORY, Mode::empty());
        let mut stream = None;
        let mut is_first = true;
        if !self.kind.facts().reads_when_opened {
            match open() {
                Ok(fd) => {
                    self.put_place(&fd, id);
                    stream = Some(fd);
                }
                Err(errno) => {
                    self.control.read_failure(Operation::Open, errno, id, b"", 0);
                    return Ok(below);
                }
            }
        }
        let mut memory = vec![MaybeUninit::uninit(); 64 << 10];
        let is_shared = self.kind.facts().directory_blocks == DirectoryBlocks::Shared;
        loop {
            self.phases.enter(Phase::List);
            self.control.settle()?;
            if !is_shared {
                // Otherwise what is read is metadata.
                self.control.tag(id, false)?;
            }
            let listed = match &stream {
                Some(stream) => list(stream, &mut memory),
                None => match open() {
                    Ok(fd) => list(stream.insert(fd), &mut memory),
                    Err(errno) => Listed { entries: Vec::new(), end: Err(errno) },
                },
            };
            self.control.settle()?;
            // Where opening a directory reads it, its extents can only be asked for afterwards.
            if let Some(stream) = stream.as_ref().filter(|_| is_first && self.kind.facts().reads_when_opened)
            {
                self.put_place(stream, id);
            }
            if let Some(stream) = stream.as_ref().filter(|_| is_first) {
                if self.kind.facts().shares_attributes {
                    self.control.tag(0, false)?;
                    self.shared_attributes(stream, id, b"");
                }
                let stat = statx::of_open(stream)?;
                if stat.stx_blocks > 0 {
                    // With its extents in memory, what is read under the next tag is attributes.
                    self.control.tag(0, false)?;
                    let extents = self.ask_directory(stream);
                    if self.has_more_blocks(&stat, extents.as_deref()) {
                        self.attributes_of_directory(stream, id)?;
                    }
                }
            }
            is_first = false;
            self.control.tag(0, false)?;
            if let Some(stream) = &stream {
                let entries = Entries { directory: stream.as_fd(), id, entries: listed.entries };
                below.extend(self.look_up(vec![entries])?.into_iter().flatten());
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

    /// Reports where an open directory lies, if the kernel says it, or the filesystem's structures.
    fn put_place(&mut self, directory: &OwnedFd, id: u32) {
        match self.kind.facts().directory_blocks {
            DirectoryBlocks::Asked => {
                if let Some(extents) = self.ask_directory(directory) {
                    self.put_extents(id, &extents);
                }
            }
            DirectoryBlocks::Computed => {
                let volume = self.volume.as_mut();
                if let Some(place) = volume.and_then(|volume| volume.place(directory, id)) {
                    self.put_extents(id, &place.extents);
                    self.control.put(&Record::Computed { id, beside: Vec::new() });
                    for beside in place.beside.chunks(EXTENTS_PER_RECORD) {
                        self.control.put(&Record::Computed { id, beside: beside.to_vec() });
                    }
                }
            }
            DirectoryBlocks::Shared => {}
        }
    }

    /// The extents of an open directory, if the kernel says them.
    fn ask_directory(&self, directory: &OwnedFd) -> Option<Vec<Extent>> {
        let asked = match self.kind {
            FsKind::Xfs => bmapx::extents(directory),
            _ => fiemap::extents(directory),
        };
        asked.ok().flatten()
    }

    /// Reads the files of the batch.
    fn read(&mut self) -> Result<(), Fatal> {
        self.found = 0;
        let before = self.phases.enter(Phase::Read);
        self.reader.read(&mut self.control, &self.batch, &self.unopened, &self.root)?;
        self.batch.clear();
        self.unopened.clear();
        self.phases.enter(before);
        Ok(())
    }

    /// Counts a file that was found, and reads the batch when it is full.
    fn found(&mut self) -> Result<(), Fatal> {
        self.found += 1;
        let most = if self.sample.is_some() || self.reader.asks() { BATCH_OF_ENDS } else { BATCH };
        if self.batch.len() >= most || self.found == FOUND { self.read() } else { Ok(()) }
    }
}
