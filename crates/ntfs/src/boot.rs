//! The boot sector: how large sectors, clusters and records are, and where the `$MFT` begins
//! (`NTFS_BOOT_SECTOR` of `layout.h`).

use crate::OpenError;
use crate::fields::Fields as _;

/// Bytes of the boot sector that are read.
pub(crate) const BOOT_SECTOR: usize = 512;

/// Largest cluster: Windows makes clusters of up to 2 MiB.
const LARGEST_CLUSTER: u64 = 2 << 20;

/// Sizes and places that hold for the whole volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes in a sector.
    pub sector: u64,
    /// Sectors of the volume. A copy of the boot sector follows them.
    pub sectors: u64,
    /// Bytes in a cluster.
    pub cluster: u64,
    /// Bytes in a record of `$MFT`.
    pub record: u64,
    /// The first cluster of `$MFT`.
    pub mft: u64,
    /// The first cluster of `$MFTMirr`, which holds copies of the first records.
    pub mirror: u64,
}

impl Geometry {
    /// Reads a boot sector.
    ///
    /// # Errors
    /// [`OpenError::NotNtfs`] if it is something else, [`OpenError::Geometry`] if its numbers make
    /// no sense.
    pub fn of(boot: &[u8]) -> Result<Self, OpenError> {
        // `oem_id`
        if boot.get(3..11) != Some(b"NTFS    ") {
            return Err(OpenError::NotNtfs);
        }
        Self::fields(boot).ok_or(OpenError::Geometry("sizes"))?.checked()
    }

    fn fields(boot: &[u8]) -> Option<Self> {
        let sector = u64::from(boot.le16(0x0b)?);
        // `sectors_per_cluster`: above 128 it is the negative logarithm of the number.
        let sectors_per_cluster = match boot.byte(0x0d)? {
            small @ ..=128 => u64::from(small),
            large => 1u64.checked_shl(256 - u32::from(large))?,
        };
        let cluster = sector.checked_mul(sectors_per_cluster)?;
        Some(Self {
            sector,
            sectors: boot.le64(0x28)?,
            cluster,
            record: size_of_record(boot.byte(0x40)?, cluster)?,
            mft: boot.le64(0x30)?,
            mirror: boot.le64(0x38)?,
        })
    }

    fn checked(self) -> Result<Self, OpenError> {
        let is_power = |size: u64, from: u64, to: u64| size.is_power_of_two() && (from..=to).contains(&size);
        if !is_power(self.sector, 256, 4096) {
            Err(OpenError::Geometry("sectors"))
        } else if !is_power(self.cluster, self.sector, LARGEST_CLUSTER) {
            Err(OpenError::Geometry("clusters"))
        } else if !is_power(self.record, 512, 64 << 10) {
            Err(OpenError::Geometry("records"))
        } else if self.sectors.checked_add(1).and_then(|all| all.checked_mul(self.sector)).is_none() {
            Err(OpenError::Geometry("size"))
        } else {
            Ok(self)
        }
    }

    /// Whole clusters of the volume.
    pub fn clusters(&self) -> u64 {
        self.sectors * self.sector / self.cluster
    }

    /// The first byte after the sectors of the volume.
    pub fn end(&self) -> u64 {
        self.sectors * self.sector
    }
}

/// `clusters_per_mft_record`: a number of clusters, or the negative logarithm of a number of bytes.
fn size_of_record(field: u8, cluster: u64) -> Option<u64> {
    match field.cast_signed() {
        clusters @ 1.. => cluster.checked_mul(clusters.unsigned_abs().into()),
        logarithm => 1u64.checked_shl(logarithm.unsigned_abs().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(sectors_per_cluster: u8, record: u8) -> Vec<u8> {
        let mut boot = vec![0; BOOT_SECTOR];
        boot[3..11].copy_from_slice(b"NTFS    ");
        boot[0x0b..0x0d].copy_from_slice(&512u16.to_le_bytes());
        boot[0x0d] = sectors_per_cluster;
        boot[0x28..0x30].copy_from_slice(&(1u64 << 20).to_le_bytes());
        boot[0x30] = 4;
        boot[0x38] = 2;
        boot[0x40] = record;
        boot
    }

    #[test]
    fn clusters_of_all_sizes_are_understood() {
        for (field, cluster) in [
            (1, 512),
            (2, 1024),
            (8, 4096),
            (128, 65536),
            (0xf8, 128 << 10),
            (0xf5, 1 << 20),
            (0xf4, 2 << 20),
        ] {
            let geometry = Geometry::of(&boot(field, 0xf6)).unwrap();
            assert_eq!((geometry.cluster, geometry.record), (cluster, 1024));
            assert_eq!(geometry.clusters(), (512 << 20) / cluster);
        }
        assert_eq!(Geometry::of(&boot(8, 1)).unwrap().record, 4096);
        assert_eq!(Geometry::of(&boot(1, 2)).unwrap().record, 1024);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(matches!(Geometry::of(&[0; 512]), Err(OpenError::NotNtfs)));
        assert!(matches!(Geometry::of(b"   NTFS    "), Err(OpenError::Geometry(_))));
        for (cluster, record) in
            [(0, 0xf6), (3, 0xf6), (0xf3, 0xf6), (0x81, 0xf6), (8, 0), (8, 0x80), (8, 17)]
        {
            assert!(matches!(Geometry::of(&boot(cluster, record)), Err(OpenError::Geometry(_))), "{cluster}");
        }
        let mut huge = boot(8, 0xf6);
        huge[0x28..0x30].fill(0xff);
        assert!(matches!(Geometry::of(&huge), Err(OpenError::Geometry("size"))));
    }
}
