//! What a volume has besides its files: descriptors, path tables, the directories of all its trees,
//! and what a computer boots from ("El Torito Bootable CD-ROM Format Specification", version 1.0).

use super::records;
use crate::{Fields, Read};
use virt_bmap_ranges::{DeviceOffset, Range};

/// Bytes of a sector. A descriptor has one (8.1).
const SECTOR: u64 = 2048;

/// Bytes before the first descriptor (6.2.1).
pub const SYSTEM_AREA: u64 = 16 * SECTOR;

/// Most descriptors that are read.
const MOST_DESCRIPTORS: u64 = 64;
/// Bytes of the largest path table that is read.
const LARGEST_TABLE: u64 = 8 << 20;
/// Most directories that are looked for.
const MOST_DIRECTORIES: usize = 1 << 17;

/// Where the parts of a volume lie, in bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Volume {
    /// Bytes of the volume.
    pub size: u64,
    /// Its descriptors, with the one that ends them.
    pub descriptors: Range<DeviceOffset>,
    /// The path tables of all trees.
    pub path_tables: Vec<Range<DeviceOffset>>,
    /// The directories of all trees. Of several trees, such as that of Joliet, the kernel shows
    /// one.
    pub directories: Vec<Range<DeviceOffset>>,
    /// The lists of what a computer can boot from.
    pub boot_catalogs: Vec<Range<DeviceOffset>>,
    /// What these lists name, as far as they say how long it is.
    pub boot_images: Vec<Range<DeviceOffset>>,
}

impl Volume {
    /// The volume whose descriptors these are. `None`: its primary one is missing or makes no
    /// sense.
    pub fn of(read: Read<'_>) -> Option<Self> {
        let mut primary = None;
        let (mut trees, mut catalogs) = (Vec::new(), Vec::new());
        let mut count = 0;
        while count < MOST_DESCRIPTORS {
            let Some(bytes) = read(SYSTEM_AREA + count * SECTOR, SECTOR) else { break };
            if bytes.get(1..6) != Some(b"CD001") {
                break;
            }
            count += 1;
            match bytes.first() {
                Some(0) => catalogs.extend(catalog(&bytes)),
                Some(1 | 2) => {
                    let tree = Tree::of(&bytes)?;
                    if bytes.first() == Some(&1) && primary.is_none() {
                        primary = Some(tree.block.checked_mul(bytes.le32(80)?.into())?);
                    }
                    trees.push(tree);
                }
                Some(255) => break,
                _ => {}
            }
        }
        let mut volume = Self {
            size: primary?,
            descriptors: Range::new(SYSTEM_AREA, SYSTEM_AREA + count * SECTOR),
            path_tables: trees.iter().flat_map(|tree| tree.path_tables.clone()).collect(),
            directories: Vec::new(),
            boot_catalogs: Vec::new(),
            boot_images: Vec::new(),
        };
        for tree in &trees {
            tree.add_directories(read, &mut volume.directories);
        }
        for place in catalogs {
            let Some(bytes) = read(place.start.0, place.len()) else { continue };
            volume.boot_images.extend(boot_images(&bytes));
            volume.boot_catalogs.push(place);
        }
        Some(volume)
    }
}

/// One tree of directories, by a primary or supplementary descriptor (8.4, 8.5).
struct Tree {
    /// Bytes of a logical block.
    block: u64,
    /// Bytes of each path table, without the rest of its last block.
    length: u64,
    /// Up to four copies. The numbers in the first have the lowest byte first.
    path_tables: Vec<Range<DeviceOffset>>,
}

