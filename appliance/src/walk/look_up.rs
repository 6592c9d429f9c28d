//! Looks up the entries of a directory and opens the files among them.

use super::{Entry, FILE, Walker};
use crate::buffer::ALIGNMENT;
use crate::data_ranges::data_ranges;
use crate::reader::OpenFile;
use crate::{Fatal, fiemap};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{Advice, AtFlags, FileType, Mode, OFlags, Stat, fadvise, fstat, openat, statat};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use virt_bmap_agent_protocol::Record;
use virt_bmap_agent_protocol::bounds::EXTENTS_PER_RECORD;
use virt_bmap_agent_protocol::record::{Extent, Object, ObjectKind, Operation};

impl Walker {
    /// Looks up the entries of a directory. Files join the batch, directories are added to `below`.
    pub(super) fn look_up(
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
                    self.batch.extend(found.filter(|file| !file.data_ranges.is_empty()));
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

    /// Reports an unsure directory: its blocks do not show which of its entries are directories.
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
        let mut data_ranges = data_ranges(&fd, &stat, extents.as_deref());
        if let Some(tails) = &mut self.tails {
            tails.postpone(id, parent, name.to_owned(), stat.st_size as u64, &mut data_ranges);
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
        let file = OpenFile { fd, id, parent, name, data_ranges, ends, is_promised, unit, cached };
        if self.metadata && self.has_more_blocks(&stat, extents.as_deref()) {
            self.attributes_of_file(&file)?;
        }
        Ok(Some(file))
    }

    /// Opens a file with `O_DIRECT` if the filesystem supports that.
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

    pub(super) fn extents(&mut self, fd: &OwnedFd) -> Result<Option<Vec<Extent>>, Errno> {
        if self.has_fiemap { fiemap::extents(fd) } else { Ok(None) }
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

pub(super) fn object(id: u32, parent: u32, kind: ObjectKind, stat: &Stat, name: &[u8]) -> Record {
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
