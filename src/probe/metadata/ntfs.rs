//! NTFS keeps its metadata in files, which the agent finds in the `$MFT` with their places, as it
//! does the free clusters of `$Bitmap`. Only the copy of the boot sector lies in no file.

use super::Facts;
use crate::probe::device::Device;
use virt_bmap_ntfs::Geometry;
use virt_bmap_ranges::{DeviceOffset, Range};

/// Bytes of a boot sector that are compared.
const BOOT_SECTOR: u64 = 512;

pub(super) fn describe(facts: &mut Facts, device: &mut Device<'_>) {
    let Some(sector) = device.read(0, BOOT_SECTOR) else { return };
    let Ok(geometry) = Geometry::of(&sector) else { return };
    facts.records = Some(geometry.record);
    let copy: Range<DeviceOffset> = Range::new(geometry.end(), geometry.end() + geometry.sector);
    if device.read(copy.start.0, copy.len()).is_some_and(|copy| copy.starts_with(&sector)) {
        facts.name("[boot sector copy]", [copy], true);
    }
}
