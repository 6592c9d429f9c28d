//! Corrupts a partition. The same seed always corrupts it in the same way.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use virt_bmap_testutil::random::Random;
use virt_bmap_testutil::special::{MAGIC, SECTOR};

/// The sectors of the partition that are neither empty nor data of files.
fn metadata(disk: &File, extent: &Range<u64>) -> Vec<u64> {
    let mut bytes = vec![0; (extent.end - extent.start) as usize];
    disk.read_exact_at(&mut bytes, extent.start).unwrap();
    let sectors = (extent.start..).step_by(SECTOR).zip(bytes.chunks(SECTOR));
    let holds = |bytes: &[u8]| !bytes.starts_with(&MAGIC) && bytes.iter().any(|byte| *byte != 0);
    sectors.filter(|(_, bytes)| holds(bytes)).map(|(at, _)| at).collect()
}

/// Corrupts bits, sectors or blocks of the partition at `extent` of `disk`. Most of them lie in its
/// metadata. Returns a description of what it did.
pub(crate) fn corrupt(disk: &File, extent: &Range<u64>, random: &mut Random) -> String {
    let metadata = metadata(disk, extent);
    let (kind, count) = (random.below(6), 1 + random.below(12));
    for _ in 0..count {
        // Near the superblock, anywhere in metadata, or anywhere.
        let at = match random.below(8) {
            0 | 1 => extent.start + random.below(metadata.len().min(40) as u64) * SECTOR as u64,
            2..=6 => metadata[random.below(metadata.len() as u64) as usize],
            _ => extent.start + random.below((extent.end - extent.start) / SECTOR as u64) * SECTOR as u64,
        };
        let length = if random.below(2) == 0 { SECTOR as u64 } else { 4096 }.min(extent.end - at);
        let mut bytes = vec![0; length as usize];
        disk.read_exact_at(&mut bytes, at).unwrap();
        match kind {
            0 => bytes[random.below(SECTOR as u64) as usize] ^= 1 << random.below(8),
            1 => bytes.fill(0),
            2 => bytes.fill_with(|| random.draw() as u8),
            3 => bytes.fill(0xff),
            // A random number in the middle of valid data. It is often too large.
            4 => {
                let field = random.below(SECTOR as u64 / 4) as usize * 4;
                bytes[field..field + 4].copy_from_slice(&(random.draw() as u32).to_le_bytes());
            }
            _ => {
                let other = metadata[random.below(metadata.len() as u64) as usize].min(extent.end - length);
                let mut swapped = vec![0; length as usize];
                disk.read_exact_at(&mut swapped, other).unwrap();
                disk.write_all_at(&bytes, other).unwrap();
                bytes = swapped;
            }
        }
        disk.write_all_at(&bytes, at).unwrap();
    }
    let kinds = ["bits", "zeroes", "noise", "ones", "numbers", "swapped"];
    format!("{} × {count}", kinds[kind as usize])
}
