//! Images of every format, read completely and compared with `qemu-img convert`.

use super::support::{DISK, Images, have, noise, open, read_whole};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use virt_bmap_image::{ImageFormat, Overlay, Warning};
use virt_bmap_ranges::{DiskOffset, DiskRange};

#[test]
fn every_kind_of_vmdk() {
    if !have(&["qemu-img"]) {
        return;
    }
    for kind in [
        "monolithicSparse",
        "monolithicFlat",
        "twoGbMaxExtentSparse",
        "twoGbMaxExtentFlat",
        "streamOptimized",
    ] {
        let images = Images::new();
        images.convert("disk.vmdk", "vmdk", &["-o", &format!("subformat={kind}")]);
        images.check_each("disk.vmdk", &[None, Some(ImageFormat::Vmdk)], ImageFormat::Vmdk, 1);
    }
}

#[test]
fn a_vmdk_of_several_extents() {
    if !have(&["qemu-img"]) {
        return;
    }
    // qemu-img begins a new extent every 2 GiB.
    let images = Images::new();
    for kind in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let name = format!("{kind}.vmdk");
        let option = format!("subformat={kind}");
        images.qemu_img(&["create", "-q", "-f", "vmdk", "-o", &option, &name, "5G"]);
        for offset in ["0", "2047M", "4G"] {
            images.run("qemu-io", &["-f", "vmdk", "-c", &format!("write -P 7 {offset} 2M"), &name]);
        }
        let before = images.checksums();
        let image = open(&images.path(&name), None).unwrap();
        assert_eq!(image.source.size(), 5 << 30);
        assert_eq!(image.chain[0].data_files.len(), 3, "{:?}", image.chain);
        let mut buf = vec![0; 4 << 20];
        image.source.read_at(&mut buf, DiskOffset(2046 << 20)).unwrap();
        assert!(buf[..1 << 20].iter().all(|b| *b == 0));
        assert!(buf[1 << 20..3 << 20].iter().all(|b| *b == 7));
        assert!(buf[3 << 20..].iter().all(|b| *b == 0));
        // This read is longer than one request may be.
        let mut buf = vec![0xee; 70 << 20];
        image.source.read_at(&mut buf, DiskOffset((4 << 30) - (60 << 20))).unwrap();
        assert!(buf[..60 << 20].iter().all(|b| *b == 0));
        assert!(buf[60 << 20..62 << 20].iter().all(|b| *b == 7));
        drop(image);
        assert_eq!(images.checksums(), before);
    }
}

#[test]
fn vmdk_snapshots_three_deep_with_parents_in_other_directories() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let images = Images::new();
    for dir in ["a", "b", "b/c"] {
        fs::create_dir(images.path(dir)).unwrap();
    }
    images.convert("a/base.vmdk", "vmdk", &[]);
    let absolute = images.path("a/base.vmdk");
    images.overlay("b/s1.vmdk", "vmdk", absolute.to_str().unwrap(), "vmdk");
    images.overlay("b/c/s2.vmdk", "vmdk", "../s1.vmdk", "vmdk");
    images.overlay("top.vmdk", "vmdk", "b/c/s2.vmdk", "vmdk");
    images.check_each("top.vmdk", &[None, Some(ImageFormat::Vmdk)], ImageFormat::Vmdk, 4);
    // The parent has its data in separate extent files.
    images.convert("a/flat.vmdk", "vmdk", &["-o", "subformat=twoGbMaxExtentFlat"]);
    images.overlay("b/f1.vmdk", "vmdk", "../a/flat.vmdk", "vmdk");
    images.check("b/f1.vmdk", None, ImageFormat::Vmdk, 2);
}

#[test]
fn qcow2_with_backing_files() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let images = Images::new();
    fs::create_dir(images.path("d")).unwrap();
    images.convert("base.qcow2", "qcow2", &["-c"]);
    images.overlay("d/relative.qcow2", "qcow2", "../base.qcow2", "qcow2");
    let absolute = images.path("d/relative.qcow2");
    images.overlay("absolute.qcow2", "qcow2", absolute.to_str().unwrap(), "qcow2");
    images.overlay("on_raw.qcow2", "qcow2", "base.raw", "raw");
    images.convert("base.vmdk", "vmdk", &["-o", "subformat=monolithicFlat"]);
    images.overlay("on_vmdk.qcow2", "qcow2", "base.vmdk", "vmdk");
    images.overlay("q.qed", "qed", "base.raw", "raw");
    for (name, format, links) in [
        ("base.qcow2", ImageFormat::Qcow2, 1),
        ("d/relative.qcow2", ImageFormat::Qcow2, 2),
        ("absolute.qcow2", ImageFormat::Qcow2, 3),
        ("on_raw.qcow2", ImageFormat::Qcow2, 2),
        ("on_vmdk.qcow2", ImageFormat::Qcow2, 2),
        ("q.qed", ImageFormat::Qed, 2),
    ] {
        images.check(name, None, format, links);
        images.check(name, Some(format), format, links);
    }
    // The header may lack the format of the backing file.
    let said = fs::read(images.overlay("said.qcow2", "qcow2", "base.vmdk", "vmdk")).unwrap();
    let mut unsaid = said.clone();
    let at = said.windows(4).position(|w| w == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    unsaid[at..at + 4].copy_from_slice(b"????");
    images.write("unsaid.qcow2", unsaid);
    images.check("unsaid.qcow2", None, ImageFormat::Qcow2, 2);
}

