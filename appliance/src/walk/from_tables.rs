//! Files and symbolic links that are taken from the tables of inodes, and the proof that these are
//! read as the kernel reads them: of the files of the sample, the kernel is asked as well.

use super::look_up::{About, report};
use super::{Entry, Walker};
use crate::Fatal;
use crate::ext::extents;
use crate::file_handle::FileHandle;
use crate::reader::UnopenedFile;
use crate::walk::inspector::{Answer, Inspected};
use rustix::fs::FileType;
use std::ffi::{CStr, CString};
use virt_bmap_agent_protocol::record::{Extent, ObjectKind};
use virt_bmap_agent_protocol::{FsKind, Record};
use virt_bmap_on_disk::Inode;

/// Where an entry of a directory is looked up.
pub(super) enum Source {
    /// Nowhere: the host knows it.
    Known,
    /// By the kernel.
    Kernel,
    /// In the tables of inodes.
    Tables(ByTables),
    /// In both.
    Both(ByTables),
}

/// What the tables of inodes say of a file or symbolic link.
pub(super) struct ByTables {
    /// Without its data.
    inode: Inode,
    /// Its data, as the kernel would say it.
    extents: Vec<Extent>,
}

impl Walker {
    /// Where an entry is to be looked up. `is_one`: its directory has one entry of this name.
    pub(super) fn source(&mut self, entry: &Entry, is_one: bool) -> Source {
        if self.known.contains(entry.inode) {
            return Source::Known;
        }
        let is_wanted = is_one && matches!(entry.kind, FileType::RegularFile | FileType::Symlink);
        let (Some(tables), Some(sample)) = (self.tables.as_mut().filter(|_| is_wanted), self.sample) else {
            return Source::Kernel;
        };
        let Some(mut inode) = tables.inode(entry.inode).filter(|inode| of(inode) == entry.kind) else {
            return Source::Kernel;
        };
        let extents = extents(std::mem::take(&mut inode.data));
        let by_tables = ByTables { inode, extents };
        match entry.kind {
            FileType::RegularFile if sample.has(entry.inode, &by_tables.extents, by_tables.inode.size) => {
                Source::Both(by_tables)
            }
            _ => Source::Tables(by_tables),
        }
    }

    /// Reports a file or symbolic link by its inode.
    pub(super) fn take_from_tables(
        &mut self,
        parent: u32,
        number: u64,
        name: CString,
        by_tables: ByTables,
    ) -> Result<(), Fatal> {
        let ByTables { inode, extents } = by_tables;
        let known = (self.device, number);
        if inode.links > 1
            && let Some(&id) = self.links.get(&known)
        {
            self.control.put(&Record::Link { id, parent, name: name.into_bytes() });
            return self.found();
        }
        let id = self.number()?;
        if inode.links > 1 {
            self.links.insert(known, id);
        }
        let is_file = of(&inode) == FileType::RegularFile;
        let kind = if is_file { ObjectKind::File } else { ObjectKind::Symlink };
        report(&mut self.control, id, parent, kind, &about(number, &inode), name.to_bytes());
        if is_file {
            self.put_extents(id, &extents);
            if !extents.is_empty() {
                let (generation, is_xfs) = (inode.generation, self.kind == FsKind::Xfs);
                let handle = FileHandle { inode: number, generation, is_xfs };
                self.unopened.push(UnopenedFile { id, parent, name, handle, extents, size: inode.size });
            }
        }
        self.found()
    }

    /// Compares what the kernel says of a file with its inode.
    pub(super) fn prove(
        &mut self,
        parent: u32,
        number: u64,
        name: &CStr,
        answer: &Answer,
        by_tables: &ByTables,
    ) {
        let is_same = match answer {
            Ok(Inspected { stat, extents: Ok(Some(told)), .. }) => {
                let mut said = About::of(stat);
                // A driver need not report when files were made: that of ext2 alone does not.
                said.born = said.born.or(by_tables.inode.born);
                said == about(number, &by_tables.inode) && joined(told) == joined(&by_tables.extents)
            }
            _ => false,
        };
        if !is_same {
            self.control.put(&Record::Contradiction { parent, name: name.to_bytes().to_vec() });
        }
    }
}

fn of(inode: &Inode) -> FileType {
    FileType::from_raw_mode(inode.mode)
}

fn about(number: u64, inode: &Inode) -> About {
    About {
        inode: number,
        size: inode.size,
        allocated: inode.allocated,
        links: inode.links,
        mode: inode.mode,
        owner: inode.owner,
        modified: inode.modified,
        changed: inode.changed,
        born: inode.born,
    }
}

/// Extents as one, where they touch: the kernel joins some of them. Offset, place, length, and
/// whether they were never written.
fn joined(extents: &[Extent]) -> Option<Vec<(u64, u64, u64, bool)>> {
    let mut joined: Vec<(u64, u64, u64, bool)> = Vec::new();
    for extent in extents {
        if !(extent.is_plain() || extent.is_unwritten()) {
            return None;
        }
        let (logical, physical, length) = (extent.logical, extent.physical, extent.length);
        match joined.last_mut() {
            Some((offset, place, of, is_unwritten))
                if *is_unwritten == extent.is_unwritten()
                    && offset.checked_add(*of) == Some(logical)
                    && place.checked_add(*of) == Some(physical) =>
            {
                *of = of.saturating_add(length);
            }
            _ => joined.push((logical, physical, length, extent.is_unwritten())),
        }
    }
    Some(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_that_touch_are_the_same_as_one() {
        let extent = |logical, physical, length, flags| Extent { logical, physical, length, flags };
        let two = [extent(0, 4096, 4096, 0), extent(4096, 8192, 4096, Extent::LAST)];
        assert_eq!(joined(&two), joined(&[extent(0, 4096, 8192, 0)]));
        let unwritten = [extent(0, 4096, 4096, 0), extent(4096, 8192, 4096, Extent::UNWRITTEN)];
        assert_ne!(joined(&two), joined(&unwritten));
        assert_ne!(joined(&two), joined(&[extent(0, 4096, 4096, 0), extent(4096, 16384, 4096, 0)]));
        assert_eq!(joined(&[extent(0, 0, 9, Extent::INLINE)]), None);
    }
}
