//! Images that must be refused, each with one clear sentence.

use super::support::{
    DISK, Images, Running, Trap, as_ordinary_user, cat_image, complaint, have, hold, open, read_whole,
    wait_until,
};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::Command;
use virt_bmap_image::{self, Access, FileRole, ImageFormat, OpenError, OpenOptions, Warning};
use virt_bmap_testutil::tools::{copy_program, needs};

#[test]
fn what_is_no_image_file() {
    let images = Images::new();
    assert!(matches!(images.refuse("none.raw", None), OpenError::NotFound { .. }));
    assert!(matches!(images.refuse("base.raw/x", None), OpenError::NotFound { .. }));
    assert!(matches!(images.refuse(".", None), OpenError::Directory { .. }));
    images.write("empty.qcow2", "");
    for stated in [None, Some(ImageFormat::Raw), Some(ImageFormat::Qcow2)] {
        assert!(matches!(images.refuse("empty.qcow2", stated), OpenError::Empty { .. }));
    }
    images.run("mkfifo", &["pipe"]);
    assert!(matches!(images.refuse("pipe", None), OpenError::NotAFile { kind: "pipe", .. }));
    let _listener = UnixListener::bind(images.path("socket")).unwrap();
    assert!(matches!(images.refuse("socket", None), OpenError::NotAFile { kind: "socket", .. }));
    let device = open("/dev/null".as_ref(), None).unwrap_err();
    assert!(matches!(device, OpenError::NotAFile { kind: "character device", .. }), "{device}");
    symlink("loop", images.path("loop")).unwrap();
    assert!(matches!(images.refuse("loop", None), OpenError::Io { .. }));
}

#[test]
fn no_permission() {
    if !have(&["qemu-img", "setpriv"]) {
        return;
    }
    let images = Images::new();
    fs::set_permissions(images.path("."), Permissions::from_mode(0o755)).unwrap();
    let program = images.path("cat_image");
    copy_program(&cat_image(), &program);
    images.convert("secret.qcow2", "qcow2", &[]);
    images.overlay("top.qcow2", "qcow2", "secret.qcow2", "qcow2");
    fs::set_permissions(images.path("secret.qcow2"), Permissions::from_mode(0o000)).unwrap();
    for name in ["secret.qcow2", "top.qcow2"] {
        let said = complaint(as_ordinary_user(program.as_os_str()).arg(images.path(name)));
        assert!(said.contains("secret.qcow2\": permission denied; make it"), "{said}");
    }
    // An ordinary user can read an image if its permissions allow it.
    fs::set_permissions(images.path("secret.qcow2"), Permissions::from_mode(0o444)).unwrap();
    let output = as_ordinary_user(program.as_os_str()).arg(images.path("top.qcow2")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == images.oracle("top.qcow2", "qcow2"));
}

#[test]
fn a_program_of_qemu_is_not_installed() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    let bin = images.path("bin");
    fs::create_dir(&bin).unwrap();
    let image = images.convert("disk.qcow2", "qcow2", &[]);
    let run = || complaint(Command::new(cat_image()).arg(&image).env("PATH", &bin));
    let said = run();
    assert!(said.contains("qemu-img cannot be run") && said.contains("apt install qemu-utils"), "{said}");
    let found = Command::new("sh").args(["-c", "command -v qemu-img"]).output().unwrap().stdout;
    symlink(String::from_utf8(found).unwrap().trim(), bin.join("qemu-img")).unwrap();
    let said = run();
    assert!(said.contains("qemu-nbd cannot be run") && said.contains("apt install qemu-utils"), "{said}");
    // With `--format raw` neither program is needed.
    let raw = Command::new(cat_image())
        .args(["--format", "raw"])
        .arg(&image)
        .env("PATH", "/none")
        .output()
        .unwrap();
    assert!(raw.stdout == fs::read(&image).unwrap());
}

