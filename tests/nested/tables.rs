//! Partition tables where Linux does not look for them or finds one that is none, sectors of 4096
//! bytes, truncated disks, and volume groups that share a name. The patterns in the files show
//! where their bytes are.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use virt_bmap_testutil::cache;
use virt_bmap_testutil::layered::{self, pattern};
use virt_bmap_testutil::mapped::Mapped;
use virt_bmap_testutil::tools::{self, needs};

/// Bytes of each file.
const SIZE: usize = 100 * 1024 + 700;

/// The disks that the appliance fills, in MiB: one with a volume that holds a partitioned guest, one
/// with LUKS around a partition table, one with LUKS around a filesystem, two for an array with
/// partitions, and two with a volume group each.
const DISKS: [(u64, &[u64]); 7] =
    [(64, &[]), (64, &[]), (48, &[]), (48, &[]), (48, &[]), (48, &[]), (48, &[])];

/// What holds `/file`, and the devices of the disks on which it lies, in the order of the files.
const FILESYSTEMS: [(&str, &[usize]); 8] = [
    ("/dev/mapper/pve-disk0p1", &[1]),
    ("/dev/mapper/pve-disk0p2", &[1]),
    ("/dev/mapper/luks-11111111-1111-1111-1111-111111111111p1", &[2]),
    ("/dev/mapper/luks-22222222-2222-2222-2222-222222222222", &[3]),
    ("/dev/md127p1", &[4, 5]),
    ("/dev/rl/root", &[6]),
    ("/dev/rl-2/root", &[7]),
    ("/dev/sdh2", &[8]),
];

fn script() -> String {
    // LUKS2 as cryptsetup makes it by default, but for the work that deriving a key takes.
    let luks = "cryptsetup luksFormat -q --type luks2 --sector-size 4096 --pbkdf argon2id \
                --pbkdf-force-iterations 4 --pbkdf-memory 32 --pbkdf-parallel 1 --key-file /tmp/key";
    let mut s = format!(
        "export DM_DISABLE_UDEV=1\nprintf secret > /tmp/key\n\
         pvcreate -q /dev/sda >/dev/null\nvgcreate -q -s 1M pve /dev/sda\nlvcreate -q -y -L 60M -n disk0 pve >/dev/null\n\
         printf 'label: gpt\\nsize=24MiB\\nsize=30MiB\\n' | sfdisk -q /dev/pve/disk0\n\
         {luks} --uuid 11111111-1111-1111-1111-111111111111 /dev/sdb\n\
         cryptsetup open --key-file /tmp/key /dev/sdb one\nprintf ',40MiB,83\\n' | sfdisk -q /dev/mapper/one\n\
         {luks} --uuid 22222222-2222-2222-2222-222222222222 /dev/sdc\n\
         cryptsetup open --key-file /tmp/key /dev/sdc two\n\
         mdadm --create /dev/md127 --run --quiet --metadata=1.2 --homehost=any --assume-clean --bitmap=none \
         --level=1 --raid-devices=2 /dev/sdd /dev/sde\n\
         printf ',,83\\n' | sfdisk -q /dev/md127\n\
         pvcreate -q /dev/sdf >/dev/null\nvgcreate -q -s 1M rl /dev/sdf\nlvcreate -q -y -L 40M -n root rl >/dev/null\n"
    );
    // What is put where a partition will be found later.
    let places = [("/dev/pve/disk0", 1, 24), ("/dev/pve/disk0", 25, 30), ("/dev/mapper/one", 1, 40)];
    for (id, (device, offset, size)) in (1..).zip(places) {
        writeln!(s, "L=$(losetup -f --show -o {offset}MiB --sizelimit {size}MiB {device})").unwrap();
        s.push_str(&layered::fill("$L", "mkfs.ext4 -q -b 4096", id, SIZE));
        writeln!(s, "umount /mnt/{id}\nlosetup -d $L").unwrap();
    }
    for (id, device) in [(4, "/dev/mapper/two"), (5, "/dev/md127p1"), (6, "/dev/rl/root")] {
        s.push_str(&layered::fill(device, "mkfs.ext4 -q -b 4096", id, SIZE));
        writeln!(s, "umount /mnt/{id}").unwrap();
    }
    // The second group of that name is made where LVM does not see the first one.
    s.push_str(
        "vgchange -q -an rl pve >/dev/null\nN=$(readlink -f /dev/sdg)\n\
         F=\"devices/filter=[\\\"a|^$N\\$|\\\",\\\"r|.*|\\\"]\"\n\
         pvcreate -q --config \"$F\" $N >/dev/null\nvgcreate -q -s 1M --config \"$F\" rl $N\n\
         lvcreate -q -y -L 40M -n root --config \"$F\" rl >/dev/null\n",
    );
    s.push_str(&layered::fill("/dev/rl/root", "mkfs.ext4 -q -b 4096", 7, SIZE));
    s.push_str("umount /mnt/7\nvgchange -q -an --config \"$F\" rl >/dev/null\n");
    s.push_str("mdadm --stop --quiet /dev/md127\ncryptsetup close one\ncryptsetup close two\n");
    s
}

