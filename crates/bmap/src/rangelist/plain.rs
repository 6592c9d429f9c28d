//! Lines of `OFFSET LENGTH`.
//!
//! Both are as [`parse_bytes`] reads them. `#` begins a comment.

use std::io::BufRead;

use super::lines::{self, LineProblem, words};
use super::{Entries, ListError, RangeListOptions};
use virt_bmap_ranges::parse_bytes;

/// Whether a line is such a one.
pub(super) fn is_range(line: &[u8]) -> bool {
    parse(line).is_ok()
}

fn parse(line: &[u8]) -> Result<(u64, u64), LineProblem> {
    let mut words = words(line);
    let start = parse_bytes(words.next().unwrap_or_default())?;
    let length = words.next().ok_or_else(|| LineProblem::unexpected(b"", "a length"))?;
    let length = parse_bytes(length)?;
    match words.next() {
        Some(word) => Err(LineProblem::unexpected(word, "the end of the line")),
        None => Ok((start, length)),
    }
}

pub(super) fn read(
    input: &mut dyn BufRead,
    _options: &RangeListOptions,
    entries: &mut Entries,
) -> Result<String, ListError> {
    lines::for_each(input, entries, |line, entries| {
        let (start, length) = parse(line)?;
        entries.push(start, length, true)
    })?;
    Ok("all ranges".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, ListError, RangeListOptions, read};
    use virt_bmap_ranges::DiskRange;

    #[test]
    fn ranges_may_overlap_and_descend() {
        let list = read(&b"4K 1K\n0x0 512 # boot\n0 1K\n7 0\n"[..], &RangeListOptions::default()).unwrap();
        assert_eq!(list.kind, Kind::Plain);
        assert_eq!(
            list.spans.iter().collect::<Vec<_>>(),
            [DiskRange::new(0, 1024), DiskRange::new(4096, 5120)]
        );
        assert_eq!((list.entries, list.counted, list.is_unordered, list.end), (4, 4, true, 5120));
    }

    #[test]
    fn an_invalid_line_is_reported_by_its_number() {
        for (text, wrong) in [
            ("0 512\n0 512 9\n", 2),
            ("0 512\n\n12\n", 3),
            ("0 512\n0 18446744073709551615\n5 18446744073709551615\n", 3),
            ("0 1\nx 2\n", 2),
        ] {
            let error = read(text.as_bytes(), &RangeListOptions::default()).unwrap_err();
            assert!(matches!(error, ListError::Line { line, .. } if line == wrong), "{text}: {error}");
        }
        let long = [&b"0 512\n"[..], &[b'1'; 70_000]].concat();
        assert!(matches!(
            read(&long[..], &RangeListOptions::default()),
            Err(ListError::Line { line: 2, .. })
        ));
    }
}
