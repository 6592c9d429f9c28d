//! ext2, ext3 and ext4: what GETFSMAP does not report.
//!
//! The agent reports the journal and other files without a name.

use super::facts::{Clusters, JOURNAL};
use super::{Blocks, Facts};
use crate::probe::device::{Device, Fields};
use crate::probe::superblock::Ext;
use virt_bmap_map::Marks;
use virt_bmap_ranges::Range;

pub(super) fn describe(facts: &mut Facts, device: &Device<'_>, read: &Blocks) {
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
    // The kernel reads the beginning of the journal when it mounts.
    for journal in facts.named.iter_mut().filter(|named| named.name == JOURNAL) {
        let is_read = journal.blocks.iter().any(|range| read.overlap(range).next().is_some());
        journal.marks.set(Marks::UNVERIFIED, !is_read);
    }
    Some(())
}
