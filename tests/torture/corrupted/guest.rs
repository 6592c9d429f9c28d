//! The guest that is corrupted. It has a partition for each kind of filesystem and layer. The last
//! partition is never corrupted.
//!
//! One appliance makes the guest once. Every sector of every file is a pattern (see `special.rs` of
//! the crate `testutil`), so a sector that is neither zeroes nor a pattern is metadata.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use virt_bmap_testutil::special::{SECTOR, sector};
use virt_bmap_testutil::{cache, guestfish, mastering, tools};

const MIB: u64 = 1 << 20;

/// A partition and its content.
pub(crate) struct Part {
    /// Its name in findings.
    pub(crate) name: &'static str,
    /// Its size in MiB.
    size: u64,
    how: How,
}

enum How {
    /// A filesystem that the appliance makes: the command, and the options that mount it.
    Appliance(&'static str, &'static str),
    /// A filesystem that this machine makes from a directory.
    Here(fn(&Path, &Path)),
    /// A layer: the commands that make it, and the device on it, which holds a filesystem.
    Layer(&'static str, &'static str),
    /// The second member of the array on the partition before it.
    Member,
}

use How::{Appliance, Here, Layer, Member};

/// The partitions of the disk, in order.
pub(crate) const PARTS: [Part; 25] = [
    part("ext2", 8, Appliance("mkfs.ext2 -q -b 1024", "")),
    part("ext3", 12, Appliance("mkfs.ext3 -q -b 4096", "")),
    part("ext4, 1 KiB blocks", 12, Appliance("mkfs.ext4 -q -b 1024", "")),
    part("ext4, 4 KiB blocks", 16, Appliance("mkfs.ext4 -q -b 4096 -O inline_data,metadata_csum", "")),
    // With the variables of its test suite, mkfs.xfs makes filesystems that are otherwise too
    // small.
    part("xfs", 48, Appliance("env TEST_DIR=1 TEST_DEV=1 QA_CHECK_FS=1 mkfs.xfs -q -f", "")),
    part("btrfs", 48, Appliance("mkfs.btrfs -q -f --mixed", "")),
    part("ntfs", 16, Appliance("mkfs.ntfs -q -Q -F -s 512 -p 0 -H 0 -S 0", "-t ntfs-3g")),
    part("vfat, 12 bits", 4, Appliance("mkfs.vfat -F 12 -s 4", "-t vfat")),
    part("vfat, 16 bits", 12, Appliance("mkfs.vfat -F 16 -s 1", "-t vfat")),
    part("vfat, 32 bits", 40, Appliance("mkfs.vfat -F 32 -s 1", "-t vfat")),
    part("exfat", 8, Appliance("mkfs.exfat -c 4096", "-t exfat")),
    part("f2fs", 64, Appliance("mkfs.f2fs -q -f", "-t f2fs")),
    part("iso9660", 4, Here(mastering::iso)),
    part("squashfs", 4, Here(|root, image| mastering::squashfs(root, image, &[]))),
    part("hfsplus", 4, Here(|root, image| mastering::hfsplus(root, image, 4 * MIB))),
    part("udf", 8, Here(|_, image| mastering::udf(image, 8 * MIB, 512))),
    part("jfs", 16, Appliance("mkfs.jfs -q", "-t jfs")),
    part("nilfs2", 32, Appliance("mkfs.nilfs2 -q -f -B 16", "-i -t nilfs2")),
    part("swap", 4, Layer("mkswap -q DEVICE >/dev/null", "")),
    part(
        "LVM",
        16,
        Layer(
            "pvcreate -q DEVICE >/dev/null\nvgcreate -q -s 1M tvg DEVICE\nlvcreate -q -y -L 12M -n lv tvg >/dev/null",
            "/dev/tvg/lv",
        ),
    ),
    part(
        "md raid1",
        10,
        Layer(
            "mdadm --create /dev/md/t --run --quiet --metadata=1.2 --homehost=any --assume-clean --bitmap=none --level=1 --raid-devices=2 DEVICE NEXT",
            "/dev/md/t",
        ),
    ),
    part("md raid1, second leg", 10, Member),
    part(
        "LUKS1",
        12,
        Layer(
            "printf secret | cryptsetup -q luksFormat --type luks1 --pbkdf-force-iterations 1000 DEVICE -\nprintf secret | cryptsetup open DEVICE tcrypt -d -",
            "/dev/mapper/tcrypt",
        ),
    ),
    part(
        "LUKS2",
        24,
        Layer(
            "printf secret | cryptsetup -q luksFormat --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 DEVICE -\nprintf secret | cryptsetup open DEVICE tcrypt2 -d -",
            "/dev/mapper/tcrypt2",
        ),
    ),
    part("left alone", 8, Appliance("mkfs.ext4 -q -b 4096", "")),
];

/// The number of the partition that is not corrupted. It is the last one.
pub(crate) const SOUND: usize = PARTS.len();

/// The number of the pattern of `/large`, which every filesystem has.
const LARGE: u32 = 1;
/// The number of the pattern of `/sound`, in the partition that is not corrupted.
pub(crate) const SOUND_FILE: u32 = 9;

impl Part {
    /// Whether `device` is made from this partition.
    pub(crate) fn is_below(&self, device: &str) -> bool {
        match self.how {
            Appliance(..) | Here(_) => false,
            // The partition is the second leg of the array.
            Member => device.starts_with("/dev/md"),
            Layer(_, inner) if self.name.starts_with("md") => {
                !inner.is_empty() && device.starts_with("/dev/md")
            }
            Layer(_, inner) => device == inner,
        }
    }
}

