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
    needs!("guestfish", "sfdisk", "qemu-img", "qemu-io", "losetup");
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
    // A block device is read directly.
    let device = tools::is_root("make a loop device").then(|| Loop::of(raw));
    disks.splice(0..0, device.iter().map(|device| ("raw", PathBuf::from(&device.0))));

    let files = files_below(dir.path());
    let seal = sandbox::sealed(files.iter().chain([raw]));
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

/// A read-only loop device, which is removed when the value is dropped.
struct Loop(String);

impl Loop {
    fn of(image: &Path) -> Self {
        let args = ["--find".as_ref(), "--show".as_ref(), "--read-only".as_ref(), image.as_os_str()];
        Self(String::from_utf8(tools::run("losetup", args)).unwrap().trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        tools::command("losetup").args(["-d", &self.0]).status().ok();
    }
}

/// Without `force_size` a VHD holds whole cylinders only, so that the disk may be larger than the
/// raw image. A raw image need not be a whole number of sectors. Only the end of the whole disk
/// differs then.
#[test]
fn sizes_are_rounded_up() {
    needs!("guestfish", "sfdisk", "qemu-img");
    let dir = tempfile::tempdir().unwrap();
    let [vhd, odd] = ["guest.vhd", "odd.raw"].map(|name| dir.path().join(name));
    let (small, plain) = (fixture::small(), fixture::plain());
    formats::convert(&small.image, &vhd, "vpc", "");
    formats::copy(&plain.image, &odd);
    let file = fs::File::options().append(true).open(&odd).unwrap();
    std::io::Write::write_all(&mut &file, b"odd").unwrap();
    let seal = sandbox::sealed([&vhd, &odd]);
    let run = sandbox::run([vhd.as_os_str(), odd.as_os_str(), "-o".as_ref(), "out.bmap".as_ref()]);
    run.assert_code(0);
    drop(seal);
    let (ours, theirs) = (TextMap::parse(&run.read("out.bmap")), mapping::of(&[small, plain], &[]).map);
    for kind in ['d', 'f'] {
        assert_eq!(ours.paths(1, kind, "/dev/sda1"), theirs.paths(1, kind, "/dev/sda1"));
        assert_eq!(ours.paths(2, kind, "/dev/sdb"), theirs.paths(2, kind, "/dev/sdb"));
    }
    assert!(!ours.paths(1, 'f', "/dev/sda1").is_empty() && !ours.paths(2, 'f', "/dev/sdb").is_empty());
    assert_eq!(ours.devices(1, 'p'), theirs.devices(1, 'p'));
    let end = |number, device: &str| ours.devices(number, 'v')[device].last().unwrap().end;
    assert!(end(1, "/dev/sda") >= small.size(), "{:#x}", end(1, "/dev/sda"));
    assert_eq!(end(2, "/dev/sdb"), plain.size() + 512);
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
fn a_dash_is_standard_output_and_add_names_an_image() {
    needs!("guestfish", "sfdisk");
    let small = fixture::small();
    let words = ["-a".as_ref(), small.image.as_os_str(), "-o".as_ref(), "-".as_ref(), "--quiet".as_ref()];
    let run = sandbox::run(words);
    run.assert_code(0);
    assert!(run.stdout == mapping::of(&[small], &[]).text, "not the map that a file gets");
    assert_eq!(run.files(), [""; 0]);
    assert_eq!(run.stderr, "", "--quiet says something");
}
