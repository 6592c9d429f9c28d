//! The map of a whole guest, compared with what other programs report for the same image.

use std::collections::BTreeMap;
use virt_bmap_testutil::fixture::{self, EFI_FILE, Filesystem, Fixture};
use virt_bmap_testutil::mapping::{self, Mapping};
use virt_bmap_testutil::oracle_fiemap::{self, Tree};
use virt_bmap_testutil::ranges::{Range, difference, intersection, normalise, round_out};
use virt_bmap_testutil::sandbox;
use virt_bmap_testutil::textmap::TextMap;
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::{oracle_fiwalk, oracle_pattern, special};

/// The map that most tests of this file use.
fn guest() -> Mapping {
    let mapping = mapping::of(&[fixture::guest()], &[]);
    assert_eq!(mapping.code, 0, "{}", mapping.stderr);
    mapping
}

/// The files of a filesystem according to a map, with ranges rounded out to its blocks.
fn files(map: &TextMap, filesystem: &Filesystem) -> BTreeMap<Vec<u8>, Vec<Range>> {
    let files = map.paths(1, 'f', &filesystem.volume.device).into_iter();
    files.map(|(path, ranges)| (path, round_out(&ranges, filesystem.block))).collect()
}

/// Fails if the map and an oracle differ, and prints the first few files that differ.
#[track_caller]
fn assert_same_files(map: &BTreeMap<Vec<u8>, Vec<Range>>, oracle: &BTreeMap<Vec<u8>, Vec<Range>>) {
    let names = map.keys().chain(oracle.keys()).collect::<std::collections::BTreeSet<_>>();
    let total = names.len();
    let wrong: Vec<_> = names
        .into_iter()
        .filter(|name| map.get(*name) != oracle.get(*name))
        .map(|name| {
            let short = String::from_utf8_lossy(&name[..name.len().min(200)]).into_owned();
            format!("{short:?}\n     map {:x?}\n  oracle {:x?}", map.get(name), oracle.get(name))
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {total} files differ:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(8)].join("\n")
    );
}

/// All files of a tree that own blocks, in the form of [`files`].
fn with_blocks(tree: &Tree) -> BTreeMap<Vec<u8>, Vec<Range>> {
    let files = tree.files.iter().filter(|(_, file)| !file.on_disk.is_empty());
    files.map(|(name, file)| (name.clone(), file.on_disk.clone())).collect()
}

/// Each file of a fixture's ext4 and XFS filesystems must lie exactly where the kernel says.
fn assert_exact(fixture: &Fixture, map: &TextMap) {
    for filesystem in fixture.filesystems.iter().filter(|f| f.kind != "vfat") {
        let tree = oracle_fiemap::tree(filesystem);
        let expected = with_blocks(&tree);
        assert!(!expected.is_empty());
        let found = map.paths(1, 'f', &filesystem.volume.device).into_iter();
        assert_same_files(
            &found.map(|(path, ranges)| (path, round_out(&ranges, filesystem.block))).collect(),
            &expected,
        );
    }
}

#[test]
fn every_file_is_exact_by_fiemap() {
    needs!("guestfish", "sfdisk", "mount");
    if !tools::is_root("mount a filesystem") {
        return;
    }
    assert_exact(fixture::guest(), &guest().map);
}

#[test]
fn files_are_exact_by_the_sleuth_kit() {
    needs!("guestfish", "sfdisk", "fiwalk");
    let mapping = guest();
    for filesystem in fixture::guest().filesystems.iter().filter(|f| f.kind == "ext4") {
        let map = files(&mapping.map, filesystem);
        let mut compared = 0;
        for (name, ranges) in oracle_fiwalk::files(filesystem) {
            // fiwalk counts unwritten blocks as the file's, and writes odd bytes as `^` or `\x5C`.
            if ranges.is_empty() || name.contains("unwritten") || name.contains(['^', '\\']) {
                continue;
            }
            let Some(found) = map.get(name.as_bytes()) else { panic!("not in the map: {name:?}") };
            assert_eq!(*found, round_out(&ranges, filesystem.block), "{name:?}");
            compared += 1;
        }
        // Of the names that fiwalk writes unchanged, it finds all but the very deep ones.
        let is_plain = |name: &&Vec<u8>| {
            std::str::from_utf8(name).is_ok_and(|name| {
                !name.contains("unwritten") && !name.contains(|c: char| c.is_control() || "^\\".contains(c))
            })
        };
        let plain = map.keys().filter(is_plain).count();
        assert!(compared * 100 >= plain * 90, "{compared} of {plain} compared");
    }
}

