//! Lists directories in batches.
//!
//! The agent sends the extents of a directory before it lists the directory. The host can therefore
//! attribute a read by its place, and one message announces a whole batch; a message takes longer
//! than listing most directories. This works with filesystems whose directories have blocks of
//! their own, where listing reads nothing else:
//!
//! - ext2, ext3 and ext4 have FIEMAP for directories. The blocks of a batch are also fetched
//!   together: they are in the cache of the block device, and `fadvise` requests readahead there.
//! - XFS reads a directory when it is opened, before it can be asked. Its tables of inodes say
//!   where the directory lies; the reads of the listing prove it.

use super::look_up::{Below, Entries};
use super::{DIRECTORY, Entry, Walker, list};
use crate::ext::extents;
use crate::phases::Phase;
use crate::{Fatal, fiemap, statx};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{Advice, Mode, OFlags, fadvise, major, minor, open, openat};
use rustix::io::Errno;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::num::NonZeroU64;
use std::rc::Rc;
use virt_bmap_agent_protocol::record::{Extent, Operation};
use virt_bmap_agent_protocol::{ReadOrder, Record};

/// Directories listed at a time.
const BATCH: usize = 256;

/// The smallest unit that the kernel fetches.
const PAGE: u64 = 4096;

/// Size in bytes above which a directory is listed on its own, in several turns.
const LARGEST: u64 = 64 << 10;

/// A directory that has been found and not entered yet.
struct Waiting {
    /// Its parent directory, and the number of that.
    above: Rc<OwnedFd>,
    parent: u32,
    name: CString,
    id: u32,
    /// The number of its inode.
    inode: u64,
}

/// A directory whose place is known, and which is about to be listed.
struct Promised {
    from: Waiting,
    /// The directory, if it has been opened.
    fd: Option<Rc<OwnedFd>>,
    extents: Vec<Extent>,
    /// Whether it may have blocks of extended attributes.
    has_more_blocks: bool,
    entries: Vec<Entry>,
    error: Option<Errno>,
}

/// Most bytes that are fetched by one call. Of more than a request may have, the kernel leaves out
/// the rest (`force_page_cache_ra` in mm/readahead.c).
const FETCHED: usize = 512 << 10;

/// When a directory is listed.
enum Turn {
    /// With the others of its batch.
    InBatch(Promised),
    /// At once, alone.
    Alone(Rc<OwnedFd>),
    /// Never: it cannot be opened.
    Failed,
}

impl Waiting {
    /// A directory that was found in another.
    fn of(above: &Rc<OwnedFd>, parent: u32, Below { name, id, inode }: Below) -> Self {
        Self { above: above.clone(), parent, name, id, inode }
    }
}

impl Walker {
    /// Whether directories are listed in batches: only if the host knows the layout of the device.
    pub(super) fn lists_in_batches(&self) -> bool {
        let is_known_before = self.kind.facts().has_directory_blocks || self.tables.is_some();
        self.reader.order() != ReadOrder::Tags && is_known_before
    }

    /// Visits a directory and everything below it. Directories that were found last come first, so
    /// that few descriptors are open.
    pub(super) fn descend_in_batches(&mut self, root: OwnedFd, id: u32, inode: u64) -> Result<(), Fatal> {
        let name = c".".to_owned();
        let mut waiting = vec![Waiting { above: Rc::new(root), parent: id, name, id, inode }];
        while !waiting.is_empty() {
            let batch = waiting.split_off(waiting.len().saturating_sub(BATCH));
            let mut promised = Vec::new();
            for directory in batch {
                self.phases.enter(Phase::Open);
                let id = directory.id;
                match self.promise(directory) {
                    Turn::InBatch(directory) => promised.push(directory),
                    Turn::Alone(fd) => {
                        let below = self.directory(&fd, id)?;
                        waiting.extend(below.into_iter().map(|below| Waiting::of(&fd, id, below)));
                    }
                    Turn::Failed => {}
                }
            }
            self.list_all(&mut promised)?;
            promised.retain(|directory| directory.fd.is_some());
            let directories = promised.iter_mut().filter_map(|Promised { from, fd, entries, .. }| {
                let directory = fd.as_deref()?.as_fd();
                Some(Entries { directory, id: from.id, entries: std::mem::take(entries) })
            });
            let below = self.look_up(directories.collect())?;
            for (Promised { from: Waiting { id, .. }, fd, error, .. }, below) in
                promised.into_iter().zip(below)
            {
                let Some(fd) = fd else { continue };
                waiting.extend(below.into_iter().map(|below| Waiting::of(&fd, id, below)));
                if let Some(errno) = error {
                    self.control.read_failure(Operation::List, errno, id, b"", 0);
                }
            }
        }
        Ok(())
    }

