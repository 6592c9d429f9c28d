//! Layers in a bad state, and what the map says of all copies and of parity.
//!
//! One appliance makes a guest of twenty disks. The guest is mapped twice: complete, and with some
//! disks removed, one cloned, and the others in another order. `redundancy.rs` tests that copies
//! and parity are what the map says.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use virt_bmap_testutil::cache;
use virt_bmap_testutil::layered::{self, device, pattern};
use virt_bmap_testutil::mapped::{Mapped, Piece};
use virt_bmap_testutil::tools::{self, needs};

/// For each disk of the guest, its size and the sizes of its partitions, in MiB.
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

/// Bytes of each file: more than a row of every array here, and not a whole number of blocks.
const SIZE: usize = 300 * 1024 + 700;

/// The filesystems that hold `/file`: the device's name in the map of the complete guest, its name
/// when the guest is made, and the command that makes the filesystem.
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
        "md() { n=$1; shift; mdadm --create /dev/md/$n --run --quiet --metadata=1.2 --data-offset=1024 --homehost=any --assume-clean --bitmap=none \"$@\"; }\n\
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
        s.push_str(&layered::fill(device, mkfs, id, SIZE));
        // These two journals are left unclean: XFS's `shutdown -f` writes the log, but nothing
        // else.
        let unclean = if matches!(device.as_str(), "/dev/sdd" | "/dev/sde") {
            format!("touch /mnt/{id}/later; xfs_io -x -c 'shutdown -f' /mnt/{id}\n")
        } else {
            String::new()
        };
        writeln!(s, "{unclean}umount /mnt/{id}").unwrap();
    }
    s.push_str("vgchange -q -an vgm vgc >/dev/null\nmdadm --stop --quiet /dev/md/1 /dev/md/5 /dev/md/9\n");
    s
}

/// The images of the guest's disks, in order.
fn disks() -> Vec<PathBuf> {
    let key = cache::key((script(), DISKS, SIZE, layered::SOURCE));
    let dir = cache::directory("layers", &key, |dir| {
        let files: Vec<Vec<u8>> = (1..=FILESYSTEMS.len() as u32 + 12).map(|id| pattern(id, SIZE)).collect();
        layered::make(dir, &DISKS, &files, &script());
    });
    (1..=DISKS.len()).map(|number| dir.join(format!("{number}.raw"))).collect()
}

fn whole() -> &'static Mapped {
    static WHOLE: OnceLock<Mapped> = OnceLock::new();
    WHOLE.get_or_init(|| Mapped::of(&disks(), &[]))
}

/// The files of the complete guest, as names of objects, with their content.
fn files() -> Vec<(String, Vec<u8>)> {
    let tiny = (9..=20).map(device);
    let devices = FILESYSTEMS.iter().map(|(device, ..)| (*device).to_owned()).chain(tiny);
    (1..).zip(devices).map(|(id, device)| (format!("f {device} /file"), pattern(id, SIZE))).collect()
}

#[test]
fn every_copy_on_twenty_disks() {
    needs!("guestfish", "sfdisk");
    let map = whole();
    assert_eq!(map.code, 0, "{}", map.stderr);
    for (object, content) in files() {
        let copies = if object.contains("/dev/md1") || object.contains("/dev/sdf") { 2 } else { 1 };
        for copy in 0..copies {
            assert!(
                map.file(&object, copy, SIZE) == content,
                "{object}, copy {copy}: {:?}",
                map.pieces(&object)
            );
        }
        assert!(map.pieces(&object).iter().all(|piece| piece.copy < copies), "{object}");
        assert!(map.objects[&object].get("marks").is_none(), "{object}: {}", map.objects[&object]["marks"]);
    }
    for device in ["/dev/sdd", "/dev/sde"] {
        map.cause(device, "journal-replayed");
    }
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
        // Each piece is a piece of the map with all legs, or a part of such a piece.
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
            // The pieces cover the file from its beginning to the end of its last block.
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

/// What this machine's kernel reads from `/file` on a btrfs of two devices. `None` if it cannot
/// read the file.
fn on_btrfs(devices: &[PathBuf; 2]) -> Option<Vec<u8>> {
    // The loop devices are read-only, since btrfs repairs a writable device from the other copy
    // even when it is mounted read-only. Linux 6.18 does so in one of two cases: the process id
    // decides which copy is read first.
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
    // Another process reads the file. If this process opened it, a program that another test starts
    // at this moment would inherit the open file. The filesystem, with what it has in memory, would
    // then live on after it was unmounted here.
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
        virt_bmap_testutil::formats::copy(&map.images[disk - 1], leg);
    }
    assert!(on_btrfs(&legs).unwrap() == pattern(7, SIZE));
    for lost in 0..2 {
        for piece in map.pieces("f /dev/sdf /file").iter().filter(|piece| piece.copy == lost) {
            piece.corrupt(&legs[piece.disk - 6]);
        }
        // The checksums of btrfs tell the kernel which copy is right.
        let served = on_btrfs(&legs);
        assert_eq!(served.is_some_and(|served| served == pattern(7, SIZE)), lost == 0, "after copy {lost}");
    }
}

