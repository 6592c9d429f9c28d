//! F2FS: the superblock says where its areas lie (`struct f2fs_super_block` of the kernel's
//! `linux/f2fs_fs.h`); the kernel reports which blocks of the last one, which holds nodes and data,
//! are in use.

use super::{Blocks, Facts, RESERVED};
use crate::probe::device::{Device, Fields};
use virt_bmap_ranges::Range;

pub(super) fn describe(facts: &mut Facts, device: &mut Device<'_>, read: &Blocks) {
    if let Some(superblock) = device.read(1024, 128) {
        let _ = describe_by(facts, &superblock, read, device.size);
    }
}

fn describe_by(facts: &mut Facts, superblock: &[u8], read: &Blocks, size: u64) -> Option<()> {
    const MAGIC: u32 = 0xf2f5_2010;
    let block = 1u64.checked_shl(superblock.le32(16)?).filter(|block| (512..=65536).contains(block))?;
    let place = |at| Some(u64::from(superblock.le32(at)?) * block);
    let starts = [place(76)?, place(80)?, place(84)?, place(88)?, place(92)?];
    if superblock.le32(0)? != MAGIC || !starts.is_sorted() || starts[4] > size {
        return None;
    }
    let names =
        ["[checkpoints]", "[segment information table]", "[node address table]", "[segment summary area]"];
    let superblocks = Range::new(0, 2 * block);
    let areas = starts.windows(2).map(|ends| Range::new(ends[0], ends[1]));
    for (name, area) in [("[superblocks]", superblocks)].into_iter().chain(names.into_iter().zip(areas)) {
        facts.name(name, [area], read.overlap(area).next().is_some());
    }
    // The first area begins with a segment.
    facts.name(RESERVED, [Range::new(superblocks.end.0, starts[0])], true);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_follow_each_other() {
        let mut superblock = [0; 128];
        let words = [(0, 0xf2f5_2010), (16, 12), (76, 512), (80, 1536), (84, 2560), (88, 3584), (92, 4096)];
        for (at, word) in words {
            superblock[at..at + 4].copy_from_slice(&u32::to_le_bytes(word));
        }
        let mut facts = Facts::default();
        describe_by(&mut facts, &superblock, &Blocks::new(), 1 << 30).unwrap();
        let bytes: Vec<_> =
            facts.named.iter().map(|named| (named.name, named.blocks.bytes() >> 12)).collect();
        assert_eq!(
            bytes,
            [
                ("[superblocks]", 2),
                ("[checkpoints]", 1024),
                ("[segment information table]", 1024),
                ("[node address table]", 1024),
                ("[segment summary area]", 512),
                ("[reserved]", 510)
            ]
        );
        assert!(describe_by(&mut facts, &superblock, &Blocks::new(), 1 << 20).is_none());
        superblock[88] = 0;
        superblock[89] = 0;
        assert!(describe_by(&mut facts, &superblock, &Blocks::new(), 1 << 30).is_none());
    }
}
