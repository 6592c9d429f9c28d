//! The logs of errors and self-tests of a disk that `smartctl` prints (smartctl(8): `-a`,
//! `-l error`, `-l selftest`, `-l defects`).
//!
//! ```text
//! Sector Sizes:     512 bytes logical, 4096 bytes physical
//!   Error: UNC 8 sectors at LBA = 0x005ea7db = 6203355
//! Num  Test_Description    Status                  Remaining  LifeTime(hours)  LBA_of_first_error
//! # 1  Extended offline    Completed: read failure       90%     22336         6203355
//! Pending Defects log (GP Log 0x0c)
//! Index                LBA    Hours
//!     0            6203355    22336
//! ```
//!
//! An LBA counts logical sectors: of the size that the output or `--block-size` states, else of 512
//! bytes. A self-test gives the first error only.

use std::io::BufRead;

use super::lines::{self, LineProblem, words};
use super::recognise::Head;
use super::{Entries, ListError, RangeListOptions};
use virt_bmap_ranges::parse_digits;

const SECTOR: u64 = 512;

/// Whether it begins like this.
pub(super) fn is(head: Head<'_>) -> bool {
    head.text.starts_with(b"smartctl ")
        || head.has_one_of(&[
            "SMART Self-test log",
            "SMART Error Log",
            "Pending Defects log",
            "LBA_of_first_error",
        ])
        || head.text.split(|&byte| byte == b'\n').any(|line| self_test(line).is_some())
}

/// The word after `before`, as a number.
fn number_after(line: &[u8], before: &[u8]) -> Option<u64> {
    let at = memchr::memmem::find(line, before)? + before.len();
    words(line.get(at..)?).next().and_then(|word| parse_digits(word, 10))
}

/// First sector and number of sectors of an error: `Error: UNC 8 sectors at LBA = 0x… = N`.
fn error(line: &[u8]) -> Option<(u64, u64)> {
    let at = memchr::memmem::find(line, b"Error: ")?;
    let line = line.get(at..)?;
    let lba = memchr::memmem::find(line, b" at LBA = 0x")?;
    let sector = number_after(line.get(lba + 12..)?, b" = ")?;
    let count = words(&line[..lba]).zip(words(&line[..lba]).skip(1)).find(|(_, word)| *word == b"sectors");
    let count = count.and_then(|(count, _)| parse_digits(count, 10)).filter(|&count| count > 0);
    Some((sector, count.unwrap_or(1)))
}

/// The sector of a self-test that failed: the last column, before the brackets of a SCSI disk.
fn self_test(line: &[u8]) -> Option<u64> {
    let text = line.trim_ascii().strip_prefix(b"#")?;
    words(text).next().and_then(|word| parse_digits(word, 10))?;
    let text = text.split(|&byte| byte == b'[').next()?;
    let is_failure = memchr::memmem::find(text, b"ailure").or(memchr::memmem::find(text, b"Failed"));
    is_failure.and_then(|_| words(text).last()).and_then(|word| parse_digits(word, 10))
}

/// The logical size of a sector that the output states.
fn sector_size(line: &[u8]) -> Option<u64> {
    let is_size = line.starts_with(b"Sector Size") || line.starts_with(b"Logical block size:");
    let size = words(line).find_map(|word| parse_digits(word, 10));
    size.filter(|&size| is_size && size.is_power_of_two() && size >= SECTOR)
}

pub(super) fn read(
    input: &mut dyn BufRead,
    options: &RangeListOptions,
    entries: &mut Entries,
) -> Result<String, ListError> {
    let mut size = options.block_size.unwrap_or(SECTOR);
    let mut is_in_defects = false;
    lines::for_each_whole(input, entries, |line, entries| {
        if let Some(stated) = sector_size(line).filter(|_| options.block_size.is_none()) {
            size = stated;
        }
        is_in_defects = match line.trim_ascii() {
            b"" => false,
            text => is_in_defects || text.starts_with(b"Pending Defects log"),
        };
        let mut columns = words(line).map(|word| parse_digits(word, 10));
        let defect = match (columns.next(), columns.next()) {
            (Some(Some(_)), Some(Some(sector))) if is_in_defects => Some((sector, 1)),
            _ => None,
        };
        let found = error(line).or(defect).or(self_test(line).map(|sector| (sector, 1)));
        let Some((start, length)) = found else { return Ok(()) };
        let bytes = |sectors: u64| sectors.checked_mul(size).ok_or(LineProblem::TooLong { start, length });
        entries.push(bytes(start)?, bytes(length)?, true)
    })?;
    Ok(format!("errors and failed self-tests, sectors of {size} bytes"))
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, ListError, RangeListOptions, read};
    use virt_bmap_ranges::DiskRange;

    /// Parts of what smartctl 6.6 and 7.3 print of failing disks.
    const OUTPUT: &str = "\
smartctl 7.3 2022-02-28 r5338 [x86_64-linux-6.1.0-13-amd64] (local build)
Sector Sizes:     512 bytes logical, 4096 bytes physical
SMART Error Log Version: 1
Error 4 occurred at disk power-on lifetime: 22336 hours (930 days + 16 hours)
  40 51 08 db a7 5e 00  Error: UNC 8 sectors at LBA = 0x005ea7db = 6203355

Error 3 [2] occurred at disk power-on lifetime: 22336 hours (930 days + 16 hours)
  40 -- 51 00 01 00 00 00 5e a7 db e0 00  Error: UNC at LBA = 0x005ea7db = 6203355

Num  Test_Description    Status                  Remaining  LifeTime(hours)  LBA_of_first_error
# 1  Short offline       Completed: read failure       90%      2126         57169643
# 2  Extended offline    Completed without error       00%      2125         -
# 3  Extended offline    Completed: read failure       70%      2122         57169643

Pending Defects log (GP Log 0x0c)
Index                LBA    Hours
    0           10000000    22336
    1           10000001    22336

Selective Self-test flags (0x0):
    1        5        5  Not_testing
";

    #[test]
    fn errors_self_tests_and_defects_count() {
        let list = read(OUTPUT.as_bytes(), &RangeListOptions::default()).unwrap();
        assert_eq!((list.kind, list.entries), (Kind::Smartctl, 6));
        let sectors = |start: u64, end: u64| DiskRange::new(start * 512, end * 512);
        assert_eq!(
            list.spans.iter().collect::<Vec<_>>(),
            [sectors(6_203_355, 6_203_363), sectors(10_000_000, 10_000_002), sectors(57_169_643, 57_169_644)]
        );
        let large = OUTPUT.replace("512 bytes logical", "4096 bytes logical");
        assert_eq!(read(large.as_bytes(), &RangeListOptions::default()).unwrap().spans.bytes(), 11 * 4096);
        let options = RangeListOptions { block_size: Some(520), ..RangeListOptions::default() };
        assert_eq!(read(large.as_bytes(), &options).unwrap().spans.bytes(), 11 * 520);
    }

    #[test]
    fn a_sector_past_what_can_be_counted_is_refused() {
        let text = "# 1  Short offline  Completed: read failure  90%  1  18446744073709551615\n";
        assert!(matches!(read(text.as_bytes(), &RangeListOptions::default()), Err(ListError::Line { .. })));
    }
}
