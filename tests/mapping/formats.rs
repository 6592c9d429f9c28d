//! The map of a disk is the same for every image format, except for its header.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use virt_bmap_testutil::fixture;
use virt_bmap_testutil::formats;
use virt_bmap_testutil::mapping;
use virt_bmap_testutil::sandbox::{self, Sandbox};
use virt_bmap_testutil::textmap::{TextMap, body};
use virt_bmap_testutil::tools::{self, needs};

/// Maps `image`, which holds the small guest, and compares the map with that of the raw image.
/// `files` are all files of the image.
fn same_as_raw(image: &Path, files: &[PathBuf]) {
    let raw = mapping::of(&[fixture::small()], &[]);
    let seal = sandbox::sealed(files);
    let run = sandbox::run([image.as_os_str(), "-o".as_ref(), "out.bmap".as_ref()]);
    run.assert_code(0);
    drop(seal);
    let map = run.read("out.bmap");
    assert!(
        body(&map) == body(&raw.text),
        "not the raw image's map: {}",
        first_difference(body(&map), body(&raw.text))
    );
}

fn first_difference(a: &[u8], b: &[u8]) -> String {
    let (mut a, mut b) = (a.split(|&c| c == b'\n'), b.split(|&c| c == b'\n'));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return "none".into(),
            (x, y) if x == y => (),
            (x, y) => {
                let show = |line: Option<&[u8]>| line.map(|l| String::from_utf8_lossy(l).into_owned());
                return format!("{:?} against {:?}", show(x), show(y));
            }
        }
    }
}

/// Formats, and options for the conversion.
const FORMATS: [(&str, &str); 9] = [
    ("vmdk", "subformat=monolithicSparse"),
    ("vmdk", "subformat=monolithicFlat"),
    ("vmdk", "subformat=twoGbMaxExtentSparse"),
    ("vmdk", "subformat=twoGbMaxExtentFlat"),
    ("vmdk", "subformat=streamOptimized"),
    ("qcow2", ""),
    ("vdi", ""),
    ("vpc", "force_size=on"),
    ("vhdx", ""),
];

/// All files below a directory.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// One guest has the small guest's disk again and again, each time in another format. So one
/// appliance is enough for all of them.
#[test]
fn the_map_is_that_of_the_raw_image_in_every_format() {
    needs!("guestfish", "sfdisk", "qemu-img", "qemu-io");
    let dir = tempfile::tempdir().unwrap();
    let directory = |name: &str| {
        let directory = dir.path().join(name);
        fs::create_dir(&directory).unwrap();
        directory
    };
    let raw = &fixture::small().image;
    let mut disks: Vec<(&str, PathBuf)> = Vec::new();
    for (number, (format, options)) in FORMATS.into_iter().enumerate() {
        let image = directory(&number.to_string()).join(format!("guest.{format}"));
        formats::convert(raw, &image, format, options);
        disks.push((format, image));
    }
    // Chains of three, in other directories.
    for format in ["vmdk", "qcow2"] {
        let chain = formats::chain(raw, &directory(&format!("chain-{format}")), format);
        disks.push((format, chain.last().unwrap().clone()));
    }
    // Its name says nothing, and its format is stated.
    let stated = dir.path().join("disk");
    formats::convert(raw, &stated, "qcow2", "");
    disks.push(("qcow2", stated));

    let files = files_below(dir.path());
    let seal = sandbox::sealed(&files);
    let mut args: Vec<&OsStr> = disks.iter().map(|(_, image)| image.as_os_str()).collect();
    args.splice(args.len() - 1..args.len() - 1, ["--format=".as_ref(), "--format=qcow2".as_ref()]);
    args.extend(["-o", "out.bmap"].map(OsStr::new));
    let run = sandbox::run(args);
    run.assert_code(0);
    drop(seal);

    let alone = mapping::of(&[fixture::small()], &[]);
    let alone = String::from_utf8(body(&alone.text).to_vec()).unwrap();
    let of_disk = |number: usize| {
        let letter = char::from(b'a' + u8::try_from(number - 1).unwrap());
        let lines = alone.lines().map(move |line| {
            let line = line.strip_prefix("1 ").unwrap().replacen("/dev/sda", &format!("/dev/sd{letter}"), 1);
            format!("{number} {line}\n")
        });
        lines.collect::<String>()
    };
    let wanted: String = (1..=disks.len()).map(of_disk).collect();
    let map = run.read("out.bmap");
    assert!(
        body(&map) == wanted.as_bytes(),
        "not the raw image's map: {}",
        first_difference(body(&map), wanted.as_bytes())
    );
    // The header says which images were mapped.
    let header = TextMap::parse(&map).header;
    for (number, (format, image)) in (1..).zip(&disks) {
        let line = header.iter().find(|line| line.starts_with(&format!(" disk {number} "))).unwrap();
        let (format, name) = (format!(" format={format} "), format!("name={}", image.display()));
        assert!(line.contains(&format) && line.ends_with(&name), "{line}");
    }
    for parent in ["base/disk.vmdk", "middle/disk.vmdk"] {
        assert!(
            header.iter().any(|line| line.ends_with(parent)),
            "the chain is not in the header: {header:?}"
        );
    }
}

