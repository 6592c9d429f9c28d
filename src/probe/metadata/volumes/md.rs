//! Members of md arrays.

use super::{Found, SECTOR};
use crate::probe::device::{Device, Fields};

/// `struct mdp_superblock_1` of `linux/raid/md_p.h`, and the older `mdp_superblock_s`.
pub(super) fn array_member(device: &Device<'_>) -> Option<Vec<Found>> {
    const MAGIC: u32 = 0xa92b_4efc;
    // Versions 1.0, 1.1 and 1.2 (super_1_load of drivers/md/md.c).
    for at in [(device.size / SECTOR).checked_sub(16)? / 8 * 8 * SECTOR, 0, 8 * SECTOR] {
        let Some(superblock) = device.read(at, 4096) else { continue };
        let is_one = superblock.le32(0)? == MAGIC && superblock.le32(4)? == 1;
        if !is_one || superblock.le64(144)?.checked_mul(SECTOR) != Some(at) {
            continue;
        }
        let length = (256 + 2 * u64::from(superblock.le32(220)?)).min(4096).next_multiple_of(SECTOR);
        let mut found = vec![("[md superblock]", vec![(at, length)], true)];
        // Signed offsets from the superblock.
        let near = |sectors: i32| at.checked_add_signed(i64::from(sectors) * SECTOR as i64);
        let (features, bitmap) = (superblock.le32(8)?, superblock.le32(96)?.cast_signed());
        if features & 1 != 0
            && let Some(at) = near(bitmap)
            && let Some(length) = device.read(at, SECTOR).and_then(|bitmap| bitmap_length(&bitmap))
        {
            found.push(("[md bitmap]", vec![(at, length)], true));
        }
        let (size, offset) = (u64::from(superblock.le16(186)?), superblock.le32(188)?.cast_signed());
        if features & 8 != 0
            && let Some(at) = near(offset)
        {
            found.push(("[md bad block log]", vec![(at, size * SECTOR)], true));
        }
        return Some(found);
    }
    // Version 0.90 has it in the last whole 64 KiB but one.
    let at = (device.size & !0xffff).checked_sub(64 << 10)?;
    let superblock = device.read(at, 4096)?;
    (superblock.le32(0)? == MAGIC).then(|| vec![("[md superblock]", vec![(at, 4096)], true)])
}

/// Bytes of a bitmap with its header, `bitmap_super_s` of `drivers/md/md-bitmap.h`.
fn bitmap_length(header: &[u8]) -> Option<u64> {
    if header.get(..4)? != b"bitm" {
        return None;
    }
    let (sectors, chunk) = (header.le64(40)?, u64::from(header.le32(52)?) / SECTOR);
    (chunk > 0).then(|| (256 + sectors.div_ceil(chunk).div_ceil(8)).next_multiple_of(SECTOR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmaps_have_a_bit_for_each_chunk() {
        let mut header = vec![0; 512];
        header[..4].copy_from_slice(b"bitm");
        header[40..48].copy_from_slice(&1_000_000u64.to_le_bytes());
        header[52..56].copy_from_slice(&(64u32 << 10).to_le_bytes());
        // 7,813 bits are 977 bytes.
        assert_eq!(bitmap_length(&header), Some(1536));
        header[52] = 0;
        header[53] = 0;
        header[54] = 0;
        assert_eq!(bitmap_length(&header), None);
    }
}
