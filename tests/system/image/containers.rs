//! Disks that are not in an image of their own. Other programs make them from a raw disk, and the
//! bytes must be those of that disk.

use super::support::{DISK, Images, open, read_whole};
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use virt_bmap_image::{FileRole, ImageFormat, OpenError, OvaError, WritableRaw};
use virt_bmap_testutil::tools::needs;

/// Opens an image, compares it with `base.raw`, and checks that no file changed and none is left.
fn same_as_base(images: &Images, name: &str, stated: Option<ImageFormat>, format: ImageFormat) {
    let before = images.checksums();
    let image = open(&images.path(name), stated).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!((image.format, image.source.size()), (format, DISK), "{name}");
    assert!(image.warnings.is_empty(), "{name}: {:?}", image.warnings);
    assert!(read_whole(&*image.source) == fs::read(images.path("base.raw")).unwrap(), "{name}");
    let error = WritableRaw::open(image).unwrap_err();
    assert!(matches!(error, OpenError::NotWritable { .. }), "{name}: {error}");
    assert_eq!(images.checksums(), before, "{name}: a file was changed");
}

#[test]
fn segments_are_one_disk() {
    needs!("split");
    let images = Images::new();
    for first in ["0", "1"] {
        let prefix = format!("d{first}.dd.");
        let numbers = format!("--numeric-suffixes={first}");
        images.run("split", &["-a", "3", &numbers, "-b", "5000000", "base.raw", &prefix]);
        let name = format!("{prefix}00{first}");
        for stated in [None, Some(ImageFormat::Raw)] {
            same_as_base(&images, &name, stated, ImageFormat::Raw);
        }
        let files = open(&images.path(&name), None).unwrap().chain[0].held_in.clone();
        assert_eq!(files.len(), 3, "{files:?}");
    }
    // Through a link: the others are beside the file itself.
    fs::create_dir(images.path("links")).unwrap();
    symlink("../d1.dd.001", images.path("links/other.001")).unwrap();
    same_as_base(&images, "links/other.001", None, ImageFormat::Raw);
    // By another name, a segment is a disk of its own.
    symlink("d1.dd.002", images.path("alone.raw")).unwrap();
    assert_eq!(open(&images.path("alone.raw"), None).unwrap().source.size(), 5_000_192);
}

#[test]
fn segments_that_are_no_disk_are_refused() {
    needs!("split", "qemu-img");
    let images = Images::new();
    images.run("split", &["-a", "3", "--numeric-suffixes=1", "-b", "2M", "base.raw", "d."]);
    let size = |name: &str, size| File::options().write(true).open(images.path(name)).unwrap().set_len(size);
    match images.refuse("d.002", None) {
        OpenError::NotFirstSegment { first, .. } => assert_eq!(first, images.path("d.001")),
        other => panic!("{other:?}"),
    }
    // In the middle, one is shorter; then the last is longer.
    for (name, bad, good) in [("d.003", 2_000_000, 2 << 20), ("d.006", 3 << 20, 2 << 20)] {
        size(name, bad).unwrap();
        match images.refuse("d.001", None) {
            OpenError::SegmentSize { path, size, usual } => {
                assert_eq!((path, size, usual), (images.path(name), bad, 2 << 20));
            }
            other => panic!("{other:?}"),
        }
        size(name, good).unwrap();
    }
    fs::rename(images.path("d.004"), images.path("away")).unwrap();
    match images.refuse("d.001", None) {
        OpenError::NoSegment { path, later } => {
            assert_eq!((path, later), (images.path("d.004"), images.path("d.005")));
        }
        other => panic!("{other:?}"),
    }
    symlink("away", images.path("d.004")).unwrap();
    assert!(matches!(images.refuse("d.001", None), OpenError::NotAFile { .. }));
    fs::remove_file(images.path("d.001")).unwrap();
    assert!(matches!(images.refuse("d.002", None), OpenError::NotFirstSegment { .. }));
    images.convert("q.001", "qcow2", &[]);
    images.write("q.002", vec![1; 512]);
    let error = images.refuse("q.001", None);
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
}

/// The description of an appliance with these files, which are its disks.
fn description(files: &[&str]) -> String {
    let (mut references, mut disks) = (String::new(), String::new());
    for (number, name) in files.iter().enumerate() {
        references += &format!("<File ovf:id=\"f{number}\" ovf:href=\"{name}\"/>");
        disks += &format!("<Disk ovf:diskId=\"d{number}\" ovf:fileRef=\"f{number}\"/>");
    }
    format!(
        "<?xml version=\"1.0\"?><Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" \
         xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\"><References>{references}</References>\
         <DiskSection><Info/>{disks}</DiskSection><VirtualSystem ovf:id=\"vm\"><Info/></VirtualSystem></Envelope>"
    )
}

fn disks(images: &Images, name: &str) -> Result<Vec<PathBuf>, OpenError> {
    let disks = virt_bmap_image::disks(&images.path(name).into(), None)?;
    Ok(disks.iter().map(|disk| disk.file().unwrap().to_owned()).collect())
}

