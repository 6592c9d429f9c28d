//! Compares answers about a real guest with other programs: `debugfs`, The Sleuth Kit, and an
//! appliance that cannot read the bad parts of the disk. Runs the commands of docs/questions.md
//! that need an appliance.

use crate::PROGRAM;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use virt_bmap_testutil::fixture::{self, Fixture};
use virt_bmap_testutil::oracle_ext4;
use virt_bmap_testutil::servers::Server;
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::{guestfish, mapping};

/// Runs the program with `--json` and returns its answer. It must end with one of `statuses`.
fn ask(dir: &Path, args: &[&str], statuses: &[i32]) -> Value {
    let output = Command::new(PROGRAM).args(args).arg("--json").current_dir(dir).output().unwrap();
    let code = output.status.code().unwrap();
    assert!(statuses.contains(&code), "{args:?}: {code}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A directory with the map of `fixture`, `guest.bmap`.
fn map_of(fixture: &Fixture) -> tempfile::TempDir {
    let mapping = mapping::of(&[fixture], &[]);
    assert_eq!(mapping.code, 0, "{}", mapping.stderr);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("guest.bmap"), mapping.text).unwrap();
    dir
}

/// Up to `count` numbers below `limit`, spread by a fixed rule.
fn spread(limit: u64, count: u64) -> BTreeSet<u64> {
    (0..count).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % limit).collect()
}

/// The answers of `debugfs` to `request` for many numbers.
fn debugfs(flat: &Path, request: &str, numbers: impl Iterator<Item = u64>) -> Vec<(u64, String)> {
    let numbers: Vec<String> = numbers.map(|number| number.to_string()).collect();
    let mut script = tempfile::NamedTempFile::new().unwrap();
    for some in numbers.chunks(200) {
        std::io::Write::write_all(&mut script, format!("{request} {}\n", some.join(" ")).as_bytes()).unwrap();
    }
    let out = tools::run("debugfs", ["-f".as_ref(), script.path().as_os_str(), flat.as_os_str()]);
    let pair = |line: &str| {
        let (number, answer) = line.split_once('\t')?;
        Some((number.parse().ok()?, answer.to_owned()))
    };
    String::from_utf8_lossy(&out).lines().filter_map(pair).collect()
}

/// For each of `blocks`, the names of files and directories that the program finds there.
fn names_at(
    dir: &Path,
    block: u64,
    shift: impl Fn(u64) -> u64,
    blocks: &BTreeSet<u64>,
) -> BTreeMap<u64, BTreeSet<String>> {
    let mut names: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    let places: BTreeMap<u64, u64> = blocks.iter().map(|&number| (shift(number * block), number)).collect();
    for some in places.keys().collect::<Vec<_>>().chunks(1000) {
        let offsets: Vec<String> = some.iter().map(ToString::to_string).collect();
        let mut args = vec!["lookup", "guest.bmap"];
        args.extend(offsets.iter().map(String::as_str));
        for row in ask(dir, &args, &[0])["rows"].as_array().unwrap() {
            let number = places[&row["offset"].as_u64().unwrap()];
            let found = names.entry(number).or_default();
            if row["type"] == "f" || row["type"] == "d" {
                found.insert(row["path"].as_str().unwrap().to_owned());
            }
        }
    }
    names
}

