//! `virt-bmap-rs report` without a browser: what it writes, and what it refuses.

use crate::PROGRAM;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// A directory with a map, two logs, and a list of operations.
pub(crate) fn samples() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let map = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/questions/guest.bmap");
    fs::copy(map, dir.path().join("guest.bmap")).unwrap();
    let mut log = String::new();
    for number in 0..256u32 {
        let op = if number % 4 == 0 { "write" } else { "read" };
        let (time, offset) = (f64::from(number) / 64.0, 0x20_0000 + number * 4096);
        log.push_str(&format!(
            "{{\"time\":{time},\"op\":\"{op}\",\"disk\":1,\"offset\":{offset},\"length\":4096}}\n"
        ));
    }
    fs::write(dir.path().join("boot.jsonl"), log).unwrap();
    fs::write(
        dir.path().join("boot.log"),
        "\nread f /dev/sda1 /etc/fstab\n 100a00-100c00\nread d /dev/sda1 /\n 100000-100400",
    )
    .unwrap();
    let operation = |path: &str, milliseconds: u64| {
        let (from, to) = (milliseconds * 1_000_000, (milliseconds + 20) * 1_000_000);
        format!(
            "{{\"op\": \"create\", \"type\": \"f\", \"device\": \"/dev/sda1\", \"path\": \"{path}\", \
             \"from_path\": null, \"from_ns\": {from}, \"to_ns\": {to}, \"flushed\": true}}\n"
        )
    };
    let list = [operation("/early", 500), operation("/</li>later", 1250), operation("/last", 3000)];
    fs::write(dir.path().join("done.jsonl"), list.concat()).unwrap();
    dir
}

/// Runs `virt-bmap-rs report` in a directory.
pub(crate) fn report(dir: &Path, args: &[&str]) -> Output {
    Command::new(PROGRAM).arg("report").args(args).current_dir(dir).output().unwrap()
}

#[test]
fn the_same_map_gives_the_same_bytes() {
    let dir = samples();
    let output = report(dir.path(), &["guest.bmap"]);
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{words}");
    assert!(words.starts_with("wrote report.html, "), "{words}");
    let page = fs::read(dir.path().join("report.html")).unwrap();
    assert_eq!(report(dir.path(), &["guest.bmap", "-o", "-"]).stdout, page);

    report(dir.path(), &["guest.bmap", "--trace", "boot.jsonl", "-o", "a.html"]);
    report(dir.path(), &["guest.bmap", "--trace", "boot.jsonl", "-o", "b.html"]);
    let played = fs::read(dir.path().join("a.html")).unwrap();
    assert_eq!(fs::read(dir.path().join("b.html")).unwrap(), played);
    assert!(played.len() > page.len());
}

#[test]
fn the_examples_in_the_help_work() {
    let dir = samples();
    let help = String::from_utf8(report(dir.path(), &["--help"]).stdout).unwrap();
    let mut run = 0;
    for line in help.lines().filter_map(|line| line.strip_prefix("  virt-bmap-rs report ")) {
        let output = report(dir.path(), &line.split(' ').collect::<Vec<_>>());
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        run += 1;
    }
    assert!(run >= 2 && dir.path().join("report.html").exists() && dir.path().join("guest.html").exists());
}

#[test]
fn bad_input_is_told_plainly_and_leaves_no_page() {
    let dir = samples();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let map = fs::read_to_string(dir.path().join("guest.bmap")).unwrap();
    write("truncated.bmap", &map[..map.len() - 5]);
    write("empty.bmap", "# virt-bmap-rs 0.1.0 map 1\n");
    write("odd.bmap", "1 0 ffffffffffffff01 v /dev/sda\n");
    write("empty.log", "");
    write("other.log", "{\"time\":0,\"op\":\"read\",\"disk\":1,\"offset\":8388608,\"length\":512}\n");
    write("two.log", "{\"time\":0,\"op\":\"read\",\"disk\":2,\"offset\":0,\"length\":512}\n");
    write("cut.log", "{\"time\":0,\"op\":\"read\",\"disk\":1,\"offs");
    let cases: [(&[&str], i32, &str); 12] = [
        (&[], 2, "required"),
        (&["missing.bmap"], 1, "missing.bmap"),
        (&["truncated.bmap"], 1, "truncated"),
        (&["empty.bmap"], 1, "no range of any disk"),
        (&["odd.bmap"], 1, "2^53"),
        (&["guest.bmap", "--trace", "missing"], 1, "missing"),
        (&["guest.bmap", "--trace", "empty.log"], 1, "no request"),
        (&["guest.bmap", "--trace", "other.log"], 1, "another guest"),
        (&["guest.bmap", "--trace", "two.log"], 1, "disk 2"),
        (&["guest.bmap", "--trace", "cut.log"], 1, "line 1"),
        (&["guest.bmap", "-o", "./guest.bmap"], 1, "refusing to overwrite"),
        (&["-", "--trace", "-"], 1, "standard input"),
    ];
    let before = fs::read_dir(dir.path()).unwrap().count();
    for (args, code, words) in cases {
        let output = report(dir.path(), args);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains(words), "{args:?}: {error}");
        assert!(code == 2 || error.trim_end().lines().count() == 1, "{args:?}: {error}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before);
    assert_eq!(fs::read_to_string(dir.path().join("guest.bmap")).unwrap(), map);
}
