//! A fleet of real guests, each with an appliance of its own.
//!
//! With `VIRT_BMAP_FLEET=20` so many guests are mapped instead of few: `make fleet-check`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::sandbox::{Sandbox, sealed};
use common::tools::needs;
use common::{fixture, formats, mapping, textmap, tools};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;
use virt_bmap::bmap::{Kind, load, text};

/// Has the guest whose image is called `hangs` give up after a moment, as one does in which nothing happens.
const HASTY: &str = "#!/bin/sh
program=$1; shift
case \"$*\" in *hangs.raw*) set -- --timeout=1 \"$@\" ;; esac
exec \"$program\" \"$@\"
";

#[test]
fn good_and_bad_guests() {
    needs!("guestfish", "sfdisk", "qemu-img", "qemu-io");
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join("images").join(name);
    fs::create_dir(dir.path().join("images")).unwrap();
    let raw = [fixture::small(), fixture::lv_only(), fixture::damaged(), fixture::blank()];
    let [small, lv, damaged, blank] = raw.map(|fixture| &fixture.image);
    formats::convert(small, &at("ext4.qcow2"), "qcow2", "");
    formats::convert(lv, &at("lv.vmdk"), "vmdk", "subformat=streamOptimized");
    formats::copy(damaged, &at("damaged.raw"));
    formats::copy(blank, &at("blank.raw"));
    formats::copy(blank, &at("hangs.raw"));
    formats::convert(blank, &at("corrupt.qcow2"), "qcow2", "");
    // The pointer to the table of its clusters leads nowhere.
    let corrupt = File::options().write(true).open(at("corrupt.qcow2")).unwrap();
    corrupt.write_all_at(&u64::MAX.to_be_bytes(), 40).unwrap();
    formats::copy(blank, &at("locked.raw"));
    let wanted = std::env::var("VIRT_BMAP_FLEET").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
    for number in 7..wanted {
        let (image, format) = [(small, "vdi"), (lv, "qcow2"), (blank, "vhdx"), (small, "vpc")][number % 4];
        let options = if format == "vpc" { "force_size=on" } else { "" };
        formats::convert(image, &at(&format!("more{number:02}.{format}")), format, options);
    }
    let mapper = dir.path().join("hasty");
    fs::write(&mapper, HASTY).unwrap();
    fs::set_permissions(&mapper, fs::Permissions::from_mode(0o755)).unwrap();
    let images: Vec<_> =
        fs::read_dir(dir.path().join("images")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let _sealed = sealed(&images);

    // As a running virtual machine holds it.
    let mut command = tools::command("qemu-io");
    command.args(["-f", "raw", "-c", "sleep 600000"]).arg(at("locked.raw")).stdout(Stdio::null());
    let mut holder = Holder(command.spawn().unwrap());
    while !is_locked(&at("locked.raw")) {
        assert!(holder.0.try_wait().unwrap().is_none(), "qemu-io ended");
        thread::sleep(Duration::from_millis(20));
    }
    let maps = dir.path().join("maps");
    let run = |more: &[&str]| {
        let mut args: Vec<OsString> = vec!["fleet".into(), dir.path().join("images").into()];
        args.extend(["--json", "--retries=0", "--out-dir"].map(OsString::from));
        args.push(maps.clone().into());
        for word in [mapper.as_os_str(), common::sandbox::PROGRAM.as_ref()] {
            args.extend(["--mapper".into(), word.to_owned()]);
        }
        args.extend(more.iter().map(OsString::from));
        Sandbox::new().run(args)
    };
    let first = run(&["-j2"]);
    first.assert_code(3);
    let mut expected = BTreeMap::from([
        ("blank", "complete"),
        ("corrupt", "failed"),
        ("damaged", "incomplete"),
        ("ext4", "complete"),
        ("hangs", "hung"),
        ("locked", "failed"),
        ("lv", "complete"),
    ]);
    let more: Vec<String> = (7..wanted).map(|number| format!("more{number:02}")).collect();
    expected.extend(more.iter().map(|id| (&**id, "complete")));
    let records = records(&maps);
    let statuses: BTreeMap<&str, &str> =
        records.iter().map(|(id, record)| (&**id, record["status"].as_str().unwrap())).collect();
    assert_eq!(statuses, expected, "{}", first.stderr);

    let error = |id: &str| records[id]["error"].as_str().unwrap().to_owned();
    assert!(error("corrupt").contains("corrupt.qcow2"), "{}", error("corrupt"));
    assert!(error("locked").contains("--force-share"), "{}", error("locked"));
    assert!(error("hangs").contains("nothing happened for 1 seconds"), "{}", error("hangs"));
    assert!(records["damaged"]["unexamined"].as_array().unwrap().len() >= 2);
    assert!(records["blank"]["warnings"][0].as_str().unwrap().contains("blank"));
    assert_eq!(records["ext4"]["disks"][0]["opened"]["format"], "qcow2");

    // The maps are those that one run for one guest makes.
    let alone = mapping::of(&[fixture::small()], &[]);
    let map = fs::read(maps.join("ext4.bmap")).unwrap();
    assert!(textmap::body(&map) == textmap::body(&alone.text));
    for id in ["ext4", "lv", "damaged"] {
        let whole = load(&maps.join(format!("{id}.jsonl.zst"))).unwrap();
        let mut out = Vec::new();
        text::write(&whole, &mut out).unwrap();
        assert!(out == fs::read(maps.join(format!("{id}.bmap"))).unwrap(), "{id}");
        let files = whole.objects().filter(|object| object.kind() == Kind::File).count();
        assert!(
            files > 10 && records[id]["counts"]["files"].as_u64().unwrap() >= files as u64,
            "{id}: {files}"
        );
    }

    // What is good is not made again: all that is left fails before an appliance is started.
    drop(holder);
    let again = run(&[]);
    again.assert_code(3).assert_says(&["3 guests to map", "locked: starting (failed the last time)"]);
    assert!(fs::read(maps.join("ext4.bmap")).unwrap() == map);
    assert_eq!(self::records(&maps)["locked"]["status"], "complete");
}

/// Holds an image open as long as it lives.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The records in `fleet.jsonl`, by id.
fn records(maps: &Path) -> BTreeMap<String, Value> {
    let lines = fs::read_to_string(maps.join("fleet.jsonl")).unwrap();
    let records = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.map(|record| (record["id"].as_str().unwrap().to_owned(), record)).collect()
}

/// Whether anybody holds a lock on the file.
fn is_locked(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let inode = format!(":{} ", path.metadata().unwrap().ino());
    fs::read_to_string("/proc/locks").unwrap().lines().any(|line| line.contains(&inode))
}
