//! Partition tables, boot code, and unpartitioned space.

use super::{Found, SECTOR, dynamic};
use crate::appliance::{BlockDevice, DeviceKind, Inventory};
use crate::probe::device::{Device, Fields};
use crate::probe::metadata::Blocks;
use virt_bmap_ranges::{DeviceOffset, Range};

/// Most logical partitions; Linux has 256 minors at most.
const MOST_LOGICAL: usize = 256;

/// Most bytes that are read of the gap before the first partition, or of a partition for boot code.
const LARGEST_GAP: u64 = 8 << 20;

/// The name of partition tables.
const TABLE: &str = "[partition table]";

/// The GUID of a partition's type, as it is on the disk.
type Type = [u8; 16];

/// Type of the partition for GRUB's code on disks without such a gap:
/// 21686148-6449-6E6F-744E-656564454649.
const BIOS_BOOT: Type = *b"Hah!IdontNeedEFI";

/// The partitions of a device, as start and size.
pub(super) fn partitions(inventory: &Inventory, disk: &BlockDevice) -> Vec<(u64, u64)> {
    let all = inventory.partitions.iter().filter_map(|partition| match partition.kind {
        DeviceKind::Partition { of, start } if of == disk.number => Some((start, partition.size)),
        _ => None,
    });
    all.collect()
}

/// The parts of a partitioned device that are in no partition and have none of the names that were
/// found.
pub(super) fn unpartitioned(size: u64, partitions: &[(u64, u64)], found: &[Found]) -> Blocks {
    // The kernel shows an extended partition as a small one that begins with its table.
    let tables = found.iter().filter(|(name, ..)| *name == TABLE).flat_map(|(_, pieces, _)| pieces);
    let tables: Vec<u64> = tables.map(|(start, _)| *start).collect();
    let partitions = partitions.iter().filter(|(start, _)| !tables.contains(start));
    let used = partitions.chain(found.iter().flat_map(|(_, pieces, _)| pieces));
    let used: Blocks = used.filter_map(|&(start, length)| Range::at(DeviceOffset(start), length)).collect();
    Blocks::from_iter([Range::new(0, size)]).difference(&used)
}

/// The tables of a device with these partitions, and with sectors of this size.
pub(super) fn tables(device: &Device<'_>, partitions: &[(u64, u64)], sector_size: u64) -> Option<Vec<Found>> {
    /// Where boot code ends: the disk's signature and the four entries follow.
    const CODE: usize = 440;
    let sector = device.read(0, SECTOR)?;
    if sector.le16(510)? != 0xaa55 {
        return None;
    }
    let first = partitions.iter().map(|(start, _)| *start).min().unwrap_or(0);
    let has_code = sector[..CODE].iter().any(|byte| *byte != 0);
    let mut table = vec![if has_code { (CODE as u64, SECTOR - CODE as u64) } else { (0, SECTOR) }];
    let mut code = if has_code { vec![(0, CODE as u64)] } else { Vec::new() };
    let mut found = Vec::new();
    let mut end = SECTOR;
    if let Some(gpt) = Gpt::at(device, 1, sector_size) {
        end = gpt.pieces.iter().map(|(start, length)| start.saturating_add(*length)).max().unwrap_or(end);
        let [boot, database] = gpt.first_of(device, [BIOS_BOOT, dynamic::METADATA]);
        code.extend(boot.into_iter().flat_map(|(start, length)| written(device, start, length)));
        found.extend(database.and_then(|place| dynamic::in_partition(device, place)));
        table.extend(gpt.pieces);
        if let Some(copy) = Gpt::at(device, gpt.other, sector_size) {
            found.push(("[partition table copy]", copy.pieces, true));
        }
    } else {
        table.extend(logical_tables(device, &sector));
        found.extend(dynamic::on_disk(device).into_iter().flatten());
    }
    found.push((TABLE, table, true));
    let named: Vec<(u64, u64)> = found.iter().flat_map(|(_, pieces, _)| pieces).copied().collect();
    let gap = written(device, end, first.saturating_sub(end)).into_iter();
    code.extend(gap.filter(|(at, _)| {
        !named.iter().any(|(start, length)| (*start..start.saturating_add(*length)).contains(at))
    }));
    // Nothing confirms that this is boot code.
    found.push(("[boot code]", code, false));
    Some(found)
}

