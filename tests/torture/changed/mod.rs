//! `virt-bmap-rs update` of guests whose files were changed at random. The new map must be equal to
//! a map that is made from scratch, byte for byte, and files that nobody touched must not be read.
//!
//! The guest has a disk for each kind of filesystem that this machine's kernel can mount and
//! change. A seed chooses the changes and how the guest is mapped. `cargo test --test torture --
//! changed` runs one seed, `--all` (`make update-torture`) runs all of them, and numbers choose
//! seeds.

mod changes;
use std::fs::File;
use std::path::Path;
use std::time::Duration;
use virt_bmap_testutil::random::{self, Random};
use virt_bmap_testutil::sandbox::Sandbox;
use virt_bmap_testutil::tools;

/// The seeds of `make update-torture`.
const SEEDS: std::ops::Range<u64> = 0..8;

/// How often a guest is changed and its map updated. The baseline is the map of the round before.
const ROUNDS: usize = 2;

/// The number of changes to each filesystem in a round.
const CHANGES: usize = 120;

/// The number of files in each filesystem that are never touched.
const STILL: u64 = 6 * 12;

/// The time limit of a run. An idle machine needs a tenth of it.
const DEADLINE: Duration = Duration::from_secs(300);

/// A disk of the guest.
struct Disk {
    name: &'static str,
    /// The filesystem, as `mount -t` names it.
    kind: &'static str,
    mib: u64,
    mkfs: &'static [&'static str],
    mount: &'static str,
    /// Whether an update reuses all files that nobody touched.
    is_reusable: bool,
}

const DISKS: [Disk; 6] = [
    Disk {
        name: "ext4.raw",
        kind: "ext4",
        mib: 64,
        mkfs: &["mkfs.ext4", "-q", "-F", "-b", "4096"],
        mount: "loop",
        is_reusable: true,
    },
    Disk {
        name: "inline.raw",
        kind: "ext4",
        mib: 64,
        mkfs: &["mkfs.ext4", "-q", "-F", "-b", "1024", "-I", "512", "-O", "inline_data"],
        mount: "loop",
        is_reusable: true,
    },
    Disk {
        name: "ext2.raw",
        kind: "ext2",
        mib: 64,
        mkfs: &["mkfs.ext2", "-q", "-F", "-b", "1024"],
        mount: "loop",
        is_reusable: true,
    },
    Disk {
        name: "xfs.raw",
        kind: "xfs",
        mib: 320,
        mkfs: &["mkfs.xfs", "-q", "-f"],
        mount: "loop",
        is_reusable: true,
    },
    Disk {
        name: "btrfs.raw",
        kind: "btrfs",
        mib: 256,
        mkfs: &["mkfs.btrfs", "-q", "-f"],
        mount: "loop",
        is_reusable: true,
    },
    Disk {
        name: "zstd.raw",
        kind: "btrfs",
        mib: 256,
        mkfs: &["mkfs.btrfs", "-q", "-f"],
        mount: "loop,compress-force=zstd",
        is_reusable: false,
    },
];

/// Runs the seeds that the arguments choose. A seed that fails panics, so the result is true.
pub(crate) fn run(args: &[String]) -> bool {
    let needed = ["guestfish", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "e4defrag", "xfs_fsr", "mount"];
    if !tools::installed(&needed) || !tools::is_root("mount a filesystem") {
        return true;
    }
    let seeds = random::seeds(args, SEEDS);
    for seed in &seeds {
        torture(*seed);
    }
    println!("{} seeds", seeds.len());
    true
}

/// Makes a guest and changes it several times. After each time it updates the map, and compares it
/// with a map from scratch.
fn torture(seed: u64) {
    let sandbox = Sandbox::new().deadline(DEADLINE);
    let cwd = sandbox.cwd();
    for (number, disk) in DISKS.iter().enumerate() {
        File::create_new(cwd.join(disk.name)).unwrap().set_len(disk.mib << 20).unwrap();
        tools::output(tools::command(disk.mkfs[0]).args(&disk.mkfs[1..]).arg(cwd.join(disk.name)));
        let random = &mut Random::of(seed, number);
        mounted(&cwd, disk, |root| {
            changes::begin(root, random);
            changes::change(root, disk.kind, CHANGES / 2, random);
        });
    }
    let images = DISKS.map(|disk| disk.name);
    let metadata: &[&str] = if seed % 2 == 1 { &[] } else { &["--no-metadata"] };
    let run = sandbox.run([&images[..], &["-o", "guest.jsonl"], metadata].concat());
    run.assert_code(0);
    let mut sandbox = run.sandbox;
    for round in 0..ROUNDS {
        for (number, disk) in DISKS.iter().enumerate() {
            let random = &mut Random::of(seed, (round + 1) * DISKS.len() + number);
            mounted(&cwd, disk, |root| changes::change(root, disk.kind, CHANGES, random));
        }
        let probe = ["--probe", ["agent", "extents"][(seed as usize / 2 + round) % 2]];
        let run = sandbox.run([&["update", "guest.jsonl"], &probe[..]].concat());
        run.assert_code(0);
        let (seconds, taken_over, said) = (run.elapsed.as_secs_f64(), run.taken_over(), run.stderr.clone());
        let run = run.sandbox.run([&images[..], &["-o", "scratch.jsonl"], &probe, metadata].concat());
        run.assert_code(0);
        let context = format!("seed {seed}, round {round}, {probe:?} {metadata:?}");
        let taken_over = taken_over.unwrap_or_else(|| panic!("{context}: {said}"));
        println!(
            "{context}: {taken_over} files taken over, {seconds:.0} s, from scratch {:.0} s",
            run.elapsed.as_secs_f64()
        );
        assert_same(&run.read("guest.jsonl"), &run.read("scratch.jsonl"), &context);
        let told = DISKS.iter().filter(|disk| disk.is_reusable).count() as u64;
        assert!(taken_over >= told * STILL, "{context}: {taken_over}, {told} times {STILL} were not touched");
        sandbox = run.sandbox;
    }
}

/// Mounts a disk, calls `work` with the mount point, and unmounts the disk.
fn mounted(cwd: &Path, disk: &Disk, work: impl FnOnce(&Path)) {
    let root = cwd.join("root");
    virt_bmap_testutil::mounted::mounted(&cwd.join(disk.name), disk.kind, disk.mount, &root, || work(&root));
}

/// Fails if two maps differ, and shows the first lines that differ.
fn assert_same(updated: &[u8], scratch: &[u8], context: &str) {
    if updated == scratch {
        return;
    }
    let lines = |text: &[u8]| -> Vec<String> {
        text.split(|byte| *byte == b'\n').map(|line| String::from_utf8_lossy(line).into_owned()).collect()
    };
    let (updated, scratch) = (lines(updated), lines(scratch));
    let only = |these: &[String], those: &[String]| -> Vec<String> {
        let those: std::collections::HashSet<&String> = those.iter().collect();
        these.iter().filter(|line| !those.contains(line)).take(8).cloned().collect()
    };
    panic!(
        "{context}\nonly updated: {:#?}\nonly from scratch: {:#?}",
        only(&updated, &scratch),
        only(&scratch, &updated)
    );
}
