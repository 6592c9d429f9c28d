//! Entry point of the fuzz target for recorded histories. The tests call it with random input.
//!
//! No input may cause a panic, or give a record outside of its disk or of the log.

use std::io::Cursor;
use virt_bmap_history::{Kind, LogReader};

/// Size of the disk that the input writes to.
const DISK: u64 = 1 << 20;

/// Reads a log: once as it is, and once as the records of a sound log with one disk. Returns how
/// many records were found.
pub(crate) fn log(data: &[u8]) -> usize {
    let mut sound = b"VBHISTRY\x01\0\0\0\x01\0\0\0".to_vec();
    sound.extend(DISK.to_le_bytes());
    sound.extend([0; 4]);
    sound.extend(data);
    records(&sound) + records(data)
}

fn records(bytes: &[u8]) -> usize {
    let Ok(mut reader) = LogReader::open(Cursor::new(bytes)) else { return 0 };
    let mut count = 0;
    while let Ok(Some(record)) = reader.next_record() {
        count += 1;
        if record.kind.is_change() {
            let disk = &reader.disks()[usize::from(record.disk) - 1];
            assert!(!record.range.is_empty() && record.range.end.0 <= disk.size);
        }
        if record.kind == Kind::Write {
            assert!(record.data + record.range.len() <= bytes.len() as u64);
        }
    }
    assert!(reader.end().is_some());
    assert!(matches!(reader.next_record(), Ok(None)), "nothing follows the end");
    count
}
