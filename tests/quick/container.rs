//! Questions whose offsets count in the file of an image. The places are those that qemu-img says.

use crate::PROGRAM;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;
use virt_bmap_testutil::sandbox::is_one_error;
use virt_bmap_testutil::tools::needs;

const MAP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/questions/guest.bmap");

fn shell(dir: &Path, line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Exit status, standard output and standard error.
fn ask(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(PROGRAM).args(args).current_dir(dir).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn json(dir: &Path, args: &[&str]) -> Value {
    let (_, out, err) = ask(dir, &[args, &["--json"]].concat());
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error}\n{out}\n{err}"))
}

/// A disk of 8 MiB in `guest.qcow2`, with the samples' map of it.
fn guest() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(MAP, dir.path().join("guest.bmap")).unwrap();
    shell(
        dir.path(),
        "qemu-img create -q -f qcow2 guest.qcow2 8M && \
         qemu-io -f qcow2 -c 'write -q 1M 64k' -c 'write -q 3M 1M' -c 'write -q 5M 64k' guest.qcow2",
    );
    dir
}

/// Where the image has a byte of the disk.
fn place(dir: &Path, image: &str, at: u64) -> u64 {
    let map: Value =
        serde_json::from_str(&shell(dir, &format!("qemu-img map --output=json {image}"))).unwrap();
    let number = |entry: &Value, field: &str| entry[field].as_u64().unwrap();
    let holds =
        |entry: &&Value| (0..number(entry, "length")).contains(&(at.wrapping_sub(number(entry, "start"))));
    let entry = map.as_array().unwrap().iter().find(holds).unwrap();
    number(entry, "offset") + at - number(entry, "start")
}

#[test]
fn an_offset_in_the_file_finds_the_file_of_the_guest() {
    needs!("qemu-img", "qemu-io");
    let guest = guest();
    let dir = guest.path();
    let at = place(dir, "guest.qcow2", 0x100a10).to_string();
    let within = ["--container", "guest.qcow2", "--image", "guest.qcow2"];
    let answer = json(dir, &[&["lookup", "guest.bmap", &at], &within[..]].concat());
    let row = &answer["rows"][0];
    assert_eq!((&row["holds"], &row["start"]), (&"data".into(), &0x100a10.into()));
    assert_eq!(row["path"], "/etc/fstab");
    // The image that the map names is the default, and there is none.
    let (code, _, err) = ask(dir, &["lookup", "guest.bmap", &at, "--container", "guest.qcow2"]);
    assert!(code == 1 && err.contains("guest.raw") && err.contains("--image"), "{err}");
    // Places that are none in a file.
    for place in ["1:0", "/dev/sda1+0", &u64::MAX.to_string()] {
        let (code, out, err) = ask(dir, &[&["lookup", "guest.bmap", place], &within[..]].concat());
        assert!(code == 1 && out.is_empty() && is_one_error(&err), "{place}: {err}");
    }
}

#[test]
fn damage_to_tables_is_damage_to_what_depends_on_them() {
    needs!("qemu-img", "qemu-io");
    let guest = guest();
    let dir = guest.path();
    let damaged = |list: &str| {
        fs::write(dir.join("list"), list).unwrap();
        let args = [
            "damaged",
            "guest.bmap",
            "--mapfile",
            "list",
            "--container",
            "guest.qcow2",
            "--image",
            "guest.qcow2",
        ];
        (ask(dir, &args).0, json(dir, &args))
    };
    let holds = |answer: &Value| -> Vec<String> {
        let parts = answer["parts"].as_array().unwrap();
        parts.iter().map(|part| part["holds"].as_str().unwrap().to_owned()).collect()
    };
    let (code, answer) = damaged(&format!("{} 16\n", place(dir, "guest.qcow2", 0x100a10)));
    assert_eq!((code, &answer["summary"]["files_hit"]), (4, &1.into()));
    assert_eq!(holds(&answer), ["data"]);
    // Cluster 1 has the refcount table, cluster 2 a refcount block: qemu-img creates them in this
    // order, before the first-level table.
    let (code, answer) = damaged("0x10000 0x20000\n");
    assert_eq!((code, holds(&answer)), (0, vec!["refcount-table".to_owned(), "refcount-block".to_owned()]));
    let (code, answer) = damaged("0x30000 8\n");
    assert_eq!((code, holds(&answer)), (4, vec!["first-table".to_owned()]));
    assert_eq!(answer["parts"][0]["guest_end"], 8 << 20);
    let (code, answer) = damaged("24 1\n");
    assert_eq!((code, holds(&answer)), (4, vec!["header".to_owned()]));
    // The entry of the second-level table for the cluster at 3 MiB, after the table's place.
    let image = fs::read(dir.join("guest.qcow2")).unwrap();
    let table = u64::from_be_bytes(image[0x30000..0x30008].try_into().unwrap()) & 0x00ff_ffff_ffff_fe00;
    let (code, answer) = damaged(&format!("{} 8\n", table + 48 * 8));
    assert_eq!((code, holds(&answer)), (4, vec!["second-table".to_owned()]));
    let part = &answer["parts"][0];
    assert_eq!((&part["guest_start"], &part["guest_end"]), (&(3 << 20).into(), &((3 << 20) + 65536).into()));
}

