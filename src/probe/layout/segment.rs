//! Segments: bytes of a device that lie one after the other on one disk.

use virt_bmap_ranges::{DeviceOffset, DiskNumber, DiskOffset, DiskRange, Range};

/// Bytes of a device that lie one after the other on one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where on the device.
    pub device: Range<DeviceOffset>,
    /// On which disk.
    pub disk: DiskNumber,
    /// Where on that disk it begins.
    pub start: DiskOffset,
    /// The number of the copy, or of the parity, from 0.
    pub copy: u8,
}

impl Segment {
    /// The bytes on the disk.
    pub fn disk_range(&self) -> DiskRange {
        DiskRange::new(self.start.0, self.start.0.saturating_add(self.device.len()))
    }

    /// The part of it that lies in `range`.
    pub(super) fn part(&self, range: Range<DeviceOffset>) -> Option<Self> {
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
pub(super) fn overlap(
    segments: &[Segment],
    range: Range<DeviceOffset>,
) -> impl Iterator<Item = Segment> + '_ {
    let first = segments.partition_point(|segment| segment.device.end <= range.start);
    segments[first..].iter().map_while(move |segment| segment.part(range))
}
