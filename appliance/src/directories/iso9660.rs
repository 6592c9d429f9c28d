//! ISO 9660: the inode number of a directory is the place of its first block (`isofs_get_ino` and
//! `isofs_normalize_block_and_offset` in the kernel's `fs/isofs/isofs.h`), and its blocks lie side
//! by side.

use super::device::Device;
use super::{Place, extents};
use virt_bmap_on_disk::iso9660::records;
use virt_bmap_ranges::{DeviceOffset, Range};

/// Largest directory whose continuation areas are looked for.
const LARGEST: u64 = 64 << 20;

pub(super) struct Iso9660 {
    /// Bytes of a block.
    block: u64,
}

impl Iso9660 {
    pub(super) fn new(block: u64) -> Option<Self> {
        matches!(block, 512 | 1024 | 2048).then_some(Self { block })
    }

    pub(super) fn place(&self, device: &Device, inode: u64, size: u64) -> Option<Place> {
        // The lower bits are an offset in the block, in units of 32 bytes.
        let units = self.block / 32;
        let (block, offset) = (inode / units, inode % units);
        let first = self.first_block(device, block, offset)?;
        let length = size.checked_next_multiple_of(self.block)?;
        let range = Range::at(DeviceOffset(first.checked_mul(self.block)?), length)?;
        let bytes = device.read(range.start.0, length.min(LARGEST))?;
        let read = |at, length| device.read(at, length);
        let blocks = bytes.chunks(self.block as usize);
        let continued =
            blocks.flat_map(records).flat_map(|record| record.continuation(&read, self.block).blocks);
        let mut continued: Vec<u64> = continued.collect();
        continued.sort_unstable();
        continued.dedup();
        let beside =
            continued.into_iter().filter_map(|block| Some((block.checked_mul(self.block)?, self.block)));
        Some(Place { extents: extents([range]), beside: beside.collect() })
    }

    /// The first block of the directory. Where Rock Ridge moved one, its inode number is the place
    /// of the record that stands for it.
    fn first_block(&self, device: &Device, block: u64, offset: u64) -> Option<u64> {
        let bytes = device.read(block.checked_mul(self.block)?, self.block)?;
        let record = records(&bytes).find(|record| record.at as u64 / 32 == offset)?;
        if record.at == 0 && record.is_self() {
            return Some(block);
        }
        record.continuation(&|at, length| device.read(at, length), self.block).moved
    }
}