#[test]
fn a_missing_file_is_named() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let images = Images::new();
    images.convert("base.qcow2", "qcow2", &[]);
    images.overlay("mid.qcow2", "qcow2", "base.qcow2", "qcow2");
    images.overlay("top.qcow2", "qcow2", "mid.qcow2", "qcow2");
    fs::remove_file(images.path("base.qcow2")).unwrap();
    images.convert("base.vmdk", "vmdk", &[]);
    images.overlay("snap.vmdk", "vmdk", "base.vmdk", "vmdk");
    fs::remove_file(images.path("base.vmdk")).unwrap();
    images.convert("flat.vmdk", "vmdk", &["-o", "subformat=monolithicFlat"]);
    fs::remove_file(images.path("flat-flat.vmdk")).unwrap();
    for (name, format, missing, by, wanted) in [
        ("top.qcow2", ImageFormat::Qcow2, "base.qcow2", "mid.qcow2", FileRole::Backing),
        ("snap.vmdk", ImageFormat::Vmdk, "base.vmdk", "snap.vmdk", FileRole::Backing),
        ("flat.vmdk", ImageFormat::Vmdk, "flat-flat.vmdk", "flat.vmdk", FileRole::Extent),
    ] {
        for stated in [None, Some(format)] {
            match images.refuse(name, stated) {
                OpenError::Missing { path, referrer, role } => {
                    assert_eq!((path, referrer, role), (images.path(missing), images.path(by), wanted));
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}

#[test]
fn truncated_images() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    for (name, format, options) in [
        ("q.qcow2", ImageFormat::Qcow2, &[][..]),
        ("s.vmdk", ImageFormat::Vmdk, &[]),
        ("o.vmdk", ImageFormat::Vmdk, &["-o", "subformat=streamOptimized"]),
        ("d.vdi", ImageFormat::Vdi, &[]),
        ("h.vhdx", ImageFormat::Vhdx, &[]),
        ("p.vpc", ImageFormat::Vpc, &[]),
        ("e.qed", ImageFormat::Qed, &[]),
    ] {
        let path = images.convert(name, format.driver(), options);
        let whole = fs::read(path).unwrap();
        // The image is cut at several places from the header to the last clusters.
        for part in [1, 10, 40, 80] {
            let length = whole.len() * part / 100;
            images.write(name, &whole[..length]);
            for stated in [None, Some(format)] {
                let error = images.refuse(name, stated);
                let is_expected = matches!(error, OpenError::Corrupt { .. } | OpenError::Truncated { .. })
                    // Without its magic number the file is an image only by its name.
                    || matches!(error, OpenError::NotAsNamed { .. }) && stated.is_none();
                assert!(is_expected, "{name} cut to {length} bytes: {error:?}");
            }
        }
    }
}

#[test]
fn truncated_extents() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    for (kind, extent) in [
        ("monolithicFlat", "d-flat.vmdk"),
        ("twoGbMaxExtentFlat", "d-f001.vmdk"),
        ("twoGbMaxExtentSparse", "d-s001.vmdk"),
    ] {
        images.convert("d.vmdk", "vmdk", &["-o", &format!("subformat={kind}")]);
        let extent = File::options().write(true).open(images.path(extent)).unwrap();
        extent.set_len(extent.metadata().unwrap().len() / 2).unwrap();
        for stated in [None, Some(ImageFormat::Vmdk)] {
            let error = images.refuse("d.vmdk", stated);
            assert!(
                matches!(error, OpenError::Truncated { .. } | OpenError::Corrupt { .. }),
                "{kind}: {error:?}"
            );
        }
    }
}

#[test]
fn corrupt_images() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    // Offsets of fields that each format needs. The test damages one field at a time.
    for (name, format, offset) in [
        ("q.qcow2", ImageFormat::Qcow2, 4),
        ("q.qcow2", ImageFormat::Qcow2, 20),
        ("q.qcow2", ImageFormat::Qcow2, 24),
        ("q.qcow2", ImageFormat::Qcow2, 36),
        ("q.qcow2", ImageFormat::Qcow2, 48),
        ("q.qcow2", ImageFormat::Qcow2, 72),
        ("v.vmdk", ImageFormat::Vmdk, 4),
        ("v.vmdk", ImageFormat::Vmdk, 20),
        ("v.vmdk", ImageFormat::Vmdk, 44),
        ("v.vmdk", ImageFormat::Vmdk, 56),
        ("h.vhdx", ImageFormat::Vhdx, 65536),
    ] {
        images.convert(name, format.driver(), &[]);
        let file = File::options().write(true).open(images.path(name)).unwrap();
        let damage = if format == ImageFormat::Vhdx { vec![0xff; 2 << 20] } else { vec![0xf1; 8] };
        file.write_all_at(&damage, offset).unwrap();
        eprintln!("{name}, {} bytes at {offset}", damage.len());
        let error = images.refuse(name, None);
        let is_expected = matches!(error, OpenError::Corrupt { .. } | OpenError::Truncated { .. });
        assert!(is_expected, "{name} at {offset}: {error:?}");
    }
    images.write("magic.vmdk", vec![0xf1; 65536]);
    let error = images.refuse("magic.vmdk", None);
    assert!(matches!(error, OpenError::NotAsNamed { expected: ImageFormat::Vmdk, .. }), "{error:?}");
    assert!(matches!(images.refuse("magic.vmdk", Some(ImageFormat::Vmdk)), OpenError::Corrupt { .. }));
    assert!(open(&images.path("magic.vmdk"), Some(ImageFormat::Raw)).is_ok());
}

