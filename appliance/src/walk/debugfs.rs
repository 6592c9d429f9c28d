//! What debugfs(8) says of inodes of ext2, ext3 and ext4 that the kernel does not open.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Stdio};
use virt_bmap_agent_protocol::record::Extent;

/// Number of inodes in one call.
pub(super) const ASKED: usize = 1024;

/// File with the commands.
const QUESTIONS: &str = "/tmp/virt-bmap-questions";

/// Where a file lies.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) extents: Vec<Extent>,
    /// Bytes of all its blocks, including those of extents and attributes.
    pub(super) bytes: u64,
}

/// Asks for the places of inodes.
pub(super) fn ask(device: &str, inodes: impl Iterator<Item = u64>, block: u64) -> HashMap<u64, Places> {
    let mut questions = String::new();
    for inode in inodes {
        let _ = writeln!(questions, "stat <{inode}>");
    }
    let output = fs::write(QUESTIONS, questions).and_then(|()| {
        Command::new("debugfs").args(["-f", QUESTIONS, device]).stderr(Stdio::null()).output()
    });
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    said.split("debugfs: stat <").skip(1).filter_map(|said| answer(said, block)).collect()
}

/// Parses the answer for one inode: `14>`, and later `(0-4):8234-8238, (5-9[u]):300-304,
/// (ETB0):33`. Blocks whose label begins with a letter hold no data.
fn answer(said: &str, block: u64) -> Option<(u64, Places)> {
    let (inode, said) = said.split_once('>')?;
    let (_, list) = said.split_once("\nEXTENTS:\n").or_else(|| said.split_once("\nBLOCKS:\n"))?;
    let attributes = said.split_once("File ACL: ")?.1.lines().next()?.trim();
    let mut places = Places { bytes: if attributes == "0" { 0 } else { block }, ..Places::default() };
    for item in list.lines().next()?.split(", ").filter(|item| !item.is_empty()) {
        let (of, place) = item.strip_prefix('(')?.split_once("):")?;
        let (first, last) = run(place)?;
        let length = last.checked_sub(first)?.checked_add(1)?.checked_mul(block)?;
        places.bytes = places.bytes.checked_add(length)?;
        if of.starts_with(|c: char| c.is_ascii_digit()) {
            let (of, flags) = of.strip_suffix("[u]").map_or((of, 0), |of| (of, Extent::UNWRITTEN));
            let (logical, physical) = (run(of)?.0.checked_mul(block)?, first.checked_mul(block)?);
            physical.checked_add(length)?;
            logical.checked_add(length)?;
            places.extents.push(Extent { logical, physical, length, flags });
        }
    }
    Some((inode.parse().ok()?, places))
}

/// `8234-8238` or `8234`.
fn run(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((first.parse().ok()?, last.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_debugfs_are_parsed() {
        let extent = |logical, physical, length, flags| Extent { logical, physical, length, flags };
        let said =
            "14>\nInode: 14   Type: regular\nFile ACL: 0\nEXTENTS:\n(ETB0):33, (0-4):8234-8238, (6[u]):7\n\n";
        let extents = vec![extent(0, 8_234_000, 5000, 0), extent(6000, 7000, 1000, Extent::UNWRITTEN)];
        assert_eq!(answer(said, 1000), Some((14, Places { extents, bytes: 7000 })));
        let said = "15>\nFile ACL: 99\nBLOCKS:\n(0-11):40-51, (IND):52, (12):53\nTOTAL: 14\n\n";
        let extents = vec![extent(0, 40_000, 12_000, 0), extent(12_000, 53_000, 1000, 0)];
        assert_eq!(answer(said, 1000), Some((15, Places { extents, bytes: 15_000 })));
        let empty = "16>\nFile ACL: 0\nEXTENTS:\n\n";
        assert_eq!(answer(empty, 1000), Some((16, Places::default())));
        assert_eq!(answer("17>\nFile ACL: 0\nEXTENTS:\n(0-4):8234-82", 1000), None);
        assert_eq!(answer("18>\nstat: no such inode\n", 1000), None);
    }
}
