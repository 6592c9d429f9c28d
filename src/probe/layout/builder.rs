//! Puts a layout together out of the layouts of the devices below.

use super::{Layout, Segment};
use virt_bmap_ranges::{DeviceOffset, Offset as _, Range, RangeSet};

/// Most segments of a layout. A device with more is read instead.
const MOST_SEGMENTS: usize = 1 << 22;

/// Most chunks of a device that are looked at, whether or not they become segments: 16 TiB in
/// chunks of 64 KiB. A table may claim any number of chunks, and those of missing members, or those
/// that touch, add no segment that [`MOST_SEGMENTS`] could count.
const MOST_CHUNKS: u64 = if cfg!(test) { 1 << 16 } else { 1 << 28 };

/// Most copies of a layout.
const MOST_COPIES: usize = 16;

/// Puts a layout together, copy by copy, each in ascending order.
#[derive(Default)]
pub(super) struct Builder {
    copies: Vec<Vec<Segment>>,
    parities: Vec<Vec<Segment>>,
    nowhere: RangeSet<DeviceOffset>,
    count: usize,
    chunks: u64,
    pub(super) is_partial: bool,
}

impl Builder {
    /// Counts a chunk that is about to be mapped; `None` if there are too many.
    pub(super) fn count_chunk(&mut self) -> Option<()> {
        self.chunks += 1;
        (self.chunks <= MOST_CHUNKS).then_some(())
    }

    /// Appends a segment that begins where the last one of its copy ends, or later.
    pub(super) fn push(&mut self, segment: Segment) {
        self.count += append(&mut self.copies, segment);
    }

    /// Records that `length` bytes at `at` are on no disk.
    pub(super) fn nothing(&mut self, at: u64, length: u64) {
        self.nowhere.insert(Range::saturating(at, length));
    }

    /// Maps `length` bytes at `at` of this device to those at `from` of `below`, as copy `copy` and
    /// the following ones. Returns how many copies these were.
    pub(super) fn map(
        &mut self,
        at: u64,
        length: u64,
        below: &Layout,
        from: u64,
        copy: usize,
    ) -> Option<usize> {
        let copies = below.copies.len();
        if copy + copies > MOST_COPIES || self.count > MOST_SEGMENTS {
            return None;
        }
        let range = Range::at(DeviceOffset(from), length)?;
        for nothing in below.nowhere.overlap(range) {
            self.nothing(at + (nothing.start.0 - from), nothing.len());
        }
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

    /// Records that `length` bytes at `from` of `below` are parity number `number` of those at `at`
    /// of this device.
    pub(super) fn protect(
        &mut self,
        at: u64,
        length: u64,
        below: &Layout,
        from: u64,
        number: usize,
    ) -> Option<()> {
        for part in below.part(Range::at(DeviceOffset(from), length)?)? {
            let number = number * below.copies.len();
            self.count += append(&mut self.parities, moved(part, from, at, number)?);
        }
        Some(())
    }

    pub(super) fn finish(self) -> Layout {
        let Self { copies, parities, nowhere, is_partial, .. } = self;
        let mut by_disk: Vec<Segment> = copies.iter().flatten().copied().collect();
        by_disk.sort_unstable_by_key(|segment| (segment.disk, segment.start));
        Layout { copies, parities, by_disk, nowhere, is_partial }
    }
}

/// A segment of the device below, as a segment of this device.
fn moved(part: Segment, from: u64, at: u64, copy: usize) -> Option<Segment> {
    let start = at.checked_add(part.device.start.bytes().checked_sub(from)?)?;
    let device = Range::at(DeviceOffset(start), part.device.len())?;
    let copy =
        u8::try_from(copy + usize::from(part.copy)).ok().filter(|copy| usize::from(*copy) < MOST_COPIES)?;
    Some(Segment { device, copy, ..part })
}

/// Appends a segment to the list of its copy, or lengthens the last one there. Returns how many
/// were added.
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
