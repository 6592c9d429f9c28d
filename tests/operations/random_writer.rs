//! A guest changes files at random (`random_writer.py`), several at each sync. The operations that
//! `trace` reports of each round must lead from the files before to the files after it. The guest
//! says what these are: names, inodes, and the SHA-1 of their bytes.

use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;
use virt_bmap_testutil::filesystems::{FILESYSTEMS, Filesystem, images};
use virt_bmap_testutil::reported::{on_device, operations};
use virt_bmap_testutil::sandbox::{Sandbox, sealed};
use virt_bmap_testutil::usermode::{self, needs_guest};

/// A file as the guest describes it.
#[derive(Deserialize, Debug, Clone)]
struct File {
    /// What no other file has or had.
    id: String,
    is_file: bool,
    size: u64,
    mode: u64,
    user: u64,
    modified: i64,
    sha1: Option<String>,
}

type Files = BTreeMap<String, File>;

fn word<'a>(operation: &'a Value, name: &str) -> &'a str {
    operation[name].as_str().unwrap_or_default()
}

/// What is wrong with the operations from `old` to `new`.
fn wrong(old: &Files, new: &Files, operations: &[Value]) -> Vec<String> {
    let mut found = wrong_names(old, new, operations);
    let after: BTreeMap<&str, &File> = new.values().map(|file| (file.id.as_str(), file)).collect();
    let mut names: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (path, file) in new {
        names.entry(&file.id).or_default().push(path);
    }
    let mut seen = BTreeSet::new();
    for (path, before) in old {
        let Some(now) = after.get(before.id.as_str()).filter(|_| seen.insert(&before.id)) else { continue };
        let names = &names[before.id.as_str()];
        let words: BTreeSet<&str> = operations
            .iter()
            .filter(|operation| names.contains(&word(operation, "path")))
            .map(|operation| word(operation, "op"))
            .collect();
        let has = |any: &[&str]| any.iter().any(|word| words.contains(word));
        let mut expect = |is_so: bool, what: &str| {
            if !is_so {
                found.push(format!("{path} -> {names:?}: {what}; {words:?}; {before:?}; {now:?}"));
            }
        };
        let content = ["write", "append", "truncate", "punch"];
        if before.is_file {
            if before.sha1 != now.sha1 {
                expect(has(&content), "other content");
            } else if before.modified == now.modified {
                expect(!has(&content) && !has(&["touch"]), "the same content and time");
            }
            expect(now.size >= before.size || has(&["truncate"]), "shorter");
            expect(now.size <= before.size || has(&["truncate", "append"]), "longer");
        }
        expect((before.mode != now.mode) == has(&["chmod"]), "chmod");
        expect((before.user != now.user) == has(&["chown"]), "chown");
    }
    found
}

/// What is wrong with the operations on names. A previous name is one in the old tree, and each
/// other name is one in the new tree.
fn wrong_names(old: &Files, new: &Files, operations: &[Value]) -> Vec<String> {
    let (mut found, mut renamed, mut removed) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
    let known: BTreeSet<&str> = old.values().map(|file| file.id.as_str()).collect();
    let mut tree: BTreeMap<String, &str> = BTreeMap::new();
    for operation in operations {
        let (path, from) = (word(operation, "path"), word(operation, "from_path"));
        match word(operation, "op") {
            "rename" => drop(renamed.insert(from, path)),
            "exchange" => renamed.extend([(from, path), (path, from)]),
            "delete" | "unlink" | "rmdir" => drop(removed.insert(path)),
            op @ ("create" | "mkdir" | "symlink" | "link") => {
                let Some(file) = new.get(path) else {
                    found.push(format!("{op} {path}: there is no such name"));
                    continue;
                };
                if op == "link" && new.get(from).is_none_or(|other| other.id != file.id) {
                    found.push(format!("link {from} -> {path}: they are not the same file"));
                }
                if op != "link" && known.contains(file.id.as_str()) {
                    found.push(format!("{op} {path}: it existed"));
                }
                tree.insert(path.to_owned(), &file.id);
            }
            _ => {}
        }
    }
    for (path, file) in old.iter().filter(|(path, _)| !removed.contains(path.as_str())) {
        let ends = path.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0).chain([path.len()]);
        let nearest = ends.filter_map(|end| renamed.get(&path[..end]).map(|to| (end, *to))).next_back();
        let now = nearest.map_or_else(|| path.clone(), |(end, to)| format!("{to}{}", &path[end..]));
        tree.insert(now, &file.id);
    }
    for path in tree.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        let (is, must) = (tree.get(path).copied(), new.get(path).map(|file| file.id.as_str()));
        if is != must {
            found.push(format!("{path} is {must:?}, and by the operations {is:?}"));
        }
    }
    found
}