#[test]
fn qcow2_with_its_data_in_another_file() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    for version in ["data_file=data.raw", "data_file=data2.raw,data_file_raw=on"] {
        let arguments = ["create", "-q", "-f", "qcow2", "-o", version, "outside.qcow2", "12M"];
        images.qemu_img(&arguments);
        images.run("qemu-io", &["-f", "qcow2", "-c", "write -P 5 1M 3M", "outside.qcow2"]);
        images.check_each("outside.qcow2", &[None, Some(ImageFormat::Qcow2)], ImageFormat::Qcow2, 1);
    }
}

#[test]
fn all_other_formats() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    for (number, (format, options)) in [
        (ImageFormat::Qcow, &[][..]),
        (ImageFormat::Qcow2, &["-o", "compat=0.10"]),
        (ImageFormat::Qcow2, &["-o", "cluster_size=512,preallocation=metadata"]),
        (ImageFormat::Qcow2, &["-o", "extended_l2=on,cluster_size=128k"]),
        (ImageFormat::Qcow2, &["-c", "-o", "compression_type=zstd"]),
        (ImageFormat::Qed, &[]),
        (ImageFormat::Vdi, &[]),
        (ImageFormat::Vdi, &["-o", "static=on"]),
        (ImageFormat::Vpc, &["-o", "force_size=on"]),
        (ImageFormat::Vpc, &["-o", "force_size=on,subformat=fixed"]),
        (ImageFormat::Vhdx, &[]),
        (ImageFormat::Vhdx, &["-o", "subformat=fixed"]),
        (ImageFormat::Parallels, &[]),
        (ImageFormat::Raw, &[]),
    ]
    .into_iter()
    .enumerate()
    {
        // A process that another test is just starting may still have the previous file open.
        let name = format!("disk{number}.{format}");
        images.convert(&name, format.driver(), options);
        images.check_each(&name, &[None, Some(format)], format, 1);
    }
}

#[test]
fn images_that_hold_nothing_yet_are_whole() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    for format in ["qcow2", "vmdk", "vdi", "vhdx", "qed", "parallels"] {
        for size in ["512k", "1M", "3M", "700M", "20G"] {
            // Each file has a different name. A process that another test is just starting may
            // still have the previous one open.
            let name = format!("{size}.{format}");
            images.qemu_img(&["create", "-q", "-f", format, &name, size]);
            let image = open(&images.path(&name), None).unwrap_or_else(|e| panic!("{format} {size}: {e:?}"));
            let mut buf = [0xee; 4096];
            image.source.read_at(&mut buf, DiskOffset(image.source.size() - 4096)).unwrap();
            assert_eq!(buf, [0; 4096]);
        }
    }
}

