//! Data of files that lies in a journal.
//!
//! ext3 and ext4 with `data=journal` write data to the journal first, and to its place later.
//! Mounting replays the journal, so a look sees the data in its place at once. What a state has
//! changed is therefore found by comparing bytes: what mounting wrote with the state before, and
//! what the guest wrote to its place with what mounting had written there.

use super::Maps;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use virt_bmap_image::Source;
use virt_bmap_map::{Hit, Kind, Map};
use virt_bmap_ranges::{DiskNumber, DiskOffset, DiskRange, RangeSet};

/// Bytes that are compared at a time: the smallest block of ext.
const BLOCK: u64 = 1024;

/// Data of files that mounting wrote: a part of a disk, and the filesystem that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// The device of the filesystem.
    pub device: Vec<u8>,
    /// The disk.
    pub disk: DiskNumber,
    /// Where the bytes lie there.
    pub start: DiskOffset,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Most bytes of data that are kept of a look.
const MOST_DATA: u64 = 64 << 20;

impl Replayed {
    /// The data of files in what mounting wrote, as far as it is not too much. `disks`: the disks
    /// with what mounting wrote.
    ///
    /// # Errors
    /// A disk cannot be read.
    pub fn of(
        map: &Map,
        replayed: &[RangeSet<DiskOffset>],
        disks: &[Arc<dyn Source>],
    ) -> io::Result<Vec<Self>> {
        let is_data = |hit: &Hit<'_>| {
            hit.object.kind() == Kind::File && hit.role.flags.is_empty() && hit.role.copy == 0
        };
        let mut data = Vec::new();
        let mut left = MOST_DATA;
        for ((disk, ranges), source) in (1..).zip(replayed).zip(disks) {
            let hits = ranges.iter().flat_map(|range| map.over(disk, range));
            for hit in hits.filter(is_data) {
                let Some(rest) = left.checked_sub(hit.range.len()) else { return Ok(data) };
                left = rest;
                let mut bytes = vec![0; hit.range.len() as usize];
                source.read_at(&mut bytes, hit.range.start)?;
                let device = hit.object.name().device.to_vec();
                data.push(Self { device, disk, start: hit.range.start, bytes });
            }
        }
        Ok(data)
    }

    fn range(&self) -> DiskRange {
        DiskRange::saturating(self.start.0, self.bytes.len() as u64)
    }

    /// The bytes of a part of the range.
    fn part(&self, part: DiskRange) -> &[u8] {
        let from = part.start.0.saturating_sub(self.start.0) as usize;
        self.bytes.get(from..from + part.len() as usize).unwrap_or_default()
    }
}

/// What a look has seen, to be compared with the next state.
#[derive(Default)]
pub(super) struct Seen {
    /// The disks, without what mounting wrote.
    pub(super) disks: Vec<Arc<dyn Source>>,
    /// What mounting wrote of the data of files, in the last look at each filesystem, by the place.
    replayed: BTreeMap<Vec<u8>, BTreeMap<(DiskNumber, DiskOffset), Replayed>>,
}