const fn part(name: &'static str, size: u64, how: How) -> Part {
    Part { name, size, how }
}

/// The range of a partition on the disk.
pub(crate) fn extent(number: usize) -> std::ops::Range<u64> {
    let start = MIB + PARTS[..number - 1].iter().map(|part| part.size * MIB).sum::<u64>();
    start..start + PARTS[number - 1].size * MIB
}

/// Writes the files of each filesystem: large and small files, a directory with more names than one
/// block holds, and a symbolic link.
fn write_tree(root: &Path) {
    let file = |name: &str, id: u32, size: usize| {
        let mut content: Vec<u8> = (0..size.div_ceil(SECTOR) as u32).flat_map(|n| sector(id, n)).collect();
        content.truncate(size);
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    file("large", LARGE, 300 * 1024 + 700);
    file("deep/er/than/most", 2, 9000);
    for number in 0..60 {
        file(&format!("many/a name that is not short, of file {number}"), 100 + number, 40 * number as usize);
    }
    std::os::unix::fs::symlink("large", root.join("link")).unwrap();
}

/// The script that the appliance runs.
fn script() -> String {
    let mut s = String::from(
        "set -eu\nunpack() { mkdir -p /mnt/t; mount $2 $1 /mnt/t\n\
         tar --no-same-owner -xf /tmp/tree.tar -C /mnt/t 2>/dev/null || true\n\
         test \"$(ls /mnt/t/many | wc -l)\" = 60\ncmp /mnt/t/large /tmp/large; }\n",
    );
    for (number, part) in (1..).zip(&PARTS) {
        let device = format!("/dev/disk/guestfs/torture{number}");
        match part.how {
            Appliance(mkfs, mount) => {
                writeln!(s, "{mkfs} {device} >/dev/null\nunpack {device} '{mount}'").unwrap();
                if number == SOUND {
                    s.push_str("cp /tmp/sound /mnt/t/sound\n");
                } else if part.name.starts_with("xfs") || part.name.starts_with("ext4") {
                    s.push_str(
                        "setfattr -n user.note -v \"$(head -c 700 /dev/zero | tr '\\0' x)\" /mnt/t/large\n",
                    );
                }
                s.push_str("umount /mnt/t\n");
            }
            Here(_) if part.name == "udf" => writeln!(s, "unpack {device} '-t udf'\numount /mnt/t").unwrap(),
            Here(_) | Member => {}
            Layer(make, inner) => {
                let next = format!("/dev/disk/guestfs/torture{}", number + 1);
                writeln!(s, "{}", make.replace("DEVICE", &device).replace("NEXT", &next)).unwrap();
                if !inner.is_empty() {
                    writeln!(s, "mkfs.ext4 -q -b 4096 {inner}\nunpack {inner} ''\numount /mnt/t").unwrap();
                }
            }
        }
    }
    s.push_str("cryptsetup close tcrypt\ncryptsetup close tcrypt2\nvgchange -q -an tvg >/dev/null\nmdadm --stop --quiet /dev/md/t\n");
    s
}

/// The image of the guest before it is corrupted.
pub(crate) fn image() -> PathBuf {
    let sources = (include_str!("guest.rs"), mastering::SOURCE);
    cache::directory("torture", &cache::key(sources), make).join("torture.raw")
}

fn make(dir: &Path) {
    let staging = tempfile::tempdir().unwrap();
    let at = |name: &str| staging.path().join(name);
    write_tree(&at("tree"));
    let mut pack = vec![OsString::from("-C"), at("tree").into(), "-cf".into(), at("tree.tar").into()];
    pack.extend(["--sort=name", "large", "deep", "many", "link"].map(OsString::from));
    tools::run("tar", pack);
    let sound: Vec<u8> = (0..200).flat_map(|n| sector(SOUND_FILE, n)).collect();
    fs::write(at("sound"), sound).unwrap();
    fs::write(at("make.sh"), script()).unwrap();

    let image = dir.join("torture.raw");
    File::create(&image).unwrap().set_len(extent(SOUND).end + MIB).unwrap();
    let mut table = String::from("label: gpt\n");
    for number in 1..=PARTS.len() {
        let extent = extent(number);
        writeln!(table, "start={}, size={}", extent.start >> 9, (extent.end - extent.start) >> 9).unwrap();
    }
    fs::write(at("table"), table).unwrap();
    let input = File::open(at("table")).unwrap();
    tools::output(tools::command("sfdisk").arg("-q").arg(&image).stdin(input));
    let disk = File::options().write(true).open(&image).unwrap();
    for (number, part) in (1..).zip(&PARTS) {
        if let Here(make) = part.how {
            let made = at(&format!("{number}.image"));
            make(&at("tree"), &made);
            let bytes = fs::read(&made).unwrap();
            assert!(bytes.len() as u64 <= part.size * MIB, "{} does not fit", part.name);
            disk.write_all_at(&bytes, extent(number).start).unwrap();
        }
    }
    let staged = staging.path().display();
    let fish = format!(
        "add-drive torture.raw format:raw cachemode:unsafe label:torture\nrun\n\
         debug-upload {staged}/make.sh /tmp/make.sh 0700\ndebug-upload {staged}/tree.tar /tmp/tree.tar 0600\n\
         debug-upload {staged}/tree/large /tmp/large 0600\ndebug-upload {staged}/sound /tmp/sound 0600\n\
         debug sh 'bash /tmp/make.sh >&2 || {{ dmesg | tail -5 >&2; exit 1; }}'\nshutdown\n"
    );
    guestfish::run(dir, &fish);
}
