//! Proofs: tagged reads that verify a layout.

use super::{Layout, Segment};
use crate::recorder::Recording;
use virt_bmap_ranges::{DeviceOffset, DiskNumber, DiskRange, Range};

/// How many segments at each end of a copy are proved.
const SEGMENTS_PROVED: usize = 32;

/// What the kernel's RAID reads at a time if it reads through its cache.
const PAGE: u64 = 4096;

/// A read that proves a part of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Where on the device to read one sector.
    pub at: DeviceOffset,
    /// The places on the disks, one of which must then be read.
    pub places: Vec<(DiskNumber, DiskRange)>,
}

impl Proof {
    /// Whether a recording is exactly one of the places. An array that lacks a member reads whole
    /// pages.
    pub fn is_given_by(&self, recording: &Recording) -> bool {
        self.places.iter().any(|&(disk, place)| {
            let page = DiskRange::new(place.start.0 / PAGE * PAGE, place.end.0.next_multiple_of(PAGE));
            recording.iter().eq([(disk, place)]) || recording.iter().eq([(disk, page)])
        })
    }
}

impl Layout {
    /// The reads that prove the layout of a device with sectors of this size: at both ends of each
    /// segment, or of the first and the last 32 segments.
    pub fn proofs(&self, sector: u64) -> Vec<Proof> {
        let mut proofs = Vec::new();
        for copy in &self.copies {
            let chosen = copy.iter().enumerate().filter(|(index, _)| {
                *index < SEGMENTS_PROVED || *index >= copy.len().saturating_sub(SEGMENTS_PROVED)
            });
            for (_, segment) in chosen {
                let length = segment.device.len().min(sector);
                for at in [segment.device.start.0, segment.device.end.0 - length] {
                    let at = at / sector * sector;
                    let range = Range::new(at, at + length);
                    // A sector of which parts lie apart is read in parts.
                    let parts = self.part(range).unwrap_or_default();
                    if parts.is_empty() || parts.iter().any(|part| part.device != range) {
                        continue;
                    }
                    // A read of less than a sector reads the sector.
                    let place =
                        |part: &Segment| (part.disk, DiskRange::new(part.start.0, part.start.0 + sector));
                    proofs.push(Proof { at: range.start, places: parts.iter().map(place).collect() });
                }
            }
        }
        proofs.sort_by_key(|proof| proof.at);
        proofs.dedup();
        proofs
    }
}
