//! `virt-bmap-rs update` with made-up maps and images: when it does nothing, why it maps again, and
//! what it refuses. There is no appliance, so the mapping fails. The old map must be unchanged.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};
use virt_bmap_testutil::sandbox::{Finished, Sandbox};
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::traced::{self, MAP, SIZE};

/// A sandbox with `disk.raw`, and `disk.bmap`, which names that image.
fn sandbox() -> Sandbox {
    let sandbox = traced::sandbox();
    write_map(&sandbox.cwd(), &format!("# disk 1 size={SIZE} format=raw name=disk.raw\n"));
    sandbox
}

/// Writes `disk.bmap`, a map in our dialect with these header lines.
fn write_map(cwd: &Path, header: &str) {
    fs::write(cwd.join("disk.bmap"), format!("# virt-bmap-rs 0.1.0 map 1\n{header}{MAP}")).unwrap();
}

fn update(sandbox: Sandbox, args: &[&str]) -> Finished {
    let run = sandbox.env("LIBGUESTFS_PATH", "/nonexistent").run([&["update"], args].concat());
    let leftovers: Vec<_> = run.files().into_iter().filter(|name| name.starts_with('.')).collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
    run
}

/// Fails unless the program says that nothing has changed, and leaves the map unchanged. No
/// appliance could start.
#[track_caller]
fn assert_unchanged(sandbox: Sandbox, args: &[&str]) -> Finished {
    let before = fs::read(sandbox.cwd().join("disk.bmap")).unwrap();
    let run = update(sandbox, args);
    run.assert_code(0);
    assert_eq!((String::from_utf8_lossy(&run.stdout).as_ref(), run.stderr.as_str()), ("unchanged\n", ""));
    assert!(run.read("disk.bmap") == before, "the map was written");
    run
}

/// Fails unless the program begins to map again, says why, and leaves the map unchanged when the
/// mapping fails.
#[track_caller]
fn assert_maps_again(sandbox: Sandbox, args: &[&str], why: &[&str]) -> Finished {
    let before = fs::read(sandbox.cwd().join("disk.bmap")).unwrap();
    let run = update(sandbox, args);
    run.assert_fails(&[&["mapping again: ", "LIBGUESTFS_PATH"], why].concat());
    assert!(run.stdout.is_empty());
    assert!(run.read("disk.bmap") == before, "the map was written");
    run
}

/// Fails unless the program refuses before it maps anything.
#[track_caller]
fn assert_refuses(sandbox: Sandbox, args: &[&str], words: &[&str]) -> Finished {
    let run = update(sandbox, args);
    run.assert_fails(words);
    assert!(!run.stderr.contains("mapping again"), "{}", run.stderr);
    run
}

/// Makes a file newer than any map.
fn touch(file: &Path) {
    let later = SystemTime::now() + Duration::from_secs(10);
    File::options().write(true).open(file).unwrap().set_modified(later).unwrap();
}

#[test]
fn nothing_is_done_where_nothing_has_changed() {
    let run = assert_unchanged(sandbox(), &["disk.bmap"]);
    let run = assert_unchanged(run.sandbox, &["disk.bmap", "-o", "copy.bmap"]);
    assert_eq!(run.read("copy.bmap"), run.read("disk.bmap"));
    fs::rename(run.sandbox.cwd().join("disk.raw"), run.sandbox.cwd().join("moved.raw")).unwrap();
    let run = assert_unchanged(run.sandbox, &["disk.bmap", "--image", "moved.raw"]);

    let image = ["disk.bmap", "--image", "moved.raw"];
    let run = update(run.sandbox, &[&image[..], &["--csv"]].concat());
    run.assert_code(0);
    let csv = String::from_utf8(run.stdout).unwrap();
    assert!(csv.starts_with("change,type,") && csv.lines().count() == 1, "{csv}");
    let run = update(run.sandbox, &[&image[..], &["--json"]].concat());
    let json: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(json["rows"], serde_json::json!([]));
}

#[test]
fn what_was_written_to_or_grew_is_mapped_again() {
    let changed = sandbox();
    touch(&changed.cwd().join("disk.raw"));
    let run = assert_maps_again(changed, &["disk.bmap"], &["disk.raw was changed after the map was written"]);
    assert_maps_again(run.sandbox, &["disk.bmap", "-o", "new.bmap"], &["disk.raw was changed"]);

    let larger = sandbox();
    File::options().write(true).open(larger.cwd().join("disk.raw")).unwrap().set_len(SIZE + 4096).unwrap();
    assert_maps_again(larger, &["disk.bmap"], &["8388608 bytes", "8392704 bytes"]);

    assert_maps_again(sandbox(), &["disk.bmap", "--again"], &["--again was given"]);
    assert_maps_again(sandbox(), &["disk.bmap", "--metadata"], &["the map has no metadata"]);
}

