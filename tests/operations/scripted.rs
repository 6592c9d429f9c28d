//! A guest performs a script of operations, each followed by `sync` or `fsync`, on several
//! filesystems. `trace --operations` must report the script, in its order. `make
//! operations-torture` takes all filesystems, and 200 operations on each.

use crate::script::{ALL, Expected, Features, Round, Writer};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;
use virt_bmap_testutil::filesystems::{FILESYSTEMS, Filesystem, images};
use virt_bmap_testutil::sandbox::{Finished, Sandbox, sealed};
use virt_bmap_testutil::tools::needs;
use virt_bmap_testutil::usermode;

/// What the filesystem has.
pub(crate) fn features(name: &str) -> Features {
    match name {
        // The driver of ext2 has no such system calls.
        "ext2" => Features { has_exchange: false, has_punch: false, ..ALL },
        "fat" => Features {
            is_unix: false,
            has_links: false,
            has_xattrs: false,
            has_punch: false,
            has_inodes: false,
            ..ALL
        },
        "ntfs" => {
            Features { is_unix: false, has_xattrs: false, has_exchange: false, has_punch: false, ..ALL }
        }
        _ => ALL,
    }
}

/// How long the guest has to wait, in seconds, so that the next change of a file has another time.
fn tick(filesystem: &Filesystem) -> f64 {
    match filesystem.name {
        "ext2" => 1.0,
        "fat" => 2.0,
        // The kernel takes the time from its last timer interrupt.
        _ => 0.02,
    }
}

/// Runs a guest that performs the rounds on each filesystem, one after the other. `waits`: it lets
/// its clock tick after each of them.
fn perform(sandbox: Sandbox, work: &[(&Filesystem, Vec<Round>)], each: usize, waits: bool) -> Finished {
    let filesystems: Vec<&Filesystem> = work.iter().map(|(filesystem, _)| *filesystem).collect();
    let images = images(&filesystems);
    let _sealed = sealed(&images);
    let mut script = String::new();
    for ((filesystem, rounds), letter) in work.iter().zip('a'..) {
        let steps: Vec<&Value> = rounds.iter().flat_map(|round| &round.steps).collect();
        let pause = if waits { tick(filesystem) } else { 0.0 };
        let list = json!({"sync": filesystem.sync, "every": each, "pause": pause, "operations": steps});
        let name = format!("{}.json", filesystem.name);
        fs::write(sandbox.cwd().join(&name), list.to_string()).unwrap();
        script += &usermode::perform(&format!("/dev/vd{letter}"), filesystem.mount, &name);
    }
    let command = usermode::command(&sandbox.cwd(), work.len(), &script);
    let options = ["--image-format", "raw", "-o", "log", "--operations", "done.jsonl", "--run", &command];
    let images = images.iter().map(|image| image.to_str().unwrap());
    sandbox.run(["trace"].into_iter().chain(images).chain(options))
}

/// The operations in a file of JSON Lines.
pub(crate) fn operations(lines: &[u8]) -> Vec<Value> {
    let lines = lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
}

/// The operations on one device.
pub(crate) fn on_device(operations: &[Value], device: &str) -> Vec<Value> {
    operations.iter().filter(|operation| operation["device"] == device).cloned().collect()
}

/// An expected operation as a line.
fn line(expected: &Expected) -> String {
    let Expected { op, kind, path, .. } = expected;
    match expected.from.first() {
        Some(from) => format!("{op} {kind} {from} -> {path}"),
        None => format!("{op} {kind} {path}"),
    }
}

/// A reported operation as the line of the expected one if it is equal. Where a file has several
/// other names, any of them may be reported; and an exchange has no direction.
fn reported(operation: &Value, expected: Option<&Expected>) -> String {
    let word = |name: &str| operation[name].as_str().unwrap_or_default().to_owned();
    let (op, kind, mut path, mut from) = (word("op"), word("type"), word("path"), word("from_path"));
    if let Some(expected) = expected {
        if op == "exchange" && Some(&path) == expected.from.first() {
            std::mem::swap(&mut path, &mut from);
        }
        if op == "link" && expected.from.contains(&from) {
            from.clone_from(expected.from.first().unwrap());
        }
    }
    if from.is_empty() { format!("{op} {kind} {path}") } else { format!("{op} {kind} {from} -> {path}") }
}

/// What is wrong with the bytes and sizes of a reported operation.
fn wrong_details(operation: &Value, expected: &Expected) -> Option<String> {
    if let Some(size) = expected.size
        && operation["size"] != size
    {
        return Some(format!("size {size} expected: {operation}"));
    }
    let (offset, length) = expected.written?;
    let mut at = offset;
    let mut ranges: Vec<(u64, u64)> = operation["written"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|range| Some((range[0].as_u64()?, range[1].as_u64()?)))
        .collect();
    ranges.sort_unstable();
    for (start, length) in ranges {
        if start <= at {
            at = at.max(start + length);
        }
    }
    (at < offset + length).then(|| format!("bytes {offset}+{length} expected: {operation}"))
}