#[test]
fn disks_of_an_appliance_are_read_in_place() {
    needs!("qemu-img", "tar");
    let images = Images::new();
    images.convert("a.vmdk", "vmdk", &["-o", "subformat=streamOptimized"]);
    images.convert("b.vmdk", "vmdk", &[]);
    images.convert("c.qcow2", "qcow2", &[]);
    images.convert("d.vhd", "vpc", &["-o", "subformat=fixed,force_size=on"]);
    let long = format!("{}.raw", "e".repeat(150));
    fs::copy(images.path("base.raw"), images.path(&long)).unwrap();
    // The order in the archive is another one.
    let all = ["c.qcow2", "a.vmdk", &long, "b.vmdk", "d.vhd"];
    images.write("vm.ovf", description(&all));
    for format in ["ustar", "gnu", "pax"] {
        let members = if format == "ustar" { &all[..2] } else { &all[..] };
        images.write("vm.ovf", description(members));
        let archive = format!("{format}.ova");
        images.run(
            "tar",
            &[&["--format", format, "-cf", &archive, "vm.ovf"][..], &{
                let mut sorted = members.to_vec();
                sorted.sort_unstable();
                sorted
            }]
            .concat(),
        );
        let wanted: Vec<_> = members.iter().map(|name| images.path(&archive).join(name)).collect();
        assert_eq!(disks(&images, &archive).unwrap(), wanted);
        for (name, driver) in all.iter().zip(["qcow2", "vmdk", "raw", "vmdk", "vpc"]).take(members.len()) {
            same_as_base(&images, &format!("{archive}/{name}"), None, driver.parse().unwrap());
        }
        match images.refuse(&archive, None) {
            OpenError::SeveralDisks { count, .. } => assert_eq!(count, members.len()),
            other => panic!("{other:?}"),
        }
    }
    images.write("one.ovf", description(&["a.vmdk"]));
    images.run("tar", &["-cf", "one.ova", "one.ovf", "a.vmdk"]);
    same_as_base(&images, "one.ova", None, ImageFormat::Vmdk);
    let one = open(&images.path("one.ova"), None).unwrap();
    assert_eq!(one.files().unwrap(), [images.path("one.ova")]);
}

#[test]
fn appliances_that_are_not_whole_or_refer_to_files_are_refused() {
    needs!("qemu-img", "tar", "gzip");
    let images = Images::new();
    images.convert("a.vmdk", "vmdk", &["-o", "subformat=streamOptimized"]);
    images.convert("flat.vmdk", "vmdk", &["-o", "subformat=monolithicFlat"]);
    images.overlay("over.qcow2", "qcow2", "base.raw", "raw");
    images.run("gzip", &["-k", "a.vmdk"]);
    for (name, others) in [
        ("flat.vmdk", &["flat-flat.vmdk"][..]),
        ("over.qcow2", &["base.raw"]),
        ("a.vmdk.gz", &[]),
        ("away/a.vmdk", &[]),
    ] {
        images.write("vm.ovf", description(&[name]));
        let there = if name.starts_with("away") { "base.raw" } else { name };
        images.run("tar", &[&["-cf", "bad.ova", "vm.ovf", there][..], others].concat());
        match (name, images.refuse("bad.ova", None)) {
            ("flat.vmdk", OpenError::NotAlone { role: FileRole::Extent, .. }) => {}
            ("over.qcow2", OpenError::NotAlone { role: FileRole::Backing, .. }) => {}
            ("a.vmdk.gz", OpenError::Foreign { .. }) => {}
            ("away/a.vmdk", OpenError::Ova { reason: OvaError::Missing { .. }, .. }) => {}
            (_, other) => panic!("{name}: {other:?}"),
        }
        let stated = images.path("bad.ova").join(name);
        assert!(open(&stated, Some(ImageFormat::Qcow2)).is_err());
    }
    images.write("vm.ovf", description(&["a.vmdk"]));
    images.run("tar", &["-cf", "cut.ova", "vm.ovf", "a.vmdk"]);
    File::options().write(true).open(images.path("cut.ova")).unwrap().set_len(100_000).unwrap();
    match images.refuse("cut.ova", None) {
        OpenError::Ova { reason: OvaError::Truncated { .. }, .. } => {}
        other => panic!("{other:?}"),
    }
    // Any other archive, and one of two guests.
    images.run("tar", &["-cf", "plain.tar", "base.raw"]);
    assert!(matches!(images.refuse("plain.tar", None), OpenError::Ova { .. }));
    images.write("vm.ovf", description(&["a.vmdk"]).replace("</Envelope>", "<VirtualSystem/></Envelope>"));
    images.run("tar", &["-cf", "two.ova", "vm.ovf", "a.vmdk"]);
    assert!(matches!(disks(&images, "two.ova"), Err(OpenError::SeveralGuests { count: 2, .. })));
    same_as_base(&images, "two.ova/a.vmdk", None, ImageFormat::Vmdk);
    // The archive as a disk, if the user says so.
    assert_eq!(open(&images.path("two.ova"), Some(ImageFormat::Raw)).unwrap().format, ImageFormat::Raw);
}
