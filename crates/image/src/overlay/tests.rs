use super::*;
use proptest::prelude::*;
use std::sync::atomic::AtomicUsize;

const SIZE: u64 = 1024;

/// A base that holds a known pattern and counts what reaches it.
struct Pattern {
    size: u64,
    fast: bool,
    reads: AtomicUsize,
}

fn byte_at(offset: u64) -> u8 {
    (offset % 251 + 1) as u8
}

impl Source for Pattern {
    fn size(&self) -> u64 {
        self.size
    }

    fn try_read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<bool> {
        if !self.fast {
            return Ok(false);
        }
        self.read_at(buf, offset).map(|()| true)
    }

    fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if offset.0 + buf.len() as u64 > self.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (byte, at) in buf.iter_mut().zip(offset.0..) {
            *byte = byte_at(at);
        }
        Ok(())
    }

    fn allocation(&self, range: DiskRange) -> io::Result<Vec<Allocation>> {
        Ok(vec![Allocation { range, is_hole: false }])
    }
}

fn overlay(size: u64, limit: u64, fast: bool) -> (Arc<Pattern>, Overlay) {
    let base = Arc::new(Pattern { size, fast, reads: AtomicUsize::new(0) });
    let overlay = Overlay::new(base.clone(), limit, &std::env::temp_dir()).unwrap();
    (base, overlay)
}

fn read_all(overlay: &Overlay) -> Vec<u8> {
    let mut all = vec![0xee; overlay.size() as usize];
    overlay.read_at(&mut all, DiskOffset(0)).unwrap();
    all
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    Zero(u64, u64),
    Trim(u64, u64),
    Read(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (0..SIZE, 0..200u64).prop_map(|(at, len)| (at, len.min(SIZE - at)));
    prop_oneof![
        (0..SIZE, prop::collection::vec(any::<u8>(), 0..200)).prop_map(|(at, mut data)| {
            data.truncate((SIZE - at) as usize);
            Step::Write(at, data)
        }),
        place().prop_map(|(at, len)| Step::Zero(at, len)),
        place().prop_map(|(at, len)| Step::Trim(at, len)),
        place().prop_map(|(at, len)| Step::Read(at, len)),
    ]
}

proptest! {
    /// Against a plain vector of bytes, a vector of who wrote each, and the ceiling.
    #[test]
    fn behaves_like_a_vector_of_bytes(
        steps in prop::collection::vec(step(), 0..40),
        limit in 0..=SIZE,
        fast in any::<bool>(),
    ) {
        let (_, overlay) = overlay(SIZE, limit, fast);
        let mut model: Vec<u8> = (0..SIZE).map(byte_at).collect();
        let mut origin = vec![Origin::Base; SIZE as usize];
        for step in steps {
            match step {
                Step::Write(at, data) => {
                    let place = at as usize..at as usize + data.len();
                    let mut after = origin.clone();
                    after[place.clone()].fill(Origin::Store);
                    let held = after.iter().filter(|o| **o == Origin::Store).count() as u64;
                    let result = overlay.write_at(&data, DiskOffset(at));
                    if held > limit {
                        prop_assert_eq!(result.unwrap_err().raw_os_error(), Some(28));
                    } else {
                        result.unwrap();
                        model[place].copy_from_slice(&data);
                        origin = after;
                    }
                }
                Step::Zero(at, len) | Step::Trim(at, len) => {
                    let place = at as usize..(at + len) as usize;
                    model[place.clone()].fill(0);
                    origin[place].fill(Origin::Zero);
                    overlay.write_zeroes(DiskRange::new(at, at + len)).unwrap();
                }
                Step::Read(at, len) => {
                    let mut buf = vec![0xee; len as usize];
                    let quick = overlay.try_read_at(&mut buf, DiskOffset(at)).unwrap();
                    if !quick {
                        prop_assert!(!fast);
                        overlay.read_at(&mut buf, DiskOffset(at)).unwrap();
                    }
                    prop_assert_eq!(&buf[..], &model[at as usize..(at + len) as usize]);
                }
            }
        }
        prop_assert_eq!(read_all(&overlay), model);
        let written: Vec<_> = overlay.written().iter().flat_map(|r| r.start.0..r.end.0).collect();
        let wanted: Vec<_> = (0..SIZE).filter(|&b| origin[b as usize] != Origin::Base).collect();
        prop_assert_eq!(written, wanted);
        // The answer is a partition of the range, and right for every byte.
        let range = DiskRange::new(100, 900);
        let mut at = range.start;
        for part in overlay.allocation(range).unwrap() {
            prop_assert_eq!(part.range.start, at);
            prop_assert!(!part.range.is_empty());
            at = part.range.end;
            for byte in part.range.start.0..part.range.end.0 {
                prop_assert_eq!(part.is_hole, origin[byte as usize] == Origin::Zero);
            }
        }
        prop_assert_eq!(at, range.end);
    }
}

#[test]
fn a_write_past_the_ceiling_changes_nothing_and_rewriting_costs_nothing() {
    let (_, overlay) = overlay(SIZE, 100, true);
    overlay.write_at(&[7; 100], DiskOffset(0)).unwrap();
    overlay.write_at(&[8; 100], DiskOffset(0)).unwrap();
    let before = read_all(&overlay);
    let error = overlay.write_at(&[9; 100], DiskOffset(50)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(28));
    assert_eq!(read_all(&overlay), before);
    // What is discarded makes room.
    overlay.trim(DiskRange::new(0, 50)).unwrap();
    overlay.write_at(&[9; 100], DiskOffset(50)).unwrap();
}

#[test]
fn a_write_past_the_end_is_refused() {
    let (_, overlay) = overlay(SIZE, SIZE, true);
    for (offset, len) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1)] {
        let error = overlay.write_at(&vec![1; len], DiskOffset(offset)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{offset}");
    }
    assert!(overlay.write_zeroes(DiskRange::new(0, SIZE + 1)).is_err());
    overlay.write_at(&[1], DiskOffset(SIZE - 1)).unwrap();
    assert!(overlay.write_at(&[], DiskOffset(SIZE)).is_ok());
    assert_eq!(overlay.written().bytes(), 1);
}