#[test]
fn vpc_rounds_its_size_up() {
    needs!("guestfish", "sfdisk", "qemu-img");
    // Without `force_size` a VHD holds whole cylinders only, so that the disk may be larger than
    // the raw image. Then only the end of the whole disk differs.
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("guest.vhd");
    let raw = fixture::small();
    formats::convert(&raw.image, &image, "vpc", "");
    let run = sandbox::run([image.as_os_str(), "-o".as_ref(), "out.bmap".as_ref()]);
    run.assert_code(0);
    let (ours, theirs) = (TextMap::parse(&run.read("out.bmap")), mapping::of(&[raw], &[]).map);
    for kind in ['d', 'f'] {
        assert_eq!(ours.paths(1, kind, "/dev/sda1"), theirs.paths(1, kind, "/dev/sda1"));
    }
    assert_eq!(ours.devices(1, 'p'), theirs.devices(1, 'p'));
    let end = ours.devices(1, 'v')["/dev/sda"].last().unwrap().end;
    assert!(end >= raw.size(), "{end:#x}");
}

#[test]
fn a_raw_image_of_odd_size_is_rounded_up() {
    needs!("guestfish", "sfdisk");
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("odd.raw");
    let raw = fixture::plain();
    formats::copy(&raw.image, &image);
    let file = fs::File::options().append(true).open(&image).unwrap();
    std::io::Write::write_all(&mut &file, b"odd").unwrap();
    let seal = sandbox::sealed([&image]);
    let run = sandbox::run([image.as_os_str(), "-o".as_ref(), "out.bmap".as_ref()]);
    run.assert_code(0);
    drop(seal);
    let map = TextMap::parse(&run.read("out.bmap"));
    assert_eq!(map.devices(1, 'v')["/dev/sda"].last().unwrap().end, raw.size() + 512);
    let exact = mapping::of(&[raw], &[]).map;
    assert_eq!(map.paths(1, 'f', "/dev/sda"), exact.paths(1, 'f', "/dev/sda"));
}

#[test]
fn a_block_device_is_read_directly() {
    needs!("guestfish", "sfdisk", "losetup");
    if !tools::is_root("make a loop device") {
        return;
    }
    struct Loop(String);
    impl Drop for Loop {
        fn drop(&mut self) {
            tools::command("losetup").args(["-d", &self.0]).status().ok();
        }
    }
    let small = fixture::small();
    let args = ["--find".as_ref(), "--show".as_ref(), "--read-only".as_ref(), small.image.as_os_str()];
    let device = Loop(String::from_utf8(tools::run("losetup", args)).unwrap().trim().to_owned());
    same_as_raw(device.0.as_ref(), std::slice::from_ref(&small.image));
}

#[test]
fn the_map_is_named_after_the_image_and_written_here() {
    needs!("guestfish", "sfdisk", "qemu-img");
    let sandbox = Sandbox::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let image = elsewhere.path().join("guest.vmdk");
    formats::convert(&fixture::small().image, &image, "vmdk", "");
    let run = sandbox.run([&image]);
    run.assert_code(0);
    assert_eq!(run.files(), ["guest.bmap"]);
    assert!(body(&run.read("guest.bmap")) == body(&mapping::of(&[fixture::small()], &[]).text));
}

#[test]
fn a_dash_is_standard_output() {
    needs!("guestfish", "sfdisk");
    let small = fixture::small();
    let run = sandbox::run([small.image.as_os_str(), "-o".as_ref(), "-".as_ref(), "--quiet".as_ref()]);
    run.assert_code(0);
    assert!(run.stdout == mapping::of(&[small], &[]).text, "not the map that a file gets");
    assert_eq!(run.files(), [""; 0]);
    assert_eq!(run.stderr, "", "--quiet says something");
}

#[test]
fn add_is_another_way_to_name_an_image() {
    needs!("guestfish", "sfdisk");
    let small = fixture::small();
    let run = sandbox::run(["-a".as_ref(), small.image.as_os_str(), "-o".as_ref(), "out.bmap".as_ref()]);
    run.assert_code(0);
    assert!(run.read("out.bmap") == mapping::of(&[small], &[]).text);
}