impl Tree {
    fn of(descriptor: &[u8]) -> Option<Self> {
        let block = u64::from(descriptor.le16(128)?);
        let length = u64::from(descriptor.le32(132)?);
        let [first, second] = [140, 144].map(|at| descriptor.le32(at));
        let [third, fourth] = [148, 152].map(|at| descriptor.be32(at));
        if !matches!(block, 512 | 1024 | 2048) {
            return None;
        }
        let tables = [first, second, third, fourth].into_iter().flatten().filter(|number| *number > 0);
        let size = length.next_multiple_of(block);
        let path_tables =
            tables.filter_map(|number| Range::at(DeviceOffset(u64::from(number) * block), size));
        Some(Self { block, length, path_tables: path_tables.collect() })
    }

    /// Adds the directories that the path table names (9.4). How long one is, says its first
    /// record, which is that of itself.
    fn add_directories(&self, read: Read<'_>, directories: &mut Vec<Range<DeviceOffset>>) -> Option<()> {
        let table = read(self.path_tables.first()?.start.0, self.length.min(LARGEST_TABLE))?;
        let mut rest = &*table;
        while directories.len() < MOST_DIRECTORIES {
            let name = usize::from(rest.u8_at(0)?);
            let start = (u64::from(rest.le32(2)?) + u64::from(rest.u8_at(1)?)) * self.block;
            if name == 0 {
                return None;
            }
            rest = rest.get(8 + name + name % 2..)?;
            let bytes = read(start, self.block);
            let length =
                bytes.as_deref().and_then(|bytes| records(bytes).next()?.own_length(start / self.block));
            let size = length.map(|length| u64::from(length).next_multiple_of(self.block));
            directories.extend(size.and_then(|size| Range::at(DeviceOffset(start), size)));
        }
        Some(())
    }
}

/// The sector of the boot catalog, by a boot record (El Torito, figure 7).
fn catalog(record: &[u8]) -> Option<Range<DeviceOffset>> {
    let is_one = record.get(7..30) == Some(b"EL TORITO SPECIFICATION");
    let start = u64::from(record.le32(71).filter(|_| is_one)?) * SECTOR;
    Range::at(DeviceOffset(start), SECTOR)
}

