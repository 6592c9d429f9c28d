//! Where the bytes of a block device lie on the guest's disks.
//!
//! The kernel's own tables say it: where a partition begins, which targets a device-mapper table has
//! (`dm`), which members an array has (`md`), and the rules of RAID (`raid`). Nothing is taken on trust:
//! what is computed here is verified by tagged reads before it is used, see [`proofs`](Layout::proofs).
//!
//! A byte of a mirrored device lies on several disks, or several times on one. The kernel reads one of these
//! *copies*, whichever it likes; what was read is therefore translated back to the device, and from there to
//! all copies. The parity that protects a byte is known in the same way, and kept apart.

mod btrfs;
mod dm;
mod md;
mod raid;

pub use btrfs::address_space;

use crate::appliance::{BlockDevice, DeviceKind, DeviceNumber, Inventory};
use crate::recorder::Recording;
use std::collections::HashMap;
use virt_bmap_ranges::{DeviceOffset, DiskNumber, DiskOffset, DiskRange, Offset as _, Range, RangeSet};

/// A run of bytes of a device that lie one after the other on one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where on the device.
    pub device: Range<DeviceOffset>,
    /// On which disk.
    pub disk: DiskNumber,
    /// Where on that disk it begins.
    pub start: DiskOffset,
    /// Which copy of these bytes this is, or which parity of them, from 0.
    pub copy: u8,
}

impl Segment {
    /// The bytes on the disk.
    pub fn disk_range(&self) -> DiskRange {
        DiskRange::new(self.start.0, self.start.0.saturating_add(self.device.len()))
    }

    /// The part of it that lies in `range`.
    fn part(&self, range: Range<DeviceOffset>) -> Option<Self> {
        let device = self.device.intersection(range)?;
        let skipped = device.start.0 - self.device.start.0;
        Some(Self { device, start: DiskOffset(self.start.0 + skipped), ..*self })
    }

    /// The part of it that lies in a range of its disk.
    pub fn on_disk(&self, range: DiskRange) -> Option<Self> {
        let part = self.disk_range().intersection(range)?;
        let start = self.device.start.0 + (part.start.0 - self.start.0);
        Some(Self { device: Range::new(start, start + part.len()), start: part.start, ..*self })
    }
}

/// The parts of segments that lie in `range`. They are ascending and disjoint.
fn overlap(segments: &[Segment], range: Range<DeviceOffset>) -> impl Iterator<Item = Segment> + '_ {
    let first = segments.partition_point(|segment| segment.device.end <= range.start);
    segments[first..].iter().map_while(move |segment| segment.part(range))
}

/// A device's segments. What none of them covers is on no disk, or not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Of each copy the segments, ascending by device offset, joined where they can be.
    copies: Vec<Vec<Segment>>,
    /// The same of what protects these bytes, without being them.
    parities: Vec<Vec<Segment>>,
    /// All segments of the copies, ascending by disk and offset on it.
    by_disk: Vec<Segment>,
    /// Some of the device's bytes are on no disk, because one is missing.
    is_partial: bool,
}

/// A device in more pieces than this is read instead.
const MOST_SEGMENTS: usize = 1 << 22;

/// Most copies that are followed.
const MOST_COPIES: usize = 16;

/// How many segments at either end of a device are proved.
const PROVED: usize = 32;

/// Bytes read to prove one end of a segment.
pub const PROOF: u64 = 512;

/// What the kernel's RAID reads at a time where it cannot read past its cache.
const PAGE: u64 = 4096;

/// A read that proves a part of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Where on the device to read [`PROOF`] bytes.
    pub at: DeviceOffset,
    /// What must then be read: one of these.
    pub places: Vec<(DiskNumber, DiskRange)>,
}

impl Proof {
    /// Whether a recording is what one of the places gives. An array that lacks a member reads whole pages.
    pub fn is_given_by(&self, recording: &Recording) -> bool {
        self.places.iter().any(|&(disk, place)| {
            let page = DiskRange::new(place.start.0 / PAGE * PAGE, place.end.0.next_multiple_of(PAGE));
            recording.iter().eq([(disk, place)]) || recording.iter().eq([(disk, page)])
        })
    }
}

impl Layout {
    /// A whole disk.
    pub fn of_disk(disk: DiskNumber, size: u64) -> Self {
        let mut builder = Builder::default();
        builder.push(Segment { device: Range::new(0, size), disk, start: DiskOffset(0), copy: 0 });
        builder.finish()
    }