#[test]
fn lookup_agrees_with_debugfs() {
    needs!("guestfish", "sfdisk", "debugfs", "dumpe2fs");
    let fixture = fixture::small();
    let filesystem = &fixture.filesystems[0];
    let dir = map_of(fixture);
    let count = fs::metadata(&filesystem.flat).unwrap().len() / filesystem.block;
    let start = filesystem.volume.on_disk()[0].start;
    let blocks = spread(count, 8000);
    let ours = names_at(dir.path(), filesystem.block, |offset| start + offset, &blocks);
    let inodes: BTreeMap<u64, Option<u64>> = debugfs(&filesystem.flat, "icheck", blocks.iter().copied())
        .into_iter()
        .map(|(block, inode)| (block, inode.parse().ok()))
        .collect();
    assert_eq!(inodes.len(), blocks.len());
    let wanted: BTreeSet<u64> = inodes.values().flatten().copied().collect();
    let mut names: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for (inode, name) in debugfs(&filesystem.flat, "ncheck", wanted.iter().copied()) {
        // debugfs may begin a name with two slashes.
        names.entry(inode).or_default().insert(format!("/{}", name.trim_start_matches('/')));
    }
    let (mut agreed, mut free) = (0, 0);
    for (block, inode) in &inodes {
        let found = &ours[block];
        let Some(inode) = inode else {
            assert!(found.is_empty(), "block {block} is nobody's, and ours of {found:?}");
            free += 1;
            continue;
        };
        let Some(names) = names.get(inode) else {
            // Inodes without a name, such as the journal.
            assert!(found.is_empty() || *inode == 2, "block {block} of inode {inode}: {found:?}");
            continue;
        };
        // The map leaves out blocks that hold extents, and blocks that were never written. Reading
        // a file does not read them.
        let disk = start + block * filesystem.block;
        let is_extents =
            || oracle_ext4::extent_blocks(filesystem, *inode).iter().any(|range| range.contains(&disk));
        let is_unwritten = || names.iter().any(|name| name.contains("unwritten"));
        if found.is_empty() && (is_extents() || is_unwritten()) {
            continue;
        }
        // debugfs and our JSON escape unusual characters differently.
        if names.iter().chain(found).all(|name| name.chars().all(|c| c.is_ascii_graphic())) {
            assert!(names.is_subset(found), "block {block} of inode {inode}: {names:?}, ours: {found:?}");
            agreed += 1;
        }
    }
    eprintln!("{} blocks: {agreed} of files, {free} of nobody", blocks.len());
    assert!(agreed > 100 && free > 1000, "{agreed} {free}");
}

#[test]
fn lookup_agrees_with_the_sleuth_kit() {
    needs!("guestfish", "sfdisk", "ifind", "ffind");
    let fixture = fixture::plain();
    let filesystem = &fixture.filesystems[0];
    let dir = map_of(fixture);
    let count = fs::metadata(&filesystem.flat).unwrap().len() / filesystem.block;
    let blocks = spread(count, 1500);
    let ours = names_at(dir.path(), filesystem.block, |offset| offset, &blocks);
    let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut agreed = 0;
    for block in &blocks {
        // ifind prints "Inode not found" if no file has the block, and "Meta Data" for the blocks
        // of inodes and bitmaps.
        let out = tools::command("ifind")
            .args(["-f", "ext4", "-d", &block.to_string()])
            .arg(&filesystem.flat)
            .output();
        let inode = String::from_utf8_lossy(&out.unwrap().stdout).trim().to_owned();
        let found = &ours[block];
        if inode.parse::<u64>().is_err() {
            assert!(found.is_empty(), "block {block} is {inode}, and ours of {found:?}");
            continue;
        }
        let names = names.entry(inode.clone()).or_insert_with(|| {
            let args = ["-a", "-f", "ext4"].map(std::ffi::OsStr::new);
            let out = tools::command("ffind").args(args).arg(&filesystem.flat).arg(&inode).output().unwrap();
            let out = String::from_utf8_lossy(&out.stdout).into_owned();
            // ffind marks a deleted name with an asterisk.
            out.lines().filter(|line| line.starts_with('/')).map(str::to_owned).collect()
        });
        if names.iter().any(|name| found.contains(name)) {
            agreed += 1;
        } else {
            assert!(found.is_empty(), "block {block} of inode {inode}: {names:?}, ours: {found:?}");
        }
    }
    eprintln!("{} blocks, {agreed} of files", blocks.len());
    assert!(agreed > 30, "{agreed}");
}

