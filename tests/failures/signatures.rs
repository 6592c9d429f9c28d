//! Warnings name what a device holds if the appliance cannot use it. They tell empty devices from
//! others.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use virt_bmap_testutil::mapped::Mapped;
use virt_bmap_testutil::tools::{self, needs};

const MIB: u64 = 1 << 20;

/// A disk with these bytes at these offsets.
fn disk(dir: &Path, name: &str, size: u64, bytes: &[(u64, &[u8])]) -> PathBuf {
    let path = dir.join(name);
    let disk = File::create(&path).unwrap();
    disk.set_len(size).unwrap();
    for (at, bytes) in bytes {
        disk.write_all_at(bytes, *at).unwrap();
    }
    path
}

/// Runs sfdisk with a script.
fn partition(disk: &Path, options: &[&str], script: &str) {
    let input = disk.with_extension("sfdisk");
    fs::write(&input, script).unwrap();
    let mut sfdisk = tools::command("sfdisk");
    sfdisk.arg("-q").args(options).arg(disk).stdin(Stdio::from(File::open(input).unwrap()));
    tools::output(&mut sfdisk);
}

/// An ext4 with `count` files, of which each is one block.
fn ext4(dir: &Path, name: &str, size: u64, count: usize) -> PathBuf {
    let tree = dir.join(format!("{name}.tree"));
    fs::create_dir(&tree).unwrap();
    for number in 0..count {
        fs::write(tree.join(format!("file{number}")), [b'0' + number as u8; 4096]).unwrap();
    }
    let path = disk(dir, name, size, &[]);
    let mut mkfs = tools::command("mkfs.ext4");
    mkfs.args(["-q", "-F", "-b", "4096", "-d"]).arg(&tree).arg(&path);
    tools::output(&mut mkfs);
    path
}

/// The places of the formats are those of libblkid's `isw_raid.c`, `ddf_raid.c`, `vmfs.c`, `refs.c`,
/// `apfs.c` and `zfs.c`, and of `bcachefs_format.h`.
fn disks(dir: &Path) -> Vec<PathBuf> {
    let size = 16 * MIB;
    let anchor = |primary: u64| {
        let mut header = [0; 512];
        header[..4].copy_from_slice(&[0xde, 0x11, 0xde, 0x11]);
        header[32..40].copy_from_slice(b"01.02.00");
        header[96..104].copy_from_slice(&primary.to_be_bytes());
        header
    };
    let ddf = anchor(size / 512 - 9);
    let mut apfs = [0; 512];
    apfs[24..28].copy_from_slice(&0x8000_0001_u32.to_le_bytes());
    apfs[32..36].copy_from_slice(b"NXSB");
    apfs[36..40].copy_from_slice(&4096_u32.to_le_bytes());
    let uberblock = 0x00ba_b10c_u64.to_le_bytes();
    let uberblocks: Vec<(u64, &[u8])> = (0..8).map(|n| ((128 + n) << 10, &uberblock[..])).collect();
    let bcachefs = b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef";

    let over = ext4(dir, "over.raw", 64 * MIB, 5);
    partition(&over, &["--force"], ",,83\n");
    let both = ext4(dir, "both.raw", 64 * MIB, 3);
    File::options().write(true).open(&both).unwrap().write_all_at(b"ReFS\0\0\0\0", 3).unwrap();
    let windows = disk(dir, "windows.raw", 64 * MIB, &[]);
    let types = ["E3C9E316-0B5C-4DB8-817D-F92DF00215AE", "E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D"];
    let [reserved, spaces] = types.map(|kind| format!("size=16MiB,type={kind}\n"));
    partition(&windows, &[], &format!("label: gpt\n{reserved}{spaces}{reserved}"));
    let in_third = 33 * MIB + 5000;
    File::options().write(true).open(&windows).unwrap().write_all_at(b"x", in_third).unwrap();
    let empty = disk(dir, "empty.raw", size, &[]);
    partition(&empty, &[], "label: gpt\n");
    vec![
        disk(dir, "isw.raw", size, &[(size - 1024, b"Intel Raid ISM Cfg Sig. 1.0.00")]),
        disk(dir, "ddf.raw", size, &[(size - 512, &ddf), (size - 9 * 512, &ddf)]),
        disk(dir, "vmfs.raw", size, &[(MIB, &0xc001_d00d_u32.to_le_bytes())]),
        disk(dir, "zfs.raw", 64 * MIB, &uberblocks),
        disk(dir, "refs.raw", size, &[(3, b"ReFS\0\0\0\0")]),
        disk(dir, "apfs.raw", size, &[(0, &apfs)]),
        disk(dir, "bcachefs.raw", size, &[(4096 + 24, bcachefs), (4096 + 72, b"pool1")]),
        over,
        both,
        windows,
        empty,
        disk(dir, "blank.raw", size, &[]),
        // The last byte is not in the first megabyte.
        disk(dir, "late.raw", size, &[(size - 1, b"x")]),
    ]
}

#[test]
fn what_nothing_uses_is_said_by_name() {
    needs!("guestfish", "sfdisk", "mkfs.ext4", "wipefs");
    let dir = tempfile::tempdir().unwrap();
    let disks = disks(dir.path());
    let map = Mapped::of(&disks, &[]);
    assert_eq!(map.code, 3, "{}", map.stderr);
    let of = |name: &str| {
        let number = disks.iter().position(|disk| disk.ends_with(format!("{name}.raw"))).unwrap();
        format!("/dev/sd{}", char::from(b'a' + number as u8))
    };
    for (name, signature) in [
        ("isw", "isw_raid_member"),
        ("ddf", "ddf_raid_member"),
        ("vmfs", "VMFS_volume_member"),
        ("zfs", "zfs_member"),
        ("refs", "ReFS"),
        ("apfs", "apfs"),
        ("bcachefs", "bcachefs"),
    ] {
        assert_eq!(map.cause(&of(name), "signature-unused")["signature"], signature);
    }
    assert_eq!(map.cause(&of("bcachefs"), "signature-unused")["label"], "pool1");

    // A table over a filesystem, and a second signature: the files are there, and both are said.
    for (name, files, besides) in [("over", 5, "dos"), ("both", 3, "ReFS")] {
        let device = of(name);
        let found = map.objects.keys().filter(|object| object.starts_with(&format!("f {device} /file")));
        assert_eq!(found.count(), files, "{name}:\n{}", map.stderr);
        for number in 0..files {
            let expected = [b'0' + number as u8; 4096];
            assert_eq!(map.file(&format!("f {device} /file{number}"), 0, 4096), expected, "{name}");
        }
        assert_eq!(map.cause(&device, "signature-besides")["signature"], besides);
    }

    // Of the reserved partitions one is empty. The other is not, and is said.
    let windows = of("windows");
    assert!(!map.warnings.iter().any(|warning| warning["device"] == format!("{windows}1")));
    assert_eq!(map.cause(&format!("{windows}2"), "signature-unused")["signature"], "storage_spaces");
    map.cause(&format!("{windows}3"), "unknown-content");

    map.cause(&of("empty"), "blank");
    map.cause(&of("blank"), "blank");
    map.cause(&of("late"), "unknown-content");
    assert_eq!(map.warnings.len(), 7 + 2 + 2 + 3, "{:#?}", map.warnings);
}
