//! `trace --record`, and what `operations` refuses before it needs an appliance.

use std::fs;
use std::io::BufReader;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use virt_bmap_history::{Kind, LogEnd, LogReader, LogRecord};
use virt_bmap_testutil::sandbox::Finished;
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::traced::{SIZE, nbdsh, sandbox};

/// Traces the disk and records what `script` writes.
fn record(script: &str, options: &[&str]) -> Finished {
    let sandbox = sandbox();
    let client = nbdsh(&sandbox, script);
    let words = ["trace", "disk.raw", "--map", "disk.bmap", "-o", "log", "--record", "history"];
    sandbox.run(words.iter().chain(options).chain(&["--run", &client]))
}

/// The records of the log, and its end.
fn records(log: &Path) -> (Vec<LogRecord>, LogEnd) {
    let mut reader = LogReader::open(BufReader::new(fs::File::open(log).unwrap())).unwrap();
    let sizes: Vec<_> = reader.disks().iter().map(|disk| disk.size).collect();
    assert_eq!(sizes, [SIZE]);
    let mut records = Vec::new();
    while let Some(record) = reader.next_record().unwrap() {
        records.push(record);
    }
    (records, reader.end().unwrap())
}

#[test]
fn a_trace_records_what_is_written() {
    needs!("nbdsh");
    let run = record("h.pwrite(b'x' * 512, 4096)\nh.flush()\nh.zero(8192, 65536)\n", &[]);
    run.assert_code(0);
    let log = run.sandbox.cwd().join("history");
    assert_eq!(log.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    let (records, end) = records(&log);
    assert_eq!(end, LogEnd::Whole);
    let kinds: Vec<_> =
        records.iter().map(|record| record.kind).filter(|kind| *kind != Kind::State).collect();
    // The client flushes once more when it ends.
    assert_eq!(kinds[..3], [Kind::Write, Kind::Flush, Kind::Zero]);
    assert_eq!((records[0].range.start.0, records[0].range.len()), (4096, 512));
    let data = records[0].data as usize;
    assert_eq!(fs::read(&log).unwrap()[data..data + 512], [b'x'; 512]);
}

#[test]
fn states_end_without_a_flush_when_nothing_is_written() {
    needs!("nbdsh");
    let run = record("import time\nh.pwrite(b'x' * 512, 0)\ntime.sleep(0.5)\nh.pwrite(b'y' * 512, 0)\n", &[]);
    run.assert_code(0);
    let (records, _) = records(&run.sandbox.cwd().join("history"));
    let kinds: Vec<_> = records.iter().map(|record| record.kind).collect();
    assert_eq!(kinds[..3], [Kind::Write, Kind::State, Kind::Write], "{kinds:?}");
}

#[test]
fn a_history_that_is_cut_short_is_reported() {
    needs!("nbdsh");
    let run = record("for i in range(8): h.pwrite(b'x' * 65536, i * 65536)\n", &["--history-limit", "300K"]);
    run.assert_code(3).assert_says(&["history: the history was cut short", "--history-limit"]);
    assert_eq!(records(&run.sandbox.cwd().join("history")).1, LogEnd::CutShort);
    assert!(run.read("history").len() <= 300 << 10);
    assert_eq!(text(&run.read("log")).matches("-").count(), 8, "the guest went on");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_history_is_never_written_over_a_file() {
    let sandbox = sandbox();
    fs::write(sandbox.cwd().join("history"), "mine").unwrap();
    let trace = ["trace", "disk.raw", "--map", "disk.bmap", "-o", "log", "--run", "true"];
    let run = sandbox.run(trace.iter().chain(&["--record", "history"]));
    run.assert_code(1).assert_says(&["history: it exists"]);
    assert_eq!(run.read("history"), b"mine");
    for (place, words) in [("-", "standard output"), ("none/history", "none/history: cannot write")] {
        let run = self::sandbox().run(trace.iter().chain(&["--record", place]));
        run.assert_code(1).assert_says(&[words]);
    }
    let run = self::sandbox().run(trace.iter().chain(&["--record", "history", "--read-only"]));
    run.assert_code(2);
    let run = self::sandbox().run(trace.iter().chain(&["--history-limit", "1G"]));
    run.assert_code(2);
}

#[test]
fn operations_refuses_what_cannot_be_compared() {
    needs!("qemu-img");
    let run = |words: &[&str]| {
        let sandbox = sandbox();
        tools::run("truncate", ["-s", "4M", sandbox.cwd().join("small.raw").to_str().unwrap()]);
        let image = sandbox.cwd().join("image.qcow2");
        tools::run("qemu-img", ["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "8M"]);
        fs::write(sandbox.cwd().join("text"), "no history\n").unwrap();
        sandbox.run(["operations"].iter().chain(words))
    };
    run(&["disk.raw"]).assert_code(2).assert_says(&["--snapshots", "--history"]);
    run(&["image.qcow2", "disk.raw", "--snapshots"]).assert_code(2);
    run(&["disk.raw", "--history", "text", "--snapshots"]).assert_code(2);
    run(&["disk.raw", "small.raw", "--force"]).assert_code(2);
    run(&["disk.raw", "small.raw"])
        .assert_fails(&["small.raw has 4194304 bytes, and disk.raw has 8388608", "qemu-img resize"]);
    run(&["disk.raw", "--snapshots"]).assert_fails(&["disk.raw", "no qcow2 image"]);
    run(&["image.qcow2", "--snapshots"]).assert_fails(&["image.qcow2: it has no snapshots"]);
    run(&["image.qcow2", "--from-snapshot", "a\nb"]).assert_fails(&["has no snapshot a\\012b"]);
    run(&["disk.raw", "--history", "none"]).assert_fails(&["none: "]);
    run(&["disk.raw", "--history", "text"]).assert_fails(&["text: it is no recorded history"]);
    run(&["disk.raw", "image.qcow2", "-o", "disk.raw"]).assert_fails(&["refusing to overwrite"]);
}

/// The history of a disk that was written to is the history of another one.
#[test]
fn another_base_is_refused() {
    needs!("nbdsh");
    let run = record("h.pwrite(b'x' * 512, 4096)\n", &["--write", "through"]);
    run.assert_code(0);
    let log = run.sandbox.cwd().join("history");
    let words = ["operations", "disk.raw", "--history", log.to_str().unwrap()];
    let other = sandbox().run(words);
    other.assert_fails(&["another base: disk 1 is another, or was changed since", "--force"]);
    let out = log.to_str().unwrap();
    let words = ["operations", "disk.raw", "--force", "--history", out, "-o", out];
    sandbox()
        .run(words)
        .assert_code(1)
        .assert_says(&["seems to be another", "refusing to overwrite the history"]);
}