/// The sectors in this range that are not all zeroes.
fn written(device: &Device<'_>, start: u64, length: u64) -> Vec<(u64, u64)> {
    let bytes = device.read(start, length.min(LARGEST_GAP)).unwrap_or_default();
    let sectors = (start..).step_by(SECTOR as usize).zip(bytes.chunks(SECTOR as usize));
    let written = sectors.filter(|(_, sector)| sector.iter().any(|byte| *byte != 0));
    written.map(|(at, sector)| (at, sector.len() as u64)).collect()
}

/// One of the two tables of a disk (UEFI specification, "GUID Partition Table").
struct Gpt {
    /// The header, and the array of entries.
    pieces: Vec<(u64, u64)>,
    /// The logical block of the other header.
    other: u64,
    entry: u64,
    sector: u64,
}

impl Gpt {
    /// The table whose header is this logical block.
    fn at(device: &Device<'_>, block: u64, sector: u64) -> Option<Self> {
        let start = block.checked_mul(sector)?;
        let header = device.read(start, sector)?;
        if header.get(..8)? != b"EFI PART" || header.le64(24)? != block {
            return None;
        }
        let entry = u64::from(header.le32(84)?);
        let length = u64::from(header.le32(80)?).checked_mul(entry)?;
        let entries = (header.le64(72)?.checked_mul(sector)?, length.next_multiple_of(sector));
        // Tables of a megabyte have thousands of entries.
        let is_valid = length <= 1 << 20 && entry >= 128;
        let other = header.le64(32)?;
        is_valid.then(|| Self { pieces: vec![(start, sector), entries], other, entry, sector })
    }

    /// Start and length of the first partition of each of these types. Only the first: a hostile
    /// disk may claim thousands.
    fn first_of<const N: usize>(&self, device: &Device<'_>, types: [Type; N]) -> [Option<(u64, u64)>; N] {
        let (start, length) = self.pieces[1];
        let entries = device.read(start, length).unwrap_or_default();
        let place = |entry: &[u8]| {
            let (first, last) = (entry.le64(32)?, entry.le64(40)?);
            let sectors = last.checked_sub(first)?.checked_add(1)?;
            Some((first.checked_mul(self.sector)?, sectors.checked_mul(self.sector)?))
        };
        types.map(|wanted| {
            let mut entries = entries.chunks_exact(self.entry as usize);
            entries.find(|entry| entry.starts_with(&wanted)).and_then(place)
        })
    }
}

/// The sectors that chain the logical partitions inside an extended one.
fn logical_tables(device: &Device<'_>, sector: &[u8]) -> Vec<(u64, u64)> {
    let extended = |sector: &[u8]| {
        (0..4).map(|n| 446 + 16 * n).find_map(|at| {
            let kind = sector.u8_at(at + 4)?;
            matches!(kind, 0x05 | 0x0f | 0x85).then(|| sector.le32(at + 8).map(u64::from)).flatten()
        })
    };
    let mut tables = Vec::new();
    let Some(base) = extended(sector) else { return tables };
    let mut next = Some(base);
    while let Some(at) = next.filter(|_| tables.len() < MOST_LOGICAL) {
        let Some(table) = device.read(at * SECTOR, SECTOR).filter(|t| t.le16(510) == Some(0xaa55)) else {
            break;
        };
        tables.push((at * SECTOR, SECTOR));
        next = extended(&table).map(|after| base + after);
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_between_partitions_is_free() {
        let found = [(TABLE, vec![(0, 512), (7000, 512)], true), ("[boot code]", vec![(1024, 512)], false)];
        let free = unpartitioned(10_000, &[(2048, 2048), (6000, 1000), (7000, 1024), (u64::MAX, 5)], &found);
        let ranges: Vec<_> = free.iter().map(|range| (range.start.0, range.end.0)).collect();
        assert_eq!(ranges, [(512, 1024), (1536, 2048), (4096, 6000), (7512, 10_000)]);
    }
}
