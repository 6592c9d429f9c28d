//! Compares a fleet that maps two guests at a time with one that maps one guest at a time.
//!
//! ```text cargo bench --bench fleet # writes a table in docs/performance.md ```
//!
//! `virt-bmap-rs fleet` maps four guests of 1,000 directories and files, one at a time and two at a
//! time in turns. The faster of two runs of each counts. Needs `mke2fs` (e2fsprogs), what mapping
//! needs, and two processors. Ends with status 1 if two at a time are less than one and a half
//! times as fast. Nothing else should run at the same time.

#![allow(clippy::expect_used)]

#[path = "common/guest.rs"]
mod guest;
#[path = "common/page.rs"]
mod page;

use guest::MEDIUM;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

const GUESTS: usize = 4;

const RUNS: usize = 2;

/// How many times as fast two at a time must be.
const BAR: f64 = 1.5;

fn main() -> ExitCode {
    let image = MEDIUM.image(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("probes"));
    let directory = tempfile::tempdir().expect("a directory is made");
    for number in 0..GUESTS {
        guest::copy(&image, &directory.path().join(format!("guest{number}.img")));
    }
    let mut best = [Duration::MAX; 2];
    for _ in 0..RUNS {
        for (at_a_time, best) in (1..).zip(&mut best) {
            let took = fleet(directory.path(), at_a_time);
            println!("-j {at_a_time}: {:.1} s", took.as_secs_f64());
            *best = (*best).min(took);
        }
    }
    let [one, two] = best.map(|best| best.as_secs_f64());
    let ratio = one / two;
    let mut table = String::from("| guests at a time | total | guests per hour |\n|--:|--:|--:|\n");
    for (at_a_time, took) in [(1, one), (2, two)] {
        let _ = writeln!(table, "| {at_a_time} | {took:.1} s | {:.0} |", GUESTS as f64 * 3600.0 / took);
    }
    page::replace("fleet", &table);
    println!("two at a time get {ratio:.2} times as much done as one at a time, at least {BAR}");
    if ratio < BAR { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// How long it takes to map all guests, `at_a_time` at a time.
fn fleet(directory: &Path, at_a_time: u32) -> Duration {
    let maps = directory.join("maps");
    let began = Instant::now();
    let status = Command::new(env!("CARGO_BIN_EXE_virt-bmap-rs"))
        .args(["fleet", "--quiet", "-j", &at_a_time.to_string(), "--out-dir"])
        .arg(&maps)
        .args((0..GUESTS).map(|number| directory.join(format!("guest{number}.img"))))
        .status();
    assert!(status.expect("the fleet is mapped").success());
    let took = began.elapsed();
    fs::remove_dir_all(&maps).expect("the maps are removed");
    took
}
