//! NTFS keeps its metadata in files, which ntfs-3g shows on demand: `$MFT`, `$LogFile`, `$Bitmap`,
//! … They are walked like other files, and are metadata objects with paths. ntfsinfo(8) lists what
//! they have besides their data, such as named streams. `$Bitmap` says what is free.

use super::{Facts, bit, units};
use crate::probe::device::{Device, Fields};
use virt_bmap_agent_protocol::record::Extent;
use virt_bmap_ranges::{DeviceOffset, Range};

/// Largest bitmap that is read: a terabyte needs 32 MiB.
const LARGEST: u64 = 256 << 20;

pub(super) fn describe(facts: &mut Facts, device: &mut Device<'_>) {
    if let Some(sector) = device.read(0, 512) {
        let _ = describe_by(facts, device, &sector);
    }
}

fn describe_by(facts: &mut Facts, device: &Device<'_>, sector: &[u8]) -> Option<()> {
    if sector.get(3..11)? != b"NTFS    " {
        return None;
    }
    let bytes = u64::from(sector.le16(11)?);
    // Numbers above 128 are the negative logarithm of the factor.
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
    name_streams(facts, device, cluster);
    let clusters = end / cluster;
    let length = clusters.div_ceil(8);
    if length > LARGEST || end > device.size {
        return None;
    }
    let bitmap = device.read_file("/$Bitmap", length)?;
    let free = (0..clusters).filter(|number| bit(&bitmap, *number) == Some(false));
    facts.free = Some(units(free, 0, cluster));
    facts.whole.insert(Range::new(0, clusters * cluster));
    Some(())
}

/// Names all streams and attributes of the filesystem's own files.
fn name_streams(facts: &mut Facts, device: &Device<'_>, cluster: u64) {
    const FILES: [(u32, &str); 15] = [
        (0, "/$MFT"),
        (1, "/$MFTMirr"),
        (2, "/$LogFile"),
        (3, "/$Volume"),
        (4, "/$AttrDef"),
        (5, "[root directory]"),
        (6, "/$Bitmap"),
        (7, "/$Boot"),
        (8, "/$BadClus"),
        (9, "/$Secure"),
        (10, "/$UpCase"),
        (11, "/$Extend"),
        (24, "/$Extend"),
        (25, "/$Extend"),
        (26, "/$Extend"),
    ];
    let ask = |(inode, _)| format!("echo inode; ntfsinfo -f -v -i {inode} {} 2>/dev/null; ", device.node);
    let command: String = FILES.map(ask).concat();
    let said = device.ask(&(command + "true")).unwrap_or_default();
    for (said, (_, name)) in said.split("inode\n").skip(1).zip(FILES) {
        let runs = said.lines().filter_map(run).filter_map(|(first, count)| {
            Range::at(DeviceOffset(first.checked_mul(cluster)?), count.checked_mul(cluster)?)
        });
        facts.name(name, runs, true);
    }
}

/// The first cluster and the number of clusters in a line of a run list: `0x0  0x508  0x41`. A
/// sparse run has a word instead of the first cluster.
fn run(line: &str) -> Option<(u64, u64)> {
    let number = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    match line.split_whitespace().collect::<Vec<_>>()[..] {
        [offset, first, count] => {
            number(offset)?;
            Some((number(first)?, number(count)?))
        }
        _ => None,
    }
}

/// Where on the device the record of an inode begins, according to the extents of `$MFT`.
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
    fn runs_are_found_in_what_ntfsinfo_says() {
        assert_eq!(run("\t\t\t0x0\t\t0x508\t\t0x41"), Some((0x508, 0x41)));
        assert_eq!(run("\t\t\t0x0\t\t<HOLE>\t\t0x41"), None);
        assert_eq!(run("\tRunlist:\tVCN\t\tLCN\t\tLength"), None);
        assert_eq!(run("\tAllocated size:\t\t 4096 (0x1000)"), None);
    }

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
