//! The commands that answer questions about a map. They run as a user runs them, on the small maps
//! in `tests/questions`.

use crate::PROGRAM;
use serde_json::Value;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use virt_bmap_testutil::sandbox::is_one_error;
use virt_bmap_testutil::tools::needs;

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/questions");

/// A directory with a copy of the samples.
fn samples() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(SAMPLES).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

/// Runs a command line in a shell that has the program in its `PATH`.
fn shell(dir: &Path, line: &str) -> Output {
    let path =
        format!("{}:{}", Path::new(PROGRAM).parent().unwrap().display(), std::env::var("PATH").unwrap());
    Command::new("sh").args(["-c", line]).current_dir(dir).env("PATH", path).output().unwrap()
}

/// Runs the program in the samples. Returns its exit status, standard output and standard error.
fn ask(dir: &Path, args: &[&str]) -> (i32, String, String) {
    ask_with(dir, args, b"")
}

fn ask_with(dir: &Path, args: &[&str], input: &[u8]) -> (i32, String, String) {
    let mut child = Command::new(PROGRAM)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The program may end before it has read the input.
    child.stdin.take().unwrap().write_all(input).ok();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).expect("the answer is UTF-8");
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn json(dir: &Path, args: &[&str]) -> Value {
    let (_, out, err) = ask(dir, &[args, &["--json"]].concat());
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error}\n{out}\n{err}"))
}

#[test]
fn the_examples_in_the_help_work() {
    needs!("qemu-img", "qemu-io", "qemu-nbd", "nbdinfo");
    let dir = samples();
    images(dir.path());
    let mut run = 0;
    for command in ["lookup", "list", "damaged", "diff", "convert"] {
        let (code, help, _) = ask(dir.path(), &[command, "--help"]);
        assert_eq!(code, 0);
        // Examples with an image start an appliance. tests/changes/changed.rs runs them. That of a
        // domain needs a map with metadata.
        let lines = help.lines().filter_map(|line| line.strip_prefix("  virt-bmap-rs "));
        for line in lines.filter(|line| !line.contains("guest.raw") && !line.contains("domain.map")) {
            let output = shell(dir.path(), &format!("virt-bmap-rs {line}"));
            assert!(output.stderr.is_empty(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
            let out = line.strip_prefix("convert guest.bmap ").filter(|out| *out != "-");
            assert_eq!(output.stdout.is_empty(), out.is_some(), "{line}");
            assert!(out.is_none_or(|out| dir.path().join(out).exists()), "{line}");
            let expected = if command == "damaged" { 4 } else { 0 };
            assert_eq!(output.status.code(), Some(expected), "{line}");
            run += 1;
        }
    }
    assert!(run >= 18, "{run}");
}

#[test]
fn each_command_has_a_man_page_with_examples() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, err) = ask(dir.path(), &["generate", "man", "."]);
    assert_eq!(code, 0, "{err}");
    let pages: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap()).collect();
    for page in &pages {
        let text = fs::read_to_string(page.path()).unwrap();
        assert!(text.contains("Examples:") && text.contains("Exit status:"), "{page:?}");
    }
    assert!(pages.len() >= 7, "{pages:?}");
}

