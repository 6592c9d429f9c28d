//! The oracle for free space: noise. In a copy of the disks all space that the map calls free is
//! overwritten. The filesystems' own checkers must say the same as before, and every file must have
//! the same content. Other people's programs decide: the checkers, and the kernel that reads the
//! files.

use crate::arbiter::{Ranges, total};
use crate::guests::Guest;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use virt_bmap_testutil::random::Random;
use virt_bmap_testutil::ranges::Range;
use virt_bmap_testutil::{guestfish, places, tools};

/// Of a longer range only the ends are overwritten whole, and a part of the rest: else noise would
/// fill the test machine's disk.
const LONG: u64 = 8 << 20;
/// How much of a long range is overwritten whole at each end.
const END: u64 = 2 << 20;
/// Between the ends, the first [`PART`] bytes of every so many are overwritten.
const EVERY: u64 = 32 << 10;
const PART: u64 = 4 << 10;

/// What a guest's checkers and files say, by the name of the row.
type State = BTreeMap<String, String>;

/// Overwrites what is `free` in a copy of the guest's disks. Returns, for each row that was
/// examined, what has changed.
pub(crate) fn consequences(guest: &Guest, free: &Ranges) -> BTreeMap<String, Option<String>> {
    let staging = tempfile::tempdir_in(places::target_tmpdir()).unwrap();
    for (number, disk) in (1..=guest.formats().len()).zip(guest.images()) {
        let copy = staging.path().join(format!("disk{number}.raw"));
        tools::output(tools::command("cp").arg("--sparse=always").arg(&disk).arg(&copy));
        overwrite(&copy, free.get(&(number as u32)).map_or(&[], Vec::as_slice));
    }
    let examine = staging.path().join("examine.sh");
    std::fs::write(&examine, guestfish::by_label(&guest.examination())).unwrap();
    let script = format!(
        "{}run\ndebug-upload {} /tmp/examine.sh 0700\ndebug sh 'bash /tmp/examine.sh'\nshutdown\n",
        guest.attach(),
        examine.display()
    );
    let after = sections(&guestfish::run(staging.path(), &script));
    let before = sections(&guest.state());
    for (row, said) in &before {
        // What is compared must say something.
        assert!(said.lines().filter(|line| line.contains("  ./")).count() > 5, "{row}: {said}");
    }
    assert!(before.keys().eq(after.keys()), "{:?} {:?}", before.keys(), after.keys());
    let change = |before: &str, after: &str| {
        let differs = |from: &str, in_: &str| {
            let line = from.lines().find(|line| !in_.lines().any(|other| other == *line));
            line.unwrap_or_default().to_owned()
        };
        (before != after)
            .then(|| format!("before: {}; after: {}", differs(before, after), differs(after, before)))
    };
    before.iter().map(|(row, said)| (row.clone(), change(said, &after[row]))).collect()
}

/// The output of the script of [`Guest::examination`], by row.
fn sections(output: &str) -> State {
    let mut sections = State::new();
    let mut row = "";
    for line in output.lines() {
        match line.strip_prefix("= ") {
            Some(name) => row = name,
            // Before the first row, guestfish says what it does.
            None if row.is_empty() => continue,
            None => {}
        }
        let section = sections.entry(row.to_owned()).or_default();
        section.push_str(line);
        section.push('\n');
    }
    sections
}

fn overwrite(disk: &PathBuf, free: &[Range]) {
    let mut random = Random::of(1, 0);
    let noise: Vec<u8> = (0..1 << 17).flat_map(|_| random.draw().to_le_bytes()).collect();
    let file = File::options().write(true).open(disk).unwrap();
    let write = |mut range: Range| {
        while !range.is_empty() {
            // Places differ in their noise, and so do the copies of a mirror.
            let from = random.below(noise.len() as u64 / 2);
            let length = (range.end - range.start).min(noise.len() as u64 / 2);
            file.write_all_at(&noise[from as usize..(from + length) as usize], range.start).unwrap();
            range.start += length;
        }
    };
    free.iter().flat_map(parts).for_each(write);
}

/// The parts of a free range that are overwritten.
fn parts(range: &Range) -> Vec<Range> {
    if range.end - range.start <= LONG {
        return vec![range.clone()];
    }
    let (first, last) = (range.start + END, range.end - END);
    let between = (first..last).step_by(EVERY as usize).map(|at| at..(at + PART).min(last));
    [range.start..first].into_iter().chain(between).chain([last..range.end]).collect()
}

/// The number of MiB, for the table.
pub(crate) fn mib(ranges: &Ranges) -> String {
    const MIB: f64 = 1_048_576.0;
    format!("{:.1} MiB", total(ranges) as f64 / MIB)
}