/// A second appliance reads every file through the ddrescue filter of nbdkit. The filter fails
/// reads of ranges that the mapfile calls bad.
#[test]
fn damaged_files_are_those_that_cannot_be_read() {
    needs!("guestfish", "sfdisk", "nbdkit");
    let fixture = fixture::small();
    let dir = map_of(fixture);
    let listed = ask(dir.path(), &["list", "guest.bmap", "--sort", "offset"], &[0]);
    let files: Vec<(&str, u64, u64)> = listed["rows"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|row| Some((row["path"].as_str()?, row["start"].as_u64()?, row["on_disk"].as_u64()?)))
        .filter(|(path, _, _)| path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+".contains(&b)))
        .collect();
    assert!(files.len() > 50, "{}", files.len());

    // The first sector of every fifth file is bad. For some of these files the next sector is bad
    // too.
    let mut mapfile = String::from("0x0 ? 1\n");
    let mut end = 0;
    for (number, (_, start, _)) in files.iter().enumerate().filter(|(number, _)| number % 5 == 2) {
        let (length, status) = if number % 2 == 0 { (512, '-') } else { (1024, '/') };
        writeln!(mapfile, "{end:#x} {:#x} +\n{start:#x} {length:#x} {status}", start - end).unwrap();
        end = start + length;
    }
    writeln!(mapfile, "{end:#x} {:#x} +", fixture.size() - end).unwrap();
    fs::write(dir.path().join("rescue.map"), mapfile).unwrap();
    let answer = ask(dir.path(), &["damaged", "guest.bmap", "--mapfile", "rescue.map", "--whole"], &[4]);
    let state = |wanted: &str| -> BTreeSet<&str> {
        let rows = answer["rows"].as_array().unwrap().iter();
        rows.filter(|row| row["state"] == wanted).filter_map(|row| row["path"].as_str()).collect()
    };
    let (damaged, whole) = (state("damaged"), state("whole"));
    assert!(damaged.len() >= 10 && damaged.is_disjoint(&whole));

    let socket = dir.path().join("nbd.sock");
    let server = tools::command("nbdkit")
        .args(["--readonly", "--exit-with-parent", "--foreground", "--filter=ddrescue", "--unix"])
        .arg(&socket)
        .arg("file")
        .arg(&fixture.image)
        .arg(format!("ddrescue-mapfile={}", dir.path().join("rescue.map").display()))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut server = Server(server);
    while !socket.exists() {
        assert!(server.0.try_wait().unwrap().is_none(), "nbdkit ended");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let mut script = format!(
        "add \"\" readonly:true format:raw protocol:nbd server:unix:{}\nrun\nmount-ro /dev/sda1 /\n",
        socket.display()
    );
    for (path, _, _) in &files {
        writeln!(script, "echo {path}\n-checksum md5 {path}").unwrap();
    }
    let said = guestfish::run(dir.path(), &script);
    let lines: Vec<&str> = said.lines().collect();
    let is_sum = |line: &str| line.len() == 32 && line.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut unreadable = 0;
    for (path, _, _) in &files {
        let place = lines.iter().position(|line| line == path).unwrap();
        let is_read = lines.get(place + 1).is_some_and(|line| is_sum(line));
        // For a file with several names, the program reports the first one.
        let is_damaged = damaged.contains(path);
        assert_eq!(
            is_read,
            !is_damaged,
            "{path}: {}",
            if is_read { "could be read" } else { "could not be read" }
        );
        assert_eq!(is_read, whole.contains(path), "{path}");
        unreadable += u32::from(!is_read);
    }
    eprintln!("{} files, {unreadable} of which cannot be read", files.len());
    assert!(unreadable >= 10);
}

/// A map that one question needed answers the next one, until an image has changed.
#[test]
fn a_map_that_was_made_is_used_again() {
    needs!("guestfish", "sfdisk", "qemu-img", "qemu-io");
    let dir = tempfile::tempdir().unwrap();
    let image = fixture::small().image.to_str().unwrap();
    tools::run("cp", ["--sparse=always", image, dir.path().join("base.raw").to_str().unwrap()]);
    let shell = |line: &str| tools::run("sh", ["-c", &format!("cd {} && {line}", dir.path().display())]);
    shell("qemu-img create -q -f qcow2 -b base.raw -F raw top.qcow2");
    shell("printf '0 - 1\\n0 0x1000000 -\\n' > bad.map && sleep 1.1");
    let cache = dir.path().join("cache");
    let asked = |more: &[&str]| {
        let output = Command::new(PROGRAM)
            .args(["damaged", "top.qcow2", "--format", "qcow2", "--mapfile", "bad.map", "--force", "--json"])
            .args(more)
            .current_dir(dir.path())
            .env("XDG_CACHE_HOME", &cache)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let answer: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
        (output.status.code().unwrap(), answer, said)
    };
    let is_made = |said: &str| {
        let made = said.contains("mapping top.qcow2");
        assert_ne!(made, said.contains("using the map of top.qcow2 that was made "), "{said}");
        assert_eq!(made, said.contains("starting the appliance"), "{said}");
        made
    };
    let (code, answer, said) = asked(&[]);
    assert!(is_made(&said) && code == 4, "{code}: {said}");
    let (again, same, said) = asked(&[]);
    assert!(!is_made(&said), "{said}");
    assert_eq!((again, &same), (code, &answer));
    // With other options the map would be another one.
    assert!(is_made(&asked(&["--no-metadata"]).2));
    assert!(is_made(&asked(&["--fresh"]).2));
    // The backing file has changed.
    shell("touch base.raw");
    assert!(is_made(&asked(&[]).2));
    // It was changed less than a second before that map was made, so that map was not kept.
    shell("sleep 1.1");
    assert!(is_made(&asked(&[]).2));
    assert!(!is_made(&asked(&[]).2));
}

#[test]
fn a_map_beside_its_image_is_used_if_nothing_has_changed() {
    needs!("guestfish", "sfdisk", "qemu-img", "qemu-io");
    if !tools::is_root("give a file to another user") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let image = fixture::small().image.to_str().unwrap();
    tools::run("cp", ["--sparse=always", image, at("base.raw").to_str().unwrap()]);
    let shell = |line: &str| tools::run("sh", ["-c", &format!("cd {} && {line}", dir.path().display())]);
    shell("qemu-img create -q -f qcow2 -b base.raw -F raw top.qcow2 && sleep 1.1");
    let output = Command::new(PROGRAM)
        .args(["base.raw", "-o", "base.jsonl", "-o", "plain.bmap"])
        .current_dir(dir.path())
        .output();
    assert_eq!(output.unwrap().status.code(), Some(0));
    let changed = |program: &Path, more: &[&str]| {
        let command = ["changed", "top.qcow2", "--format", "qcow2", "--map", "auto", "--no-boot"];
        let output = Command::new(program).args(command).args(more).current_dir(dir.path()).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let is_used = |more: &[&str]| match changed(Path::new(PROGRAM), more) {
        (0, said) => {
            assert!(said.contains("base.raw that was made "), "{said}");
            true
        }
        (1, _) => false,
        (code, said) => panic!("{code}: {said}"),
    };
    assert!(is_used(&[]));
    // `damaged` takes it, too, and starts nothing.
    fs::write(at("bad.map"), "0 - 1\n0 512 -\n512 0x1000000 +\n").unwrap();
    let damaged = Command::new(PROGRAM)
        .args(["damaged", "base.raw", "--map", "auto", "--mapfile", "bad.map", "--force"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8(damaged.stderr).unwrap();
    // The bad sector holds the partition table, which the map names.
    assert!(damaged.status.code() == Some(5) && said.contains("base.raw that was made "), "{said}");
    // Other options, or another program.
    assert!(is_used(&["--metadata"]));
    assert!(!is_used(&["--no-metadata"]));
    assert!(!is_used(&["--legs", "one"]));
    fs::copy(PROGRAM, at("program")).unwrap();
    assert_eq!(changed(&at("program"), &[]).0, 1);
    // Somebody else may have written it.
    for (worse, better) in [("chown 65534", "chown 0"), ("chmod g+w", "chmod g-w")] {
        shell(&format!("{worse} base.jsonl"));
        assert!(!is_used(&[]), "{worse}");
        shell(&format!("{better} base.jsonl"));
        assert!(is_used(&[]), "{better}");
    }
    shell("mv base.jsonl elsewhere && ln -s elsewhere base.jsonl");
    assert!(!is_used(&[]));
    // A text map has no metadata, which is enough unless it is asked for.
    shell("mv plain.bmap base.bmap");
    assert!(is_used(&[]));
    assert!(!is_used(&["--metadata"]));
    shell("rm base.bmap");
    // Under its other name. A copy without attributes does not say what it was made from.
    shell("rm base.jsonl && cp elsewhere base.raw.jsonl");
    assert!(!is_used(&[]));
    shell("mv elsewhere base.raw.jsonl");
    assert!(is_used(&[]));
    // It was changed after it was made.
    shell("cp -p base.raw.jsonl kept && echo >> base.raw.jsonl");
    assert!(!is_used(&[]));
    shell("cp --preserve=all kept base.raw.jsonl");
    assert!(is_used(&[]));
    // The image has changed.
    shell("touch base.raw");
    assert!(!is_used(&[]));
}
