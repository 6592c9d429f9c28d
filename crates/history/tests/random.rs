//! Damaged and random logs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../fuzz/history.rs"]
mod history;

mod common;

use common::{Memory, content, pattern, record};
use proptest::prelude::*;
use std::fs;
use std::sync::Arc;
use virt_bmap_history::{LogEnd, LogError, Recorded, RecordedBase};

const SIZE: usize = 8 << 10;

/// A log with writes of different lengths, zeroes, trims, flushes and FUA.
fn sound_log() -> (Vec<u8>, Vec<Vec<u8>>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let states = record(&path, &[SIZE, SIZE], 40);
    (fs::read(&path).unwrap(), states)
}

fn bases() -> Vec<RecordedBase> {
    let base =
        |disk| RecordedBase { source: Arc::new(Memory(pattern(disk, SIZE))), identity: vec![disk as u8; 3] };
    (0..2).map(base).collect()
}

/// Reads all states; returns the contents of those that could be read, and how it ended.
fn read(log: &[u8]) -> (Vec<Vec<u8>>, Result<Option<LogEnd>, LogError>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), log).unwrap();
    let mut recorded = match Recorded::open(file.path(), bases()) {
        Ok(recorded) => recorded,
        Err(error) => return (Vec::new(), Err(error)),
    };
    let mut states = Vec::new();
    for state in &mut recorded {
        match state {
            Ok(state) => states.push(state.disks().iter().flat_map(|disk| content(&**disk)).collect()),
            Err(error) => return (states, Err(error)),
        }
    }
    (states, Ok(recorded.end()))
}

#[test]
fn a_log_that_breaks_off_is_read_up_to_there() {
    let (log, states) = sound_log();
    let (whole, end) = read(&log);
    assert_eq!(end.unwrap(), Some(LogEnd::Whole));
    assert!(whole == states, "{} and {} states", whole.len(), states.len());
    let mut last = 0;
    for length in (0..log.len()).step_by(509) {
        let (found, end) = read(&log[..length]);
        if length < 100 {
            assert!(matches!(end, Err(LogError::NoHistory) | Ok(Some(LogEnd::BrokenOff))), "{end:?}");
            continue;
        }
        assert_eq!(end.unwrap(), Some(LogEnd::BrokenOff));
        // The last of them may be only the beginning of a state.
        let ended = found.len().saturating_sub(1);
        assert!(found[..ended] == states[..ended]);
        assert!(found.len() >= last);
        last = found.len();
    }
    // The host crashed before the file was filled.
    let mut zeroes = log[..log.len() - 32].to_vec();
    zeroes.resize(log.len() + 4096, 0);
    assert_eq!(read(&zeroes).1.unwrap(), Some(LogEnd::BrokenOff));
}

proptest! {
    #[test]
    fn random_bytes_are_no_log(data in prop::collection::vec(any::<u8>(), 0..4096)) {
        history::log(&data);
    }

    #[test]
    fn random_records_stay_in_bounds(
        records in prop::collection::vec((1..8u8, 0..2u8, 0..3u16, 0..4u64, 0..2_000_000u64, 0..5000u64), 0..40),
    ) {
        let mut data = Vec::new();
        for (kind, flags, disk, time, offset, length) in records {
            data.extend([kind, flags]);
            data.extend(disk.to_le_bytes());
            data.extend([0; 4]);
            [time, offset, length].iter().for_each(|number| data.extend(number.to_le_bytes()));
            if kind == 1 {
                data.resize(data.len() + length as usize, kind);
            }
        }
        history::log(&data);
    }

    #[test]
    fn a_damaged_log_causes_no_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        cut in any::<prop::sample::Index>(),
    ) {
        static LOG: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let mut log = LOG.get_or_init(|| sound_log().0).clone();
        for (at, byte) in changes {
            // Headers are hit more often than data.
            let at = at.index(log.len());
            let at = if at % 2 == 0 { at % 400 } else { at };
            log[at] = byte;
        }
        log.truncate(log.len() - cut.index(log.len() / 4));
        history::log(&log);
        let _ = read(&log);
    }
}
