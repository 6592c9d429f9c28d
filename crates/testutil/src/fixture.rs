//! The images that the tests map. libguestfs makes each of them once, and they are kept.

use super::layout::{self, LVS, Volume};
use super::special::{self, Special};
use super::{cache, guestfish, tools};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The programs that every fixture needs.
pub const TOOLS: [&str; 4] = ["guestfish", "sfdisk", "tar", "sha256sum"];

/// A filesystem of a fixture.
#[derive(Clone, Debug)]
pub struct Filesystem {
    /// Where it lies on the disk.
    pub volume: Volume,
    /// Its kind, as `mount -t` names it.
    pub kind: &'static str,
    /// Bytes in one of its blocks.
    pub block: u64,
    /// A copy of the volume, for oracles that do not know partitions and LVM.
    pub flat: PathBuf,
    /// The number of the first patterned file, if there are any.
    pub specials: Option<u32>,
}

impl Filesystem {
    /// The patterned files in it.
    pub fn special_files(&self) -> Vec<Special> {
        self.specials.map(special::files).unwrap_or_default()
    }
}

/// An image, and what it contains.
pub struct Fixture {
    /// The raw image.
    pub image: PathBuf,
    /// Its SHA-256 when it was made.
    pub sha256: String,
    /// Its partitions.
    pub partitions: Vec<Volume>,
    /// Its logical volumes.
    pub logical_volumes: Vec<Volume>,
    /// Its filesystems that can be mounted.
    pub filesystems: Vec<Filesystem>,
}

impl Fixture {
    /// Size of the image in bytes.
    pub fn size(&self) -> u64 {
        fs::metadata(&self.image).unwrap().len()
    }

    /// The filesystem on `device`.
    pub fn filesystem(&self, device: &str) -> &Filesystem {
        self.filesystems.iter().find(|f| f.volume.device == device).unwrap()
    }
}

/// The image that most tests use. It has a GPT with an EFI system partition (vfat), `/boot` (ext4,
/// 1 KiB blocks), swap, and a physical volume. The physical volume has the logical volumes `root`
/// (ext4, in two segments) and `home` (xfs). There are about 9,000 objects.
pub fn guest() -> &'static Fixture {
    static GUEST: OnceLock<Fixture> = OnceLock::new();
    GUEST.get_or_init(|| {
        let dir = cache::directory(
            "guest",
            &cache::key((include_str!("fixture.rs"), include_str!("special.rs"), LVS)),
            make_guest,
        );
        let image = dir.join("guest.raw");
        let partitions = layout::partitions(&image, "/dev/sda");
        let report = fs::read_to_string(dir.join("lvs")).unwrap();
        let logical_volumes = layout::logical_volumes(&report, |device| start_of(&partitions, device));
        let filesystems = [
            ("/dev/sda1", "vfat", 2048, None),
            ("/dev/sda2", "ext4", 1024, Some(1000)),
            ("/dev/vg0/root", "ext4", 4096, Some(2000)),
            ("/dev/vg0/home", "xfs", 4096, Some(3000)),
        ]
        .map(|(device, kind, block, specials)| {
            let volume =
                partitions.iter().chain(&logical_volumes).find(|v| v.device == device).unwrap().clone();
            Filesystem { volume, kind, block, flat: dir.join(flat_name(device)), specials }
        });
        Fixture {
            sha256: fs::read_to_string(dir.join("sha256")).unwrap(),
            image,
            partitions,
            logical_volumes,
            filesystems: filesystems.into(),
        }
    })
}

