//! What inodes of ext2, ext3, ext4 and XFS say of files, in filesystems that `mke2fs` and
//! `mkfs.xfs` make. The oracles are `debugfs` and `xfs_db`.

use crate::ext::{Blocks, EXT_KINDS, debugfs_stat, fill, make};
use chrono::DateTime;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use virt_bmap_on_disk::ext::Tables;
use virt_bmap_on_disk::xfs::Volume;
use virt_bmap_on_disk::{Inode, Part};
use virt_bmap_testutil::oracle_ext4::{BIRTH, set_birth};
use virt_bmap_testutil::tools::{self, needs};

const BILLION: i64 = 1_000_000_000;

/// Reads bytes of an image.
pub(crate) fn reader(image: &Path) -> impl Fn(u64, u64) -> Option<Vec<u8>> {
    let device = File::open(image).unwrap();
    move |at, length| {
        let mut bytes = vec![0; length as usize];
        device.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    }
}

/// Blocks by their number in the file, where they lie, and whether they were never written.
fn blocks(data: &[Part], block: u64) -> Vec<(u64, u64, bool)> {
    let of = |part: &Part| {
        let (first, at, is_unwritten) = (part.offset / block, part.range.start.0 / block, part.is_unwritten);
        (0..part.range.len() / block).map(move |n| (first + n, at + n, is_unwritten))
    };
    data.iter().flat_map(of).collect()
}

/// The word after `name` in what debugfs says.
fn word<'a>(said: &'a str, name: &str) -> &'a str {
    said.split_once(name).unwrap().1.split_whitespace().next().unwrap()
}

/// `0x692be000:12345678 -- Sun Nov 30…`, or without the nanoseconds.
fn time(said: &str, name: &str) -> i64 {
    let text = word(said, name);
    let (seconds, more) = text.split_once(':').unwrap_or((text, "0"));
    let number = |text: &str| u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    i64::from(number(seconds) as i32) * BILLION + i64::from(number(more) >> 2)
}

#[test]
fn inodes_of_ext_are_as_debugfs_says() {
    needs!("mke2fs", "debugfs");
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fill(&tree);
    for (name, options) in EXT_KINDS {
        let image = make(dir.path(), &tree, name, options);
        let request = ["-w", "-R", "set_inode_field /long uid 70001", image.to_str().unwrap()];
        tools::run("debugfs", request);
        // Not all kinds leave both of them in the inode.
        for file in ["/long", "\"/many/a rather long name of a file, number 7\""] {
            set_birth(&image, file);
        }
        let read = reader(&image);
        let mut tables = Tables::read(&read).unwrap();
        let (mut found, mut refused, mut births) = (0, 0, BTreeSet::new());
        for (number, said) in (1..=540).zip(debugfs_stat(dir.path(), &image, 540)) {
            let place = tables.place(&read, number).unwrap();
            assert!(place.table.start <= place.at && place.at < place.table.end);
            let bytes = read(place.at.0, tables.inode_size()).unwrap();
            let (kind, flags) = (word(&said, "Type:"), word(&said, "Flags:"));
            let expected = Blocks::said(&said);
            let is_known = (kind == "regular" || (kind == "symlink" && expected.data.is_empty()))
                && expected.tree.is_empty()
                && expected.attributes.is_none()
                && flags != "0x10000000"
                && number > 10
                && word(&said, "Links:") != "0";
            let Some(inode) = tables.inode(number, &bytes) else {
                assert!(!is_known, "{name}: inode {number}\n{said}");
                refused += 1;
                continue;
            };
            assert!(is_known, "{name}: inode {number}\n{said}");
            found += 1;
            let block = if name == "inline" {
                2048
            } else if ["ext3", "quota"].contains(&name) {
                4096
            } else {
                1024
            };
            let has: Vec<_> = expected.data.into_iter().collect();
            assert_eq!(blocks(&inode.data, block), has, "{name}: inode {number}\n{said}");
            let Inode { mode, owner, links, size, allocated, modified, changed, generation, born, .. } =
                inode;
            assert_eq!(mode & 0o7777, u32::from_str_radix(word(&said, "Mode:"), 8).unwrap());
            assert_eq!(owner.0.to_string(), word(&said, "User:"));
            assert_eq!(owner.1.to_string(), word(&said, "Group:"));
            assert_eq!(links.to_string(), word(&said, "Links:"));
            assert_eq!(size.to_string(), word(&said, "Size:"));
            assert_eq!((allocated / 512).to_string(), word(&said, "Blockcount:"));
            assert_eq!(generation.to_string(), word(&said, "Generation:"));
            assert_eq!([changed, modified], ["ctime:", "mtime:"].map(|name| time(&said, name)), "{said}");
            let has_birth = said.contains("crtime:");
            assert_eq!(born, has_birth.then(|| time(&said, "crtime:")), "{said}");
            births.insert(born);
        }
        // Empty files have their data in the inode, too.
        let least = if name == "inline" { 2 } else { 500 };
        assert!(found >= least && refused > 10, "{name}: {found} found, {refused} refused");
        // Inodes of 128 bytes have no room for it.
        assert_eq!(births.contains(&Some(BIRTH)), name != "revision 0", "{name}");
    }
}