    /// All segments: those of the first copy, then those of the others.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.copies.iter().flatten()
    }

    /// All segments of parity.
    pub fn parity_segments(&self) -> impl Iterator<Item = &Segment> {
        self.parities.iter().flatten()
    }

    /// The segments of a part of the device, all copies; `None` where the first does not cover all of it, unless
    /// the device [is partial](Self::is_partial).
    pub fn part(&self, range: Range<DeviceOffset>) -> Option<Vec<Segment>> {
        let is_known = self.is_partial || self.covers(range);
        is_known.then(|| self.copies.iter().flat_map(|copy| overlap(copy, range)).collect())
    }

    /// The places of a part of the device on the disks, one copy; `None` as for [`part`](Self::part).
    pub fn places(
        &self,
        range: Range<DeviceOffset>,
    ) -> Option<impl Iterator<Item = (DiskNumber, DiskRange)>> {
        let first = self.part(range)?.into_iter().filter(|part| part.copy == 0);
        Some(first.map(|part| (part.disk, part.disk_range())))
    }

    /// The parity of a part of the device. Where one block protects several, it is there for each.
    pub fn parity(&self, range: Range<DeviceOffset>) -> impl Iterator<Item = Segment> + '_ {
        self.parities.iter().flat_map(move |parity| overlap(parity, range))
    }

    /// Whether every byte of a part of the device is on a disk.
    pub fn covers(&self, range: Range<DeviceOffset>) -> bool {
        let mut covered = range.start;
        for part in self.copies.first().into_iter().flat_map(|first| overlap(first, range)) {
            if part.device.start != covered {
                return false;
            }
            covered = part.device.end;
        }
        range.is_empty() || covered == range.end
    }

    /// Whether some of the device's bytes are on no disk, because one is missing. The kernel makes them of
    /// parity: what is read then is not where they lie.
    pub fn is_partial(&self) -> bool {
        self.is_partial
    }

    /// Translates what was read on the disks back to the device; `None` where some of it is not the
    /// device's.
    pub fn to_device(&self, recording: &Recording) -> Option<RangeSet<DeviceOffset>> {
        let mut device = RangeSet::new();
        for (disk, range) in recording.iter() {
            let first = self
                .by_disk
                .partition_point(|segment| (segment.disk, segment.disk_range().end) <= (disk, range.start));
            let mut covered = range.start;
            for segment in &self.by_disk[first..] {
                let Some(part) = segment.disk_range().intersection(range).filter(|_| segment.disk == disk)
                else {
                    break;
                };
                if part.start != covered {
                    return None;
                }
                let start = segment.device.start.0 + (part.start.0 - segment.start.0);
                device.insert(Range::new(start, start + part.len()));
                covered = part.end;
            }
            if covered != range.end {
                return None;
            }
        }
        Some(device)
    }

    /// Translates what was read on the disks back to the device, without what is not the device's.
    pub fn to_device_partly(&self, recording: &Recording) -> RangeSet<DeviceOffset> {
        let mut device = RangeSet::new();
        for (disk, range) in recording.iter() {
            let first = self
                .by_disk
                .partition_point(|segment| (segment.disk, segment.disk_range().end) <= (disk, range.start));
            let of_disk = self.by_disk[first..].iter().take_while(|segment| segment.disk == disk);
            for segment in of_disk.take_while(|segment| segment.start < range.end) {
                if let Some(part) = segment.disk_range().intersection(range) {
                    let start = segment.device.start.0 + (part.start.0 - segment.start.0);
                    device.insert(Range::new(start, start + part.len()));
                }
            }
        }
        device
    }

    /// Bytes of the device, as far as its layout is known.
    pub fn size(&self) -> u64 {
        self.copies.iter().filter_map(|copy| copy.last()).map(|last| last.device.end.0).max().unwrap_or(0)
    }

    /// The places where reads prove the layout: both ends of each segment (of the first and the last few,
    /// where there are many).
    pub fn proofs(&self) -> Vec<Proof> {
        let mut proofs = Vec::new();
        for copy in &self.copies {
            let chosen = copy
                .iter()
                .enumerate()
                .filter(|(index, _)| *index < PROVED || *index >= copy.len().saturating_sub(PROVED));
            for (_, segment) in chosen {
                let length = segment.device.len().min(PROOF);
                for at in [segment.device.start.0, segment.device.end.0 - length] {
                    let sector = Range::new(at, at + length);
                    let Some(parts) = self.part(sector) else { continue };
                    // A read of less than a sector reads the sector.
                    let place =
                        |part: &Segment| (part.disk, DiskRange::new(part.start.0, part.start.0 + PROOF));
                    proofs.push(Proof { at: sector.start, places: parts.iter().map(place).collect() });
                }
            }
        }
        proofs.sort_by_key(|proof| proof.at);
        proofs.dedup();
        proofs
    }

    /// In how many places a byte lies at most.
    pub fn copy_count(&self) -> usize {
        self.copies.len()
    }

    /// Leaves out the copies from the second on of whose segments `is_good` says no; it is given the
    /// layout, too.
    pub fn retain_copies(&mut self, is_good: impl Fn(&Self, &[Segment]) -> bool) {
        let good: Vec<bool> =
            (0..).zip(&self.copies).map(|(number, copy)| number == 0 || is_good(self, copy)).collect();
        let is_kept = |segment: &Segment| good[usize::from(segment.copy)];
        self.by_disk.retain(is_kept);
        for copy in &mut self.copies {
            copy.retain(is_kept);
        }
        self.copies.retain(|copy| !copy.is_empty());
    }
}