#[test]
fn files_below_an_image_count() {
    needs!("qemu-img");
    let chained = || {
        let sandbox = sandbox();
        let cwd = sandbox.cwd();
        let mut create = tools::command("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", "top.qcow2"]);
        tools::output(create.current_dir(&cwd));
        let below = cwd.join("disk.raw").canonicalize().unwrap();
        let top = format!("# disk 1 size={SIZE} format=qcow2 name=top.qcow2\n");
        write_map(&cwd, &format!("{top}# backing 1 format=raw name={}\n", below.display()));
        sandbox
    };
    let run = assert_unchanged(chained(), &["disk.bmap"]);
    touch(&run.sandbox.cwd().join("disk.raw"));
    assert_maps_again(run.sandbox, &["disk.bmap"], &["disk.raw was changed after"]);

    // The backing file has the same bytes under another name, and is older than the map.
    let other = chained();
    let (cwd, map) = (other.cwd(), fs::read(other.cwd().join("disk.bmap")).unwrap());
    fs::rename(cwd.join("disk.raw"), cwd.join("base.raw")).unwrap();
    let mut rebase = tools::command("qemu-img");
    rebase.args(["rebase", "-q", "-u", "-b", "base.raw", "-F", "raw", "top.qcow2"]);
    tools::output(rebase.current_dir(&cwd));
    fs::write(cwd.join("disk.bmap"), map).unwrap();
    assert_maps_again(other, &["disk.bmap"], &["top.qcow2: the format or the backing files"]);
}

#[test]
fn a_block_device_never_tells() {
    needs!("losetup");
    if !tools::is_root("attaching a loop device") {
        return;
    }
    let sandbox = sandbox();
    let image = sandbox.cwd().join("disk.raw");
    let attached =
        tools::run("losetup", ["-f".as_ref(), "--show".as_ref(), "-r".as_ref(), image.as_os_str()]);
    let device = String::from_utf8(attached).unwrap().trim().to_owned();
    let run = update(sandbox, &["disk.bmap", "--image", &device]);
    tools::run("losetup", ["-d", &device]);
    run.assert_fails(&["mapping again: ", &device, "may have changed"]);
}

#[test]
fn what_is_not_there_is_said() {
    let sandbox = sandbox();
    fs::remove_file(sandbox.cwd().join("disk.raw")).unwrap();
    let run = assert_refuses(sandbox, &["disk.bmap"], &["disk 1 of the map", "--image", "disk.raw"]);
    let two = ["disk.bmap", "--image", "a", "--image", "b"];
    let run = assert_refuses(run.sandbox, &two, &["has 1 disks", "--image names 2"]);
    let run = assert_refuses(run.sandbox, &["none.bmap"], &["none.bmap: could not be opened"]);
    assert_refuses(run.sandbox, &["-"], &["the map must be a file"]);
}

#[test]
fn a_guest_cannot_choose_its_format() {
    needs!("qemu-img");
    let sandbox = sandbox();
    let cwd = sandbox.cwd();
    fs::remove_file(cwd.join("disk.raw")).unwrap();
    let mut create = tools::command("qemu-img");
    tools::output(create.args(["create", "-q", "-f", "qcow2", "disk.raw", "8M"]).current_dir(&cwd));
    let words = ["disk.raw: the format was raw", "qcow2 is detected now", "--image-format"];
    let run = assert_refuses(sandbox, &["disk.bmap"], &words);
    let stated = ["disk.bmap", "--image-format", "qcow2"];
    assert_maps_again(run.sandbox, &stated, &["disk.raw"]);
}

#[test]
fn maps_that_name_no_image_are_refused() {
    let refused = |name: &str, text: &str, words: &[&str]| {
        let sandbox = sandbox();
        fs::write(sandbox.cwd().join(name), text).unwrap();
        let run = assert_refuses(sandbox, &[name], words);
        assert_eq!(run.read(name), text.as_bytes());
    };
    let advice = "virt-bmap-rs IMAGE... -o NEW";
    refused("old.bmap", MAP, &["old.bmap: the map does not name its images", advice, "diff old.bmap NEW"]);
    let xml = "<?xml version=\"1.0\" ?>\n<bmap version=\"2.0\">\n<ImageSize> 8388608 </ImageSize></bmap>\n";
    refused("tools.bmap", xml, &["bmap-tools"]);

    let run = sandbox().run(["convert", "disk.bmap", "disk.csv"]);
    let run = assert_refuses(run.sandbox, &["disk.csv"], &["does not name its images", advice]);
    let run = run.sandbox.run(["convert", "disk.bmap", "disk.xml"]);
    assert_refuses(run.sandbox, &["disk.xml"], &["DFXML", "cannot be read back"]);
}

#[test]
fn outputs_take_nothing_away() {
    let run = assert_refuses(sandbox(), &["disk.bmap", "-o", "disk.raw"], &["overwrite an image"]);
    let run = assert_refuses(run.sandbox, &["disk.bmap", "-o", "-"], &["standard output", "-o"]);
    update(run.sandbox, &["disk.bmap", "--again", "-o", "no/such/map"]).assert_fails(&["no/such/map"]);
}