/// Compares what was reported of one device with the script. Operations of one round may have any
/// order. Returns what differs, for people.
pub(crate) fn differences(operations: &[Value], rounds: &[Round]) -> String {
    let mut rounds = rounds.to_vec();
    let mut rest = operations;
    for round in rounds.iter_mut().filter(|round| round.steps.len() > 1) {
        let (these, later) = rest.split_at(round.expected.len().min(rest.len()));
        let place = |expected: &Expected| {
            let is_it = |operation| reported(operation, Some(expected)) == line(expected);
            these.iter().position(is_it).unwrap_or(these.len())
        };
        round.expected.sort_by_cached_key(place);
        rest = later;
    }
    let expected: Vec<(usize, &Expected)> = rounds
        .iter()
        .enumerate()
        .flat_map(|(number, round)| round.expected.iter().map(move |e| (number, e)))
        .collect();
    let mut found = String::new();
    for (expected, operation) in aligned(&expected, operations) {
        match (expected, operation) {
            (Some((number, expected)), Some(operation)) => {
                if let Some(wrong) = wrong_details(operation, expected) {
                    writeln!(found, "  round {number}: {wrong}").unwrap();
                }
            }
            (Some((number, expected)), None) => {
                let steps: Vec<String> = rounds[number].steps.iter().map(Value::to_string).collect();
                writeln!(found, "  round {number}: missing {}, {}", line(expected), steps.join(" ")).unwrap();
            }
            (None, Some(operation)) => writeln!(found, "  unexpected {operation}").unwrap(),
            (None, None) => {}
        }
    }
    found
}

type Pair<'a> = (Option<(usize, &'a Expected)>, Option<&'a Value>);

/// Pairs of what was expected and reported, in the order of both: the longest common subsequence,
/// and what is in one of them only.
fn aligned<'a>(expected: &[(usize, &'a Expected)], operations: &'a [Value]) -> Vec<Pair<'a>> {
    let is_same = |i: usize, j: usize| reported(&operations[j], Some(expected[i].1)) == line(expected[i].1);
    let mut longest = vec![vec![0; operations.len() + 1]; expected.len() + 1];
    for i in (0..expected.len()).rev() {
        for j in (0..operations.len()).rev() {
            longest[i][j] = match is_same(i, j) {
                true => longest[i + 1][j + 1] + 1,
                false => longest[i + 1][j].max(longest[i][j + 1]),
            };
        }
    }
    let (mut pairs, mut i, mut j) = (Vec::new(), 0, 0);
    while i < expected.len() || j < operations.len() {
        if i < expected.len() && j < operations.len() && is_same(i, j) {
            pairs.push((Some(expected[i]), Some(&operations[j])));
            (i, j) = (i + 1, j + 1);
        } else if j == operations.len() || i < expected.len() && longest[i + 1][j] >= longest[i][j + 1] {
            pairs.push((Some(expected[i]), None));
            i += 1;
        } else {
            pairs.push((None, Some(&operations[j])));
            j += 1;
        }
    }
    pairs
}

/// Runs a script on each of the filesystems in one trace, and compares. `VIRT_BMAP_OPERATIONS` is
/// another number of steps, on all filesystems or on those that `VIRT_BMAP_FILESYSTEMS` names. Each
/// of them then has a trace of its own: at most 2048 states may wait.
fn check(names: &[&str], steps: usize, each: usize) {
    let long = std::env::var("VIRT_BMAP_OPERATIONS").ok().map(|steps| steps.parse().unwrap());
    let chosen = std::env::var("VIRT_BMAP_FILESYSTEMS");
    let mut work = Vec::new();
    for (part, filesystem) in FILESYSTEMS.iter().enumerate() {
        // FAT has no inodes: there a file that takes over the first block of a deleted one is the
        // same.
        let is_exact = each == 1 || filesystem.name != "fat";
        let is_chosen =
            chosen.as_ref().is_ok_and(|names| names.split(' ').any(|name| name == filesystem.name));
        let is_wanted = match long {
            Some(_) => is_exact && (is_chosen || chosen.is_err()),
            None => names.contains(&filesystem.name),
        };
        if is_wanted {
            let mut writer = Writer::new(each as u64, part, features(filesystem.name));
            work.push((filesystem, writer.rounds(long.unwrap_or(steps), each)));
        }
    }
    let size = if long.is_some() { 1 } else { work.len() };
    let wrong: String = work.chunks(size).map(|work| wrong(work, each, long.is_some())).collect();
    assert!(wrong.is_empty(), "\n{wrong}");
}

