//! Physical volumes of LVM.

use super::{Found, SECTOR};
use crate::probe::device::{Device, Fields};
use std::collections::HashMap;
use virt_bmap_ranges::{DeviceOffset, Range};

/// `label_header` and `pv_header` of LVM2's `lib/format_text/layout.h`: the label lies in one of
/// the first four sectors and lists the areas of data and of metadata.
pub(super) fn physical_volume(device: &Device<'_>) -> Option<Vec<Found>> {
    let start = device.read(0, 4 * SECTOR)?;
    let (number, label) =
        (0..).zip(start.chunks(SECTOR as usize)).find(|(_, sector)| sector.starts_with(b"LABELONE"))?;
    let header = usize::try_from(label.le32(20)?).ok()?;
    let mut areas = Vec::new();
    let mut at = header.checked_add(40)?;
    // Two lists of offset and size, each terminated by zeroes.
    for list in 0..2 {
        while let (offset @ 1.., size) = (label.le64(at)?, label.le64(at + 8)?) {
            if list == 1 {
                areas.push((offset, size));
            }
            at += 16;
        }
        at += 16;
    }
    Some(vec![("[LVM label]", vec![(number * SECTOR, SECTOR)], true), ("[LVM metadata]", areas, true)])
}

/// Free extents of the physical volumes, by the kernel's names of the volumes.
pub(super) fn ask_for_free_extents(device: &Device<'_>) -> HashMap<String, Vec<Range<DeviceOffset>>> {
    let command = "lvm pvs --noheadings --segments --units b --nosuffix --separator , \
                   -o pv_name,pe_start,vg_extent_size,pvseg_start,pvseg_size,segtype 2>/dev/null";
    let mut free = HashMap::<String, Vec<Range<DeviceOffset>>>::new();
    for line in device.ask(command).unwrap_or_default().lines() {
        if let Some((name, range)) = free_extent(line.trim()) {
            free.entry(name).or_default().push(range);
        }
    }
    free
}

fn free_extent(line: &str) -> Option<(String, Range<DeviceOffset>)> {
    let [name, start, extent, first, count, "free"] = line.split(',').collect::<Vec<_>>()[..] else {
        return None;
    };
    let number = |text: &str| text.parse::<u64>().ok();
    let extent = number(extent)?;
    let start = number(start)?.checked_add(number(first)?.checked_mul(extent)?)?;
    Some((name.to_owned(), Range::at(DeviceOffset(start), number(count)?.checked_mul(extent)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_extents_are_told_from_used_ones() {
        let of = |line| free_extent(line).map(|(name, range)| (name, range.start.0, range.end.0));
        assert_eq!(
            of("/dev/sdb4,1048576,4194304,10,5,free"),
            Some(("/dev/sdb4".to_owned(), 1_048_576 + 10 * 4_194_304, 1_048_576 + 15 * 4_194_304))
        );
        assert_eq!(of("/dev/sdb4,1048576,4194304,0,10,linear"), None);
        assert_eq!(of("/dev/sdb4,1048576,0,free"), None);
    }
}
