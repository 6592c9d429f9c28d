//! ext2, ext3 and ext4: what GETFSMAP does not report.
//!
//! The journal and other files without a name are inodes that have no path and that the kernel does
//! not open. debugfs(8) reports where they lie.

use super::facts::Clusters;
use super::{Blocks, Facts};
use crate::probe::device::{Device, Fields};
use crate::probe::superblock::Ext;
use virt_bmap_ranges::{DeviceOffset, Range};

pub(super) fn describe(facts: &mut Facts, device: &mut Device<'_>, read: &Blocks) {
    let Some(superblock) = device.read(Ext::AT, 1024) else { return };
    let _ = describe_by(facts, device, &superblock, read);
}

/// `INCOMPAT_64BIT`: numbers of blocks have 64 bits.
const SIXTY_FOUR: u32 = 0x80;
/// `RO_COMPAT_BIGALLOC`: space is allocated in clusters of several blocks.
const BIGALLOC: u32 = 0x200;
/// `RO_COMPAT_SHARED_BLOCKS`: equal blocks of files are stored once, as Android does.
const SHARED_BLOCKS: u32 = 0x4000;

fn describe_by(facts: &mut Facts, device: &Device<'_>, superblock: &[u8], read: &Blocks) -> Option<()> {
    let Ext { block, inode } = Ext::of(superblock)?;
    facts.unit = Some(inode).filter(|inode| inode.is_power_of_two() && (128..=block).contains(inode));
    facts.shares_blocks = superblock.le32(0x64)? & SHARED_BLOCKS != 0;
    if superblock.le32(0x64)? & BIGALLOC != 0 {
        let size = 1024u64.checked_shl(superblock.le32(0x1c)?).filter(|size| *size > block);
        facts.clusters = size.map(|size| Clusters { start: 0, size });
    }
    // The kernel does not list all that is in use: of a group with a superblock it leaves out data
    // that lies directly behind that.
    let high = if superblock.le32(0x60)? & SIXTY_FOUR != 0 { superblock.le32(0x150)? } else { 0 };
    let count = u64::from(superblock.le32(4)?) | u64::from(high) << 32;
    facts.whole.insert(Range::new(0, count.saturating_mul(block).min(device.size)));
    // Blocks of 1 KiB begin after the boot sector, larger ones with it.
    if superblock.le32(0x14)? > 0 {
        let boot = Range::new(0, Ext::AT);
        facts.name("[boot sector]", [boot], true);
    }
    let inodes = [
        (1, "[bad blocks]"),
        (7, "[reserved group descriptors]"),
        (superblock.le32(0xe0)?, "[journal]"),
        (superblock.le32(0x240)?, "[quota]"),
        (superblock.le32(0x244)?, "[quota]"),
        (superblock.le32(0x26c)?, "[quota]"),
        (superblock.le32(0x280)?, "[orphan file]"),
    ];
    let asked: Vec<_> = inodes.into_iter().filter(|(inode, _)| *inode > 0).collect();
    // One process for all: each reads the superblock and all descriptors of groups when it starts.
    let requests: String = asked.iter().map(|(inode, _)| format!("stat <{inode}>\\n")).collect();
    let said =
        device.ask(&format!("printf '{requests}' | debugfs -f - {} 2>/dev/null; true", device.node))?;
    for (said, (_, name)) in said.split("debugfs: stat <").skip(1).zip(asked) {
        let blocks: Vec<_> = blocks(said)
            .filter_map(|(first, last)| {
                let length = last.checked_sub(first)?.checked_add(1)?.checked_mul(block)?;
                Range::at(DeviceOffset(first.checked_mul(block)?), length)
            })
            .collect();
        // The kernel reads the beginning of the journal when it mounts. It need not read the
        // others.
        let verified =
            name != "[journal]" || blocks.first().is_some_and(|first| read.overlap(*first).next().is_some());
        if !blocks.is_empty() {
            facts.name(name, blocks, verified);
        }
    }
    Some(())
}

/// The blocks that debugfs's `stat` lists: `(0-11):8234-8245, (IND):8246, (ETB0):33,
/// (0-3[u]):9-12`.
fn blocks(said: &str) -> impl Iterator<Item = (u64, u64)> + '_ {
    let list = said.split_once("\nEXTENTS:\n").or_else(|| said.split_once("\nBLOCKS:\n"));
    let list = list.map_or("", |(_, list)| list);
    list.split('(').skip(1).filter_map(|part| {
        let (_, place) = part.split_once("):")?;
        let end = place.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(place.len());
        let (first, last) = place[..end].split_once('-').unwrap_or((&place[..end], &place[..end]));
        Some((first.parse().ok()?, last.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn blocks_are_found_in_what_debugfs_says() {
        let of = |said: &str| super::blocks(said).collect::<Vec<_>>();
        let extents = "Inode: 8   Type: regular    Mode:  0600   Flags: 0x80000\nEXTENTS:\n(ETB0):33, (0-4095):229376-233471, (4096[u]):7\n";
        assert_eq!(of(extents), [(33, 33), (229_376, 233_471), (7, 7)]);
        let blocks = "Size: 4(5):6\nBLOCKS:\n(0-11):8234-8245, (IND):8246, (12-3):\nTOTAL: 13\n";
        assert_eq!(of(blocks), [(8234, 8245), (8246, 8246)]);
        assert_eq!(of("Fast link dest: \"(a):1\"\n"), []);
    }
}