fn make_guest(dir: &Path) {
    let staging = tempfile::tempdir().unwrap();
    let real = real_files(3000, 100 << 20);
    let (root, home): (Vec<_>, Vec<_>) = real.iter().cloned().enumerate().partition(|(i, _)| i % 3 > 0);
    let files = |part: Vec<(usize, PathBuf)>| part.into_iter().map(|(_, file)| file).collect::<Vec<_>>();
    guestfish::tar(&staging.path().join("root.tar"), Path::new("/"), &files(root));
    guestfish::tar(&staging.path().join("home.tar"), Path::new("/"), &files(home));
    guestfish::tar(&staging.path().join("boot.tar"), Path::new("/"), &real[..40.min(real.len())]);
    for (name, first) in [("boot", 1000), ("root", 2000), ("home", 3000)] {
        special_archive(staging.path(), name, first);
    }
    let tar = staging.path().display();
    let script = format!(
        "disk-create guest.raw raw 1200M
add guest.raw format:raw
run
part-init /dev/sda gpt
part-add /dev/sda p 2048 67583
part-add /dev/sda p 67584 329727
part-add /dev/sda p 329728 362495
part-add /dev/sda p 362496 -2048
part-set-gpt-type /dev/sda 1 C12A7328-F81F-11D2-BA4B-00A0C93EC93B
part-set-gpt-type /dev/sda 3 0657FD6D-A4AB-43C4-84E5-0933C84B4F4F
part-set-gpt-type /dev/sda 4 E6D6D379-F507-44C2-A23C-238F2A3DF928
mkfs vfat /dev/sda1 label:EFI
mkfs ext4 /dev/sda2 blocksize:1024 label:boot
mkswap /dev/sda3
pvcreate /dev/sda4
vgcreate vg0 /dev/sda4
lvcreate root vg0 240
lvcreate home vg0 440
lvresize /dev/vg0/root 320
mkfs ext4 /dev/vg0/root blocksize:4096 label:root
mkfs xfs /dev/vg0/home label:home
mount /dev/vg0/root /
mkdir /home
mkdir /boot
mount /dev/vg0/home /home
mount /dev/sda2 /boot
mkdir /boot/efi
mount /dev/sda1 /boot/efi
mkdir-p /boot/efi/EFI/BOOT
write /boot/efi/EFI/BOOT/BOOTX64.CSV 'BOOTX64.EFI,virt-bmap-rs'
upload {tar}/efi /boot/efi/EFI/BOOT/BOOTX64.EFI
tar-in {tar}/root.tar /
tar-in {tar}/home.tar /home
tar-in {tar}/boot.tar /boot
debug-upload {tar}/boot-special.tar /tmp/boot-special.tar 0600
debug-upload {tar}/root-special.tar /tmp/root-special.tar 0600
debug-upload {tar}/home-special.tar /tmp/home-special.tar 0600
debug sh 'cd /tmp && tar xf boot-special.tar && tar xf root-special.tar && tar xf home-special.tar'
debug sh 'bash /tmp/boot/make /sysroot/boot /tmp/boot'
debug sh 'bash /tmp/root/make /sysroot /tmp/root'
debug sh 'bash /tmp/home/make /sysroot/home /tmp/home'
umount-all
! echo ==
debug sh \"{LVS}\"
shutdown
"
    );
    let efi: Vec<u8> = (0..600).flat_map(|n| special::sector(EFI_FILE, n)).collect();
    fs::write(staging.path().join("efi"), efi).unwrap();
    let printed = guestfish::run(dir, &script);
    let report = printed.split_once("==\n").unwrap().1;
    fs::write(dir.join("lvs"), report).unwrap();
    let image = dir.join("guest.raw");
    fs::write(dir.join("sha256"), tools::sha256(&image)).unwrap();
    let partitions = layout::partitions(&image, "/dev/sda");
    let volumes = layout::logical_volumes(report, |device| start_of(&partitions, device));
    for volume in partitions.iter().chain(&volumes) {
        volume.extract(&image, &dir.join(flat_name(&volume.device)));
    }
}

/// The number of the patterned file `/EFI/BOOT/BOOTX64.EFI` on the EFI system partition.
pub const EFI_FILE: u32 = 900;

/// A disk with an MBR and one ext4 filesystem of about 100 files. It is quick to map.
pub fn small() -> &'static Fixture {
    static SMALL: OnceLock<Fixture> = OnceLock::new();
    SMALL.get_or_init(|| {
        let dir = few();
        let partitions = layout::partitions(&dir.join("small.raw"), "/dev/sda");
        fixture(&dir, "small.raw", partitions, Vec::new(), &["/dev/sda1"])
    })
}

/// A disk without partitions that holds one ext4 filesystem.
pub fn plain() -> &'static Fixture {
    static PLAIN: OnceLock<Fixture> = OnceLock::new();
    PLAIN.get_or_init(|| {
        let dir = few();
        fixture(&dir, "plain.raw", Vec::new(), Vec::new(), &["/dev/sda"])
    })
}

/// A disk without partitions that is a physical volume with one logical volume.
pub fn lv_only() -> &'static Fixture {
    static LV_ONLY: OnceLock<Fixture> = OnceLock::new();
    LV_ONLY.get_or_init(|| {
        let dir = few();
        let report = fs::read_to_string(dir.join("lvs")).unwrap();
        // The disk was the third one when it was made. It is the only one when it is mapped.
        let volumes = layout::logical_volumes(&report, |_| 0);
        fixture(&dir, "lv.raw", Vec::new(), volumes, &["/dev/vgone/only"])
    })
}

/// A disk with a damaged filesystem. `/dev/sda1` and `/dev/sda4` are sound ext4 filesystems.
/// `/dev/sda2` is an ext4 with a valid superblock and overwritten metadata. `/dev/sda3` is noise.
pub fn damaged() -> &'static Fixture {
    static DAMAGED: OnceLock<Fixture> = OnceLock::new();
    DAMAGED.get_or_init(|| {
        let dir = few();
        let partitions = layout::partitions(&dir.join("damaged.raw"), "/dev/sda");
        fixture(&dir, "damaged.raw", partitions, Vec::new(), &["/dev/sda1", "/dev/sda4"])
    })
}