#[test]
fn an_inode_of_ext_says_when_it_was_made_if_it_has_room_for_that() {
    needs!("mke2fs", "debugfs");
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), [7; 9000]).unwrap();
    let image = make_small(dir.path(), &tree, "^metadata_csum");
    set_birth(&image, "/file");
    let read = reader(&image);
    let mut tables = Tables::read(&read).unwrap();
    let place = tables.place(&read, 12).unwrap();
    let mut bytes = read(place.at.0, tables.inode_size()).unwrap();
    let whole_seconds = BIRTH / BILLION * BILLION;
    // `i_extra_isize`: the bytes after the first 128 that are in use; 0 means all.
    for (extra, born) in [
        (32, Some(BIRTH)),
        (24, Some(BIRTH)),
        (20, Some(whole_seconds)),
        (16, None),
        (4, None),
        (0, Some(BIRTH)),
    ] {
        bytes[128] = extra;
        assert_eq!(tables.inode(12, &bytes).map(|inode| inode.born), Some(born), "{extra} bytes");
    }
    // Two bits more of the seconds are below the nanoseconds.
    bytes[128] = 32;
    bytes[0x94] |= 1;
    assert_eq!(tables.inode(12, &bytes).unwrap().born, Some(BIRTH + (1 << 32) * BILLION));
}

#[test]
fn a_damaged_inode_of_ext_is_left_to_the_kernel() {
    needs!("mke2fs", "debugfs");
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), [7; 9000]).unwrap();
    let image = make_small(dir.path(), &tree, "metadata_csum");
    let read = reader(&image);
    let mut tables = Tables::read(&read).unwrap();
    // Behind the inodes without a name and the directory of what was lost.
    let place = tables.place(&read, 12).unwrap();
    let bytes = read(place.at.0, tables.inode_size()).unwrap();
    assert!(tables.inode(12, &bytes).is_some_and(|inode| inode.size == 9000));
    for (at, byte) in bytes.iter().enumerate() {
        let mut damaged = bytes.clone();
        damaged[at] = byte ^ 4;
        assert_eq!(tables.inode(12, &damaged), None, "byte {at}");
    }
    // The checksum is that of this inode alone.
    assert_eq!(tables.inode(13, &bytes), None);
    assert_eq!(tables.inode(12, &bytes[..128]), None);
    assert_eq!((tables.place(&read, 0), tables.place(&read, 1 << 40)), (None, None));
}

fn make_small(dir: &Path, tree: &Path, features: &str) -> std::path::PathBuf {
    let image = dir.join("small");
    File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let [tree, path] = [tree, &image].map(|path| path.to_str().unwrap());
    tools::run("mke2fs", ["-q", "-F", "-t", "ext4", "-O", features, "-d", tree, path]);
    image
}

