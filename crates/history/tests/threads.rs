//! Several threads write to two disks, another reads them, and states are taken meanwhile.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Image, Memory, NEVER, pattern, try_content};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use virt_bmap_history::{Bases, Disk, History, HistoryOptions, Recorded, RecordedBase, Recording, State};
use virt_bmap_image::{Change, Source, Writable};
use virt_bmap_ranges::DiskOffset;

const SIZE: usize = 16 << 10;
const DISKS: usize = 2;
const WRITERS: usize = 3;
const BLOCK: usize = 512;
/// Each writer has so many blocks.
const BLOCKS: usize = 8;
const WRITES: usize = 1200;

/// Where a writer writes a number: on one disk after the other, round its blocks.
fn place(writer: usize, number: usize) -> (usize, usize) {
    (number % DISKS, (number % BLOCKS * WRITERS + writer) * BLOCK)
}

fn data(writer: usize, number: usize) -> Vec<u8> {
    ((writer << 24 | number) as u32).to_le_bytes().repeat(BLOCK / 4)
}

/// The number in this block of a disk; 0 if nobody has written to it.
fn number_in(disk: usize, at: usize, bytes: &[u8]) -> usize {
    if bytes == &pattern(disk, SIZE)[at..at + BLOCK] {
        return 0;
    }
    let found = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    let (writer, number) = (found >> 24, found & 0xff_ffff);
    assert!(bytes == data(writer, number), "a torn block");
    assert_eq!(place(writer, number), (disk, at), "the data of another block");
    number
}

/// Checks that a state has a beginning of what each writer wrote, on both disks, and no less than
/// the state before.
fn check(contents: &[Vec<u8>], last: &mut [usize; WRITERS]) {
    for (writer, last) in last.iter_mut().enumerate() {
        let number_at = |number: usize| {
            let (disk, at) = place(writer, number);
            number_in(disk, at, &contents[disk][at..at + BLOCK])
        };
        let latest = (1..=BLOCKS).map(number_at).max().unwrap();
        assert!(latest >= *last, "a state forgets a write");
        *last = latest;
        for number in latest.saturating_sub(BLOCKS - 1).max(1)..=latest {
            assert_eq!(number_at(number), number, "all writes before the last are there");
        }
    }
}

fn contents(state: &State) -> std::io::Result<Vec<Vec<u8>>> {
    state.disks().iter().map(|disk| try_content(&**disk)).collect()
}

fn write(disks: &[Arc<Disk>], writer: usize) {
    for number in 1..=WRITES {
        let (disk, at) = place(writer, number);
        let (data, at) = (data(writer, number), DiskOffset(at as u64));
        disks[disk].change(Change::Write(&data, at), number % 37 == 0).unwrap();
        let mut back = [0; BLOCK];
        disks[disk].read_at(&mut back, at).unwrap();
        assert!(back == data[..], "a writer reads what it has written");
        if number % 50 == writer {
            disks[disk].flush().unwrap();
        }
    }
}

/// Reads all blocks again and again.
fn read(disks: &[Arc<Disk>], is_over: &AtomicBool) {
    while !is_over.load(Ordering::SeqCst) {
        for (number, disk) in disks.iter().enumerate() {
            for at in (0..SIZE).step_by(BLOCK) {
                let mut bytes = [0; BLOCK];
                disk.read_at(&mut bytes, DiskOffset(at as u64)).unwrap();
                number_in(number, at, &bytes);
            }
        }
    }
}

/// Ends the readers, also if a test fails.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Takes states until the writers are done; returns them by number.
fn run(history: &Arc<History>, may_be_lost: bool) -> Vec<(u64, Vec<Vec<u8>>)> {
    let disks = history.disks();
    let is_over = AtomicBool::new(false);
    let mut seen: Vec<(u64, Vec<Vec<u8>>)> = Vec::new();
    let mut last = [0; WRITERS];
    std::thread::scope(|scope| {
        let (disks, is_over) = (&disks, &is_over);
        let _ending = Ending(is_over);
        scope.spawn(move || read(disks, is_over));
        let writers: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(move || write(disks, writer))).collect();
        let mut held: Vec<State> = Vec::new();
        let mut is_ended = false;
        loop {
            let Some(state) = history.next() else {
                if is_ended {
                    break;
                }
                is_ended = writers.iter().all(ScopedJoinHandle::is_finished);
                if is_ended {
                    history.end_state();
                }
                continue;
            };
            match contents(&state) {
                Ok(contents) => {
                    check(&contents, &mut last);
                    seen.push((state.number, contents));
                    held.push(state);
                }
                Err(error) => assert!(may_be_lost, "{error}"),
            }
            if held.len() > 3 {
                let state = held.remove(0);
                let before = seen.iter().find(|(number, _)| *number == state.number).unwrap();
                match contents(&state) {
                    Ok(contents) => assert!(before.1 == contents, "a state has changed"),
                    Err(error) => assert!(may_be_lost, "{error}"),
                }
            }
        }
    });
    assert_eq!(last, [WRITES; WRITERS]);
    seen
}

fn start(through: bool, limit: u64, record: Option<Recording>) -> Arc<History> {
    let first = || (0..DISKS).map(|disk| pattern(disk, SIZE));
    let bases = if through {
        let image = |bytes| -> Arc<dyn Writable> { Arc::new(Image::new(bytes)) };
        Bases::Through(first().map(image).collect())
    } else {
        Bases::Private(first().map(|bytes| -> Arc<dyn Source> { Arc::new(Memory(bytes)) }).collect())
    };
    History::start(bases, HistoryOptions { limit, record, quiet: NEVER }).unwrap()
}

#[test]
fn states_are_moments_of_both_disks() {
    for through in [false, true] {
        let history = start(through, u64::MAX, None);
        run(&history, false);
        assert_eq!(history.merged(), 0);
    }
}

#[test]
fn they_are_so_where_there_is_little_room() {
    for through in [false, true] {
        run(&start(through, 64 << 10, None), through);
    }
}

#[test]
fn a_recorded_history_has_the_states_that_were_taken() {
    for through in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let recording = Recording { path: path.clone(), identities: Vec::new() };
        let history = start(through, u64::MAX, Some(recording));
        let seen = run(&history, false);
        drop(history);
        let base =
            |disk| RecordedBase { source: Arc::new(Memory(pattern(disk, SIZE))), identity: Vec::new() };
        let recorded = Recorded::open(&path, (0..DISKS).map(base).collect()).unwrap();
        let states: Vec<State> = recorded.map(Result::unwrap).collect();
        assert_eq!(states.len(), seen.len());
        for (state, (number, wanted)) in states.iter().zip(&seen) {
            assert_eq!(state.number, *number);
            assert!(contents(state).unwrap() == *wanted, "state {number}");
        }
    }
}
