//! NTFS keeps its metadata in files, which ntfs-3g shows on demand: `$MFT`, `$LogFile`, `$Bitmap`, … They are
//! walked like others, and are metadata objects with paths. What remains is to read `$Bitmap`.

use super::Facts;
use super::device::{Device, Fields};
use crate::range::Range;
use virt_bmap_agent::record::Extent;

/// Largest bitmap that is looked at: a terabyte needs 32 MiB.
const LARGEST: u64 = 256 << 20;

pub(super) fn tell(facts: &mut Facts, device: &mut Device<'_>) {
    if let Some(sector) = device.read(0, 512) {
        let _ = tell_by(facts, device, &sector);
    }
}

fn tell_by(facts: &mut Facts, device: &Device<'_>, sector: &[u8]) -> Option<()> {
    if sector.get(3..11)? != b"NTFS    " {
        return None;
    }
    let bytes = u64::from(sector.le16(11)?);
    // Above 128, the negative logarithm of the number.
    let factor = match sector.u8_at(13)? {
        small @ ..=128 => u64::from(small),
        large => 1u64.checked_shl(256 - u32::from(large))?,
    };
    let cluster = bytes.checked_mul(factor).filter(|cluster| cluster.is_power_of_two())?;
    let sectors = sector.le64(0x28)?;
    let end = sectors.checked_mul(bytes)?;
    let record = match sector.u8_at(0x40)?.cast_signed() {
        clusters @ 1.. => cluster.checked_mul(clusters.unsigned_abs().into())?,
        logarithm => 1u64.checked_shl(logarithm.unsigned_abs().into())?,
    };
    facts.records = Some(record).filter(|record| record.is_power_of_two() && *record <= 64 << 10);
    if let Some(copy) = device.read(end, bytes)
        && copy.get(..512) == Some(sector)
    {
        facts.name("[boot sector copy]", [Range::new(end, end + bytes)], true);
    }
    // `$Boot` begins with block 0, which FIBMAP cannot name.
    facts.name("[boot sector]", [Range::new(0, 16 * bytes)], true);
    let clusters = end / cluster;
    let length = clusters.div_ceil(8);
    if length > LARGEST || end > device.size {
        return None;
    }
    let bitmap = device.read_file("/$Bitmap", length)?;
    let is_free = |n: u64| bitmap.get((n / 8) as usize).is_some_and(|byte| byte >> (n % 8) & 1 == 0);
    let free = (0..clusters).filter(|n| is_free(*n));
    facts.free = Some(free.map(|n| Range::new(n * cluster, (n + 1) * cluster)).collect());
    facts.whole.insert(Range::new(0, clusters * cluster));
    Some(())
}

/// Where on the device the record of an inode begins, by the extents of `$MFT`.
pub(super) fn place_of(inode: u64, record: u64, mft: &[Extent]) -> Option<u64> {
    // The upper 16 bits count how often the record was used.
    let at = (inode & 0xffff_ffff_ffff).checked_mul(record)?;
    let holds = |extent: &&Extent| {
        extent.is_plain()
            && extent.logical <= at
            && at.saturating_add(record) <= extent.logical.saturating_add(extent.length)
    };
    let extent = mft.iter().find(holds)?;
    extent.physical.checked_add(at - extent.logical)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_in_the_mft() {
        let extent = |logical, physical, length| Extent { logical, physical, length, flags: 0 };
        let mft = [extent(0, 1 << 20, 65536), extent(65536, 8192, 4096)];
        assert_eq!(place_of(5, 1024, &mft), Some((1 << 20) + 5120));
        assert_eq!(place_of(64, 1024, &mft), Some(8192));
        assert_eq!(place_of(7 << 48 | 65, 1024, &mft), Some(9216));
        assert_eq!(place_of(68, 1024, &mft), None);
        assert_eq!(place_of(15, 4096, &mft), Some((1 << 20) + 61440));
    }
}
