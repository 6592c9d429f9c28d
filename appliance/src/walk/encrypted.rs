//! Files that their filesystem encrypts, without the key.
//!
//! Without the key, the kernel lists directories with encoded names ("no-key names" of fscrypt),
//! but does not open files, so that FIEMAP is not available. On ext4, debugfs(8) gives the extents
//! by inode number. The agent checks their sum against `stat`, and reads the file from the block
//! device at these places.

use super::Walker;
use super::batches::block_device;
use super::look_up::object;
use crate::Fatal;
use crate::data_ranges::DataRange;
use crate::reader::OpenFile;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, OFlags, Stat, statat};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Stdio};
use virt_bmap_agent_protocol::record::{Extent, ObjectKind, Operation};
use virt_bmap_agent_protocol::{End, Record};

/// Number of files in one call of debugfs.
const ASKED: usize = 1024;

/// File with the commands for debugfs.
const QUESTIONS: &str = "/tmp/virt-bmap-questions";

/// A file that cannot be opened.
pub(super) struct EncryptedFile {
    parent: u32,
    name: CString,
    stat: Stat,
}

impl Walker {
    /// Notes a file that the kernel does not open without its key.
    pub(super) fn note_encrypted(&mut self, directory: BorrowedFd<'_>, parent: u32, name: &CStr) {
        match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                if is_file && !self.is_elsewhere(&stat) {
                    self.encrypted.push(EncryptedFile { parent, name: name.to_owned(), stat });
                }
            }
            Err(errno) => self.control.read_failure(Operation::Stat, errno, parent, name.to_bytes(), 0),
        }
    }

    /// Reads the noted files, as far as their places can be found.
    pub(super) fn read_encrypted(&mut self) -> Result<(), Fatal> {
        let encrypted = std::mem::take(&mut self.encrypted);
        let device = block_device(self.device, OFlags::DIRECT).filter(|_| self.kind.is_ext());
        for asked in encrypted.chunks(ASKED) {
            let places = match &device {
                Some((path, _)) => ask(path, asked.iter().map(|file| file.stat.st_ino), self.block),
                None => HashMap::new(),
            };
            for file in asked {
                let device = device.as_ref().map(|(_, fd)| fd);
                self.encrypted_file(file, places.get(&file.stat.st_ino), device)?;
            }
        }
        Ok(())
    }

    fn encrypted_file(
        &mut self,
        file: &EncryptedFile,
        places: Option<&Places>,
        device: Option<&OwnedFd>,
    ) -> Result<(), Fatal> {
        let EncryptedFile { parent, name, stat } = file;
        let inode = (stat.st_dev, stat.st_ino);
        if let Some(&id) = self.links.get(&inode) {
            self.control.put(&Record::Link { id, parent: *parent, name: name.to_bytes().to_vec() });
            return Ok(());
        }
        let id = self.number()?;
        if stat.st_nlink > 1 {
            self.links.insert(inode, id);
        }
        self.control.put(&object(id, *parent, ObjectKind::File, stat, name.to_bytes()));
        self.control.put(&Record::Encrypted { id });
        let allocated = (stat.st_blocks as u64).saturating_mul(512);
        let (Some(places), Some(device)) = (places.filter(|places| places.bytes == allocated), device) else {
            return self.found();
        };
        let extents = &places.extents;
        self.put_extents(id, extents);
        let size = (stat.st_size as u64).checked_next_multiple_of(self.block).unwrap_or(u64::MAX);
        let is_written = |extent: &&Extent| extent.flags & Extent::UNWRITTEN == 0 && extent.logical < size;
        let data_ranges: Vec<DataRange> = extents
            .iter()
            .filter(is_written)
            .map(|extent| {
                let length = extent.length.min(size - extent.logical);
                DataRange { start: extent.physical, end: extent.physical + length }
            })
            .collect();
        let ends = self.sample.map(|sample| sample.ends(id, extents, size, self.block));
        // The file descriptor is that of the device.
        let ends = ends.into_iter().flatten().map(|end| End { logical: end.physical, ..end }).collect();
        if !data_ranges.is_empty() {
            self.batch.push(OpenFile {
                fd: device.try_clone()?,
                id,
                parent: *parent,
                name: name.clone(),
                data_ranges,
                ends,
                is_promised: true,
                unit: usize::try_from(self.block)?,
                cached: Vec::new(),
            });
        }
        self.found()
    }
}