/// A disk with a sound ext4 filesystem, `/dev/sda1`, and a LUKS volume, `/dev/sda2`.
pub fn luks() -> &'static Fixture {
    static LUKS: OnceLock<Fixture> = OnceLock::new();
    LUKS.get_or_init(|| {
        let dir = few();
        let partitions = layout::partitions(&dir.join("luks.raw"), "/dev/sda");
        fixture(&dir, "luks.raw", partitions, Vec::new(), &["/dev/sda1"])
    })
}

/// A disk of zeroes.
pub fn blank() -> &'static Fixture {
    static BLANK: OnceLock<Fixture> = OnceLock::new();
    BLANK.get_or_init(|| fixture(&few(), "blank.raw", Vec::new(), Vec::new(), &[]))
}

/// The directory of the small images. One appliance makes all of them.
fn few() -> PathBuf {
    cache::directory(
        "few",
        &cache::key((include_str!("fixture.rs"), include_str!("special.rs"), LVS)),
        make_few,
    )
}

fn make_few(dir: &Path) {
    let staging = tempfile::tempdir().unwrap();
    let real = real_files(90, 4 << 20);
    guestfish::tar(&staging.path().join("real.tar"), Path::new("/"), &real);
    guestfish::tar(&staging.path().join("some.tar"), Path::new("/"), &real[..20.min(real.len())]);
    fs::write(staging.path().join("make"), SMALL_SPECIALS).unwrap();
    let archive = staging.path().join("make.tar");
    guestfish::tar(&archive, staging.path(), &["make".into()]);
    let tar = staging.path().display();
    let script = format!(
        "disk-create small.raw raw 80M
disk-create plain.raw raw 32M
disk-create lv.raw raw 64M
disk-create damaged.raw raw 100M
disk-create luks.raw raw 64M
disk-create blank.raw raw 8M
add small.raw format:raw
add plain.raw format:raw
add lv.raw format:raw
add damaged.raw format:raw
add luks.raw format:raw
run
part-init /dev/sda mbr
part-add /dev/sda p 2048 -1
mkfs ext4 /dev/sda1 blocksize:4096
mount /dev/sda1 /
tar-in {tar}/real.tar /
debug-upload {tar}/make.tar /tmp/make.tar 0600
debug sh 'cd /tmp && tar xf make.tar && cd /sysroot && bash /tmp/make'
umount-all
mkfs ext4 /dev/sdb blocksize:4096
mount /dev/sdb /
tar-in {tar}/some.tar /
umount-all
pvcreate /dev/sdc
vgcreate vgone /dev/sdc
lvcreate only vgone 48
mkfs ext4 /dev/vgone/only blocksize:4096
mount /dev/vgone/only /
tar-in {tar}/some.tar /
umount-all
part-init /dev/sdd gpt
part-add /dev/sdd p 2048 43007
part-add /dev/sdd p 43008 83967
part-add /dev/sdd p 83968 124927
part-add /dev/sdd p 124928 165887
mkfs ext4 /dev/sdd1 blocksize:4096
mkfs ext4 /dev/sdd2 blocksize:4096
mkfs ext4 /dev/sdd4 blocksize:4096
mount /dev/sdd1 /
tar-in {tar}/some.tar /
umount-all
mount /dev/sdd4 /
tar-in {tar}/some.tar /
umount-all
part-init /dev/sde gpt
part-add /dev/sde p 2048 43007
part-add /dev/sde p 43008 129023
mkfs ext4 /dev/sde1 blocksize:4096
mount /dev/sde1 /
tar-in {tar}/some.tar /
umount-all
debug sh 'echo -n secret | cryptsetup --batch-mode --type luks1 --pbkdf-force-iterations 1000 luksFormat /dev/sde2 -'
! echo ==
debug sh \"{LVS}\"
shutdown
"
    );
    let printed = guestfish::run(dir, &script);
    fs::write(dir.join("lvs"), printed.split_once("==\n").unwrap().1).unwrap();
    // Damage the second partition behind its first superblock, and fill the third partition with
    // noise.
    let image = File::options().write(true).open(dir.join("damaged.raw")).unwrap();
    let noise: Vec<u8> = (0..1 << 15).flat_map(|n| special::sector(999, n)).collect();
    image.write_all_at(&noise[..8 << 20], (43008 << 9) + 2048).unwrap();
    image.write_all_at(&noise[..4 << 20], 83968 << 9).unwrap();
    for name in ["small", "plain", "lv", "damaged", "luks", "blank"] {
        let image = dir.join(format!("{name}.raw"));
        fs::write(dir.join(format!("{name}.raw.sha256")), tools::sha256(&image)).unwrap();
    }
}

