//! Layers that are in a bad state, and what the map says of all copies and of parity.
//!
//! One guest of twenty disks is made by one appliance and mapped twice: whole, and with disks taken away, cloned
//! and put into another order.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::single_range_in_vec_init)]

mod common;

use common::special::{SECTOR, sector};
use common::tools::{self, needs};
use common::{cache, guestfish, sandbox};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const MIB: u64 = 1 << 20;
/// Sizes of the guest's disks in MiB, and of their partitions.
const DISKS: [(u64, &[u64]); 20] = [
    (72, &[20, 24, 24]),
    (72, &[20, 24, 24]),
    (72, &[20, 24, 24]),
    (24, &[]),
    (320, &[]),
    (130, &[]),
    (130, &[]),
    (490, &[16, 16, 320, 130]),
    (8, &[]),
    (8, &[]),
    (8, &[]),
    (8, &[]),
    (8, &[]),
    (8, &[]),
    (8, &[]),
    (8, &[]),
    (8, &[]),
    (8, &[]),
    (8, &[]),
    (8, &[]),
];

/// Bytes of each file: more than a stripe of everything here, and no whole number of blocks.
const SIZE: usize = 300 * 1024 + 700;

/// What a file holds.
fn content(id: u32) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..SIZE.div_ceil(SECTOR) as u32).flat_map(|n| sector(id, n)).collect();
    bytes.truncate(SIZE);
    bytes
}

/// The file systems that hold `/file`: device in the whole guest, how it is made, and whether its journal is left
/// unclean.
const FILESYSTEMS: [(&str, &str, &str); 9] = [
    ("/dev/md1", "/dev/md/1", "mkfs.ext4 -q -b 4096"),
    ("/dev/md5", "/dev/md/5", "mkfs.ext4 -q -b 4096"),
    ("/dev/vgm/lv", "/dev/vgm/lv", "mkfs.ext4 -q -b 4096"),
    ("/dev/vgm/whole", "/dev/vgm/whole", "mkfs.ext4 -q -b 4096"),
    ("/dev/sdd", "/dev/sdd", "mkfs.ext4 -q -b 4096"),
    ("/dev/sde", "/dev/sde", "mkfs.xfs -q"),
    ("/dev/sdf", "/dev/sdf", "mkfs.btrfs -q -d raid1 -m raid1 /dev/sdg"),
    ("/dev/vgc/lv", "/dev/vgc/lv", "mkfs.ext4 -q -b 4096"),
    ("/dev/sdh4", "/dev/sdh4", "mkfs.btrfs -q"),
];

fn script() -> String {
    let mut s = String::from(
        "set -eu\nSRC=/dev/disk/guestfs/src\n\
         md() { n=$1; shift; mdadm --create /dev/md/$n --run --quiet --metadata=1.2 --data-offset=1024 --homehost=any --assume-clean --bitmap=none \"$@\"; }\n\
         md 1 --level=1 --raid-devices=2 /dev/sda1 /dev/sdb1\n\
         md 5 --level=5 --chunk=64 --raid-devices=3 /dev/sda2 /dev/sdb2 /dev/sdc2\n\
         pvcreate -q /dev/sda3 /dev/sdb3 /dev/sdh1 >/dev/null\n\
         vgcreate -q -s 1M vgm /dev/sda3 /dev/sdb3\nvgcreate -q -s 1M vgc /dev/sdh1\n\
         lvcreate -q -y -i 2 -I 64k -L 16M -n lv vgm >/dev/null\n\
         lvcreate -q -y -L 10M -n whole vgm /dev/sda3 >/dev/null\n\
         lvcreate -q -y -L 12M -n lv vgc >/dev/null\n\
         md 9 --level=1 --force --raid-devices=1 /dev/sdh2\nmkfs.ext4 -q /dev/md/9\n\
         mkfs.xfs -q /dev/sdh3\n",
    );
    let mut all: Vec<(String, String)> =
        FILESYSTEMS.iter().map(|(_, device, mkfs)| ((*device).to_owned(), (*mkfs).to_owned())).collect();
    all.extend((9..=20).map(|disk| (device(disk), "mkfs.ext4 -q -b 1024".to_owned())));
    for (id, (device, mkfs)) in (1..).zip(&all) {
        let from = (id - 1) * SIZE.div_ceil(4096);
        write!(
            s,
            "{mkfs} {device}\nmkdir -p /mnt/{id}\nmount {device} /mnt/{id}\n\
             dd status=none bs=4096 iflag=fullblock,count_bytes if=$SRC skip={from} count={SIZE} of=/mnt/{id}/file\n\
             sync -f /mnt/{id}/file\n"
        )
        .unwrap();
        // What ends up in the journal alone: the log is written, but nothing else is.
        let unclean = if matches!(device.as_str(), "/dev/sdd" | "/dev/sde") {
            format!("touch /mnt/{id}/later; xfs_io -x -c 'shutdown -f' /mnt/{id}\n")
        } else {
            String::new()
        };
        writeln!(s, "{unclean}umount /mnt/{id}").unwrap();
    }
    s.push_str("vgchange -q -an vgm vgc >/dev/null\nmdadm --stop --quiet /dev/md/1 /dev/md/5 /dev/md/9\n");
    // The kernel names disks as it finds them; their labels keep to the order.
    s.replace("/dev/sd", "/dev/disk/guestfs/sd")
}

