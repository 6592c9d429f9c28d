//! FAT: the kernel reports nothing of its metadata, but its boot sector says where the tables lie,
//! and the tables what is free ("Microsoft FAT Specification", also ECMA-107).

use super::facts::Clusters;
use super::{Blocks, Facts, units};
use crate::probe::device::Device;
use virt_bmap_on_disk::fat::{FIRST, Layout};
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
    let of_entry = |wanted: fn(u32, u32) -> bool| {
        let entry = |number: u64| {
            let at = usize::try_from(layout.offset(number)).ok()?;
            layout.entry(table.get(at..)?, number)
        };
        let is_wanted = |n: &u64| entry(n + FIRST).is_some_and(|entry| wanted(entry, layout.bad()));
        units((0..layout.clusters).filter(is_wanted), layout.data, layout.cluster)
    };
    facts.free = Some(of_entry(|entry, _| entry == 0));
    facts.name("[bad clusters]", of_entry(|entry, bad| entry == bad).iter(), true);
    facts.whole.insert(Range::new(0, layout.end));
    // The kernel says which sectors a file has.
    facts.clusters = Some(Clusters { start: layout.data, size: layout.cluster });
}
