//! exFAT: the kernel reports nothing of its metadata, but its boot sector says where its parts lie,
//! its root directory where the bitmap of clusters lies, and the bitmap what is free ("exFAT
//! filesystem specification", Microsoft).

use super::{Blocks, Facts, bit, units};
use crate::probe::device::{Device, Fields};
use virt_bmap_ranges::{DeviceOffset, Range};

/// Largest bitmap that is read: of 2³⁰ clusters.
const LARGEST: u64 = 128 << 20;

/// Bytes of a directory entry.
const ENTRY: usize = 32;

/// Number of the first cluster.
const FIRST: u64 = 2;

pub(super) fn describe(facts: &mut Facts, device: &mut Device<'_>, read: &Blocks) {
    let Some(layout) = device.read(0, 512).and_then(|sector| Layout::of(&sector)) else { return };
    let _ = describe_by(facts, device, &layout, read);
}

fn describe_by(facts: &mut Facts, device: &Device<'_>, layout: &Layout, read: &Blocks) -> Option<()> {
    if layout.end() > device.size {
        return None;
    }
    let is_read = |range: Range<DeviceOffset>| read.overlap(range).next().is_some();
    let root = device.read(layout.place(layout.root)?, layout.cluster)?;
    // The entries of the first bitmap and of the up-case table. A second bitmap exists only with a
    // second FAT.
    let bitmap = layout.entry(&root, 0x81, LARGEST)?;
    let bits = device.read(bitmap.start.0, layout.clusters.div_ceil(8))?;
    let free = (0..layout.clusters).filter(|number| bit(&bits, *number) == Some(false));
    facts.free = Some(units(free, layout.heap, layout.cluster));
    // The gap between the tables and the first cluster is empty; it aligns the clusters.
    let (reserved, gap) = (Range::new(0, layout.table_start), Range::new(layout.table_end, layout.heap));
    let tables = Range::new(layout.table_start, layout.table_end);
    let letters = layout.entry(&root, 0x82, LARGEST);
    facts.name("[reserved sectors]", [reserved, gap], is_read(reserved));
    for (name, range) in
        [("[FAT]", Some(tables)), ("[allocation bitmap]", Some(bitmap)), ("[up-case table]", letters)]
    {
        range.into_iter().for_each(|range| facts.name(name, [range], is_read(range)));
    }
    facts.whole.insert(Range::new(0, layout.end()));
    Some(())
}

/// Where the parts of the filesystem lie, in bytes.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    table_start: u64,
    table_end: u64,
    /// Where the first cluster lies.
    heap: u64,
    cluster: u64,
    clusters: u64,
    /// Number of the root directory's first cluster.
    root: u64,
}

impl Layout {
    fn of(sector: &[u8]) -> Option<Self> {
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

    fn end(&self) -> u64 {
        self.heap + self.clusters * self.cluster
    }

    /// Where a cluster lies.
    fn place(&self, number: u64) -> Option<u64> {
        let number = number.checked_sub(FIRST).filter(|number| *number < self.clusters)?;
        Some(self.heap + number * self.cluster)
    }

    /// The contiguous clusters that the root directory's entry of this kind describes.
    fn entry(&self, root: &[u8], kind: u8, most: u64) -> Option<Range<DeviceOffset>> {
        let entry =
            root.chunks_exact(ENTRY).take_while(|entry| entry[0] != 0).find(|entry| entry[0] == kind)?;
        let (first, length) = (self.place(entry.le32(20)?.into())?, entry.le64(24)?);
        let length = length.checked_next_multiple_of(self.cluster).filter(|length| *length <= most)?;
        Range::at(DeviceOffset(first), length).filter(|range| range.end.0 <= self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(layout.entry(&root, 0x81, LARGEST), Range::at(DeviceOffset(32 * 512), 4096));
        assert_eq!(layout.entry(&root, 0x82, LARGEST), None);
        root[56..64].fill(0xff);
        assert_eq!(layout.entry(&root, 0x81, LARGEST), None);
    }

    #[test]
    fn invalid_boot_sectors_are_refused() {
        for (at, value) in [(3, 0), (80, 0), (84, 9), (108, 8), (108, 200), (109, 17), (109, 255)] {
            let mut sector = boot_sector();
            sector[at] = value;
            assert_eq!(Layout::of(&sector), None, "{at}");
        }
    }
}
