//! States of a history, against disks that are vectors of bytes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Image, Memory, NEVER, content, pattern, try_content};
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;
use virt_bmap_history::{
    Bases, Disk, History, HistoryOptions, LogEnd, Recorded, RecordedBase, Recording, State,
};
use virt_bmap_image::{Change, Source, Writable};
use virt_bmap_ranges::{DiskOffset, DiskRange};

const SIZE: usize = 16 << 10;
const DISKS: usize = 2;

#[derive(Clone, Debug)]
enum Step {
    Write {
        disk: usize,
        at: usize,
        length: usize,
        byte: u8,
        fua: bool,
    },
    Zero {
        disk: usize,
        at: usize,
        length: usize,
        trim: bool,
    },
    Flush,
    End,
    Take,
    /// Drops the state that was taken first.
    Drop,
}

fn step() -> impl Strategy<Value = Step> {
    let place = || {
        // Whole blocks now and then: these are given back at once.
        prop_oneof![
            (0..SIZE, 1..6000usize),
            (0..SIZE / 4096, 1..3usize).prop_map(|(block, count)| (block * 4096, count * 4096)),
        ]
        .prop_map(|(at, length)| (at, length.min(SIZE - at)))
    };
    prop_oneof![
        8 => (0..DISKS, place(), any::<u8>(), 0..8u8).prop_map(|(disk, (at, length), byte, fua)| {
            Step::Write { disk, at, length, byte, fua: fua == 0 }
        }),
        2 => (0..DISKS, place(), any::<bool>())
            .prop_map(|(disk, (at, length), trim)| Step::Zero { disk, at, length, trim }),
        3 => Just(Step::Flush),
        1 => Just(Step::End),
        2 => Just(Step::Take),
        1 => Just(Step::Drop),
    ]
}

/// A state as it should be.
#[derive(Clone)]
struct Expected {
    disks: Vec<Vec<u8>>,
    /// Bytes written since the state before.
    written: Vec<Vec<bool>>,
    is_flushed: bool,
}

/// The disks, their states, and which of their bytes are data that was written.
struct Model {
    disks: Vec<Vec<u8>>,
    data: Vec<Vec<bool>>,
    written: Vec<Vec<bool>>,
    ended: Vec<Expected>,
}

/// No byte of any disk.
fn nothing() -> Vec<Vec<bool>> {
    vec![vec![false; SIZE]; DISKS]
}

impl Model {
    fn new() -> Self {
        Self {
            disks: (0..DISKS).map(|disk| pattern(disk, SIZE)).collect(),
            data: vec![vec![false; SIZE]; DISKS],
            written: nothing(),
            ended: Vec::new(),
        }
    }

    /// Number of bytes of data after a write.
    fn data_with(&self, disk: usize, at: usize, length: usize) -> usize {
        let all: usize = self.data.iter().flatten().filter(|is_data| **is_data).count();
        all + self.data[disk][at..at + length].iter().filter(|is_data| !**is_data).count()
    }

    fn set(&mut self, disk: usize, at: usize, length: usize, byte: u8, is_data: bool) {
        self.disks[disk][at..at + length].fill(byte);
        self.data[disk][at..at + length].fill(is_data);
        self.written[disk][at..at + length].fill(true);
    }

    fn end(&mut self, is_flushed: bool) {
        if self.written != nothing() {
            let written = std::mem::replace(&mut self.written, nothing());
            self.ended.push(Expected { disks: self.disks.clone(), written, is_flushed });
        }
    }

    /// Checks a state that follows state `before`.
    fn check(&self, state: &State, before: u64, may_be_lost: bool) -> u64 {
        assert!(state.together >= 1);
        assert_eq!(state.number, before + state.together);
        let states = &self.ended[before as usize..state.number as usize];
        let last = states.last().unwrap();
        assert_eq!(state.is_flushed, last.is_flushed, "state {}", state.number);
        for disk in 0..DISKS {
            let mut wanted = vec![false; SIZE];
            for state in states {
                wanted.iter_mut().zip(&state.written[disk]).for_each(|(byte, written)| *byte |= written);
            }
            let mut written = vec![false; SIZE];
            for part in state.written[disk].iter() {
                written[part.start.0 as usize..part.end.0 as usize].fill(true);
            }
            assert!(written == wanted, "what was written to disk {disk} in state {}", state.number);
        }
        check_content(state, last, may_be_lost);
        state.number
    }
}

