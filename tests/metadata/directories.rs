//! Each directory has exactly the clusters that another program gives it: `istat` of The Sleuth Kit
//! (FAT, exFAT, ISO 9660, UFS), `debugfs` (ext2, ext4), `xfs_db`. No program says it for UDF: there
//! the oracle is the raw disk, on which the names in a directory are found where the directory
//! lies.
//!
//! The directories are large and small, in one piece and in hundreds, empty, deep, with long names,
//! and with deleted entries.

use super::with_metadata::{self, pieces};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use virt_bmap_map::{Kind, Map, Marks, ObjectName};
use virt_bmap_testutil::oracle_directories::{Sleuthkit, debugfs, xfs_db};
use virt_bmap_testutil::ranges::{Range, difference, normalise};
use virt_bmap_testutil::tools::needs;
use virt_bmap_testutil::{cache, guestfish, mastering, tools};

/// The disks, and the types of their filesystems.
const DISKS: [(&str, &str); 12] = [
    ("fat12", "vfat"),
    ("fat16", "vfat"),
    ("fat32", "vfat"),
    ("exfat", "exfat"),
    ("exfat-8k", "exfat"),
    ("udf", "udf"),
    ("udf-2k", "udf"),
    ("xfs", "xfs"),
    ("iso", "iso9660"),
    ("ext2", "ext2"),
    ("ext4", "ext4"),
    ("ufs", "ufs"),
];

/// How many of these are filled in a guest. The others are made from the tree.
const IN_GUEST: usize = 8;

/// Entries in each of the two large directories. They grow by turns, so that they are fragmented.
const ENTRIES: usize = 900;

/// Bytes of a fragment of UFS: a quarter of a page.
const UFS_FRAGMENT: u64 = 1024;

/// Bytes of a block of ext2 and ext4: less than a page.
const EXT_BLOCK: u64 = 1024;

#[test]
fn directories_lie_where_other_programs_find_them() {
    needs!("guestfish", "tar", "xorriso", "mkfs.fat", "mkfs.exfat", "mkudffs", "mkfs.xfs", "mke2fs");
    needs!("fls", "istat", "debugfs", "xfs_db", "makefs");
    let sources = (include_str!("directories.rs"), mastering::SOURCE);
    let dir = cache::directory("directories", &cache::key(sources), make);
    let disks: Vec<PathBuf> = DISKS.iter().map(|(name, _)| dir.join(format!("{name}.raw"))).collect();
    let (run, map) = with_metadata::map(&disks, &[]);
    run.assert_code(0);
    for (number, ((name, kind), image)) in (1..).zip(DISKS.iter().zip(&disks)) {
        let found = directories(&map, number);
        assert!(found.len() > 25, "{name}: {} directories", found.len());
        let most = found.values().map(|directory| directory.pieces.len()).max().unwrap();
        assert!(!matches!(*kind, "vfat" | "exfat" | "udf") || most > 5, "{name}: {most} pieces");
        let expected = match *kind {
            "vfat" => Sleuthkit::FAT.directories(image),
            "exfat" => Sleuthkit::EXFAT.directories(image),
            "ufs" => Sleuthkit::ufs(UFS_FRAGMENT).directories(image),
            "ext2" | "ext4" => debugfs(image, &inodes(&found)),
            "xfs" => xfs_db(image, &inodes(&found)),
            "iso9660" => {
                // It shows the names of ISO 9660, not those of Rock Ridge.
                let mut expected: Vec<Vec<Range>> = Sleuthkit::ISO.directories(image).into_values().collect();
                let mut found: Vec<Vec<Range>> = found.into_values().map(|found| found.pieces).collect();
                expected.sort_by_key(|pieces| pieces[0].start);
                found.sort_by_key(|pieces| pieces[0].start);
                assert_eq!(found, expected);
                continue;
            }
            _ => {
                by_names(image, &found, name);
                continue;
            }
        };
        let of_map: BTreeMap<&String, &Vec<Range>> =
            found.iter().map(|(path, directory)| (path, &directory.pieces)).collect();
        assert_eq!(of_map, expected.iter().collect(), "{name}");
    }
}

/// A directory of the map.
struct Directory {
    inode: u64,
    marks: Marks,
    pieces: Vec<Range>,
}

fn inodes(directories: &BTreeMap<String, Directory>) -> BTreeMap<String, u64> {
    directories.iter().map(|(path, directory)| (path.clone(), directory.inode)).collect()
}

/// The directories of a disk, by path.
fn directories(map: &Map, disk: u16) -> BTreeMap<String, Directory> {
    let device = format!("/dev/sd{}", char::from(b'a' + disk as u8 - 1));
    let is_here = |name: &ObjectName<'_>| name.kind == Kind::Directory && name.device == device.as_bytes();
    map.objects()
        .filter(|object| is_here(&object.name()))
        .map(|object| {
            let (inode, marks) = (object.attributes().inode.unwrap(), object.attributes().marks);
            let pieces = pieces(map, disk, &object.name());
            (String::from_utf8_lossy(object.name().path).into_owned(), Directory { inode, marks, pieces })
        })
        .collect()
}