/// `/dev/sda` for 1, and so on.
fn device(disk: usize) -> String {
    format!("/dev/sd{}", char::from(b'a' + disk as u8 - 1))
}

/// The images of the guest's disks.
fn disks() -> Vec<PathBuf> {
    let key = cache::key((script(), DISKS, SIZE));
    let dir = cache::directory("layers", &key, |dir| {
        let mut fish = String::new();
        for (number, (size, parts)) in (1..).zip(DISKS) {
            let path = dir.join(format!("{number}.raw"));
            File::create(&path).unwrap().set_len(size * MIB).unwrap();
            if !parts.is_empty() {
                let mut table = String::from("label: gpt\n");
                let mut at = 1;
                for size in parts {
                    writeln!(table, "start={}, size={}", at * 2048, size * 2048).unwrap();
                    at += size;
                }
                let file = dir.join("table");
                fs::write(&file, table).unwrap();
                tools::output(
                    tools::command("sfdisk").arg("-q").arg(&path).stdin(File::open(&file).unwrap()),
                );
            }
            let label = device(number).replace("/dev/", "");
            writeln!(fish, "add-drive {number}.raw format:raw cachemode:unsafe label:{label}").unwrap();
        }
        let blob = File::create(dir.join("blob")).unwrap();
        let count = FILESYSTEMS.len() as u32 + 12;
        for id in 1..=count {
            let at = u64::from(id - 1) * (SIZE as u64).div_ceil(4096) * 4096;
            blob.write_all_at(&content(id), at).unwrap();
        }
        blob.set_len(u64::from(count) * (SIZE as u64).div_ceil(4096) * 4096).unwrap();
        fs::write(dir.join("make.sh"), script()).unwrap();
        write!(
            fish,
            "add-drive blob readonly:true format:raw label:src\nrun\ndebug-upload make.sh /tmp/make.sh 0700\n\
             debug sh 'bash /tmp/make.sh >&2 || {{ dmesg | tail -5 >&2; exit 1; }}'\nshutdown\n"
        )
        .unwrap();
        guestfish::run(dir, &fish);
    });
    (1..=DISKS.len()).map(|number| dir.join(format!("{number}.raw"))).collect()
}

/// A map of some disks, and what the program said.
struct Mapped {
    images: Vec<PathBuf>,
    /// Lines of JSON by `TYPE DEVICE PATH`.
    objects: BTreeMap<String, Value>,
    text: String,
    stderr: String,
    code: i32,
}