/// The map of the guest without its second and its seventh disk. The other disks are in reverse
/// order, and a clone of the eighth follows them. The numbers of the disks are in the given order.
fn bad() -> &'static (Mapped, Vec<usize>) {
    static BAD: OnceLock<(Mapped, Vec<usize>)> = OnceLock::new();
    BAD.get_or_init(|| {
        let disks = disks();
        let dir = tempfile::tempdir().unwrap();
        let clone = dir.path().join("clone.raw");
        virt_bmap_testutil::formats::copy(&disks[7], &clone);
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
    // The number that a disk of the complete guest has in this map. Removed disks have none.
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

    // Mirrors still have one leg.
    for (object, id) in
        [("f /dev/md1 /file".to_owned(), 1), (format!("f {} /file", device(now(6).unwrap())), 7)]
    {
        assert!(map.file(&object, 0, SIZE) == pattern(id, SIZE), "{object}: {:?}", map.pieces(&object));
        assert!(map.pieces(&object).iter().all(|piece| piece.copy == 0 && !piece.is_parity));
    }
    assert_eq!(map.cause("/dev/md1", "members-missing")["count"], 1);
    map.cause(&device(now(6).unwrap()), "filesystem-device-missing");

    // The RAID 5 still has the blocks on the other members, each in its place, and the parity
    // there.
    let of = |pieces: Vec<Piece>, is_parity| {
        pieces.into_iter().filter(|p| p.is_parity == is_parity).collect::<Vec<_>>()
    };
    let (left, all) = (map.pieces("f /dev/md5 /file"), moved(whole.pieces("f /dev/md5 /file")));
    assert_eq!(of(left.clone(), false), of(all.clone(), false));
    assert_eq!(of(left, true), of(all, true));
    let marks = map.objects["f /dev/md5 /file"]["marks"].to_string();
    assert!(marks.contains("inexact"), "{marks}");
    assert_eq!(map.cause("/dev/md5", "members-missing")["count"], 1);

    // This volume needs the missing disk.
    assert!(!map.objects.contains_key("f /dev/vgm/lv /file"));
    map.cause("/dev/vgm/lv", "volume-inactive");
}

#[test]
fn of_two_clones_what_cannot_be_told_apart_is_said() {
    needs!("guestfish", "sfdisk");
    let (map, order) = bad();
    let original = order.iter().position(|disk| *disk == 8).unwrap() + 1;
    let clone = order.len() + 1;
    // XFS may occur twice. Both filesystems are mapped, each on its own disk.
    for disk in [original, clone] {
        let root = format!("d {}3 /", device(disk));
        assert!(map.pieces(&root).iter().all(|piece| piece.disk == disk), "{root}");
    }
    let btrfs: Vec<usize> = [original, clone]
        .into_iter()
        .filter(|disk| map.objects.contains_key(&format!("f {}4 /file", device(*disk))))
        .collect();
    let [mapped] = btrfs[..] else { panic!("mapped of a btrfs and its clone: {btrfs:?}") };
    assert!(map.file(&format!("f {}4 /file", device(mapped)), 0, SIZE) == pattern(9, SIZE));
    assert!(map.pieces(&format!("f {}4 /file", device(mapped))).iter().all(|piece| piece.disk == mapped));
    let left_out = format!("{}4", device(original + clone - mapped));
    assert_eq!(map.cause(&left_out, "same-uuid")["device"], format!("{}4", device(mapped)));
    // LVM does not activate a volume that it finds twice. Of two array members with the same
    // number, the second is left out.
    assert!(!map.objects.contains_key("f /dev/vgc/lv /file"));
    let error = &map.cause("/dev/vgc/lv", "volume-inactive")["error"];
    assert!(error.to_string().contains("duplicate"), "{error}");
    let is_unused =
        |disk: &usize| !map.causes(&format!("{}2", device(*disk)), "array-member-unused").is_empty();
    assert!([original, clone].iter().any(is_unused), "{:#?}", map.warnings);
}
