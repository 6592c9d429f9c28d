//! Text by `blkparse`, in its default format (blkparse(1)).
//!
//! ```text
//!   8,0    3        1     0.000000000   697  G   W 223490 + 8 [kjournald]
//! ```
//!
//! Device, processor, sequence number, time, process, action, kind of request, first sector, `+`,
//! number of sectors of 512 bytes, program. One request is there several times, once for each
//! action on its way; as each byte counts once, that does no harm. Sectors count from the beginning
//! of the device that was traced, a whole disk if the list is to be one of a disk.

use std::io::BufRead;

use super::lines::{self, LineProblem, words};
use super::{Entries, ListError, Operation, RangeListOptions};
use virt_bmap_ranges::parse_digits;

/// Bytes in a sector, whatever the device's own are.
const SECTOR: u64 = 512;

/// Whether a line is an event: it begins with the numbers of a device.
pub(super) fn is_event(line: &[u8]) -> bool {
    let mut words = words(line);
    let device = words.next().unwrap_or_default();
    let is_number = |digits: &[u8]| parse_digits(digits, 10).is_some();
    let mut numbers = device.splitn(2, |&byte| byte == b',');
    let is_device = numbers.next().is_some_and(is_number) && numbers.next().is_some_and(is_number);
    is_device && words.next().is_some_and(is_number) && words.next().is_some_and(is_number)
}

/// The operation and range of an event; `None` where it has none.
fn range(line: &[u8]) -> Result<Option<(Operation, u64, u64)>, LineProblem> {
    let mut words = words(line).skip(6);
    let request = words.next().unwrap_or_default();
    let sector = words.next().and_then(|word| parse_digits(word, 10));
    let (Some(sector), Some(b"+")) = (sector, words.next()) else { return Ok(None) };
    let count = words.next().unwrap_or_default();
    let count =
        parse_digits(count, 10).ok_or_else(|| LineProblem::unexpected(count, "a number of sectors"))?;
    let operation = if request.contains(&b'D') {
        Operation::Trim
    } else if request.contains(&b'W') {
        Operation::Write
    } else if request.contains(&b'R') {
        Operation::Read
    } else {
        return Ok(None); // a flush, or a notice
    };
    let bytes = |sectors: u64| {
        let error = LineProblem::TooLong { start: sector, length: count };
        sectors.checked_mul(SECTOR).ok_or(error)
    };
    Ok(Some((operation, bytes(sector)?, bytes(count)?)))
}

pub(super) fn read(
    input: &mut dyn BufRead,
    options: &RangeListOptions,
    entries: &mut Entries,
) -> Result<String, ListError> {
    let mut is_summary = false;
    lines::for_each(input, entries, |line, entries| {
        // Below the events stand sums: of each processor, and of all.
        is_summary |= line.starts_with(b"CPU") || line.starts_with(b"Total (");
        if is_summary {
            return Ok(());
        }
        if !is_event(line) {
            return Err(LineProblem::unexpected(line, "an event of blkparse"));
        }
        match range(line)? {
            Some((operation, start, length)) => entries.push(start, length, options.wants(operation)),
            None => Ok(()),
        }
    })?;
    Ok(options.rule_of_operations())
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, ListError, Operation, RangeListOptions, read};
    use virt_bmap_ranges::DiskRange;

    const TEXT: &str = "\
  8,0    3        1     0.000000000   697  Q   W 24 + 8 [kjournald]
  8,0    3        2     0.000001829   697  P   N [kjournald]
  8,0    3        3     0.000002197   697  D  WS 24 + 8 [kjournald]
  8,0    1        4     0.000003000   698  Q   R 100 + 2 [cat]
  8,0    1        5     0.000004000   698  Q   D 200 + 1 [fstrim]
  8,0    1        6     0.000004000   698  Q FWS [fsync]
  8,0    1        7     0.000005000     0  C   W 24 + 8 [0]
CPU1 (sda):
 Reads Queued:           1,        1KiB\t Writes Queued:           0,        0KiB
";

    #[test]
    fn events_with_a_range_count() {
        let list = read(TEXT.as_bytes(), &RangeListOptions::default()).unwrap();
        assert_eq!(list.kind, Kind::Blkparse);
        assert_eq!((list.entries, list.spans.bytes()), (5, 11 * 512));
        let options =
            RangeListOptions { operations: Some(vec![Operation::Read]), ..RangeListOptions::default() };
        let list = read(TEXT.as_bytes(), &options).unwrap();
        assert_eq!(list.spans.iter().collect::<Vec<_>>(), [DiskRange::new(51200, 52224)]);
    }

    #[test]
    fn an_invalid_line_is_reported() {
        for tail in [
            "0 512\n",
            "  8,0 1 4 0.0 698 Q R 18446744073709551615 + 2 [x]\n",
            "  8,0 1 4 0.0 698 Q R 1 + x [x]\n",
        ] {
            let text = format!("{}\n{tail}", TEXT.lines().next().unwrap());
            let error = read(text.as_bytes(), &RangeListOptions::default()).unwrap_err();
            assert!(matches!(error, ListError::Line { line: 2, .. }), "{tail}: {error}");
        }
    }
}