impl Mapped {
    fn of(images: &[PathBuf], options: &[&str]) -> Self {
        let outs = ["-o", "out.jsonl", "-o", "out.bmap"].iter().chain(options).map(OsString::from);
        let run = sandbox::run(images.iter().map(|image| image.clone().into_os_string()).chain(outs));
        let lines = String::from_utf8(run.read("out.jsonl")).unwrap();
        let objects = lines.lines().skip(1).map(|line| {
            let object: Value = serde_json::from_str(line).unwrap();
            let word = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
            (format!("{} {} {}", word("type"), word("device"), word("path")).trim_end().to_owned(), object)
        });
        Self {
            images: images.to_vec(),
            objects: objects.collect(),
            text: String::from_utf8(run.read("out.bmap")).unwrap(),
            stderr: run.stderr.clone(),
            code: run.code(),
        }
    }

    /// Pieces of an object: disk, start, end, offset, copy, flags.
    fn pieces(&self, object: &str) -> Vec<Piece> {
        let object = self
            .objects
            .get(object)
            .unwrap_or_else(|| panic!("{object} is not in the map:\n{}", self.stderr));
        let pieces = object["ranges"].as_array().into_iter().flatten();
        pieces
            .map(|range| Piece {
                disk: range["disk"].as_u64().unwrap() as usize,
                start: range["start"].as_u64().unwrap(),
                end: range["end"].as_u64().unwrap(),
                offset: range["offset"].as_u64(),
                copy: range["copy"].as_u64().unwrap_or(0),
                is_parity: range["flags"].as_array().is_some_and(|flags| flags.contains(&"parity".into())),
            })
            .collect()
    }

    fn read(&self, disk: usize, start: u64, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        File::open(&self.images[disk - 1]).unwrap().read_exact_at(&mut bytes, start).unwrap();
        bytes
    }

    /// One copy of a file, put together from the images.
    fn file(&self, object: &str, copy: u64) -> Vec<u8> {
        let mut bytes = vec![0; SIZE.next_multiple_of(4096)];
        for piece in self.pieces(object).iter().filter(|piece| piece.copy == copy && !piece.is_parity) {
            let at = piece.offset.expect("a piece of a file without its offset") as usize;
            let part = self.read(piece.disk, piece.start, piece.end - piece.start);
            bytes[at..at + part.len()].copy_from_slice(&part);
        }
        bytes.truncate(SIZE);
        bytes
    }

    #[track_caller]
    fn says(&self, words: &[&str]) {
        let found = self.stderr.lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(found, "nothing says {words:?}:\n{}", self.stderr);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    disk: usize,
    start: u64,
    end: u64,
    offset: Option<u64>,
    copy: u64,
    is_parity: bool,
}

fn whole() -> &'static Mapped {
    static WHOLE: OnceLock<Mapped> = OnceLock::new();
    WHOLE.get_or_init(|| Mapped::of(&disks(), &[]))
}

/// The files of the whole guest, and what is in them.
fn files() -> Vec<(String, Vec<u8>)> {
    let tiny = (9..=20).map(device);
    let devices = FILESYSTEMS.iter().map(|(device, ..)| (*device).to_owned()).chain(tiny);
    (1..).zip(devices).map(|(id, device)| (format!("f {device} /file"), content(id))).collect()
}

#[test]
fn every_copy_on_twenty_disks() {
    needs!("guestfish", "sfdisk");
    let map = whole();
    assert_eq!(map.code, 0, "{}", map.stderr);
    for (object, content) in files() {
        let copies = if object.contains("/dev/md1") || object.contains("/dev/sdf") { 2 } else { 1 };
        for copy in 0..copies {
            assert!(map.file(&object, copy) == content, "{object}, copy {copy}: {:?}", map.pieces(&object));
        }
        assert!(map.pieces(&object).iter().all(|piece| piece.copy < copies), "{object}");
        assert!(map.objects[&object].get("marks").is_none(), "{object}: {}", map.objects[&object]["marks"]);
    }
    for device in ["/dev/sdd", "/dev/sde"] {
        map.says(&[device, "not unmounted cleanly"]);
    }
}