/// Makes images that fit the maps of the samples: an empty disk, and an overlay. The overlay was
/// written in some places where the maps differ.
fn images(dir: &Path) {
    let writes = [
        // Bytes of a directory, bytes of /etc/fstab, which stays in place, and all of /etc/passwd.
        ("0x100810", "64"),
        ("0x100a10", "7"),
        ("0x100e00", "512"),
        // The end of a file, two new files, and free space.
        ("0x320000", "32k"),
        ("0x508000", "16k"),
        ("0x600000", "4k"),
        ("0x700000", "2k"),
    ];
    let writes: String = writes.iter().map(|(at, length)| format!(" -c 'write -q {at} {length}'")).collect();
    let line = format!(
        "qemu-img create -q -f qcow2 guest.qcow2 8M && qemu-img bitmap --add guest.qcow2 monday && \
         truncate -s 8M guest.raw && qemu-img create -q -f qcow2 -b guest.raw -F raw top.qcow2 && qemu-io -f qcow2{writes} top.qcow2"
    );
    let output = shell(dir, &line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Where `lookup` says that these arguments point.
fn places(dir: &Path, map: &str, args: &[&str]) -> Vec<String> {
    let (code, out, err) = ask(dir, &[&["lookup", map], args].concat());
    assert_eq!(code, 0, "{args:?}: {err}");
    out.lines().filter(|line| !line.starts_with(' ')).map(str::to_owned).collect()
}

#[test]
fn places_are_counted_in_what_people_have() {
    let dir = tempfile::tempdir().unwrap();
    let map = "# virt-bmap-rs 0.1.0 map 1\n\
        # disk 1 size=1048576 sector=4096 format=raw name=a\n\
        # disk 2 size=1048576 format=raw name=b\n\
        # filesystem /dev/sda1 type=ntfs block-size=2048 size=524288 free=0 directories=1 files=0\n\
        1 0 10000 v /dev/sda\n1 10000 90000 p /dev/sda1\n1 10000 90000 v /dev/sda\n1 90000 100000 v /dev/sda\n\
        2 0 100000 v /dev/sdb\n";
    fs::write(dir.path().join("a.bmap"), map).unwrap();
    let at = |args: &[&str]| places(dir.path(), "a.bmap", args);
    assert_eq!(at(&["0x200", "2:0x200"]), ["1:0x200", "2:0x200"]);
    assert_eq!(at(&["--sector", "3"]), ["1:0x3000 (sector 3 of 4096 bytes)"]);
    assert_eq!(at(&["--sector", "3:512"]), ["1:0x600 (sector 3 of 512 bytes)"]);
    assert_eq!(at(&["--sector", "3", "--disk", "2"]), ["2:0x600 (sector 3 of 512 bytes)"]);
    assert_eq!(at(&["3s", "2:3s"]), ["1:0x3000 (sector 3 of 4096 bytes)", "2:0x600 (sector 3 of 512 bytes)"]);
    assert_eq!(at(&["/dev/sda1+0x1000"]), ["1:0x11000 (/dev/sda1 + 0x1000)"]);
    assert_eq!(
        at(&["/dev/sda1+1s"]),
        ["1:0x11000 (sector 1 of 4096 bytes of /dev/sda1, /dev/sda1 + 0x1000)"]
    );
    let cluster = "1:0x12800 (cluster 5 of 2048 bytes of /dev/sda1, /dev/sda1 + 0x2800)";
    assert_eq!(at(&["--lcn", "5", "--lcn", "/dev/sda1:5"]), [cluster, cluster]);
    let rows = json(dir.path(), &["lookup", "a.bmap", "/dev/sda1+0x1000"]);
    assert!(rows.to_string().contains("69632"), "{rows}");
}

#[test]
fn a_path_as_windows_writes_it_gets_a_hint() {
    let dir = samples();
    for pattern in [r"C:\etc\FSTAB", r"\Etc\fstab", "/ETC/fstab"] {
        let (code, out, err) = ask(dir.path(), &["list", "guest.bmap", pattern]);
        assert_eq!(code, 0, "{err}");
        assert!(out.contains("0 found"), "{out}");
        assert!(err.contains("/dev/sda1 /etc/fstab matches, as one of 1"), "{pattern}: {err}");
    }
    let (_, _, err) = ask(dir.path(), &["list", "guest.bmap", "/no/such/*"]);
    assert_eq!(err, "");
}

#[test]
fn damaged_does_not_call_a_note_something_missing() {
    let dir = samples();
    let map = fs::read_to_string(dir.path().join("guest.bmap")).unwrap();
    let (head, rest) = map.split_once('\n').unwrap();
    let notes = "# warning /dev/sda8: lost\n# note /dev/sda9: it is blank";
    fs::write(dir.path().join("notes.bmap"), format!("{head}\n{notes}\n{rest}")).unwrap();
    let (_, _, err) = ask(dir.path(), &["damaged", "notes.bmap", "--mapfile", "rescue.map"]);
    assert!(err.contains("incomplete: /dev/sda8") && !err.contains("/dev/sda9"), "{err}");
}

#[test]
fn bad_input_is_told_plainly() {
    let dir = samples();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let map = fs::read_to_string(dir.path().join("guest.bmap")).unwrap();
    write("truncated.bmap", &map[..map.len() - 5]);
    write("mixed.bmap", &format!("{map}{map}"));
    write("empty", "");
    write("empty.json", "[]\n");
    write("picture", "\u{89}PNG\r\n\u{1a}\n");
    write("past.txt", "0x7fff00 512\n");
    write("backwards.map", "0 ? 1\n0 4M +\n");
    write("descending.map", "0 ? 1\n0x100000 0x100000 +\n0x0 0x100000 -\n");
    write("other.map", "0 ? 1\n0 0x400000 -\n");
    write("overlap.map", "0 ? 1\n0 0x200 +\n0x100 0x7fff00 -\n");
    write(
        "overlap.json",
        r#"[{"offset":0,"length":8388608,"type":0,"description":"data"},{"offset":512,"length":512,"type":0,"description":"data"}]"#,
    );
    write("far.txt", "0 18446744073709551615\n1 18446744073709551615\n");
    write("cut.json", r#"[{"start":0,"length":512,"depth":0,"data":true},{"sta"#);
    let cases: [(&[&str], i32, &[&str]); 37] = [
        (&["lookup", "guest.bmap"], 2, &["required"]),
        (&["lookup", "guest.bmap", "12x"], 2, &["`12x` is no number"]),
        (&["lookup", "guest.bmap", "0:1"], 2, &["number of a disk"]),
        (&["lookup", "guest.bmap", "--sector", "1:x"], 2, &["`x` is no number"]),
        (&["lookup", "guest.bmap", "0", "--ranges", "past.txt"], 2, &["cannot be used with"]),
        (&["lookup", "guest.bmap", "8M"], 1, &["past the end of disk 1", "8388608 bytes"]),
        (&["lookup", "guest.bmap", "/dev/sda9+0"], 1, &["/dev/sda9", "no device of this name"]),
        (&["lookup", "guest.bmap", "/dev/sda1+1T"], 1, &["/dev/sda1", "past the end of the device"]),
        (&["lookup", "guest.bmap", "/dev/sda1"], 2, &["DEVICE+OFFSET"]),
        (&["lookup", "guest.bmap", "--lcn", "5"], 1, &["no NTFS"]),
        (&["lookup", "guest.bmap", "2:0"], 1, &["no disk 2"]),
        (&["lookup", "missing.bmap", "0"], 1, &["missing.bmap"]),
        (&["lookup", "truncated.bmap", "0"], 1, &["truncated"]),
        (&["lookup", "mixed.bmap", "0"], 1, &["line"]),
        (&["lookup", "empty", "0"], 1, &["empty"]),
        (&["lookup", "guest.bmap", "--ranges", "missing"], 1, &["missing"]),
        (&["lookup", "guest.bmap", "--ranges", "empty"], 1, &["list is empty"]),
        (&["lookup", "guest.bmap", "--ranges", "empty.json"], 1, &["list is empty"]),
        (&["lookup", "guest.bmap", "--ranges", "picture"], 1, &["none of", "ddrescue"]),
        (&["lookup", "guest.bmap", "--ranges", "guest.bmap"], 1, &["none of"]),
        (&["lookup", "guest.bmap", "--ranges", "past.txt"], 1, &["8388864", "8388608", "--force"]),
        (&["lookup", "guest.bmap", "--ranges", "past.txt", "--disk", "2"], 1, &["no disk 2"]),
        (&["lookup", "guest.bmap", "--ranges", "cut.json"], 1, &["qemu-img map", "EOF"]),
        (
            &["lookup", "guest.bmap", "--ranges", "past.txt", "--status", "-"],
            1,
            &["--status is not for this list"],
        ),
        (&["lookup", "guest.bmap", "--ranges", "changed.json", "-b", "512"], 1, &["--block-size is not for"]),
        (&["damaged", "guest.bmap", "--mapfile", "backwards.map"], 1, &["line 2", "`4M`"]),
        (
            &["damaged", "guest.bmap", "--mapfile", "descending.map"],
            1,
            &["line 3", "damaged, or two were mixed"],
        ),
        (&["damaged", "guest.bmap", "--mapfile", "other.map"], 1, &["4194304 bytes", "8388608", "--force"]),
        (&["damaged", "guest.bmap", "--mapfile", "rescue.map", "--status", "x"], 2, &["statuses"]),
        (
            &["damaged", "guest.bmap", "--mapfile", "overlap.map"],
            1,
            &["line 3", "before the end of the one above"],
        ),
        (&["damaged", "guest.bmap", "--mapfile", "rescue.map", "-o", "x.bmap"], 1, &["is a map", "convert"]),
        (
            &["lookup", "guest.bmap", "--ranges", "overlap.json"],
            1,
            &["entry 2", "damaged, or two were mixed"],
        ),
        (&["lookup", "guest.bmap", "--ranges", "far.txt"], 1, &["line 2", "64 bits"]),
        (&["lookup", "-", "--ranges", "-"], 1, &["standard input"]),
        (&["changed", "missing", "--map", "-", "--new", "-"], 1, &["standard input"]),
        (&["list", "guest.bmap", "/[a"], 1, &["invalid pattern"]),
        (&["diff", "-", "-"], 1, &["standard input"]),
    ];
    for (args, code, words) in cases {
        let (found, out, err) = ask(dir.path(), args);
        assert_eq!(found, code, "{args:?}: {err}");
        assert!(out.is_empty(), "{args:?}: {out}");
        for word in words {
            assert!(err.contains(word), "{args:?} does not say {word:?}: {err}");
        }
        assert!(code == 2 || is_one_error(&err), "{args:?}: {err}");
    }

    let (code, out, err) =
        ask(dir.path(), &["lookup", "guest.bmap", "--ranges", "past.txt", "--force", "--bytes"]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("warning"), "{err}");
    assert!(out.contains("256  50.00 %  in no object of the map"), "{out}");
    let (code, _, err) = ask(dir.path(), &["damaged", "guest.bmap", "--mapfile", "other.map", "--force"]);
    assert_eq!(code, 4, "{err}");
    // With `--from` an empty list is accepted.
    let (code, out, err) =
        ask(dir.path(), &["damaged", "guest.bmap", "--mapfile", "empty", "--from", "badblocks"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("0 files, 0 directories") && out.contains("6 files are whole"), "{out}");
}

/// Each question refuses each input that is not a map, with one line that says why.
#[test]
fn a_bad_map_is_refused_by_every_question() {
    let dir = samples();
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    for out in ["guest.jsonl", "guest.csv", "guest.bmap.gz"] {
        assert_eq!(ask(dir.path(), &["convert", "guest.bmap", out]).0, 0);
    }
    let (text, lines, csv) = (read("guest.bmap"), read("guest.jsonl"), read("guest.csv"));
    let packed = fs::read(dir.path().join("guest.bmap.gz")).unwrap();
    let cut = |text: &str| text.as_bytes()[..text.len() - 20].to_vec();
    let reversed = text.replace("1 100c00 100e00 f", "1 100e00 100c00 f");
    let overlapping = text.replace("1 100a00 100c00 f", "1 100a00 100d00 f");
    let bmap_tools =
        "<?xml version=\"1.0\" ?>\n<bmap version=\"2.0\">\n    <ImageSize> 8388608 </ImageSize>\n</bmap>\n";
    let maps: [(&str, Vec<u8>, &str); 13] = [
        ("empty", Vec::new(), "empty"),
        ("cut.bmap", cut(&text), "truncated"),
        ("cut.jsonl", cut(&lines), "truncated"),
        (
            "short.jsonl",
            lines.lines().take(5).map(|line| format!("{line}\n")).collect::<String>().into(),
            "truncated",
        ),
        ("cut.csv", cut(&csv), "columns"),
        ("cut.bmap.gz", packed[..packed.len() / 2].to_vec(), "incomplete"),
        ("mixed.bmap", format!("{text}{text}").into(), "line 46"),
        ("mixed.jsonl", format!("{lines}{text}").into(), "line 14"),
        ("later.version", text.replace("map 1\n", "map 9\n").into(), "version 9"),
        ("later.jsonl", lines.replace("\"version\":2", "\"version\":9").into(), "version 9"),
        ("reversed.bmap", reversed.into(), "not after its start"),
        ("overlapping.bmap", overlapping.into(), "must ascend"),
        ("tools.bmap", bmap_tools.into(), "bmap-tools"),
    ];
    for (name, bytes, words) in maps {
        fs::write(dir.path().join(name), bytes).unwrap();
        let questions: [&[&str]; 6] = [
            &["list", name],
            &["lookup", name, "0x100a00"],
            &["lookup", name, "--ranges", "changed.json"],
            &["damaged", name, "--mapfile", "rescue.map"],
            &["diff", name, "guest.bmap"],
            &["diff", "guest.bmap", name],
        ];
        for question in questions {
            let (code, out, err) = ask(dir.path(), question);
            assert_eq!((code, out.as_str()), (1, ""), "{question:?}: {err}");
            assert!(err.contains(name) && err.contains(words), "{question:?}: {err}");
            assert_eq!(err.lines().count(), 1, "{question:?}: {err}");
        }
    }
}

#[test]
fn every_offset_is_answered() {
    let dir = samples();
    let answer = json(dir.path(), &["lookup", "guest.bmap", "0", "0x100a10", "--sector", "2054"]);
    let rows: Vec<String> = answer["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            format!("{} {} {} {}", row["offset"], row["type"], row["device"], row["path"]).replace('"', "")
        })
        .collect();
    assert_eq!(
        rows,
        [
            "0 v /dev/sda null",
            "1051152 f /dev/sda1 /etc/fstab",
            "1051152 p /dev/sda1 null",
            "1051152 v /dev/sda null",
            "1051648 f /dev/sda1 /etc/passwd",
            "1051648 p /dev/sda1 null",
            "1051648 v /dev/sda null",
        ]
    );
    // A map without its disks and partitions has gaps.
    let map = fs::read_to_string(dir.path().join("guest.bmap")).unwrap();
    let files: String =
        map.lines().filter(|line| line.contains(" f ")).map(|line| format!("{line}\n")).collect();
    let (code, out, _) = ask_with(dir.path(), &["lookup", "-", "0", "--csv"], files.as_bytes());
    assert_eq!((code, out.as_str()), (0, "disk,offset,type,device,path,file_offset\n1,0,unmapped,,,\n"));
    let (code, out, _) = ask_with(dir.path(), &["lookup", "-", "0"], files.as_bytes());
    assert_eq!((code, out.as_str()), (0, "1:0x0\n  in no object of the map\n"));
}

#[test]
fn names_from_inside_the_guest_are_harmless() {
    let dir = samples();
    let names: [&[u8]; 6] =
        [b"=1+1", b"/\x1b[31mred", b"/a\nb", b"/\xc2\x9b31m", b"/\xff\xfe", b"/\xe2\x80\xaegpj.exe"];
    let mut map = b"# virt-bmap-rs 0.1.0 map 1\n# disk 1 size=65536 format=raw name=x\n".to_vec();
    for (place, name) in names.iter().enumerate() {
        map.extend(format!("1 {:x} {:x} f /dev/sda1 ", place * 4096, (place + 1) * 4096).bytes());
        map.extend_from_slice(&virt_bmap_map::escape::escape(name));
        map.push(b'\n');
    }
    fs::write(dir.path().join("hostile.bmap"), &map).unwrap();
    fs::write(dir.path().join("all.txt"), "0 64K\n").unwrap();
    fs::write(dir.path().join("none.bmap"), "1 f000 10000 f /dev/sda1 /x\n").unwrap();
    let questions: [&[&str]; 5] = [
        &["list", "hostile.bmap"],
        &["lookup", "hostile.bmap", "0", "4K", "8K", "12K", "16K", "20K"],
        &["lookup", "hostile.bmap", "--ranges", "all.txt"],
        &["damaged", "hostile.bmap", "--mapfile", "all.txt", "--whole"],
        &["diff", "none.bmap", "hostile.bmap"],
    ];
    for question in questions {
        for form in [None, Some("--csv"), Some("--json")] {
            let args: Vec<&str> = question.iter().copied().chain(form).collect();
            // `ask` fails if the answer is not UTF-8.
            let (_, out, err) = ask(dir.path(), &args);
            assert!(out.lines().count() >= names.len(), "{args:?}: {out}{err}");
            let steers = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
            assert!(!out.chars().any(steers), "{args:?}: {out:?}");
        }
        let (_, csv, _) = ask(dir.path(), &[question, &["--csv"]].concat());
        assert!(csv.contains(",'=1+1,") && csv.contains(r",/\377\376,"), "{csv}");
        let paths: Vec<(String, Option<String>)> = json(dir.path(), question)["rows"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|row| {
                Some((row["path"].as_str()?.to_owned(), row["path_hex"].as_str().map(str::to_owned)))
            })
            .collect();
        for name in names {
            let text = String::from_utf8_lossy(name).into_owned();
            let hex = std::str::from_utf8(name).is_err().then(|| "2ffffe".to_owned());
            assert!(paths.contains(&(text, hex)), "{question:?}: {paths:?}");
        }
    }
}

#[test]
fn nobody_has_to_read_an_answer_to_its_end() {
    let dir = samples();
    let mut map = String::from("# virt-bmap-rs 0.1.0 map 1\n");
    for file in 0..50_000 {
        map += &format!(
            "1 {:x} {:x} f /dev/sda1 /some/rather/long/path/of/a/file/{file}\n",
            file * 512,
            (file + 1) * 512
        );
    }
    fs::write(dir.path().join("large.bmap"), map).unwrap();
    let output = shell(dir.path(), "{ virt-bmap-rs list large.bmap; echo status $? >&2; } | head -n 1");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "status 0\n");
    let output = shell(dir.path(), "virt-bmap-rs list large.bmap > /dev/full");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("No space left"));
}

#[test]
fn damage_shows_in_the_exit_status() {
    let dir = samples();
    let status = |list: &str| {
        fs::write(dir.path().join("list"), list).unwrap();
        ask(dir.path(), &["damaged", "guest.bmap", "--mapfile", "list"]).0
    };
    assert_eq!(status("0x600000 512\n"), 0);
    assert_eq!(status("0x100a00 1\n"), 4);
    assert_eq!(status("0x100800 1\n"), 5);
    let answer = json(dir.path(), &["damaged", "guest.bmap", "--mapfile", "rescue.map", "--whole"]);
    let states: Vec<&str> =
        answer["rows"].as_array().unwrap().iter().map(|row| row["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["damaged", "damaged", "whole", "whole", "whole", "whole"]);
    assert_eq!(answer["summary"]["files_hit"], 2);
    assert_eq!(ask(dir.path(), &["diff", "guest.bmap", "guest.bmap", "--exit-code"]).0, 0);
    assert_eq!(ask(dir.path(), &["diff", "guest.bmap", "later.bmap", "--exit-code"]).0, 4);
}

/// The overlays are a VMDK snapshot, and a qcow2 with clusters that are only marked as zeroes.
#[test]
fn what_an_overlay_holds_is_explained() {
    needs!("qemu-img", "qemu-io", "qemu-nbd");
    let dir = samples();
    let run = |line: &str| {
        let output = shell(dir.path(), line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run("truncate -s 8M guest.raw && qemu-io -f raw -c 'write -q -P 5 3M 1M' guest.raw");
    run(
        "qemu-img convert -O vmdk guest.raw guest.vmdk && qemu-img create -q -f vmdk -b guest.vmdk -F vmdk top.vmdk",
    );
    run("qemu-img create -q -f qcow2 -b guest.raw -F raw top.qcow2");
    // Of two files there, 16 KiB and all but 1 KiB are written.
    let writes = "-c 'write -q -P 6 0x304000 16k' -c 'write -q -P 6 0x320000 31k'";
    run(&format!("qemu-io -f vmdk {writes} top.vmdk && qemu-io -f qcow2 {writes} top.qcow2"));
    run("qemu-io -f qcow2 -c 'write -q -z 0x3a0000 128k' -c 'write -q -z 5M 64k' top.qcow2");
    for (top, zeroed) in [("top.vmdk", 0), ("top.qcow2", 128 << 10)] {
        let answer = json(dir.path(), &["changed", top, "--map", "guest.bmap", "--new", "later.bmap"]);
        let summary = &answer["summary"];
        assert_eq!((&summary["held"], &summary["zeroed"]), (&(128 << 10).into(), &zeroed.into()), "{top}");
        assert_eq!((&summary["files"], &summary["same"]), (&(47 << 10).into(), &(81 << 10).into()), "{top}");
        let row =
            |path: &str| answer["rows"].as_array().unwrap().iter().find(|row| row["path"] == path).unwrap();
        assert_eq!(row("/var/lib/dpkg/status")["was_free"], 31 << 10, "{top}");
        assert_eq!(row("/var/log/syslog.1")["was_itself"], 16 << 10, "{top}");
    }
    let refused = [
        (vec!["changed", "guest.raw", "--map", "guest.bmap"], "--base"),
        (vec!["changed", "top.qcow2", "--map", "guest.bmap", "--new", "small.bmap"], "another disk"),
        (vec!["changed", "top.qcow2", "--map", "guest.bmap", "-o", "top.qcow2"], "an image of the guest"),
    ];
    let small =
        fs::read_to_string(dir.path().join("guest.bmap")).unwrap().replace("size=8388608", "size=8389120");
    fs::write(dir.path().join("small.bmap"), small).unwrap();
    for (args, words) in refused {
        let (code, out, err) = ask(dir.path(), &args);
        assert_eq!((code, out.as_str()), (1, ""), "{args:?}: {err}");
        assert!(err.contains(words), "{args:?}: {err}");
    }
    fs::remove_file(dir.path().join("guest.raw")).unwrap();
    let (code, _, err) =
        ask(dir.path(), &["changed", "top.qcow2", "--map", "guest.bmap", "--new", "later.bmap"]);
    assert!(code == 1 && err.contains("backing file") && err.contains("missing"), "{err}");
}

/// Several programs list the same ranges, each in its own format. The answers must be equal.
#[test]
fn lists_by_the_programs_themselves_are_read() {
    needs!("qemu-img", "qemu-io", "nbdinfo", "nbdkit", "qemu-nbd");
    let dir = samples();
    let run = |line: &str| {
        let output = shell(dir.path(), line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let writes = "-c 'write 1M 64k' -c 'write 3M 128k' -c 'write -z 5M 64k'";
    run("qemu-img create -q -f raw base.raw 8M && qemu-img create -q -f qcow2 -b base.raw -F raw over.qcow2");
    run("qemu-img create -q -f qcow2 whole.qcow2 8M && qemu-img bitmap --add --enable -g 64k whole.qcow2 b");
    run(&format!("qemu-io -f qcow2 {writes} over.qcow2 && qemu-io -f qcow2 {writes} whole.qcow2"));
    run("qemu-img map --output=json over.qcow2 > map.json");
    run("nbdinfo --map=qemu:allocation-depth --json -- [ qemu-nbd -A -r -f qcow2 over.qcow2 ] > depth.json");
    run(
        "nbdinfo --map=qemu:dirty-bitmap:b --json -- [ qemu-nbd -B b -r -f qcow2 whole.qcow2 ] > bitmap.json",
    );
    run(&format!(
        "nbdkit -U - --filter=log memory 8M logfile=log --run 'qemu-io -f raw {} \"$uri\"'",
        writes.replace('\'', "\"")
    ));
    fs::write(dir.path().join("plain.txt"), "1M 64K\n3M 128K\n5M 64K\n").unwrap();
    let blocks: Vec<String> = (16..17).chain(48..50).chain(80..81).map(|block| block.to_string()).collect();
    fs::write(dir.path().join("blocks"), blocks.join("\n") + "\n").unwrap();
    let expected = json(dir.path(), &["lookup", "guest.bmap", "--ranges", "plain.txt"]);
    assert_eq!(expected["summary"]["bytes"], 256 << 10);
    assert_eq!(expected["rows"].as_array().unwrap().len(), 8);
    let lists: [(&str, &str, &[&str]); 5] = [
        ("map.json", "qemu-img-map", &[]),
        ("depth.json", "nbdinfo", &[]),
        ("bitmap.json", "nbdinfo", &[]),
        ("log", "nbdkit-log", &["--op", "write,zero"]),
        ("blocks", "badblocks", &["-b", "64K"]),
    ];
    for (list, kind, options) in lists {
        let args = [&["lookup", "guest.bmap", "--ranges", list], options].concat();
        let answer = json(dir.path(), &args);
        assert_eq!(answer["summary"]["kind"], kind, "{list}");
        assert_eq!(answer["rows"], expected["rows"], "{list}");
    }

    // A bitmap can be given by its name. Then the program reads it from the image.
    let of_image = |image: &'static str, bitmap: &'static str| {
        ["lookup", "guest.bmap", "--ranges", image, "--bitmap", bitmap]
    };
    let answer = json(dir.path(), &of_image("whole.qcow2", "b"));
    assert_eq!(answer["rows"], expected["rows"]);
    run("qemu-img bitmap --add -g 1M whole.qcow2 'other, one' && qemu-img create -q -f qcow2 small.qcow2 4M");
    run("qemu-img bitmap --add --disable small.qcow2 b && cp guest.bmap no-image.qcow2");
    run("qemu-io -f qcow2 -c 'write 4M 512' whole.qcow2");
    let answer = json(dir.path(), &of_image("whole.qcow2", "other, one"));
    assert_eq!(answer["summary"]["bytes"], 1 << 20);
    let (_, _, err) = ask(dir.path(), &["lookup", "guest.bmap", "--ranges", "whole.qcow2"]);
    assert!(err.contains("qcow2 image and no list"), "{err}");
    for (args, word) in [
        (of_image("whole.qcow2", "missing"), "Bitmap 'missing' is not found"),
        (of_image("over.qcow2", "b"), "Bitmap 'b' is not found"),
        (of_image("small.qcow2", "b"), "4194304 bytes"),
        (of_image("base.raw", "b"), "no qcow2 image"),
        (of_image("no-image.qcow2", "b"), "not by its content"),
        (of_image("missing.qcow2", "b"), "no such file"),
    ] {
        let (code, out, err) = ask(dir.path(), &args);
        assert_eq!((code, out.as_str()), (1, ""), "{args:?}: {err}");
        assert!(err.contains(word) && is_one_error(&err), "{args:?}: {err}");
    }
}

/// Lists that other programs write. Each means the same 64 KiB.
#[test]
fn lists_from_elsewhere_are_read() {
    let dir = samples();
    let write = |name: &str, content: &[u8]| fs::write(dir.path().join(name), content).unwrap();
    write("plain.txt", b"0x300000 64K\n");
    let expected = json(dir.path(), &["lookup", "guest.bmap", "--ranges", "plain.txt"]);
    assert_eq!(expected["summary"]["bytes"], 65536);
    assert!(expected["rows"].as_array().unwrap().len() > 1);
    let sectors = || 0x30_0000_u64 / 512..0x31_0000 / 512;
    let lines =
        |line: &dyn Fn(u64) -> String| sectors().map(|sector| line(sector) + "\n").collect::<String>();
    let log = lines(&|sector| format!("[ 1.5] I/O error, dev vda, sector {sector} op 0x0:(READ) flags 0x0"));
    write("log", ("[ 1.0] booting\n".to_owned() + &log + "[ 2.0] I/O error, dev sdb, sector 1\n").as_bytes());
    let smart =
        lines(&|sector| format!("  40 51 08 00 00 00 00  Error: UNC at LBA = {sector:#010x} = {sector}"));
    write("smart", ("smartctl 7.3 2022-02-28 r5338\n".to_owned() + &smart).as_bytes());
    let event = |block: u64| {
        format!(
            "class = \"ereport.fs.zfs.checksum\"\nzio_objset = 0x104\nzio_object = 0x1\nzio_level = 0x0\n\
             zio_blkid = {block:#x}\n"
        )
    };
    write("events", (event(192) + &event(193) + &event(194) + &event(195)).as_bytes());
    write("rbd.txt", b"Offset Length Type\n3145728 65536 data\n");
    write("rbd.json", br#"[{"offset":3145728,"length":65536,"exists":"true"}]"#);
    let numbers =
        |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let export = [b"rbd diff v1\ns", &numbers(&[8 << 20])[..], b"z", &numbers(&[3 << 20, 65536]), b"e"];
    write("rbd.diff", &export.concat());
    write(
        "vmware",
        br#"{"startOffset":0,"length":8388608,"changedArea":[{"start":3145728,"length":65536}]}"#,
    );
    let index = |changed: usize| {
        let mut bytes = vec![0_u8; 4096 + 128 * 32];
        bytes[..8].copy_from_slice(&[47, 127, 65, 237, 145, 253, 15, 205]);
        bytes[64..80].copy_from_slice(&numbers(&[8 << 20, 65536]));
        bytes[4096 + changed * 32] = 1;
        bytes
    };
    write("new.fidx", &index(48));
    let mut old = index(48);
    old[4096 + 48 * 32] = 2;
    write("old.fidx", &old);
    let lists: [(&str, &str, &[&str]); 8] = [
        ("log", "kernel-log", &["--device", "vda"]),
        ("smart", "smartctl", &[]),
        ("events", "zfs-events", &["-b", "16K"]),
        ("rbd.txt", "rbd-diff", &[]),
        ("rbd.json", "rbd-diff", &["--type", "data"]),
        ("rbd.diff", "rbd-export-diff", &[]),
        ("vmware", "vmware", &[]),
        ("new.fidx", "proxmox-index", &["--older", "old.fidx"]),
    ];
    for (list, kind, options) in lists {
        let args = [&["lookup", "guest.bmap", "--ranges", list], options].concat();
        let answer = json(dir.path(), &args);
        assert_eq!(answer["summary"]["kind"], kind, "{list}");
        assert_eq!(answer["rows"], expected["rows"], "{list}");
    }
    for (args, words) in [
        (&["--ranges", "log"][..], ["vda", "--device"]),
        (&["--ranges", "events"], ["size of a block", "--block-size"]),
        (&["--ranges", "new.fidx"], ["index", "--older"]),
        (&["--ranges", "new.fidx", "--older", "missing"], ["missing", "earlier index"]),
        (&["--ranges", "rbd.txt", "--device", "sda"], ["--device", "not for this list"]),
    ] {
        let (code, out, err) = ask(dir.path(), &[&["lookup", "guest.bmap"], args].concat());
        assert!(code == 1 && out.is_empty() && is_one_error(&err), "{args:?}: {out}{err}");
        assert!(words.iter().all(|word| err.contains(word)), "{args:?}: {err}");
    }
}

/// Two thin volumes that differ in a block, by their metadata.
#[test]
fn thin_delta_is_read() {
    needs!("thin_restore", "thin_delta");
    let dir = samples();
    let mapping = |origin: u64, data: u64, length: u64| {
        format!(r#"<range_mapping origin_begin="{origin}" data_begin="{data}" length="{length}" time="0"/>"#)
    };
    let device = |id: u8, mappings: &str, blocks: u64| {
        format!(
            r#"<device dev_id="{id}" mapped_blocks="{blocks}" transaction="1" creation_time="0" snap_time="0">{mappings}</device>"#
        )
    };
    let metadata = format!(
        r#"<superblock uuid="" time="1" transaction="2" data_block_size="128" nr_data_blocks="1000">{}{}</superblock>"#,
        device(1, &mapping(0, 0, 60), 60),
        device(2, &(mapping(0, 0, 48) + &mapping(48, 99, 1) + &mapping(49, 49, 11)), 60)
    );
    fs::write(dir.path().join("metadata.xml"), metadata).unwrap();
    fs::write(dir.path().join("plain.txt"), "0x300000 64K\n").unwrap();
    let line = "truncate -s 4M metadata && thin_restore -i metadata.xml -o metadata && \
                thin_delta --snap1 1 --snap2 2 metadata > delta && \
                thin_delta --verbose --snap1 1 --snap2 2 metadata > verbose";
    let output = shell(dir.path(), &format!("PATH=$PATH:/usr/sbin; {line}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expected = json(dir.path(), &["lookup", "guest.bmap", "--ranges", "plain.txt"]);
    for list in ["delta", "verbose"] {
        let answer = json(dir.path(), &["lookup", "guest.bmap", "--ranges", list]);
        assert_eq!(answer["summary"]["kind"], "thin-delta");
        assert_eq!(answer["rows"], expected["rows"], "{list}");
    }
}

/// A map with metadata and free space on two disks.
const WITH_FREE: &str = "# virt-bmap-rs 0.1.0 map 1\n# disk 1 size=1048576 format=raw name=a\n\
    # disk 2 size=1048576 format=raw name=b\n\
    1 0 10000 v /dev/sda\n1 10000 20000 m /dev/sda1 [superblocks]\n1 10000 20000 p /dev/sda1\n\
    1 10000 20000 v /dev/sda\n1 20000 30000 d /dev/sda1 /\n1 20000 30000 p /dev/sda1\n1 20000 30000 v /dev/sda\n\
    1 30000 40000 m /dev/sda1 [inodes]\n1 30000 40000 p /dev/sda1\n1 30000 40000 v /dev/sda\n\
    1 40000 50000 f /dev/sda1 /a\n1 40000 50000 p /dev/sda1\n1 40000 50000 v /dev/sda\n\
    1 50000 90000 u /dev/sda1\n1 50000 90000 p /dev/sda1\n1 50000 90000 v /dev/sda\n\
    1 90000 a0000 m /dev/sda1 [journal]\n1 90000 a0000 p /dev/sda1\n1 90000 a0000 v /dev/sda\n\
    1 a0000 100000 v /dev/sda\n2 0 80000 u /dev/sdb\n2 0 80000 v /dev/sdb\n2 80000 100000 v /dev/sdb\n";

#[test]
fn lists_for_other_programs_are_written() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.bmap"), WITH_FREE).unwrap();
    let printed = |args: &[&str]| {
        let (code, out, err) = ask(dir.path(), &[&["list", "a.bmap"], args].concat());
        assert_eq!(code, 0, "{args:?}: {err}");
        out
    };
    assert_eq!(printed(&["--free", "--ranges"]), "# disk 1\n327680 262144\n# disk 2\n0 524288\n");
    assert_eq!(printed(&["--ranges", "--type", "fd"]), "# disk 1\n131072 65536\n262144 65536\n");
    // Inode tables, directories, and the rest without the journal.
    assert_eq!(printed(&["--prefetch"]), "# disk 1\n196608 65536\n131072 65536\n65536 65536\n");
    // The lists are those that the program reads.
    fs::write(dir.path().join("free"), printed(&["--free", "--ranges", "--device", "/dev/sda1"])).unwrap();
    let answer = json(dir.path(), &["lookup", "a.bmap", "--ranges", "free"]);
    assert_eq!((&answer["summary"]["free"], &answer["summary"]["bytes"]), (&262_144.into(), &262_144.into()));
}

/// ddrescuelog reads the domain, and adds up what is in use.
#[test]
fn a_domain_is_what_ddrescue_reads() {
    needs!("ddrescuelog");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.bmap"), WITH_FREE).unwrap();
    for (disk, used) in [("1", vec![(0, 5), (9, 16)]), ("2", vec![(8, 16)])] {
        let (code, _, err) = ask(dir.path(), &["convert", "a.bmap", "domain.map", "--disk", disk]);
        assert_eq!(code, 0, "{err}");
        let output = shell(dir.path(), "ddrescuelog --block-size=65536 --list-blocks=+ domain.map");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let blocks: Vec<u64> =
            String::from_utf8(output.stdout).unwrap().lines().map(|line| line.parse().unwrap()).collect();
        assert!(
            blocks.iter().copied().eq(used.into_iter().flat_map(|(start, end)| start..end)),
            "{blocks:?}"
        );
        assert!(
            shell(dir.path(), "ddrescuelog --show-status domain.map | grep -q '1048 kB'").status.success()
        );
    }
    let (code, _, err) = ask(dir.path(), &["convert", "a.bmap", "domain.map", "--disk", "3"]);
    assert!(code == 1 && err.contains("no disk 3"), "{err}");
    let samples = samples();
    let (code, _, err) = ask(samples.path(), &["convert", "guest.bmap", "domain.map"]);
    assert!(code == 1 && err.contains("metadata") && !samples.path().join("domain.map").exists(), "{err}");
}
