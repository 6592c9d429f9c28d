//! The map of a disk is the same for every image format, except for its header.

use std::fs;
use std::path::{Path, PathBuf};
use virt_bmap_testutil::fixture;
use virt_bmap_testutil::formats;
use virt_bmap_testutil::mapping;
use virt_bmap_testutil::sandbox::{self, Finished, Sandbox};
use virt_bmap_testutil::textmap::{TextMap, body};
use virt_bmap_testutil::tools::{self, needs};

/// Maps `image`, which holds the small guest, and compares the map with that of the raw image.
/// `files` are all files of the image. Returns the run.
fn same_as_raw(image: &Path, files: &[PathBuf], options: &[&str]) -> Finished {
    let raw = mapping::of(&[fixture::small()], &[]);
    let seal = sandbox::sealed(files);
    let args = [image.as_os_str()].into_iter().chain(options.iter().map(std::ffi::OsStr::new));
    let run = sandbox::run(args.chain(["-o".as_ref(), "out.bmap".as_ref()]));
    run.assert_code(0);
    drop(seal);
    let map = run.read("out.bmap");
    assert!(
        body(&map) == body(&raw.text),
        "not the raw image's map: {}",
        first_difference(body(&map), body(&raw.text))
    );
    run
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

/// Converts the small guest and compares the maps.
fn converted(format: &str, options: &str) -> Finished {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join(format!("guest.{format}"));
    formats::convert(&fixture::small().image, &image, format, options);
    let files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
    let run = same_as_raw(&image, &files, &[]);
    // The header says which image was mapped.
    let header = TextMap::parse(&run.read("out.bmap")).header.join("\n");
    assert!(header.contains(image.to_str().unwrap()) || header.contains("guest."), "{header}");
    assert!(header.contains(format), "{header}");
    run
}

macro_rules! formats {
    ($($name:ident: $format:literal $options:literal;)+) => {
        $(
            #[test]
            fn $name() {
                needs!("guestfish", "sfdisk", "qemu-img");
                converted($format, $options);
            }
        )+
    };
}

formats! {
    vmdk_monolithic_sparse: "vmdk" "subformat=monolithicSparse";
    vmdk_monolithic_flat: "vmdk" "subformat=monolithicFlat";
    vmdk_two_gb_max_extent_sparse: "vmdk" "subformat=twoGbMaxExtentSparse";
    vmdk_two_gb_max_extent_flat: "vmdk" "subformat=twoGbMaxExtentFlat";
    vmdk_stream_optimized: "vmdk" "subformat=streamOptimized";
    qcow2: "qcow2" "";
    vdi: "vdi" "";
    vpc: "vpc" "force_size=on";
    vhdx: "vhdx" "";
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
fn vmdk_chain_of_three_in_other_directories() {
    needs!("guestfish", "sfdisk", "qemu-img", "qemu-io");
    let dir = tempfile::tempdir().unwrap();
    let images = formats::chain(&fixture::small().image, dir.path(), "vmdk");
    let run = same_as_raw(images.last().unwrap(), &images, &[]);
    let header = TextMap::parse(&run.read("out.bmap")).header.join("\n");
    for parent in ["base/disk.vmdk", "middle/disk.vmdk"] {
        assert!(header.contains(parent), "the chain is not in the header:\n{header}");
    }
}

#[test]
fn qcow2_chain_of_three_in_other_directories() {
    needs!("guestfish", "sfdisk", "qemu-img", "qemu-io");
    let dir = tempfile::tempdir().unwrap();
    let images = formats::chain(&fixture::small().image, dir.path(), "qcow2");
    same_as_raw(images.last().unwrap(), &images, &[]);
}

#[test]
fn a_stated_format_is_taken() {
    needs!("guestfish", "sfdisk", "qemu-img");
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    formats::convert(&fixture::small().image, &image, "qcow2", "");
    same_as_raw(&image, std::slice::from_ref(&image), &["--format", "qcow2"]);
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
    same_as_raw(device.0.as_ref(), std::slice::from_ref(&small.image), &[]);
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
