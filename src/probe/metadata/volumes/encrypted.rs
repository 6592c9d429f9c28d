//! Headers of encrypted devices.

use super::{Found, SECTOR};
use crate::probe::device::{Device, Fields};
use crate::probe::unlock::header::{BITLOCKER_COPY, LUKS_MAGIC, bitlocker_copies, luks2};

/// The header of a LUKS device, with its key slots, up to the data.
pub(super) fn luks(device: &Device<'_>) -> Option<Vec<Found>> {
    let header = device.read(0, 4096)?;
    if !header.starts_with(LUKS_MAGIC) {
        return None;
    }
    if header.be16(6)? == 1 {
        return Some(vec![("[LUKS header]", vec![(0, u64::from(header.be32(104)?) * SECTOR)], true)]);
    }
    let (_, json) = luks2(&|at, length| device.read(at, length))?;
    let offsets = json.get("segments")?.as_object()?.values();
    let offset = offsets.filter_map(|segment| segment.get("offset")?.as_str()?.parse::<u64>().ok()).min()?;
    Some(vec![("[LUKS header]", vec![(0, offset)], true)])
}

/// BitLocker: the boot sector says where the three copies of the metadata lie. Each copy repeats
/// that, and says how many sectors at the volume's start were moved to make room for the boot
/// sector.
pub(super) fn bitlocker(device: &Device<'_>) -> Option<Vec<Found>> {
    let copies = bitlocker_copies(&device.read(0, SECTOR)?)?;
    let block = device.read(copies[0], SECTOR)?;
    let moved = bitlocker_moved(&block, copies)?;
    let is_there = |at: &u64| device.read(*at, 8).is_some_and(|magic| magic == b"-FVE-FS-");
    let verified = copies.iter().all(is_there);
    let copies = copies.map(|at| (at, BITLOCKER_COPY)).to_vec();
    Some(vec![("[BitLocker header]", vec![(0, moved)], verified), ("[BitLocker metadata]", copies, verified)])
}

/// How many bytes were moved, according to a block of metadata with these copies.
fn bitlocker_moved(block: &[u8], copies: [u64; 3]) -> Option<u64> {
    let said = [block.le64(32)?, block.le64(40)?, block.le64(48)?];
    let is_valid = block.starts_with(b"-FVE-FS-") && block.le16(10)? == 2 && said == copies;
    is_valid.then_some(u64::from(block.le32(28)?).max(1) * SECTOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_bitlocker_says_where_its_copies_are() {
        let copies = [1 << 20, 2 << 20, 3 << 20];
        let mut block = b"-FVE-FS-\x40\0\x02\0".to_vec();
        block.resize(512, 0);
        block[28] = 16;
        for (at, copy) in [32, 40, 48].into_iter().zip(copies) {
            block[at..at + 8].copy_from_slice(&u64::to_le_bytes(copy));
        }
        assert_eq!(bitlocker_moved(&block, copies), Some(8192));
        assert_eq!(bitlocker_moved(&block, [1 << 20, 2 << 20, 4 << 20]), None);
        block[10] = 1;
        assert_eq!(bitlocker_moved(&block, copies), None);
        assert_eq!(bitlocker_moved(&block[..40], copies), None);
    }
}
