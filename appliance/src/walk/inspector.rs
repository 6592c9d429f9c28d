//! Asks the kernel about files: opens them, and gets their attributes and extents.
//!
//! This is two thirds of a walk that reads only the ends of extents, and the files do not depend on
//! each other, so each processor of the appliance asks about a part of them.

use super::FILE;
use crate::{fiemap, statx};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{Advice, Mode, OFlags, Statx, fadvise, openat};
use rustix::io::Errno;
use std::ffi::CStr;
use std::fs;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use virt_bmap_agent_protocol::record::{Extent, Operation};

/// Files for which another thread is worth its start.
const WORTH: usize = 16;

/// Files after which the appliance's other processors are started. Under emulation the start costs
/// as much as asking about so many files, because the kernel patches its code, which must then be
/// translated again. How many files are still to come is not known; so the cost is at most doubled.
const MANY: usize = 8000;

/// What the kernel says of a file.
pub(super) struct Inspected {
    /// The file, opened for reading.
    pub(super) fd: OwnedFd,
    pub(super) stat: Statx,
    /// `None`: the filesystem has no FIEMAP.
    pub(super) extents: Result<Option<Vec<Extent>>, Errno>,
}

/// The same, or the operation that failed.
pub(super) type Answer = Result<Inspected, (Operation, Errno)>;

/// Asks the kernel.
pub(super) struct Inspector {
    /// Whether the filesystem supports `O_DIRECT`; true until a call fails.
    has_direct: AtomicBool,
    /// Files that it was asked about, until the other processors are started.
    asked: usize,
    /// The start of the other processors. This one goes on meanwhile.
    start: Option<JoinHandle<()>>,
    /// The processors that are used.
    processors: usize,
}

impl Default for Inspector {
    fn default() -> Self {
        Self { has_direct: AtomicBool::new(true), asked: 0, start: None, processors: 1 }
    }
}

impl Inspector {
    /// Asks about files, each of them a name in a directory. The answers are in their order.
    pub(super) fn all(&mut self, files: &[(BorrowedFd<'_>, &CStr)]) -> Vec<Answer> {
        if self.asked < MANY {
            self.asked += files.len();
            if self.asked >= MANY {
                self.start = Some(thread::spawn(start_processors));
            }
        }
        if self.start.take_if(|start| start.is_finished()).is_some() {
            self.processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        }
        let this = &*self;
        let threads = self.processors.min(files.len() / WORTH).max(1);
        let mut parts = files.chunks(files.len().div_ceil(threads).max(1));
        let ask = |part: &[(BorrowedFd<'_>, &CStr)]| -> Vec<Answer> {
            part.iter().map(|(directory, name)| this.one(*directory, name)).collect()
        };
        let first = parts.next().unwrap_or_default();
        thread::scope(|scope| {
            let others: Vec<_> = parts.map(|part| scope.spawn(move || ask(part))).collect();
            let mut answers = ask(first);
            for other in others {
                answers.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            answers
        })
    }

    /// Asks about one file.
    pub(super) fn one(&self, directory: BorrowedFd<'_>, name: &CStr) -> Answer {
        let fd = self.open(directory, name).map_err(|errno| (Operation::Open, errno))?;
        let stat = statx::of_open(&fd).map_err(|errno| (Operation::Stat, errno))?;
        let extents = fiemap::extents(&fd);
        Ok(Inspected { fd, stat, extents })
    }

    /// Opens a file with `O_DIRECT` if the filesystem supports that.
    fn open(&self, directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
        if self.has_direct.load(Ordering::Relaxed) {
            match openat(directory, name, FILE | OFlags::DIRECT, Mode::empty()) {
                Err(Errno::INVAL) => self.has_direct.store(false, Ordering::Relaxed),
                other => return other,
            }
        }
        let fd = openat(directory, name, FILE, Mode::empty())?;
        fadvise(&fd, 0, None, Advice::Random).ok();
        Ok(fd)
    }
}

/// Starts the processors that the kernel has not started yet (`cpu-hotplug` in the kernel's
/// documentation). Without them, the walk takes longer.
fn start_processors() {
    for entry in fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten() {
        let online = entry.path().join("online");
        if fs::read_to_string(&online).is_ok_and(|state| state.trim() == "0") {
            let _ = fs::write(&online, "1");
        }
    }
}