fn check_content(state: &State, expected: &Expected, may_be_lost: bool) {
    for (disk, wanted) in state.disks().iter().zip(&expected.disks) {
        match try_content(&**disk) {
            Ok(found) => assert!(found == *wanted, "state {}", state.number),
            Err(error) => assert!(may_be_lost, "state {}: {error}", state.number),
        }
        let mut at = 0;
        let Ok(allocation) = disk.allocation(DiskRange::new(0, SIZE as u64)) else { continue };
        for part in allocation {
            assert_eq!(part.range.start.0, at);
            at = part.range.end.0;
            let bytes = &wanted[part.range.start.0 as usize..at as usize];
            assert!(!part.is_hole || bytes.iter().all(|byte| *byte == 0));
        }
        assert_eq!(at, SIZE as u64);
    }
}

fn bases(through: bool) -> Bases {
    let first = || (0..DISKS).map(|disk| pattern(disk, SIZE));
    if through {
        Bases::Through(first().map(|bytes| -> Arc<dyn Writable> { Arc::new(Image::new(bytes)) }).collect())
    } else {
        Bases::Private(first().map(|bytes| -> Arc<dyn Source> { Arc::new(Memory(bytes)) }).collect())
    }
}

fn zero(disk: &Disk, range: DiskRange, trim: bool) {
    let change = if trim { Change::Trim(range) } else { Change::Zero { range, allocate: false } };
    assert!(disk.change(change, false).unwrap());
}

/// Runs the steps on a history and on the model.
fn run(steps: &[Step], through: bool, limit: u64, record: Option<Recording>) -> (Arc<History>, Model) {
    let is_recorded = record.is_some();
    let options = HistoryOptions { limit, record, quiet: NEVER };
    let history = History::start(bases(through), options).unwrap();
    let disks = history.disks();
    let mut model = Model::new();
    let mut taken: Vec<State> = Vec::new();
    let mut last = 0;
    for step in steps {
        match *step {
            Step::Write { disk, at, length, byte, fua } => {
                let change = Change::Write(&vec![byte; length], DiskOffset(at as u64));
                let outcome = disks[disk].change(change, fua);
                if !through && !is_recorded && model.data_with(disk, at, length) as u64 > limit {
                    assert_eq!(outcome.unwrap_err().raw_os_error(), Some(28));
                    continue;
                }
                outcome.unwrap();
                model.set(disk, at, length, byte, true);
                if fua {
                    model.end(true);
                }
            }
            Step::Zero { disk, at, length, trim } => {
                zero(&disks[disk], DiskRange::saturating(at as u64, length as u64), trim);
                model.set(disk, at, length, 0, false);
            }
            Step::Flush => {
                disks[0].flush().unwrap();
                if model.written == nothing()
                    && let Some(state) = model.ended.last_mut()
                    && history.waiting() > 0
                {
                    state.is_flushed = true;
                }
                model.end(true);
            }
            Step::End => {
                history.end_state();
                model.end(false);
            }
            Step::Take => {
                if let Some(state) = history.next() {
                    last = model.check(&state, last, false);
                    taken.push(state);
                }
            }
            Step::Drop if taken.is_empty() => {}
            Step::Drop => drop(taken.remove(0)),
        }
        if !is_recorded {
            let slack = (limit / 8).max(2 * 6000);
            assert!(history.kept() <= limit.saturating_add(slack), "{} are kept", history.kept());
        }
    }
    for (disk, wanted) in disks.iter().zip(&model.disks) {
        assert!(content(&**disk) == *wanted, "the guest's view");
    }
    history.end_state();
    model.end(false);
    while let Some(state) = history.next() {
        last = model.check(&state, last, false);
        taken.push(state);
    }
    assert_eq!(last as usize, model.ended.len(), "all states were taken, or joined with another");
    for state in &taken {
        check_content(state, &model.ended[state.number as usize - 1], through);
    }
    assert!(history.next().is_none());
    (history, model)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn states_are_what_the_guest_had_written(steps in prop::collection::vec(step(), 1..80), through: bool) {
        let (history, _) = run(&steps, through, u64::MAX, None);
        prop_assert_eq!(history.merged(), 0);
    }

    #[test]
    fn states_are_joined_when_there_is_no_room(
        steps in prop::collection::vec(step(), 1..120),
        through: bool,
        limit in 4096..40_000u64,
    ) {
        run(&steps, through, limit, None);
    }

    #[test]
    fn a_recorded_history_has_the_same_states(
        steps in prop::collection::vec(step(), 1..60),
        through: bool,
        limit in prop_oneof![Just(1 << 30), 4096..200_000u64],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let identities = vec![b"first".to_vec(), b"second".to_vec()];
        let recording = Recording { path: path.clone(), identities: identities.clone() };
        // All that the disks hold has room, so no write fails.
        let limit = if through { limit } else { limit.max(1 << 16) };
        let (history, model) = run(&steps, through, limit, Some(recording));
        let is_cut_short = history.is_cut_short();
        drop(history);

        let base = |(disk, identity): (usize, &Vec<u8>)| RecordedBase {
            source: Arc::new(Memory(pattern(disk, SIZE))),
            identity: identity.clone(),
        };
        let mut recorded =
            Recorded::open(&path, identities.iter().enumerate().map(base).collect()).unwrap();
        let states: Vec<State> = recorded.by_ref().map(Result::unwrap).collect();
        let end = if is_cut_short { LogEnd::CutShort } else { LogEnd::Whole };
        prop_assert_eq!(recorded.end(), Some(end));
        if !is_cut_short {
            prop_assert_eq!(states.len(), model.ended.len());
        }
        // The last state of a log that was cut short may be the beginning of one.
        let whole = states.len() - usize::from(is_cut_short && !states.is_empty());
        for (state, expected) in states[..whole].iter().zip(&model.ended) {
            // A flush after the state was taken is known here.
            prop_assert!(state.is_flushed >= expected.is_flushed);
            check_content(state, expected, false);
        }
    }
}

