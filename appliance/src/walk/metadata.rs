//! The part of a walk that maps metadata: symbolic links, extended attributes, and the purpose of
//! the filesystem's blocks.

use super::Walker;
use super::batches::block_device;
use super::look_up::{About, report};
use crate::ext::Ext;
use crate::reader::OpenFile;
use crate::{Fatal, bmapx, btrfs, directories, f2fs, fiemap, getfsmap, nilfs2, ntfs, statx, ufs, xfs};
use rustix::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{
    FileType, Mode, OFlags, Statx, fgetxattr, flistxattr, lgetxattr, llistxattr, openat, readlinkat,
};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use virt_bmap_agent_protocol::bounds::EXTENTS_PER_RECORD;
use virt_bmap_agent_protocol::record::{ATTRIBUTES, BlockPurpose, Extent, ObjectKind, Operation};
use virt_bmap_agent_protocol::{FsKind, Record};

/// `XATTR_LIST_MAX` and `XATTR_SIZE_MAX` of `linux/limits.h`.
const LARGEST: usize = 64 << 10;

impl Walker {
    /// Whether an inode has blocks that are in none of its extents: of extended attributes, or of
    /// its extent tree.
    pub(super) fn has_more_blocks(&self, stat: &Statx, extents: Option<&[Extent]>) -> bool {
        // btrfs keeps attributes in a tree of the filesystem; in FUSE the number of blocks is an
        // estimate.
        if self.kind.facts().has_address_space || self.kind.is_fuse() {
            return false;
        }
        let named = extents.unwrap_or_default().iter().filter(|e| e.flags & Extent::INLINE == 0);
        let named = named.fold(0u64, |sum, extent| sum.saturating_add(extent.length));
        stat.stx_blocks.saturating_mul(512) > named
    }

    /// Whether it may be a file in which NTFS keeps metadata. ntfs-3g has read some of them before,
    /// so that a read touches only a part of their blocks.
    pub(super) fn is_system(&self, stat: &Statx) -> bool {
        stat.stx_ino < self.kind.facts().reserved_inodes
    }

    /// Most blocks or clusters of a file for FIBMAP. The `$MFT` of NTFS has no limit, because other
    /// metadata is found in it.
    pub(super) fn most_blocks(&self, stat: &Statx) -> u64 {
        match self.kind {
            FsKind::Exfat => fiemap::MOST_CLUSTERS,
            _ if self.is_system(stat) && stat.stx_ino == 0 => 1 << 22,
            _ => fiemap::MOST_BLOCKS,
        }
    }

    /// Bytes of a cluster, if FIBMAP gives the sectors of a file. exFAT reports it as the preferred
    /// size of input and output.
    pub(super) fn cluster(&self, stat: &Statx) -> Option<u64> {
        (self.kind == FsKind::Exfat).then_some(stat.stx_blksize.into())
    }

    /// Reads the extended attributes of a file.
    pub(super) fn attributes_of_file(&mut self, file: &OpenFile) -> Result<(), Fatal> {
        if let Err(errno) = self.attributes_of(&file.fd, file.id, false)? {
            self.control.read_failure(Operation::Attributes, errno, file.parent, file.name.to_bytes(), 0);
        }
        self.control.tag(0, false)
    }

    /// Reads the extended attributes of a file or directory if it may share them. They are metadata
    /// of the filesystem.
    pub(super) fn shared_attributes(&mut self, fd: &OwnedFd, parent: u32, name: &[u8]) {
        if self.kind.facts().shares_attributes
            && let Err(errno) =
                read_all(|list| flistxattr(fd, list), |name, value| fgetxattr(fd, name, value))
        {
            self.control.read_failure(Operation::Attributes, errno, parent, name, 0);
        }
    }

    /// Reads the extended attributes of a directory. Leaves their tag set.
    pub(super) fn attributes_of_directory(&mut self, fd: &OwnedFd, id: u32) -> Result<(), Fatal> {
        if let Err(errno) = self.attributes_of(fd, id, true)? {
            self.control.read_failure(Operation::Attributes, errno, id, b"", 0);
        }
        Ok(())
    }

    /// The inner error concerns this object alone.
    fn attributes_of(
        &mut self,
        fd: &OwnedFd,
        id: u32,
        is_directory: bool,
    ) -> Result<Result<(), Errno>, Fatal> {
        let is_xfs_directory = is_directory && self.kind == FsKind::Xfs;
        let places = if is_xfs_directory { bmapx::attributes(fd) } else { fiemap::attributes(fd) };
        for extents in places.chunks(EXTENTS_PER_RECORD) {
            self.control.put(&Record::Extents { id: id | ATTRIBUTES, extents: extents.to_vec() });
        }
        self.control.settle()?;
        self.control.tag(id | ATTRIBUTES, false)?;
        let result = read_all(|list| flistxattr(fd, list), |name, value| fgetxattr(fd, name, value));
        self.control.settle()?;
        Ok(result)
    }

