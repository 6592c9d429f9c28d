//! Where the bytes of a block device lie on the guest's disks.
//!
//! The kernel's own tables say it: where a partition begins, which targets a device-mapper table has
//! (`Documentation/admin-guide/device-mapper/`). Nothing is taken on trust: what is computed here is
//! proved by tagged reads before it is used, see [`proofs`](Layout::proofs).

use crate::appliance::{BlockDevice, DeviceKind, DmTarget, Inventory};
use crate::range::{DeviceOffset, DiskOffset, DiskRange, Offset as _, Range};
use crate::recorder::{DiskNumber, Recording};
use std::collections::HashMap;

/// A run of bytes of a device that lie one after the other on one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where on the device.
    pub device: Range<DeviceOffset>,
    /// On which disk.
    pub disk: DiskNumber,
    /// Where on that disk it begins.
    pub start: DiskOffset,
}

impl Segment {
    /// The bytes on the disk.
    pub fn disk_range(&self) -> DiskRange {
        DiskRange::new(self.start.0, self.start.0.saturating_add(self.device.len()))
    }
}

/// A device's segments, ascending, joined where they can be. What none of them covers is on no disk, or
/// not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    segments: Vec<Segment>,
}

/// A striped volume with more stripes than this is read instead.
const MOST_SEGMENTS: u64 = 1 << 22;

/// How many segments at either end of a device are proved.
const PROVED: usize = 32;

/// Bytes read to prove one end of a segment.
pub const PROOF: u64 = 512;

impl Layout {
    /// A whole disk.
    pub fn of_disk(disk: DiskNumber, size: u64) -> Self {
        let mut layout = Self::default();
        layout.push(Segment { device: Range::new(0, size), disk, start: DiskOffset(0) });
        layout
    }

    /// The segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Appends a segment that begins where the last one ends, or later.
    fn push(&mut self, segment: Segment) {
        if segment.device.is_empty() {
            return;
        }
        if let Some(last) = self.segments.last_mut()
            && last.device.end == segment.device.start
            && last.disk == segment.disk
            && last.disk_range().end == segment.start
        {
            last.device.end = segment.device.end;
            return;
        }
        self.segments.push(segment);
    }

    /// The segments of a part of the device; `None` where not all of it is covered.
    pub fn part(&self, range: Range<DeviceOffset>) -> Option<Vec<Segment>> {
        let first = self.segments.partition_point(|segment| segment.device.end <= range.start);
        let mut parts = Vec::new();
        let mut covered = range.start;
        for segment in &self.segments[first..] {
            let Some(part) = segment.device.intersection(range) else { break };
            if part.start != covered {
                return None;
            }
            let skipped = part.start.0 - segment.device.start.0;
            let start = DiskOffset(segment.start.0.checked_add(skipped)?);
            parts.push(Segment { device: part, disk: segment.disk, start });
            covered = part.end;
        }
        (covered >= range.end).then_some(parts)
    }

    /// Puts `length` bytes of `below`, from `from`, at `at` of this device.
    fn map(&mut self, at: u64, length: u64, below: &Self, from: u64) -> Option<()> {
        for part in below.part(Range::at(DeviceOffset(from), length)?)? {
            let start = at.checked_add(part.device.start.0 - from)?;
            self.push(Segment { device: Range::at(DeviceOffset(start), part.device.len())?, ..part });
        }
        Some(())
    }

    /// The places where reads prove the layout: both ends of each segment (of the first and the last few,
    /// where there are many), as offset on the device and what must be read on which disk.
    pub fn proofs(&self) -> Vec<(DeviceOffset, DiskNumber, DiskRange)> {
        let count = self.segments.len();
        let chosen = self
            .segments
            .iter()
            .enumerate()
            .filter(|(index, _)| *index < PROVED || *index >= count.saturating_sub(PROVED));
        let mut proofs = Vec::new();
        for (_, segment) in chosen {
            let length = segment.device.len().min(PROOF);
            for skip in [0, segment.device.len() - length] {
                let start = segment.start.0 + skip;
                let at = DeviceOffset(segment.device.start.0 + skip);
                proofs.push((at, segment.disk, DiskRange::new(start, start + length)));
            }
        }
        proofs.dedup();
        proofs
    }

    /// All bytes of the device on the disks.
    pub fn recording(&self) -> Recording {
        self.segments.iter().map(|segment| (segment.disk, segment.disk_range())).collect()
    }
}

/// The layouts of an inventory's devices, by device name; those that the kernel's tables do not tell (thin
/// volumes, RAID, …) are absent.
pub fn layouts(inventory: &Inventory) -> HashMap<String, Layout> {
    let mut by_number = HashMap::new();
    for (disk, device) in (1..).zip(&inventory.disks) {
        by_number.insert(device.number, Layout::of_disk(disk, device.size));
    }
    let mut rest: Vec<&BlockDevice> = inventory.devices().collect();
    // Devices are stacked in any order; each round settles those whose lower devices are settled.
    loop {
        let before = rest.len();
        rest.retain(|device| {
            if let Some(layout) = layout(device, &by_number) {
                by_number.insert(device.number, layout);
            }
            !by_number.contains_key(&device.number)
        });
        if rest.len() == before {
            break;
        }
    }
    inventory
        .devices()
        .filter_map(|device| Some((device.path.clone(), by_number.get(&device.number)?.clone())))
        .collect()
}

