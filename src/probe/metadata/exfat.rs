//! exFAT: the kernel reports nothing of its metadata, but its boot sector says where its parts lie,
//! its root directory where the bitmap of clusters lies, and the bitmap what is free ("exFAT
//! filesystem specification", Microsoft).

use super::facts::Clusters;
use super::{Blocks, Facts, bit, units};
use crate::probe::device::Device;
use virt_bmap_on_disk::exfat::Layout;
use virt_bmap_ranges::{DeviceOffset, Range};

/// Largest bitmap that is read: of 2³⁰ clusters.
const LARGEST: u64 = 128 << 20;

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
    let bitmap = layout.allocation_bitmap(&root, LARGEST)?;
    let bits = device.read(bitmap.start.0, layout.clusters.div_ceil(8))?;
    let free = (0..layout.clusters).filter(|number| bit(&bits, *number) == Some(false));
    facts.free = Some(units(free, layout.heap, layout.cluster));
    // The gap between the tables and the first cluster is empty; it aligns the clusters.
    let (reserved, gap) = (Range::new(0, layout.table_start), Range::new(layout.table_end, layout.heap));
    let tables = Range::new(layout.table_start, layout.table_end);
    let letters = layout.up_case_table(&root, LARGEST);
    facts.name("[reserved sectors]", [reserved, gap], is_read(reserved));
    for (name, range) in
        [("[FAT]", Some(tables)), ("[allocation bitmap]", Some(bitmap)), ("[up-case table]", letters)]
    {
        range.into_iter().for_each(|range| facts.name(name, [range], is_read(range)));
    }
    facts.whole.insert(Range::new(0, layout.end()));
    // The kernel says which sectors a file has.
    facts.clusters = Some(Clusters { start: layout.heap, size: layout.cluster });
    Some(())
}
