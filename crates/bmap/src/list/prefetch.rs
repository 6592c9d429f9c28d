//! Ranges to read into a cache before a guest starts cold: metadata, in the order in which a
//! filesystem needs it.

use super::Select;
use crate::hardlinks::disk_ranges;
use crate::{Kind, Map, Object};
use virt_bmap_ranges::{DiskNumber, DiskRange, IndexedRanges};

/// Metadata that a guest does not read to find its files: logs that it replays at most, and room.
const NOT_READ: [&[u8]; 9] = [
    b"[allocated]",
    b"[bad blocks]",
    b"[bad clusters]",
    b"[cluster slack]",
    b"[fsck work area]",
    b"[journal]",
    b"[padding]",
    b"[reserved]",
    b"[swap]",
];

/// Where the inodes are, by the names that objects of metadata have: see `docs/formats.md`.
const INODES: [&[u8]; 8] = [
    b"/$MFT",
    b"[aggregate inode table]",
    b"[catalog file]",
    b"[inode map]",
    b"[inode trees]",
    b"[inodes]",
    b"[node address table]",
    b"[nodes]",
];

/// When an object is wanted; `None`: not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Tables of inodes.
    Inodes,
    /// Directories.
    Directories,
    /// Superblocks, maps of blocks, trees.
    Others,
}

impl Rank {
    const ALL: [Self; 3] = [Self::Inodes, Self::Directories, Self::Others];

    fn of(object: Object<'_>) -> Option<Self> {
        let name = object.name();
        match name.kind {
            Kind::Directory => Some(Self::Directories),
            Kind::Metadata if NOT_READ.contains(&name.path) => None,
            Kind::Metadata if INODES.contains(&name.path) => Some(Self::Inodes),
            Kind::Metadata => Some(Self::Others),
            _ => None,
        }
    }
}

/// The metadata of the selected device: inode tables first, then directories, then the rest; each
/// ascending, and no byte twice.
pub fn prefetch(map: &Map, select: &Select) -> Vec<(DiskNumber, DiskRange)> {
    let wanted = |object: &Object<'_>| select.is_on_device(*object);
    let mut pieces: Vec<(DiskNumber, Rank, DiskRange)> = Vec::new();
    for object in map.objects().filter(wanted) {
        if let Some(rank) = Rank::of(object) {
            pieces.extend(disk_ranges(object).map(|(disk, range)| (disk, rank, range)));
        }
    }
    pieces.sort_unstable();
    let mut found = Vec::new();
    for of_disk in pieces.chunk_by(|a, b| a.0 == b.0) {
        let disk = of_disk[0].0;
        let mut seen = IndexedRanges::default();
        for rank in Rank::ALL {
            let ranges = of_disk.iter().filter(|piece| piece.1 == rank).map(|piece| piece.2);
            let new = ranges.collect::<IndexedRanges>().without(seen.iter());
            found.extend(new.iter().map(|range| (disk, range)));
            seen = seen.iter().chain(new.iter()).collect();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text;

    #[test]
    fn inodes_come_first_and_no_byte_comes_twice() {
        let map = "1 0 1000 m /dev/sda [superblocks]\n1 1000 2000 d /dev/sda /\n1 2000 3000 f /dev/sda /a\n\
                   1 2000 3000 m /dev/sda [journal]\n1 3000 4000 d /dev/sda /d\n1 3000 4000 m /dev/sda [inodes]\n\
                   1 4000 5000 m /dev/sda [inodes]\n1 5000 6000 m /dev/sdb [inodes]\n2 0 1000 d /dev/sdc /\n";
        let map = text::read(map.as_bytes()).unwrap();
        let select = |device: Option<&str>| Select {
            kinds: Vec::new(),
            device: device.map(|device| device.as_bytes().to_vec()),
            globs: Vec::new(),
        };
        let range = |disk, start, end| (disk, DiskRange::new(start, end));
        assert_eq!(
            prefetch(&map, &select(None)),
            [range(1, 0x3000, 0x6000), range(1, 0x1000, 0x2000), range(1, 0, 0x1000), range(2, 0, 0x1000)]
        );
        assert_eq!(prefetch(&map, &select(Some("/dev/sdb"))), [range(1, 0x5000, 0x6000)]);
    }
}
