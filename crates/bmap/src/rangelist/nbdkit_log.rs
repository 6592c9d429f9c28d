//! Lines of nbdkit's log filter (nbdkit-log-filter(1)).
//!
//! ```text
//! 2026-11-20 16:10:45.744190 connection=1 Read id=1 offset=0x0 count=0x1000 ...
//! ```
//!
//! Lines without a range are skipped, and so are answers (`...Read id=1 return=0`).

use std::io::BufRead;

use super::lines::{self, LineProblem, words};
use super::{Entries, ListError, Operation, RangeListOptions};
use virt_bmap_ranges::parse_digits;

/// Whether a line is nbdkit's: it begins with the time to the microsecond.
pub(super) fn is_event(line: &[u8]) -> bool {
    let mut words = words(line);
    let date = words.next().unwrap_or_default();
    let time = words.next().unwrap_or_default();
    let shape = |text: &[u8], shape: &[u8]| {
        text.len() == shape.len()
            && text.iter().zip(shape).all(|(byte, model)| match model {
                b'0' => byte.is_ascii_digit(),
                _ => byte == model,
            })
    };
    shape(date, b"0000-00-00") && shape(time, b"00:00:00.000000")
}

/// The operation and the range of a request; `None` for any other line.
fn request(line: &[u8]) -> Result<Option<(Operation, u64, u64)>, LineProblem> {
    let mut words = words(line).skip(2).skip_while(|word| word.starts_with(b"connection="));
    let operation = match words.next().unwrap_or_default() {
        b"Read" => Operation::Read,
        b"Write" => Operation::Write,
        b"Zero" => Operation::Zero,
        b"Trim" => Operation::Trim,
        _ => return Ok(None),
    };
    let (mut offset, mut count) = (None, None);
    for word in words {
        let number = |digits: &[u8]| {
            let hex = digits.strip_prefix(b"0x").and_then(|digits| parse_digits(digits, 16));
            hex.ok_or_else(|| LineProblem::unexpected(digits, "a number in hexadecimal with 0x"))
        };
        if let Some(digits) = word.strip_prefix(b"offset=") {
            offset = Some(number(digits)?);
        } else if let Some(digits) = word.strip_prefix(b"count=") {
            count = Some(number(digits)?);
        }
    }
    match (offset, count) {
        (Some(offset), Some(count)) => Ok(Some((operation, offset, count))),
        _ => Err(LineProblem::unexpected(line, "a request with offset= and count=")),
    }
}

pub(super) fn read(
    input: &mut dyn BufRead,
    options: &RangeListOptions,
    entries: &mut Entries,
) -> Result<String, ListError> {
    lines::for_each(input, entries, |line, entries| {
        if !is_event(line) {
            return Err(LineProblem::unexpected(line, "a line of nbdkit's log, with date and time,"));
        }
        match request(line)? {
            Some((operation, offset, count)) => entries.push(offset, count, options.wants(operation)),
            None => Ok(()),
        }
    })?;
    Ok(options.rule_of_operations())
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, ListError, Operation, RangeListOptions, read};
    use virt_bmap_ranges::DiskRange;

    const LOG: &str = "\
2026-11-20 16:10:45.705205 Ready thread_model=3
2026-11-20 16:10:45.743552 connection=1 Connect export=\"\" tls=0 size=0x100000 write=1
2026-11-20 16:10:45.744190 connection=1 Read id=1 offset=0x1000 count=0x1000 ...
2026-11-20 16:10:45.744200 connection=1 ...Read id=1 return=0
2026-11-20 16:10:45.744466 connection=1 Write id=2 offset=0x10000 count=0x200 fua=1 ...
2026-11-20 16:10:45.744574 connection=2 Zero id=3 offset=0x20000 count=0x1000 trim=0 fua=1 fast=0 ...
2026-11-20 16:10:45.744634 connection=1 Flush id=4 ...
";

    #[test]
    fn requests_count() {
        let list = read(LOG.as_bytes(), &RangeListOptions::default()).unwrap();
        assert_eq!(list.kind, Kind::NbdkitLog);
        assert_eq!((list.entries, list.counted), (3, 3));
        assert_eq!(list.spans.bytes(), 0x2200);
        let options = RangeListOptions {
            operations: Some(vec![Operation::Write, Operation::Zero]),
            ..RangeListOptions::default()
        };
        let list = read(LOG.as_bytes(), &options).unwrap();
        assert_eq!(
            list.spans.iter().collect::<Vec<_>>(),
            [DiskRange::new(0x10000, 0x10200), DiskRange::new(0x20000, 0x21000)]
        );
        assert_eq!(list.rule, "write, zero");
    }

    #[test]
    fn an_invalid_line_is_reported() {
        for tail in [
            "0 512\n",
            "2026-11-20 16:10:45.744190 connection=1 Read id=1 offset=0x1000\n",
            "2026-11-20 16:10:45.744190 connection=1 Read id=1 offset=4096 count=0x1000 ...\n",
        ] {
            let error = read(format!("{LOG}{tail}").as_bytes(), &RangeListOptions::default()).unwrap_err();
            assert!(matches!(error, ListError::Line { line: 8, .. }), "{tail}: {error}");
        }
    }
}
