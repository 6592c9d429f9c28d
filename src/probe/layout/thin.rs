//! Thin volumes of the device mapper
//! (`Documentation/admin-guide/device-mapper/thin-provisioning.rst`).

use super::{Builder, Layout, Lower};
use crate::appliance::{DeviceNumber, DmTarget, device_number};
use virt_bmap_on_disk::thin::Pool;
use virt_bmap_ranges::Range;

/// Maps a thin device by the metadata of its pool. What no block of the pool holds is read from the
/// external origin, as far as that goes, and is on no disk otherwise.
pub(super) fn map(
    builder: &mut Builder,
    target: &DmTarget,
    pool: &DmTarget,
    device: u64,
    origin: Option<DeviceNumber>,
    lower: &mut Lower<'_>,
) -> Option<()> {
    // <metadata device> <data device> <block size> …
    let below = |index: usize| lower.get(device_number(pool.arguments.get(index)?)?);
    let number = device_number(pool.arguments.first().filter(|_| pool.kind == "thin-pool")?)?;
    let (metadata, data) = (lower.get(number)?, below(1)?);
    let origin = match origin {
        Some(origin) => Some(lower.get(origin)?),
        None => None,
    };
    let read = |at, length| metadata.read(lower.disks, at, length);
    let of = Pool::of(&read)?;
    let mut end = 0;
    for run in of.blocks(&read, device)? {
        let (start, from) = (run.first.checked_mul(of.block)?, run.at.checked_mul(of.block)?);
        if start >= target.length {
            break;
        }
        builder.count_chunk()?;
        unmapped(builder, target, end, start, origin)?;
        end = start.checked_add(run.count.checked_mul(of.block)?)?.min(target.length);
        builder.map(target.start + start, end - start, data, from, 0)?;
    }
    unmapped(builder, target, end, target.length, origin)?;
    let whole = Range::new(0, metadata.size());
    lower.note_lookups(number, "[thin pool metadata]", [whole]);
    Some(())
}

/// Maps a part that no block of the pool holds.
fn unmapped(
    builder: &mut Builder,
    target: &DmTarget,
    from: u64,
    to: u64,
    origin: Option<&Layout>,
) -> Option<()> {
    let inside = origin.map_or(from, |origin| origin.size().clamp(from, to));
    if let Some(origin) = origin.filter(|_| inside > from) {
        builder.map(target.start + from, inside - from, origin, from, 0)?;
    }
    if to > inside {
        builder.nothing(target.start + inside, to - inside);
    }
    Some(())
}
