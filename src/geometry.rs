//! What a disk's partition table says of the disk as a whole: the size of its sectors, and how many
//! it had when the table was written.
//!
//! An image does not say with which sector size the guest saw its disk, and Linux finds a GPT only
//! in the second sector. The appliance sees sectors of 512 bytes, on which filesystems for larger
//! ones work, too, and the agent has the kernel add the partitions of a GPT for larger ones. Linux
//! also refuses the GPT of a disk that has become shorter, with all of its partitions. The header is
//! then made to fit, in the overlay, so that the partitions that are whole are there.

use virt_bmap_image::{Overlay, Source};
use virt_bmap_map::SECTOR;
use virt_bmap_ranges::DiskOffset;

/// Sectors of disks that have no smaller ones.
const LARGE_SECTOR: u64 = 4096;

/// Least size of the header of a GPT (UEFI specification, "GPT Header").
const HEADER: usize = 92;

/// What a partition table says of its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes in a sector.
    pub sector: u64,
    /// Bytes of the disk that the table describes, if the image holds fewer.
    pub truncated: Option<u64>,
    /// What Linux has to read in place of the header of the GPT, and where.
    header: Option<(DiskOffset, Vec<u8>)>,
}

impl Geometry {
    /// Of a disk. One that cannot be read, or has no table, has the usual sectors.
    pub fn of(disk: &dyn Source) -> Self {
        let mut head = vec![0; disk.size().min(3 * LARGE_SECTOR) as usize];
        if disk.read_at(&mut head, DiskOffset(0)).is_err() {
            head.clear();
        }
        Self::from_head(&head, disk.size())
    }

    fn from_head(head: &[u8], size: u64) -> Self {
        let usual = Self { sector: SECTOR, truncated: None, header: None };
        let mut found =
            [SECTOR, LARGE_SECTOR].into_iter().filter_map(|sector| Some((sector, gpt(head, sector)?)));
        let Some((sector, header)) = found.next() else {
            return Self { truncated: mbr_size(head).filter(|described| *described > size), ..usual };
        };
        let (last_usable, other) = (le64(header, 48), le64(header, 32));
        let end = last_usable.max(other).saturating_add(1).saturating_mul(sector);
        let last = (size / sector).saturating_sub(1);
        if last_usable <= last {
            // The second GPT alone may be missing.
            return Self { sector, ..usual };
        }
        let mut fitting = header.to_vec();
        fitting[48..56].copy_from_slice(&last.to_le_bytes());
        fitting[16..20].fill(0);
        let sum = crc32(&fitting);
        fitting[16..20].copy_from_slice(&sum.to_le_bytes());
        Self { sector, truncated: Some(end), header: Some((DiskOffset(sector), fitting)) }
    }

    /// Lets Linux accept the table of a truncated disk.
    ///
    /// # Errors
    /// The overlay's.
    pub fn mend(&self, overlay: &Overlay) -> std::io::Result<()> {
        match &self.header {
            Some((at, header)) => overlay.write_at(header, *at),
            None => Ok(()),
        }
    }
}

/// The header of a valid GPT in the second sector.
fn gpt(head: &[u8], sector: u64) -> Option<&[u8]> {
    let block = head.get(sector as usize..2 * sector as usize)?;
    let length = u32::from_le_bytes(*block.get(12..)?.first_chunk()?) as usize;
    let header = block.get(..length).filter(|header| header.len() >= HEADER)?;
    let mut unsummed = header.to_vec();
    let sum = u32::from_le_bytes(*header.get(16..)?.first_chunk()?);
    unsummed[16..20].fill(0);
    let is_valid = header.starts_with(b"EFI PART") && le64(header, 24) == 1 && crc32(&unsummed) == sum;
    is_valid.then_some(header)
}

/// Where the last of the primary partitions in an MBR ends. Linux skips those that begin past the
/// end of the disk, and shortens the others (`block/partitions/core.c`).
fn mbr_size(head: &[u8]) -> Option<u64> {
    let sector = head.get(..SECTOR as usize)?;
    let is_filesystem = [(3, &b"NTFS"[..]), (3, b"EXFAT"), (54, b"FAT"), (82, b"FAT")]
        .iter()
        .any(|(at, name)| sector[*at..].starts_with(name));
    // `msdos_partition` of Linux: each entry is marked as active or not.
    let entries = sector[446..510].chunks_exact(16);
    let is_table = sector[510..] == [0x55, 0xaa] && entries.clone().all(|entry| entry[0] & 0x7f == 0);
    let ends = entries.filter(|entry| !matches!(entry[4], 0 | 0xee)).map(|entry| {
        let number =
            |at: usize| entry[at..].first_chunk().map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes)));
        (number(8) + number(12)) * SECTOR
    });
    ends.max().filter(|_| is_table && !is_filesystem)
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The CRC-32 of the UEFI specification, which is that of ISO 3309.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    };
    !bytes.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk whose GPT describes `sectors` sectors.
    fn disk(sector: usize, sectors: u64) -> Vec<u8> {
        let mut head = vec![0; 3 * 4096];
        let header = &mut head[sector..sector + HEADER];
        header[..8].copy_from_slice(b"EFI PART");
        header[12] = HEADER as u8;
        header[24] = 1;
        header[32..40].copy_from_slice(&(sectors - 1).to_le_bytes());
        header[48..56].copy_from_slice(&(sectors - 34).to_le_bytes());
        let sum = crc32(header);
        head[sector + 16..sector + 20].copy_from_slice(&sum.to_le_bytes());
        head
    }

    #[test]
    fn a_gpt_says_how_large_the_sectors_are() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        for sector in [512, 4096] {
            let of = Geometry::from_head(&disk(sector, 10_000), 10_000 * sector as u64);
            assert_eq!(of, Geometry { sector: sector as u64, truncated: None, header: None });
        }
        let usual = Geometry { sector: 512, truncated: None, header: None };
        let mut damaged = disk(4096, 10_000);
        damaged[4096 + 40] ^= 1;
        for head in [&damaged[..], &damaged[..5000], b"", &[0xff; 8192]] {
            assert_eq!(Geometry::from_head(head, 10_000 << 12), usual);
        }
    }

    #[test]
    fn a_gpt_is_made_to_fit_a_truncated_disk() {
        let head = disk(512, 10_000);
        let of = Geometry::from_head(&head, 5_000 * 512);
        assert_eq!((of.sector, of.truncated), (512, Some(10_000 * 512)));
        let (at, header) = of.header.unwrap();
        assert_eq!(at, DiskOffset(512));
        let mut mended = head.clone();
        mended[512..512 + header.len()].copy_from_slice(&header);
        assert_eq!(le64(gpt(&mended, 512).unwrap(), 48), 4_999);
        // Without the second GPT alone nothing is lost.
        assert_eq!(Geometry::from_head(&head, 9_990 * 512).truncated, None);
    }

    #[test]
    fn an_mbr_says_where_its_partitions_end() {
        let mut head = vec![0; 512];
        head[446 + 4] = 0x83;
        head[446 + 8..446 + 16].copy_from_slice(&[0, 8, 0, 0, 0, 0, 1, 0]);
        head[510..].copy_from_slice(&[0x55, 0xaa]);
        let end = (2048 + 65536) * 512;
        assert_eq!(Geometry::from_head(&head, end).truncated, None);
        assert_eq!(Geometry::from_head(&head, end - 512).truncated, Some(end));
        head[54..57].copy_from_slice(b"FAT");
        assert_eq!(Geometry::from_head(&head, end - 512).truncated, None);
    }
}