#[test]
fn a_state_ends_when_the_guest_is_quiet() {
    let options = HistoryOptions { quiet: Duration::from_millis(50), ..HistoryOptions::default() };
    let history = History::start(bases(false), options).unwrap();
    let disk = &history.disks()[0];
    disk.write_at(&[1; 512], DiskOffset(0)).unwrap();
    assert!(history.next().is_none() || history.now() > Duration::from_millis(50), "the guest still writes");
    std::thread::sleep(Duration::from_millis(80));
    disk.write_at(&[2; 512], DiskOffset(0)).unwrap();
    let first = history.next().unwrap();
    assert!(!first.is_flushed && first.from == first.to);
    assert_eq!(content(&*first.disks()[0])[0], 1);
    std::thread::sleep(Duration::from_millis(80));
    assert_eq!(history.waiting(), 1);
    disk.flush().unwrap();
    let second = history.next().unwrap();
    assert!(second.is_flushed, "the flush came before it was taken");
    assert!(second.to > second.from + Duration::from_millis(50));
}

#[test]
fn another_base_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    common::record(&path, &[SIZE, SIZE], 3);
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600, "it holds the guest's data");
    let base = |size: usize, identity: u8| RecordedBase {
        source: Arc::new(Memory(vec![0; size])),
        identity: vec![identity; 3],
    };
    let open = |bases: Vec<RecordedBase>| Recorded::open(&path, bases).map(|_| ()).map_err(|e| e.to_string());
    open(vec![base(SIZE, 0), base(SIZE, 1)]).unwrap();
    let of_another = "it is the history of another base: ";
    for (bases, why) in [
        (vec![base(SIZE, 0)], "it has 2 disks, and 1 were given".to_owned()),
        (
            vec![base(SIZE, 0), base(SIZE * 2, 1)],
            format!("disk 2 has {SIZE} bytes in it, and {} now", SIZE * 2),
        ),
        (vec![base(SIZE, 1), base(SIZE, 1)], "disk 1 is another, or was changed since".to_owned()),
    ] {
        assert_eq!(open(bases).unwrap_err(), format!("{of_another}{why}"));
    }
    // A log is never written over.
    let recording = Recording { path, identities: Vec::new() };
    let options = HistoryOptions { record: Some(recording), ..HistoryOptions::default() };
    assert_eq!(
        History::start(bases(false), options).err().unwrap().kind(),
        std::io::ErrorKind::AlreadyExists
    );
}

