//! nilfs2: the kernel reports which of its segments are clean. Only the two superblocks lie outside
//! of the segments, at fixed places (`NILFS_SB_OFFSET_BYTES` and `NILFS_SB2_OFFSET_BYTES` of the
//! kernel's `linux/nilfs2_ondisk.h`).

use super::Facts;
use crate::probe::device::{Device, Fields};
use virt_bmap_ranges::{DeviceOffset, Range};

pub(super) fn describe(facts: &mut Facts, device: &mut Device<'_>) {
    let is_superblock = |range: &Range<DeviceOffset>| {
        device.read(range.start.0, range.len()).is_some_and(|bytes| is_superblock(&bytes))
    };
    let found: Vec<_> = places(device.size).into_iter().filter(is_superblock).collect();
    facts.name("[superblocks]", found, true);
}

/// Where the superblocks lie: after the boot sector, and in the last whole 4 KiB.
fn places(size: u64) -> [Range<DeviceOffset>; 2] {
    const SIZE: u64 = 1024;
    [1024, (size / 4096).saturating_sub(1) * 4096].map(|at| Range::new(at, at + SIZE))
}

fn is_superblock(bytes: &[u8]) -> bool {
    const MAGIC: u16 = 0x3434;
    bytes.le16(6) == Some(MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superblocks_are_at_both_ends() {
        assert_eq!(places(1 << 20), [Range::new(1024, 2048), Range::new(0xff000, 0xff400)]);
        assert_eq!(places((1 << 20) + 512)[1], Range::new(0xff000, 0xff400));
        assert_eq!(places(100)[1], Range::new(0, 1024));
        assert!(is_superblock(&[0, 0, 0, 0, 0, 0, 0x34, 0x34]) && !is_superblock(&[0x34; 7]));
    }
}
