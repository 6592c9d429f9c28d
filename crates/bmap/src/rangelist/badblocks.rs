//! The list of `badblocks -o`: numbers of blocks, one a line.
//!
//! The list does not contain the size of a block; the default of `badblocks` is 1024 bytes.

use std::io::BufRead;

use super::lines::{self, LineProblem, words};
use super::{Entries, ListError, RangeListOptions};
use virt_bmap_ranges::parse_digits;

/// The block size of `badblocks` without `-b` (badblocks(8)).
const DEFAULT_BLOCK: u64 = 1024;

/// Whether a line is such a one.
pub(super) fn is_block(line: &[u8]) -> bool {
    parse_digits(line, 10).is_some()
}

pub(super) fn read(
    input: &mut dyn BufRead,
    options: &RangeListOptions,
    entries: &mut Entries,
) -> Result<String, ListError> {
    let size = options.block_size.unwrap_or(DEFAULT_BLOCK);
    lines::for_each(input, entries, |line, entries| {
        for word in words(line) {
            let block = parse_digits(word, 10)
                .ok_or_else(|| LineProblem::unexpected(word, "the decimal number of a block"))?;
            let start = block.checked_mul(size).ok_or(LineProblem::TooLong { start: block, length: size })?;
            entries.push(start, size, true)?;
        }
        Ok(())
    })?;
    Ok(format!("blocks of {size} bytes"))
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, ListError, RangeListOptions, read};
    use virt_bmap_ranges::DiskRange;

    #[test]
    fn blocks_are_of_the_size_that_is_given() {
        let list = read(&b"3\n4\n10\n"[..], &RangeListOptions::default()).unwrap();
        assert_eq!(list.kind, Kind::Badblocks);
        assert_eq!(
            list.spans.iter().collect::<Vec<_>>(),
            [DiskRange::new(3072, 5120), DiskRange::new(10240, 11264)]
        );
        let list =
            read(&b"3\n"[..], &RangeListOptions { block_size: Some(512), ..RangeListOptions::default() })
                .unwrap();
        assert_eq!(list.spans.iter().collect::<Vec<_>>(), [DiskRange::new(1536, 2048)]);
        assert_eq!(list.rule, "blocks of 512 bytes");
    }

    #[test]
    fn an_empty_list_of_bad_blocks_is_valid() {
        let options = RangeListOptions { kind: Some(Kind::Badblocks), ..RangeListOptions::default() };
        assert!(read(&b""[..], &options).unwrap().spans.is_empty());
        assert!(matches!(read(&b""[..], &RangeListOptions::default()), Err(ListError::Empty)));
    }

    #[test]
    fn invalid_block_numbers_are_refused() {
        for text in ["3\n0x4\n", "3\n-4\n", "3\n18446744073709551615\n"] {
            assert!(
                matches!(
                    read(text.as_bytes(), &RangeListOptions::default()),
                    Err(ListError::Line { line: 2, .. })
                ),
                "{text}"
            );
        }
    }
}
