//! `thin_delta` (thin_delta(8)): in which blocks two thin volumes of LVM differ.
//!
//! ```text
//! <superblock uuid="" time="2" transaction="3" data_block_size="128" nr_data_blocks="1000">
//!   <diff left="1" right="2">
//!     <different begin="2" length="1"/>
//! ```
//!
//! `begin` and `length` count blocks of the volume, `data_block_size` sectors of 512 bytes. With
//! `--verbose`, each type of difference is an element with `range` elements in it. By default
//! `different`, `left_only` and `right_only` count: blocks with other content, and those that only
//! the older or the newer volume has.

use std::io::{BufRead, Read as _};

use super::lines::LineProblem;
use super::{Entries, Kind, ListError, RangeListOptions};
use virt_bmap_ranges::parse_digits;

const SECTOR: u64 = 512;

/// Longest tag.
const MAX_TAG: u64 = 4096;

const TYPES: [&str; 4] = ["same", "different", "left_only", "right_only"];
const DEFAULT: [&str; 3] = ["different", "left_only", "right_only"];

/// The next tag, without its angle brackets; `None` at the end.
fn tag(input: &mut dyn BufRead, buffer: &mut Vec<u8>) -> Result<bool, ListError> {
    buffer.clear();
    let length = (&mut *input).take(MAX_TAG).read_until(b'>', buffer)?;
    let trimmed = buffer.trim_ascii().strip_prefix(b"<").and_then(|tag| tag.strip_suffix(b">"));
    match trimmed {
        Some(inner) => {
            *buffer = inner.to_vec();
            Ok(true)
        }
        None if buffer.trim_ascii().is_empty() && (length as u64) < MAX_TAG => Ok(false),
        None => Err(ListError::Broken { kind: Kind::ThinDelta, problem: "its XML has no end" }),
    }
}

/// The number that an attribute has.
fn number(tag: &[u8], name: &'static str) -> Result<u64, LineProblem> {
    let key = format!(" {name}=\"");
    let at = memchr::memmem::find(tag, key.as_bytes()).map(|at| at + key.len());
    let value = at.and_then(|at| tag.get(at..)).unwrap_or_default();
    let digits = value.split(|&byte| byte == b'"').next().unwrap_or_default();
    parse_digits(digits, 10).ok_or_else(|| LineProblem::unexpected(digits, "a number of blocks"))
}

pub(super) fn read(
    input: &mut dyn BufRead,
    options: &RangeListOptions,
    entries: &mut Entries,
) -> Result<String, ListError> {
    let kind = Kind::ThinDelta;
    let wanted = options.types_or(&DEFAULT);
    let (mut block, mut group, mut is_whole) = (None, "", false);
    let mut buffer = Vec::new();
    while tag(input, &mut buffer)? {
        let entry = entries.number + 1;
        let error = |problem| ListError::Entry { entry, kind, problem };
        let is_closed = buffer.ends_with(b"/");
        let name = buffer.split(|&byte| byte == b' ' || byte == b'/').find(|word| !word.is_empty());
        let name = name.unwrap_or_default();
        if buffer.starts_with(b"/") {
            is_whole = name == b"superblock";
            continue;
        }
        if name == b"superblock" {
            let size = number(&buffer, "data_block_size").map_err(error)?;
            block = Some(
                size.checked_mul(SECTOR)
                    .filter(|&size| size > 0)
                    .ok_or(ListError::Broken { kind, problem: "its data_block_size is not possible" })?,
            );
        }
        if let Some(of) = TYPES.iter().find(|of| of.as_bytes() == name) {
            group = of;
        }
        // With `--verbose`, the ranges are elements in that of their type.
        let is_range =
            if name == b"range" { true } else { is_closed && TYPES.iter().any(|of| of.as_bytes() == name) };
        if is_range {
            let Some(block) = block else {
                return Err(ListError::Broken { kind, problem: "its superblock is missing" });
            };
            let (start, length) =
                (number(&buffer, "begin").map_err(error)?, number(&buffer, "length").map_err(error)?);
            let bytes = |blocks: u64| {
                blocks.checked_mul(block).ok_or_else(|| error(LineProblem::TooLong { start, length }))
            };
            entries.push_ascending(bytes(start)?, bytes(length)?, wanted.contains(&group)).map_err(error)?;
        }
    }
    if !is_whole {
        return Err(ListError::Broken { kind, problem: "its end is missing" });
    }
    Ok(format!("type {}, blocks of {} bytes", wanted.join(", "), block.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, ListError, RangeListOptions, read};
    use virt_bmap_ranges::DiskRange;

    /// By thin_delta 0.9.0 of two volumes, whose metadata thin_restore wrote.
    const DELTA: &str = r#"<superblock uuid="" time="2" transaction="3" data_block_size="128" nr_data_blocks="1000">
  <diff left="1" right="2">
    <same begin="0" length="2"/>
    <different begin="2" length="1"/>
    <same begin="3" length="3"/>
    <left_only begin="20" length="2"/>
    <right_only begin="30" length="3"/>
  </diff>
</superblock>
"#;
    /// The same with `--verbose`.
    const VERBOSE: &str = r#"<superblock uuid="" time="2" transaction="3" data_block_size="128" nr_data_blocks="1000">
  <diff left="1" right="2">
    <same>
      <range begin="0" data_begin="0" length="2"/>
    </same>
    <different>
      <range begin="2" left_data_begin="2" right_data_begin="8" length="1"/>
    </different>
    <same>
      <range begin="3" data_begin="3" length="3"/>
    </same>
    <left_only>
      <range begin="20" data_begin="6" length="2"/>
    </left_only>
    <right_only>
      <range begin="30" data_begin="9" length="3"/>
    </right_only>
  </diff>
</superblock>
"#;

    #[test]
    fn blocks_that_differ_count() {
        for text in [DELTA, VERBOSE] {
            let list = read(text.as_bytes(), &RangeListOptions::default()).unwrap();
            let block = |start: u64, end: u64| DiskRange::new(start << 16, end << 16);
            assert_eq!(list.kind, Kind::ThinDelta);
            assert_eq!((list.entries, list.counted), (5, 3));
            assert_eq!(list.spans.iter().collect::<Vec<_>>(), [block(2, 3), block(20, 22), block(30, 33)]);
            let options =
                RangeListOptions { types: Some(vec!["same".to_owned()]), ..RangeListOptions::default() };
            assert_eq!(read(text.as_bytes(), &options).unwrap().spans.bytes(), 5 << 16);
        }
    }

    #[test]
    fn a_damaged_delta_is_refused() {
        let broken = [
            DELTA[..DELTA.len() - 14].to_owned(),
            DELTA.replace("128", "0"),
            DELTA.replace("\"20\"", "\"99999999999999999999\""),
            DELTA.replace("\"20\"", "\"18446744073709551\""),
            DELTA.replace("\"20\"", "\"1\""),
            DELTA.replace("length=\"2\"", ""),
            format!("{}{}", DELTA, "<".repeat(9000)),
        ];
        for text in broken {
            let error = read(text.as_bytes(), &RangeListOptions::default()).unwrap_err();
            assert!(matches!(error, ListError::Broken { .. } | ListError::Entry { .. }), "{text}: {error}");
        }
    }
}
