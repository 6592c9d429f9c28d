//! When files were made. It is in no format, so the maps are made in this process: one by what the
//! kernel says of each file, and one by the tables of inodes alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use virt_bmap::mapper::{Cancel, GuestDisk, MapperOptions, map_guest};
use virt_bmap::probe::{Probe, Proof};
use virt_bmap_image::{ImageFormat, Location};
use virt_bmap_map::Kind;
use virt_bmap_testutil::oracle_ext4::{BIRTH, set_birth};
use virt_bmap_testutil::tools::{self, needs};

/// Files in each filesystem.
const FILES: usize = 40;

fn debugfs(image: &Path, request: &str) -> String {
    let output = tools::run("debugfs", ["-w", "-R", request, image.to_str().unwrap()]);
    String::from_utf8(output).unwrap()
}

/// An ext4 with inodes of this size.
fn ext4(dir: &Path, inode_size: &str) -> PathBuf {
    let tree = dir.join(format!("tree-{inode_size}"));
    fs::create_dir(&tree).unwrap();
    for number in 0..FILES {
        fs::write(tree.join(format!("file{number}")), vec![7; 5000]).unwrap();
    }
    let image = dir.join(format!("ext4-{inode_size}.raw"));
    let options = ["-q", "-t", "ext4", "-b", "4096", "-I", inode_size, "-N", "2048", "-d"];
    tools::output(tools::command("mke2fs").args(options).args([&tree, &image]).arg("32M"));
    image
}

fn xfs(dir: &Path) -> PathBuf {
    let (content, prototype) = (dir.join("content"), dir.join("prototype"));
    fs::write(&content, vec![7; 5000]).unwrap();
    let mut text = "/none\n0 0\nd--755 0 0\n".to_owned();
    for number in 0..FILES {
        writeln!(text, "file{number} ---644 0 0 {}", content.display()).unwrap();
    }
    fs::write(&prototype, text + "$\n").unwrap();
    let image = dir.join("xfs.raw");
    File::create(&image).unwrap().set_len(320 << 20).unwrap();
    tools::output(tools::command("mkfs.xfs").args(["-q", "-p"]).args([&prototype, &image]));
    image
}

/// When each file was made, by its device and path, if that is known.
fn births(images: &[PathBuf], proof: Proof) -> BTreeMap<(String, String), Option<i64>> {
    let disk = |image: &PathBuf| GuestDisk::new(Location::File(image.clone()), Some(ImageFormat::Raw));
    let disks: Vec<GuestDisk> = images.iter().map(disk).collect();
    let options = MapperOptions { probe: Probe::Extents(proof), ..MapperOptions::default() };
    let map = map_guest(&disks, &options, &Cancel::default(), &mut |_| {}).unwrap().map;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let files = map.objects().filter(|object| object.kind() == Kind::File);
    let born = files.map(|file| {
        let name = file.name();
        ((text(name.device), text(name.path)), file.attributes().born)
    });
    born.collect()
}

#[test]
fn the_tables_of_inodes_say_what_the_kernel_says() {
    needs!("mke2fs", "debugfs", "mkfs.xfs");
    let dir = tempfile::tempdir().unwrap();
    let images = [ext4(dir.path(), "256"), ext4(dir.path(), "128"), xfs(dir.path())];
    set_birth(&images[0], "/file3");
    // As if the program that made it did not know the field.
    debugfs(&images[0], "set_inode_field /file4 crtime @0");
    let by_kernel = births(&images, Proof::Every);
    let none = Proof::Sample { one_in: NonZeroU32::MAX, seed: Some(1) };
    assert_eq!(births(&images, none), by_kernel);
    assert_eq!(by_kernel.len(), 3 * FILES);
    for ((device, path), born) in by_kernel {
        match (&*device, &*path) {
            ("/dev/sda", "/file3") => assert_eq!(born, Some(BIRTH)),
            ("/dev/sda", "/file4") | ("/dev/sdb", _) => assert_eq!(born, None, "{device} {path}"),
            ("/dev/sda", _) => {
                let said = debugfs(&images[0], &format!("stat {path}"));
                let time = said.split_once("crtime: 0x").unwrap().1.split_once(':').unwrap().0;
                let seconds = i64::from_str_radix(time, 16).unwrap();
                assert_eq!(born.map(|born| born / 1_000_000_000), Some(seconds), "{path}");
            }
            _ => assert!(born.is_some(), "{device} {path}"),
        }
    }
}
