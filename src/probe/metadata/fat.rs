//! FAT: the kernel reports nothing of its metadata, but its boot sector says where the tables lie,
//! and the tables what is free ("Microsoft FAT Specification", also ECMA-107).

use super::{Blocks, Facts, units};
use crate::probe::device::{Device, Fields};
use virt_bmap_ranges::{DeviceOffset, Range};

/// Largest table that is read: enough for an eighth of the possible 2²⁸ clusters.
const LARGEST: u64 = 128 << 20;

pub(super) fn describe(facts: &mut Facts, device: &mut Device<'_>, read: &Blocks) {
    let Some(layout) = device.read(0, 512).and_then(|sector| Layout::of(&sector)) else { return };
    if layout.end > device.size || layout.table > LARGEST {
        return;
    }
    let tables: Vec<_> = (0..layout.tables)
        .map(|n| Range::new(layout.reserved + n * layout.table, layout.reserved + (n + 1) * layout.table))
        .collect();
    let Some(table) =
        tables.first().and_then(|first: &Range<DeviceOffset>| device.read(first.start.0, first.len()))
    else {
        return;
    };
    let is_read = |range: Range<DeviceOffset>| read.overlap(range).next().is_some();
    let reserved = Range::new(0, layout.reserved);
    facts.name("[reserved sectors]", [reserved], is_read(reserved));
    for (number, range) in tables.iter().enumerate() {
        match number {
            0 => facts.name("[FAT 1]", [*range], is_read(*range)),
            // The kernel reads only the first. The others are copies of it.
            _ => {
                let verified = device.read(range.start.0, range.len()).is_some_and(|copy| copy == table);
                facts.name(if number == 1 { "[FAT 2]" } else { "[further FATs]" }, [*range], verified);
            }
        }
    }
    let root = Range::new(layout.reserved + layout.tables * layout.table, layout.data);
    facts.name("[root directory]", [root], is_read(root));
    let of_entry = |wanted: fn(u32, u32) -> bool| {
        let is_wanted = |n: &u64| layout.entry(&table, n + 2).is_some_and(|e| wanted(e, layout.bad()));
        units((0..layout.clusters).filter(is_wanted), layout.data, layout.cluster)
    };
    facts.free = Some(of_entry(|entry, _| entry == 0));
    facts.name("[bad clusters]", of_entry(|entry, bad| entry == bad).iter(), true);
    facts.whole.insert(Range::new(0, layout.end));
}

/// Where the parts of the filesystem lie, in bytes.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    /// Bits of an entry.
    bits: u32,
    reserved: u64,
    tables: u64,
    table: u64,
    data: u64,
    cluster: u64,
    clusters: u64,
    end: u64,
}

impl Layout {
    fn of(sector: &[u8]) -> Option<Self> {
        let bytes = u64::from(sector.le16(11)?);
        let word = |at| Some(u64::from(sector.le16(at)?));
        let long = |at| Some(u64::from(sector.le32(at)?));
        let or = |short: u64, long: u64| if short > 0 { short } else { long };
        let is_32 = word(22)? == 0;
        let (sectors, table) = (or(word(19)?, long(32)?), or(word(22)?, long(36)?) * bytes);
        let (reserved, tables) = (word(14)? * bytes, u64::from(sector.u8_at(16)?));
        let data = reserved + tables * table + (word(17)? * 32).next_multiple_of(bytes.max(1));
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
        // The first two entries belong to no cluster.
        if (clusters + 2) * u64::from(bits) > table * 8 {
            return None;
        }
        Some(Self { bits, reserved, tables, table, data, cluster, clusters, end: data + clusters * cluster })
    }

    fn entry(&self, table: &[u8], number: u64) -> Option<u32> {
        let number = usize::try_from(number).ok()?;
        match self.bits {
            12 => {
                let pair = u32::from(table.le16(number + number / 2)?);
                Some(if number % 2 == 0 { pair & 0xfff } else { pair >> 4 })
            }
            16 => table.le16(2 * number).map(u32::from),
            // The upper four bits do not belong to the entry.
            _ => table.le32(4 * number).map(|entry| entry & 0x0fff_ffff),
        }
    }

    fn bad(&self) -> u32 {
        match self.bits {
            12 => 0xff7,
            16 => 0xfff7,
            _ => 0x0fff_fff7,
        }
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

    #[test]
    fn a_floppy_is_understood() {
        // 1.44 MB: 1 reserved sector, 2 tables of 9, 224 entries in the root, clusters of a sector.
        let floppy = sector(&[(11, &[0, 2, 1, 1, 0, 2, 224, 0, 0x40, 0x0b, 0xf0, 9, 0])]);
        let layout = Layout::of(&floppy).unwrap();
        assert_eq!((layout.bits, layout.clusters, layout.data, layout.end), (12, 2847, 33 * 512, 2880 * 512));
        let table = [0xf0, 0xff, 0xff, 0x03, 0x40, 0x00, 0xf7, 0x0f, 0x00];
        let entries: Vec<_> = (2..6).filter_map(|n| layout.entry(&table, n)).collect();
        assert_eq!(entries, [3, 4, 0xff7, 0]);
        assert_eq!(layout.entry(&table, 6), None);
    }

    #[test]
    fn invalid_boot_sectors_are_refused() {
        assert_eq!(Layout::of(&[0; 512]), None);
        assert_eq!(Layout::of(&[0xff; 512]), None);
        let no_room = sector(&[(11, &[0, 2, 1, 1, 0, 2, 224, 0, 0x40, 0x0b, 0xf0, 1, 0])]);
        assert_eq!(Layout::of(&no_room), None);
    }
}