#[test]
fn a_rich_map_does_not_become_a_poor_one() {
    let sandbox = sandbox();
    let cwd = sandbox.cwd();
    let run = sandbox.run(["convert", "disk.bmap", "disk.jsonl"]);
    let rich = String::from_utf8(run.read("disk.jsonl")).unwrap();
    let object = "\"type\":\"f\",";
    assert!(rich.contains(object), "{rich}");
    fs::write(cwd.join("rich"), rich.replacen(object, "\"type\":\"f\",\"inode\":12,", 1)).unwrap();
    let run = assert_refuses(run.sandbox, &["rich"], &["rich: this map holds attributes", ".jsonl"]);
    fs::rename(cwd.join("rich"), cwd.join("rich.jsonl")).unwrap();
    let run = update(run.sandbox, &["rich.jsonl"]);
    run.assert_code(0);
    assert_eq!(run.stdout, b"unchanged\n");
}

#[test]
fn metadata_is_taken_from_the_map() {
    let sandbox = sandbox();
    let text = fs::read_to_string(sandbox.cwd().join("disk.bmap")).unwrap();
    let with = text.replace("1 203000 400000 p", "1 203000 400000 m /dev/sda1 (journal)\n1 203000 400000 p");
    fs::write(sandbox.cwd().join("disk.bmap"), with).unwrap();
    let run = assert_unchanged(sandbox, &["disk.bmap", "--metadata"]);
    let run = update(run.sandbox, &["disk.bmap", "--probe", "guestfsd"]);
    run.assert_code(2).assert_says(&["--metadata cannot be used"]);
}

#[test]
fn who_knows_what_was_written_is_asked() {
    needs!("qemu-img", "qemu-io", "nbdinfo");
    let sandbox = sandbox();
    let cwd = sandbox.cwd();
    let qemu_img = |args: &[&str]| tools::output(tools::command("qemu-img").args(args).current_dir(&cwd));
    let write = |image: &str| {
        let mut qemu_io = tools::command("qemu-io");
        tools::output(qemu_io.args(["-c", "write -P 7 2M 512", image]).current_dir(&cwd));
    };
    // `image:` names a copy of the disk. What counts is whether the bytes differ, not when somebody
    // wrote.
    fs::copy(cwd.join("disk.raw"), cwd.join("old.raw")).unwrap();
    touch(&cwd.join("disk.raw"));
    let run = assert_unchanged(sandbox, &["disk.bmap", "--since", "image:old.raw"]);
    write("disk.raw");
    let words = ["512 B were written since"];
    let run = assert_maps_again(run.sandbox, &["disk.bmap", "--since", "image:old.raw"], &words);

    qemu_img(&["convert", "-O", "qcow2", "disk.raw", "disk.qcow2"]);
    qemu_img(&["bitmap", "--add", "disk.qcow2", "monday"]);
    qemu_img(&["snapshot", "-c", "then", "disk.qcow2"]);
    write_map(&cwd, &format!("# disk 1 size={SIZE} format=qcow2 name=disk.qcow2\n"));
    touch(&cwd.join("disk.qcow2"));
    let mut run = assert_maps_again(run.sandbox, &["disk.bmap"], &["disk.qcow2 was changed after"]);
    for since in ["bitmap:monday", "snapshot:then"] {
        run = assert_unchanged(run.sandbox, &["disk.bmap", "--since", since]);
    }
    let mut qemu_io = tools::command("qemu-io");
    tools::output(qemu_io.args(["-c", "write -P 9 4M 512", "disk.qcow2"]).current_dir(&cwd));
    // The map is newer than the image, but the bitmap and the snapshot still show the write.
    write_map(&cwd, &format!("# disk 1 size={SIZE} format=qcow2 name=disk.qcow2\n"));
    // A bitmap knows the written bytes only in units of its granularity.
    for (since, words) in [("bitmap:monday", "64 KiB were"), ("snapshot:then", "512 B were")] {
        run = assert_maps_again(run.sandbox, &["disk.bmap", "--since", since], &[words]);
    }

    // An overlay holds what was written since. But its chain differs from that in the map.
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", "top.qcow2"]);
    let top = ["disk.bmap", "--image", "top.qcow2", "--since", "image:disk.qcow2"];
    run = assert_maps_again(run.sandbox, &top, &["top.qcow2: the format or the backing files"]);

    for (since, words) in
        [("bitmap:tuesday", "tuesday"), ("snapshot:never", "never"), ("image:none.raw", "none.raw")]
    {
        run = assert_refuses(run.sandbox, &["disk.bmap", "--since", since], &[words]);
    }
    let twice = ["disk.bmap", "--since", "bitmap:monday", "--since", "bitmap:monday"];
    run = assert_refuses(run.sandbox, &twice, &["2 times for 1 disks"]);
    let run = update(run.sandbox, &["disk.bmap", "--since", "monday"]);
    run.assert_code(2).assert_says(&["bitmap:NAME, snapshot:NAME, image:PATH or checkpoint:NAME"]);
}