#[test]
fn an_image_that_is_in_use() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let images = Images::new();
    images.convert("base.qcow2", "qcow2", &[]);
    images.convert("flat.vmdk", "vmdk", &["-o", "subformat=monolithicFlat"]);
    images.overlay("over.qcow2", "qcow2", "base.qcow2", "qcow2");
    for (name, format) in [
        ("base.raw", ImageFormat::Raw),
        ("base.qcow2", ImageFormat::Qcow2),
        ("over.qcow2", ImageFormat::Qcow2),
        ("flat.vmdk", ImageFormat::Vmdk),
    ] {
        let wanted = images.oracle(name, format.driver());
        let path = images.path(name);
        let before = images.checksums();
        let machine = hold(&path, format.driver());
        for stated in [None, Some(format)] {
            let error = images.refuse(name, stated);
            assert!(matches!(error, OpenError::Locked { .. }), "{name}: {error:?}");
            assert!(error.to_string().contains("--force-share"), "{error}");
            let shared = virt_bmap_image::open(
                &path.clone().into(),
                &OpenOptions {
                    format: stated,
                    access: Access { force_share: true, ..Access::default() },
                    ..OpenOptions::default()
                },
            )
            .unwrap();
            assert_eq!(shared.warnings, [Warning::MayBeTorn { path: path.clone() }]);
            assert!(read_whole(&*shared.source) == wanted, "{name}");
        }
        drop(machine);
        // A program that uses an overlay still lets others read the file below it.
        open(&path, None).unwrap();
        assert_eq!(images.checksums(), before);
    }
    // The image below is in use.
    let _machine = hold(&images.path("base.qcow2"), "qcow2");
    match images.refuse("over.qcow2", None) {
        OpenError::Locked { path } => assert_eq!(path, images.path("base.qcow2")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nobody_may_write_to_an_image_while_it_is_read() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let images = Images::new();
    images.convert("disk.qcow2", "qcow2", &[]);
    // `qemu-io` locks a raw image as a machine does that does not share its disk.
    for (name, format) in [("base.raw", "raw"), ("disk.qcow2", "qcow2")] {
        let image = open(&images.path(name), None).unwrap();
        let write = ["-f", format, "-c", "write 0 512", name];
        let output = Command::new("qemu-io").args(write).current_dir(images.path(".")).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("lock"), "{name}: {said}");
        drop(image);
        images.run("qemu-io", &write);
    }
}

