//! What operations say about flushes: on filesystems whose `sync` sends none, when the guest is
//! killed, and when a client flushes thousands of times in a second.

use serde_json::{Value, json};
use std::fs;
use virt_bmap_testutil::client;
use virt_bmap_testutil::filesystems::{FILESYSTEMS, Filesystem, images};
use virt_bmap_testutil::formats;
use virt_bmap_testutil::reported::{differences, operations};
use virt_bmap_testutil::sandbox::{Finished, Sandbox, sealed};
use virt_bmap_testutil::script::{Round, Writer, features};
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::usermode::{self, needs_guest};

fn filesystem(name: &str) -> &'static Filesystem {
    FILESYSTEMS.iter().find(|filesystem| filesystem.name == name).unwrap()
}

/// Runs `script` in a guest with the filesystem's disk.
fn trace(sandbox: Sandbox, filesystem: &Filesystem, script: &str) -> Finished {
    let images = images(&[filesystem]);
    let _sealed = sealed(&images);
    let command = usermode::command(&sandbox.cwd(), 1, script);
    let image = images[0].to_str().unwrap();
    let options = ["--image-format", "raw", "-o", "log", "--operations", "done.jsonl", "--run", &command];
    sandbox.run(["trace", image].into_iter().chain(options))
}

/// Writes a list for `operations.py`.
fn put(sandbox: &Sandbox, name: &str, rounds: &[Round], sync: &str, pause: f64) {
    let steps: Vec<&Value> = rounds.iter().flat_map(|round| &round.steps).collect();
    let list = json!({"sync": sync, "every": 1, "pause": pause, "operations": steps});
    fs::write(sandbox.cwd().join(name), list.to_string()).unwrap();
}

#[test]
fn operations_that_no_flush_followed_are_marked() {
    needs_guest!();
    // `sync` of ext2 writes everything, and flushes nothing.
    let ext2 = filesystem("ext2");
    let rounds = Writer::new(3, 0, features("ext2")).rounds(12, 1);
    let sandbox = Sandbox::new();
    put(&sandbox, "list.json", &rounds, "sync", 0.3);
    let run = trace(sandbox, ext2, &usermode::perform("/dev/vda", ext2.mount, "list.json"));
    run.assert_code(0);
    let operations = operations(&run.read("done.jsonl"));
    let found = differences(&operations, &rounds);
    assert!(found.is_empty(), "{found}\n{}", run.stderr);
    let flushed: Vec<&Value> = operations.iter().filter(|operation| operation["flushed"] != false).collect();
    assert!(flushed.is_empty(), "{flushed:?}");
}

#[test]
fn a_killed_guest_did_what_it_had_flushed() {
    needs_guest!();
    let ext4 = filesystem("ext4");
    let mut writer = Writer::new(4, 0, features("ext4"));
    let (synced, lost) = (writer.rounds(20, 1), writer.rounds(5, 1));
    let sandbox = Sandbox::new();
    put(&sandbox, "synced.json", &synced, "sync", 0.0);
    put(&sandbox, "lost.json", &lost, "none", 0.0);
    usermode::kill_at(&sandbox.cwd(), "performed lost.json");
    let lists = "python3 operations.py /mnt synced.json\npython3 operations.py /mnt lost.json\n\
                 echo performed lost.json\nsleep 60\n";
    let lists = lists.replace("python3", "/usr/bin/python3");
    let run = trace(sandbox, ext4, &usermode::within("/dev/vda", ext4.mount, &lists));
    run.assert_code(5);
    let operations = operations(&run.read("done.jsonl"));
    let (flushed, other): (Vec<Value>, Vec<Value>) =
        operations.into_iter().partition(|operation| operation["flushed"] == true);
    let found = differences(&flushed, &synced);
    assert!(found.is_empty(), "{found}\n{}", run.stderr);
    // The kernel writes the others five seconds later, when the guest is dead.
    assert!(other.is_empty(), "{other:?}");
}

/// Writes a block of the inode table again and flushes, as fast as it can, some thousands of times.
/// Then it writes the blocks that differ in another image, flushes, and begins anew. It prints how
/// often it flushed.
const STORM: &str = r#"
import nbd, os, sys
from differences import write_differences
old, new, table = sys.argv[1], sys.argv[2], int(sys.argv[3])
h = nbd.NBD()
h.connect_uri(os.environ["uri"])

def storm():
    for _ in range(3000):
        h.pwrite(h.pread(4096, table * 4096), table * 4096)
        h.flush()

storm()
write_differences(h, old, new)
h.flush()
storm()
h.shutdown()
print(6001)
"#;

#[test]
fn a_storm_of_flushes() {
    needs!("mke2fs", "debugfs", "dumpe2fs");
    let images = images(&[filesystem("ext4")]);
    let _sealed = sealed(&images);
    let image = images[0].to_str().unwrap();
    let sandbox = Sandbox::new();
    let new = sandbox.cwd().join("new");
    formats::copy(&images[0], &new);
    fs::write(sandbox.cwd().join("commands"), "mkdir made\nsymlink link made\n").unwrap();
    let commands = sandbox.cwd().join("commands");
    tools::output(tools::command("debugfs").args(["-w", "-f"]).arg(commands).arg(&new));
    let groups = String::from_utf8(tools::run("dumpe2fs", [image])).unwrap();
    let table = groups.split_once("Inode table at ").unwrap().1.split('-').next().unwrap();
    let client = client::put(&sandbox, STORM);
    let client = format!("{client} '{image}' new {table} >count");
    // Looking at each state would take an hour.
    let options =
        ["--image-format", "raw", "-o", "log", "--operations", "done.jsonl", "--operations-every", "1"];
    let run = sandbox.run(["trace", image].into_iter().chain(options).chain(["--run", &client]));
    run.assert_code(0);
    let flushes: u64 = String::from_utf8(run.read("count")).unwrap().trim().parse().unwrap();
    let found = operations(&run.read("done.jsonl"));
    let lines: Vec<String> = found
        .iter()
        .map(|operation| format!("{} {} {}", operation["op"], operation["path"], operation["flushed"]))
        .collect();
    assert_eq!(lines, [r#""symlink" "/link" true"#, r#""mkdir" "/made" true"#]);
    assert!(run.peak_kib < 200 << 10, "{} KiB; {}", run.peak_kib, run.stderr);
    // Every state is looked at, most of them together with others.
    let (before, _) = run.stderr.split_once(" states of the disks, ").unwrap();
    let states: u64 = before.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((flushes..flushes + 10).contains(&states), "{flushes} flushes, {}", run.stderr);
    assert!(found.iter().all(|operation| operation["states"].as_u64() > Some(100)), "{found:?}");
}