#[test]
fn parity_is_named_and_is_no_data() {
    needs!("guestfish", "sfdisk");
    let map = whole();
    let pieces = map.pieces("f /dev/md5 /file");
    let (parity, data): (Vec<Piece>, Vec<Piece>) = pieces.into_iter().partition(|piece| piece.is_parity);
    // The members lie at the same place on each of three disks: a byte of each, and they cancel one another.
    for piece in &parity {
        let mut sum = vec![0; (piece.end - piece.start) as usize];
        for disk in 1..=3 {
            let bytes = map.read(disk, piece.start, piece.end - piece.start);
            sum.iter_mut().zip(bytes).for_each(|(sum, byte)| *sum ^= byte);
        }
        assert!(sum.iter().all(|byte| *byte == 0), "no parity: {piece:?}");
    }
    let covers = |list: &[Piece], at: u64, disk: Option<usize>| {
        list.iter().any(|p| p.start <= at && at < p.end && disk.is_none_or(|disk| disk == p.disk))
    };
    for piece in &data {
        for at in (piece.start..piece.end).step_by(4096) {
            assert!(covers(&parity, at, None), "{piece:?} is not protected at {at:x}");
            assert!(!covers(&parity, at, Some(piece.disk)), "{piece:?} is parity, too");
        }
    }
    let lines = map.text.lines().filter(|line| line.ends_with(" f /dev/md5 /file"));
    let hex = |word: &str| u64::from_str_radix(word, 16).unwrap();
    let bytes = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        hex(words[2]) - hex(words[1])
    };
    assert_eq!(lines.map(bytes).sum::<u64>(), (SIZE as u64).next_multiple_of(4096));
}

#[test]
fn with_one_leg_there_is_each_byte_once_and_no_parity() {
    needs!("guestfish", "sfdisk");
    let (all, one) = (whole(), Mapped::of(&disks(), &["--legs", "one"]));
    assert_eq!(one.code, 0, "{}", one.stderr);
    assert!(all.objects.keys().eq(one.objects.keys()), "{}", one.stderr);
    for object in all.objects.keys() {
        let (every, mut rest) = (all.pieces(object), one.pieces(object));
        assert!(rest.iter().all(|piece| !piece.is_parity), "{object}");
        // Each piece is one of all, or a part of one.
        for piece in &rest {
            let holds = |of: &&Piece| {
                (of.disk, of.copy, of.is_parity) == (piece.disk, piece.copy, false)
                    && of.start <= piece.start
                    && piece.end <= of.end
                    && of.offset.map(|at| at + piece.start - of.start) == piece.offset
            };
            assert!(every.iter().any(|of| holds(&of)), "{object}: {piece:?} is none of {every:?}");
        }
        if object.ends_with(" /file") {
            // From the beginning to the end of the last block.
            rest.sort_by_key(|piece| piece.offset);
            let end = rest.iter().fold(0, |at, piece| {
                assert_eq!(piece.offset, Some(at), "{object}: {rest:?}");
                at + (piece.end - piece.start)
            });
            assert!(
                (SIZE as u64..=(SIZE as u64).next_multiple_of(4096)).contains(&end),
                "{object}: {rest:?}"
            );
        }
    }
}

/// What `/file` holds on a btrfs of two devices, by this machine's kernel. `None`: it cannot be read.
fn on_btrfs(devices: &[PathBuf; 2]) -> Option<Vec<u8>> {
    // A device that can be written to is mended from the other copy, even where it is mounted read-only: by
    // Linux 6.18, in one of two cases, as the process id decides which copy is read first.
    let attach = |image: &PathBuf| {
        let options = ["--read-only", "--find", "--show"].map(AsRef::as_ref);
        let said = tools::run("losetup", options.into_iter().chain([image.as_os_str()]));
        String::from_utf8(said).unwrap().trim().to_owned()
    };
    let loops = devices.each_ref().map(attach);
    let dir = tempfile::tempdir().unwrap();
    let options = format!("ro,device={},device={}", loops[0], loops[1]);
    let mut mount = tools::command("mount");
    mount.args(["-t", "btrfs", "-o", &options, &loops[0]]).arg(dir.path());
    let is_mounted = mount.status().unwrap().success();
    // Read by a process of its own: a file that is open here would be open in whatever another test is just
    // starting, too, and the filesystem with what it has in memory would outlive its end here.
    let content = tools::command("cat").arg(dir.path().join("file")).output().unwrap();
    if is_mounted {
        tools::run("umount", [dir.path()]);
    }
    tools::run("losetup", ["--detach", &loops[0], &loops[1]]);
    assert!(is_mounted, "{mount:?}");
    content.status.success().then_some(content.stdout)
}