/// What is wrong with the operations of one trace, for people.
fn wrong(work: &[(&Filesystem, Vec<Round>)], each: usize, waits: bool) -> String {
    let run = perform(Sandbox::new().deadline(Duration::from_secs(3000)), work, each, waits);
    let console = String::from_utf8_lossy(&run.read("console")).into_owned();
    assert_eq!(run.code(), 0, "{}\n{console}", run.stderr);
    let operations = operations(&run.read("done.jsonl"));
    let mut wrong = String::new();
    for ((filesystem, rounds), letter) in work.iter().zip('a'..) {
        let these = on_device(&operations, &format!("/dev/sd{letter}"));
        let found = differences(&these, rounds);
        if !found.is_empty() {
            writeln!(wrong, "{}:\n{found}", filesystem.name).unwrap();
        }
        let unflushed: Vec<&Value> = these.iter().filter(|operation| operation["flushed"] != true).collect();
        // Between `sync`, which flushes nothing there, and `fsync` a busy guest may pause for long
        // enough to end a state.
        let most = if filesystem.sync == "fsync" { these.len() / 2 } else { 0 };
        if unflushed.len() > most {
            let (count, first) = (unflushed.len(), unflushed[0]);
            writeln!(wrong, "{}: {count} not flushed: {first}", filesystem.name).unwrap();
        }
        assert!(these.iter().is_sorted_by_key(|operation| operation["to_ns"].as_u64()), "{these:?}");
    }
    if !wrong.is_empty() {
        wrong += &run.stderr;
    }
    wrong
}

macro_rules! needs_guest {
    () => {
        needs!("linux.uml", "qemu-storage-daemon", "setsid", "modprobe", "python3");
        needs!("mke2fs", "mkfs.xfs", "mkfs.btrfs", "mkfs.vfat", "mkfs.ntfs", "ntfs-3g");
    };
}
pub(crate) use needs_guest;

#[test]
fn synced_operations_are_reported_in_their_order() {
    needs_guest!();
    check(&["ext3", "ext4", "ext4-data", "xfs"], 20, 1);
}

#[test]
fn operations_between_two_syncs_are_their_net_effect() {
    needs_guest!();
    check(&["ext4", "xfs"], 60, 10);
}

#[test]
fn operations_where_sync_flushes_nothing_and_on_btrfs() {
    needs_guest!();
    check(&["ext2", "ext4-bare", "fat", "ntfs", "btrfs"], 8, 1);
}

/// The step with its paths in the directory `directory`.
fn below(directory: &str, step: &Value) -> Value {
    let words = step.as_array().unwrap().iter().map(|word| match word.as_str() {
        Some(path) if path.starts_with('/') => Value::from(format!("{directory}{path}")),
        _ => word.clone(),
    });
    words.collect()
}

#[test]
fn operations_on_two_disks_keep_their_order() {
    needs_guest!();
    let filesystems: Vec<&Filesystem> =
        FILESYSTEMS.iter().filter(|filesystem| ["ext4", "xfs"].contains(&filesystem.name)).collect();
    let images = images(&filesystems);
    let _sealed = sealed(&images);
    let [first, second] = [11, 12].map(|seed| Writer::new(seed, 0, ALL).rounds(6, 1));
    let turns = first.iter().zip(&second);
    let steps: Vec<Value> =
        turns.clone().flat_map(|(a, b)| [below("/a", &a.steps[0]), below("/b", &b.steps[0])]).collect();
    let sandbox = Sandbox::new();
    let list = json!({"sync": "sync", "every": 1, "operations": steps});
    fs::write(sandbox.cwd().join("list.json"), list.to_string()).unwrap();
    let script = "
        set -e
        mkdir /mnt/a /mnt/b
        mount /dev/vda /mnt/a
        mount /dev/vdb /mnt/b
        /usr/bin/python3 operations.py /mnt list.json
        umount /mnt/a /mnt/b
    ";
    let command = usermode::command(&sandbox.cwd(), 2, script);
    let options = ["--image-format", "raw", "-o", "log", "--operations", "done.jsonl", "--run", &command];
    let run =
        sandbox.run(["trace"].into_iter().chain(images.iter().map(|i| i.to_str().unwrap())).chain(options));
    assert_eq!(run.code(), 0, "{}\n{}", run.stderr, String::from_utf8_lossy(&run.read("console")));
    let operations = operations(&run.read("done.jsonl"));
    for (device, rounds) in [("/dev/sda", &first), ("/dev/sdb", &second)] {
        let found = differences(&on_device(&operations, device), rounds);
        assert!(found.is_empty(), "{device}:\n{found}\n{}", run.stderr);
    }
    let devices: Vec<&str> =
        operations.iter().map(|operation| operation["device"].as_str().unwrap()).collect();
    let expected: Vec<&str> = turns
        .flat_map(|(a, b)| [vec!["/dev/sda"; a.expected.len()], vec!["/dev/sdb"; b.expected.len()]].concat())
        .collect();
    assert_eq!(devices, expected);
}
