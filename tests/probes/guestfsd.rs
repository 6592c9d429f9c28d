//! Compares the agent with the reference: the command `bmap_file` of libguestfs.

use std::collections::BTreeMap;
use virt_bmap_testutil::ranges::{bytes, difference, intersection, normalise, round_out};
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::{fixture, mapping, oracle_ext4, oracle_fiemap};

/// Every range that the agent gives to a file, the reference gives to it too. The reference drops
/// all caches before it reads an object, so it reads metadata again for each object and gives these
/// ranges to the object. The test finds the kind of metadata for each range that only the reference
/// has. None may be left.
#[test]
fn what_the_reference_has_beyond_is_metadata() {
    needs!("guestfish", "sfdisk", "mount", "dumpe2fs", "debugfs");
    if !tools::is_root("mount a filesystem") {
        return;
    }
    let small = fixture::small();
    let filesystem = &small.filesystems[0];
    let agent = mapping::of(&[small], &["--probe", "agent"]).map;
    let reference = mapping::of(&[small], &["--probe", "guestfsd"]);
    assert_eq!(reference.code, 0, "{}", reference.stderr);
    let reference = reference.map;
    for kind in ['v', 'p', 'l'] {
        assert_eq!(agent.devices(1, kind), reference.devices(1, kind));
    }

    let tree = oracle_fiemap::tree(filesystem);
    let mut reasons: Vec<_> = oracle_ext4::metadata(filesystem).into_iter().collect();
    let directories = tree.directories.values().flatten().flatten().cloned();
    reasons.push(("directory", normalise(directories)));
    let extent_blocks = tree
        .files
        .values()
        .filter(|file| file.extents > 4)
        .flat_map(|file| oracle_ext4::extent_blocks(filesystem, file.inode));
    reasons.push(("extents of a file", normalise(extent_blocks)));
    assert!(!reasons.last().unwrap().1.is_empty(), "the fixture has no file with many extents");

    let mut listed: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    let of_reference = reference.paths(1, 'f', "/dev/sda1");
    for (name, file) in &tree.files {
        let shown = String::from_utf8_lossy(name);
        let ours = agent.paths(1, 'f', "/dev/sda1").remove(name).unwrap_or_default();
        let theirs = of_reference.get(name).cloned().unwrap_or_default();
        assert_eq!(round_out(&ours, filesystem.block), file.on_disk, "{shown:?}");
        assert_eq!(difference(&ours, &theirs), [], "only the agent has this of {shown:?}");
        let mut beyond = difference(&theirs, &file.on_disk);
        for (reason, place) in &reasons {
            let explained = intersection(&beyond, place);
            if !explained.is_empty() {
                let count = listed.entry(reason).or_default();
                *count = (count.0 + 1, count.1 + bytes(&explained));
                beyond = difference(&beyond, place);
            }
        }
        assert_eq!(beyond, [], "the reference gives this to {shown:?}, and it is no metadata");
    }
    for (reason, (files, bytes)) in listed {
        eprintln!("the reference alone: {reason}, {bytes} bytes in {files} files");
    }
}