#[test]
fn a_file_on_btrfs_is_lost_with_the_last_of_its_copies() {
    needs!("guestfish", "sfdisk", "losetup", "mount");
    if !tools::is_root("mount a filesystem") {
        return;
    }
    if !fs::read_to_string("/proc/filesystems").unwrap().contains("btrfs") {
        tools::skip("this machine's kernel has no btrfs");
        return;
    }
    let map = whole();
    let dir = tempfile::tempdir().unwrap();
    let legs = [6, 7].map(|disk| dir.path().join(format!("{disk}.raw")));
    for (disk, leg) in [6, 7].into_iter().zip(&legs) {
        common::formats::copy(&map.images[disk - 1], leg);
    }
    assert!(on_btrfs(&legs).unwrap() == content(7));
    for lost in 0..2 {
        for piece in map.pieces("f /dev/sdf /file").iter().filter(|piece| piece.copy == lost) {
            let leg = File::options().write(true).open(&legs[piece.disk - 6]).unwrap();
            leg.write_all_at(&vec![0x5a; (piece.end - piece.start) as usize], piece.start).unwrap();
        }
        // Its checksums tell the kernel which copy is right.
        let served = on_btrfs(&legs);
        assert_eq!(served.is_some_and(|served| served == content(7)), lost == 0, "after copy {lost}");
    }
}

/// What `/file` holds on one leg of `/dev/md1` alone.
fn on_leg(disk: &Path) -> Vec<u8> {
    // The partition begins after a MiB, and in it the data of the array after another.
    let image = format!("{}?offset={}", disk.display(), 2 * MIB);
    tools::output(tools::command("debugfs").args(["-R", "cat /file", &image])).stdout
}

#[test]
fn a_file_is_lost_with_the_last_of_its_legs() {
    needs!("guestfish", "sfdisk", "debugfs");
    let map = whole();
    let (_, content) = files().swap_remove(0);
    let dir = tempfile::tempdir().unwrap();
    let legs = [0, 1].map(|leg| dir.path().join(format!("leg{leg}.raw")));
    for (leg, image) in legs.iter().zip(&map.images) {
        common::formats::copy(image, leg);
        assert!(on_leg(leg) == content);
    }
    for lost in 0..2 {
        for piece in map.pieces("f /dev/md1 /file").iter().filter(|piece| piece.copy == lost) {
            let leg = File::options().write(true).open(&legs[piece.disk - 1]).unwrap();
            leg.write_all_at(&vec![0x5a; (piece.end - piece.start) as usize], piece.start).unwrap();
        }
        let served: Vec<bool> = legs.iter().map(|leg| on_leg(leg) == content).collect();
        assert_eq!(served, if lost == 0 { [false, true] } else { [false, false] });
        assert!(
            on_leg(&legs[lost as usize]).iter().all(|byte| *byte == 0x5a),
            "a part of leg {lost} is left"
        );
    }
}

/// The guest without its second and its seventh disk, with a clone of the eighth, in reverse.
fn bad() -> &'static (Mapped, Vec<usize>) {
    static BAD: OnceLock<(Mapped, Vec<usize>)> = OnceLock::new();
    BAD.get_or_init(|| {
        let disks = disks();
        let dir = tempfile::tempdir().unwrap();
        let clone = dir.path().join("clone.raw");
        common::formats::copy(&disks[7], &clone);
        let order: Vec<usize> = (1..=20).rev().filter(|disk| *disk != 2 && *disk != 7).collect();
        let mut images: Vec<PathBuf> = order.iter().map(|disk| disks[disk - 1].clone()).collect();
        images.push(clone);
        (Mapped::of(&images, &[]), order)
    })
}