#[test]
fn patterned_files_are_where_their_sectors_are() {
    needs!("guestfish", "sfdisk");
    let (guest, mapping) = (fixture::guest(), guest());
    let found = oracle_pattern::scan(&guest.image);
    for filesystem in guest.filesystems.iter().filter(|f| f.specials.is_some()) {
        let map = files(&mapping.map, filesystem);
        for file in filesystem.special_files() {
            let expected = round_out(&oracle_pattern::on_disk(&found, file.id), filesystem.block);
            // A file with hard links has one line for each name.
            for name in &file.names {
                let shown = String::from_utf8_lossy(&name[..name.len().min(80)]);
                assert_eq!(map.get(name), Some(&expected), "{} {shown:?}", filesystem.volume.device);
            }
        }
        for name in special::without_blocks() {
            assert_eq!(map.get(&name), None, "{:?}", String::from_utf8_lossy(&name));
        }
        for name in [b"/special/symlink".as_slice(), b"/special/fifo", b"/special/char", b"/special/block"] {
            assert_eq!(map.get(name), None, "{:?}", String::from_utf8_lossy(name));
        }
    }
}

#[test]
fn files_on_vfat_are_where_their_sectors_are() {
    needs!("guestfish", "sfdisk");
    let found = oracle_pattern::scan(&fixture::guest().image);
    let expected = oracle_pattern::on_disk(&found, EFI_FILE);
    let map = guest().map.paths(1, 'f', "/dev/sda1");
    let names: Vec<_> = map.keys().map(|name| String::from_utf8_lossy(name)).collect();
    assert_eq!(names, ["/EFI/BOOT/BOOTX64.CSV", "/EFI/BOOT/BOOTX64.EFI"]);
    // FAT allocates whole clusters, which are larger than sectors. The map may have up to one
    // cluster more than the file's sectors.
    let found = &map[b"/EFI/BOOT/BOOTX64.EFI".as_slice()];
    assert_eq!(difference(&expected, found), []);
    assert!(virt_bmap_testutil::ranges::bytes(&difference(found, &expected)) < 32768);
}

#[test]
fn partitions_volumes_and_the_disk_cover_what_their_tables_say() {
    needs!("guestfish", "sfdisk");
    let (guest, mapping) = (fixture::guest(), guest());
    let whole = BTreeMap::from([("/dev/sda".to_owned(), vec![0..guest.size()])]);
    assert_eq!(mapping.map.devices(1, 'v'), whole);
    let tables = |volumes: &[virt_bmap_testutil::layout::Volume]| -> BTreeMap<_, _> {
        volumes.iter().map(|v| (v.device.clone(), v.on_disk())).collect()
    };
    assert_eq!(guest.partitions.len(), 4);
    assert_eq!(mapping.map.devices(1, 'p'), tables(&guest.partitions));
    assert!(guest.logical_volumes.iter().any(|v| v.segments.len() == 2));
    assert_eq!(mapping.map.devices(1, 'l'), tables(&guest.logical_volumes));
}

#[test]
fn directories_own_their_blocks_and_no_file_s() {
    needs!("guestfish", "sfdisk", "mount");
    if !tools::is_root("mount a filesystem") {
        return;
    }
    let mapping = guest();
    for filesystem in fixture::guest().filesystems.iter().filter(|f| f.kind != "vfat") {
        let tree = oracle_fiemap::tree(filesystem);
        let map = mapping.map.paths(1, 'd', &filesystem.volume.device);
        for (name, ranges) in &map {
            assert!(tree.directories.contains_key(name), "no directory {:?}", String::from_utf8_lossy(name));
            assert_eq!(difference(ranges, &filesystem.volume.on_disk()), [], "outside the filesystem");
        }
        for (name, own) in &tree.directories {
            let Some(own) = own else { continue };
            let found = map.get(name).cloned().unwrap_or_default();
            assert_eq!(difference(own, &found), [], "{:?}", String::from_utf8_lossy(name));
        }
        let data = normalise(tree.files.values().flat_map(|f| f.on_disk.clone()));
        for (name, ranges) in &map {
            assert_eq!(intersection(ranges, &data), [], "a file's, in {:?}", String::from_utf8_lossy(name));
        }
    }
}