/// An image whose format was found and not stated must not refer to any of these. None of them is
/// opened.
#[test]
fn what_a_found_format_may_not_refer_to() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    let socket = images.path("trap");
    let trap = Trap::new(&socket);
    let trap_name = socket.to_str().unwrap();
    images.run("mkfifo", &["pipe"]);
    let references = [
        format!("nbd:unix:{trap_name}"),
        format!("nbd+unix:///?socket={trap_name}"),
        format!(r#"json:{{"driver":"nbd","server":{{"type":"unix","path":"{trap_name}"}}}}"#),
        r#"json:{"driver":"file","filename":"base.raw"}"#.to_owned(),
        "http://127.0.0.1:1/x".to_owned(),
        "ssh://127.0.0.1/x".to_owned(),
        "file:base.raw".to_owned(),
        "fd:3".to_owned(),
        "C:\\disks\\base.raw".to_owned(),
        "pipe".to_owned(),
        ".".to_owned(),
        trap_name.to_owned(),
        "/dev/zero".to_owned(),
    ];
    for reference in &references {
        for (name, format) in
            [("q.qcow2", ImageFormat::Qcow2), ("q.qed", ImageFormat::Qed), ("q.qcow", ImageFormat::Qcow)]
        {
            let option = format!("backing_file={}", reference.replace(',', ",,"));
            let mut arguments = vec!["create", "-q", "-u", "-f", format.driver(), "-o", &option];
            if format == ImageFormat::Qcow {
                arguments.extend(["-F", "raw"]);
            } else {
                arguments.extend(["-o", "backing_fmt=raw"]);
            }
            arguments.extend([name, "12M"]);
            images.qemu_img(&arguments);
            is_untrusted(&images, name, format, reference);
            // The bad image is the second link of a chain.
            let option = format!("backing_file={name},backing_fmt={format}");
            images.qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-o", &option, "above.qcow2", "12M"]);
            is_untrusted(&images, "above.qcow2", ImageFormat::Qcow2, reference);
        }
        let parent = reference.replace('"', "");
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=2\nparentFileNameHint=\"{parent}\"\n\
             RW 24576 FLAT \"base.raw\" 0\n"
        );
        images.write("parent.vmdk", text);
        is_untrusted(&images, "parent.vmdk", ImageFormat::Vmdk, &parent);
    }
    trap.assert_untouched();
}

/// If the user states the format, qemu follows whatever the image names.
#[test]
fn what_a_stated_format_may_refer_to() {
    if !have(&["qemu-img", "qemu-nbd"]) {
        return;
    }
    let images = Images::new();
    let base = images.path("base.raw");
    let base = base.to_str().unwrap();
    let socket = images.path("export");
    let export = Command::new("qemu-nbd")
        .args(["--read-only", "--persistent", "-f", "raw", "--socket"])
        .args([&socket, &images.path("base.raw")])
        .spawn()
        .unwrap();
    let _export = Running(export);
    wait_until("qemu-nbd listens", || socket.exists());
    for reference in [
        format!("file:{base}"),
        format!(r#"json:{{"driver":"raw","file":{{"driver":"file","filename":"{base}"}}}}"#),
        format!("nbd:unix:{}", socket.display()),
    ] {
        let option = format!("backing_file={},backing_fmt=raw", reference.replace(',', ",,"));
        images.qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-o", &option, "top.qcow2", "12M"]);
        let refused = open(&images.path("top.qcow2"), None).unwrap_err();
        assert!(matches!(refused, OpenError::Untrusted { .. }), "{refused:?}");
        let image = open(&images.path("top.qcow2"), Some(ImageFormat::Qcow2)).unwrap();
        assert!(read_whole(&*image.source) == fs::read(base).unwrap(), "{reference}");
        assert_eq!(image.chain[1].location.name().to_str(), Some(reference.as_str()));
        assert_eq!(image.chain[1].format, Some(ImageFormat::Raw));
    }
}

fn is_untrusted(images: &Images, name: &str, wanted: ImageFormat, reference: &str) {
    match images.refuse(name, None) {
        error @ OpenError::Untrusted { format, .. } => {
            let remedy = format!("--format {wanted}");
            assert_eq!(format, wanted);
            assert!(error.to_string().contains(&remedy), "{error}");
        }
        other => panic!("{name} with {reference}: {other:?}"),
    }
}

#[test]
fn extents_of_a_found_vmdk_stay_in_its_directory() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    fs::create_dir_all(images.path("d/sub")).unwrap();
    let outside = images.path("base.raw");
    let trap = Trap::new(&images.path("d/trap"));
    symlink(&outside, images.path("d/link.vmdk")).unwrap();
    fs::copy(&outside, images.path("d/sub/inside.vmdk")).unwrap();
    fs::copy(&outside, images.path("d/inside.vmdk")).unwrap();
    let sectors = DISK / 512;
    let describe = |extent: &str| {
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
             RW {sectors} FLAT \"{extent}\" 0\nddb.adapterType = \"ide\"\n"
        );
        images.write("d/disk.vmdk", text);
    };
    for extent in
        ["../base.raw", "sub/../../base.raw", "link.vmdk", "nbd:unix:trap", "trap", outside.to_str().unwrap()]
    {
        describe(extent);
        let error = images.refuse("d/disk.vmdk", None);
        assert!(matches!(error, OpenError::Untrusted { role: FileRole::Extent, .. }), "{extent}: {error:?}");
    }
    for extent in ["inside.vmdk", "./inside.vmdk", "sub/inside.vmdk"] {
        describe(extent);
        images.check("d/disk.vmdk", None, ImageFormat::Vmdk, 1);
    }
    // If the user states the format, the image is trusted.
    describe("../base.raw");
    images.check("d/disk.vmdk", Some(ImageFormat::Vmdk), ImageFormat::Vmdk, 1);
    trap.assert_untouched();
}