/// Makes special files in the small image: a file with so many extents that reading it touches
/// further blocks, which hold the extents, files without blocks, and names that need escapes.
const SMALL_SPECIALS: &str = r#"set -eu
mkdir -p special/links
: > special/empty
printf x > special/one-byte
truncate -s 1M special/hole-only
dd status=none if=/dev/urandom of=special/fragments bs=4096 count=1
for i in $(seq 2 2 64); do
    dd status=none if=/dev/urandom of=special/fragments bs=4096 count=1 seek=$i conv=notrunc
done
dd status=none if=/dev/urandom of=special/linked bs=4096 count=3
ln special/linked special/links/again
printf data > $'special/new\nline and back\\slash'
ln -s one-byte special/symlink
mkfifo special/fifo
sync
"#;

/// The description of one of the small images.
fn fixture(
    dir: &Path,
    name: &str,
    partitions: Vec<Volume>,
    logical_volumes: Vec<Volume>,
    filesystems: &[&str],
) -> Fixture {
    let image = dir.join(name);
    let whole = [Volume::contiguous("/dev/sda", 0, fs::metadata(&image).unwrap().len())];
    let all = [&whole[..], &partitions, &logical_volumes].concat();
    let flats = cache::directory(
        &format!("flat-{name}"),
        dir.file_name().unwrap().to_str().unwrap().rsplit('-').next().unwrap(),
        |flats| {
            for device in filesystems {
                let volume = all.iter().find(|v| v.device == *device).unwrap();
                volume.extract(&image, &flats.join(flat_name(device)));
            }
        },
    );
    let filesystems = filesystems.iter().map(|device| Filesystem {
        volume: all.iter().find(|v| v.device == *device).unwrap().clone(),
        kind: "ext4",
        block: 4096,
        flat: flats.join(flat_name(device)),
        specials: None,
    });
    Fixture {
        sha256: fs::read_to_string(dir.join(format!("{name}.sha256"))).unwrap(),
        filesystems: filesystems.collect(),
        image,
        partitions,
        logical_volumes,
    }
}

/// The first byte of a partition on the only disk with partitions. The kernel that made it may have
/// called the disk by another letter.
fn start_of(partitions: &[Volume], device: &str) -> u64 {
    let number = |device: &str| device.trim_start_matches(|c: char| !c.is_ascii_digit()).to_owned();
    partitions.iter().find(|p| number(&p.device) == number(device)).expect(device).segments[0].disk
}

/// The name of the file that holds a copy of a device.
fn flat_name(device: &str) -> String {
    format!("{}.flat", device.trim_start_matches("/dev/").replace('/', "-"))
}

/// Packs the patterned files of a filesystem, and the script that writes them to the filesystem.
fn special_archive(staging: &Path, name: &str, first: u32) {
    let files = special::files(first);
    let dir = staging.join(name);
    fs::create_dir(&dir).unwrap();
    special::write_sources(&dir, &files);
    File::create(dir.join("make")).unwrap().write_all(special::script(&files).as_bytes()).unwrap();
    let mut names: Vec<PathBuf> =
        fs::read_dir(&dir).unwrap().map(|e| Path::new(name).join(e.unwrap().file_name())).collect();
    names.sort();
    guestfish::tar(&staging.join(format!("{name}-special.tar")), staging, &names);
}

/// Files and symbolic links of this machine, relative to `/`: at most `most` of them, with at most
/// `most_bytes` bytes.
fn real_files(most: usize, most_bytes: u64) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = most_bytes;
    for dir in
        ["usr/share/perl", "usr/lib/python3", "usr/include", "usr/share/doc", "usr/lib/x86_64-linux-gnu"]
    {
        // One directory tree may give only a third of the files.
        let share = found.len() + most / 3;
        collect(&Path::new("/").join(dir), share.min(most), &mut left, &mut found);
    }
    assert!(found.len() >= most * 2 / 3, "only {} files under /usr to fill a fixture with", found.len());
    found
}

fn collect(dir: &Path, most: usize, left: &mut u64, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if found.len() >= most {
            return;
        }
        let Ok(metadata) = entry.metadata() else { continue };
        let path = entry.path();
        if metadata.is_dir() {
            collect(&path, most, left, found);
        } else if metadata.is_symlink() {
            found.push(path.strip_prefix("/").unwrap().to_owned());
        } else if metadata.is_file()
            && metadata.len() <= *left
            && metadata.len() < 4 << 20
            && File::open(&path).is_ok()
        {
            *left -= metadata.len();
            found.push(path.strip_prefix("/").unwrap().to_owned());
        }
    }
}
