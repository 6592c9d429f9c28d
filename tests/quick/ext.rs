//! Where the inodes of ext2, ext3 and ext4 lie, in filesystems that `mke2fs` makes. The oracle is
//! `debugfs`.

use crate::inode_tables::reader;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use virt_bmap_on_disk::ext::{Filesystem, Place};
use virt_bmap_testutil::tools::{self, needs};

/// What an inode has: blocks of data by their number in the file, blocks of its tree, and the block
/// of its attributes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub(crate) data: BTreeSet<(u64, u64, bool)>,
    pub(crate) tree: BTreeSet<u64>,
    pub(crate) attributes: Option<u64>,
}

impl Blocks {
    fn of(place: &Place, block: u64) -> Self {
        let number = |range: virt_bmap_ranges::Range<virt_bmap_ranges::DeviceOffset>| range.start.0 / block;
        let data = place.data.iter().flat_map(|part| {
            let (first, at) = (part.offset / block, number(part.range));
            (0..part.range.len() / block).map(move |n| (first + n, at + n, part.is_unwritten))
        });
        Self {
            data: data.collect(),
            tree: place.tree.iter().map(|range| number(*range)).collect(),
            attributes: place.attributes.map(number),
        }
    }

    /// What `stat` of debugfs says: `(0-11):8234-8245, (IND):8246, (13[u]):9, (ETB0):33`.
    pub(crate) fn said(said: &str) -> Self {
        let mut blocks = Self::default();
        let acl = said.split_once("File ACL: ").unwrap().1.lines().next().unwrap().trim();
        blocks.attributes = Some(acl.parse().unwrap()).filter(|acl| *acl > 0);
        let list = said.split_once("\nEXTENTS:\n").or_else(|| said.split_once("\nBLOCKS:\n"));
        let list = list.and_then(|(_, list)| list.lines().next()).unwrap_or_default();
        for item in list.split(", ").filter(|item| !item.is_empty()) {
            let (of, place) = item.strip_prefix('(').unwrap().split_once("):").unwrap();
            let run = |text: &str| {
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                first.parse::<u64>().unwrap()..=last.parse::<u64>().unwrap()
            };
            if of.starts_with(|c: char| c.is_ascii_digit()) {
                let (of, is_unwritten) = of.strip_suffix("[u]").map_or((of, false), |of| (of, true));
                blocks.data.extend(run(of).zip(run(place)).map(|(of, at)| (of, at, is_unwritten)));
            } else {
                blocks.tree.extend(run(place));
            }
        }
        blocks
    }
}

/// Files with holes and with thousands of extents, links, and a large directory.
pub(crate) fn fill(tree: &Path) {
    fs::create_dir(tree).unwrap();
    fs::write(tree.join("short"), "a few bytes").unwrap();
    fs::write(tree.join("long"), vec![7; 3 << 20]).unwrap();
    let pieces = File::create(tree.join("pieces")).unwrap();
    for n in 0..3000u64 {
        pieces.write_all_at(b"piece", (n * 16) << 10).unwrap();
    }
    let far = File::create(tree.join("far")).unwrap();
    for at in [0, 5 << 20, 300 << 20, 3 << 30] {
        far.write_all_at(b"far", at).unwrap();
    }
    symlink("x".repeat(40), tree.join("fast")).unwrap();
    symlink("x".repeat(300), tree.join("slow")).unwrap();
    let many = tree.join("many");
    fs::create_dir(&many).unwrap();
    for n in 0..500 {
        fs::write(many.join(format!("a rather long name of a file, number {n}")), "").unwrap();
    }
}

pub(crate) fn make(dir: &Path, tree: &Path, name: &str, options: &[&str]) -> PathBuf {
    let image = dir.join(name);
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let paths = ["-d", tree.to_str().unwrap(), image.to_str().unwrap()];
    tools::run("mke2fs", ["-q", "-F"].iter().chain(options).chain(&paths));
    for name in ["short", "many", "slow"] {
        let request = format!("ea_set /{name} user.note {}", "v".repeat(900));
        tools::run("debugfs", ["-w", "-R", &request, paths[2]]);
    }
    // Blocks that are reserved for a file, at its beginning, in a hole, and past its end.
    if !options.contains(&"ext2") {
        for request in ["fallocate /far 3 9", "fallocate /short 0 40000"] {
            tools::run("debugfs", ["-w", "-R", request, paths[2]]);
        }
    }
    image
}

/// Filesystems with different features: a name, and the options of `mke2fs`.
pub(crate) const EXT_KINDS: [(&str, &[&str]); 6] = [
    ("ext2", &["-t", "ext2", "-b", "1024"]),
    ("ext3", &["-t", "ext3", "-b", "4096"]),
    ("ext4", &["-t", "ext4", "-b", "1024"]),
    ("quota", &["-t", "ext4", "-b", "4096", "-O", "quota,project,orphan_file,^resize_inode,meta_bg"]),
    ("inline", &["-t", "ext4", "-b", "2048", "-O", "inline_data,^64bit", "-g", "8192"]),
    ("revision 0", &["-t", "ext2", "-r", "0", "-b", "1024"]),
];

/// What debugfs says of the inodes 1 to `last`.
pub(crate) fn debugfs_stat(dir: &Path, image: &Path, last: u32) -> Vec<String> {
    let requests: String = (1..=last).map(|inode| format!("stat <{inode}>\n")).collect();
    let file = dir.join("requests");
    fs::write(&file, requests).unwrap();
    let output = tools::command("debugfs")
        .args(["-f".as_ref(), file.as_path(), image])
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.split("debugfs: stat <").skip(1).map(str::to_owned).collect()
}

#[test]
fn inodes_lie_where_debugfs_says() {
    needs!("mke2fs", "debugfs");
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fill(&tree);
    for (name, options) in EXT_KINDS {
        let image = make(dir.path(), &tree, name, options);
        let read = reader(&image);
        let filesystem = Filesystem::read(&read).unwrap();
        let (mut in_trees, mut unwritten, mut attributes) = (0, 0, 0);
        for (inode, said) in (1..=540).zip(debugfs_stat(dir.path(), &image, 540)) {
            let expected = Blocks::said(&said);
            let place = filesystem.place(&read, inode);
            let found = place.as_ref().map(|place| Blocks::of(place, filesystem.block()));
            assert_eq!(found.as_ref(), Some(&expected), "{name}: inode {inode}\n{said}");
            in_trees += expected.tree.len();
            unwritten += expected.data.iter().filter(|(.., is_unwritten)| *is_unwritten).count();
            attributes += usize::from(expected.attributes.is_some());
        }
        assert!(in_trees > 4, "{name}: {in_trees} blocks of trees");
        assert_eq!(unwritten > 0, !matches!(name, "ext2" | "ext3" | "revision 0"), "{name}");
        assert_eq!(attributes > 0, name != "revision 0", "{name}");
        for (own, inode) in filesystem.own_files() {
            assert!(filesystem.place(&read, *inode).is_some(), "{name}: {own:?}");
        }
    }
}
