//! The metadata of an ext4 filesystem according to `dumpe2fs` and `debugfs`.

use super::fixture::Filesystem;
use super::ranges::{Range, normalise};
use super::tools;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;

/// When a file was made, after [`set_birth`]: nanoseconds since 1970.
pub const BIRTH: i64 = 1_714_979_289 * 1_000_000_000 + 123_456_789;

/// Sets when a file of an ext4 was made to [`BIRTH`]: `i_crtime` and `i_crtime_extra`.
pub fn set_birth(image: &Path, file: &str) {
    for (field, value) in [("crtime", "20240506070809"), ("crtime_extra", "0x1d6f3454")] {
        let request = format!("set_inode_field {file} {field} {value}");
        tools::run("debugfs", ["-w", "-R", &request, image.to_str().unwrap()]);
    }
}

/// The places on the guest disk of the metadata of an ext4 filesystem, by kind.
pub fn metadata(filesystem: &Filesystem) -> BTreeMap<&'static str, Vec<Range>> {
    let text = String::from_utf8(tools::run("dumpe2fs", [&filesystem.flat])).unwrap();
    let mut found: BTreeMap<&'static str, Vec<Range>> = BTreeMap::new();
    // A line may have several parts such as "Primary superblock at 0, Group descriptors at 1-1".
    let kinds = [
        ("superblock", "superblock at "),
        ("group descriptors", "Group descriptors at "),
        ("reserved group descriptors", "Reserved GDT blocks at "),
        ("block bitmap", "Block bitmap at "),
        ("inode bitmap", "Inode bitmap at "),
        ("inode table", "Inode table at "),
    ];
    for line in text.lines() {
        for (kind, words) in kinds {
            let Some((_, place)) = line.split_once(words) else { continue };
            let digits: String = place.chars().take_while(|c| c.is_ascii_digit() || *c == '-').collect();
            let (first, last) = digits.split_once('-').unwrap_or((&digits, &digits));
            let blocks = first.parse::<u64>().unwrap()..last.parse::<u64>().unwrap() + 1;
            found.entry(kind).or_default().push(blocks);
        }
    }
    found.into_iter().map(|(kind, blocks)| (kind, on_disk(filesystem, blocks))).collect()
}

/// The blocks with the extents of an inode that do not fit into the inode, from `debugfs`.
pub fn extent_blocks(filesystem: &Filesystem, inode: u64) -> Vec<Range> {
    let request = format!("stat <{inode}>");
    let args = [OsStr::new("-R"), OsStr::new(&request), filesystem.flat.as_os_str()];
    let text = String::from_utf8_lossy(&tools::run("debugfs", args)).into_owned();
    // "(ETB0):10326, (0-3):9348-9351, ..."
    let blocks = text.split("(ETB").skip(1).map(|rest| {
        let number = rest.split_once("):").unwrap().1;
        let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
        let block: u64 = digits.parse().unwrap();
        block..block + 1
    });
    on_disk(filesystem, blocks.collect())
}

fn on_disk(filesystem: &Filesystem, blocks: Vec<Range>) -> Vec<Range> {
    let block = filesystem.block;
    let ranges = normalise(blocks.into_iter().map(|b| b.start * block..b.end * block));
    filesystem.volume.to_disk(&ranges)
}
