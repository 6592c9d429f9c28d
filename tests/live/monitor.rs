//! `--qmp`: a qemu by its monitor.

use super::machine::Machine;
use rustix::process::Signal;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use virt_bmap_testutil::sandbox::{Running, Sandbox};
use virt_bmap_testutil::textmap::body;
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::{fixture, mapping};

/// A copy of a fixture's image in a directory.
fn copy(image: &Path, dir: &Path) -> PathBuf {
    let to = dir.join(image.file_name().unwrap());
    tools::run("cp", ["--sparse=always", image.to_str().unwrap(), to.to_str().unwrap()]);
    to
}

/// Maps the guest of a machine by one of its monitors.
fn map(machine: &Machine, monitor: &str, options: &[&str]) -> Running {
    let socket = machine.socket(monitor);
    let words = [&["--qmp", socket.to_str().unwrap(), "-o", "guest.bmap"], options].concat();
    Sandbox::new().start(words)
}

/// The same, until the view is complete.
fn begin(machine: &mut Machine, disks: usize, options: &[&str]) -> Running {
    let mut run = map(machine, "a", options);
    run.wait_until("the view is complete", |_| machine.has_view(disks));
    run
}

/// The same, until the appliance starts. While it is still being built, an orderly end of the run
/// leaves files of supermin.
fn begin_to_start(machine: &mut Machine, options: &[&str]) -> Running {
    let mut run = begin(machine, 1, options);
    run.wait_until_said("starting the appliance");
    run
}

#[test]
fn the_map_is_of_the_moment_when_it_began() {
    needs!("guestfish", "sfdisk", "qemu-img", "qemu-system-x86_64", "debugfs", "e2fsck");
    let dir = tempfile::tempdir().unwrap();
    let (small, plain) = (fixture::small(), fixture::plain());
    let raw = copy(&small.image, dir.path());
    let qcow2 = dir.path().join("plain.qcow2");
    let names = [plain.image.to_str().unwrap(), qcow2.to_str().unwrap()];
    tools::run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", names[0], names[1]]);
    // What the guest makes of its first disk: files come and go, written by another program.
    let later = dir.path().join("later.raw");
    fs::copy(&raw, &later).unwrap();
    let start = small.partitions[0].segments[0].disk;
    let filesystem = format!("{}?offset={start}", later.display());
    let news = dir.path().join("news");
    fs::write(&news, vec![b'n'; 3 << 20]).unwrap();
    tools::run("debugfs", ["-w", "-R", &format!("write {} news", news.display()), &filesystem]);

    let mut machine = Machine::start(&[(&raw, "raw"), (&qcow2, "qcow2")]);
    let run = begin(&mut machine, 2, &[]);
    let size = fs::metadata(&later).unwrap().len();
    machine.write(0, &format!("-s {} 0 {size}", later.display()));
    // The other disk is wiped.
    machine.write(1, "-P 0x55 0 32M");
    let run = run.finish();
    run.assert_code(0).assert_says(&["cd is left out: it has no medium", "unused is left out"]);
    let text = run.read("guest.bmap");
    assert!(body(&text) == body(&mapping::of(&[small, plain], &[]).text));
    let header = String::from_utf8_lossy(&text).into_owned();
    for (disk, format, file) in [(1, "raw", &raw), (2, "qcow2", &qcow2)] {
        let line = format!(" format={format} name={}\n", file.display());
        assert!(header.contains(&line), "disk {disk}: {header}");
    }
    machine.assert_clean();
    assert!(!machine.serves());
    // The guest's disks are what it made of them.
    machine.quit();
    assert!(fs::read(&raw).unwrap() == fs::read(&later).unwrap());
    let filesystem = format!("{}?offset={start}", raw.display());
    tools::run("e2fsck", ["-fn", &filesystem]);
    tools::run("qemu-io", ["-r", "-f", "qcow2", "-c", "read -P 0x55 0 32M", qcow2.to_str().unwrap()]);
}

/// The number of the last file that a guest has said to be on its disk.
fn written(console: &Path) -> u32 {
    let text = fs::read_to_string(console).unwrap_or_default();
    let numbers = text.lines().filter_map(|line| line.trim().strip_prefix("wrote ")?.parse().ok());
    numbers.max().unwrap_or(0)
}