/// Where a file lies.
#[derive(Debug, Default, PartialEq, Eq)]
struct Places {
    extents: Vec<Extent>,
    /// Bytes of all its blocks, including those of extents and attributes.
    bytes: u64,
}

/// Asks debugfs for the places of inodes.
fn ask(device: &str, inodes: impl Iterator<Item = u64>, block: u64) -> HashMap<u64, Places> {
    let mut questions = String::new();
    for inode in inodes {
        let _ = writeln!(questions, "stat <{inode}>");
    }
    let output = fs::write(QUESTIONS, questions).and_then(|()| {
        Command::new("debugfs").args(["-f", QUESTIONS, device]).stderr(Stdio::null()).output()
    });
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    said.split("debugfs: stat <").skip(1).filter_map(|said| answer(said, block)).collect()
}

/// Parses the answer of debugfs for one inode: `14>`, and later `(0-4):8234-8238, (5-9[u]):300-304,
/// (ETB0):33`. Blocks whose label begins with a letter hold no data.
fn answer(said: &str, block: u64) -> Option<(u64, Places)> {
    let (inode, said) = said.split_once('>')?;
    let (_, list) = said.split_once("\nEXTENTS:\n").or_else(|| said.split_once("\nBLOCKS:\n"))?;
    let attributes = said.split_once("File ACL: ")?.1.lines().next()?.trim();
    let mut places = Places { bytes: if attributes == "0" { 0 } else { block }, ..Places::default() };
    for item in list.lines().next()?.split(", ").filter(|item| !item.is_empty()) {
        let (of, place) = item.strip_prefix('(')?.split_once("):")?;
        let (first, last) = run(place)?;
        let length = last.checked_sub(first)?.checked_add(1)?.checked_mul(block)?;
        places.bytes = places.bytes.checked_add(length)?;
        if of.starts_with(|c: char| c.is_ascii_digit()) {
            let (of, flags) = of.strip_suffix("[u]").map_or((of, 0), |of| (of, Extent::UNWRITTEN));
            let (logical, physical) = (run(of)?.0.checked_mul(block)?, first.checked_mul(block)?);
            physical.checked_add(length)?;
            logical.checked_add(length)?;
            places.extents.push(Extent { logical, physical, length, flags });
        }
    }
    Some((inode.parse().ok()?, places))
}

/// `8234-8238` or `8234`.
fn run(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((first.parse().ok()?, last.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_debugfs_are_parsed() {
        let extent = |logical, physical, length, flags| Extent { logical, physical, length, flags };
        let said =
            "14>\nInode: 14   Type: regular\nFile ACL: 0\nEXTENTS:\n(ETB0):33, (0-4):8234-8238, (6[u]):7\n\n";
        let extents = vec![extent(0, 8_234_000, 5000, 0), extent(6000, 7000, 1000, Extent::UNWRITTEN)];
        assert_eq!(answer(said, 1000), Some((14, Places { extents, bytes: 7000 })));
        let said = "15>\nFile ACL: 99\nBLOCKS:\n(0-11):40-51, (IND):52, (12):53\nTOTAL: 14\n\n";
        let extents = vec![extent(0, 40_000, 12_000, 0), extent(12_000, 53_000, 1000, 0)];
        assert_eq!(answer(said, 1000), Some((15, Places { extents, bytes: 15_000 })));
        let empty = "16>\nFile ACL: 0\nEXTENTS:\n\n";
        assert_eq!(answer(empty, 1000), Some((16, Places::default())));
        assert_eq!(answer("17>\nFile ACL: 0\nEXTENTS:\n(0-4):8234-82", 1000), None);
        assert_eq!(answer("18>\nstat: no such inode\n", 1000), None);
    }
}
