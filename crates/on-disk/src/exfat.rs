//! exFAT ("exFAT file system specification", Microsoft).

use crate::Fields;
use virt_bmap_ranges::{DeviceOffset, Range};

/// Bytes of a directory entry.
pub const ENTRY: usize = 32;

/// Number of the first cluster.
pub const FIRST: u64 = 2;

/// Types of directory entries (section 7 of the specification).
const ALLOCATION_BITMAP: u8 = 0x81;
const UP_CASE_TABLE: u8 = 0x82;
const FILE: u8 = 0x85;
const STREAM: u8 = 0xc0;
const NAME: u8 = 0xc1;

/// `Directory` of the file attributes (7.4.4).
const DIRECTORY: u16 = 1 << 4;

/// `NoFatChain` of the secondary flags (6.3.4.2): the clusters lie side by side.
const NO_CHAIN: u8 = 1 << 1;

/// Units of UTF-16 in one name entry.
const UNITS: usize = 15;

/// Where the parts of the filesystem lie, in bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    /// Where the first table begins.
    pub table_start: u64,
    /// Where the last table ends.
    pub table_end: u64,
    /// Where the first cluster lies.
    pub heap: u64,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// Number of clusters.
    pub clusters: u64,
    /// Number of the root directory's first cluster.
    pub root: u64,
}

/// A directory, according to the entries in its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Its name; where the units are no UTF-16, the replacement character.
    pub name: String,
    /// Its clusters.
    pub clusters: Clusters,
}

/// The clusters of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clusters {
    /// The chain that begins with this cluster.
    Chain(u64),
    /// This number of clusters from this one.
    Run(u64, u64),
}

impl Layout {
    /// The layout that a boot sector describes.
    pub fn of(sector: &[u8]) -> Option<Self> {
        if sector.get(3..11)? != b"EXFAT   " {
            return None;
        }
        let (sector_shift, cluster_shift) = (sector.u8_at(108)?, sector.u8_at(109)?);
        // Sectors have 512 to 4096 bytes, clusters 32 MiB at most.
        if !(9..=12).contains(&sector_shift) || sector_shift + cluster_shift.min(25) > 25 {
            return None;
        }
        let sectors = |at| Some(u64::from(sector.le32(at)?) << sector_shift);
        let (start, length) = (sectors(80)?, sectors(84)?);
        let (end, heap) = (start + length * u64::from(sector.u8_at(110)?), sectors(88)?);
        if start == 0 || end > heap {
            return None;
        }
        Some(Self {
            table_start: start,
            table_end: end,
            heap,
            cluster: 1 << (sector_shift + cluster_shift),
            clusters: sector.le32(92)?.into(),
            root: sector.le32(96)?.into(),
        })
    }

    /// The end of the last cluster.
    pub fn end(&self) -> u64 {
        self.heap + self.clusters * self.cluster
    }

    /// Where a cluster lies; `None` if there is no such cluster.
    pub fn place(&self, number: u64) -> Option<u64> {
        let number = number.checked_sub(FIRST).filter(|number| *number < self.clusters)?;
        Some(self.heap + number * self.cluster)
    }

    /// The clusters of the first bitmap of free clusters, of at most this length. A second bitmap
    /// exists only with a second table.
    pub fn allocation_bitmap(&self, root: &[u8], most: u64) -> Option<Range<DeviceOffset>> {
        self.described(root, ALLOCATION_BITMAP, most)
    }

    /// The clusters of the up-case table, of at most this length.
    pub fn up_case_table(&self, root: &[u8], most: u64) -> Option<Range<DeviceOffset>> {
        self.described(root, UP_CASE_TABLE, most)
    }

    /// The contiguous clusters that the root directory's entry of this kind describes.
    fn described(&self, root: &[u8], kind: u8, most: u64) -> Option<Range<DeviceOffset>> {
        let entry =
            root.chunks_exact(ENTRY).take_while(|entry| entry[0] != 0).find(|entry| entry[0] == kind)?;
        let (first, length) = (self.place(entry.le32(20)?.into())?, entry.le64(24)?);
        let length = length.checked_next_multiple_of(self.cluster).filter(|length| *length <= most)?;
        Range::at(DeviceOffset(first), length).filter(|range| range.end.0 <= self.end())
    }