#[test]
fn every_object_lies_in_its_device() {
    needs!("guestfish", "sfdisk");
    let (guest, mapping) = (fixture::guest(), guest());
    let volumes: BTreeMap<_, _> =
        guest.filesystems.iter().map(|f| (f.volume.device.as_str(), f.volume.on_disk())).collect();
    let mut seen = std::collections::BTreeSet::new();
    for line in mapping.map.lines.iter().filter(|l| matches!(l.kind, 'd' | 'f')) {
        let device = std::str::from_utf8(&line.device).unwrap();
        let volume = volumes.get(device).unwrap_or_else(|| panic!("not a filesystem: {line:?}"));
        assert_eq!(difference(std::slice::from_ref(&line.range), volume), [], "{line:?}");
        seen.insert(device);
    }
    assert_eq!(seen.len(), volumes.len());
}

#[test]
fn the_summary_counts_what_there_is() {
    needs!("guestfish", "sfdisk", "mount");
    if !tools::is_root("mount a filesystem") {
        return;
    }
    let guest_fixture = fixture::guest();
    let trees = guest_fixture.filesystems.iter().filter(|f| f.kind != "vfat").map(oracle_fiemap::tree);
    // The vfat filesystem has `/`, `/EFI`, `/EFI/BOOT`, and two files.
    let (directories, files) =
        trees.fold((3, 2), |(d, f), tree| (d + tree.directories.len(), f + tree.files.len()));
    let expected = format!(
        "examined 4 partitions, 2 logical volumes, 4 filesystems, {directories} directories, {files} files"
    );
    let said = guest().stderr;
    assert!(said.contains(&expected), "not {expected:?} in:\n{said}");
}

#[test]
fn the_header_tells_version_and_image() {
    needs!("guestfish", "sfdisk");
    let mapping = guest();
    let header = mapping.map.header.join("\n");
    for word in [env!("CARGO_PKG_VERSION"), "guest.raw", "raw", &fixture::guest().size().to_string()] {
        assert!(header.contains(word), "no {word:?} in the header:\n{header}");
    }
}

#[test]
fn memory_stays_small() {
    needs!("guestfish", "sfdisk");
    let peak = guest().peak_kib;
    assert!(peak > 0, "not measured");
    assert!(peak <= 200 << 10, "{peak} KiB");
}

#[test]
fn a_converted_map_is_the_same_map() {
    needs!("guestfish", "sfdisk");
    let mapping = guest();
    let sandbox = sandbox::Sandbox::new();
    std::fs::write(sandbox.cwd().join("in.bmap"), &mapping.text).unwrap();
    let run = sandbox.run(["convert", "in.bmap", "out.bmap"]);
    run.assert_code(0);
    assert!(run.read("out.bmap") == mapping.text);
}

#[test]
fn a_filesystem_without_partitions_is_exact() {
    needs!("guestfish", "sfdisk", "mount");
    if !tools::is_root("mount a filesystem") {
        return;
    }
    let plain = fixture::plain();
    let mapping = mapping::of(&[plain], &[]);
    assert_eq!(mapping.code, 0, "{}", mapping.stderr);
    assert_exact(plain, &mapping.map);
    assert!(mapping.map.devices(1, 'p').is_empty());
    assert!(mapping.stderr.contains("0 partitions, 0 logical volumes, 1 filesystem"), "{}", mapping.stderr);
}

#[test]
fn a_logical_volume_on_a_whole_disk_is_exact() {
    needs!("guestfish", "sfdisk", "mount");
    if !tools::is_root("mount a filesystem") {
        return;
    }
    let lv_only = fixture::lv_only();
    let mapping = mapping::of(&[lv_only], &[]);
    assert_eq!(mapping.code, 0, "{}", mapping.stderr);
    assert_exact(lv_only, &mapping.map);
    let volume = &lv_only.logical_volumes[0];
    assert_eq!(mapping.map.devices(1, 'l'), BTreeMap::from([(volume.device.clone(), volume.on_disk())]));
}

#[test]
fn two_disks_of_one_guest_are_numbered() {
    needs!("guestfish", "sfdisk", "mount");
    if !tools::is_root("mount a filesystem") {
        return;
    }
    let (small, plain) = (fixture::small(), fixture::plain());
    let both = mapping::of(&[small, plain], &[]);
    assert_eq!(both.code, 0, "{}", both.stderr);
    assert_exact(small, &both.map);
    assert_eq!(both.map.devices(2, 'v'), BTreeMap::from([("/dev/sdb".into(), vec![0..plain.size()])]));
    let expected = with_blocks(&oracle_fiemap::tree(&plain.filesystems[0]));
    let found = both.map.paths(2, 'f', "/dev/sdb").into_iter();
    assert_same_files(&found.map(|(path, ranges)| (path, round_out(&ranges, 4096))).collect(), &expected);
    assert!(both.map.paths(1, 'f', "/dev/sdb").is_empty() && both.map.paths(2, 'f', "/dev/sda1").is_empty());
}