/// Runs a program on a disk, with what it reads from its standard input.
fn scripted(program: &mut Command, disk: &Path, input: &str) {
    let file = disk.with_extension("input");
    fs::write(&file, input).unwrap();
    tools::output(program.arg(disk).stdin(Stdio::from(File::open(file).unwrap())));
}

/// Puts an ext4 that holds `/file` at an offset of a disk.
fn ext4_at(dir: &Path, disk: &Path, offset: u64, mib: u64, id: u32) {
    let tree = dir.join(format!("tree{id}"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), pattern(id, SIZE)).unwrap();
    let mut mkfs = tools::command("mkfs.ext4");
    mkfs.args(["-q", "-F", "-b", "4096", "-E", &format!("offset={offset}"), "-d"]).arg(&tree).arg(disk);
    tools::output(mkfs.arg(format!("{mib}M")));
}

/// Makes the FAT that covers a disk, with a boot sector that looks like a partition table.
const DISGUISED: [&str; 5] = ["-I", "--mbr=y", "-F", "16", "-h0"];

/// Makes disks that need no appliance: one with sectors of 4096 bytes, one that was cut, and one
/// that is a FAT.
fn plain_disks(dir: &Path) {
    const MIB: u64 = 1 << 20;
    let [large, cut, fat] = ["8.raw", "9.raw", "10.raw"].map(|name| dir.join(name));
    File::create(&large).unwrap().set_len(128 * MIB).unwrap();
    let answers = "g\nn\n1\n\n+16M\nn\n2\n\n+64M\nw\n";
    scripted(tools::command("fdisk").args(["-b", "4096"]), &large, answers);
    ext4_at(dir, &large, 17 * MIB, 64, 8);
    File::create(&cut).unwrap().set_len(128 * MIB).unwrap();
    scripted(tools::command("sfdisk").arg("-q"), &cut, "label: gpt\nsize=32MiB\nsize=64MiB\n");
    ext4_at(dir, &cut, MIB, 32, 9);
    File::options().write(true).open(&cut).unwrap().set_len(64 * MIB).unwrap();
    File::create(&fat).unwrap().set_len(16 * MIB).unwrap();
    tools::output(tools::command("mkfs.fat").args(DISGUISED).arg(&fat));
}

fn disks() -> Vec<PathBuf> {
    let key = cache::key((script(), DISKS, SIZE, DISGUISED, layered::SOURCE));
    let dir = cache::directory("nested", &key, |dir| {
        let files: Vec<Vec<u8>> = (1..=7).map(|id| pattern(id, SIZE)).collect();
        layered::make(dir, &DISKS, &files, &script());
        plain_disks(dir);
    });
    (1..=10).map(|number| dir.join(format!("{number}.raw"))).collect()
}