/// What a boot catalog names. Its entries have 32 bytes; the first proves it.
fn boot_images(catalog: &[u8]) -> Vec<Range<DeviceOffset>> {
    const SECTOR_OF_COUNTS: u64 = 512;
    /// Images of disks of 1.2, 1.44 and 2.88 MB, by the type of the medium.
    const DISKS: [u64; 3] = [1_228_800, 1_474_560, 2_949_120];
    let is_one = catalog.first() == Some(&1) && catalog.get(30..32) == Some(&[0x55, 0xaa]);
    let entries = catalog.chunks_exact(32).skip(1).filter(|_| is_one);
    let of = |entry: &[u8]| {
        let is_image = entry.first() == Some(&0x88);
        let start = u64::from(entry.le32(8).filter(|start| is_image && *start > 0)?) * SECTOR;
        let medium = usize::from(entry.u8_at(1)? & 0xf);
        let counted = u64::from(entry.le16(6)?) * SECTOR_OF_COUNTS;
        let length = medium.checked_sub(1).and_then(|disk| DISKS.get(disk)).copied().unwrap_or(counted);
        Range::at(DeviceOffset(start), length.next_multiple_of(SECTOR))
    };
    entries.filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader;

    fn put(disk: &mut [u8], at: u64, value: &[u8]) {
        disk[at as usize..at as usize + value.len()].copy_from_slice(value);
    }

    fn sectors(first: u64, count: u64) -> Range<DeviceOffset> {
        Range::new(first * SECTOR, (first + count) * SECTOR)
    }

    /// A volume of 60 sectors: descriptors from sector 16 (one tree, a boot record, another tree,
    /// and the end), path tables at 20, 21 and 30, directories at 22, 23 and 31, a catalog at 40.
    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 60 * SECTOR as usize];
        for (number, kind) in [1u8, 0, 2, 255].into_iter().enumerate() {
            put(&mut disk, SYSTEM_AREA + number as u64 * SECTOR, &[&[kind], &b"CD001"[..]].concat());
        }
        for (at, low, high, length) in [(16, 20u32, 21u32, 20u32), (18, 30, 0, 10)] {
            let at = at * SECTOR;
            put(&mut disk, at + 80, &60u32.to_le_bytes());
            put(&mut disk, at + 128, &2048u16.to_le_bytes());
            put(&mut disk, at + 132, &length.to_le_bytes());
            put(&mut disk, at + 140, &low.to_le_bytes());
            put(&mut disk, at + 148, &high.to_be_bytes());
        }
        put(&mut disk, 20 * SECTOR, &[1, 0, 22, 0, 0, 0, 1, 0, 0, 0, 1, 0, 23, 0, 0, 0, 1, 0, b'A', 0]);
        put(&mut disk, 30 * SECTOR, &[1, 0, 31, 0, 0, 0, 1, 0, 0, 0]);
        for (directory, length) in [(22u32, 2048u32), (23, 5000), (31, 2048)] {
            let at = u64::from(directory) * SECTOR;
            put(&mut disk, at, &[34, 0]);
            put(&mut disk, at + 2, &directory.to_le_bytes());
            put(&mut disk, at + 10, &length.to_le_bytes());
            put(&mut disk, at + 32, &[1, 0]);
        }
        put(&mut disk, 17 * SECTOR + 7, b"EL TORITO SPECIFICATION");
        put(&mut disk, 17 * SECTOR + 71, &40u32.to_le_bytes());
        put(&mut disk, 40 * SECTOR, &[1]);
        put(&mut disk, 40 * SECTOR + 30, &[0x55, 0xaa]);
        // Nine sectors of 512 bytes, something else, and a disk of 1.44 MB.
        put(&mut disk, 40 * SECTOR + 32, &[0x88, 0, 0, 0, 0, 0, 9, 0, 50]);
        put(&mut disk, 40 * SECTOR + 64, &[0x91, 0xef, 1, 0]);
        put(&mut disk, 40 * SECTOR + 96, &[0x88, 2, 0, 0, 0, 0, 1, 0, 70]);
        disk
    }

    #[test]
    fn all_trees_and_what_boots_are_found() {
        let volume = Volume::of(&reader(&disk())).unwrap();
        assert_eq!(volume.size, 60 * SECTOR);
        assert_eq!(volume.descriptors, sectors(16, 4));
        assert_eq!(volume.path_tables, [sectors(20, 1), sectors(21, 1), sectors(30, 1)]);
        assert_eq!(volume.directories, [sectors(22, 1), sectors(23, 3), sectors(31, 1)]);
        assert_eq!(volume.boot_catalogs, [sectors(40, 1)]);
        assert_eq!(volume.boot_images, [sectors(50, 3), sectors(70, 720)]);
    }

    #[test]
    fn what_makes_no_sense_is_left_out() {
        let of = |at: u64, bytes: &[u8]| {
            let mut disk = disk();
            put(&mut disk, at, bytes);
            Volume::of(&reader(&disk))
        };
        // No primary descriptor, a block of another size, and a path table behind the end.
        assert_eq!(of(SYSTEM_AREA, &[3]), None);
        assert_eq!(of(SYSTEM_AREA + 1, &[0]), None);
        assert_eq!(of(SYSTEM_AREA + 128, &[1]), None);
        assert_eq!(of(SYSTEM_AREA + 140, &[99]).unwrap().directories, [sectors(31, 1)]);
        // A directory that is elsewhere than it says, a name without bytes, and a catalog without a
        // signature.
        assert_eq!(of(22 * SECTOR + 2, &[9]).unwrap().directories, [sectors(23, 3), sectors(31, 1)]);
        assert_eq!(of(20 * SECTOR, &[0]).unwrap().directories, [sectors(31, 1)]);
        assert_eq!(of(40 * SECTOR + 31, &[0]).unwrap().boot_images, []);
    }
}