    /// Reads a symbolic link, and its extended attributes.
    pub(super) fn symlink(
        &mut self,
        directory: BorrowedFd<'_>,
        parent: u32,
        name: &CStr,
    ) -> Result<(), Fatal> {
        let stat = match statx::of_entry(directory, name) {
            Ok(stat) => stat,
            Err(errno) => {
                self.control.read_failure(Operation::Stat, errno, parent, name.to_bytes(), 0);
                return Ok(());
            }
        };
        if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::Symlink || self.is_elsewhere(&stat) {
            return Ok(());
        }
        if stat.stx_nlink > 1
            && let Some(&id) = self.links.get(&(statx::device(&stat), stat.stx_ino))
        {
            self.control.put(&Record::Link { id, parent, name: name.to_bytes().to_vec() });
            return Ok(());
        }
        let id = self.number()?;
        if stat.stx_nlink > 1 {
            self.links.insert((statx::device(&stat), stat.stx_ino), id);
        }
        report(&mut self.control, id, parent, ObjectKind::Symlink, &About::of(&stat), name.to_bytes());
        if self.kind.facts().shares_attributes {
            self.attributes_by_name(directory, parent, name)?;
        }
        if !self.has_more_blocks(&stat, None) {
            return Ok(());
        }
        self.control.settle()?;
        self.control.tag(id, false)?;
        if let Err(errno) = readlinkat(directory, name, Vec::new()) {
            self.control.read_failure(Operation::Read, errno, parent, name.to_bytes(), 0);
        }
        self.control.settle()?;
        self.control.tag(id | ATTRIBUTES, false)?;
        self.attributes_by_name(directory, parent, name)?;
        self.control.settle()?;
        self.control.tag(0, false)
    }

    /// Reads the extended attributes of a device, pipe or socket. It is no object of the map, so what
    /// is read is metadata of the filesystem.
    pub(super) fn special_file(
        &mut self,
        directory: BorrowedFd<'_>,
        parent: u32,
        name: &CStr,
    ) -> Result<(), Fatal> {
        let may_share = self.kind.facts().shares_attributes;
        match statx::of_entry(directory, name) {
            Ok(stat) if !self.is_elsewhere(&stat) && (may_share || self.has_more_blocks(&stat, None)) => {
                // An update must find these blocks again.
                self.unsure(parent);
                self.attributes_by_name(directory, parent, name)
            }
            Ok(_) => Ok(()),
            Err(errno) => {
                self.control.read_failure(Operation::Stat, errno, parent, name.to_bytes(), 0);
                Ok(())
            }
        }
    }

    /// Reads the extended attributes of what cannot be opened.
    fn attributes_by_name(
        &mut self,
        directory: BorrowedFd<'_>,
        parent: u32,
        name: &CStr,
    ) -> Result<(), Fatal> {
        let path = [format!("/proc/self/fd/{}/", directory.as_raw_fd()).as_bytes(), name.to_bytes()].concat();
        let path = CString::new(path)?;
        if let Err(errno) =
            read_all(|list| llistxattr(&path, list), |name, value| lgetxattr(&path, name, value))
        {
            self.control.read_failure(Operation::Attributes, errno, parent, name.to_bytes(), 0);
        }
        Ok(())
    }

    /// Sends the purpose of the filesystem's blocks, if the filesystem reports it.
    pub(super) fn put_spaces(&mut self, root: &OwnedFd, id: u32) {
        let opened = openat(root, c".", super::DIRECTORY, Mode::empty());
        let spaces = opened.and_then(|root| match self.kind {
            FsKind::Btrfs => btrfs::spaces(root),
            FsKind::F2fs => {
                let (path, device) = block_device(self.device, OFlags::empty()).ok_or(Errno::NODEV)?;
                f2fs::spaces(&path, device)
            }
            FsKind::Nilfs2 => {
                let (_, device) = block_device(self.device, OFlags::empty()).ok_or(Errno::NODEV)?;
                nilfs2::read_checkpoints(&root)?;
                nilfs2::spaces(root, device)
            }
            FsKind::Ntfs => match &self.ntfs {
                Some(ntfs) => ntfs::spaces(ntfs.volume()),
                None => Ok(None),
            },
            FsKind::Ufs => Ok(directories::Device::open(self.device).and_then(|device| ufs::spaces(&device))),
            _ => getfsmap::spaces(root, self.device),
        });
        let spaces = spaces.map(|spaces| {
            // With a reverse mapping tree, the headers of the groups are told.
            let mut spaces = spaces?;
            if self.kind == FsKind::Xfs
                && let Some((_, device)) = block_device(self.device, OFlags::empty())
            {
                match spaces.contains_key(&BlockPurpose::Superblocks) {
                    true => xfs::add_last_block(device, &mut spaces),
                    false => xfs::add_spaces(device, &mut spaces),
                }
            }
            if self.kind.is_ext()
                && let Some(ext) = Ext::open(self.device)
            {
                ext.add_spaces(&mut spaces);
            }
            Some(spaces)
        });
        match spaces {
            Ok(spaces) => {
                for (purpose, parts) in spaces.unwrap_or_default() {
                    for parts in parts.chunks(EXTENTS_PER_RECORD) {
                        self.control.put(&Record::Space { purpose, parts: parts.to_vec() });
                    }
                }
            }
            Err(errno) => self.control.read_failure(Operation::Fsmap, errno, id, b"", 0),
        }
    }
}

/// Lists extended attributes and reads each. It is no error if the filesystem does not support
/// them.
fn read_all(
    list: impl Fn(&mut [u8]) -> Result<usize, Errno>,
    get: impl Fn(&CStr, &mut [u8]) -> Result<usize, Errno>,
) -> Result<(), Errno> {
    let mut names = vec![0; LARGEST];
    let length = match list(&mut names) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let mut value = vec![0; LARGEST];
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        match get(name, &mut value) {
            // A listed attribute need not be readable.
            Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