impl Seen {
    /// Takes over what mounting wrote in a look at the filesystems on these devices.
    pub(super) fn replace<'a>(&mut self, devices: impl Iterator<Item = &'a [u8]>, replayed: Vec<Replayed>) {
        for device in devices {
            self.replayed.remove(device);
        }
        for piece in replayed {
            let of_device = self.replayed.entry(piece.device.clone()).or_default();
            of_device.insert((piece.disk, piece.start), piece);
        }
    }

    /// What is left of `written` without data that mounting had written to the same place before.
    ///
    /// # Errors
    /// A disk in `now` cannot be read.
    pub(super) fn without_known(
        &self,
        written: &[RangeSet<DiskOffset>],
        now: &[Arc<dyn Source>],
    ) -> io::Result<Vec<RangeSet<DiskOffset>>> {
        let mut left = written.to_vec();
        for piece in self.pieces() {
            let (Some(left), Some(now)) = (of(&mut left, piece.disk), of_disk(now, piece.disk)) else {
                continue;
            };
            let parts: Vec<DiskRange> = left.overlap(piece.range()).flat_map(blocks).collect();
            for part in parts {
                let mut bytes = vec![0; part.len() as usize];
                now.read_at(&mut bytes, part.start)?;
                if bytes == piece.part(part) {
                    left.remove(part);
                }
            }
        }
        Ok(left)
    }

    /// Whether mounting has written data of files to some of these ranges.
    pub(super) fn has_replayed(&self, ranges: &[RangeSet<DiskOffset>]) -> bool {
        let is_hit = |piece: &Replayed| {
            let ranges = index(piece.disk).and_then(|index| ranges.get(index));
            ranges.is_some_and(|ranges| ranges.overlap(piece.range()).next().is_some())
        };
        self.pieces().any(is_hit)
    }

    fn pieces(&self) -> impl Iterator<Item = &Replayed> {
        self.replayed.values().flat_map(BTreeMap::values)
    }

    /// What mounting has written of files that had other data there before. `maps`: those of the
    /// state before.
    ///
    /// # Errors
    /// A disk cannot be read.
    pub(super) fn changed(
        &self,
        replayed: &[Replayed],
        maps: &Maps,
    ) -> io::Result<Vec<RangeSet<DiskOffset>>> {
        let mut changed = Vec::new();
        for piece in replayed {
            let Some(index) = index(piece.disk) else { continue };
            changed.resize_with(changed.len().max(index + 1), RangeSet::new);
            for part in blocks(piece.range()) {
                let had_data = maps.get(&piece.device).is_some_and(|map| {
                    let mut hits = map.over(piece.disk, part);
                    hits.any(|hit| hit.object.kind() == Kind::File)
                });
                if !had_data || self.bytes(piece, part)?.as_deref() != Some(piece.part(part)) {
                    changed[index].insert(part);
                }
            }
        }
        Ok(changed)
    }

    /// The bytes that the look before has seen where a part of a piece lies.
    fn bytes(&self, piece: &Replayed, part: DiskRange) -> io::Result<Option<Vec<u8>>> {
        let Some(disk) = of_disk(&self.disks, piece.disk) else { return Ok(None) };
        let mut bytes = vec![0; part.len() as usize];
        disk.read_at(&mut bytes, part.start)?;
        let pieces = self.replayed.get(&piece.device);
        let before = pieces.into_iter().flat_map(|pieces| pieces.range(..(piece.disk, part.end)).rev());
        for ((disk, _), before) in before {
            let Some(shared) = before.range().intersection(part).filter(|_| *disk == piece.disk) else {
                break;
            };
            let from = (shared.start.0 - part.start.0) as usize;
            bytes[from..from + shared.len() as usize].copy_from_slice(before.part(shared));
        }
        Ok(Some(bytes))
    }
}

/// What mounting wrote, but for the data that was compared.
pub(super) fn without_data(
    mut ranges: Vec<RangeSet<DiskOffset>>,
    replayed: &[Replayed],
) -> Vec<RangeSet<DiskOffset>> {
    for piece in replayed {
        if let Some(ranges) = of(&mut ranges, piece.disk) {
            ranges.remove(piece.range());
        }
    }
    ranges
}

/// The ranges of a disk.
pub(super) fn of(ranges: &mut [RangeSet<DiskOffset>], disk: DiskNumber) -> Option<&mut RangeSet<DiskOffset>> {
    ranges.get_mut(index(disk)?)
}

fn of_disk(disks: &[Arc<dyn Source>], disk: DiskNumber) -> Option<&Arc<dyn Source>> {
    disks.get(index(disk)?)
}

/// The place of a disk in lists that have one entry for each.
fn index(disk: DiskNumber) -> Option<usize> {
    usize::from(disk).checked_sub(1)
}

/// The blocks of a range. Only the first and the last of them may be shorter.
fn blocks(range: DiskRange) -> impl Iterator<Item = DiskRange> {
    let ends = (range.start.0 / BLOCK + 1..).map(|number| number * BLOCK);
    let mut start = range.start.0;
    ends.map_while(move |end| {
        let end = end.min(range.end.0);
        let block = (start < end).then(|| DiskRange::new(start, end));
        start = end;
        block
    })
}

#[cfg(test)]
mod tests;