#[test]
fn what_is_there_is_mapped_and_what_is_missing_is_said() {
    needs!("guestfish", "sfdisk");
    let (whole, (map, order)) = (whole(), bad());
    assert_eq!(map.code, 3, "{}", map.stderr);
    // Where a disk has gone to, and what it is called there.
    let now = |disk: usize| order.iter().position(|old| *old == disk).map(|at| at + 1);
    let moved = |pieces: Vec<Piece>| -> Vec<Piece> {
        let moved = pieces.into_iter().filter_map(|piece| Some(Piece { disk: now(piece.disk)?, ..piece }));
        let mut moved: Vec<Piece> = moved.collect();
        moved.sort_by_key(|piece| (piece.disk, piece.start, piece.copy));
        moved
    };
    for disk in [4, 5].into_iter().chain(9..=20) {
        let (old, new) = (device(disk), device(now(disk).unwrap()));
        let pieces = map.pieces(&format!("f {new} /file"));
        assert_eq!(pieces, moved(whole.pieces(&format!("f {old} /file"))), "{old}, now {new}");
    }
    assert_eq!(map.pieces("f /dev/vgm/whole /file"), moved(whole.pieces("f /dev/vgm/whole /file")));

    // Mirrors have the other leg.
    for (object, id) in
        [("f /dev/md1 /file".to_owned(), 1), (format!("f {} /file", device(now(6).unwrap())), 7)]
    {
        assert!(map.file(&object, 0) == content(id), "{object}: {:?}", map.pieces(&object));
        assert!(map.pieces(&object).iter().all(|piece| piece.copy == 0 && !piece.is_parity));
    }
    map.says(&["/dev/md1: 1 member is missing"]);
    map.says(&[&device(now(6).unwrap()), "missing"]);

    // Of a RAID 5 the blocks on the other members, all of them in their place, and the parity.
    let of = |pieces: Vec<Piece>, is_parity| {
        pieces.into_iter().filter(|p| p.is_parity == is_parity).collect::<Vec<_>>()
    };
    let (left, all) = (map.pieces("f /dev/md5 /file"), moved(whole.pieces("f /dev/md5 /file")));
    assert_eq!(of(left.clone(), false), of(all.clone(), false));
    assert_eq!(of(left, true), of(all, true));
    let marks = map.objects["f /dev/md5 /file"]["marks"].to_string();
    assert!(marks.contains("inexact"), "{marks}");
    map.says(&["/dev/md5: 1 member is missing"]);

    // A volume that needs the missing disk.
    assert!(!map.objects.contains_key("f /dev/vgm/lv /file"));
    map.says(&["/dev/vgm/lv: it cannot be activated"]);
}

#[test]
fn of_two_clones_what_cannot_be_told_apart_is_said() {
    needs!("guestfish", "sfdisk");
    let (map, order) = bad();
    let original = order.iter().position(|disk| *disk == 8).unwrap() + 1;
    let clone = order.len() + 1;
    // XFS does not mind: both are there, each on its own disk.
    for disk in [original, clone] {
        let root = format!("d {}3 /", device(disk));
        assert!(map.pieces(&root).iter().all(|piece| piece.disk == disk), "{root}");
    }
    let btrfs: Vec<usize> = [original, clone]
        .into_iter()
        .filter(|disk| map.objects.contains_key(&format!("f {}4 /file", device(*disk))))
        .collect();
    let [mapped] = btrfs[..] else { panic!("mapped of a btrfs and its clone: {btrfs:?}") };
    assert!(map.file(&format!("f {}4 /file", device(mapped)), 0) == content(9));
    assert!(map.pieces(&format!("f {}4 /file", device(mapped))).iter().all(|piece| piece.disk == mapped));
    map.says(&[&format!("{}4", device(original + clone - mapped)), "clone"]);
    // LVM activates nothing of which there are two. Of an array the second leg with one number is left out.
    assert!(!map.objects.contains_key("f /dev/vgc/lv /file"));
    map.says(&["/dev/vgc/lv: it cannot be activated", "duplicate"]);
    let legs = [original, clone]
        .map(|disk| format!("{}2: it is a member of an array, but not in use", device(disk)));
    assert!(legs.iter().any(|leg| map.stderr.contains(leg)), "{}", map.stderr);
}
