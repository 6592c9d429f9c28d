//! What `sync` and `fsync` send to the disk on each filesystem, by the log of `trace`.
//! docs/trace.md has the table.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use virt_bmap_testutil::filesystems::{FILESYSTEMS, images};
use virt_bmap_testutil::sandbox::Sandbox;
use virt_bmap_testutil::tools::needs;
use virt_bmap_testutil::usermode;

/// Calls `sync` after a file was created, `fsync` of a file that was overwritten, and `fsync` of a
/// directory in which a file was created. Before and
/// after each it writes a mark to another disk: block NUMBER, and block 0.
const PROGRAM: &str = r#"
import mmap, os, sys, time
first = int(sys.argv[1])
block = mmap.mmap(-1, 4096)
marks = os.open("/dev/vda", os.O_RDWR | os.O_DIRECT)

def measure(number, change, path):
    change()
    os.pwritev(marks, [block], (first + number) * 4096)
    if path:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    else:
        os.sync()
    os.pwritev(marks, [block], 0)
    os.sync()
    time.sleep(0.1)

def create(path):
    with open(path, "wb") as file:
        file.write(b"a" * 20000)

def overwrite(path):
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"b" * 4096)

os.mkdir("/mnt/d")
create("/mnt/b")
os.sync()
measure(1, lambda: create("/mnt/d/a"), None)
measure(2, lambda: overwrite("/mnt/b"), "/mnt/b")
measure(3, lambda: create("/mnt/d/c"), "/mnt/d")
"#;

/// What was sent, in words.
fn said(requests: &[&Value]) -> &'static str {
    let last = |op: &str| requests.iter().rposition(|request| request["op"] == op);
    let has_fua = requests.iter().any(|request| request["fua"] == true);
    match (last("flush"), last("write")) {
        (None, _) if has_fua => "FUA",
        (Some(flush), Some(write)) if write > flush => "flush, writes",
        (Some(_), _) => "flush",
        (None, Some(_)) => "writes",
        (None, None) => "nothing",
    }
}

#[test]
fn what_sync_and_fsync_send_is_on_the_page() {
    needs!("linux.uml", "qemu-storage-daemon", "setsid", "modprobe", "mke2fs", "mkfs.xfs", "mkfs.btrfs");
    needs!("mkfs.vfat", "mkfs.ntfs", "ntfs-3g");
    let sandbox = Sandbox::new();
    let at = |name: &str| sandbox.cwd().join(name);
    fs::File::create(at("marks")).unwrap().set_len(1 << 20).unwrap();
    let mut disks = vec![at("marks")];
    disks.extend(images(&FILESYSTEMS.each_ref()));
    let (mut map, mut script) = (String::new(), String::new());
    for ((number, disk), letter) in (1..).zip(&disks).zip('a'..) {
        map += &format!("{number} 0 {:x} v /dev/sd{letter}\n", fs::metadata(disk).unwrap().len());
    }
    for ((filesystem, letter), number) in FILESYSTEMS.iter().zip('b'..).zip(0..) {
        let command = format!("/usr/bin/python3 flushes.py {}", 10 * number);
        script += &usermode::within(&format!("/dev/vd{letter}"), filesystem.mount, &command);
    }
    fs::write(at("map"), map).unwrap();
    fs::write(at("flushes.py"), PROGRAM).unwrap();
    let command = usermode::command(&sandbox.cwd(), disks.len(), &script);
    let options =
        ["--image-format", "raw", "--map", "map", "-o", "log", "--format", "jsonl", "--run", &command];
    let run =
        sandbox.run(["trace"].into_iter().chain(disks.iter().map(|d| d.to_str().unwrap())).chain(options));
    run.assert_code(0);

    // The requests to the other disks between two marks.
    let log = run.read("log");
    let requests: Vec<Value> = log
        .split(|&byte| byte == b'\n')
        .skip(1)
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let mut between: BTreeMap<u64, Vec<&Value>> = BTreeMap::new();
    let mut mark = 0;
    for request in &requests {
        match (request["disk"] == 1, request["op"] == "write") {
            (true, true) => mark = request["offset"].as_u64().unwrap() / 4096,
            (true, false) => {}
            (false, _) => between.entry(mark).or_default().push(request),
        }
    }
    let mut rows = String::new();
    for (filesystem, number) in FILESYSTEMS.iter().zip(0..) {
        let cell = |measured: u64| said(between.get(&(10 * number + measured)).map_or(&[], Vec::as_slice));
        assert!(filesystem.sync == "fsync" || cell(1).starts_with("flush"), "{}", filesystem.name);
        rows += &format!("| {} | {} | {} | {} |\n", filesystem.title, cell(1), cell(2), cell(3));
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/trace.md");
    let text = fs::read_to_string(&page).unwrap();
    let (before, rest) = text.split_once("<!-- begin flushes -->\n").unwrap();
    let (old, after) = rest.split_once("<!-- end flushes -->").unwrap();
    let head = "\n| | `sync` | `fsync` of a file | `fsync` of a directory |\n|---|---|---|---|\n";
    let table = format!("{head}{rows}\n");
    if std::env::var_os("VIRT_BMAP_BLESS").is_some() {
        let new = format!("{before}<!-- begin flushes -->\n{table}<!-- end flushes -->{after}");
        fs::write(page, new).unwrap();
    } else {
        assert_eq!(old, table, "VIRT_BMAP_BLESS=1 puts this into the page");
    }
}
