//! ISO 9660: all of a volume is in use. Its descriptors say where its parts lie (ECMA-119; see
//! [`virt_bmap_on_disk::iso9660`]).

use super::Facts;
use crate::probe::device::Device;
use std::cell::RefCell;
use virt_bmap_on_disk::iso9660::{SYSTEM_AREA, Volume};
use virt_bmap_ranges::Range;

pub(super) fn describe(facts: &mut Facts, device: &Device<'_>) {
    let ahead = ReadAhead { device, window: RefCell::default() };
    let Some(volume) = Volume::of(&|at, length| ahead.read(at, length)) else { return };
    // A truncated image has less than its descriptors promise.
    facts.all_in_use(volume.size.min(device.size));
    facts.name("[system area]", [Range::new(0, SYSTEM_AREA)], true);
    facts.name("[volume descriptors]", [volume.descriptors], true);
    facts.name("[path tables]", volume.path_tables, true);
    facts.name("[boot catalog]", volume.boot_catalogs, true);
    facts.name("[boot images]", volume.boot_images, true);
    // The walk has found those of the tree that the kernel shows.
    facts.name("[directories]", volume.directories, true);
}

/// Reads of small things that lie side by side, as the directories of a volume do.
struct ReadAhead<'a> {
    device: &'a Device<'a>,
    /// The bytes that were read last, and where they begin.
    window: RefCell<(u64, Vec<u8>)>,
}

impl ReadAhead<'_> {
    /// Bytes that are read at a time.
    const WINDOW: u64 = 64 << 10;

    fn read(&self, at: u64, length: u64) -> Option<Vec<u8>> {
        let cut = |(start, bytes): &(u64, Vec<u8>)| {
            let from = usize::try_from(at.checked_sub(*start)?).ok()?;
            Some(bytes.get(from..)?.get(..usize::try_from(length).ok()?)?.to_vec())
        };
        if let Some(bytes) = cut(&self.window.borrow()) {
            return Some(bytes);
        }
        let size = Self::WINDOW.max(length).min(self.device.size.checked_sub(at)?);
        self.window.replace((at, self.device.read(at, size)?));
        cut(&self.window.borrow())
    }
}