/// The names of a directory must be on the raw disk exactly where the directory lies. In a directory
/// without blocks they are in its file entry, which is in the piece that is marked inline.
fn by_names(image: &Path, directories: &BTreeMap<String, Directory>, name: &str) {
    let disk = fs::read(image).unwrap();
    let find = |pattern: &str| -> Vec<Range> {
        let places = disk.windows(pattern.len()).enumerate();
        let places = places.filter(|(_, bytes)| *bytes == pattern.as_bytes());
        places.map(|(at, _)| at as u64..(at + pattern.len()) as u64).collect()
    };
    let patterns: [(&str, &[&str]); 2] = [
        ("/a", &["a file with a long name, number "]),
        ("/b", &["b file ", "a directory with a long name, number "]),
    ];
    for (path, patterns) in patterns {
        let directory = &directories[path];
        assert_eq!(directory.marks, Marks::empty(), "{name} {path}");
        let places: Vec<Range> = patterns.iter().flat_map(|pattern| find(pattern)).collect();
        assert!(places.len() >= ENTRIES / 2, "{name} {path}: {} names", places.len());
        assert_eq!(difference(&normalise(places.clone()), &directory.pieces), [], "{name} {path}");
        for piece in &directory.pieces {
            let is_there = places.iter().any(|place| piece.start <= place.start && place.end <= piece.end);
            assert!(is_there, "{name} {path}: {piece:?}");
        }
    }
    let inline = directories.values().filter(|directory| directory.marks.contains(Marks::INLINE));
    assert!(inline.clone().count() > 5, "{name}");
    assert!(inline.into_iter().all(|directory| directory.pieces.len() == 1), "{name}");
}

/// Unpacks the tree and deletes entries.
const FILL: &str = "set -eu
tar --no-same-owner -C /t -xf /tmp/tree.tar
rm -f '/t/b/b file '*[147]
umount /t
";

fn make(dir: &Path) {
    let staging = tempfile::tempdir().unwrap();
    let tree = staging.path().join("tree");
    let files = write_tree(&tree);
    guestfish::tar(&staging.path().join("tree.tar"), &tree, &files);
    fs::write(staging.path().join("fill.sh"), FILL).unwrap();
    let image = |name: &str| dir.join(format!("{name}.raw"));
    let sized = |name: &str, mib: u64| {
        File::create(image(name)).unwrap().set_len(mib << 20).unwrap();
        image(name)
    };
    let make = |program: &str, options: &[&str], image: PathBuf| {
        tools::run(program, options.iter().map(OsStr::new).chain([image.as_os_str()]));
    };
    make("mkfs.fat", &["-F12", "-s2"], sized("fat12", 4));
    make("mkfs.fat", &["-F16", "-s2"], sized("fat16", 24));
    make("mkfs.fat", &["-F32", "-s1"], sized("fat32", 64));
    make("mkfs.exfat", &["-c", "1K"], sized("exfat", 32));
    make("mkfs.exfat", &["-c", "8K"], sized("exfat-8k", 32));
    mastering::udf(&image("udf"), 24 << 20, 512);
    mastering::udf(&image("udf-2k"), 24 << 20, 2048);
    make("mkfs.xfs", &["-q"], sized("xfs", 300));
    mastering::iso(&tree, &image("iso"));
    let options = format!("version=1,bsize=8192,fsize={UFS_FRAGMENT}");
    let words = ["-t", "ffs", "-o", &options, "-s", "32m"].map(OsStr::new);
    tools::run("makefs", words.into_iter().chain([image("ufs").as_os_str(), tree.as_os_str()]));
    let tree = tree.to_str().unwrap();
    let block = EXT_BLOCK.to_string();
    for kind in ["ext2", "ext4"] {
        make("mke2fs", &["-q", "-F", "-t", kind, "-b", &block, "-d", tree], sized(kind, 32));
    }
    let mut script: String =
        DISKS[..IN_GUEST].iter().map(|(name, _)| format!("add {name}.raw format:raw\n")).collect();
    let staged = staging.path().display();
    script.push_str("run\ndebug sh 'mkdir /t'\n");
    for file in ["tree.tar", "fill.sh"] {
        script.push_str(&format!("debug-upload {staged}/{file} /tmp/{file} 0600\n"));
    }
    for (letter, (_, kind)) in ('a'..).zip(&DISKS[..IN_GUEST]) {
        let options = if *kind == "vfat" { "-o utf8" } else { "" };
        script.push_str(&format!(
            "debug sh 'mount -t {kind} {options} /dev/sd{letter} /t && sh /tmp/fill.sh >&2'\n"
        ));
    }
    guestfish::run(dir, &(script + "shutdown\n"));
}

/// Writes the tree. Returns the names of all of it, in the order in which they are to be created.
fn write_tree(root: &Path) -> Vec<PathBuf> {
    let mut names = Vec::new();
    let mut directory = |name: String| {
        fs::create_dir(root.join(&name)).unwrap();
        names.push(PathBuf::from(name));
    };
    fs::create_dir(root).unwrap();
    for name in ["a", "b", "empty", "a/deep", "a/deep/er", "a/deep/er/still", "b/größer 𝄞"] {
        directory(name.to_owned());
    }
    for number in 0..10 {
        directory(format!("b/a directory with a long name, number {number}"));
        directory(format!("a/deep/d{number}"));
    }
    for number in 0..ENTRIES {
        let some = if number % 50 == 0 { "some data" } else { "" };
        for name in [format!("a/a file with a long name, number {number}"), format!("b/b file {number}")] {
            fs::write(root.join(&name), some).unwrap();
            names.push(name.into());
        }
    }
    names
}
