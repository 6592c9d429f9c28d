//! Messages of Linux about errors of a disk (`block/blk-mq.c`, `blk_print_req_error`).
//!
//! ```text
//! [  12.3] blk_update_request: I/O error, dev sda, sector 2056 op 0x0:(READ) flags 0x0 phys_seg 1
//! [  12.3] critical medium error, dev sdi, sector 14381056
//! ```
//!
//! The sector has 512 bytes, whatever the device's own have. Each message stands for one sector: it
//! does not say where the request ends. Lines without such a message do not count. The device is
//! a whole disk.

use std::io::BufRead;

use super::lines::{self, LineProblem, OneDevice};
use super::{Entries, ListError, Operation, RangeListOptions};
use virt_bmap_ranges::parse_digits;

const SECTOR: u64 = 512;

struct Error<'l> {
    device: &'l [u8],
    sector: u64,
    operation: Option<Operation>,
}

/// Whether a line is such a message.
pub(super) fn is_error(line: &[u8]) -> bool {
    parse(line).is_some()
}

/// What lies between `before` and the first of `after`, or the end.
fn between<'l>(line: &'l [u8], before: &str, after: &[u8]) -> Option<&'l [u8]> {
    let start = memchr::memmem::find(line, before.as_bytes())? + before.len();
    line.get(start..)?.split(|byte| after.contains(byte)).next()
}

fn parse(line: &[u8]) -> Option<Error<'_>> {
    let device = between(line, " error, dev ", b", \t\r\n")?;
    let sector = parse_digits(between(line, ", sector ", b" ,\t\r\n")?, 10)?;
    let operation = match between(line, ":(", b")") {
        Some(b"READ") => Some(Operation::Read),
        Some(b"WRITE") => Some(Operation::Write),
        Some(b"DISCARD") => Some(Operation::Trim),
        Some(b"WRITE_ZEROES") => Some(Operation::Zero),
        _ => None,
    };
    (!device.is_empty()).then_some(Error { device, sector, operation })
}

pub(super) fn read(
    input: &mut dyn BufRead,
    options: &RangeListOptions,
    entries: &mut Entries,
) -> Result<String, ListError> {
    let mut device = OneDevice::of(options);
    lines::for_each_whole(input, entries, |line, entries| {
        let Some(error) = parse(line) else { return Ok(()) };
        if !device.is(error.device)? {
            return Ok(());
        }
        let start = error.sector.checked_mul(SECTOR);
        let start = start.ok_or(LineProblem::TooLong { start: error.sector, length: SECTOR })?;
        entries.push(start, SECTOR, error.operation.is_none_or(|operation| options.wants(operation)))
    })?;
    Ok(format!("{}, one sector each", options.rule_of_operations()))
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, ListError, Operation, RangeListOptions, read};
    use virt_bmap_ranges::DiskRange;

    /// Messages of Linux 3.13, 5.10 and 6.1.
    const LOG: &str = "\
May 24 14:08:32 node51 kernel: [51887.853785] sd 8:0:0:0: [sda] Unhandled sense code #1
May 24 14:08:32 node51 kernel: [51887.853836] end_request: critical medium error, dev sda, sector 14381056
May 24 14:08:32 node51 kernel: [51887.853849] Buffer I/O error on device sda, logical block 1797632
[ 12.3] blk_update_request: I/O error, dev sda, sector 2056 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 0
[ 12.4] I/O error, dev sda, sector 2057 op 0x1:(WRITE) flags 0x800 phys_seg 1 prio class 2
";

    #[test]
    fn sectors_of_all_versions_count() {
        let list = read(LOG.as_bytes(), &RangeListOptions::default()).unwrap();
        assert_eq!((list.kind, list.entries), (Kind::KernelLog, 3));
        assert_eq!(
            list.spans.iter().collect::<Vec<_>>(),
            [DiskRange::new(2056 * 512, 2058 * 512), DiskRange::new(14_381_056 * 512, 14_381_057 * 512)]
        );
        let options =
            RangeListOptions { operations: Some(vec![Operation::Write]), ..RangeListOptions::default() };
        assert_eq!(read(LOG.as_bytes(), &options).unwrap().counted, 2);
    }

    #[test]
    fn errors_of_several_disks_are_not_mixed() {
        let text = format!("{LOG}[ 13.0] I/O error, dev sdb, sector 9\n");
        let error = read(text.as_bytes(), &RangeListOptions::default()).unwrap_err();
        assert!(matches!(error, ListError::Line { line: 6, .. }), "{error}");
        let of = |device: &str| RangeListOptions {
            device: Some(device.to_owned()),
            ..RangeListOptions::default()
        };
        assert_eq!(read(text.as_bytes(), &of("sdb")).unwrap().spans.bytes(), 512);
        let far = "I/O error, dev sdb, sector 18446744073709551615\n";
        assert!(matches!(read(far.as_bytes(), &of("sdb")), Err(ListError::Line { line: 1, .. })));
    }
}
