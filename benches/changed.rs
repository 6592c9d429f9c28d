//! How long it takes to tell which files a guest's boot changed.
//!
//! ```text
//! cargo bench --bench changed    # writes a table in docs/performance.md
//! ```
//!
//! A guest with Debian's systemd and 100,000 files more boots from an overlay. Then `changed`
//! answers for the overlay with the map of the guest before, in three ways by turns, three times
//! each; the medians count: with a map of the overlay that is made from scratch in libguestfs's
//! appliance, as version 057678a did; with one that is an update of the older map; and without an
//! appliance. The benchmark fails if the second takes more than 0.6 of the first. Needs what
//! mapping needs, and what the tests of booting guests need. Nothing else should run at the same
//! time.

#![allow(clippy::expect_used)]

#[path = "common/guest.rs"]
mod guest;
#[path = "common/page.rs"]
mod page;

use guest::MANY;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;
use virt_bmap_testutil::{bootable, tools};

const RUNS: usize = 3;
/// What an update may take, mapping from scratch being 1.
const BAR: f64 = 0.6;
/// Size of the guest's root filesystem.
const MEBIBYTES: u64 = 3072;

/// What the guest does as it boots: it writes logs and states, as services do, and replaces and
/// removes some files.
const WORK: &str = "\
run() { /bin/busybox \"$@\"; }
run mkdir -p /var/log /var/lib/state
for n in $(run seq 200); do
    run dmesg >/var/log/boot-$n
    echo $n >>/var/log/messages
    echo $n >/var/lib/state/$n
done
n=0
for file in $(run find /srv -name '*7' -type f | run head -100); do
    n=$((n + 1))
    if [ $((n % 2)) = 0 ]; then run rm $file; else echo new >$file; fi
done
run sync";

/// A way to answer: its description, and the arguments of the runs that it takes.
type Way = (&'static str, &'static [&'static [&'static str]]);

const WAYS: [Way; 3] = [
    (
        "mapped from scratch in libguestfs's appliance",
        &[
            &["top.qcow2", "-q", "--appliance", "stock", "--smp", "1", "-o", "top.jsonl"],
            &["changed", "top.qcow2", "--map", "guest.jsonl", "--new", "top.jsonl"],
        ],
    ),
    ("mapped as an update", &[&["changed", "top.qcow2", "--map", "guest.jsonl", "--fresh", "-q"]]),
    ("`--no-boot`", &[&["changed", "top.qcow2", "--map", "guest.jsonl", "--no-boot"]]),
];

fn main() -> ExitCode {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("changed");
    if !directory.join("top.qcow2").exists() {
        make(&directory);
    }
    let mut took = [const { Vec::new() }; WAYS.len()];
    for _ in 0..RUNS {
        for (took, (what, runs)) in took.iter_mut().zip(WAYS) {
            let began = Instant::now();
            runs.iter().for_each(|arguments| ours(&directory, arguments));
            took.push(began.elapsed().as_secs_f64());
            println!("{what}: {:.2} s", took[took.len() - 1]);
        }
    }
    let mut table = String::from("| map of the overlay | `changed` |\n|---|--:|\n");
    let mut medians = Vec::new();
    for (mut took, (what, _)) in took.into_iter().zip(WAYS) {
        took.sort_by(f64::total_cmp);
        medians.push(took[RUNS / 2]);
        let _ = writeln!(table, "| {what} | {:.2} s |", took[RUNS / 2]);
    }
    let ratio = medians[1] / medians[0];
    let _ = writeln!(table, "\nAn update takes {ratio:.2} of the time of mapping from scratch.");
    println!("{table}");
    page::replace("changed", &table);
    if ratio > BAR {
        eprintln!("{ratio:.2} of the time from scratch; the bar is {BAR:.2}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Makes the guest and its map, and boots it from an overlay.
fn make(directory: &Path) {
    fs::create_dir_all(directory).expect("a directory is made");
    let tree = MANY.tree(directory);
    bootable::systemd_with(&tree, WORK, MEBIBYTES, directory);
    fs::remove_dir_all(&tree).expect("the tree is removed");
    ours(directory, &["boot.raw", "-q", "-o", "guest.jsonl"]);
    let shell = |script: &str| {
        tools::output(tools::command("sh").args(["-c", script]).current_dir(directory));
    };
    shell("qemu-img create -q -f qcow2 -b boot.raw -F raw partial.qcow2");
    let qemu = bootable::QEMU.replace("$nbd,format=raw", "partial.qcow2,format=qcow2");
    shell(&format!("{qemu} -serial null"));
    let console = fs::read_to_string(directory.join("console")).expect("the guest has a console");
    assert!(console.contains("GUEST is up"), "{console}");
    fs::rename(directory.join("partial.qcow2"), directory.join("top.qcow2")).expect("it gets its name");
}

/// Runs this program. All answers are complete, except that by the older map alone.
fn ours(directory: &Path, arguments: &[&str]) {
    let status = Command::new(env!("CARGO_BIN_EXE_virt-bmap-rs"))
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("the program runs");
    let is_partial = arguments.contains(&"--no-boot");
    assert_eq!(status.code(), Some(if is_partial { 3 } else { 0 }), "{arguments:?}");
}
