//! Warnings quote what the kernel says when it cannot mount a filesystem or read a directory, with
//! our names of devices. Directories with holes have one, too. Filesystems that need an option of
//! their own are mapped.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use virt_bmap_testutil::cache;
use virt_bmap_testutil::layered::{self, pattern};
use virt_bmap_testutil::mapped::Mapped;
use virt_bmap_testutil::tools::{self, needs};

const MIB: u64 = 1 << 20;

/// Bytes of each file.
const SIZE: usize = 100 * 1024 + 700;

/// Two journals, and the filesystems that have them, in MiB.
const DISKS: [(u64, &[u64]); 4] = [(16, &[]), (16, &[]), (48, &[]), (48, &[])];

fn script() -> String {
    let mut s = String::new();
    for (id, (journal, device)) in (1..).zip([("/dev/sda", "/dev/sdc"), ("/dev/sdb", "/dev/sdd")]) {
        s += &format!("mke2fs -q -b 4096 -O journal_dev {journal}\n");
        s += &layered::fill(device, &format!("mkfs.ext4 -q -b 4096 -J device={journal}"), id, SIZE);
        s += &format!("umount /mnt/{id}\n");
    }
    s
}

/// The journals and their filesystems.
fn with_journals() -> Vec<PathBuf> {
    let key = cache::key((script(), DISKS, SIZE, layered::SOURCE));
    let dir = cache::directory("journals", &key, |dir| {
        layered::make(dir, &DISKS, &[pattern(1, SIZE), pattern(2, SIZE)], &script());
    });
    (1..=4).map(|number| dir.join(format!("{number}.raw"))).collect()
}

/// An ext4 with `/dir/a`, `/dir/b` and `/dir/c`.
fn ext4(dir: &Path, name: &str) -> PathBuf {
    let tree = dir.join(format!("{name}.tree"));
    fs::create_dir_all(tree.join("dir")).unwrap();
    for file in ["a", "b", "c"] {
        fs::write(tree.join("dir").join(file), file).unwrap();
    }
    let path = dir.join(format!("{name}.raw"));
    File::create(&path).unwrap().set_len(32 * MIB).unwrap();
    let mut mkfs = tools::command("mkfs.ext4");
    mkfs.args(["-q", "-F", "-b", "1024", "-O", "^metadata_csum", "-d"]).arg(&tree).arg(&path);
    tools::output(&mut mkfs);
    path
}

/// What debugfs answers.
fn debugfs(options: &[&str], request: &str, image: &Path) -> String {
    let mut debugfs = tools::command("debugfs");
    debugfs.args(options).args(["-R", request]).arg(image);
    String::from_utf8(tools::output(&mut debugfs).stdout).unwrap()
}

/// An ext4 that is longer than its disk, one with a feature that no kernel has, one with a damaged
/// directory, and a swap area with a suspended system.
fn damaged(dir: &Path) -> [PathBuf; 4] {
    let cut = ext4(dir, "cut");
    File::options().write(true).open(&cut).unwrap().set_len(20 * MIB).unwrap();
    let new = ext4(dir, "new");
    debugfs(&["-w"], "set_super_value feature_incompat 0x80002c2", &new);
    let corrupt = ext4(dir, "corrupt");
    let block: u64 = debugfs(&[], "blocks /dir", &corrupt).trim().parse().unwrap();
    // The length of the third entry: `rec_len` of `struct ext4_dir_entry_2`, behind `.` and `..`.
    File::options().write(true).open(&corrupt).unwrap().write_all_at(&[3, 0], block * 1024 + 28).unwrap();
    let suspended = dir.join("suspended.raw");
    File::create(&suspended).unwrap().set_len(16 * MIB).unwrap();
    tools::run("mkswap", [&suspended]);
    // `S1SUSPEND` in place of `SWAPSPACE2` (`kernel/power/swap.c`).
    File::options().write(true).open(&suspended).unwrap().write_all_at(b"S1SUSPEND\0", 4086).unwrap();
    [cut, new, corrupt, suspended]
}

/// An ext4 whose `/short` is longer than its inode says, and whose `/hole` has lost a block. The
/// kernel does not list all names of either.
fn with_holes(dir: &Path) -> PathBuf {
    let tree = dir.join("holes.tree");
    for directory in ["short", "hole", "whole"] {
        fs::create_dir_all(tree.join(directory)).unwrap();
        for number in 0..60 {
            fs::write(tree.join(directory).join(format!("a file with a long name, number {number}")), "")
                .unwrap();
        }
    }
    let path = dir.join("holes.raw");
    File::create(&path).unwrap().set_len(32 * MIB).unwrap();
    let mut mkfs = tools::command("mkfs.ext4");
    mkfs.args(["-q", "-F", "-b", "1024", "-O", "^dir_index", "-d"]).arg(&tree).arg(&path);
    tools::output(&mut mkfs);
    debugfs(&["-w"], "set_inode_field /short size 1024", &path);
    debugfs(&["-w"], "punch /hole 1 1", &path);
    path
}

