//! Reads of many small ranges of the disks, mostly in ascending order.

use std::sync::Arc;
use virt_bmap_image::Source;
use virt_bmap_ranges::{DiskNumber, DiskOffset, DiskRange};

/// Bytes read at a time, at least.
const WINDOW: u64 = 64 << 10;

/// The last part of the disks that was read, for each copy.
pub(super) struct Windows<'a> {
    disks: &'a [Arc<dyn Source>],
    copies: Vec<Window>,
}

impl<'a> Windows<'a> {
    pub(super) fn new(disks: &'a [Arc<dyn Source>]) -> Self {
        Self { disks, copies: Vec::new() }
    }

    /// A part of a copy; `None` if it cannot be read.
    pub(super) fn read(&mut self, copy: u8, disk: DiskNumber, place: DiskRange) -> Option<&[u8]> {
        let copy = usize::from(copy);
        if self.copies.len() <= copy {
            self.copies.resize_with(copy + 1, Window::default);
        }
        self.copies[copy].read(self.disks, disk, place)
    }
}

/// The part of a disk that was read last.
#[derive(Default)]
struct Window {
    disk: DiskNumber,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    fn read(&mut self, disks: &[Arc<dyn Source>], disk: DiskNumber, place: DiskRange) -> Option<&[u8]> {
        let end = self.start + self.bytes.len() as u64;
        if disk != self.disk || place.start.0 < self.start || place.end.0 > end {
            let source = disks.get(usize::from(disk).checked_sub(1)?)?;
            let left = source.size().checked_sub(place.start.0)?;
            self.bytes = vec![0; usize::try_from(left.min(WINDOW.max(place.len()))).ok()?];
            (self.disk, self.start) = (disk, place.start.0);
            if source.read_at(&mut self.bytes, DiskOffset(self.start)).is_err() {
                self.bytes.clear();
            }
        }
        let from = usize::try_from(place.start.0 - self.start).ok()?;
        self.bytes.get(from..from.checked_add(usize::try_from(place.len()).ok()?)?)
    }
}
