//! Targets of the device mapper (`Documentation/admin-guide/device-mapper/`).

use super::md::{self, Member};
use super::raid::Level;
use super::{Builder, Lower, snapshot, thin};
use crate::appliance::{DmTarget, device_number};

/// Sectors of device-mapper tables.
const SECTOR: u64 = 512;

/// Adds what a target maps; `None` if that does not follow from its table.
pub(super) fn map(builder: &mut Builder, target: &DmTarget, lower: &mut Lower<'_>) -> Option<()> {
    let argument = |index: usize| target.arguments.get(index).map(String::as_str);
    let device = |index| device_number(argument(index)?);
    let below = |index| lower.get(device(index)?);
    let number = |index| argument(index)?.parse::<u64>().ok();
    let sectors = |index| number(index)?.checked_mul(SECTOR);
    // A count or index of arguments, of which no table has as many.
    let small = |index| number(index).filter(|n| *n <= 1 << 16).and_then(|n| usize::try_from(n).ok());
    target.start.checked_add(target.length)?;
    match target.kind.as_str() {
        // <device> <offset>
        "linear" => drop(builder.map(target.start, target.length, below(0)?, sectors(1)?, 0)?),
        // <cipher> <key> <iv offset> <device> <offset>
        "crypt" => drop(builder.map(target.start, target.length, below(3)?, sectors(4)?, 0)?),
        // Reads as zeroes: of a BitLocker volume, the places of its metadata (cryptsetup's
        // lib/bitlk/bitlk.c).
        "zero" => builder.nothing(target.start, target.length),
        // <device>
        "snapshot-origin" => drop(builder.map(target.start, target.length, below(0)?, target.start, 0)?),
        // <origin> <store> <persistent> <chunk size>
        "snapshot" if argument(2).is_some_and(|word| word.starts_with('P')) => {
            snapshot::map(builder, target, device(0)?, device(1)?, sectors(3)?, lower)?;
        }
        // <pool> <device> [<external origin>]
        "thin" => {
            let [pool] = lower.tables.get(&device(0)?)? else { return None };
            let origin = if target.arguments.len() > 2 { Some(device(2)?) } else { None };
            thin::map(builder, target, pool, number(1)?, origin, lower)?;
        }
        // <metadata device> <cache device> <origin> <block size> <number of features> <features>...
        // The agent has put it into this mode, if possible.
        "cache" if target.arguments.iter().any(|word| word == "passthrough") => {
            builder.map(target.start, target.length, below(2)?, 0, 0)?;
        }
        // <number of stripes> <chunk size> (<device> <offset>)...
        "striped" => {
            let stripes = number(0).filter(|n| *n > 0)?;
            let chunk = sectors(1).filter(|n| *n > 0)?;
            let mut done = 0;
            while done < target.length {
                builder.count_chunk()?;
                let number = done / chunk;
                let column = 2 * usize::try_from(number % stripes).ok()?;
                let from = sectors(3 + column)?.checked_add(number / stripes * chunk)?;
                let length = chunk.min(target.length - done);
                builder.map(target.start + done, length, below(2 + column)?, from, 0)?;
                done += length;
            }
        }
        // <log type> <number of its arguments> <arguments>... <number of legs> (<device>
        // <offset>)...
        "mirror" => {
            let legs = 2 + small(1)?;
            let mut copy = 0;
            for leg in 0..small(legs)? {
                let (device, offset) = (legs + 1 + 2 * leg, legs + 2 + 2 * leg);
                copy += builder.map(target.start, target.length, below(device)?, sectors(offset)?, copy)?;
            }
        }
        // <type> <number of parameters> <parameters>... <number of devices> (<metadata> <data>)...
        "raid" => {
            let parameters = small(1)?;
            // The first parameter is the size of a chunk. These others would move data.
            let chunk = sectors(2)?;
            let words = target.arguments.get(2..2 + parameters)?;
            if words
                .iter()
                .any(|word| matches!(word.as_str(), "delta_disks" | "data_offset" | "raid10_format"))
            {
                return None;
            }
            let devices = number(2 + parameters)?;
            let level = Level::from_dm(argument(0)?, devices)?;
            let member = |slot: u64| {
                let index = 3 + parameters + 2 * usize::try_from(slot).ok()? + 1;
                if argument(index)? == "-" {
                    Some(Member::Missing)
                } else {
                    Some(Member::At(below(index)?, 0))
                }
            };
            md::spread(builder, level, chunk, devices, (target.start, target.length), &member)?;
        }
        _ => return None,
    }
    Some(())
}
