//! Snapshots inside of qcow2 images, images that qemu encrypts, and backing files that the user
//! allows: what docs/sources.md says of them.

use super::support::{Images, NOBODY, have, open, read_whole, running};
use std::path::Path;
use virt_bmap_image::{self, Access, ImageFormat, ImageKey, OpenError, OpenOptions};
use virt_bmap_testutil::tools;

fn open_with(path: &Path, options: &OpenOptions) -> Result<virt_bmap_image::Image, OpenError> {
    virt_bmap_image::open(&path.to_owned().into(), options)
}

/// Options that allow backing files.
fn allowing(pattern: &Path) -> OpenOptions {
    let allowed = vec![pattern.to_str().unwrap().parse().unwrap()];
    OpenOptions { access: Access { allowed, ..Access::default() }, ..OpenOptions::default() }
}

#[test]
fn a_snapshot_is_the_disk_of_its_time() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let images = Images::new();
    let path = images.convert("disk.qcow2", "qcow2", &[]);
    let mut states = Vec::new();
    for (name, value) in [("first", "1"), ("a, b=c", "2")] {
        images.qemu_img(&["snapshot", "-c", name, "disk.qcow2"]);
        states.push((name, images.oracle("disk.qcow2", "qcow2")));
        let write = format!("write -P {value} 900k 300k");
        images.run("qemu-io", &["-f", "qcow2", "-c", &write, "disk.qcow2"]);
    }
    let before = images.checksums();
    for (name, wanted) in &states {
        let at = |name: &str| OpenOptions { snapshot: Some(name.to_owned()), ..OpenOptions::default() };
        let image = open_with(&path, &at(name)).unwrap();
        assert_eq!(image.snapshot.as_deref(), Some(*name));
        assert!(read_whole(&*image.source) == *wanted, "{name}");
        // All of a snapshot counts as the image's own, since qemu-img lists only the present disk.
        assert_eq!(image.layer().unwrap().data.bytes(), image.source.size());
        drop(image);
        let error = open_with(&path, &at("second")).unwrap_err();
        assert!(matches!(&error, OpenError::Refused { reason, .. } if reason.contains("second")), "{error}");
        let raw = open_with(&images.path("base.raw"), &at(name)).unwrap_err();
        assert!(matches!(raw, OpenError::Unsupported { .. }), "{raw}");
    }
    assert!(read_whole(&*open(&path, None).unwrap().source) != states[1].1);
    assert_eq!(images.checksums(), before);
}