#[test]
fn only_unwritten_bytes_are_read_from_the_base() {
    let (base, overlay) = overlay(SIZE, SIZE, false);
    overlay.write_at(&[1; 10], DiskOffset(10)).unwrap();
    overlay.write_zeroes(DiskRange::new(20, 30)).unwrap();
    let mut buf = [0; 20];
    assert!(overlay.try_read_at(&mut buf, DiskOffset(10)).unwrap(), "no part of it is the base's");
    assert_eq!(base.reads.load(Ordering::Relaxed), 0);
    assert!(!overlay.try_read_at(&mut buf, DiskOffset(15)).unwrap());
    overlay.read_at(&mut buf, DiskOffset(15)).unwrap();
    assert_eq!(base.reads.load(Ordering::Relaxed), 1);
    assert_eq!(buf[..5], [1; 5]);
    assert_eq!(buf[5..15], [0; 10]);
    assert_eq!(buf[15..], [byte_at(30), byte_at(31), byte_at(32), byte_at(33), byte_at(34)]);
}

#[test]
fn a_read_past_the_end_fails_also_after_a_write() {
    let (_, overlay) = overlay(SIZE, SIZE, true);
    let mut buf = [0; 8];
    overlay.write_at(&[1; 8], DiskOffset(SIZE - 8)).unwrap();
    assert!(overlay.read_at(&mut buf, DiskOffset(SIZE - 4)).is_err());
    assert!(overlay.read_at(&mut buf, DiskOffset(SIZE)).is_err());
}

/// A base all of whose bytes are [`OLD`].
struct Old(u64);

