//! The operations on an ext4, found after the fact: in a recorded history, and between states of
//! the disk in several forms. In place of a guest, this machine's kernel changes copies of the
//! disk. A client then writes the blocks that differ. docs/operations.md describes the commands.

use std::fs;
use std::io::BufReader;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use virt_bmap_history::{Kind, LogReader};
use virt_bmap_testutil::client;
use virt_bmap_testutil::mounted::mounted;
use virt_bmap_testutil::sandbox::{Sandbox, sealed};
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::{cache, formats};

const BEFORE: &str = "
    for f in over grown mode doomed; do yes $f | head -c 50000 >$f; done";

/// What is done between two states, and the operations that it amounts to.
const STEPS: [(&str, &[&str]); 3] = [
    ("mkdir d; yes a | head -c 9000 >d/new", &["mkdir d /dev/sda /d", "create f /dev/sda /d/new"]),
    (
        "mv d/new moved; yes more | head -c 5000 >>grown; chmod 600 mode",
        &["append f /dev/sda /grown", "chmod f /dev/sda /mode", "rename f /dev/sda /d/new -> /moved"],
    ),
    (
        "rm doomed; rmdir d; ln -s grown link
         yes new | dd of=over bs=4096 seek=1 count=1 iflag=fullblock conv=notrunc status=none",
        &[
            "delete f /dev/sda /doomed",
            "rmdir d /dev/sda /d",
            "symlink s /dev/sda /link",
            "write f /dev/sda /over",
        ],
    ),
];

/// The images of all states, the oldest first.
fn states() -> Vec<PathBuf> {
    let image = |dir: &Path, state: usize| dir.join(format!("{state}.raw"));
    let dir = cache::directory("after-the-fact", &cache::key((BEFORE, STEPS)), |dir| {
        let first = image(dir, 0);
        tools::run("truncate", ["-s", "64M", first.to_str().unwrap()]);
        tools::run("mke2fs", ["-q", "-t", "ext4", "-b", "4096", first.to_str().unwrap()]);
        let scripts = [BEFORE].into_iter().chain(STEPS.map(|(script, _)| script));
        for (state, script) in scripts.enumerate() {
            if state > 0 {
                formats::copy(&image(dir, state - 1), &image(dir, state));
            }
            let root = dir.join("root");
            mounted(&image(dir, state), "ext4", "loop", &root, || {
                tools::output(tools::command("bash").args(["-euc", script]).current_dir(&root));
            });
        }
    });
    (0..=STEPS.len()).map(|state| image(&dir, state)).collect()
}

/// Whether the tests can run.
fn are_possible() -> bool {
    tools::is_root("mount a filesystem")
}

/// Writes the blocks in which a state differs from the one before, and flushes, for each state.
const CLIENT: &str = r#"
import nbd, os, sys
from differences import write_differences
h = nbd.NBD()
h.connect_uri(os.environ["uri"])
for old, new in zip(sys.argv[1:], sys.argv[2:]):
    write_differences(h, old, new)
    h.flush()
h.shutdown()
"#;

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The operations of a list, in groups with the same comment above.
fn groups(list: &str) -> Vec<(&str, Vec<&str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in list.lines() {
        match (line.strip_prefix("# "), groups.last_mut()) {
            (Some(span), _) => groups.push((span, Vec::new())),
            (None, group) => group.expect("a list begins with a comment").1.push(line),
        }
    }
    groups
}

/// Fails unless these are the operations of all steps, each in a group of its own. Returns the
/// spans.
fn assert_each_step(list: &str) -> Vec<&str> {
    let (spans, operations): (Vec<_>, Vec<_>) = groups(list).into_iter().unzip();
    assert_eq!(operations, STEPS.map(|(_, operations)| operations.to_vec()), "{list}");
    spans
}

/// Where the records of a log after its `count`th flush begin.
fn after_flush(log: &Path, count: usize) -> u64 {
    let mut reader = LogReader::open(BufReader::new(fs::File::open(log).unwrap())).unwrap();
    for _ in 0..count {
        while reader.next_record().unwrap().expect("a flush follows").kind != Kind::Flush {}
    }
    reader.position().0
}