/// The descriptor may be written in unusual ways. We must find every extent that qemu finds.
#[test]
fn no_extent_that_qemu_finds_is_hidden_from_us() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    fs::rename(images.path("base.raw"), images.path("a")).unwrap();
    let heads = [
        "# Disk DescriptorFile\nversion=1\n",
        "#\n#\n#\nversion=3\n",
        "version=2\n",
        "# x\r\n  \r\nversion=1\r\n",
        "#\n \n   \nversion=1\n",
        "#\n\nversion=1\n",
        " version=1\n",
        "version=1",
        "version=4\n",
    ];
    let lines = [
        "RW 8 FLAT \"a\" 0",
        "RW 8 FLAT \"a\"0",
        "RW 8FLAT \"a\" 0",
        "RW 8FLAT\"a\" 0",
        "RW8 FLAT \"a\" 0",
        "RW\n8\nFLAT\n\"a\"\n0",
        "\t RW\x0b8\x0cFLAT\r\"a\" 0",
        "  \n RW +8 FLAT \"a\" 0",
        "RW 010 FLAT \"a\" 0",
        "RW 0x8 FLAT \"a\" 0",
        "RW 8 FLAT \"a 0",
        "RW 8 FLAT \"a\" x",
        "RW 8 FLAT \"a\" -1",
        "RW 8 FLAT a 0",
        "RW 8 flat \"a\" 0",
        "rw 8 FLAT \"a\" 0",
        "RDONLY 8 FLAT \"a\" 0",
        "x RW 8 FLAT \"a\" 0",
        "RW 8 VMFS \"a\"",
        "RW 8 ZERO",
        "RW 8 FLATFLATFLAT \"a\" 0",
        "x = \"\nRW 8 FLAT \"a\" 0",
        "# RW 8 FLAT \"a\" 0",
        "#\0\nRW 8 FLAT \"a\" 0",
    ];
    let mut found = 0;
    for (h, head) in heads.iter().enumerate() {
        for (l, line) in lines.iter().enumerate() {
            // Either the beginning or the line is odd, but not both.
            if h > 0 && l > 0 {
                continue;
            }
            let text = format!("{head}CID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n{line}\n");
            let path = images.write("d", &text);
            let info = Command::new("qemu-img").args(["info", "--output=json"]).arg(&path).output().unwrap();
            let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap_or_default();
            if info["format"] != "vmdk" {
                continue;
            }
            let extents = info["format-specific"]["data"]["extents"].as_array().cloned().unwrap_or_default();
            match open(&path, None) {
                Ok(image) => {
                    // qemu may find an extent twice.
                    let ours = &image.chain[0].data_files;
                    let hidden = |extent: &&serde_json::Value| {
                        !ours.iter().any(|file| file.to_str() == extent["filename"].as_str())
                    };
                    assert_eq!(extents.iter().find(hidden), None, "{text:?}: {ours:?}");
                    found += extents.len();
                }
                // The error must show that we recognised the file as a VMDK, as qemu-img did.
                Err(error) => assert!(matches!(error, OpenError::Corrupt { .. }), "{text:?}: {error:?}"),
            }
        }
    }
    assert!(found > 10, "{found}");
}