/// Runs the guest on the named filesystems, and checks each round.
fn check(seed: u64, rounds: usize, names: &[&str]) {
    let filesystems: Vec<&Filesystem> =
        FILESYSTEMS.iter().filter(|filesystem| names.contains(&filesystem.name)).collect();
    let images = images(&filesystems);
    let _sealed = sealed(&images);
    let sandbox = Sandbox::new().deadline(Duration::from_secs(3000));
    fs::write(sandbox.cwd().join("random_writer.py"), include_str!("random_writer.py")).unwrap();
    let mut script = String::new();
    for ((filesystem, letter), part) in filesystems.iter().zip('a'..).zip(0..) {
        let command = format!(
            "/usr/bin/python3 random_writer.py {} {rounds} {}.snapshots",
            100 * seed + part,
            filesystem.name
        );
        script += &usermode::within(&format!("/dev/vd{letter}"), filesystem.mount, &command);
    }
    let command = usermode::command(&sandbox.cwd(), images.len(), &script);
    let options = ["--image-format", "raw", "-o", "log", "--operations", "done.jsonl", "--run", &command];
    let run =
        sandbox.run(["trace"].into_iter().chain(images.iter().map(|i| i.to_str().unwrap())).chain(options));
    assert_eq!(run.code(), 0, "{}\n{}", run.stderr, String::from_utf8_lossy(&run.read("console")));
    let operations = operations(&run.read("done.jsonl"));
    let mut all = String::new();
    for (filesystem, letter) in filesystems.iter().zip('a'..) {
        let snapshots = run.read(&format!("{}.snapshots", filesystem.name));
        let snapshots: Vec<Files> = snapshots
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        assert_eq!(snapshots.len(), rounds + 1);
        let these = on_device(&operations, &format!("/dev/sd{letter}"));
        let mut of_round: Vec<Vec<Value>> = vec![Vec::new()];
        for operation in these {
            if word(&operation, "path").starts_with("/mark-") {
                assert_eq!(word(&operation, "path"), format!("/mark-{}", of_round.len() - 1));
                of_round.push(Vec::new());
            } else {
                of_round.last_mut().unwrap().push(operation);
            }
        }
        assert_eq!(of_round.len(), rounds + 1, "{}", run.stderr);
        for (number, pair) in snapshots.windows(2).enumerate() {
            let found = wrong(&pair[0], &pair[1], &of_round[number]);
            // One wrong round makes others wrong.
            if !found.is_empty() && all.len() < 20000 {
                writeln!(all, "{} round {number}:", filesystem.name).unwrap();
                found.iter().for_each(|line| writeln!(all, "  {line}").unwrap());
                let lines = of_round[number].iter().map(|operation| format!("    {operation}\n"));
                all.extend(lines);
            }
        }
    }
    assert!(all.is_empty(), "\n{all}\n{}", run.stderr);
}

#[test]
fn random_changes_are_what_the_files_say() {
    needs_guest!();
    // `make operations-torture` has more of them.
    match std::env::var("VIRT_BMAP_OPERATIONS") {
        Ok(steps) => check(1, steps.parse::<usize>().unwrap() / 8, &["ext4", "xfs", "btrfs"]),
        Err(_) => check(1, 3, &["xfs"]),
    }
}