#[test]
fn a_recorded_history_has_the_operations_of_the_trace() {
    needs!("mke2fs", "mount");
    if !are_possible() {
        return;
    }
    let states = states();
    let _sealed = sealed(&states);
    let sandbox = Sandbox::new();
    fs::write(sandbox.cwd().join("guest.bmap"), "1 0 4000000 v /dev/sda\n").unwrap();
    let base = states[0].to_str().unwrap();
    let list: Vec<_> = states.iter().map(|state| state.to_str().unwrap()).collect();
    let client = format!("{} {}", client::put(&sandbox, CLIENT), list.join(" "));
    let options = ["--map", "guest.bmap", "-o", "log", "--operations", "live", "--record", "history"];
    let run = sandbox
        .run(["trace", base, "--image-format", "raw"].into_iter().chain(options).chain(["--run", &client]));
    run.assert_code(0).assert_says(&["3 states of the disks"]);
    let live = text(&run.read("live"));
    assert_each_step(&live);
    let log = run.sandbox.cwd().join("history");
    assert_eq!(log.metadata().unwrap().permissions().mode() & 0o7777, 0o600);

    let recorded = |base: &str, log: &Path, more: &[&str]| {
        let words = ["operations", base, "--image-format", "raw", "--history", log.to_str().unwrap()];
        Sandbox::new().run(words.iter().chain(more))
    };
    let run = recorded(base, &log, &[]);
    run.assert_code(0).assert_says(&["3 states of the disks", "3 looks"]);
    assert_eq!(text(&run.stdout), live);

    // The net effect of all: what was made and renamed is made under its last name.
    let run = recorded(base, &log, &["--every", "3600", "-o", "done.jsonl"]);
    run.assert_code(0);
    let lines: Vec<serde_json::Value> =
        text(&run.read("done.jsonl")).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let words: Vec<_> = lines.iter().map(|line| line["op"].as_str().unwrap()).collect();
    assert_eq!(words, ["delete", "append", "symlink", "chmod", "create", "write"], "{lines:#?}");
    assert!(lines.iter().all(|line| line["states"] == 3 && line["flushed"] == true), "{lines:#?}");

    // A copy is another file, so only the user can know that it has the same bytes.
    let copy = tempfile::Builder::new().suffix(".raw").tempfile().unwrap();
    formats::copy(&states[0], copy.path());
    let copy = copy.path().to_str().unwrap();
    recorded(copy, &log, &[]).assert_fails(&["another base", "disk 1", "--force"]);
    recorded(list[0], &log, &[list[1]]).assert_fails(&["another base", "it has 1 disks"]);
    let broken = tempfile::NamedTempFile::new().unwrap();
    let bytes = fs::read(&log).unwrap();
    // In the middle of the first record after the second state.
    fs::write(broken.path(), &bytes[..after_flush(&log, 2) as usize + 40]).unwrap();
    let run = recorded(copy, broken.path(), &["--force"]);
    run.assert_code(3).assert_says(&["seems to be another", "has no end"]);
    let part = text(&run.stdout);
    assert!(live.starts_with(&part), "{part}");
    assert_eq!(groups(&part).len(), 2, "{part}");
}

/// Writes what differs between two states to an image of the earlier one.
fn write_difference(old: &Path, new: &Path, image: &Path) {
    const BLOCK: usize = 65536;
    let (old, new) = (fs::read(old).unwrap(), fs::read(new).unwrap());
    let part = tempfile::NamedTempFile::new().unwrap();
    for (number, (old, new)) in old.chunks(BLOCK).zip(new.chunks(BLOCK)).enumerate() {
        if old != new {
            fs::write(part.path(), new).unwrap();
            let write = format!("write -q -s {} {} {}", part.path().display(), number * BLOCK, new.len());
            tools::output(tools::command("qemu-io").args(["-f", "qcow2", "-c", &write]).arg(image));
        }
    }
}

#[test]
fn states_of_a_disk_have_the_same_operations_in_any_form() {
    needs!("mke2fs", "mount", "qemu-img", "qemu-io");
    if !are_possible() {
        return;
    }
    let states = states();
    let _sealed = sealed(&states);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let spans = |names: &[&str]| -> Vec<String> {
        names.windows(2).map(|pair| format!("{} to {}", pair[0], pair[1])).collect()
    };

    // Backups.
    let names: Vec<_> = states.iter().map(|state| state.to_str().unwrap()).collect();
    let run = Sandbox::new().run(["operations", "--image-format", "raw"].iter().chain(&names));
    run.assert_code(0).assert_says(&["3 states of the disks"]);
    assert_eq!(assert_each_step(&text(&run.stdout)), spans(&names));

    // The overlays of a chain.
    let overlays: Vec<PathBuf> = (0..states.len()).map(|number| at(&format!("{number}.qcow2"))).collect();
    formats::convert(&states[0], &overlays[0], "qcow2", "");
    for (below, pair) in states.windows(2).enumerate() {
        let mut create = tools::command("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &format!("{below}.qcow2")]);
        tools::output(create.arg(&overlays[below + 1]));
        write_difference(&pair[0], &pair[1], &overlays[below + 1]);
    }
    let names: Vec<_> = overlays.iter().map(|overlay| overlay.to_str().unwrap()).collect();
    let run = Sandbox::new().run(["operations", "-o", "done"].iter().chain(&names));
    run.assert_code(0);
    assert_eq!(assert_each_step(&text(&run.read("done"))), spans(&names));

    // Snapshots inside of an image.
    let image = at("snapshots.qcow2");
    formats::convert(&states[0], &image, "qcow2", "");
    for (pair, name) in states.windows(2).zip(["before", "with\nline", "later"]) {
        tools::output(tools::command("qemu-img").args(["snapshot", "-c", name]).arg(&image));
        write_difference(&pair[0], &pair[1], &image);
    }
    let image = image.to_str().unwrap();
    let run = Sandbox::new().run(["operations", "--snapshots", image]);
    run.assert_code(0);
    let expected = spans(&["before", "with\\012line", "later", image]);
    assert_eq!(assert_each_step(&text(&run.stdout)), expected);
    // Some of them, as JSON Lines.
    let some = ["--from-snapshot", "with\nline", "--to-snapshot", "later", "--format", "jsonl"];
    let run = Sandbox::new().run(["operations", image].iter().chain(&some));
    run.assert_code(0);
    let lines: Vec<serde_json::Value> =
        text(&run.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let words: Vec<_> = lines.iter().map(|line| line["op"].as_str().unwrap()).collect();
    assert_eq!(words, ["append", "chmod", "rename"]);
    assert!(lines.iter().all(|line| line["from_state"] == "with\nline" && line["to_state"] == "later"));
    assert!(lines.iter().all(|line| line["from_ns"].is_null() && line["flushed"].is_null()), "{lines:#?}");
}
