//! The ends of files in squashfs, which packs them, and small files whole, into shared blocks
//! (*fragments*).
//!
//! The driver keeps the last few fragments in memory, apart from the page cache, so that only the
//! first of several files in a fragment causes a read of the disk. The ends are therefore read
//! last. Directly after mounting, nothing is in memory. Suppose that one fragment has been read
//! since, and then a file's end is read without a read of the disk: it lies in that fragment. When
//! a second fragment has been read, this conclusion is no longer possible, and the filesystem is
//! mounted again, about once for each fragment.

use crate::Fatal;
use crate::control::Control;
use crate::data_ranges::DataRange;
use rustix::fd::OwnedFd;
use rustix::fs::{Dev, Mode, OFlags, major, minor, open, openat, stat};
use rustix::io::{Errno, pread};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use virt_bmap_agent_protocol::record::Operation;
use virt_bmap_agent_protocol::{FsKind, Record};

/// Size in bytes of the largest block of squashfs.
const LARGEST: usize = 1 << 20;

const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The ends of files that are still to be read.
pub(crate) struct Tails {
    /// Size of a block in bytes; only parts that do not fill a block are packed.
    block: u64,
    /// Parent of each directory, and its name there; the root is its own parent.
    directories: HashMap<u32, (u32, CString)>,
    files: Vec<Tail>,
}

struct Tail {
    id: u32,
    parent: u32,
    name: CString,
    start: u64,
    end: u64,
}

/// The fragments that the driver may have in memory.
enum Cached {
    Nothing,
    /// At most the fragment that was read last.
    One,
    Several,
}

impl Tails {
    pub(crate) fn new(block: u64) -> Self {
        Self { block: block.max(1), directories: HashMap::new(), files: Vec::new() }
    }

    /// Notes the place of a directory.
    pub(crate) fn directory(&mut self, id: u32, parent: u32, name: CString) {
        self.directories.insert(id, (parent, name));
    }

    /// Keeps the end of a file of `size` bytes for later, and removes it from the ranges to read
    /// now.
    pub(crate) fn postpone(
        &mut self,
        id: u32,
        parent: u32,
        name: CString,
        size: u64,
        data_ranges: &mut Vec<DataRange>,
    ) {
        let start = size - size % self.block;
        if start == size || !data_ranges.iter().any(|range| range.end > start) {
            return;
        }
        data_ranges.retain(|range| range.start < start);
        for range in data_ranges {
            range.end = range.end.min(start);
        }
        self.files.push(Tail { id, parent, name, start, end: size });
    }

    /// Reads all the ends. No file or directory of the filesystem, which is mounted at `root`, may
    /// be open.
    pub(crate) fn read(self, control: &mut Control, root: &str) -> Result<(), Fatal> {
        if self.files.is_empty() {
            return Ok(());
        }
        let mut mounted = Mounted::find(root)?;
        control.put(&Record::Packed);
        let mut buffer = vec![0; usize::try_from(self.block)?.min(LARGEST)];
        let mut cached = Cached::Several;
        let mut directory: Option<(u32, OwnedFd)> = None;
        for tail in &self.files {
            for is_second_try in [false, true] {
                if is_second_try || matches!(cached, Cached::Several) {
                    directory = None;
                    mounted.reset(control)?;
                    cached = Cached::Nothing;
                }
                let opened = match &directory {
                    Some((id, place)) if *id == tail.parent => openat(place, &tail.name, FILE, Mode::empty()),
                    _ => self.open(root, tail.parent).and_then(|place| {
                        let file = openat(&place, &tail.name, FILE, Mode::empty());
                        directory = Some((tail.parent, place));
                        file
                    }),
                };
                let read = opened.map_err(Fatal::from).and_then(|file| {
                    control.settle()?;
                    control.tag(tail.id, false)?;
                    let before = mounted.sectors_read()?;
                    let length = read(&file, tail, &mut buffer)?;
                    control.settle()?;
                    let was_read = mounted.sectors_read()? > before;
                    control.tag(0, false)?;
                    Ok((was_read, buffer[..length].iter().all(|byte| *byte == 0)))
                });
                match read {
                    Ok((true, _)) => {
                        cached =
                            if matches!(cached, Cached::Nothing) { Cached::One } else { Cached::Several };
                    }
                    // A hole, or zeroes in the fragment that is in memory: the second try decides.
                    Ok((false, true)) if !is_second_try && matches!(cached, Cached::One) => continue,
                    Ok((false, _)) if matches!(cached, Cached::One) => {
                        control.put(&Record::Shared { id: tail.id });
                    }
                    Ok((false, _)) => {}
                    Err(error) => {
                        control.tag(0, false)?;
                        let Some(errno) = error.downcast_ref::<Errno>() else { return Err(error) };
                        control.read_failure(
                            Operation::Read,
                            *errno,
                            tail.parent,
                            tail.name.to_bytes(),
                            tail.start,
                        );
                        cached = Cached::Several;
                    }
                }
                break;
            }
        }
        Ok(())
    }

    /// Opens a directory, step by step.
    fn open(&self, root: &str, id: u32) -> Result<OwnedFd, Errno> {
        let mut names = Vec::new();
        let mut at = id;
        while let Some((parent, name)) = self.directories.get(&at) {
            names.push(name);
            at = *parent;
        }
        let mut place = open(root, PLACE, Mode::empty())?;
        for name in names.into_iter().rev() {
            place = openat(&place, name, PLACE, Mode::empty())?;
        }
        Ok(place)
    }
}

/// Reads an end, which fits in `buffer` because a block does; returns how many bytes it has.
fn read(file: &OwnedFd, tail: &Tail, buffer: &mut [u8]) -> Result<usize, Errno> {
    let want = usize::try_from(tail.end - tail.start).unwrap_or(usize::MAX).min(buffer.len());
    let mut done = 0;
    while done < want {
        match pread(file, &mut buffer[done..want], tail.start + done as u64) {
            Ok(0) => break,
            Ok(got) => done += got,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

/// A mounted filesystem.
struct Mounted<'a> {
    root: &'a str,
    source: String,
    device: Dev,
}

impl<'a> Mounted<'a> {
    /// What is mounted at `root`, by `proc(5)`'s `mountinfo`.
    fn find(root: &'a str) -> Result<Self, Fatal> {
        let text = fs::read_to_string("/proc/self/mountinfo")?;
        let source = text.lines().rev().find_map(|line| {
            let (mount, filesystem) = line.split_once(" - ")?;
            (mount.split(' ').nth(4) == Some(root)).then(|| filesystem.split(' ').nth(1))?
        });
        let source = source.ok_or("the filesystem is not mounted")?.to_owned();
        Ok(Self { root, source, device: stat(root)?.st_dev })
    }

    /// Mounts it anew, so that nothing of it is in memory.
    fn reset(&mut self, control: &Control) -> Result<(), Fatal> {
        control.settle()?;
        unmount(self.root, UnmountFlags::empty()).map_err(|error| format!("cannot unmount: {error}"))?;
        let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        mount(&self.source, self.root, FsKind::Squashfs.name(), flags, None)
            .map_err(|error| format!("cannot mount again: {error}"))?;
        control.settle()
    }

    /// How many sectors have been read of its device (`Documentation/block/stat.rst`).
    fn sectors_read(&self) -> Result<u64, Fatal> {
        let path = format!("/sys/dev/block/{}:{}/stat", major(self.device), minor(self.device));
        let text = fs::read_to_string(path)?;
        Ok(text.split_whitespace().nth(2).ok_or("no count of sectors")?.parse()?)
    }
}
