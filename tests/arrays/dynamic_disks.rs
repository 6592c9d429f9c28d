//! Windows dynamic disks (LDM): a group of three disks with a volume of each type. No free program
//! makes such disks, so `dynamic_disks.py` writes them. `ldmtool` checks that they are valid, and
//! the patterns in the files show where their sectors are.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::PathBuf;
use virt_bmap_testutil::layered::{self, pattern};
use virt_bmap_testutil::mapped::Mapped;
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::{cache, mastering};

/// The types of volumes, and how many copies each keeps of its data.
const VOLUMES: [(&str, u64); 5] =
    [("Simple", 1), ("Spanned", 1), ("Striped", 1), ("Mirrored", 2), ("Raid5", 1)];

/// Bytes of each file. The file of the spanned volume does not fit on the volume's first disk.
const SIZE: usize = (14 << 20) + 700;

fn script() -> String {
    let mut script = String::new();
    for (id, (volume, _)) in (1..).zip(VOLUMES) {
        let device = format!("/dev/mapper/ldm_vol_group_{volume}");
        script += &layered::fill(&device, "mkfs.ext4 -q -b 4096", id, SIZE);
        writeln!(script, "umount /mnt/{id}").unwrap();
    }
    script
}

/// The disks of the group, with a partition table of the type `mbr` or `gpt`.
fn disks(table: &str) -> Vec<PathBuf> {
    let key = cache::key((mastering::MAKERS[0], script(), SIZE, layered::SOURCE));
    let dir = cache::directory(&format!("dynamic-disks-{table}"), &key, |dir| {
        let images: Vec<PathBuf> = (1..=3).map(|number| dir.join(format!("{number}.raw"))).collect();
        mastering::dynamic_disks(table, &images, 116);
        let files: Vec<Vec<u8>> = (1..=VOLUMES.len() as u32).map(|id| pattern(id, SIZE)).collect();
        layered::fill_made(dir, 3, &files, &script());
    });
    (1..=3).map(|number| dir.join(format!("{number}.raw"))).collect()
}

#[test]
fn volumes_of_each_type_are_mapped() {
    needs!("guestfish", "python3", "ldmtool", "sfdisk");
    volumes_are_mapped("mbr");
}

#[test]
fn volumes_on_disks_with_gpt_are_mapped() {
    needs!("guestfish", "python3", "ldmtool", "sfdisk");
    volumes_are_mapped("gpt");
}

fn volumes_are_mapped(table: &str) {
    let disks = disks(table);
    // ldmtool, another program, finds the group.
    let said =
        tools::run("ldmtool", [OsStr::new("scan")].into_iter().chain(disks.iter().map(|d| d.as_os_str())));
    assert!(String::from_utf8_lossy(&said).contains('-'), "ldmtool finds no group");

    let mapped = Mapped::of(&disks, &["--metadata"]);
    assert_eq!(mapped.code, 0, "{}", mapped.stderr);
    what_the_group_keeps_has_names(&mapped, table);
    // No file is found twice, in the kernel's partitions or in the parts of volumes.
    let files: Vec<&String> = mapped.objects.keys().filter(|name| name.ends_with("/file")).collect();
    assert_eq!(files.len(), VOLUMES.len(), "{files:?}");
    for (id, (volume, copies)) in (1..).zip(VOLUMES) {
        let file = format!("f /dev/mapper/ldm_vol_group_{volume} /file");
        let content = pattern(id, SIZE);
        for copy in 0..copies {
            assert!(mapped.file(&file, copy, SIZE) == content, "{volume}, copy {copy}");
        }
        let pieces = mapped.pieces(&file);
        let data = pieces.iter().filter(|piece| !piece.is_parity);
        let bytes: u64 = data.clone().map(|piece| piece.end - piece.start).sum();
        assert_eq!(bytes, copies * (SIZE as u64).next_multiple_of(4096), "{volume}");
        assert_eq!(pieces.iter().any(|piece| piece.is_parity), volume == "Raid5", "{volume}");
        let mut on: Vec<usize> = data.map(|piece| piece.disk).collect();
        on.sort_unstable();
        on.dedup();
        let expected: &[usize] = match volume {
            "Simple" => &[1],
            "Mirrored" => &[1, 3],
            "Raid5" => &[1, 2, 3],
            _ => &[1, 2],
        };
        assert_eq!(on, expected, "{volume}");
    }
}

/// Each disk must have the private header, and the database with its tables of contents and
/// records.
fn what_the_group_keeps_has_names(mapped: &Mapped, table: &str) {
    for (number, disk) in (1..).zip(["/dev/sda", "/dev/sdb", "/dev/sdc"]) {
        let database = mapped.pieces(&format!("m {disk} [LDM database]"));
        let [database] = &database[..] else { panic!("{database:?}") };
        let bytes = mapped.read(number, database.start, database.end - database.start);
        assert_eq!((database.disk, bytes.len()), (number, 1 << 20));
        assert!(bytes[512..].starts_with(b"TOCBLOCK") && bytes[2047 * 512..].starts_with(b"PRIVHEAD"));
        assert!(bytes[17 * 512..].starts_with(b"VMDB"));
        assert!(mapped.text.contains(&format!(" m {disk} [LDM database]\n")));
        let header = format!("m {disk} [LDM private header]");
        if table == "mbr" {
            let header = &mapped.pieces(&header)[0];
            assert!(mapped.read(number, header.start, 512).starts_with(b"PRIVHEAD"));
        } else {
            assert!(!mapped.objects.contains_key(&header));
        }
        // The group has only its headers in front of the volumes. Nothing of them is taken for boot
        // code.
        assert!(!mapped.objects.contains_key(&format!("m {disk} [boot code]")), "{disk}");
    }
}

#[test]
fn a_disk_that_is_missing_is_said() {
    needs!("guestfish", "python3", "ldmtool");
    let mapped = Mapped::of(&disks("mbr")[..1], &[]);
    assert_eq!(mapped.code, 3, "{}", mapped.stderr);
    let file = mapped.file("f /dev/mapper/ldm_vol_group_Simple /file", 0, SIZE);
    assert!(file == pattern(1, SIZE));
    // These parts belong to volumes that lack a disk. One half of the mirrored volume is enough.
    for part in ["/dev/sda2", "/dev/sda3", "/dev/sda5"] {
        mapped.cause(part, "outside-dynamic-volumes");
    }
    let file = mapped.file("f /dev/mapper/ldm_vol_group_Mirrored /file", 0, SIZE);
    assert!(file == pattern(4, SIZE));
}