/// A sparse extent without a capacity carries a descriptor. The extents that it names are found
/// too, so it may not be the extent of another image.
#[test]
fn a_descriptor_inside_an_extent_is_seen() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    let text = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
                RW 24576 FLAT \"/etc/passwd\" 0\n";
    let mut stub = vec![0; 4096];
    stub[..12].copy_from_slice(b"KDMV\x01\0\0\0\x03\0\0\0");
    stub[28..36].copy_from_slice(&1_u64.to_le_bytes());
    stub[36..44].copy_from_slice(&2_u64.to_le_bytes());
    stub[512..512 + text.len()].copy_from_slice(text.as_bytes());
    images.write("stub.vmdk", stub);
    let error = images.refuse("stub.vmdk", None);
    assert!(matches!(error, OpenError::Untrusted { role: FileRole::Extent, .. }), "{error:?}");
    images.write("disk.vmdk", text.replace("FLAT \"/etc/passwd\" 0", "SPARSE \"stub.vmdk\""));
    let error = images.refuse("disk.vmdk", None);
    assert!(matches!(error, OpenError::Untrusted { role: FileRole::Extent, .. }), "{error:?}");
}

/// A guest can write such a header to its own raw disk.
#[test]
fn a_raw_disk_with_the_header_of_an_image_that_names_a_backing_file() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let images = Images::new();
    images.convert("plain.qcow2", "qcow2", &[]);
    images.overlay("over.qcow2", "qcow2", "base.raw", "raw");
    let evil = fs::read(images.path("over.qcow2")).unwrap();
    for name in ["disk.img", "disk.raw", "disk.dd", "disk.ISO", "disk.bin"] {
        images.write(name, &evil);
        let error = images.refuse(name, None);
        assert!(matches!(error, OpenError::RawByName { .. }), "{name}: {error:?}");
        let text = error.to_string();
        assert!(text.contains("--format raw") && text.contains("--format qcow2"), "{text}");
        // If the format is stated as raw, the header is not interpreted.
        let raw = open(&images.path(name), Some(ImageFormat::Raw)).unwrap();
        assert!(read_whole(&*raw.source)[..evil.len()] == evil);
        assert!(raw.chain.len() == 1);
        images.check(name, Some(ImageFormat::Qcow2), ImageFormat::Qcow2, 2);
    }
    // Many people name a qcow2 without a backing file `.img`.
    fs::rename(images.path("plain.qcow2"), images.path("plain.img")).unwrap();
    images.check("plain.img", None, ImageFormat::Qcow2, 1);
    // An overlay over such a disk must state the format of its backing file, or it is refused.
    let mut top = fs::read(images.overlay("top.qcow2", "qcow2", "disk.img", "qcow2")).unwrap();
    images.check("top.qcow2", None, ImageFormat::Qcow2, 3);
    let at = top.windows(4).position(|w| w == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    top[at..at + 4].copy_from_slice(b"????");
    images.write("top.qcow2", top);
    is_untrusted(&images, "top.qcow2", ImageFormat::Qcow2, "disk.img");
}

