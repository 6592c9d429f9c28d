//! `changed` on an overlay that a guest really wrote. A second appliance creates, appends to,
//! overwrites, renames, truncates and deletes files in it. The program must name all of these
//! files, and no other. Runs the commands of docs/questions.md and docs/sources.md for it.

use crate::PROGRAM;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use virt_bmap_testutil::fixture;
use virt_bmap_testutil::guestfish;
use virt_bmap_testutil::tools::{self, needs};

/// Runs a shell command line in `dir`, with the program in `PATH`.
fn run(dir: &Path, line: &str) -> Output {
    let path =
        format!("{}:{}", Path::new(PROGRAM).parent().unwrap().display(), std::env::var("PATH").unwrap());
    let output = Command::new("sh").args(["-c", line]).current_dir(dir).env("PATH", path).output().unwrap();
    eprintln!("$ {line}\n{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Runs a command line with `--json`, which must end with `status`, and returns the answer.
fn ask(dir: &Path, line: &str, status: i32) -> Value {
    let output = run(dir, &format!("virt-bmap-rs {line} --json"));
    assert_eq!(output.status.code(), Some(status), "{line}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The rows of an answer whose type is `letter` (`f` for files), by their names.
fn by_path<'a>(answer: &'a Value, letter: &str) -> BTreeMap<&'a str, &'a Value> {
    let name = |row: &'a Value| row["path"].as_str().or(row["old_path"].as_str()).unwrap();
    let rows = answer["rows"].as_array().unwrap().iter();
    rows.filter(|row| row["type"] == letter).map(|row| (name(row), row)).collect()
}

/// The changes of files in an answer, by the names of the files.
fn changes(answer: &Value) -> BTreeMap<&str, &str> {
    by_path(answer, "f").into_iter().map(|(name, row)| (name, row["change"].as_str().unwrap())).collect()
}

/// The examples in the help of a command.
fn examples(dir: &Path, command: &str) -> Vec<String> {
    let help = run(dir, &format!("virt-bmap-rs {command} --help")).stdout;
    let help = String::from_utf8(help).unwrap();
    help.lines().filter_map(|line| line.strip_prefix("  virt-bmap-rs ")).map(str::to_owned).collect()
}

#[test]
fn an_overlay_is_told_file_by_file() {
    needs!("guestfish", "sfdisk", "qemu-img", "qemu-io", "qemu-nbd");
    let fixture = fixture::small();
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let image = fixture.image.to_str().unwrap();
    tools::run("cp", ["--sparse=always", image, dir.join("guest.raw").to_str().unwrap()]);

    // The mapfile says that the whole disk is bad. All files with blocks are damaged, and `-o`
    // keeps the map.
    let size = fixture.size();
    fs::write(dir.join("rescue.map"), format!("0 - 1\n0 {size} -\n")).unwrap();
    let example = &examples(dir, "damaged")[0];
    assert!(example.contains("guest.raw") && example.ends_with("-o guest.jsonl"), "{example}");
    let damaged = ask(dir, example, 4);
    let listed = ask(dir, "list guest.jsonl", 0);
    let files: Vec<(&str, u64, u64)> = listed["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            (row["path"].as_str().unwrap(), row["size"].as_u64().unwrap(), row["on_disk"].as_u64().unwrap())
        })
        .collect();
    let with_blocks = files.iter().filter(|(_, _, on_disk)| *on_disk > 0).count();
    assert_eq!(damaged["summary"]["files_hit"], with_blocks);
    assert_eq!(damaged["summary"]["files_whole"], files.iter().filter(|(_, size, _)| *size == 0).count());

    // Files to be changed. Names that a shell script would have to quote are left out.
    let plain = |path: &str| path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
    let mut chosen: Vec<_> = files
        .iter()
        .copied()
        .filter(|(path, size, on_disk)| plain(path) && !path.starts_with("/special") && size <= on_disk)
        .collect();
    chosen.sort_by_key(|(_, size, _)| std::cmp::Reverse(*size));
    let [victim, overwritten, replaced, renamed, truncated] = chosen[..5] else { panic!("{chosen:?}") };
    // This file is appended to within its last block, and `long` beyond its last block.
    let appended = *chosen[5..].iter().find(|(_, size, _)| (1..4000).contains(&(size % 4096))).unwrap();
    let long = *chosen[5..].iter().find(|file| file.0 != appended.0).unwrap();
    assert!(victim.1 > 100_000 && truncated.1 > 10_000, "{chosen:?}");
    tools::run(
        "sh",
        ["-c", &format!("cd {} && qemu-img create -q -f qcow2 -b guest.raw -F raw top.qcow2", dir.display())],
    );
    let make = format!(
        "cd /sysroot; free=$(stat -f -c %f .); fallocate -l $(((free - 300) * 4096)) fill; \
         dd if=/dev/zero of=rest bs=4096 2>/dev/null; sync; rm .{victim}; sync; \
         dd if=/dev/urandom of=reuser bs=4096 count=$(({victim_size} / 4096 - 8)) status=none; sync; \
         rm fill rest; sync",
        victim = victim.0,
        victim_size = victim.1,
    );
    let script = format!(
        "add top.qcow2 format:qcow2
run
mount /dev/sda1 /
debug sh '{make}'
mkdir /made
fill-pattern CREATED 150000 /made/created
write /made/few five!
touch /made/empty
write-append {appended} +
write-append {long} '{line:5000}'
pwrite {overwritten} OVERWRITTEN 70000
fill-pattern REPLACED {replaced_size} /made/new-one
mv /made/new-one {replaced}
mv {renamed} /made/renamed
truncate-size {truncated} 4096
umount-all
shutdown
",
        appended = appended.0,
        long = long.0,
        line = "x",
        overwritten = overwritten.0,
        replaced = replaced.0,
        replaced_size = replaced.1,
        renamed = renamed.0,
        truncated = truncated.0,
    );
    guestfish::run(dir, &script);

    let lines = examples(dir, "changed");
    assert!(lines[0].ends_with("-o later.jsonl") && !lines[0].contains("--new"), "{lines:?}");
    let made = ask(dir, &lines[0], 0);
    // A guest that writes to a filesystem changes more than data of files.
    ask(dir, "changed top.qcow2 --map guest.jsonl --no-boot", 3);
    let expected: BTreeMap<&str, &str> = [
        (victim.0, "removed"),
        ("/reuser", "added"),
        ("/made/created", "added"),
        ("/made/few", "added"),
        ("/made/empty", "added"),
        (appended.0, "grown"),
        (long.0, "grown"),
        (overwritten.0, "rewritten"),
        (replaced.0, "moved"),
        ("/made/renamed", "renamed"),
        (truncated.0, "shrunk"),
    ]
    .into();
    assert_eq!(changes(&made), expected);
    let rows = by_path(&made, "f");
    let number = |path: &str, column: &str| rows[path][column].as_u64().unwrap();
    assert_eq!(rows["/made/renamed"]["old_path"], renamed.0);
    assert_eq!(number("/made/renamed", "written"), 0);
    assert_eq!(number(overwritten.0, "written"), 11);
    assert_eq!(number(overwritten.0, "was_itself"), 11);
    assert_eq!(number(appended.0, "written"), 1);
    assert_eq!(number("/made/few", "written"), 5);
    assert_eq!(number("/made/created", "written"), 150_000);
    assert!((4000..=5000).contains(&number(long.0, "written")), "{:?}", rows[long.0]);
    assert_eq!(number(truncated.0, "new_size"), 4096);
    // Most blocks of the deleted file were overwritten by `/reuser`, which found no other space.
    assert_eq!(rows["/reuser"]["was_path"], victim.0);
    assert!(number(victim.0, "now_other") * 2 > number(victim.0, "old_bytes"), "{:?}", rows[victim.0]);
    assert!(by_path(&made, "d").contains_key("/made"));
    // The summary accounts for all bytes of the image.
    let sum = |answer: &Value, names: &[&str]| -> u64 {
        names.iter().map(|name| answer["summary"][name].as_u64().unwrap()).sum()
    };
    let parts = ["files", "tails", "directories", "metadata", "unused", "free", "unmapped", "same"];
    assert_eq!(sum(&made, &parts), sum(&made, &["held"]));
    let map = tools::output(
        tools::command("qemu-img").args(["map", "--output=json", "top.qcow2"]).current_dir(dir),
    );
    let map: Value = serde_json::from_slice(&map.stdout).unwrap();
    let held = |entry: &&Value| entry["depth"] == 0 && entry["data"] == true;
    let held: u64 = map.as_array().unwrap().iter().filter(held).map(|e| e["length"].as_u64().unwrap()).sum();
    assert_eq!(sum(&made, &["held"]), held);

    // With both maps given: with `--where`, for two raw disks, and without a comparison of the
    // data.
    // The same states inside of one image.
    let script = "qemu-img convert -O raw top.qcow2 later.raw && \
         qemu-img convert -f raw -O qcow2 guest.raw guest.qcow2 && \
         qemu-img snapshot -c before guest.qcow2 && \
         qemu-img convert -n -f raw -O qcow2 later.raw guest.qcow2";
    assert!(run(dir, script).status.success());
    for line in &lines[1..] {
        let output = run(dir, &format!("virt-bmap-rs {line}"));
        assert!(output.status.success() && output.stderr.is_empty(), "{line}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("/made/created") && text.contains(overwritten.0), "{line}: {text}");
    }
    let places = ask(dir, "changed top.qcow2 --map guest.jsonl --new later.jsonl --where", 0);
    let place = places["rows"].as_array().unwrap().iter().find(|row| row["path"] == overwritten.0).unwrap();
    assert_eq!((&place["file_start"], &place["file_end"]), (&70_000.into(), &70_011.into()));
    let raw = ask(dir, "changed later.raw --base guest.raw --map guest.jsonl --new later.jsonl", 0);
    assert_eq!(raw["rows"], made["rows"]);
    let inside = "changed guest.qcow2 --from-snapshot before";
    let present = ask(dir, &format!("{inside} --map guest.jsonl --new later.jsonl"), 0);
    assert_eq!(present["rows"], made["rows"]);
    let script =
        "qemu-img snapshot -c 'a, b' guest.qcow2 && qemu-io -f qcow2 -c 'write -P 1 0 1M' guest.qcow2";
    assert!(run(dir, script).status.success());
    let two = ask(dir, &format!("{inside} --to-snapshot 'a, b' --map guest.jsonl --new later.jsonl"), 0);
    assert_eq!(two, present);
    // The map of a snapshot, which is updated as such.
    assert!(run(dir, "virt-bmap-rs guest.qcow2 --snapshot before -q -o before.jsonl").status.success());
    let body = |name: &str| {
        let map = fs::read_to_string(dir.join(name)).unwrap();
        map.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(body("before.jsonl") == body("guest.jsonl"));
    let updated = run(dir, "virt-bmap-rs update before.jsonl");
    assert_eq!((updated.status.code(), &updated.stdout[..]), (Some(0), &b"unchanged\n"[..]));
    let loose = ask(dir, "changed top.qcow2 --map guest.jsonl --new later.jsonl --no-compare --exit-code", 4);
    for (path, row) in by_path(&loose, "f") {
        assert_eq!(row["written"], 0, "{row}");
        let exact = rows.get(path).map_or(0, |row| row["written"].as_u64().unwrap());
        assert!(row["written_at_most"].as_u64().unwrap() >= exact, "{row}");
        assert!(rows.contains_key(path) || row["change"] == "touched", "{row}");
    }
    // Text maps know neither sizes nor empty files. They are compared with each other, and with a
    // map that knows both.
    assert!(
        run(
            dir,
            "virt-bmap-rs convert guest.jsonl guest.bmap && virt-bmap-rs convert later.jsonl later.bmap"
        )
        .status
        .success()
    );
    let text = ask(dir, "changed top.qcow2 --map guest.bmap --new later.bmap", 0);
    let mixed = ask(dir, "changed top.qcow2 --map guest.bmap --new later.jsonl", 0);
    assert_eq!(text["rows"], mixed["rows"]);
    let mut expected = expected.clone();
    expected.remove("/made/empty");
    let mut found = changes(&text);
    // A text map does not show that a file has grown within its last block.
    assert!(matches!(found.insert(appended.0, "grown"), Some("rewritten" | "grown")));
    assert_eq!(found, expected);

    // Nothing changed.
    tools::run(
        "sh",
        [
            "-c",
            &format!("cd {} && qemu-img create -q -f qcow2 -b guest.raw -F raw none.qcow2", dir.display()),
        ],
    );
    let none = ask(dir, "changed none.qcow2 --map guest.jsonl --new guest.jsonl --exit-code", 0);
    assert!(none["rows"].as_array().unwrap().is_empty());
    for (line, words) in [
        ("changed guest.raw --map guest.jsonl --new later.jsonl", "--base"),
        ("changed none.qcow2 --map guest.jsonl --new guest.jsonl --disk 2", "has no disk 2"),
        ("changed missing.qcow2", "no such file"),
        ("changed none.qcow2 --map rescue.map", "could not be read as a map"),
        ("changed none.qcow2 --base later.raw --map none.qcow2", "could not be read as a map"),
    ] {
        let output = run(dir, &format!("virt-bmap-rs {line}"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{line}: {said}");
        assert!(said.contains(words) && output.stdout.is_empty(), "{line}: {said}");
    }
    assert_eq!(tools::sha256(&fixture.image), fixture.sha256);
    assert_eq!(tools::sha256(&dir.join("guest.raw")), fixture.sha256);
}

/// Where only data of known files was written, the map of the older state says all, and no
/// appliance starts. The answer is that with a map of the newer state. Where more was written,
/// `--no-boot` counts it, and says that it cannot name it.
#[test]
fn data_of_known_files_needs_no_appliance() {
    needs!("guestfish", "sfdisk", "qemu-img", "qemu-io");
    let fixture = fixture::small();
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    tools::run(
        "cp",
        ["--sparse=always", fixture.image.to_str().unwrap(), dir.join("guest.raw").to_str().unwrap()],
    );
    assert!(run(dir, "virt-bmap-rs guest.raw -q -o guest.jsonl").status.success());
    let text = run(dir, "virt-bmap-rs convert guest.jsonl -").stdout;
    let text = String::from_utf8_lossy(&text).into_owned();
    let large = text.lines().filter(|line| line.contains(" f ")).find_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let [start, end] = [words[1], words[2]].map(|offset| u64::from_str_radix(offset, 16).unwrap());
        (end - start >= 16384).then(|| (start, words[5].to_owned()))
    });
    let (start, path) = large.unwrap();
    let overlay = |name: &str, writes: &[String]| {
        let create = format!("qemu-img create -q -f qcow2 -b guest.raw -F raw {name}");
        assert!(run(dir, &create).status.success());
        let writes: String = writes.iter().map(|write| format!(" -c '{write}'")).collect();
        assert!(run(dir, &format!("qemu-io -f qcow2{writes} {name}")).status.success());
    };
    overlay("data.qcow2", &[format!("write -P 0xab {} 4096", start + 4096)]);
    let asked = |line: &str, status: i32| {
        let output = run(dir, &format!("virt-bmap-rs {line} --json"));
        assert_eq!(output.status.code(), Some(status), "{line}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        (answer, String::from_utf8(output.stderr).unwrap())
    };
    let (answer, said) = asked("changed data.qcow2 --map guest.jsonl", 0);
    assert!(!said.contains("appliance"), "{said}");
    assert_eq!(changes(&answer), [(path.as_str(), "rewritten")].into());
    assert_eq!(by_path(&answer, "f")[path.as_str()]["written"], 4096);
    assert_eq!(asked("changed data.qcow2 --map guest.jsonl --no-boot", 0), (answer.clone(), said));
    assert!(run(dir, "virt-bmap-rs data.qcow2 -q -o data.jsonl").status.success());
    assert_eq!(asked("changed data.qcow2 --map guest.jsonl --new data.jsonl", 0).0, answer);

    // The last bytes of the disk belong to no file.
    let end = fixture.size() - 4096;
    overlay("more.qcow2", &[format!("write -P 0xab {start} 4096"), format!("write -P 0xcd {end} 4096")]);
    let (answer, said) = asked("changed more.qcow2 --map guest.jsonl --no-boot", 3);
    assert!(said.contains("new files have no name") && !said.contains("starting"), "{said}");
    assert_eq!(changes(&answer), [(path.as_str(), "rewritten")].into());
    let summary = |name: &str| answer["summary"][name].as_u64().unwrap();
    assert_eq!(summary("free") + summary("unmapped") + summary("metadata"), 4096, "{answer}");
}