#[test]
fn a_guest_writes_files_while_it_is_mapped() {
    needs!("busybox", "cpio", "debugfs", "e2fsck", "mke2fs", "qemu-system-x86_64");
    let dir = tempfile::tempdir().unwrap();
    let (image, console) = (dir.path().join("guest.raw"), dir.path().join("console"));
    let disk = image.to_str().unwrap();
    File::create(&image).unwrap().set_len(128 << 20).unwrap();
    tools::run("mke2fs", ["-q", "-F", "-t", "ext4", "-b", "4096", disk]);
    let mut machine = Machine::start_writer(&[(&image, "raw")], &console);
    let begun = Instant::now();
    while written(&console) < 5 {
        assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", fs::read_to_string(&console));
        sleep(Duration::from_millis(50));
    }
    let before = written(&console);
    let run = begin(&mut machine, 1, &[]);
    let after = written(&console);
    let run = run.finish();
    run.assert_code(0);
    assert!(written(&console) > after + 1, "the guest wrote on");
    machine.assert_clean();
    machine.quit();

    // All that was on the disk when the run began is there; of what came later, at most the file
    // that was being written when the view was complete.
    let text = String::from_utf8(run.read("guest.bmap")).unwrap();
    let mut files = BTreeMap::<u32, Vec<u64>>::new();
    for line in text.lines() {
        let Some((place, name)) = line.split_once(" f /dev/sda /f") else { continue };
        let start = u64::from_str_radix(place.split(' ').nth(1).unwrap(), 16).unwrap();
        files.entry(name.parse().unwrap()).or_default().push(start / 4096);
    }
    assert!((1..=before).all(|number| files.contains_key(&number)), "{before}: {files:?}");
    assert!(files.keys().all(|number| *number <= after + 1), "{after}: {files:?}");
    // The guest's filesystem is whole once its journal is replayed, and its files lie where they
    // lay.
    let status = Command::new("e2fsck").args(["-fp", disk]).stdout(Stdio::null()).status().unwrap();
    assert!(status.code().is_some_and(|code| code <= 1), "{status}");
    for number in 1..=before {
        let blocks = tools::run("debugfs", ["-R", &format!("blocks /f{number}"), disk]);
        let blocks = String::from_utf8(blocks).unwrap();
        let first: u64 = blocks.split_whitespace().next().unwrap().parse().unwrap();
        assert_eq!(files[&number][0], first, "/f{number}");
    }
}

/// A guest with one small disk, and things of another program: a job, a node, and what a run left
/// whose process is no more.
fn busy_machine(dir: &Path) -> Machine {
    let image = copy(&fixture::small().image, dir);
    let other = dir.join("other.raw");
    fs::write(&other, vec![1; 1 << 20]).unwrap();
    let mut machine = Machine::start(&[(&image, "raw")]);
    for name in ["another", "virt-bmap-7fffffff-1-0"] {
        let node = json!({"driver": "null-co", "node-name": name, "size": 1 << 20});
        assert_eq!(machine.execute("blockdev-add", &node), json!({}));
    }
    let node = json!({"driver": "file", "node-name": "their-source", "filename": other});
    assert_eq!(machine.execute("blockdev-add", &node), json!({}));
    let job = json!({"job-id": "theirs", "device": "their-source", "target": "another", "sync": "none"});
    assert_eq!(machine.execute("blockdev-backup", &job), json!({}));
    machine
}

/// What the other program has in the machine.
fn theirs(machine: &mut Machine) -> Vec<String> {
    let mut names = machine.names();
    names.retain(|name| !name.starts_with("virt-bmap-"));
    names
}

