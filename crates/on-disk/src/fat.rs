//! FAT with 12, 16 and 32 bits ("Microsoft FAT Specification", also ECMA-107).

use crate::Fields;

/// Bytes of a directory entry.
pub const ENTRY: u64 = 32;

/// Number of the first cluster: the first two entries of a table belong to none.
pub const FIRST: u64 = 2;

/// Where the parts of the filesystem lie, in bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bits of an entry of a table.
    pub bits: u32,
    /// Bytes in front of the first table.
    pub reserved: u64,
    /// Number of tables.
    pub tables: u64,
    /// Bytes of one table.
    pub table: u64,
    /// Where the first cluster lies.
    pub data: u64,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// Number of clusters.
    pub clusters: u64,
    /// The end of the last cluster.
    pub end: u64,
    /// The root directory's first cluster. With 12 and 16 bits there is none: the directory lies
    /// between the tables and the first cluster.
    pub root: Option<u64>,
}

/// What a table says of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The chain goes on with this cluster.
    Cluster(u64),
    /// It is the last one of its chain.
    End,
    /// It is in no chain.
    Nothing,
}

impl Layout {
    /// The layout that a boot sector describes.
    pub fn of(sector: &[u8]) -> Option<Self> {
        let bytes = u64::from(sector.le16(11)?);
        let word = |at| Some(u64::from(sector.le16(at)?));
        let long = |at| Some(u64::from(sector.le32(at)?));
        let or = |short: u64, long: u64| if short > 0 { short } else { long };
        let is_32 = word(22)? == 0;
        let (sectors, table) = (or(word(19)?, long(32)?), or(word(22)?, long(36)?) * bytes);
        let (reserved, tables) = (word(14)? * bytes, u64::from(sector.u8_at(16)?));
        let data = reserved + tables * table + (word(17)? * ENTRY).next_multiple_of(bytes.max(1));
        let cluster = u64::from(sector.u8_at(13)?) * bytes;
        if !bytes.is_power_of_two() || !cluster.is_power_of_two() || bytes < 512 || reserved == 0 {
            return None;
        }
        let clusters = (sectors * bytes).checked_sub(data)? / cluster;
        let bits = match clusters {
            _ if is_32 => 32,
            ..4085 => 12,
            _ => 16,
        };
        if (clusters + FIRST) * u64::from(bits) > table * 8 {
            return None;
        }
        let root = if is_32 { Some(long(44)?) } else { None };
        let end = data + clusters * cluster;
        Some(Self { bits, reserved, tables, table, data, cluster, clusters, end, root })
    }

    /// Where the tables end. With 12 and 16 bits the root directory begins here.
    pub fn tables_end(&self) -> u64 {
        self.reserved + self.tables * self.table
    }

    /// Where a cluster lies; `None` if there is no such cluster.
    pub fn place(&self, number: u64) -> Option<u64> {
        let number = number.checked_sub(FIRST).filter(|number| *number < self.clusters)?;
        Some(self.data + number * self.cluster)
    }

    /// Where the entry of a cluster begins in a table.
    pub fn offset(&self, number: u64) -> u64 {
        number * u64::from(self.bits) / 8
    }

    /// The entry of a cluster, from the bytes of a table that begin [there](Self::offset).
    pub fn entry(&self, bytes: &[u8], number: u64) -> Option<u32> {
        match self.bits {
            12 => {
                let pair = u32::from(bytes.le16(0)?);
                Some(if number.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 })
            }
            16 => bytes.le16(0).map(u32::from),
            // The upper four bits do not belong to the entry.
            _ => bytes.le32(0).map(|entry| entry & 0x0fff_ffff),
        }
    }

    /// The entry of a bad cluster.
    pub fn bad(&self) -> u32 {
        match self.bits {
            12 => 0xff7,
            16 => 0xfff7,
            _ => 0x0fff_fff7,
        }
    }

    /// What an entry means. The kernel takes the entry of a bad cluster for the end of a chain.
    pub fn next(&self, entry: u32) -> Next {
        match entry {
            0 | 1 => Next::Nothing,
            entry if entry >= self.bad() => Next::End,
            entry => Next::Cluster(entry.into()),
        }
    }

    /// The first cluster of the file or directory with this directory entry.
    pub fn first_cluster(&self, entry: &[u8]) -> Option<u64> {
        let high = if self.bits == 32 { u64::from(entry.le16(20)?) << 16 } else { 0 };
        Some(high | u64::from(entry.le16(26)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(set: &[(usize, &[u8])]) -> Vec<u8> {
        let mut sector = vec![0; 512];
        for (at, bytes) in set {
            sector[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        sector
    }

    /// 1.44 MB: 1 reserved sector, 2 tables of 9, 224 entries in the root, clusters of a sector.
    fn floppy() -> Layout {
        Layout::of(&sector(&[(11, &[0, 2, 1, 1, 0, 2, 224, 0, 0x40, 0x0b, 0xf0, 9, 0])])).unwrap()
    }

    #[test]
    fn a_floppy_is_understood() {
        let layout = floppy();
        assert_eq!((layout.bits, layout.clusters, layout.data, layout.end), (12, 2847, 33 * 512, 2880 * 512));
        assert_eq!((layout.tables_end(), layout.root), (19 * 512, None));
        let table = [0xf0, 0xff, 0xff, 0x03, 0x40, 0x00, 0xf7, 0x0f, 0x00];
        let entry = |n: u64| layout.entry(table.get(layout.offset(n) as usize..)?, n);
        assert_eq!((2..6).filter_map(entry).collect::<Vec<_>>(), [3, 4, 0xff7, 0]);
        assert_eq!(entry(6), None);
        assert_eq!(
            [3, 0xff7, 0xfff, 0].map(|entry| layout.next(entry)),
            [Next::Cluster(3), Next::End, Next::End, Next::Nothing]
        );
        assert_eq!((layout.place(2), layout.place(1), layout.place(2849)), (Some(33 * 512), None, None));
    }

    #[test]
    fn only_wide_tables_have_the_upper_half_of_a_cluster() {
        let mut entry = [0; 32];
        (entry[20], entry[26]) = (1, 7);
        let narrow = floppy();
        assert_eq!(narrow.first_cluster(&entry), Some(7));
        assert_eq!(Layout { bits: 32, ..narrow }.first_cluster(&entry), Some(65536 + 7));
        assert_eq!(floppy().first_cluster(&entry[..20]), None);
    }

    #[test]
    fn invalid_boot_sectors_are_refused() {
        assert_eq!(Layout::of(&[0; 512]), None);
        assert_eq!(Layout::of(&[0xff; 512]), None);
        let no_room = sector(&[(11, &[0, 2, 1, 1, 0, 2, 224, 0, 0x40, 0x0b, 0xf0, 1, 0])]);
        assert_eq!(Layout::of(&no_room), None);
    }
}
