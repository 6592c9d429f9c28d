//! Where the bytes of a block device lie on the guest's disks.
//!
//! A layout is computed from the kernel's tables: where a partition begins, which targets a
//! device-mapper table has (`dm`), which members an array has (`md`), and the rules of RAID
//! (`raid`). Tagged reads verify it before it is used; see [`proofs`](Layout::proofs).
//!
//! A byte of a mirrored device lies on several disks, or several times on one. The kernel may read
//! any of these *copies*, so a recording is translated back to the device, and from there to all
//! copies. The parity of a byte is found in the same way, and kept apart.

mod btrfs;
mod builder;
mod dm;
mod md;
mod proof;
mod raid;
mod segment;
mod snapshot;
mod thin;

pub use btrfs::address_space;
pub use proof::Proof;
pub use segment::Segment;

use crate::appliance::{BlockDevice, DeviceKind, DeviceNumber, DmTarget, Inventory};
use crate::recorder::Recording;
use builder::Builder;
use segment::overlap;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use virt_bmap_image::Source;
use virt_bmap_ranges::{DeviceOffset, DiskNumber, DiskOffset, DiskRange, Range, RangeSet};

/// A device's segments. A byte that none of them covers is on no disk, or its place is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The segments of each copy, ascending by device offset, joined where possible.
    copies: Vec<Vec<Segment>>,
    /// The segments of each parity, in the same way.
    parities: Vec<Vec<Segment>>,
    /// All segments of the copies, ascending by disk and offset on it.
    by_disk: Vec<Segment>,
    /// The device's bytes that are on no disk and read as zeroes.
    nowhere: RangeSet<DeviceOffset>,
    /// Some of the device's bytes are on no disk, because a member is missing.
    is_partial: bool,
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

    /// The segments of a part of the device, all copies; `None` where the first does not cover all
    /// of it, unless the device [is partial](Self::is_partial).
    pub fn part(&self, range: Range<DeviceOffset>) -> Option<Vec<Segment>> {
        let is_known = self.is_partial || self.covers(range);
        is_known.then(|| self.copies.iter().flat_map(|copy| overlap(copy, range)).collect())
    }

    /// The places of a part of the device on the disks, one copy; `None` as for
    /// [`part`](Self::part).
    pub fn places(
        &self,
        range: Range<DeviceOffset>,
    ) -> Option<impl Iterator<Item = (DiskNumber, DiskRange)>> {
        let first = self.part(range)?.into_iter().filter(|part| part.copy == 0);
        Some(first.map(|part| (part.disk, part.disk_range())))
    }

    /// Reads `length` bytes at `at` of the device from the disks, without the appliance: those of
    /// the first copy. `None` if not all of them can be read.
    pub fn read(&self, disks: &[Arc<dyn Source>], at: u64, length: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for (disk, place) in self.places(Range::at(DeviceOffset(at), length)?)? {
            let mut part = vec![0; usize::try_from(place.len()).ok()?];
            disks.get(usize::from(disk).checked_sub(1)?)?.read_at(&mut part, place.start).ok()?;
            bytes.extend(part);
        }
        (bytes.len() as u64 == length).then_some(bytes)
    }

    /// The parity of a part of the device. Where one block protects several, it is there for each.
    pub fn parity(&self, range: Range<DeviceOffset>) -> impl Iterator<Item = Segment> + '_ {
        self.parities.iter().flat_map(move |parity| overlap(parity, range))
    }

    /// Whether it is known of every byte of a part of the device on which disk it is, if on any.
    pub fn covers(&self, range: Range<DeviceOffset>) -> bool {
        let parts = self.copies.first().into_iter().flat_map(|first| overlap(first, range));
        let mut covered: Vec<_> = parts.map(|part| part.device).chain(self.nowhere.overlap(range)).collect();
        covered.sort_unstable();
        let end = covered.iter().try_fold(range.start, |end, part| (part.start == end).then_some(part.end));
        range.is_empty() || end == Some(range.end)
    }

    /// The part of some of the device's bytes that is on disks.
    pub fn on_disks<'r>(&self, ranges: &'r RangeSet<DeviceOffset>) -> Cow<'r, RangeSet<DeviceOffset>> {
        // This is asked for each file, and few devices have such bytes.
        if self.nowhere.is_empty() {
            return Cow::Borrowed(ranges);
        }
        Cow::Owned(ranges.difference(&self.nowhere))
    }

    /// Whether some of the device's bytes are on no disk, because a member is missing. The kernel
    /// computes them from parity, so reads of them go elsewhere.
    pub fn is_partial(&self) -> bool {
        self.is_partial
    }

    /// Translates a recording back to the device; `None` if some of it is not on the device.
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

    /// Translates a recording back to the device, without the parts that are not on the device.
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
        let ends = self.copies.iter().filter_map(|copy| copy.last()).map(|last| last.device.end);
        ends.chain(self.nowhere.iter().last().map(|last| last.end)).max().map_or(0, |end| end.0)
    }

    /// The number of copies.
    pub fn copy_count(&self) -> usize {
        self.copies.len()
    }

    /// Drops the copies for which `is_good` returns false, given the layout and the copy's
    /// segments. The first copy always stays.
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

