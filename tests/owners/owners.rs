//! Bytes that a file owns although its driver does not read them, or not plainly: a resource fork of
//! HFS+, blocks past the end of a file, compressed blocks of EROFS. And a UDF that was made over
//! another one. The same guest has the filesystems of [`packed`] and of [`orphans`].

use super::disks::{self, device};
use super::with_metadata::{self, pieces};
use super::{orphans, packed};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;
use virt_bmap_map::{Kind, Map, Marks, ObjectName};
use virt_bmap_testutil::ranges::{Range, bytes, difference, normalise};
use virt_bmap_testutil::tools::needs;
use virt_bmap_testutil::{mastering, tools};

const MIB: u64 = 1 << 20;

/// Bytes of the file of ext4, before its size is set to less.
const LONG: u64 = 3 * MIB;

#[test]
fn what_a_driver_does_not_read_has_its_owner() {
    needs!("guestfish", "xorriso", "mke2fs", "debugfs", "mkfs.erofs", "dump.erofs", "mkudffs", "udfinfo");
    needs!("mksquashfs", "makefs", "fsstat", "blkls", "istat");
    let staging = tempfile::tempdir().unwrap();
    let dir = staging.path();
    let tree = dir.join("tree");
    fs::create_dir(&tree).unwrap();
    let content = "the only copy of this text is in a fork ".repeat(40);
    fs::write(tree.join("forked"), &content).unwrap();
    fs::write(tree.join("long"), vec![b'l'; LONG as usize]).unwrap();
    for number in 1..30 {
        let text: String = (0..number * 900).map(|line| format!("line {line} of {number}\n")).collect();
        fs::write(tree.join(format!("text{number}")), text).unwrap();
    }
    let disks = ["hfsplus", "ext4", "erofs", "udf"].map(|name| dir.join(format!("{name}.raw")));
    mastering::hfsplus(&tree, &disks[0], 24 * MIB);
    let fork = mastering::make_fork(&disks[0], content.as_bytes());
    ext4(&tree, &disks[1]);
    run("mkfs.erofs", &[OsStr::new("-zlz4"), disks[2].as_os_str(), tree.as_os_str()]);
    mastering::udf(&disks[3], 10 * MIB, 512);
    run("mkudffs", &[OsStr::new("--blocksize=4096"), disks[3].as_os_str()]);
    let (packed, orphans) = (packed::make(dir), orphans::make(dir));
    let (run, map) = with_metadata::map(&[&disks[..], &packed, &orphans].concat(), &[]);
    run.assert_code(0);

    packed::check(&map, 5, &packed);
    orphans::check(&map, 5 + packed.len() as u16, &orphans);
    assert_eq!(file(&map, 1, "/forked:rsrc"), [fork]);
    assert_eq!(file(&map, 1, "/forked"), []);
    let long = file(&map, 2, "/long");
    assert_eq!(bytes(&long), LONG);
    let disk = fs::read(&disks[1]).unwrap();
    assert!(
        long.iter().all(|range| disk[range.start as usize..range.end as usize].iter().all(|b| *b == b'l'))
    );
    erofs(&map, &disks[2]);
    remade(&map, &disks[3]);
}

fn run(program: &str, words: &[&OsStr]) {
    tools::run(program, words);
}

fn file(map: &Map, disk: u16, path: &str) -> Vec<Range> {
    let device = device(disk);
    let name = ObjectName::path(Kind::File, device.as_bytes(), path.as_bytes());
    assert!(map.find(name).is_some(), "{path}");
    pieces(map, disk, &name)
}

/// Makes an ext4 whose long file has most of its blocks past its end, as fs-verity leaves it.
fn ext4(tree: &Path, image: &Path) {
    File::create(image).unwrap().set_len(32 * MIB).unwrap();
    let [tree, image] = [tree, image].map(Path::as_os_str);
    let words = ["-q", "-F", "-t", "ext4", "-d"].map(OsStr::new);
    run("mke2fs", &[&words[..], &[tree, image]].concat());
    let shorten = ["-w", "-R", "set_inode_field /long size 100000"].map(OsStr::new);
    run("debugfs", &[&shorten[..], &[image]].concat());
}

/// The oracle for EROFS is `dump.erofs`, which lists the extents of a file: their place in the file,
/// and that on the disk.
fn erofs(map: &Map, image: &Path) {
    let mut compressed = 0;
    for number in 1..30 {
        let path = format!("/text{number}");
        let option = format!("--path={path}");
        let said = tools::run("dump.erofs", [OsStr::new("-e"), OsStr::new(&option), image.as_os_str()]);
        let said = String::from_utf8_lossy(&said).into_owned();
        // `   0:        0..   16384 |   16384 :      4096..      8192 |    4096`
        let extents = said.lines().filter_map(|line| {
            let (start, end) = line.split(':').nth(2)?.split('|').next()?.split_once("..")?;
            Some(start.trim().parse().ok()?..end.trim().parse().ok()?)
        });
        // Bytes at the end of a file may lie beside its inode.
        let expected = normalise(extents.map(|range: Range| range.start / 4096 * 4096..range.end));
        let found = file(map, 3, &path);
        let device = device(3);
        let object = map.find(ObjectName::path(Kind::File, device.as_bytes(), path.as_bytes())).unwrap();
        if object.attributes().marks == Marks::ENCODED {
            assert_eq!(found, expected, "{path}: {said}");
            compressed += 1;
        }
        assert!(!object.attributes().marks.contains(Marks::INEXACT), "{path}");
    }
    assert!(compressed > 20, "{compressed}");
    assert!(disks::causes(map, 3).is_empty(), "{:?}", map.header().warnings);
}

/// The free space is that of the live volume, and every byte has an object.
fn remade(map: &Map, image: &Path) {
    let said = tools::run("udfinfo", [OsStr::new("--blocksize=4096"), image.as_os_str()]);
    let said = String::from_utf8_lossy(&said).into_owned();
    let free = said.lines().find_map(|line| line.strip_prefix("freeblocks=")).unwrap();
    let of_map = pieces(map, 4, &ObjectName::path(Kind::Free, b"/dev/sdd", b""));
    assert_eq!(bytes(&of_map), free.parse::<u64>().unwrap() * 4096, "{said}");
    let objects = map.objects().filter(|object| object.kind() != Kind::Disk);
    let known = normalise(objects.flat_map(|object| pieces(map, 4, &object.name())));
    assert_eq!(difference(&[0..10 * MIB], &known), []);
}