const OLD: u8 = 255;

impl Source for Old {
    fn size(&self) -> u64 {
        self.0
    }

    fn read_at(&self, buf: &mut [u8], _: DiskOffset) -> io::Result<()> {
        buf.fill(OLD);
        Ok(())
    }
}

/// Each writer owns some cells and writes the number of the round, or zeroes, over them again and
/// again. A reader may then see in a cell only bytes that are old, zero or a round's, and for every
/// byte the rounds must not go back by more than the write that is under way.
#[test]
fn readers_and_writers_at_once_see_old_or_new_and_nothing_else() {
    const CELL: usize = 4096 + 24;
    const CELLS: usize = 64;
    const WRITERS: usize = 3;
    const ROUNDS: u8 = 120;
    let base = Arc::new(Old((CELL * CELLS).next_multiple_of(512) as u64));
    let overlay = Overlay::new(base, u64::MAX, &std::env::temp_dir()).unwrap();
    let start = |cell: usize| DiskOffset((cell * CELL) as u64);
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (overlay, done) = (&overlay, &done);
        for writer in 0..WRITERS {
            scope.spawn(move || {
                for round in 1..=ROUNDS {
                    for cell in (writer..CELLS).step_by(WRITERS) {
                        if round % 10 == 5 {
                            overlay.write_zeroes(DiskRange::at(start(cell), CELL as u64).unwrap()).unwrap();
                        } else {
                            overlay.write_at(&[round; CELL], start(cell)).unwrap();
                        }
                    }
                }
                done.fetch_add(1, Ordering::Release);
            });
        }
        for reader in 0..2 {
            scope.spawn(move || {
                let mut buf = vec![0; CELL];
                let mut newest = [0; CELLS];
                let mut cell = reader;
                while done.load(Ordering::Acquire) < WRITERS {
                    cell = (cell + 7) % CELLS;
                    overlay.read_at(&mut buf, start(cell)).unwrap();
                    let before = newest[cell];
                    for &byte in buf.iter().filter(|byte| **byte != 0) {
                        assert!(byte <= ROUNDS || byte == OLD, "cell {cell}: {byte}");
                        let round = if byte == OLD { 0 } else { byte };
                        assert!(round + 1 >= before, "cell {cell} went back from {before} to {round}");
                        newest[cell] = round.max(newest[cell]);
                    }
                }
            });
        }
    });
    let mut buf = vec![0; CELL * CELLS];
    overlay.read_at(&mut buf, DiskOffset(0)).unwrap();
    assert!(buf.iter().all(|byte| *byte == ROUNDS));
    assert_eq!(overlay.written().iter().collect::<Vec<_>>(), [DiskRange::new(0, (CELL * CELLS) as u64)]);
}

#[test]
fn written_bytes_are_compared_with_the_base() {
    let (base, overlay) = overlay(SIZE, SIZE, true);
    let differs = |at: u64, length: usize| {
        let mut buf = vec![0; length];
        overlay.read_at(&mut buf, DiskOffset(at)).unwrap();
        overlay.differs_from_base(&buf, DiskOffset(at)).unwrap()
    };
    assert!(!differs(0, SIZE as usize) && !overlay.is_rewritten(DiskRange::new(0, SIZE)));
    // The same once more is no change.
    let mut same = vec![0; 100];
    base.read_at(&mut same, DiskOffset(200)).unwrap();
    overlay.write_at(&same, DiskOffset(200)).unwrap();
    assert!(
        overlay.is_rewritten(DiskRange::new(299, 301)) && !overlay.is_rewritten(DiskRange::new(300, 301))
    );
    assert!(!differs(150, 200));
    overlay.write_at(&[0xff], DiskOffset(250)).unwrap();
    assert!(differs(150, 200) && !differs(251, 100));
    overlay.write_zeroes(DiskRange::new(600, 610)).unwrap();
    assert!(differs(609, 10) && !differs(610, 10));
}
