//! `rbd diff` (rbd(8)), as text or with `--format json`: the changed ranges of a Ceph image.
//!
//! ```text
//! Offset  Length  Type
//! 0       4194304 data
//! 8388608 4194304 zero
//! ```
//!
//! In JSON, `exists` is `"true"` for data (`src/tools/rbd/action/Diff.cc`). Both types count by
//! default: zeroes are a change, too.

use serde::Deserialize;
use std::io::BufRead;

use super::lines::{self, LineProblem, words};
use super::{Entries, Kind, ListError, RangeListOptions, json};
use virt_bmap_ranges::parse_digits;

const TYPES: [&str; 2] = ["data", "zero"];

#[derive(Deserialize)]
struct Extent {
    offset: u64,
    length: u64,
    exists: String,
}

/// Whether a list begins with this line: the names of the columns, or an entry.
pub(super) fn is_line(line: &[u8]) -> bool {
    is_header(line) || parse(line).is_ok()
}

fn is_header(line: &[u8]) -> bool {
    words(line).eq([&b"Offset"[..], b"Length", b"Type"])
}

fn parse(line: &[u8]) -> Result<(u64, u64, &'static str), LineProblem> {
    let mut words = words(line);
    let mut number = || {
        let word = words.next().unwrap_or_default();
        parse_digits(word, 10).ok_or_else(|| LineProblem::unexpected(word, "a number of bytes"))
    };
    let (offset, length) = (number()?, number()?);
    let word = words.next().unwrap_or_default();
    let of = TYPES.into_iter().find(|of| of.as_bytes() == word);
    let of = of.ok_or_else(|| LineProblem::unexpected(word, "data or zero"))?;
    match words.next() {
        Some(word) => Err(LineProblem::unexpected(word, "the end of the line")),
        None => Ok((offset, length, of)),
    }
}

pub(super) fn read(
    input: &mut dyn BufRead,
    options: &RangeListOptions,
    entries: &mut Entries,
) -> Result<String, ListError> {
    let wanted = options.types_or(&TYPES);
    if input.fill_buf()?.trim_ascii_start().starts_with(b"[") {
        json::for_each(input, Kind::RbdDiff, |extent: Extent| {
            let of = match extent.exists.as_str() {
                "true" => "data",
                "false" => "zero",
                other => return Err(LineProblem::unexpected(other.as_bytes(), "true or false")),
            };
            entries.push_ascending(extent.offset, extent.length, wanted.contains(&of))
        })?;
    } else {
        lines::for_each(input, entries, |line, entries| {
            if is_header(line) {
                return Ok(());
            }
            let (offset, length, of) = parse(line)?;
            entries.push_ascending(offset, length, wanted.contains(&of))
        })?;
    }
    Ok(format!("type {}", wanted.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, ListError, RangeListOptions, read};
    use virt_bmap_ranges::DiskRange;

    #[test]
    fn text_and_json_are_one_list() {
        let text = "Offset   Length   Type \n0        4194304  data \n8388608  1048576  zero \n";
        let json = r#"[{"offset":0,"length":4194304,"exists":"true"},{"offset":8388608,"length":1048576,"exists":"false"}]"#;
        for list in [text, json] {
            let read = |options| read(list.as_bytes(), &options).unwrap();
            let all = read(RangeListOptions::default());
            assert_eq!((all.kind, all.entries), (Kind::RbdDiff, 2));
            assert_eq!(
                all.spans.iter().collect::<Vec<_>>(),
                [DiskRange::new(0, 4 << 20), DiskRange::new(8 << 20, 9 << 20)]
            );
            let data =
                RangeListOptions { types: Some(vec!["data".to_owned()]), ..RangeListOptions::default() };
            assert_eq!(read(data).spans.bytes(), 4 << 20);
        }
    }

    #[test]
    fn a_damaged_list_is_refused() {
        for text in ["0 512 data\n0 512 data\n", "0 512 data\n512 x data\n", "0 512 data\n512 1 hole\n"] {
            let error = read(text.as_bytes(), &RangeListOptions::default()).unwrap_err();
            assert!(matches!(error, ListError::Line { line: 2, .. }), "{text}: {error}");
        }
        let text = r#"[{"offset":0,"length":4194304,"exists":"maybe"}]"#;
        assert!(matches!(read(text.as_bytes(), &RangeListOptions::default()), Err(ListError::Entry { .. })));
    }
}