    /// Sends where a directory lies, if that is known before it is listed.
    fn promise(&mut self, from: Waiting) -> Turn {
        let is_listed_by_host = self.host_listings.contains_key(&from.id);
        let (fd, promised) = if self.kind.facts().reads_when_opened {
            let tables = self.tables.as_mut().filter(|_| !is_listed_by_host);
            let inode = tables.and_then(|tables| tables.directory(from.inode));
            (None, inode.map(|inode| (extents(inode.data), inode.size, false)))
        } else {
            let Some(fd) = self.open(&from) else { return Turn::Failed };
            let asked = if is_listed_by_host { None } else { fiemap::extents(&fd).ok().flatten() };
            let promised = asked.zip(statx::of_open(&*fd).ok()).map(|(extents, stat)| {
                let has_more_blocks = self.has_more_blocks(&stat, Some(&extents));
                (extents, stat.stx_size, has_more_blocks)
            });
            (Some(fd), promised)
        };
        match promised {
            Some((extents, size, has_more_blocks))
                if size <= LARGEST && extents.iter().all(Extent::is_plain) =>
            {
                self.put_extents(from.id, &extents);
                let (entries, error) = (Vec::new(), None);
                Turn::InBatch(Promised { from, fd, extents, has_more_blocks, entries, error })
            }
            _ => fd.or_else(|| self.open(&from)).map_or(Turn::Failed, Turn::Alone),
        }
    }

    /// Opens a directory, or reports why that failed.
    fn open(&mut self, directory: &Waiting) -> Option<Rc<OwnedFd>> {
        let Waiting { above, parent, name, .. } = directory;
        match openat(&**above, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(fd) => Some(Rc::new(fd)),
            Err(errno) => {
                self.control.read_failure(Operation::Open, errno, *parent, name.to_bytes(), 0);
                None
            }
        }
    }

    /// Asks the kernel to fetch these parts of the device (start and length) at once.
    pub(super) fn fetch(&self, parts: impl IntoIterator<Item = (u64, u64)>) {
        let Some(device) = &self.block_device else { return };
        for (start, length) in parts {
            for at in (0..length).step_by(FETCHED) {
                let part = NonZeroU64::new((length - at).min(FETCHED as u64));
                fadvise(device, start.saturating_add(at), part, Advice::WillNeed).ok();
            }
        }
    }

    /// Lists directories whose extents have been sent.
    fn list_all(&mut self, directories: &mut [Promised]) -> Result<(), Fatal> {
        if directories.is_empty() {
            return Ok(());
        }
        self.listed += directories.len() as u64;
        self.phases.enter(Phase::List);
        self.control.settle()?;
        let ids = directories.iter().map(|directory| directory.from.id).collect();
        self.control.put(&Record::Listing { ids });
        self.control.flush()?;
        // Without this the kernel would wait for each block of each directory. It fetches whole
        // pages, so this needs blocks of at least a page: a smaller block of another directory
        // would come along, and that directory would then be listed without a read.
        if self.kind.facts().has_directory_blocks && self.block >= PAGE {
            let extents = directories.iter().flat_map(|directory| &directory.extents);
            self.fetch(extents.map(|extent| (extent.physical, extent.length)));
        }
        let mut memory = vec![MaybeUninit::uninit(); 64 << 10];
        for directory in &mut *directories {
            if directory.fd.is_none() {
                directory.fd = self.open(&directory.from);
            }
            let Some(fd) = &directory.fd else { continue };
            loop {
                let listed = list(fd, &mut memory);
                directory.entries.extend(listed.entries);
                directory.error = listed.end.err();
                if listed.end != Ok(false) {
                    break;
                }
            }
        }
        self.control.settle()?;
        self.control.tag(0, false)?;
        for directory in directories.iter().filter(|directory| directory.has_more_blocks) {
            if let Some(fd) = &directory.fd {
                self.attributes_of_directory(fd, directory.from.id)?;
                self.control.tag(0, false)?;
            }
        }
        Ok(())
    }
}

/// The path of the block device with this number, and the device, opened for reading with `flags`.
pub(crate) fn block_device(number: u64, flags: OFlags) -> Option<(String, OwnedFd)> {
    let about = format!("/sys/dev/block/{}:{}/uevent", major(number), minor(number));
    let about = std::fs::read_to_string(about).ok()?;
    let name = about.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    let path = format!("/dev/{name}");
    let device = open(&path, OFlags::RDONLY | OFlags::CLOEXEC | flags, Mode::empty()).ok()?;
    Some((path, device))
}
