//! Snapshots of the device mapper (`Documentation/admin-guide/device-mapper/snapshot.rst`).

use super::{Builder, Lower};
use crate::appliance::{DeviceNumber, DmTarget};
use virt_bmap_on_disk::snapshot::store;
use virt_bmap_ranges::{DeviceOffset, Range};

/// Maps a snapshot to its origin, and to its store the chunks that were written in either since.
/// The kernel reads the store when the device is set up, and not again.
pub(super) fn map(
    builder: &mut Builder,
    target: &DmTarget,
    origin: DeviceNumber,
    number: DeviceNumber,
    chunk: u64,
    lower: &mut Lower<'_>,
) -> Option<()> {
    let (origin, layout) = (lower.get(origin)?, lower.get(number)?);
    let store = store(&|at, length| layout.read(lower.disks, at, length), chunk, layout.size())?;
    let mut end = 0;
    for (old, new) in store.exceptions {
        let (start, from) = (old.checked_mul(chunk)?, new.checked_mul(chunk)?);
        if start >= target.length {
            break;
        }
        builder.count_chunk()?;
        builder.map(target.start + end, start - end, origin, end, 0)?;
        end = start.saturating_add(chunk).min(target.length);
        builder.map(target.start + start, end - start, layout, from, 0)?;
    }
    builder.map(target.start + end, target.length - end, origin, end, 0)?;
    let list = |chunk_number: u64| Range::at(DeviceOffset(chunk_number.checked_mul(chunk)?), chunk);
    let lists: Vec<_> = store.lists.into_iter().filter_map(list).collect();
    lower.note_lookups(number, "[snapshot exceptions]", lists);
    Some(())
}