/// An XFS with files, links and directories of all kinds that its program can make.
fn make_xfs(dir: &Path, name: &str, options: &[&str]) -> std::path::PathBuf {
    let content = dir.join("content");
    fs::write(&content, vec![7; 300_000]).unwrap();
    let mut prototype = "/none\n0 0\nd--755 0 0\n".to_owned();
    for n in 0..40 {
        writeln!(prototype, "file{n} ---644 70001 {n} {}", content.display()).unwrap();
        writeln!(prototype, "link{n} l--777 0 0 target{n}").unwrap();
    }
    writeln!(prototype, "long l--777 0 0 {}", "x".repeat(700)).unwrap();
    // A directory whose entries are in its inode, one of a block, and one with an index.
    for (name, count) in [("short", 3), ("block", 60), ("indexed", 900)] {
        writeln!(prototype, "{name} d--755 3 4").unwrap();
        for n in 0..count {
            writeln!(prototype, "an-entry-{n} ---600 1 2 /dev/null").unwrap();
        }
        writeln!(prototype, "$").unwrap();
    }
    prototype.push_str("$\n");
    let path = dir.join("prototype");
    fs::write(&path, prototype).unwrap();
    let image = dir.join(name);
    File::create(&image).unwrap().set_len(320 << 20).unwrap();
    let paths = ["-p", path.to_str().unwrap(), image.to_str().unwrap()];
    tools::run("mkfs.xfs", ["-q"].iter().chain(options).chain(&paths));
    image
}

