//! Arrays of the md driver.

use super::raid::Level;
use super::{Builder, Layout, Lower};
use crate::appliance::MdArray;

/// Most members of an array, present or missing: the kernel allows fewer.
const MOST_MEMBERS: u64 = 1 << 10;

/// Adds what an array of `size` bytes maps; `None` if that does not follow from the kernel's
/// numbers.
pub(super) fn map(builder: &mut Builder, array: &MdArray, size: u64, lower: &Lower<'_>) -> Option<()> {
    if array.level == "linear" {
        let mut at = 0;
        for member in &array.members {
            let length = member.size.min(size - at);
            builder.map(at, length, lower.get(member.device)?, member.offset, 0)?;
            at += length;
        }
        return Some(());
    }
    let level = Level::from_md(&array.level, array.layout, array.disks)?;
    let smallest = array.members.iter().map(|member| member.size).min()?;
    // Members of different sizes make zones, each striped over fewer members than the one before.
    if level == Level::Raid0
        && array
            .members
            .iter()
            .any(|member| member.size / array.chunk.max(1) != smallest / array.chunk.max(1))
    {
        return None;
    }
    let place = |slot: u64| {
        let Some(member) = array.members.iter().find(|member| member.slot == slot) else {
            return Some(Member::Missing);
        };
        Some(Member::At(lower.get(member.device)?, member.offset))
    };
    if level.is_mirror() {
        return spread(builder, level, 0, array.disks, (0, size), &place);
    }
    let rows = smallest / array.chunk.max(1);
    spread_rows(builder, level, array.chunk, array.disks, rows, (0, size), &place)
}

/// Where the data of a member lies.
pub(super) enum Member<'a> {
    /// On the device below, and where the data begins on it.
    At(&'a Layout, u64),
    /// Nowhere: its disk is missing.
    Missing,
}

/// Finds a member; `None` if it exists, but its place is not known, or not yet.
type FindMember<'a> = dyn Fn(u64) -> Option<Member<'a>> + 'a;

/// Spreads a run of bytes (`start`, `length`) over members whose number of rows follows from it.
pub(super) fn spread(
    builder: &mut Builder,
    level: Level,
    chunk: u64,
    disks: u64,
    run: (u64, u64),
    place: &FindMember<'_>,
) -> Option<()> {
    if disks > MOST_MEMBERS {
        return None;
    }
    if level.is_mirror() {
        let mut copy = 0;
        for slot in 0..disks {
            if let Member::At(below, offset) = place(slot)? {
                copy += builder.map(run.0, run.1, below, offset, copy)?;
            }
        }
        return (copy > 0).then_some(());
    }
    spread_rows(builder, level, chunk, disks, u64::MAX / 2, run, place)
}

fn spread_rows(
    builder: &mut Builder,
    level: Level,
    chunk: u64,
    disks: u64,
    rows: u64,
    (start, length): (u64, u64),
    place: &FindMember<'_>,
) -> Option<()> {
    if chunk == 0 || disks <= level.parity_count() || disks > MOST_MEMBERS {
        return None;
    }
    let mut done = 0;
    while done < length {
        builder.count_chunk()?;
        let piece = chunk.min(length - done);
        let mut copy = 0;
        for (slot, row) in level.places(done / chunk, disks, rows) {
            // Chunks of a missing member are on no disk.
            if let Member::At(below, offset) = place(slot)? {
                let from = row.checked_mul(chunk)?.checked_add(offset)?;
                copy += builder.map(start + done, piece, below, from, copy)?;
            }
        }
        for (number, (slot, row)) in level.parities(done / chunk, disks).into_iter().enumerate() {
            if let Member::At(below, offset) = place(slot)? {
                let from = row.checked_mul(chunk)?.checked_add(offset)?;
                builder.protect(start + done, piece, below, from, number)?;
            }
        }
        if copy == 0 {
            // Only parity can restore it.
            builder.is_partial = true;
            (level.parity_count() > 0).then_some(())?;
        }
        done += piece;
    }
    Some(())
}
