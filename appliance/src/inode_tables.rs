//! Files by their inodes, as the tables of ext2, ext3, ext4 and XFS have them: read in large pieces,
//! instead of opening each file to ask the kernel about it. The kernel says the same of a part of
//! the files, which shows that the tables are read as it reads them (`walk::proof`).

use crate::directories::Device;
use crate::{ext, xfs};
use rustix::fd::AsFd as _;
use rustix::fs::{Advice, fadvise};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::num::NonZeroU64;
use virt_bmap_agent_protocol::FsKind;
use virt_bmap_on_disk::xfs::Volume;
use virt_bmap_on_disk::{Inode, InodePlace, Read, ext as on_disk};
use virt_bmap_ranges::{DeviceOffset, Range};

/// Bytes that are read at a time.
const PIECE: u64 = 64 << 10;

/// Pieces that are kept.
const MOST_PIECES: usize = 256;

/// The tables of inodes of a mounted filesystem.
pub(crate) struct InodeTables {
    source: Source,
    /// Pieces of the tables, by their place on the device.
    pieces: HashMap<u64, Vec<u8>>,
    /// The same, the oldest first.
    order: VecDeque<u64>,
}

/// The tables, and the device that they lie on.
enum Source {
    /// Read through the kernel's cache, which the filesystem uses, too.
    Ext { tables: on_disk::Tables, device: File },
    /// Read past the cache, since XFS has one of its own. `chunks` are those of the trees of inodes,
    /// joined where they touch.
    Xfs { volume: Volume, device: Device, chunks: Vec<Range<DeviceOffset>> },
}

impl InodeTables {
    /// Those of the filesystem on the device with this number; `None` if it has none, or features
    /// that are not known here.
    pub(crate) fn open(kind: &FsKind, device: u64) -> Option<Self> {
        let source = match kind {
            kind if kind.is_ext() => {
                let device = ext::device(device)?;
                Source::Ext {
                    tables: on_disk::Tables::read(&|at, length| ext::read(&device, at, length))?,
                    device,
                }
            }
            FsKind::Xfs => {
                let device = Device::open(device)?;
                let read: Read<'_> = &|at, length| device.read(at, length);
                let volume = Volume::of(&read(0, 512)?)?;
                let mut chunks: Vec<Range<DeviceOffset>> = Vec::new();
                for (start, length) in xfs::inode_chunks(read, &volume) {
                    let chunk = Range::at(DeviceOffset(start), length)?;
                    match chunks.last_mut() {
                        Some(last) if last.end >= chunk.start => last.end = last.end.max(chunk.end),
                        _ => chunks.push(chunk),
                    }
                }
                Source::Xfs { volume, device, chunks }
            }
            _ => return None,
        };
        Some(Self { source, pieces: HashMap::new(), order: VecDeque::new() })
    }

    /// What an inode says of a file or a symbolic link; `None` if the kernel has to be asked.
    pub(crate) fn inode(&mut self, number: u64) -> Option<Inode> {
        self.by(number, |source, bytes| match source {
            Source::Ext { tables, .. } => tables.inode(number, bytes),
            Source::Xfs { volume, .. } => volume.inode(number, bytes),
        })
    }

    /// What an inode of XFS says of a directory, which its driver reads before it says where it lies.
    pub(crate) fn directory(&mut self, number: u64) -> Option<Inode> {
        self.by(number, |source, bytes| match source {
            Source::Ext { .. } => None,
            Source::Xfs { volume, .. } => volume.directory(number, bytes),
        })
    }

    /// What `parse` makes of the bytes of an inode.
    fn by(&mut self, number: u64, parse: impl FnOnce(&Source, &[u8]) -> Option<Inode>) -> Option<Inode> {
        let (InodePlace { at, table }, length) = self.source.place(number)?;
        let start = table.start.0 + (at.0 - table.start.0) / PIECE * PIECE;
        if !self.pieces.contains_key(&start) {
            if self.order.len() == MOST_PIECES
                && let Some(oldest) = self.order.pop_front()
            {
                self.pieces.remove(&oldest);
            }
            let piece = self.source.read(start, PIECE.min(table.end.0 - start)).unwrap_or_default();
            self.pieces.insert(start, piece);
            self.order.push_back(start);
        }
        let within = usize::try_from(at.0 - start).ok()?;
        let bytes = self.pieces.get(&start)?.get(within..within + usize::try_from(length).ok()?)?;
        parse(&self.source, bytes)
    }
}

impl Source {
    /// Where an inode lies, and how many bytes it has.
    fn place(&mut self, number: u64) -> Option<(InodePlace, u64)> {
        match self {
            Self::Ext { tables, device } => {
                let place = tables.place(&|at, length| ext::read(device, at, length), number)?;
                Some((place, tables.inode_size()))
            }
            Self::Xfs { volume, chunks, .. } => {
                let at = DeviceOffset(volume.inode_place(number)?);
                let after = chunks.partition_point(|chunk| chunk.start <= at);
                let table = *chunks.get(after.checked_sub(1)?)?;
                let is_whole = at.0.checked_add(volume.inode)? <= table.end.0;
                is_whole.then_some((InodePlace { at, table }, volume.inode))
            }
        }
    }

    fn read(&self, at: u64, length: u64) -> Option<Vec<u8>> {
        match self {
            Self::Ext { device, .. } => {
                // Readahead is off: without this, the kernel would read page by page.
                fadvise(device.as_fd(), at, NonZeroU64::new(length), Advice::WillNeed).ok();
                ext::read(device, at, length)
            }
            Self::Xfs { device, .. } => device.read(at, length),
        }
    }
}