#[test]
fn a_mapfile_is_taken_for_what_it_fits() {
    needs!("qemu-img", "qemu-io");
    let guest = guest();
    let dir = guest.path();
    let size = fs::metadata(dir.join("guest.qcow2")).unwrap().len();
    let mapfile = |name: &str, end: u64| {
        fs::write(dir.join(name), format!("0 ? 1\n0 0x200 -\n0x200 {} +\n", end - 0x200)).unwrap();
    };
    mapfile("disk.map", 8 << 20);
    mapfile("file.map", size);
    mapfile("other.map", 4 << 20);
    let within = ["--container", "guest.qcow2", "--image", "guest.qcow2"];
    // No appliance is started for a list of the wrong thing.
    for (args, words) in [
        (&["damaged", "guest.qcow2", "--mapfile", "file.map"][..], ["--container", "8388608"]),
        (
            &["damaged", "guest.qcow2", "--mapfile", "disk.map", "--container", "guest.qcow2"],
            ["--container", "leave out"],
        ),
        (
            &["damaged", "guest.qcow2", "--mapfile", "other.map", "--container", "guest.qcow2"],
            ["4194304", "--force"],
        ),
        (&["damaged", "guest.bmap", "--mapfile", "file.map"], ["8388608", "--force"]),
    ] {
        let (code, out, err) = ask(dir, args);
        assert!(code == 1 && out.is_empty() && is_one_error(&err), "{args:?}: {out}{err}");
        assert!(words.iter().all(|word| err.contains(word)), "{args:?}: {err}");
    }
    let (code, out, _) = ask(dir, &["damaged", "guest.bmap", "--mapfile", "disk.map"]);
    assert!(code == 0 && out.contains("of disk 1\n"), "{out}");
    let (code, out, _) =
        ask(dir, &[&["damaged", "guest.bmap", "--mapfile", "file.map"], &within[..]].concat());
    assert!(code == 4 && out.contains("of guest.qcow2\n") && out.contains("0x0 to 0x800000"), "{out}");
    // A format whose tables are not read: nobody knows what is damaged.
    shell(dir, "qemu-img convert -O vdi guest.qcow2 guest.vdi");
    fs::write(dir.join("list"), "0 512\n").unwrap();
    let args =
        ["damaged", "guest.bmap", "--mapfile", "list", "--container", "guest.vdi", "--image", "guest.vdi"];
    let (code, out, err) = ask(dir, &args);
    assert!(code == 3 && out.contains("is not known") && err.contains("is not known"), "{out}{err}");
    // In CSV the parts are on standard error.
    let (_, out, err) = ask(dir, &[&args[..], &["--csv"]].concat());
    assert!(out.starts_with("state,") && err.contains("own metadata"), "{out}{err}");
}

/// Offsets next to each other, in any order, and twice.
#[test]
fn each_offset_has_its_own_answer() {
    needs!("qemu-img", "qemu-io");
    let guest = guest();
    let dir = guest.path();
    let at = place(dir, "guest.qcow2", 0x100a10);
    let offsets = [at + 1, at, 0x10000, at + 1];
    let words: Vec<String> = offsets.iter().map(u64::to_string).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let within = ["--container", "guest.qcow2", "--image", "guest.qcow2"];
    let answer = json(dir, &[&["lookup", "guest.bmap"], &words[..], &within].concat());
    let rows = answer["rows"].as_array().unwrap();
    let found: Vec<_> =
        rows.iter().map(|row| (row["container_offset"].as_u64(), row["start"].as_u64())).collect();
    let data = |ahead: u64| (Some(at + ahead), Some(0x100a10 + ahead));
    assert_eq!(found, [data(1), data(0), (Some(0x10000), None), data(1)]);
}
