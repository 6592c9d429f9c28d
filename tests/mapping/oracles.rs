//! Checks the fixtures and the oracles against each other. Other tests measure the program by what
//! three oracles agree on for the same image.

use virt_bmap_testutil::ranges::{bytes, difference, intersection, round_out};
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::{fixture, oracle_ext4, oracle_fiemap, oracle_fiwalk, oracle_pattern, special};

#[test]
fn interval_arithmetic() {
    let a = [0..10, 20..30, 40..50];
    let b = [5..25, 45..46];
    assert_eq!(difference(&a, &b), [0..5, 25..30, 40..45, 46..50]);
    assert_eq!(intersection(&a, &b), [5..10, 20..25, 45..46]);
    assert_eq!(round_out(&a, 16), [0..64]);
    assert_eq!(bytes(&a), 30);
}

#[test]
fn fiemap_here_agrees_with_filefrag() {
    needs!("filefrag");
    let mut compared = 0;
    for file in ["/etc/passwd", "/usr/bin/env", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")] {
        let (ours, theirs) = oracle_fiemap::fiemap_and_filefrag(file.as_ref());
        assert_eq!(ours, theirs, "{file}");
        compared += ours.len();
    }
    assert!(compared > 0);
}

#[test]
fn the_kernel_agrees_with_the_patterns() {
    needs!("guestfish", "sfdisk", "mount");
    if !tools::is_root("mount a filesystem") {
        return;
    }
    let guest = fixture::guest();
    let found = oracle_pattern::scan(&guest.image);
    for filesystem in guest.filesystems.iter().filter(|f| f.specials.is_some()) {
        let tree = oracle_fiemap::tree(filesystem);
        assert!(tree.files.len() > special::MANY, "{}", filesystem.volume.device);
        for file in filesystem.special_files() {
            let scanned = oracle_pattern::on_disk(&found, file.id);
            let data: u64 = file.data.iter().map(|r| r.end.min(file.size) - r.start).sum();
            let sectors = data.div_ceil(special::SECTOR as u64) * special::SECTOR as u64;
            assert_eq!(bytes(&scanned), sectors, "{:?}", String::from_utf8_lossy(&file.names[0]));
            for name in &file.names {
                let kernel = &tree.files[name];
                assert_eq!(kernel.links, file.names.len() as u64);
                assert_eq!(kernel.size, file.size);
                assert_eq!(
                    round_out(&scanned, filesystem.block),
                    kernel.on_disk,
                    "{} {:?}",
                    filesystem.volume.device,
                    String::from_utf8_lossy(name)
                );
            }
        }
        for name in special::without_blocks() {
            assert_eq!(tree.files[&name].on_disk, [], "{:?}", String::from_utf8_lossy(&name));
        }
        // These files must have more extents than an ext4 inode has room for.
        for name in [b"/special/fragments-a", b"/special/fragments-b", b"/special/fragments-c"] {
            assert!(tree.files[name.as_slice()].extents > 4, "{} is whole", String::from_utf8_lossy(name));
        }
        assert!(tree.others.len() >= 5);
        assert!(tree.directories.keys().any(|d| d.len() > 4096));
    }
}

#[test]
fn the_sleuth_kit_agrees_with_the_kernel() {
    needs!("guestfish", "sfdisk", "mount", "fiwalk");
    if !tools::is_root("mount a filesystem") {
        return;
    }
    let guest = fixture::guest();
    for filesystem in guest.filesystems.iter().filter(|f| f.kind == "ext4") {
        let kernel = oracle_fiemap::tree(filesystem);
        let sleuth_kit = oracle_fiwalk::files(filesystem);
        let mut compared = 0;
        for (name, ranges) in &sleuth_kit {
            let Some(file) = kernel.files.get(name.as_bytes()) else { continue };
            // The Sleuth Kit counts unwritten blocks as the file's own.
            if name.contains("unwritten") {
                continue;
            }
            assert_eq!(round_out(ranges, filesystem.block), file.on_disk, "{name}");
            compared += 1;
        }
        assert!(compared * 100 > kernel.files.len() * 98, "{compared} of {} compared", kernel.files.len());
    }
}

#[test]
fn the_small_images_are_what_they_say() {
    needs!("guestfish", "sfdisk", "mount", "fiwalk", "cryptsetup", "debugfs");
    if !tools::is_root("mount a filesystem") {
        return;
    }
    for fixture in
        [fixture::small(), fixture::plain(), fixture::lv_only(), fixture::damaged(), fixture::luks()]
    {
        for filesystem in &fixture.filesystems {
            let kernel = oracle_fiemap::tree(filesystem);
            let sleuth_kit = oracle_fiwalk::files(filesystem);
            assert!(kernel.files.len() >= 10, "{}", fixture.image.display());
            for (name, ranges) in sleuth_kit {
                if let Some(file) = kernel.files.get(name.as_bytes()) {
                    assert_eq!(round_out(&ranges, filesystem.block), file.on_disk, "{name}");
                }
            }
        }
    }
    let small = &fixture::small().filesystems[0];
    let fragments = &oracle_fiemap::tree(small).files[b"/special/fragments".as_slice()];
    assert!(fragments.extents > 4);
    assert!(!oracle_ext4::extent_blocks(small, fragments.inode).is_empty());
    let metadata = oracle_ext4::metadata(small);
    assert!(["superblock", "inode table", "block bitmap"].iter().all(|kind| metadata.contains_key(kind)));

    let dir = tempfile::tempdir().unwrap();
    let copy = |fixture: &fixture::Fixture, partition: usize| {
        let flat = dir.path().join(format!("{partition}"));
        std::fs::remove_file(&flat).ok();
        fixture.partitions[partition].extract(&fixture.image, &flat);
        flat
    };
    // blkid finds a filesystem here, but no kernel mounts it.
    let broken = copy(fixture::damaged(), 1);
    let kind = tools::run(
        "blkid",
        ["-p".as_ref(), "-o".as_ref(), "value".as_ref(), "-s".as_ref(), "TYPE".as_ref(), broken.as_os_str()],
    );
    assert_eq!(kind, b"ext4\n");
    let options = ["-t", "ext4", "-o", "loop,ro,noload"].map(std::ffi::OsStr::new);
    let mount = tools::command("mount").args(options).arg(&broken).arg(dir.path()).output().unwrap();
    assert!(!mount.status.success());
    tools::run("cryptsetup", ["isLuks".as_ref(), copy(fixture::luks(), 1).as_os_str()]);
}