#[test]
fn encrypted_images_are_read_with_their_passphrase() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let images = Images::new();
    let secret = ["--object", "secret,id=s,data=sesame"];
    let encrypted = ["encrypt.format=luks,encrypt.key-secret=s,encrypt.hash-alg=sha512,encrypt.iter-time=10"];
    images.convert("disk.qcow2", "qcow2", &[&secret[..], &["-o"], &encrypted].concat());
    images.convert(
        "disk.luks",
        "luks",
        &[&secret[..], &["-o", "key-secret=s,hash-alg=sha512,iter-time=10"]].concat(),
    );
    images.convert(
        "old.qcow",
        "qcow",
        &[&secret[..], &["-o", "encrypt.format=aes,encrypt.key-secret=s"]].concat(),
    );
    let described = "driver=qcow2,encrypt.key-secret=s,file.filename=disk.qcow2";
    let snapshot = ["snapshot", "--image-opts", "-c", "before", described];
    images.qemu_img(&[&snapshot[..1], &secret, &snapshot[1..]].concat());
    // The overlay is not encrypted.
    images.qemu_img(&[
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-b",
        "disk.qcow2",
        "-F",
        "qcow2",
        "top.qcow2",
        "12M",
    ]);
    let wanted = images.oracle("base.raw", "raw");
    let before = images.checksums();
    let with = |passphrase: Option<&str>, format, snapshot: Option<&str>| OpenOptions {
        format,
        snapshot: snapshot.map(str::to_owned),
        access: Access {
            key: passphrase.map(|passphrase| ImageKey::new(passphrase.as_bytes()).unwrap()),
            ..Access::default()
        },
    };
    for (name, format, snapshot) in [
        ("disk.qcow2", None, None),
        ("disk.qcow2", Some(ImageFormat::Qcow2), None),
        ("disk.qcow2", None, Some("before")),
        ("top.qcow2", None, None),
        ("disk.luks", Some(ImageFormat::Luks), None),
        ("old.qcow", None, None),
    ] {
        let path = images.path(name);
        let image = open_with(&path, &with(Some("sesame"), format, snapshot));
        let image = image.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert!(read_whole(&*image.source) == wanted, "{name}");
        let inside = images.path("");
        let children = running(&inside);
        assert!(!children.is_empty());
        for child in children {
            let line = std::fs::read(format!("/proc/{child}/cmdline")).unwrap();
            assert!(!line.windows(6).any(|window| window == b"sesame"), "{name}");
        }
        drop(image);
        assert_eq!(running(&inside), NOBODY);
        let error = open_with(&path, &with(None, format, snapshot)).unwrap_err();
        assert!(matches!(error, OpenError::Encrypted { .. }), "{name}: {error:?}");
        assert!(error.to_string().contains("--key image:"), "{error}");
        if name != "old.qcow" {
            let error = open_with(&path, &with(Some("sesam"), format, snapshot)).unwrap_err();
            assert!(matches!(error, OpenError::WrongKey { .. }), "{name}: {error:?}");
        }
    }
    // A guest that encrypts its whole disk looks the same, and its disk is mapped as it is.
    let raw = open_with(&images.path("disk.luks"), &with(None, None, None)).unwrap();
    assert_eq!(raw.format, ImageFormat::Raw);
    // Other images need no passphrase.
    images.convert("plain.qcow2", "qcow2", &[]);
    let plain = open_with(&images.path("plain.qcow2"), &with(Some("sesame"), None, None)).unwrap();
    assert!(read_whole(&*plain.source) == wanted);
    std::fs::remove_file(images.path("plain.qcow2")).unwrap();
    assert_eq!(images.checksums(), before);
}

#[test]
fn allowed_backing_files_need_no_stated_format() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let images = Images::new();
    // The name promises a raw image, so that a guest could have written the header.
    images.overlay("top.img", "qcow2", "base.raw", "raw");
    let wanted = images.oracle("top.img", "qcow2");
    let top = images.path("top.img");
    assert!(matches!(images.refuse("top.img", None), OpenError::RawByName { .. }));
    for refused in [images.path("*.qcow2"), Path::new("/dev/*").to_owned()] {
        let error = open_with(&top, &allowing(&refused)).unwrap_err();
        assert!(matches!(error, OpenError::RawByName { .. }), "{error:?}");
    }
    let image = open_with(&top, &allowing(&images.path("base.*"))).unwrap();
    assert_eq!((image.format, image.chain.len()), (ImageFormat::Qcow2, 2));
    assert!(read_whole(&*image.source) == wanted);
}

/// As newer Proxmox keeps its guests: qcow2 on a logical volume, over another volume.
#[test]
fn allowed_backing_files_may_be_block_devices() {
    if !have(&["qemu-img", "qemu-io", "losetup"]) || !tools::is_root("make a loop device") {
        return;
    }
    struct Loop(String);
    impl Drop for Loop {
        fn drop(&mut self) {
            tools::command("losetup").args(["-d", &self.0]).status().unwrap();
        }
    }
    let attach = |path: &Path| {
        let args = ["--find".as_ref(), "--show".as_ref(), "--read-only".as_ref(), path.as_os_str()];
        Loop(String::from_utf8(tools::run("losetup", args)).unwrap().trim().to_owned())
    };
    let images = Images::new();
    let base = attach(&images.path("base.raw"));
    images.overlay("top.qcow2", "qcow2", &base.0, "raw");
    let wanted = images.oracle("top.qcow2", "qcow2");
    let top = attach(&images.path("top.qcow2"));
    for (path, refused) in [
        (images.path("top.qcow2"), "a device"),
        // A guest whose disk is a volume could have written the header.
        (top.0.clone().into(), "raw by its name"),
    ] {
        let error = open(&path, None).unwrap_err();
        assert!(error.to_string().contains(refused), "{error}");
        let image = open_with(&path, &allowing(Path::new("/dev/loop*"))).unwrap();
        assert!(read_whole(&*image.source) == wanted, "{}", path.display());
        assert_eq!(image.chain[1].location.file(), Some(Path::new(&base.0)));
    }
}