#[test]
fn tables_and_sectors_that_linux_does_not_expect() {
    needs!("guestfish", "sfdisk", "fdisk", "mkfs.ext4", "mkfs.fat", "blkid");
    let disks = disks();
    let map = Mapped::of(&disks, &["--metadata", "--key", "all:key:secret"]);
    for (id, (device, on)) in (1..).zip(FILESYSTEMS) {
        let object = format!("f {device} /file");
        for copy in 0..on.len() as u64 {
            if device.contains("luks") {
                // On the disk it is encrypted. LUKS2 puts its data behind 16 MiB.
                let pieces = map.pieces(&object);
                let bytes: u64 = pieces.iter().map(|piece| piece.end - piece.start).sum();
                assert_eq!(bytes, (SIZE as u64).next_multiple_of(4096), "{object}");
                let data = if device.ends_with("p1") { 17 << 20 } else { 16 << 20 };
                assert!(pieces.iter().all(|piece| piece.start >= data), "{pieces:?}");
                let whole = map.pieces(&format!("b {}", device.trim_end_matches("p1")));
                assert_eq!([whole[0].start, whole[0].end % 4096], [16 << 20, 0]);
            } else {
                assert!(map.file(&object, copy, SIZE) == pattern(id, SIZE), "{object}: {}", map.stderr);
            }
        }
        let mut found: Vec<usize> = map.pieces(&object).iter().map(|piece| piece.disk).collect();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found, on, "{object}");
        // The device of the filesystem is proved: no file is inexact, and it has its place.
        assert!(map.objects[&object].get("marks").is_none(), "{object}");
    }
    // A partition is where other programs say, below its volume.
    let volume = map.pieces("l /dev/pve/disk0");
    let part = map.pieces("p /dev/mapper/pve-disk0p2");
    assert_eq!(part[0].start, volume[0].start + (25 << 20), "{part:?} in {volume:?}");
    assert_eq!(part[0].end - part[0].start, 30 << 20);
    assert!(map.objects.contains_key("m /dev/pve/disk0 [partition table]"));
    assert_eq!(map.cause("/dev/rl-2/root", "volume-group-renamed")["group"], "rl");

    // The disk with large sectors, by another program that knows of them.
    let options = ["-b", "4096", "-l", "-o", "Start,Sectors"].map(OsStr::new);
    let said = tools::run("fdisk", options.into_iter().chain([disks[7].as_os_str()]));
    let said = String::from_utf8(said).unwrap();
    let second: Vec<u64> =
        said.lines().last().unwrap().split_whitespace().map(|word| word.parse().unwrap()).collect();
    let part = map.pieces("p /dev/sdh2");
    assert_eq!([part[0].start, part[0].end - part[0].start], [second[0] * 4096, second[1] * 4096], "{said}");
    assert!(map.text.contains("# disk 8 size=134217728 sector=4096 format=raw"), "{}", map.stderr);
    let table = map.pieces("m /dev/sdh [partition table]");
    assert!(map.read(8, table.last().unwrap().start, 8).starts_with(b"EFI PART"));

    // What is whole of the truncated disk is mapped, nothing is past its end, and that is said once.
    assert!(map.file("f /dev/sdi1 /file", 0, SIZE) == pattern(9, SIZE));
    let truncated = map.cause("/dev/sdi", "disk-truncated");
    assert_eq!((&truncated["described"], &truncated["size"]), (&(128 << 20).into(), &(64 << 20).into()));
    assert!(!map.objects.contains_key("p /dev/sdi2"));
    let ends = map.objects.keys().flat_map(|object| map.pieces(object)).filter(|piece| piece.disk == 9);
    assert_eq!(ends.map(|piece| piece.end).max(), Some(64 << 20));

    // The FAT is on the disk, as libblkid sees it, and not in the partition that sfdisk and Linux
    // see.
    let said = tools::run("sfdisk", ["-d".as_ref(), disks[9].as_os_str()]);
    assert!(String::from_utf8(said).unwrap().contains("start=           0, size=       32768"));
    let said = tools::run("blkid", ["-p".as_ref(), disks[9].as_os_str()]);
    assert!(String::from_utf8(said).unwrap().contains(r#"TYPE="vfat""#));
    assert!(map.objects.contains_key("d /dev/sdj /") && map.objects.contains_key("m /dev/sdj [FAT 1]"));
    assert!(!map.objects.keys().any(|object| object.contains("/dev/sdj1")));

    // Besides this, only the empty partition is worth a word.
    map.cause("/dev/sdh1", "blank");
    assert_eq!((map.code, map.warnings.len()), (3, 3), "{:#?}", map.warnings);
}
