//! The mapfile of GNU ddrescue, called logfile before 1.20: the parts of a disk that could be read.
//!
//! After comments, one line has ddrescue's own state (`POSITION STATUS [PASS]`). Each line after it
//! is a range with its status: `POSITION SIZE STATUS`. Numbers are decimal, hexadecimal with `0x`,
//! or octal with `0` (manual of ddrescue 1.27, "Mapfile structure").

use std::io::BufRead;

use super::lines::{self, LineProblem, words};
use super::{Entries, ListError, RangeListOptions};
use virt_bmap_ranges::parse_digits;

/// The statuses of a range: not tried, not trimmed, not scraped, bad, finished.
const STATUSES: &[u8] = b"?*/-+";

/// The statuses of ddrescue itself: the same, and filling and generating.
const STATES: &[u8] = b"?*/-+FG";

/// All that was not rescued.
const DEFAULT: &[u8] = b"*/-?";

fn number(word: &[u8]) -> Result<u64, LineProblem> {
    let number = match word {
        [b'0', b'x' | b'X', digits @ ..] => parse_digits(digits, 16),
        [b'0', digits @ ..] if !digits.is_empty() => parse_digits(digits, 8),
        digits => parse_digits(digits, 10),
    };
    number.ok_or_else(|| LineProblem::unexpected(word, "a number (decimal, 0x hexadecimal or 0 octal)"))
}

fn status(word: &[u8], known: &[u8], expected: &'static str) -> Result<u8, LineProblem> {
    match word {
        [status] if known.contains(status) => Ok(*status),
        _ => Err(LineProblem::unexpected(word, expected)),
    }
}

/// The line with ddrescue's own state.
fn state(line: &[u8]) -> Result<(), LineProblem> {
    let mut words = words(line);
    number(words.next().unwrap_or_default())?;
    status(words.next().unwrap_or_default(), STATES, "what ddrescue is doing (one of ? * / - + F G)")?;
    words.next().map_or(Ok(0), number)?;
    words.next().map_or(Ok(()), |word| Err(LineProblem::unexpected(word, "the end of the line")))
}

/// Whether a mapfile begins with this line.
pub(super) fn is_state(line: &[u8]) -> bool {
    state(line).is_ok()
}

pub(super) fn read(
    input: &mut dyn BufRead,
    options: &RangeListOptions,
    entries: &mut Entries,
) -> Result<String, ListError> {
    let wanted = options.statuses.as_deref().unwrap_or(DEFAULT);
    let mut is_first = true;
    lines::for_each(input, entries, |line, entries| {
        if std::mem::take(&mut is_first) {
            return state(line);
        }
        let mut words = words(line);
        let start = number(words.next().unwrap_or_default())?;
        let length = words.next().ok_or_else(|| LineProblem::unexpected(b"", "a size"))?;
        let length = number(length)?;
        let status = status(words.next().unwrap_or_default(), STATUSES, "a status (one of ? * / - +)")?;
        if let Some(word) = words.next() {
            return Err(LineProblem::unexpected(word, "the end of the line"));
        }
        entries.push_ascending(start, length, wanted.contains(&status))
    })?;
    let wanted: Vec<String> = wanted.iter().map(|status| char::from(*status).to_string()).collect();
    Ok(format!("status {}", wanted.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, ListError, RangeListOptions, read};
    use virt_bmap_ranges::DiskRange;

    const MAPFILE: &str = "\
# Mapfile. Created by GNU ddrescue version 1.27
# Command line: ddrescue /dev/sdb sdb.img sdb.map
# current_pos  current_status  current_pass
0x00005000     ?               1
#      pos        size  status
0x00000000  0x00001000  +
0x00001000  0x00000200  -
0x00001200  0x00000E00  /
0x00002000  0x00001000  *
0x00003000  010000  +
0x00004000  4096  ?
";

    #[test]
    fn unrescued_ranges_count() {
        let list = read(MAPFILE.as_bytes(), &RangeListOptions::default()).unwrap();
        assert_eq!(list.kind, Kind::Ddrescue);
        assert_eq!(
            list.spans.iter().collect::<Vec<_>>(),
            [DiskRange::new(0x1000, 0x3000), DiskRange::new(0x4000, 0x5000)]
        );
        assert_eq!((list.entries, list.counted, list.end), (6, 4, 0x5000));
        assert_eq!(list.rule, "status * / - ?");

        let options = RangeListOptions { statuses: Some(b"-".to_vec()), ..RangeListOptions::default() };
        let list = read(MAPFILE.as_bytes(), &options).unwrap();
        assert_eq!(list.spans.iter().collect::<Vec<_>>(), [DiskRange::new(0x1000, 0x1200)]);
    }

    #[test]
    fn a_damaged_mapfile_is_refused() {
        for (tail, wrong) in [
            ("0x4800 0x200 -\n", 12), // overlaps the one above
            ("0x5000 0x200\n", 12),   // truncated
            ("0x5000 0x200 !\n", 12),
            ("0x5000 0x200 - -\n", 12),
            ("0x5000 08 -\n", 12),  // no octal number
            ("0x5000     ?\n", 12), // another mapfile's first line
        ] {
            let error =
                read(format!("{MAPFILE}{tail}").as_bytes(), &RangeListOptions::default()).unwrap_err();
            assert!(matches!(error, ListError::Line { line, .. } if line == wrong), "{tail}: {error}");
        }
    }
}