fn layout(device: &BlockDevice, lower: &HashMap<(u32, u32), Layout>) -> Option<Layout> {
    let mut layout = Layout::default();
    match &device.kind {
        DeviceKind::Disk => return lower.get(&device.number).cloned(),
        DeviceKind::Partition { of, start } => layout.map(0, device.size, lower.get(of)?, *start)?,
        DeviceKind::Dm { targets } if !targets.is_empty() => {
            for target in targets {
                map_target(&mut layout, target, lower)?;
            }
        }
        DeviceKind::Dm { .. } | DeviceKind::Md => return None,
    }
    Some(layout)
}

/// Sectors of device-mapper tables.
const SECTOR: u64 = 512;

fn map_target(layout: &mut Layout, target: &DmTarget, lower: &HashMap<(u32, u32), Layout>) -> Option<()> {
    let argument = |index: usize| target.arguments.get(index).map(String::as_str);
    let below = |index| lower.get(&crate::appliance::device_number(argument(index)?)?);
    let sectors = |index| argument(index)?.parse::<u64>().ok()?.checked_mul(SECTOR);
    match target.kind.as_str() {
        // <device> <offset>
        "linear" => layout.map(target.start, target.length, below(0)?, sectors(1)?),
        // <cipher> <key> <iv offset> <device> <offset>
        "crypt" => layout.map(target.start, target.length, below(3)?, sectors(4)?),
        // <number of stripes> <chunk size> (<device> <offset>)...
        "striped" => {
            let stripes = argument(0)?.parse::<u64>().ok().filter(|n| *n > 0)?;
            let chunk = sectors(1).filter(|n| *n > 0)?;
            if target.length / chunk > MOST_SEGMENTS {
                return None;
            }
            let mut done = 0;
            while done < target.length {
                let number = done / chunk;
                let column = usize::try_from(number % stripes).ok()?;
                let from = sectors(3 + 2 * column)?.checked_add(number / stripes * chunk)?;
                let length = chunk.min(target.length - done);
                layout.map(target.start + done, length, below(2 + 2 * column)?, from)?;
                done += length;
            }
            Some(())
        }
        _ => None,
    }
}

/// What `range` is called in messages.
impl std::fmt::Display for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "bytes {:?} on disk {} from {:#x}", self.device, self.disk, self.start.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(path: &str, number: (u32, u32), size: u64, kind: DeviceKind) -> BlockDevice {
        BlockDevice { path: path.into(), number, size, kind }
    }

    fn target(start: u64, length: u64, line: &str) -> DmTarget {
        let mut words = line.split(' ').map(str::to_owned);
        DmTarget { start, length, kind: words.next().unwrap(), arguments: words.collect() }
    }

    fn inventory(targets: Vec<DmTarget>) -> Inventory {
        let part = |start| DeviceKind::Partition { of: (8, 0), start };
        Inventory {
            disks: vec![
                device("/dev/sda", (8, 0), 1 << 20, DeviceKind::Disk),
                device("/dev/sdb", (8, 16), 1 << 20, DeviceKind::Disk),
            ],
            partitions: vec![device("/dev/sda1", (8, 1), 64 << 10, part(4096))],
            volumes: vec![
                device(
                    "/dev/vg/on",
                    (253, 1),
                    1024,
                    DeviceKind::Dm { targets: vec![target(0, 1024, "linear 253:0 2")] },
                ),
                device("/dev/vg/lv", (253, 0), 1 << 16, DeviceKind::Dm { targets }),
            ],
            ..Inventory::default()
        }
    }

    #[test]
    fn a_volume_over_a_partition_and_a_disk() {
        let all =
            layouts(&inventory(vec![target(0, 8192, "linear 8:1 8"), target(8192, 4096, "linear 8:16 16")]));
        let lv = &all["/dev/vg/lv"];
        assert!(
            lv.recording()
                .iter()
                .eq([(1, DiskRange::new(4096 + 4096, 16384)), (2, DiskRange::new(8192, 12288)),])
        );
        // A volume that is stacked on a later one is found all the same.
        assert!(all["/dev/vg/on"].recording().iter().eq([(1, DiskRange::new(9216, 10240))]));
        let part = lv.part(Range::new(8000, 8300)).unwrap();
        assert_eq!(part.len(), 2);
        assert_eq!((part[1].disk, part[1].start), (2, DiskOffset(8192)));
        assert_eq!(lv.part(Range::new(12000, 12289)), None);
        assert_eq!(lv.proofs().len(), 4);
        assert_eq!(lv.proofs()[1], (DeviceOffset(8192 - 512), 1, DiskRange::new(16384 - 512, 16384)));
    }

    #[test]
    fn stripes_alternate() {
        let all = layouts(&inventory(vec![target(0, 20480, "striped 2 16 8:0 0 8:16 8")]));
        let lv = &all["/dev/vg/lv"];
        let seen: Vec<_> = lv.segments().iter().map(|s| (s.disk, s.start.0, s.device.len())).collect();
        assert_eq!(seen, [(1, 0, 8192), (2, 4096, 8192), (1, 8192, 4096)]);
    }

    #[test]
    fn what_the_tables_do_not_tell_is_absent() {
        for line in [
            "thin 253:5 1",
            "raid raid1 3 0 region_size 4096 2 253:1 253:2 253:3 253:4",
            "linear 8:1",
            "linear 8:99 0",
        ] {
            assert!(!layouts(&inventory(vec![target(0, 4096, line)])).contains_key("/dev/vg/lv"), "{line}");
        }
        // Nor is what would lie past the end of the lower device.
        assert!(!layouts(&inventory(vec![target(0, 1 << 20, "linear 8:1 8")])).contains_key("/dev/vg/lv"));
        assert!(layouts(&inventory(Vec::new())).contains_key("/dev/sda1"));
    }
}