#[test]
fn space_is_given_back() {
    let history = History::start(bases(false), HistoryOptions { quiet: NEVER, ..HistoryOptions::default() });
    let history = history.unwrap();
    let disk = &history.disks()[0];
    for number in 0..100 {
        disk.write_at(&[number; 8192], DiskOffset(0)).unwrap();
        disk.flush().unwrap();
        assert_eq!(history.kept(), 8192 * if number == 0 { 1 } else { 2 }, "the guest's and one state's");
        history.next().unwrap();
        assert_eq!(history.kept(), 8192);
    }
}

#[test]
fn a_read_never_has_the_data_of_another_block() {
    let base = Arc::new(Image::new(vec![0xba; 1 << 20]));
    let history = History::start(Bases::Private(vec![base.clone()]), HistoryOptions::default()).unwrap();
    let disk = history.disks().remove(0);
    disk.write_at(&[1; 4096], DiskOffset(4096)).unwrap();
    disk.flush().unwrap();
    history.next().unwrap();
    // While the first block is read, the second one is written, its place is freed, and another
    // block gets it.
    *base.interruption.lock().unwrap() = Some(Box::new({
        let (history, disk) = (Arc::downgrade(&history), history.disks().remove(0));
        move || {
            disk.write_at(&[2; 4096], DiskOffset(4096)).unwrap();
            disk.flush().unwrap();
            history.upgrade().unwrap().next().unwrap();
            disk.write_at(&[3; 4096], DiskOffset(65536)).unwrap();
        }
    }));
    let mut bytes = [0; 8192];
    disk.read_at(&mut bytes, DiskOffset(0)).unwrap();
    assert!(bytes[..4096].iter().all(|byte| *byte == 0xba));
    assert!(bytes[4096..].iter().all(|byte| *byte == 2), "{}", bytes[4096]);
}

#[test]
fn a_state_has_the_old_bytes_while_they_are_replaced() {
    let image = Arc::new(Image::new(vec![1; SIZE]));
    let bases = Bases::Through(vec![image.clone() as Arc<dyn Writable>]);
    let history = History::start(bases, HistoryOptions::default()).unwrap();
    let disk = history.disks().remove(0);
    disk.write_at(&[2; 512], DiskOffset(0)).unwrap();
    disk.flush().unwrap();
    let state = history.next().unwrap();
    // The guest writes when the reader has found that nothing was written.
    *image.interruption.lock().unwrap() =
        Some(Box::new(move || disk.write_at(&[3; 4096], DiskOffset(0)).unwrap()));
    let found = content(&*state.disks()[0]);
    assert!(found[..512] == [2; 512] && found[512..].iter().all(|byte| *byte == 1));
    assert_eq!(image.bytes.read().unwrap()[0], 3);
}

#[test]
fn a_state_that_is_lost_says_so() {
    let image = Arc::new(Image::new(vec![1; SIZE]));
    let bases = Bases::Through(vec![image.clone() as Arc<dyn Writable>]);
    let options = HistoryOptions { limit: 4096, quiet: NEVER, ..HistoryOptions::default() };
    let history = History::start(bases, options).unwrap();
    let disk = history.disks().remove(0);
    disk.write_at(&[2; 512], DiskOffset(0)).unwrap();
    disk.flush().unwrap();
    let state = history.next().unwrap();
    let mut wanted = vec![1; SIZE];
    wanted[..512].fill(2);
    assert!(content(&*state.disks()[0]) == wanted);
    // What this replaces has no room.
    disk.write_at(&[3; 8192], DiskOffset(0)).unwrap();
    assert!(try_content(&*state.disks()[0]).is_err());
    assert!(state.disks()[0].allocation(DiskRange::new(0, 512)).is_err());
    disk.write_at(&[4; 512], DiskOffset(512)).unwrap();
    disk.flush().unwrap();
    let next = history.next().unwrap();
    assert_eq!((next.number, next.together, next.written[0].bytes()), (2, 1, 8192));
    assert!(content(&*next.disks()[0]) == *image.bytes.read().unwrap());
}
