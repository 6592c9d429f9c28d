//! Windows dynamic disks: the private header, and the database of the group of disks. On a disk
//! with an MBR the header is in sector 6 and says where the database lies; on a disk with a GPT
//! they have a partition of their own (`block/partitions/ldm.h` of the kernel; `ldm.c` of libldm).

use super::{Found, SECTOR};
use crate::probe::device::{Device, Fields};

/// Type of the partition that is the database: 5808C8AA-7E8F-42E0-85D2-E1E90434CFB3.
pub(super) const METADATA: [u8; 16] =
    [0xaa, 0xc8, 0x08, 0x58, 0x8f, 0x7e, 0xe0, 0x42, 0x85, 0xd2, 0xe1, 0xe9, 0x04, 0x34, 0xcf, 0xb3];

/// Sector of the private header on a disk with an MBR.
const HEADER: u64 = 6;

/// On a disk with an MBR, where all partitions are of type 0x42.
pub(super) fn on_disk(device: &Device<'_>) -> Option<[Found; 2]> {
    let header = device.read(HEADER * SECTOR, SECTOR)?;
    let database = database(&header)?;
    Some([
        ("[LDM private header]", vec![(HEADER * SECTOR, SECTOR)], true),
        ("[LDM database]", vec![database], true),
    ])
}

/// On a disk with a GPT: in this partition, whose last sector is the private header.
pub(super) fn in_partition(device: &Device<'_>, (start, length): (u64, u64)) -> Option<Found> {
    let last = start.checked_add(length)?.checked_sub(SECTOR)?;
    let verified = device.read(last, SECTOR).is_some_and(|header| database(&header) == Some((start, length)));
    Some(("[LDM database]", vec![(start, length)], verified))
}

/// Where the database lies, according to a private header.
fn database(header: &[u8]) -> Option<(u64, u64)> {
    let sectors = |at| header.be64(at)?.checked_mul(SECTOR);
    header.starts_with(b"PRIVHEAD").then_some(())?;
    Some((sectors(299)?, sectors(307)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_header_says_where_the_database_is() {
        let mut header = vec![0; 512];
        header[..8].copy_from_slice(b"PRIVHEAD");
        header[299..307].copy_from_slice(&1_000_000u64.to_be_bytes());
        header[307..315].copy_from_slice(&2048u64.to_be_bytes());
        assert_eq!(database(&header), Some((512_000_000, 1 << 20)));
        header[299] = 0xff;
        assert_eq!(database(&header), None);
        assert_eq!(database(&[0; 512]), None);
        assert_eq!(database(b"PRIVHEAD"), None);
    }
}