/// An XFS with `/file` and its log on another device, and one that wants a realtime device.
fn xfs(dir: &Path) -> [PathBuf; 3] {
    let [file, list] = ["xfs.file", "xfs.list"].map(|name| dir.join(name));
    fs::write(&file, pattern(4, SIZE)).unwrap();
    // The prototype: a file for booting, two numbers that mean nothing, the root, and what is in
    // it.
    fs::write(&list, format!("/none\n0 0\nd--755 0 0\nfile ---644 0 0 {}\n$\n", file.display())).unwrap();
    let [log, data, realtime, other] = ["log", "data", "realtime", "other"].map(|name| {
        let path = dir.join(format!("xfs-{name}.raw"));
        File::create(&path).unwrap().set_len(if name == "log" { 80 } else { 320 } * MIB).unwrap();
        path
    });
    let mkfs = |options: &str, other: &Path, path: &Path| {
        let mut mkfs = tools::command("mkfs.xfs");
        mkfs.arg("-q").arg(&options[..2]).arg(format!("{}={}", &options[3..], other.display()));
        tools::output(mkfs.arg("-p").arg(&list).arg(path));
    };
    mkfs("-l logdev", &log, &data);
    mkfs("-r rtdev", &other, &realtime);
    [log, data, realtime]
}

/// A UFS1 with `/file`.
fn ufs(dir: &Path) -> PathBuf {
    let tree = dir.join("ufs.tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), pattern(3, SIZE)).unwrap();
    let path = dir.join("ufs.raw");
    let mut makefs = tools::command("makefs");
    makefs.args(["-t", "ffs", "-o", "version=1,bsize=32768,fsize=4096", "-s", "16m"]);
    tools::output(makefs.arg(&path).arg(&tree));
    path
}

#[test]
fn the_kernels_words_and_the_options_that_filesystems_need() {
    needs!("guestfish", "sfdisk", "mkfs.ext4", "debugfs", "mkswap", "makefs", "mkfs.xfs");
    let dir = tempfile::tempdir().unwrap();
    let journals = with_journals();
    let [cut, new, corrupt, suspended] = damaged(dir.path());
    let [xfs_log, xfs_data, xfs_realtime] = xfs(dir.path());
    let disks = [
        cut,
        new,
        corrupt,
        suspended,
        // Without the journal of the second.
        journals[0].clone(),
        journals[2].clone(),
        journals[3].clone(),
        ufs(dir.path()),
        with_holes(dir.path()),
        xfs_log,
        xfs_data,
        xfs_realtime,
    ];
    let map = Mapped::of(&disks, &["--metadata"]);
    assert_eq!(map.code, 3, "{}", map.stderr);
    let error = |device: &str, kind: &str| map.cause(device, kind)["error"].as_str().unwrap().to_owned();

    let said = error("/dev/sda", "mount-failed");
    assert_eq!(said, "bad geometry: block count 32768 exceeds size of device (20480 blocks)");
    let said = error("/dev/sdb", "filesystem-too-new");
    assert!(said.contains("unsupported optional features (8000000)"), "{said}");
    assert!(!map.cause("/dev/sdb", "filesystem-too-new")["kernel"].as_str().unwrap().is_empty());
    let corrupt = map.warnings.iter().find(|warning| warning["cause"]["kind"] == "directory-corrupt");
    let corrupt = corrupt.unwrap_or_else(|| panic!("{:#?}", map.warnings));
    assert_eq!((&corrupt["device"], &corrupt["path"]), (&"/dev/sdc".into(), &"/dir".into()));
    assert!(corrupt["cause"]["error"].as_str().unwrap().contains("bad entry in directory"), "{corrupt}");
    assert!(!map.stderr.contains("dmesg(1)"), "{}", map.stderr);

    map.cause("/dev/sdd", "suspended");
    let swap = &map.pieces("m /dev/sdd [swap]")[0];
    assert_eq!((swap.start, swap.end), (0, 16 * MIB));

    // The journal has a word, and the filesystem needs none.
    let journal = &map.pieces("m /dev/sde [journal]")[0];
    assert_eq!((journal.start, journal.end), (0, 16 * MIB));
    assert!(map.file("f /dev/sdf /file", 0, SIZE) == pattern(1, SIZE));
    assert!(map.file("f /dev/sdg /file", 0, SIZE) == pattern(2, SIZE));
    map.cause("/dev/sdg", "journal-missing");
    assert!(
        map.file("f /dev/sdh /file", 0, SIZE) == pattern(3, SIZE),
        "{:?}",
        map.pieces("f /dev/sdh /file")
    );
    // The books tell how much the corrupt directory hides: three files of a block each.
    assert_eq!(map.cause("/dev/sdc", "unexplained")["bytes"], 3 * 1024);
    let with_holes = map.warnings.iter().filter(|warning| warning["cause"]["kind"] == "directory-holes");
    let with_holes: Vec<_> = with_holes.map(|warning| [&warning["device"], &warning["path"]]).collect();
    assert_eq!(with_holes, [["/dev/sdi", "/hole"], ["/dev/sdi", "/short"]]);
    // Of one of them, the kernel says something, too.
    let of_holes = map.warnings.iter().filter(|warning| warning["device"] == "/dev/sdi").count();
    assert!(of_holes <= 3, "{:#?}", map.warnings);
    // The log has its filesystem, and the realtime device is missing.
    let journal = &map.pieces("m /dev/sdj [journal]")[0];
    assert_eq!((journal.start, journal.end), (0, 80 * MIB));
    assert!(map.file("f /dev/sdk /file", 0, SIZE) == pattern(4, SIZE));
    assert!(error("/dev/sdl", "mount-failed").contains("realtime"), "{:#?}", map.warnings);
    assert_eq!(map.warnings.len() - of_holes, 7, "{:#?}", map.warnings);
}
