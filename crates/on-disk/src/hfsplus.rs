//! Resource forks of HFS+, from the catalog (Apple's Technical Note TN1150, "HFS Plus Volume
//! Format"). Numbers are big-endian.

use crate::{Fields, Read};
use std::collections::HashMap;
use virt_bmap_ranges::{DeviceOffset, Range};

/// Where the volume header lies.
const HEADER: u64 = 1024;

/// Where the header describes the file of further extents, and the catalog.
const OVERFLOW: usize = 192;
const CATALOG: usize = 272;

/// Number of the catalog (`kHFSCatalogFileID`).
const CATALOG_ID: u32 = 4;

/// Kinds of forks in the keys of further extents.
const DATA_FORK: u8 = 0;
const RESOURCE_FORK: u8 = 0xff;

/// `kHFSPlusFileRecord`, and where such a record describes the resource fork.
const FILE_RECORD: u16 = 2;
const RESOURCE: usize = 168;

/// `kBTLeafNode`
const LEAF: u8 = 0xff;

/// Bytes of a tree that are read at a time.
const WINDOW: u64 = 1 << 20;

/// Most resource forks and further extents that are kept.
const MOST: usize = 1 << 22;

/// A fork of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fork {
    /// Bytes of its data.
    pub size: u64,
    /// Its extents on the device, in order.
    pub extents: Vec<Range<DeviceOffset>>,
}

/// A volume: size of its allocation blocks, and their number.
#[derive(Clone, Copy)]
struct Volume {
    block: u64,
    blocks: u64,
}

/// Extents that follow the first eight of a fork, by file, kind of fork, and the number of the first
/// block in the fork.
type Further = HashMap<(u32, u8, u32), Vec<(u32, u32)>>;

/// The resource forks that have blocks, by the number of their file; `None` if the catalog makes no
/// sense.
pub fn resource_forks(read: Read<'_>) -> Option<HashMap<u32, Fork>> {
    let header = read(HEADER, 512)?;
    let (block, blocks) = (u64::from(header.be32(40)?), u64::from(header.be32(44)?));
    if !matches!(header.get(..2)?, b"H+" | b"HX") || !block.is_power_of_two() || block < 512 {
        return None;
    }
    let volume = Volume { block, blocks };
    let mut further = Further::new();
    let overflow = volume.fork(&header, OVERFLOW, &further, (0, DATA_FORK))?;
    records(read, &overflow, |record| {
        // Length, kind of fork, a byte for alignment, file, first block.
        let key = (record.be32(4)?, record.u8_at(2)?, record.be32(8)?);
        further.insert(key, (12..76).step_by(8).map_while(|at| extent(record, at)).collect());
        (further.len() <= MOST).then_some(())
    })?;
    let catalog = volume.fork(&header, CATALOG, &further, (CATALOG_ID, DATA_FORK))?;
    let mut forks = HashMap::new();
    records(read, &catalog, |record| {
        // Data begins at an even offset after the key, whose length does not count itself.
        let file = record.get((usize::from(record.be16(0)?) + 2).next_multiple_of(2)..)?;
        if file.be16(0)? != FILE_RECORD || file.be32(RESOURCE + 12)? == 0 {
            return Some(());
        }
        let id = file.be32(8)?;
        let fork = volume.fork(file, RESOURCE, &further, (id, RESOURCE_FORK))?;
        forks.insert(id, fork);
        (forks.len() <= MOST).then_some(())
    })?;
    Some(forks)
}

/// First block and number of blocks; `None` after the last extent.
fn extent(bytes: &[u8], at: usize) -> Option<(u32, u32)> {
    Some((bytes.be32(at)?, bytes.be32(at + 4)?)).filter(|(_, count)| *count > 0)
}

impl Volume {
    /// The fork that is described at this offset (`HFSPlusForkData`).
    fn fork(self, bytes: &[u8], at: usize, further: &Further, of: (u32, u8)) -> Option<Fork> {
        let (size, blocks) = (bytes.be64(at)?, bytes.be32(at + 12)?);
        let mut extents = Vec::new();
        let mut add = |(first, count): (u32, u32)| -> Option<u32> {
            let range =
                Range::at(DeviceOffset(u64::from(first) * self.block), u64::from(count) * self.block)?;
            extents.push(Some(range).filter(|range| range.end.0 <= self.blocks * self.block)?);
            Some(count)
        };
        let mut found: u32 = 0;
        for part in (at + 16..at + 80).step_by(8).map_while(|at| extent(bytes, at)) {
            found = found.checked_add(add(part)?)?;
        }
        while found < blocks {
            let before = found;
            for part in further.get(&(of.0, of.1, found))? {
                found = found.checked_add(add(*part)?)?;
            }
            // Nothing there leads on.
            if found == before {
                return None;
            }
        }
        (found == blocks).then_some(Fork { size, extents })
    }
}

