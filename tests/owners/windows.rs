//! A guest as Windows lays it out: nothing of it is worth a warning, and the books are even.

use super::ntfs::{FILL, View};
use super::with_metadata;
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use virt_bmap_map::{Balance, Kind, Map, Marks, ObjectName};
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::{cache, guestfish, layout};

/// EFI system partition, Microsoft reserved partition (empty), Windows, and the recovery partition,
/// which has the attributes that Windows gives it (required, and no letter for the drive).
const TABLE: &str = "label: gpt
start=1MiB, size=40MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=\"EFI system partition\"
size=16MiB, type=E3C9E316-0B5C-4DB8-817D-F92DF00215AE, name=\"Microsoft reserved partition\"
size=60MiB, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, name=\"Basic data partition\"
size=16MiB, type=DE94BBA4-06D1-4D4D-A16A-BFD50179D6AC, attrs=\"RequiredPartition GUID:63\"
";

const SCRIPT: &str = r#"add disk.raw format:raw
run
debug sh 'mkfs.fat -F 32 -s 1 -n SYSTEM /dev/sda1 >&2'
debug sh 'for d in 3 4; do mkntfs -q -Q -F -c 4096 /dev/sda$d; done >&2'
mount /dev/sda1 /
mkdir-p /EFI/Microsoft/Boot
mkdir-p /EFI/Boot
upload fill.sh /EFI/Boot/bootx64.efi
upload fill.sh /EFI/Microsoft/Boot/BCD
umount-all
mount-options compression /dev/sda3 /
upload fill.sh /fill.sh
debug sh 'bash -e /sysroot/fill.sh /sysroot >&2'
umount-all
mount /dev/sda4 /
mkdir-p /Recovery/WindowsRE
upload fill.sh /Recovery/WindowsRE/ReAgent.xml
debug sh 'head -c 3000000 /dev/zero | tr "\0" w > /sysroot/Recovery/WindowsRE/Winre.wim'
umount-all
shutdown
"#;

/// What the volumes of `ntfs` have, but for the hibernated system and the deleted file.
fn fill() -> String {
    let lines: Vec<&str> =
        FILL.lines().filter(|line| !line.contains("hiberfil.sys") && !line.contains("gone")).collect();
    lines.join("\n")
}

fn make(dir: &Path) {
    let disk = dir.join("disk.raw");
    File::create(&disk).unwrap().set_len(134 << 20).unwrap();
    fs::write(dir.join("table"), TABLE).unwrap();
    let table = Stdio::from(File::open(dir.join("table")).unwrap());
    tools::output(tools::command("sfdisk").arg("-q").arg(&disk).stdin(table));
    fs::write(dir.join("fill.sh"), fill()).unwrap();
    guestfish::run(dir, SCRIPT);
    for volume in layout::partitions(&disk, "/dev/sda") {
        volume.extract(&disk, &dir.join(volume.device.trim_start_matches("/dev/")));
    }
}

#[test]
fn a_guest_like_that_of_windows_is_worth_no_warning() {
    needs!("guestfish", "sfdisk", "mkntfs", "mkfs.fat", "istat", "fsstat");
    let dir = cache::directory("windows", &cache::key((TABLE, SCRIPT, fill())), make);
    let disk = dir.join("disk.raw");
    let (run, map) = with_metadata::map(std::slice::from_ref(&disk), &[]);
    assert_eq!(map.header().warnings, []);
    run.assert_code(0);
    let filesystems: Vec<(&str, &str)> = map.header().filesystems.iter().map(device_and_kind).collect();
    assert_eq!(filesystems, [("/dev/sda1", "vfat"), ("/dev/sda3", "ntfs"), ("/dev/sda4", "ntfs")]);
    for filesystem in &map.header().filesystems {
        let balance = filesystem.balance.unwrap();
        assert!(balance.is_even() && balance.files > 0 && balance.directories > 0, "{filesystem:?}");
        let Balance { used, files, directories, metadata, superseded, .. } = balance;
        assert_eq!(used, files + directories + metadata + superseded);
    }
    assert_eq!(map.header().explained(), Some(10_000));
    for volume in layout::partitions(&disk, "/dev/sda") {
        if matches!(volume.device.as_str(), "/dev/sda3" | "/dev/sda4") {
            let flat = dir.join(volume.device.trim_start_matches("/dev/"));
            View { map: &map, volume: &volume, cluster: 4096, flat }.clusters();
        }
    }
    for (kind, device, path, marks) in [
        (Kind::File, "/dev/sda1", "/EFI/Microsoft/Boot/BCD", Marks::empty()),
        (Kind::File, "/dev/sda3", "/pieces:big", Marks::UNVERIFIED),
        (Kind::File, "/dev/sda3", "/wof.exe:WofCompressedData", Marks::ENCODED),
        (Kind::File, "/dev/sda3", "/onedrive", Marks::REPARSE_POINT),
        (Kind::Directory, "/dev/sda3", "/cloud", Marks::REPARSE_POINT),
        (Kind::File, "/dev/sda3", "/sparse", Marks::SPARSE),
        (Kind::File, "/dev/sda3", "/compressed/file", Marks::ENCODED),
        (Kind::File, "/dev/sda4", "/Recovery/WindowsRE/Winre.wim", Marks::empty()),
        (Kind::Partition, "/dev/sda2", "", Marks::empty()),
    ] {
        let name = ObjectName { kind, device: device.as_bytes(), path: path.as_bytes() };
        has(&map, name, marks);
    }
}

fn device_and_kind(filesystem: &virt_bmap_map::Filesystem) -> (&str, &str) {
    (std::str::from_utf8(&filesystem.device).unwrap(), &filesystem.kind)
}

#[track_caller]
fn has(map: &Map, name: ObjectName<'_>, marks: Marks) {
    let object = map.find(name).unwrap_or_else(|| panic!("no {name}"));
    assert!(object.pieces().len() > 0, "{name}");
    assert!(object.attributes().marks.contains(marks), "{name}: {:?}", object.attributes().marks);
}
