//! Lists directories in batches.
//!
//! The agent sends the extents of a directory before it lists the directory. The host can therefore
//! attribute a read by its place, and one message announces a whole batch; a message takes longer
//! than listing most directories. The blocks of a batch are also fetched together: they are in the
//! cache of the block device, and `fadvise` requests readahead there. This works with ext2, ext3
//! and ext4, whose directories have FIEMAP and blocks of their own, and where listing reads nothing
//! else.

use super::look_up::Entries;
use super::{DIRECTORY, Entry, Walker, list};
use crate::phases::Phase;
use crate::{Fatal, fiemap};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{Advice, Mode, OFlags, fadvise, fstat, major, minor, open, openat};
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
const LARGEST: i64 = 64 << 10;

/// A directory that has been found and not entered yet.
struct Waiting {
    /// Its parent directory, and the number of that.
    above: Rc<OwnedFd>,
    parent: u32,
    name: CString,
    id: u32,
}

/// A directory that has been opened.
struct Opened {
    fd: Rc<OwnedFd>,
    id: u32,
    extents: Vec<Extent>,
    /// Whether it may have blocks of extended attributes.
    has_more_blocks: bool,
    entries: Vec<Entry>,
    error: Option<Errno>,
}

impl Walker {
    /// Whether directories are listed in batches: only if the host knows the layout of the device.
    pub(super) fn lists_in_batches(&self) -> bool {
        self.reader.order() != ReadOrder::Tags && self.kind.facts().has_directory_blocks
    }

    /// Visits a directory and everything below it. Directories that were found last come first, so
    /// that few descriptors are open.
    pub(super) fn descend_in_batches(&mut self, root: OwnedFd, id: u32) -> Result<(), Fatal> {
        let mut waiting = vec![Waiting { above: Rc::new(root), parent: id, name: c".".to_owned(), id }];
        while !waiting.is_empty() {
            let batch = waiting.split_off(waiting.len().saturating_sub(BATCH));
            let mut promised = Vec::new();
            for Waiting { above, parent, name, id } in batch {
                self.phases.enter(Phase::Open);
                let fd = match openat(&*above, &name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()) {
                    Ok(fd) => Rc::new(fd),
                    Err(errno) => {
                        self.control.read_failure(Operation::Open, errno, parent, name.to_bytes(), 0);
                        continue;
                    }
                };
                let is_listed_by_host = self.host_listings.contains_key(&id);
                let extents = if is_listed_by_host { None } else { fiemap::extents(&fd).ok().flatten() };
                let stat = fstat(&*fd)?;
                match extents {
                    Some(extents) if stat.st_size <= LARGEST && extents.iter().all(Extent::is_plain) => {
                        self.put_extents(id, &extents);
                        let has_more_blocks = self.has_more_blocks(&stat, Some(&extents));
                        let (entries, error) = (Vec::new(), None);
                        promised.push(Opened { fd, id, extents, has_more_blocks, entries, error });
                    }
                    _ => {
                        let below = self.directory(&fd, id)?;
                        let found =
                            |(name, child)| Waiting { above: fd.clone(), parent: id, name, id: child };
                        waiting.extend(below.into_iter().map(found));
                    }
                }
            }
            self.list_all(&mut promised)?;
            let directories = promised.iter_mut().map(|Opened { fd, id, entries, .. }| Entries {
                directory: (**fd).as_fd(),
                id: *id,
                entries: std::mem::take(entries),
            });
            let below = self.look_up(directories.collect())?;
            for (Opened { fd, id, error, .. }, below) in promised.into_iter().zip(below) {
                let found = |(name, child)| Waiting { above: fd.clone(), parent: id, name, id: child };
                waiting.extend(below.into_iter().map(found));
                if let Some(errno) = error {
                    self.control.read_failure(Operation::List, errno, id, b"", 0);
                }
            }
        }
        Ok(())
    }

    /// Asks the kernel to fetch these parts of the device (start and length) at once.
    pub(super) fn fetch(&self, parts: impl IntoIterator<Item = (u64, u64)>) {
        let Some(device) = &self.block_device else { return };
        for (start, length) in parts {
            fadvise(device, start, NonZeroU64::new(length), Advice::WillNeed).ok();
        }
    }

    /// Lists directories whose extents have been sent.
    fn list_all(&mut self, directories: &mut [Opened]) -> Result<(), Fatal> {
        if directories.is_empty() {
            return Ok(());
        }
        self.listed += directories.len() as u64;
        self.phases.enter(Phase::List);
        self.control.settle()?;
        let ids = directories.iter().map(|directory| directory.id).collect();
        self.control.put(&Record::Listing { ids });
        self.control.flush()?;
        // Without this the kernel would wait for each block of each directory. It fetches whole
        // pages, so this needs blocks of at least a page: a smaller block of another directory
        // would come along, and that directory would then be listed without a read.
        if self.block >= PAGE {
            let extents = directories.iter().flat_map(|directory| &directory.extents);
            self.fetch(extents.map(|extent| (extent.physical, extent.length)));
        }
        let mut memory = vec![MaybeUninit::uninit(); 64 << 10];
        for directory in &mut *directories {
            loop {
                let listed = list(&directory.fd, &mut memory);
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
            self.attributes_of_directory(&directory.fd, directory.id)?;
            self.control.tag(0, false)?;
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
