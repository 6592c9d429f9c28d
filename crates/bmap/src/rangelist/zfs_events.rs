//! `zpool events -v` (zpool-events(8)): errors that a scrub or a reader of a ZFS volume met.
//!
//! ```text
//! Nov 20 2026 10:00:00.123456789 ereport.fs.zfs.checksum
//!         class = "ereport.fs.zfs.checksum"
//!         zio_objset = 0x104
//!         zio_object = 0x1
//!         zio_level = 0x0
//!         zio_blkid = 0x3c
//! ```
//!
//! The bytes of a volume are its object 1 (`ZVOL_OBJ` in `zvol_impl.h`), and `zio_blkid` is the
//! number of a block of it, if the level is 0. The size of a block is the property `volblocksize`,
//! which the events do not have. The number in `zio_objset` tells volumes apart; it is the "device"
//! that can be chosen. `zpool status -v` and `zdb` have no places of errors within a volume.

use std::io::BufRead;

use super::lines::{self, LineProblem, OneDevice};
use super::{Entries, Kind, ListError, RangeListOptions};
use virt_bmap_ranges::parse_digits;

const VOLUME_DATA: u64 = 1;

/// The fields of an event so far.
#[derive(Default)]
struct Event {
    is_error: bool,
    objset: Option<Vec<u8>>,
    object: Option<u64>,
    level: Option<u64>,
    block: Option<u64>,
}

impl Event {
    /// Adds the block, if the event is of one.
    fn end(self, size: u64, device: &mut OneDevice<'_>, entries: &mut Entries) -> Result<(), LineProblem> {
        let (true, Some(objset), Some(VOLUME_DATA), Some(0), Some(block)) =
            (self.is_error, self.objset, self.object, self.level, self.block)
        else {
            return Ok(());
        };
        if !device.is(&objset)? {
            return Ok(());
        }
        let start = block.checked_mul(size).ok_or(LineProblem::TooLong { start: block, length: size })?;
        entries.push(start, size, true)
    }
}

/// A number, in hexadecimal with `0x`, or decimal.
fn number(text: &[u8]) -> Option<u64> {
    text.strip_prefix(b"0x").map_or_else(|| parse_digits(text, 10), |digits| parse_digits(digits, 16))
}

pub(super) fn read(
    input: &mut dyn BufRead,
    options: &RangeListOptions,
    entries: &mut Entries,
) -> Result<String, ListError> {
    let size = options.block_size.ok_or(ListError::NoBlockSize { kind: Kind::ZfsEvents })?;
    let mut device = OneDevice::of(options);
    let mut event = Event::default();
    lines::for_each_whole(input, entries, |line, entries| {
        let mut sides = line.splitn(2, |&byte| byte == b'=').map(<[u8]>::trim_ascii);
        let (Some(name), Some(value)) = (sides.next(), sides.next()) else { return Ok(()) };
        match name {
            b"class" => {
                let is_error =
                    [&b"checksum\""[..], b"io\"", b"data\""].iter().any(|end| value.ends_with(end));
                std::mem::replace(&mut event, Event { is_error, ..Event::default() }).end(
                    size,
                    &mut device,
                    entries,
                )?;
            }
            b"zio_objset" => event.objset = Some(value.to_vec()),
            b"zio_object" => event.object = number(value),
            b"zio_level" => event.level = number(value),
            b"zio_blkid" => event.block = number(value),
            _ => {}
        }
        Ok(())
    })?;
    let entry = entries.number + 1;
    event.end(size, &mut device, entries).map_err(|problem| ListError::Entry {
        entry,
        kind: Kind::ZfsEvents,
        problem,
    })?;
    Ok(format!("errors of level 0, blocks of {size} bytes"))
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, ListError, RangeListOptions, read};
    use virt_bmap_ranges::DiskRange;

    fn event(class: &str, objset: u64, object: u64, level: u64, block: u64) -> String {
        format!(
            "Nov 20 2026 10:00:00.123456789 ereport.fs.zfs.{class}\n        class = \"ereport.fs.zfs.{class}\"\n\
             \x20       ena = 0xc3b1a5c1d0600401\n        detector = (embedded nvlist)\n\
             \x20               version = 0x0\n        (end detector)\n        pool = \"tank\"\n\
             \x20       zio_err = 0x34\n        zio_objset = {objset:#x}\n        zio_object = {object:#x}\n\
             \x20       zio_level = {level:#x}\n        zio_blkid = {block:#x}\n\n"
        )
    }

    fn options(size: Option<u64>, device: Option<&str>) -> RangeListOptions {
        RangeListOptions {
            block_size: size,
            device: device.map(str::to_owned),
            ..RangeListOptions::default()
        }
    }

    #[test]
    fn blocks_of_the_volume_count() {
        let text = event("checksum", 0x104, 1, 0, 60)
            + &event("checksum", 0x104, 1, 1, 5)
            + &event("checksum", 0, 61, 0, 7)
            + &event("delay", 0x104, 1, 0, 8)
            + &event("io", 0x104, 1, 0, 61);
        let list = read(text.as_bytes(), &options(Some(8192), None)).unwrap();
        assert_eq!((list.kind, list.entries), (Kind::ZfsEvents, 2));
        assert_eq!(list.spans.iter().collect::<Vec<_>>(), [DiskRange::new(60 * 8192, 62 * 8192)]);
    }

    #[test]
    fn what_cannot_be_placed_is_refused() {
        let one = event("checksum", 0x104, 1, 0, 60);
        assert!(matches!(read(one.as_bytes(), &options(None, None)), Err(ListError::NoBlockSize { .. })));
        let two = one.clone() + &event("checksum", 0x105, 1, 0, 9);
        assert!(matches!(read(two.as_bytes(), &options(Some(8192), None)), Err(ListError::Entry { .. })));
        let list = read(two.as_bytes(), &options(Some(8192), Some("0x105"))).unwrap();
        assert_eq!(list.spans.end(), 10 * 8192);
        let far = event("io", 1, 1, 0, u64::MAX);
        assert!(read(far.as_bytes(), &options(Some(8192), None)).is_err());
    }
}
