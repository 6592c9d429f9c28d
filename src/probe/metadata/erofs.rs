//! EROFS: all of it is in use. The superblock says how long it is (`struct erofs_super_block` of
//! the kernel's `fs/erofs/erofs_fs.h`). Inodes lie among the data, so the kernel's reads find them.

use super::Facts;
use crate::probe::device::{Device, Fields as _};
use virt_bmap_ranges::Range;

/// Where the superblock lies, and its bytes. What is in front is left to boot loaders.
const SUPERBLOCK: u64 = 1024;
const SIZE: u64 = 128;

pub(super) fn describe(facts: &mut Facts, device: &Device<'_>) {
    if let Some(superblock) = device.read(SUPERBLOCK, SIZE) {
        let _ = describe_by(facts, &superblock, device.size);
    }
}

fn describe_by(facts: &mut Facts, superblock: &[u8], size: u64) -> Option<()> {
    const MAGIC: u32 = 0xe0f5_e1e2;
    /// More of the superblock follows, in units of 16 bytes.
    const EXTENSIONS: usize = 13;
    let block =
        1u64.checked_shl(superblock.u8_at(12)?.into()).filter(|block| (512..=65536).contains(block))?;
    let blocks = u64::from(superblock.le32(36)?);
    if superblock.le32(0)? != MAGIC {
        return None;
    }
    facts.all_in_use(blocks.checked_mul(block)?.min(size));
    let end = SUPERBLOCK + SIZE + u64::from(superblock.u8_at(EXTENSIONS)?) * 16;
    facts.name("[boot blocks]", [Range::new(0, SUPERBLOCK)], true);
    facts.name("[superblocks]", [Range::new(SUPERBLOCK, end)], true);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_superblock_says_how_long_it_is() {
        let mut superblock = [0; SIZE as usize];
        superblock[..4].copy_from_slice(&0xe0f5_e1e2u32.to_le_bytes());
        superblock[12..14].copy_from_slice(&[12, 2]);
        superblock[36] = 5;
        let of = |superblock: &[u8], size| {
            let mut facts = Facts::default();
            describe_by(&mut facts, superblock, size)?;
            Some((facts.whole.bytes(), facts.named[1].blocks.bytes()))
        };
        assert_eq!(of(&superblock, 1 << 20), Some((5 * 4096, 160)));
        assert_eq!(of(&superblock, 8192), Some((8192, 160)));
        superblock[12] = 70;
        assert_eq!(of(&superblock, 1 << 20), None);
        assert_eq!(of(&superblock[..30], 1 << 20), None);
    }
}
