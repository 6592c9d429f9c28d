//! Files that were removed while a program had them open, in the image of a running guest: two ext4
//! that were copied while they were mounted, with a list of orphans and with a file of them, and an
//! ext2 with a list. The kernel of the appliance must not free their blocks.
//!
//! The oracle is the raw disk: the sectors of the files have patterns.

use super::disks;
use super::with_metadata::pieces;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use virt_bmap_map::{Cause, Kind, Map, ObjectName};
use virt_bmap_testutil::ranges::{bytes, difference, intersection, normalise};
use virt_bmap_testutil::{cache, guestfish, oracle_pattern, special, tools};

const MIB: u64 = 1 << 20;

/// The files that are removed, by their number in the pattern, and one that stays.
const REMOVED: [u32; 3] = [1, 2, 3];
const KEPT: u32 = 4;

/// Sectors of a file.
fn sectors(id: u32) -> u32 {
    id * 290 + 1
}

/// Removes files and a directory that are open, and copies the disk.
const FILL: &str = "set -eu
mkdir -p /t
mount $1 /t
cd /t
cp /tmp/f? .
mkdir dir
sync
exec 3<f1 4<f2 5<f3 6<dir
rm f1 f2 f3
rmdir dir
sync
dd if=$1 of=$2 bs=1M conv=fsync 2>/dev/null
exec 3<&- 4<&- 5<&- 6<&-
cd /
umount /t
";

fn content(id: u32) -> Vec<u8> {
    (0..sectors(id)).flat_map(|number| special::sector(id, number)).collect()
}

/// Makes the filesystems.
pub(crate) fn make(dir: &Path) -> Vec<PathBuf> {
    let copies = cache::directory("orphans", &cache::key((FILL, include_str!("orphans.rs"))), copy_mounted);
    let ext2 = dir.join("orphans.raw");
    let tree = dir.join("orphans.tree");
    fs::create_dir(&tree).unwrap();
    write_files(&tree);
    File::create(&ext2).unwrap().set_len(16 * MIB).unwrap();
    let words = ["-q", "-F", "-t", "ext2", "-b", "1024", "-d"].map(OsStr::new);
    tools::run("mke2fs", words.into_iter().chain([tree.as_os_str(), ext2.as_os_str()]));
    // The inode of each has the number of the next one in place of the time of its deletion.
    let mut next = 0;
    for id in REMOVED {
        let stat = debugfs(&[], &format!("stat /f{id}"), &ext2);
        let inode = stat.split_whitespace().nth(1).unwrap();
        for request in [
            format!("unlink /f{id}"),
            format!("set_inode_field <{inode}> links_count 0"),
            format!("set_inode_field <{inode}> dtime @{next}"),
            format!("set_super_value last_orphan {inode}"),
        ] {
            debugfs(&["-w"], &request, &ext2);
        }
        next = inode.parse().unwrap();
    }
    vec![copies.join("list.raw"), copies.join("file.raw"), ext2]
}

fn write_files(dir: &Path) {
    for id in REMOVED.into_iter().chain([KEPT]) {
        fs::write(dir.join(format!("f{id}")), content(id)).unwrap();
    }
}

fn debugfs(options: &[&str], request: &str, image: &Path) -> String {
    let words = [options, &["-R", request]].concat();
    let words = words.into_iter().map(OsStr::new).chain([image.as_os_str()]);
    String::from_utf8_lossy(&tools::run("debugfs", words)).into_owned()
}

/// Makes the two that are copied while they are mounted.
fn copy_mounted(dir: &Path) {
    let staging = tempfile::tempdir().unwrap();
    write_files(staging.path());
    fs::write(staging.path().join("fill.sh"), FILL).unwrap();
    let disks = ["list-guest", "file-guest", "list", "file"];
    let mut script: String =
        disks.map(|name| format!("disk-create {name}.raw raw 32M\nadd {name}.raw format:raw\n")).concat();
    script += "run\n";
    for file in ["fill.sh", "f1", "f2", "f3", "f4"] {
        script += &format!("debug-upload {}/{file} /tmp/{file} 0600\n", staging.path().display());
    }
    for (options, from, to) in [("^orphan_file", "sda", "sdc"), ("orphan_file", "sdb", "sdd")] {
        script += &format!(
            "debug sh 'mkfs.ext4 -q -b 1024 -O {options} /dev/{from} >&2 && sh /tmp/fill.sh /dev/{from} /dev/{to} >&2'\n"
        );
    }
    guestfish::run(dir, &(script + "shutdown\n"));
    for name in ["list-guest", "file-guest"] {
        fs::remove_file(dir.join(format!("{name}.raw"))).unwrap();
    }
}

/// Checks the filesystems. The first is on the disk with this number.
pub(crate) fn check(map: &Map, first: u16, images: &[PathBuf]) {
    for (disk, image) in (first..).zip(images) {
        let device = disks::device(disk);
        let on_disk = oracle_pattern::scan(image);
        let places: BTreeMap<u32, _> = on_disk
            .into_iter()
            .map(|(id, sectors)| (id, normalise(sectors.values().flatten().map(|at| *at..*at + 512))))
            .collect();
        let of =
            |kind, path: &str| pieces(map, disk, &ObjectName::path(kind, device.as_bytes(), path.as_bytes()));
        // Blocks have two sectors.
        let is_of = |pieces: &[_], id: u32| {
            let rest = bytes(&difference(pieces, &places[&id]));
            bytes(&difference(&places[&id], pieces)) == 0 && rest < 1024
        };
        assert!(is_of(&of(Kind::File, &format!("/f{KEPT}")), KEPT), "{device}");
        let is_orphan = |object: &virt_bmap_map::Object<'_>| {
            let name = object.name();
            name.device == device.as_bytes() && name.path.starts_with(b"[orphan inode ")
        };
        let orphans: Vec<_> = map.objects().filter(is_orphan).collect();
        for id in REMOVED {
            let size = u64::from(sectors(id)) * 512;
            let found: Vec<_> =
                orphans.iter().filter(|object| object.attributes().size == Some(size)).collect();
            assert_eq!(found.len(), 1, "{device}: {id}");
            let (name, attributes) = (found[0].name(), found[0].attributes());
            assert_eq!(name.kind, Kind::File, "{device}: {id}");
            let path = format!("[orphan inode {}]", attributes.inode.unwrap());
            assert_eq!(name.path, path.as_bytes());
            assert!(is_of(&of(Kind::File, &path), id), "{device}: {id}");
            assert_eq!(intersection(&of(Kind::Free, ""), &places[&id]), [], "{device}: {id}");
        }
        let is_copy = disk < first + 2;
        let directories = orphans.iter().filter(|object| object.name().kind == Kind::Directory).count();
        assert_eq!(directories, usize::from(is_copy), "{device}");
        let header = map.header();
        let filesystem = header.filesystems.iter().find(|it| it.device == device.as_bytes()).unwrap();
        let balance = filesystem.balance.unwrap();
        assert_eq!((balance.unexplained, balance.claimed_twice, balance.claimed_free), (0, 0, 0), "{device}");
        let causes = disks::causes(map, disk);
        assert_eq!(causes.len(), usize::from(is_copy), "{device}: {causes:?}");
        assert!(causes.iter().all(|cause| matches!(cause, Cause::JournalReplayed)), "{causes:?}");
    }
}