#[test]
fn a_chain_without_end() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    let create = |name: &str, below: &str| {
        let option = format!("backing_file={below},backing_fmt=qcow2");
        images.qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-o", &option, name, "1M"]);
    };
    create("a.qcow2", "b.qcow2");
    create("b.qcow2", "a.qcow2");
    create("self.qcow2", "./self.qcow2");
    for name in ["a.qcow2", "self.qcow2"] {
        for stated in [None, Some(ImageFormat::Qcow2)] {
            assert!(matches!(images.refuse(name, stated), OpenError::Loop { .. }), "{name}");
        }
    }
    for n in 0..70 {
        create(&format!("{n}.qcow2"), &format!("{}.qcow2", n + 1));
    }
    assert!(matches!(images.refuse("0.qcow2", None), OpenError::TooDeep { limit: 64, .. }));
}

#[test]
fn an_encrypted_image() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    // The encryption method is at byte 32 of the header. The value 1 is AES.
    let image = File::options().write(true).open(images.convert("e.qcow2", "qcow2", &[])).unwrap();
    image.write_all_at(&1_u32.to_be_bytes(), 32).unwrap();
    for stated in [None, Some(ImageFormat::Qcow2)] {
        assert!(matches!(images.refuse("e.qcow2", stated), OpenError::Encrypted { .. }));
    }
}

#[test]
fn hostile_text_does_not_reach_the_terminal() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    for name in ["\x1b[31mred\nx.vmdk", "x\u{202e}kdmv.vmdk"] {
        images.write(name, "# Disk DescriptorFile\nversion=1\nRW 8 FLAT \"\x1b]0;x\x07\" 0\n");
        assert!(!images.refuse(name, None).to_string().chars().any(|c| c.is_control() || c == '\u{202e}'));
    }
}

/// CRC-32C, the checksum of VHDX.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    };
    !bytes.iter().fold(!0, step)
}

/// Gives a VHDX a log with one entry, as a program leaves it that was killed ("VHDX Format
/// Specification" 1.00, 2.2.2 and 2.3).
fn leave_log(vhdx: &File) {
    const LOG: [u8; 16] = [7; 16];
    let sum = |bytes: &mut [u8]| {
        bytes[4..8].fill(0);
        let sum = crc32c(bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    };
    let mut log = 0;
    for at in [64 << 10, 128 << 10] {
        let mut header = [0; 4096];
        vhdx.read_exact_at(&mut header, at).unwrap();
        header[48..64].copy_from_slice(&LOG);
        sum(&mut header);
        vhdx.write_all_at(&header, at).unwrap();
        log = u64::from_le_bytes(*header[72..].first_chunk().unwrap());
    }
    let mut entry = [0; 4096];
    let size = vhdx.metadata().unwrap().len();
    entry[..4].copy_from_slice(b"loge");
    entry[8..12].copy_from_slice(&4096_u32.to_le_bytes());
    entry[16] = 1;
    entry[32..48].copy_from_slice(&LOG);
    entry[48..56].copy_from_slice(&size.to_le_bytes());
    entry[56..64].copy_from_slice(&size.to_le_bytes());
    sum(&mut entry);
    vhdx.write_all_at(&entry, log).unwrap();
}

#[test]
fn a_vhdx_with_a_log_is_to_be_repaired_on_a_copy() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    images.convert("log.vhdx", "vhdx", &[]);
    open(&images.path("log.vhdx"), None).unwrap();
    leave_log(&File::options().read(true).write(true).open(images.path("log.vhdx")).unwrap());
    for stated in [None, Some(ImageFormat::Vhdx)] {
        let error = images.refuse("log.vhdx", stated);
        assert!(matches!(error, OpenError::LogNotReplayed { .. }), "{error}");
        assert!(error.to_string().contains("make a copy"), "{error}");
    }
}