/// Calls `each` for the records in the leaves of a tree, each from its key on. `each` returns `None`
/// for an invalid record.
fn records(read: Read<'_>, tree: &Fork, mut each: impl FnMut(&[u8]) -> Option<()>) -> Option<()> {
    let length: u64 = tree.extents.iter().map(|range| range.len()).sum();
    let mut window = (0, Vec::new());
    // The header record follows the descriptor of the first node.
    let head = tree.read(read, 0, 512.min(length))?;
    let (mut node, size) = (u64::from(head.be32(24)?), u64::from(head.be16(32)?));
    if !size.is_power_of_two() || size < 512 {
        return None;
    }
    let mut left = length / size;
    while node != 0 {
        left = left.checked_sub(1)?;
        let at = node.checked_mul(size)?;
        let end = at.checked_add(size).filter(|end| *end <= length)?;
        if at < window.0 || end > window.0 + window.1.len() as u64 {
            window = (at, tree.read(read, at, WINDOW.min(length - at))?);
        }
        let start = (at - window.0) as usize;
        let bytes = window.1.get(start..start + size as usize)?;
        if bytes.u8_at(8)? != LEAF {
            return None;
        }
        for record in 0..usize::from(bytes.be16(10)?) {
            // The offsets of the records end the node, the first one last.
            let offset = bytes.be16(bytes.len().checked_sub(2 * record + 2)?)?;
            each(bytes.get(usize::from(offset)..)?)?;
        }
        node = bytes.be32(0)?.into();
    }
    Some(())
}

impl Fork {
    /// Bytes of the fork.
    fn read(&self, read: Read<'_>, at: u64, length: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let (mut start, end) = (0, at.checked_add(length)?);
        for extent in &self.extents {
            let (from, to) = (at.max(start), end.min(start + extent.len()));
            if from < to {
                bytes.extend(read(extent.start.0 + (from - start), to - from)?);
            }
            start += extent.len();
        }
        (bytes.len() as u64 == length).then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader;

    const BLOCK: usize = 512;

    fn put16(disk: &mut [u8], at: usize, value: u16) {
        disk[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }

    fn put32(disk: &mut [u8], at: usize, value: u32) {
        disk[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    /// Describes a fork: its blocks, and its first extents.
    fn fork(disk: &mut [u8], at: usize, blocks: u32, extents: &[(u32, u32)]) {
        put32(disk, at + 4, blocks * BLOCK as u32);
        put32(disk, at + 12, blocks);
        for (number, (first, count)) in extents.iter().enumerate() {
            put32(disk, at + 16 + 8 * number, *first);
            put32(disk, at + 20 + 8 * number, *count);
        }
    }

    /// Makes a tree of two nodes of one block, whose only leaf has one record.
    fn tree(disk: &mut [u8], header: usize, leaf: usize) -> usize {
        put32(disk, header * BLOCK + 24, 1);
        put16(disk, header * BLOCK + 32, BLOCK as u16);
        disk[leaf * BLOCK + 8] = LEAF;
        put16(disk, leaf * BLOCK + 10, 1);
        put16(disk, leaf * BLOCK + BLOCK - 2, 14);
        leaf * BLOCK + 14
    }

    /// A volume whose catalog is in two pieces, with a file whose resource fork has nine extents.
    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 64 * BLOCK];
        disk[1024..1026].copy_from_slice(b"H+");
        put32(&mut disk, 1024 + 40, BLOCK as u32);
        put32(&mut disk, 1024 + 44, 64);
        fork(&mut disk, 1024 + OVERFLOW, 2, &[(8, 2)]);
        fork(&mut disk, 1024 + CATALOG, 2, &[(10, 1), (20, 1)]);
        let further = tree(&mut disk, 8, 9);
        put16(&mut disk, further, 10);
        disk[further + 2] = RESOURCE_FORK;
        put32(&mut disk, further + 4, 25);
        put32(&mut disk, further + 8, 8);
        put32(&mut disk, further + 12, 50);
        put32(&mut disk, further + 16, 3);
        let record = tree(&mut disk, 10, 20);
        put16(&mut disk, record, 6);
        put16(&mut disk, record + 8, FILE_RECORD);
        put32(&mut disk, record + 16, 25);
        let extents: Vec<(u32, u32)> = (0..8).map(|number| (30 + 2 * number, 1)).collect();
        fork(&mut disk, record + 8 + RESOURCE, 11, &extents);
        disk
    }

    #[test]
    fn a_resource_fork_has_all_its_extents() {
        let forks = resource_forks(&reader(&disk())).unwrap();
        let fork = &forks[&25];
        assert_eq!((forks.len(), fork.size, fork.extents.len()), (1, 11 * 512, 9));
        assert_eq!(fork.extents[7..], [Range::new(44 * 512, 45 * 512), Range::new(50 * 512, 53 * 512)]);
    }

    #[test]
    fn catalogs_that_make_no_sense_are_refused() {
        let leaf = 20 * BLOCK;
        // No HFS+, a leaf of another kind, a loop of leaves, a node outside, a record outside, and
        // an extent outside of the volume.
        let last = leaf + BLOCK - 2;
        for (at, byte) in [(1024, 0), (leaf + 8, 0), (leaf + 3, 1), (leaf + 3, 9), (last, 9), (1024 + 47, 50)]
        {
            let mut disk = disk();
            disk[at] = byte;
            assert_eq!(resource_forks(&reader(&disk)), None, "{at}");
        }
        for length in [0, 1024, 1500, 9 * BLOCK, 20 * BLOCK] {
            assert_eq!(resource_forks(&reader(&disk()[..length])), None, "{length}");
        }
    }
}
