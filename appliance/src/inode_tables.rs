//! Files by their inodes, as the tables of ext2, ext3, ext4 and XFS have them: read in large
//! pieces, instead of opening each file to ask the kernel about it. The kernel says the same of a
//! part of the files, which shows that the tables are read as it reads them (`walk::from_tables`).

use crate::directories::Device;
use crate::xfs;
use std::collections::{BTreeMap, VecDeque};
use virt_bmap_agent_protocol::FsKind;
use virt_bmap_on_disk::xfs::Volume;
use virt_bmap_on_disk::{Inode, InodePlace, Read, ext};
use virt_bmap_ranges::{DeviceOffset, Range};

/// Bytes that are read at a time.
const PIECE: u64 = 64 << 10;

/// Pieces that are kept.
const MOST_PIECES: usize = 256;

/// The tables of inodes of a mounted filesystem.
pub(crate) struct InodeTables {
    tables: Tables,
    /// Read past the cache: XFS has a cache of its own, and that of ext has whole pages, so that
    /// with smaller blocks what lies beside a table would not be read again where it counts.
    device: Device,
    /// Pieces of the tables, by their place on the device.
    pieces: BTreeMap<u64, Vec<u8>>,
    /// The same, the oldest first.
    order: VecDeque<u64>,
}

/// What kind of tables.
enum Tables {
    Ext(ext::Tables),
    /// `chunks` are those of the trees of inodes, joined where they touch.
    Xfs {
        volume: Volume,
        chunks: Vec<Range<DeviceOffset>>,
    },
}

impl InodeTables {
    /// Those of the filesystem on the device with this number; `None` if it has none, or features
    /// that are not known here.
    pub(crate) fn open(kind: &FsKind, device: u64) -> Option<Self> {
        let device = Device::open(device)?;
        let read: Read<'_> = &|at, length| device.read(at, length);
        let tables = match kind {
            kind if kind.is_ext() => Tables::Ext(ext::Tables::read(read)?),
            FsKind::Xfs => {
                let volume = Volume::of(&read(0, 512)?)?;
                let mut chunks: Vec<Range<DeviceOffset>> = Vec::new();
                for (start, length) in xfs::inode_chunks(read, &volume) {
                    let chunk = Range::at(DeviceOffset(start), length)?;
                    match chunks.last_mut() {
                        Some(last) if last.end >= chunk.start => last.end = last.end.max(chunk.end),
                        _ => chunks.push(chunk),
                    }
                }
                Tables::Xfs { volume, chunks }
            }
            _ => return None,
        };
        Some(Self { tables, device, pieces: BTreeMap::new(), order: VecDeque::new() })
    }

    /// What an inode says of a file or a symbolic link; `None` if the kernel has to be asked.
    pub(crate) fn inode(&mut self, number: u64) -> Option<Inode> {
        self.by(number, |tables, bytes| match tables {
            Tables::Ext(tables) => tables.inode(number, bytes),
            Tables::Xfs { volume, .. } => volume.inode(number, bytes),
        })
    }

    /// What an inode of XFS says of a directory, which its driver reads before it says where it
    /// lies.
    pub(crate) fn directory(&mut self, number: u64) -> Option<Inode> {
        self.by(number, |tables, bytes| match tables {
            Tables::Ext(_) => None,
            Tables::Xfs { volume, .. } => volume.directory(number, bytes),
        })
    }

    /// What `parse` makes of the bytes of an inode.
    fn by(&mut self, number: u64, parse: impl FnOnce(&Tables, &[u8]) -> Option<Inode>) -> Option<Inode> {
        let device = &self.device;
        let read: Read<'_> = &|at, length| device.read(at, length);
        let (InodePlace { at, table }, length) = self.tables.place(read, number)?;
        let start = table.start.0 + (at.0 - table.start.0) / PIECE * PIECE;
        if !self.pieces.contains_key(&start) {
            if self.order.len() == MOST_PIECES
                && let Some(oldest) = self.order.pop_front()
            {
                self.pieces.remove(&oldest);
            }
            let piece = read(start, PIECE.min(table.end.0 - start)).unwrap_or_default();
            self.pieces.insert(start, piece);
            self.order.push_back(start);
        }
        let within = usize::try_from(at.0 - start).ok()?;
        let bytes = self.pieces.get(&start)?.get(within..within + usize::try_from(length).ok()?)?;
        parse(&self.tables, bytes)
    }
}

impl Tables {
    /// Where an inode lies, and how many bytes it has.
    fn place(&mut self, read: Read<'_>, number: u64) -> Option<(InodePlace, u64)> {
        match self {
            Self::Ext(tables) => Some((tables.place(read, number)?, tables.inode_size())),
            Self::Xfs { volume, chunks } => {
                let at = DeviceOffset(volume.inode_place(number)?);
                let after = chunks.partition_point(|chunk| chunk.start <= at);
                let table = *chunks.get(after.checked_sub(1)?)?;
                let is_whole = at.0.checked_add(volume.inode)? <= table.end.0;
                is_whole.then_some((InodePlace { at, table }, volume.inode))
            }
        }
    }
}