#[test]
fn containers_of_others_are_named() {
    let images = Images::new();
    for (name, head, kind) in [
        ("a.E02", &b"EVF\x09\x0d\x0a\xff\0\x01\x02\0\0\0"[..], "not the first"),
        ("a.Ex01", b"EVF2\x0d\x0a\x81\0", "EnCase image (Ex01)"),
        ("a.aff", b"AFF10\x0d\x0a\0", "AFF image"),
        ("a.vma", b"VMA\0\0\0\0\x01", "VMA"),
        ("a.wim", b"MSWIM\0\0\0", "WIM"),
        ("a.img", b"partclone-image\0", "partclone"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c", "7z"),
        ("a-flat.vmdk", b"\xeb\x63\x90", "a part of a VMDK"),
        ("a-delta.vmdk", b"COWD\x01\0\0\0", "a part of a VMDK"),
        ("a-ctk.vmdk", b"\x43\x1d\x69", "a part of a VMDK"),
    ] {
        images.write(name, [head, &[0; 4096]].concat());
        refused_by_name(&images, name, kind);
    }
}

/// The image is refused as this kind, and read if the user says that it is raw.
fn refused_by_name(images: &Images, name: &str, kind: &str) {
    let error = images.refuse(name, None);
    assert!(matches!(error, OpenError::Foreign { .. }) && error.to_string().contains(kind), "{error}");
    open(&images.path(name), Some(ImageFormat::Raw)).unwrap();
}

/// Python makes the archives.
#[test]
fn an_aff4_image_is_named() {
    needs!("python3");
    let images = Images::new();
    let script = "import sys, zipfile\n\
                  with zipfile.ZipFile('disk.aff4', 'w') as aff4: aff4.writestr('container.description', 'aff4://x')\n\
                  with zipfile.ZipFile('disk.zip', 'w') as other: other.writestr('disk', 'x' * 9000)";
    images.run("python3", &["-c", script]);
    refused_by_name(&images, "disk.aff4", "AFF4");
    // What only begins alike is raw.
    images.write("boot.raw", [&b"BZh9 is no archive"[..], &[0; 239], b"ustar", &[0; 4096]].concat());
    for name in ["boot.raw", "disk.zip"] {
        assert_eq!(open(&images.path(name), None).unwrap().format, ImageFormat::Raw);
    }
}

/// qemu-img makes a VHD and a VHDX, and the test makes them say that they have a parent.
#[test]
fn a_vhd_without_its_parent_is_named() {
    needs!("qemu-img");
    let images = Images::new();
    images.qemu_img(&["create", "-q", "-f", "vpc", "child.vhd", "64M"]);
    open(&images.path("child.vhd"), None).unwrap();
    let mut bytes = std::fs::read(images.path("child.vhd")).unwrap();
    for footer in [0, bytes.len() - 512] {
        assert_eq!(&bytes[footer..footer + 8], b"conectix");
        bytes[footer + 60..footer + 64].copy_from_slice(&4_u32.to_be_bytes());
        // The complement of the sum of all other bytes.
        bytes[footer + 64..footer + 68].fill(0);
        let sum: u32 = bytes[footer..footer + 512].iter().map(|byte| u32::from(*byte)).sum();
        bytes[footer + 64..footer + 68].copy_from_slice(&(!sum).to_be_bytes());
    }
    images.write("child.vhd", bytes);
    images.qemu_img(&["create", "-q", "-f", "vhdx", "child.vhdx", "64M"]);
    open(&images.path("child.vhdx"), None).unwrap();
    let mut bytes = std::fs::read(images.path("child.vhdx")).unwrap();
    let parameters = b"\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b";
    let at = bytes.windows(16).position(|window| window == parameters).unwrap();
    let table = at / (64 << 10) * (64 << 10);
    let offset = u32::from_le_bytes(bytes[at + 16..at + 20].try_into().unwrap()) as usize;
    bytes[table + offset + 4] |= 2;
    images.write("child.vhdx", bytes);
    for (name, stated) in [
        ("child.vhd", None),
        ("child.vhd", Some(ImageFormat::Vpc)),
        ("child.vhdx", None),
        ("child.vhdx", Some(ImageFormat::Vhdx)),
    ] {
        let error = images.refuse(name, stated);
        assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
        assert!(error.to_string().contains("merge it with its parent"), "{error}");
    }
}