/// Puts a layout together, copy by copy, each in ascending order.
#[derive(Default)]
struct Builder {
    copies: Vec<Vec<Segment>>,
    parities: Vec<Vec<Segment>>,
    count: usize,
    is_partial: bool,
}

impl Builder {
    /// Appends a segment that begins where the last one of its copy ends, or later.
    fn push(&mut self, segment: Segment) {
        self.count += append(&mut self.copies, segment);
    }

    /// Puts `length` bytes of `below`, from `from`, at `at` of this device, as copy `copy` and those after
    /// it. Returns how many copies that were.
    fn map(&mut self, at: u64, length: u64, below: &Layout, from: u64, copy: usize) -> Option<usize> {
        let copies = below.copies.len();
        if copy + copies > MOST_COPIES || self.count > MOST_SEGMENTS {
            return None;
        }
        let range = Range::at(DeviceOffset(from), length)?;
        for part in below.part(range)? {
            self.push(moved(part, from, at, copy)?);
        }
        let parity = copy * below.parities.len();
        for part in below.parity(range) {
            self.count += append(&mut self.parities, moved(part, from, at, parity)?);
        }
        self.is_partial |= below.is_partial;
        Some(copies)
    }

    /// Says that `length` bytes of `below`, from `from`, are parity number `number` of those at `at` of this
    /// device.
    fn protect(&mut self, at: u64, length: u64, below: &Layout, from: u64, number: usize) -> Option<()> {
        for part in below.part(Range::at(DeviceOffset(from), length)?)? {
            let number = number * below.copies.len();
            self.count += append(&mut self.parities, moved(part, from, at, number)?);
        }
        Some(())
    }

    fn finish(self) -> Layout {
        let Self { copies, parities, is_partial, .. } = self;
        let mut by_disk: Vec<Segment> = copies.iter().flatten().copied().collect();
        by_disk.sort_unstable_by_key(|segment| (segment.disk, segment.start));
        Layout { copies, parities, by_disk, is_partial }
    }
}

/// A segment of the device below, put where it is on this one.
fn moved(part: Segment, from: u64, at: u64, copy: usize) -> Option<Segment> {
    let start = at.checked_add(part.device.start.bytes().checked_sub(from)?)?;
    let device = Range::at(DeviceOffset(start), part.device.len())?;
    let copy =
        u8::try_from(copy + usize::from(part.copy)).ok().filter(|copy| usize::from(*copy) < MOST_COPIES)?;
    Some(Segment { device, copy, ..part })
}

/// Appends a segment to the list of its copy, or lengthens the last one there. Returns how many were added.
fn append(lists: &mut Vec<Vec<Segment>>, segment: Segment) -> usize {
    if segment.device.is_empty() {
        return 0;
    }
    let copy = usize::from(segment.copy);
    if copy >= lists.len() {
        lists.resize_with(copy + 1, Vec::new);
    }
    if let Some(last) = lists[copy].last_mut()
        && last.device.end == segment.device.start
        && last.disk == segment.disk
        && last.disk_range().end == segment.start
    {
        last.device.end = segment.device.end;
        return 0;
    }
    lists[copy].push(segment);
    1
}

/// Layouts of the devices below, by number.
type Lower = HashMap<DeviceNumber, Layout>;

/// The layouts of an inventory's devices, by device name; those that the kernel's tables do not tell (thin
/// volumes, caches, …) are absent.
pub fn layouts(inventory: &Inventory) -> HashMap<String, Layout> {
    let mut by_number = Lower::new();
    for (disk, device) in (1..).zip(&inventory.disks) {
        by_number.insert(device.number, Layout::of_disk(disk, device.size));
    }
    let mut rest: Vec<&BlockDevice> = inventory.devices().chain(&inventory.hidden).collect();
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

fn layout(device: &BlockDevice, lower: &Lower) -> Option<Layout> {
    let mut builder = Builder::default();
    match &device.kind {
        DeviceKind::Disk => return lower.get(&device.number).cloned(),
        DeviceKind::Partition { of, start } => {
            builder.map(0, device.size, lower.get(of)?, *start, 0)?;
        }
        DeviceKind::Dm { targets } if !targets.is_empty() => {
            for target in targets {
                dm::map(&mut builder, target, lower)?;
            }
        }
        DeviceKind::Dm { .. } => return None,
        DeviceKind::Md(array) => md::map(&mut builder, array, device.size, lower)?,
    }
    Some(builder.finish())
}

#[cfg(test)]
mod tests;
