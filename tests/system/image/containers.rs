//! Disks that are not in an image of their own. Other programs make them from a raw disk, and the
//! bytes must be those of that disk.

use super::support::{DISK, Images, as_ordinary_user, cat_image, complaint, open, read_whole, wait_until};
use std::fs::{self, File, Permissions};
use std::ops::ControlFlow;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use virt_bmap_image::{
    Access, FileRole, ImageFormat, OpenError, OpenOptions, OvaError, UnpackObserver, Unpacking, WritableRaw,
};
use virt_bmap_ranges::DiskRange;
use virt_bmap_testutil::tools::{copy_program, needs};

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

/// How many files without a name this process has open where images are unpacked.
fn unnamed_files() -> usize {
    let directory = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let is_unnamed = |target: PathBuf| {
        target.parent() == Some(&directory) && target.to_string_lossy().ends_with(" (deleted)")
    };
    let open = fs::read_dir("/proc/self/fd").unwrap().map_while(Result::ok);
    open.filter(|file| fs::read_link(file.path()).is_ok_and(is_unnamed)).count()
}

#[test]
fn compressed_images_are_unpacked_once() {
    needs!("qemu-img", "gzip", "xz", "zstd", "bzip2");
    let images = Images::new();
    for (program, suffix) in [("gzip", "gz"), ("xz", "xz"), ("zstd", "zst"), ("bzip2", "bz2")] {
        images.run(program, &["-k", "-q", "base.raw"]);
        // The content decides, not the name.
        let name = format!("{program}.img");
        fs::rename(images.path(&format!("base.raw.{suffix}")), images.path(&name)).unwrap();
        same_as_base(&images, &name, None, ImageFormat::Raw);
        let image = open(&images.path(&name), None).unwrap();
        assert_eq!(image.files().unwrap(), [images.path(&name)]);
        let holes = image.source.allocation(DiskRange::new(2 << 20, 5 << 20)).unwrap();
        assert!(holes.iter().all(|part| part.is_hole), "{program}: {holes:?}");
    }
    // Several members, and several blocks.
    images.run("sh", &["-c", "split -b 5M base.raw part && for p in parta?; do gzip -c $p; done > many.gz"]);
    images.run("sh", &["-c", "xz --block-size=1MiB -c base.raw > blocks.xz"]);
    for name in ["many.gz", "blocks.xz"] {
        same_as_base(&images, name, None, ImageFormat::Raw);
    }
    // The format inside is detected.
    for (name, driver, options) in [
        ("a.qcow2", "qcow2", &[][..]),
        ("b.vmdk", "vmdk", &["-o", "subformat=streamOptimized"]),
        ("c.vhd", "vpc", &["-o", "subformat=fixed,force_size=on"]),
    ] {
        images.convert(name, driver, options);
        images.run("gzip", &[name]);
        same_as_base(&images, &format!("{name}.gz"), None, driver.parse().unwrap());
    }
    wait_until("all unnamed files are closed", || unnamed_files() == 0);
    // Compressed data is still a disk, if the user says so.
    assert!(open(&images.path("gzip.img"), Some(ImageFormat::Raw)).unwrap().source.size() < DISK);
}

#[test]
fn compressed_images_that_are_no_disk_are_refused() {
    needs!("qemu-img", "gzip", "xz", "tar", "truncate");
    let images = Images::new();
    images.run("sh", &["-c", "truncate -s 64M zeroes && gzip -c zeroes > bomb.gz && rm zeroes"]);
    images.overlay("over.qcow2", "qcow2", "base.raw", "raw");
    images.run("sh", &["-c", "gzip -k base.raw over.qcow2 && gzip -c base.raw.gz > twice.gz"]);
    images.run("sh", &["-c", "head -c 100000 base.raw.gz > cut.gz && : | gzip > empty.gz"]);
    images.run("sh", &["-c", "head -c 100000 base.raw.gz > bent.gz && head -c 900000 /dev/zero >> bent.gz"]);
    images.run("sh", &["-c", "tar cz base.raw > disk.tar.gz && gzip -c base.raw > base.vmdk.gz"]);
    let limited = |limit| {
        let access = Access { unpack_limit: Some(limit), ..Access::default() };
        let options = OpenOptions { access, ..OpenOptions::default() };
        virt_bmap_image::open(&images.path("bomb.gz").into(), &options)
    };
    assert!(matches!(limited((64 << 20) - 1), Err(OpenError::UnpackLimit { limit: 0x03ff_ffff, .. })));
    assert_eq!(limited(64 << 20).unwrap().source.size(), 64 << 20);
    for (name, is_right) in [
        ("over.qcow2.gz", (|error| matches!(error, OpenError::NotAlone { .. })) as fn(&OpenError) -> bool),
        ("twice.gz", |error| matches!(error, OpenError::Foreign { kind: "compressed by gzip", .. })),
        ("disk.tar.gz", |error| matches!(error, OpenError::Foreign { .. })),
        ("cut.gz", |error| matches!(error, OpenError::NotUnpacked { program: "gzip", .. })),
        ("bent.gz", |error| matches!(error, OpenError::NotUnpacked { program: "gzip", .. })),
        ("empty.gz", |error| matches!(error, OpenError::Empty { .. })),
        ("base.vmdk.gz", |error| matches!(error, OpenError::NotAsNamed { .. })),
    ] {
        let error = images.refuse(name, None);
        assert!(is_right(&error), "{name}: {error:?}");
    }
    // Stopped by the user.
    let seen = Arc::new(AtomicBool::new(false));
    let stop = UnpackObserver(Arc::new({
        let seen = seen.clone();
        move |unpacking: Unpacking<'_>| {
            assert!(unpacking.read > 0 && unpacking.read <= unpacking.size);
            seen.store(true, Ordering::Relaxed);
            ControlFlow::Break(())
        }
    }));
    let access = Access { unpacking: Some(stop), ..Access::default() };
    let options = OpenOptions { access, ..OpenOptions::default() };
    let stopped = virt_bmap_image::open(&images.path("bomb.gz").into(), &options);
    assert!(matches!(stopped, Err(OpenError::Interrupted { .. })) && seen.load(Ordering::Relaxed));
}

/// Root's own files are nothing to the child, and neither a directory without room nor a program
/// that is not there is a crash.
#[test]
fn what_unpacking_needs_is_named() {
    needs!("xz", "setpriv");
    let images = Images::new();
    images.run("xz", &["base.raw"]);
    fs::set_permissions(images.path("."), Permissions::from_mode(0o755)).unwrap();
    let program = images.path("cat_image");
    copy_program(&cat_image(), &program);
    let image = images.path("base.raw.xz");
    let said = complaint(Command::new(&program).arg(&image).env("TMPDIR", images.path("none")));
    assert!(said.contains("name another directory in the variable TMPDIR"), "{said}");
    let said = complaint(Command::new(&program).arg(&image).env("PATH", images.path("")));
    assert!(said.contains("xz cannot be run") && said.contains("apt install xz-utils"), "{said}");
    let before = images.checksums();
    fs::set_permissions(&image, Permissions::from_mode(0o644)).unwrap();
    for mut command in [as_ordinary_user(program.as_os_str()), Command::new(&program)] {
        let output = command.arg(&image).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout.len() as u64, DISK);
        fs::set_permissions(&image, Permissions::from_mode(0o600)).unwrap();
    }
    assert_eq!(images.checksums(), before);
}