#[test]
fn a_name_is_never_a_protocol_or_an_option() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    let wanted = fs::read(images.path("base.raw")).unwrap();
    let odd = ["nbd:localhost:1", "json:{}", "-f", "a,b=c", "driver=raw", " x ", "a\nb", "\\", "ä"];
    let names = odd.map(str::as_bytes).into_iter().chain([&b"\xff\xfe"[..]]);
    for name in names {
        for format in ["qcow2", "vmdk", "raw"] {
            let made = images.convert("plain", format, &[]);
            let path = images.path("x").with_file_name(std::ffi::OsStr::from_bytes(name));
            fs::rename(made, &path).unwrap();
            let image = open(&path, None).unwrap_or_else(|error| panic!("{path:?}: {error:?}"));
            assert_eq!(image.format.driver(), format);
            assert!(read_whole(&*image.source) == wanted, "{path:?}");
            drop(image);
            fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn a_relative_name_and_a_symbolic_link_lead_to_the_image() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let images = Images::new();
    images.convert("base.qcow2", "qcow2", &[]);
    images.overlay("top.qcow2", "qcow2", "base.qcow2", "qcow2");
    symlink("top.qcow2", images.path("link.qcow2")).unwrap();
    images.check("link.qcow2", None, ImageFormat::Qcow2, 2);
    // A path that is relative to this process's working directory.
    let up: String = std::env::current_dir().unwrap().components().skip(1).map(|_| "../").collect();
    let relative = Path::new(&up).join(images.path("top.qcow2").strip_prefix("/").unwrap());
    let image = open(&relative, None).unwrap();
    assert_eq!(image.location.file(), Some(&*relative));
    assert!(image.files().unwrap().iter().all(|file| file.is_absolute()));
}

#[test]
fn a_raw_image_of_any_size_is_read_directly() {
    let images = Images::new();
    let content = noise(9, 100_001);
    let path = images.write("odd.raw", &content);
    let before = images.checksums();
    for format in [None, Some(ImageFormat::Raw)] {
        if format.is_none() && !have(&["qemu-img"]) {
            continue;
        }
        let image = open(&path, format).unwrap();
        assert_eq!(image.source.size(), 100_352);
        let warning = Warning::RoundedUp { path: path.clone(), size: 100_001, rounded: 100_352 };
        assert_eq!(image.warnings, [warning]);
        let all = read_whole(&*image.source);
        assert_eq!(all[..100_001], content);
        assert!(all[100_001..].iter().all(|b| *b == 0));
        assert!(image.source.read_at(&mut [0; 2], DiskOffset(100_351)).is_err());
    }
    assert_eq!(images.checksums(), before);
}

#[test]
fn a_whole_disk_that_the_guest_encrypts_is_a_raw_disk() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    let mut disk = vec![0; 1 << 20];
    disk[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
    let path = images.write("guest.img", disk);
    assert_eq!(open(&path, None).unwrap().format, ImageFormat::Raw);
}

#[test]
fn many_threads_read_one_image_at_once() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    let wanted = fs::read(images.path("base.raw")).unwrap();
    let image = open(&images.convert("disk.vmdk", "vmdk", &[]), None).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..16_usize {
            let (source, wanted) = (&image.source, &wanted);
            scope.spawn(move || {
                let mut buf = vec![0; 50_000];
                for round in 0..60 {
                    let offset = (thread * 7919 + round * 104_729 * 13) % (DISK as usize - buf.len());
                    source.read_at(&mut buf, DiskOffset(offset as u64)).unwrap();
                    assert!(buf == wanted[offset..offset + buf.len()], "at {offset}");
                }
            });
        }
    });
    let mut buf = [0; 8];
    for offset in [DISK - 4, DISK, u64::MAX - 3] {
        let error = image.source.read_at(&mut buf, DiskOffset(offset)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    }
}

#[test]
fn writes_stay_in_the_layer() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    for format in ["raw", "qcow2"] {
        let path = images.convert("disk", format, &[]);
        let before = images.checksums();
        let image = open(&path, None).unwrap();
        let mut wanted = read_whole(&*image.source);
        let layer = Overlay::new(image.source, 1 << 20, &std::env::temp_dir()).unwrap();
        layer.write_at(&[1; 100_000], DiskOffset(60_000)).unwrap();
        wanted[60_000..160_000].fill(1);
        layer.write_zeroes(DiskRange::new(1 << 20, 2 << 20)).unwrap();
        wanted[1 << 20..2 << 20].fill(0);
        assert!(read_whole(&layer) == wanted);
        assert_eq!(images.checksums(), before, "{format}");
    }
}

#[test]
fn holes_of_a_raw_image_are_known() {
    let images = Images::new();
    let image = open(&images.path("base.raw"), Some(ImageFormat::Raw)).unwrap();
    let parts = image.source.allocation(DiskRange::new(0, DISK)).unwrap();
    if parts.len() == 1 {
        eprintln!("SKIPPED: the filesystem of temporary files has no holes");
        return;
    }
    let file = File::open(images.path("base.raw")).unwrap();
    for hole in parts.iter().filter(|part| part.is_hole) {
        let mut buf = vec![1; hole.range.len() as usize];
        file.read_exact_at(&mut buf, hole.range.start.0).unwrap();
        assert!(buf.iter().all(|b| *b == 0));
    }
    let data: u64 = parts.iter().filter(|part| !part.is_hole).map(|part| part.range.len()).sum();
    assert!((1 << 20..2 << 20).contains(&data), "{parts:?}");
}