#[test]
fn whatever_ends_the_run_all_is_undone_and_nothing_else() {
    needs!("guestfish", "sfdisk", "qemu-system-x86_64");
    let dir = tempfile::tempdir().unwrap();
    let mut machine = busy_machine(dir.path());
    let before = theirs(&mut machine);
    assert!(before.contains(&"theirs".to_owned()), "{before:?}");
    for signal in [Signal::KILL, Signal::TERM] {
        let run = begin_to_start(&mut machine, &[]);
        let names = machine.names();
        assert!(!names.iter().any(|name| name.starts_with("virt-bmap-7fffffff-")), "a leftover: {names:?}");
        // Another run at the same time is told who is at work.
        map(&machine, "b", &[]).finish().assert_fails(&["maps this guest already"]);
        machine.write(0, "-P 0x55 1M 8M");
        if signal == Signal::KILL {
            let left = run.kill();
            assert!(!left.iter().any(|file| file.ends_with("live.sock")), "{left:?}");
        } else {
            run.signal(signal);
            // This checks that neither processes nor files remain.
            run.finish().assert_code(128 + signal.as_raw());
        }
        machine.assert_clean();
        assert!(!machine.serves());
        assert_eq!(theirs(&mut machine), before);
    }
}

#[test]
fn a_guest_that_overwrites_too_much_ends_the_run() {
    needs!("guestfish", "sfdisk", "qemu-system-x86_64");
    let dir = tempfile::tempdir().unwrap();
    let image = copy(&fixture::small().image, dir.path());
    let mut machine = Machine::start(&[(&image, "raw")]);
    let run = begin_to_start(&mut machine, &["--scratch-limit", "2M"]);
    machine.write(0, "-P 0x55 1M 16M");
    let run = run.finish();
    run.assert_fails(&["limit of 2 MiB", "--scratch-limit"]);
    assert!(run.files().is_empty());
    machine.assert_clean();
}

#[test]
fn another_server_in_qemu_is_left_alone() {
    needs!("guestfish", "sfdisk", "qemu-system-x86_64");
    let dir = tempfile::tempdir().unwrap();
    let image = copy(&fixture::small().image, dir.path());
    let mut machine = Machine::start(&[(&image, "raw")]);
    let address = json!({"addr": {"type": "unix", "data": {"path": dir.path().join("s")}}});
    assert_eq!(machine.execute("nbd-server-start", &address), json!({}));
    map(&machine, "a", &[]).finish().assert_fails(&["refuses nbd-server-start"]);
    machine.assert_clean();
    assert!(machine.serves());
    // A monitor with which another program speaks does not answer; a file is none.
    map(&machine, "test", &[]).finish().assert_fails(&["another program may be connected"]);
    for words in
        [["--live", "x.raw"], ["--quiesce", "x.raw"], ["--scratch-limit=1G", "x.raw"], ["--qmp=s", "x.raw"]]
    {
        Sandbox::new().run(words).assert_code(2);
    }
    Sandbox::new()
        .run(["--qmp", image.to_str().unwrap()])
        .assert_fails(&["connection to qemu's monitor failed"]);
}

#[test]
fn a_job_that_ends_early_leaves_no_map() {
    needs!("guestfish", "sfdisk", "qemu-system-x86_64");
    let dir = tempfile::tempdir().unwrap();
    let image = copy(&fixture::plain().image, dir.path());
    let mut machine = Machine::start(&[(&image, "raw")]);
    let run = begin(&mut machine, 1, &[]);
    let jobs = machine.execute("query-jobs", &json!({}));
    machine.execute("job-cancel", &json!({"id": jobs[0]["id"]}));
    let run = run.finish();
    run.assert_fails(&["would be torn"]);
    assert!(run.files().is_empty());
    machine.assert_clean();
}

/// The server of an old qemu aborts when a client leaves, and the guest with it.
#[test]
fn a_guest_that_could_crash_is_left_alone() {
    needs!("guestfish", "sfdisk", "qemu-system-x86_64");
    let dir = tempfile::tempdir().unwrap();
    let image = copy(&fixture::small().image, dir.path());
    let mut machine = Machine::start_with_thread(&[(&image, "raw")]);
    if machine.is_old() {
        map(&machine, "a", &[]).finish().assert_fails(&["I/O threads", "can crash the guest"]);
    } else {
        let run = begin_to_start(&mut machine, &[]);
        run.signal(Signal::TERM);
        run.finish().assert_code(143);
    }
    machine.assert_clean();
}