/// The devices below, by number.
struct Lower<'a> {
    /// The layouts that are known so far.
    layouts: HashMap<DeviceNumber, Layout>,
    /// The tables of the device mapper.
    tables: HashMap<DeviceNumber, &'a [DmTarget]>,
    /// The guest's disks, as the appliance sees them.
    disks: &'a [Arc<dyn Source>],
    /// Where the kernel looks up the place of other bytes, by device and name.
    lookups: BTreeMap<(DeviceNumber, &'static str), Recording>,
}

impl Lower<'_> {
    fn get(&self, number: DeviceNumber) -> Option<&Layout> {
        self.layouts.get(&number)
    }

    /// Notes that the kernel looks up the place of other bytes in these parts of a device.
    fn note_lookups(
        &mut self,
        number: DeviceNumber,
        name: &'static str,
        parts: impl IntoIterator<Item = Range<DeviceOffset>>,
    ) {
        let Some(layout) = self.layouts.get(&number) else { return };
        let segments = parts.into_iter().flat_map(|part| layout.part(part).unwrap_or_default());
        let places = segments.map(|segment| (segment.disk, segment.disk_range()));
        self.lookups.entry((number, name)).or_default().extend(places);
    }
}

/// Where the kernel looks up the place of other bytes: the metadata of a thin pool, the exceptions
/// of a snapshot.
pub struct Lookups {
    /// The device, which is a part of others.
    pub device: String,
    /// The name of these bytes in a map.
    pub name: &'static str,
    /// The places, all copies.
    pub places: Recording,
}

/// The layouts of an inventory's devices.
pub struct Layouts {
    /// The layouts by device name, without those that do not follow from the kernel's tables and
    /// the metadata that these name (caches with dirty blocks, …).
    pub by_path: HashMap<String, Layout>,
    /// What the kernel reads to find the place of other bytes.
    pub lookups: Vec<Lookups>,
}

/// The layouts of an inventory's devices. `disks` are the guest's, as the appliance sees them.
pub fn layouts(inventory: &Inventory, disks: &[Arc<dyn Source>]) -> Layouts {
    let mut rest: Vec<&BlockDevice> = inventory.devices().chain(&inventory.hidden).collect();
    let tables = rest.iter().filter_map(|device| match &device.kind {
        DeviceKind::Dm { targets } => Some((device.number, &targets[..])),
        _ => None,
    });
    let of_disks = (1..).zip(&inventory.disks);
    let of_disks = of_disks.map(|(disk, device)| (device.number, Layout::of_disk(disk, device.size)));
    let mut lower =
        Lower { layouts: of_disks.collect(), tables: tables.collect(), disks, lookups: BTreeMap::new() };
    // Devices are stacked in any order; each round settles those whose lower devices are settled.
    loop {
        let before = rest.len();
        rest.retain(|device| {
            if let Some(layout) = layout(device, &mut lower) {
                lower.layouts.insert(device.number, layout);
            }
            !lower.layouts.contains_key(&device.number)
        });
        if rest.len() == before {
            break;
        }
    }
    let Lower { layouts, lookups, .. } = lower;
    let named =
        inventory.devices().filter_map(|it| Some((it.path.clone(), layouts.get(&it.number)?.clone())));
    let path = |number| inventory.devices().chain(&inventory.hidden).find(|it| it.number == number);
    let lookups = lookups.into_iter().filter_map(|((number, name), places)| {
        Some(Lookups { device: path(number)?.path.clone(), name, places })
    });
    Layouts { by_path: named.collect(), lookups: lookups.collect() }
}

fn layout(device: &BlockDevice, lower: &mut Lower<'_>) -> Option<Layout> {
    let mut builder = Builder::default();
    match &device.kind {
        DeviceKind::Disk => return lower.get(device.number).cloned(),
        DeviceKind::Partition { of, start } => {
            builder.map(0, device.size, lower.get(*of)?, *start, 0)?;
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