#[test]
fn inodes_of_xfs_are_as_xfs_db_says() {
    needs!("mkfs.xfs", "xfs_db");
    /// Inodes of a group that are looked at.
    const IN_GROUP: std::ops::Range<u64> = 32..1300;
    let dir = tempfile::tempdir().unwrap();
    let kinds: [(&str, &[&str]); 3] = [
        ("as it is made", &[]),
        ("version 4", &["-m", "crc=0"]),
        ("small blocks, times of 32 bits", &["-b", "size=1024", "-m", "bigtime=0", "-i", "size=512"]),
    ];
    for (name, options) in kinds {
        let image = make_xfs(dir.path(), &name.replace(' ', "-"), options);
        let read = reader(&image);
        let volume = Volume::of(&read(0, 512).unwrap()).unwrap();
        // Each directory goes to another group, whose number is in the upper bits (`sb_inopblog`).
        let bits = u32::from(read(123, 1).unwrap()[0] + read(124, 1).unwrap()[0]);
        let numbers =
            || (0..volume.groups).flat_map(|group| IN_GROUP.map(move |number| (group << bits) + number));
        let fields =
            "magic mode nlinkv2 uid gid size nblocks mtime.sec mtime.nsec ctime.sec ctime.nsec gen format";
        let mut fields: String = fields.split(' ').map(|field| format!(" core.{field}")).collect();
        if volume.has_checksums {
            fields += " v3.crtime.sec v3.crtime.nsec";
        }
        let requests: String = numbers()
            .map(|number| format!("inode {number}\necho inode {number}\nprint{fields}\nbmap\n"))
            .collect();
        let file = dir.path().join("requests");
        fs::write(&file, requests).unwrap();
        let output = tools::command("xfs_db")
            .env("TZ", "UTC")
            .args(["-r".as_ref(), image.as_path()])
            .stdin(File::open(&file).unwrap())
            .output()
            .unwrap();
        let said = format!("\n{}", String::from_utf8_lossy(&output.stdout));
        // Otherwise an inode would lack what was not said any more.
        let answers = said.matches("\ninode ").count();
        let is_whole = output.status.success() && answers == numbers().count();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(is_whole, "{name}: {}, {answers} answers: {errors:.2000}", output.status);
        let mut count = BTreeMap::new();
        for (number, said) in numbers().zip(said.split("\ninode ").skip(1)) {
            assert!(said.starts_with(&number.to_string()), "{said}");
            let value = |field: &str| {
                let line = said.lines().find_map(|line| line.strip_prefix(&format!("core.{field} = ")));
                line.unwrap_or_default().to_owned()
            };
            let mode = u32::from_str_radix(value("mode").trim_start_matches('0'), 8).unwrap_or(0);
            let bytes = read(volume.inode_place(number).unwrap(), volume.inode).unwrap();
            let kind = mode & 0o170_000;
            let inode = match kind {
                0o040_000 => volume.directory(number, &bytes),
                _ => volume.inode(number, &bytes),
            };
            let is_short = value("format") == "1 (local)";
            let is_known = [0o040_000, 0o100_000].contains(&kind) || (kind == 0o120_000 && is_short);
            let expected = is_known && value("magic") == "0x494e" && value("nlinkv2") != "0";
            assert_eq!(inode.is_some(), expected, "{name}: {said}");
            let Some(inode) = inode else { continue };
            *count.entry((kind, inode.data.is_empty())).or_insert(0) += 1;
            let parts =
                said.lines().filter_map(|line| line.split_once("data offset ")).flat_map(|(_, line)| {
                    let words: Vec<&str> = line.split(' ').collect();
                    let [offset, first, count] = [0, 2, 5].map(|at| words[at].parse::<u64>().unwrap());
                    (0..count).map(move |n| (offset + n, first + n))
                });
            // Numbers of blocks have that of the group in their upper bits (`sb_agblklog`).
            let bits = u32::from(read(124, 1).unwrap()[0]);
            let group = |number: u64| (number >> bits) * volume.group_blocks + (number & ((1 << bits) - 1));
            let parts: Vec<_> = parts.map(|(offset, at)| (offset, group(at), false)).collect();
            assert_eq!(blocks(&inode.data, volume.block), parts, "{name}: {said}");
            let Inode { owner, links, size, allocated, modified, changed, generation, born, .. } = inode;
            assert_eq!(
                (inode.mode, owner.0.to_string(), owner.1.to_string()),
                (mode, value("uid"), value("gid"))
            );
            assert_eq!((links.to_string(), size.to_string()), (value("nlinkv2"), value("size")));
            assert_eq!((allocated / volume.block).to_string(), value("nblocks"));
            assert_eq!(generation.to_string(), value("gen"));
            assert_eq!(born.is_some(), volume.has_checksums);
            let times = [(modified, "core.mtime"), (changed, "core.ctime")].into_iter();
            for (time, field) in times.chain(born.map(|born| (born, "v3.crtime"))) {
                let value = |part| {
                    let name = format!("{field}.{part} = ");
                    said.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or_default().to_owned()
                };
                let date = DateTime::from_timestamp(time.div_euclid(BILLION), 0).unwrap();
                assert_eq!(date.format("%a %b %e %H:%M:%S %Y").to_string(), value("sec"));
                assert_eq!(time.rem_euclid(BILLION).to_string(), value("nsec"));
            }
        }
        let expected =
            [(0o040_000, true), (0o040_000, false), (0o100_000, true), (0o100_000, false), (0o120_000, true)];
        assert!(expected.iter().all(|kind| count.contains_key(kind)), "{name}: {count:?}");
    }
}

#[test]
fn a_damaged_inode_of_xfs_is_left_to_the_kernel() {
    needs!("mkfs.xfs");
    let dir = tempfile::tempdir().unwrap();
    let image = make_xfs(dir.path(), "image", &[]);
    let read = reader(&image);
    let volume = Volume::of(&read(0, 512).unwrap()).unwrap();
    let found = (128..192).find_map(|number| {
        let bytes = read(volume.inode_place(number)?, volume.inode)?;
        volume.inode(number, &bytes).filter(|inode| inode.size == 300_000)?;
        Some((number, bytes))
    });
    let (number, bytes) = found.unwrap();
    for (at, byte) in bytes.iter().enumerate() {
        let mut damaged = bytes.clone();
        damaged[at] = byte ^ 4;
        assert_eq!(volume.inode(number, &damaged), None, "byte {at}");
    }
    assert_eq!((volume.inode(number + 1, &bytes), volume.inode(number, &bytes[..300])), (None, None));
}
