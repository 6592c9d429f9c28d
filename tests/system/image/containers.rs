//! Disks that are not in an image of their own. Other programs make them from a raw disk, and the
//! bytes must be those of that disk.

use super::support::{DISK, Images, open, read_whole};
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use virt_bmap_image::{ImageFormat, OpenError, WritableRaw};
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
