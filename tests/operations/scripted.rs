//! A guest performs a script of operations, each followed by `sync` or `fsync`, on several
//! filesystems. `trace --operations` must report the script, in its order. `make
//! operations-torture` takes all filesystems, and 200 operations on each.

use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;
use virt_bmap_testutil::filesystems::{FILESYSTEMS, Filesystem, images};
use virt_bmap_testutil::reported::{differences, on_device, operations};
use virt_bmap_testutil::sandbox::{Finished, Sandbox, sealed};
use virt_bmap_testutil::script::{ALL, Round, Writer, features};
use virt_bmap_testutil::usermode::{self, needs_guest};

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
