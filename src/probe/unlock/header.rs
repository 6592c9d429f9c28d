//! Where encrypted devices keep what their keys are derived from.

use crate::probe::device::{Fields, Read};

const SECTOR: u64 = 512;

/// Largest of the two copies of a LUKS2 header with its JSON area.
const LARGEST_LUKS2: u64 = 4 << 20;

/// The first bytes of each LUKS header.
pub(in crate::probe) const LUKS_MAGIC: &[u8] = b"LUKS\xba\xbe";

/// Bytes of each copy of BitLocker's metadata.
pub(in crate::probe) const BITLOCKER_COPY: u64 = 64 << 10;

/// Most bytes of a header that are copied. LUKS2 has at most 32 key slots, of a quarter of a
/// mebibyte each with the largest key.
const MOST_COPIED: u64 = 32 << 20;

/// The parts of a LUKS device that deriving its key needs: header and key slots. `None` if this is
/// not known, or too much.
///
/// The LUKS1 and LUKS2 on-disk format specifications.
pub(super) fn luks(read: Read<'_>) -> Option<Vec<(u64, u64)>> {
    /// Eight key slots of LUKS1, with keys of 512 bits and 4000 stripes each, end before.
    const MOST_LUKS1: u64 = 4 << 20;
    let header = read(0, 4096)?;
    if !header.starts_with(LUKS_MAGIC) {
        return None;
    }
    if header.be16(6)? == 1 {
        let data = u64::from(header.be32(104)?) * SECTOR;
        return Some(vec![(0, data.clamp(4096, MOST_LUKS1))]);
    }
    let (size, json) = luks2(read)?;
    let mut parts = vec![(0, 2 * size)];
    for slot in json.get("keyslots")?.as_object()?.values() {
        // The others belong to a change of the key that was interrupted.
        if slot.get("type")?.as_str()? != "luks2" {
            continue;
        }
        let area = slot.get("area")?;
        let number = |name: &str| area.get(name)?.as_str()?.parse::<u64>().ok();
        parts.push((number("offset")?, number("size")?));
    }
    let copied = parts.iter().try_fold(0u64, |sum, (_, length)| sum.checked_add(*length))?;
    (copied <= MOST_COPIED).then_some(parts)
}

/// The size of one of the two LUKS2 headers, and its content.
pub(in crate::probe) fn luks2(read: Read<'_>) -> Option<(u64, serde_json::Value)> {
    let size = read(0, 4096)?.be64(8).filter(|size| (4097..=LARGEST_LUKS2).contains(size))?;
    let text = read(4096, size - 4096)?;
    let text = text.split(|byte| *byte == 0).next()?;
    Some((size, serde_json::from_slice(text).ok()?))
}

/// The parts of a BitLocker volume that deriving its key needs: the boot sector and the metadata.
pub(super) fn bitlocker(read: Read<'_>) -> Option<Vec<(u64, u64)>> {
    let copies = bitlocker_copies(&read(0, SECTOR)?)?;
    Some([(0, SECTOR)].into_iter().chain(copies.map(|at| (at, BITLOCKER_COPY))).collect())
}

/// Where the three copies of BitLocker's metadata are, according to the boot sector ("BitLocker
/// Drive Encryption (BDE) format specification" of libbde; `lib/bitlk` of cryptsetup). Only the
/// format of Windows 7 and later is known here.
pub(in crate::probe) fn bitlocker_copies(boot: &[u8]) -> Option<[u64; 3]> {
    let offsets = match boot.get(3..11)? {
        b"-FVE-FS-" => 176,
        // BitLocker To Go, which looks like a FAT.
        b"MSWIN4.1" => 440,
        _ => return None,
    };
    Some([boot.le64(offsets)?, boot.le64(offsets + 8)?, boot.le64(offsets + 16)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::device::reader;

    /// A LUKS2 header of 16 KiB with this JSON text.
    fn luks2_header(json: &str) -> Vec<u8> {
        let mut header = vec![0; 32 << 10];
        header[..6].copy_from_slice(LUKS_MAGIC);
        header[7] = 2;
        header[8..16].copy_from_slice(&(16u64 << 10).to_be_bytes());
        header[4096..4096 + json.len()].copy_from_slice(json.as_bytes());
        header
    }

    #[test]
    fn only_key_slots_are_needed_of_luks2() {
        let slots = |size: u64| {
            luks2_header(&format!(
                r#"{{"keyslots":{{"0":{{"type":"luks2","area":{{"offset":"32768","size":"{size}"}}}},
                "1":{{"type":"reencrypt","area":{{"offset":"290816","size":"16000000"}}}}}}}}"#
            ))
        };
        let parts = luks(&reader(&slots(258_048)));
        assert_eq!(parts, Some(vec![(0, 32 << 10), (32_768, 258_048)]));
        for size in [MOST_COPIED, u64::MAX] {
            assert_eq!(luks(&reader(&slots(size))), None, "{size}");
        }
        for json in ["", "{", "[]", r#"{"keyslots":[]}"#, r#"{"keyslots":{"0":{"type":"luks2"}}}"#] {
            assert_eq!(luks(&reader(&luks2_header(json))), None, "{json}");
        }
        let mut huge = slots(1);
        huge[8] = 0xff;
        assert_eq!(luks(&reader(&huge)), None);
    }

    #[test]
    fn luks1_is_copied_up_to_its_data() {
        let mut header = vec![0; 4096];
        header[..6].copy_from_slice(LUKS_MAGIC);
        header[7] = 1;
        for (sectors, copied) in [(4096u32, 2 << 20), (0, 4096), (u32::MAX, 4 << 20)] {
            header[104..108].copy_from_slice(&sectors.to_be_bytes());
            assert_eq!(luks(&reader(&header)), Some(vec![(0, copied)]));
        }
        assert_eq!(luks(&reader(&[0; 4096])), None);
        assert_eq!(luks(&reader(b"LUKS")), None);
    }
}