    /// The directories that the entries of a directory name.
    pub fn directories<'a>(&'a self, entries: &'a [u8]) -> impl Iterator<Item = Directory> + 'a {
        let mut rest = entries.chunks_exact(ENTRY).take_while(|entry| entry[0] != 0);
        std::iter::from_fn(move || {
            loop {
                let file = rest.by_ref().find(|entry| entry[0] == FILE)?;
                let Some(stream) = rest.next().filter(|entry| entry[0] == STREAM) else { continue };
                let length = usize::from(stream.u8_at(3)?);
                let mut units = Vec::new();
                for _ in 0..length.div_ceil(UNITS) {
                    let Some(name) = rest.next().filter(|entry| entry[0] == NAME) else { break };
                    units.extend((2..ENTRY).step_by(2).filter_map(|at| name.le16(at)));
                }
                units.truncate(length);
                if file.le16(4)? & DIRECTORY != 0 {
                    let clusters = self.clusters_of(stream)?;
                    return Some(Directory { name: String::from_utf16_lossy(&units), clusters });
                }
            }
        })
    }

    /// The clusters of a stream extension entry.
    fn clusters_of(&self, stream: &[u8]) -> Option<Clusters> {
        let (first, length) = (u64::from(stream.le32(20)?), stream.le64(24)?);
        let is_run = stream.u8_at(1)? & NO_CHAIN != 0;
        Some(if is_run {
            Clusters::Run(first, length.div_ceil(self.cluster))
        } else {
            Clusters::Chain(first)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGEST: u64 = 128 << 20;

    fn boot_sector() -> Vec<u8> {
        let mut sector = vec![0; 512];
        sector[3..11].copy_from_slice(b"EXFAT   ");
        for (at, value) in [(80, 24u32), (84, 8), (88, 32), (92, 100), (96, 5)] {
            sector[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        sector[108..111].copy_from_slice(&[9, 3, 1]);
        sector
    }

    #[test]
    fn the_bitmap_is_found() {
        let layout = Layout::of(&boot_sector()).unwrap();
        assert_eq!((layout.table_start, layout.table_end, layout.heap), (24 * 512, 32 * 512, 32 * 512));
        assert_eq!((layout.cluster, layout.clusters, layout.place(2)), (4096, 100, Some(32 * 512)));
        assert_eq!((layout.place(1), layout.place(102)), (None, None));
        let mut root = vec![0; 4096];
        root[0] = 0x83;
        root[32] = 0x81;
        root[52] = 2;
        root[56] = 13;
        assert_eq!(layout.allocation_bitmap(&root, LARGEST), Range::at(DeviceOffset(32 * 512), 4096));
        assert_eq!(layout.up_case_table(&root, LARGEST), None);
        root[56..64].fill(0xff);
        assert_eq!(layout.allocation_bitmap(&root, LARGEST), None);
    }

    #[test]
    fn invalid_boot_sectors_are_refused() {
        for (at, value) in [(3, 0), (80, 0), (84, 9), (108, 8), (108, 200), (109, 17), (109, 255)] {
            let mut sector = boot_sector();
            sector[at] = value;
            assert_eq!(Layout::of(&sector), None, "{at}");
        }
    }

    fn entry(set: &[(usize, u8)]) -> [u8; ENTRY] {
        let mut entry = [0; ENTRY];
        set.iter().for_each(|(at, byte)| entry[*at] = *byte);
        entry
    }

    #[test]
    fn directories_are_told_from_files_and_from_what_was_deleted() {
        let layout = Layout::of(&boot_sector()).unwrap();
        let name = entry(&[(0, NAME), (2, b'd'), (4, b'1')]);
        let stream = |flags, first| entry(&[(0, STREAM), (1, flags), (3, 2), (20, first), (25, 0x20)]);
        let (directory, file) = (entry(&[(0, FILE), (4, 0x10)]), entry(&[(0, FILE)]));
        let deleted = entry(&[(0, FILE & 0x7f), (4, 0x10)]);
        let entries = [
            [file, stream(1, 4), name],
            [deleted, stream(1, 5), name],
            [directory, stream(3, 6), name],
            [directory, stream(1, 7), name],
            [[0; ENTRY], directory, stream(1, 8)],
        ];
        let found: Vec<Directory> = layout.directories(&entries.concat().concat()).collect();
        let named = |clusters| Directory { name: "d1".to_owned(), clusters };
        assert_eq!(found, [named(Clusters::Run(6, 2)), named(Clusters::Chain(7))]);
        // A set of entries that the end of the directory cuts.
        assert_eq!(layout.directories(&directory).count(), 0);
    }
}
