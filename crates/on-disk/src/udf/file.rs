//! File entries: where a file or directory lies (4/14.9, 4/14.17).

use super::Volume;
use crate::{Fields, Read};
use virt_bmap_ranges::{DeviceOffset, Range};

/// Tags of a file entry, an extended one, and a block of further allocation descriptors (4/7.2.1).
const FILE_ENTRY: u16 = 261;
const EXTENDED: u16 = 266;
const FURTHER: u16 = 258;

/// Most blocks of further allocation descriptors that are followed.
const MOST: usize = 1 << 12;

/// Kinds of allocation descriptors, the lowest bits of the flags of an ICB tag (4/14.6.8).
const SHORT: u16 = 0;
const LONG: u16 = 1;
const EMBEDDED: u16 = 3;

/// Kinds of extents, the highest bits of their length (4/14.14.1.1): it is recorded; it goes on
/// elsewhere.
const RECORDED: u32 = 0;
const CONTINUED: u32 = 3;

/// Where a file or directory lies on the device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its recorded extents, in order; whole blocks.
    pub extents: Vec<Range<DeviceOffset>>,
    /// Its data is in its file entry.
    pub is_embedded: bool,
    /// Its file entry, and the blocks of further allocation descriptors.
    pub entry: Vec<Range<DeviceOffset>>,
}

impl Place {
    /// The place of the file or directory whose file entry is this block of the volume.
    pub fn of(read: Read<'_>, volume: &Volume, number: u64) -> Option<Self> {
        let first = volume.partition.start.0 / volume.block;
        let icb = read(number.checked_mul(volume.block)?, volume.block)?;
        // The tag has the place in the partition.
        let (lengths, start) = match super::tag(&icb, number.checked_sub(first)?)? {
            FILE_ENTRY => (168, 176),
            EXTENDED => (208, 216),
            _ => return None,
        };
        let (attributes, length) = (icb.le32(lengths)? as usize, icb.le32(lengths + 4)? as usize);
        let start = attributes.checked_add(start)?;
        let mut descriptors = icb.get(start..start.checked_add(length)?)?.to_vec();
        let mut place = Self { entry: vec![volume.block_at(number)?], ..Self::default() };
        let size = match icb.le16(34)? & 7 {
            SHORT => 8,
            LONG => 16,
            EMBEDDED => {
                place.is_embedded = true;
                return Some(place);
            }
            _ => return None,
        };
        for _ in 0..MOST {
            match place.add(volume, &descriptors, size)? {
                None => return Some(place),
                Some(block) => {
                    let bytes = further(read, volume, block)?;
                    place.entry.push(volume.block_at(first + block)?);
                    descriptors = bytes;
                }
            }
        }
        None
    }

    /// Adds the extents of allocation descriptors. Returns the block in the partition where the
    /// next descriptors are.
    fn add(&mut self, volume: &Volume, descriptors: &[u8], size: usize) -> Option<Option<u64>> {
        for descriptor in descriptors.chunks_exact(size) {
            let (length, block) = (descriptor.le32(0)?, u64::from(descriptor.le32(4)?));
            let bytes = u64::from(length & 0x3fff_ffff);
            match length >> 30 {
                // The end of the descriptors (4/12.1).
                _ if bytes == 0 => return Some(None),
                CONTINUED => return Some(Some(block)),
                RECORDED => {
                    let start = volume.partition.start.0 + block * volume.block;
                    let range = Range::at(DeviceOffset(start), bytes.next_multiple_of(volume.block))?;
                    self.extents.push(Some(range).filter(|range| volume.partition.contains(*range))?);
                }
                _ => {}
            }
        }
        Some(None)
    }
}

impl Volume {
    /// A block of the volume, if it is in the partition.
    fn block_at(&self, number: u64) -> Option<Range<DeviceOffset>> {
        let range = Range::at(DeviceOffset(number.checked_mul(self.block)?), self.block)?;
        self.partition.contains(range).then_some(range)
    }
}

/// The allocation descriptors in a block of the partition (4/14.5).
fn further(read: Read<'_>, volume: &Volume, block: u64) -> Option<Vec<u8>> {
    let at = volume.partition.start.0.checked_add(block.checked_mul(volume.block)?)?;
    let bytes = read(at, volume.block)?;
    let is_further = super::tag(&bytes, block)? == FURTHER;
    let length = bytes.le32(20)? as usize;
    bytes.get(24..length.checked_add(24)?).filter(|_| is_further).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader;

    fn volume() -> Volume {
        Volume {
            block: 512,
            sequences: Vec::new(),
            integrity: Vec::new(),
            partition: Range::new(10 * 512, 40 * 512),
            bitmap: None,
            file_set: 0,
            is_closed: true,
        }
    }

    /// Writes a descriptor into a block of the partition, with its tag.
    fn put(disk: &mut [u8], number: usize, tag: u16, fields: &[(usize, u32)]) {
        let block = &mut disk[(10 + number) * 512..][..512];
        fields.iter().for_each(|(at, word)| block[*at..at + 4].copy_from_slice(&word.to_le_bytes()));
        block[..2].copy_from_slice(&tag.to_le_bytes());
        block[12..16].copy_from_slice(&(number as u32).to_le_bytes());
        block[4] = 0;
        block[4] = block[..16].iter().fold(0, |sum, byte| sum.wrapping_add(*byte));
    }

    fn blocks(first: u64, count: u64) -> Range<DeviceOffset> {
        Range::new((10 + first) * 512, (10 + first + count) * 512)
    }

    fn of(disk: &[u8]) -> Option<Place> {
        Place::of(&reader(disk), &volume(), 13)
    }

    #[test]
    fn extents_are_followed_into_further_descriptors() {
        let mut disk = vec![0; 40 * 512];
        // Short descriptors after 8 bytes of extended attributes: recorded, allocated only, and one
        // that says where the next are.
        let own = [(168, 8), (172, 24), (184, 1000), (188, 5), (192, 1 << 30 | 512), (196, 7)];
        put(&mut disk, 3, FILE_ENTRY, &[&own[..], &[(200, 3 << 30 | 512), (204, 8)]].concat());
        put(&mut disk, 8, FURTHER, &[(20, 8), (24, 512), (28, 20)]);
        let extents = vec![blocks(5, 2), blocks(20, 1)];
        let place = Place { extents, is_embedded: false, entry: vec![blocks(3, 1), blocks(8, 1)] };
        assert_eq!(of(&disk), Some(place));
        // One that leads to itself.
        put(&mut disk, 8, FURTHER, &[(20, 8), (24, 3 << 30 | 512), (28, 8)]);
        assert_eq!(of(&disk), None);
    }

    #[test]
    fn extended_entries_and_embedded_data_are_understood() {
        let mut disk = vec![0; 40 * 512];
        put(&mut disk, 3, EXTENDED, &[(34, 1), (212, 16), (216, 512), (220, 9)]);
        assert_eq!(of(&disk).map(|place| place.extents), Some(vec![blocks(9, 1)]));
        put(&mut disk, 3, EXTENDED, &[(34, 3), (212, 80)]);
        assert_eq!(
            of(&disk),
            Some(Place { is_embedded: true, entry: vec![blocks(3, 1)], ..Place::default() })
        );
    }

    #[test]
    fn what_is_not_a_file_entry_on_the_volume_is_refused() {
        let valid = [(172, 8), (176, 512), (180, 29)];
        let with = |tag, more: &[(usize, u32)]| {
            let mut disk = vec![0; 40 * 512];
            put(&mut disk, 3, tag, &[&valid[..], more].concat());
            of(&disk)
        };
        assert!(with(FILE_ENTRY, &[]).is_some());
        // Another descriptor, attributes or descriptors that do not fit, an unknown kind, and an
        // extent past the partition.
        assert_eq!(with(260, &[]), None);
        for more in [(168, u32::MAX), (168, 330), (172, 400), (34, 2), (180, 30), (180, u32::MAX)] {
            assert_eq!(with(FILE_ENTRY, &[more]), None, "{more:?}");
        }
        assert_eq!(Place::of(&reader(&[0; 512]), &volume(), 13), None);
        assert_eq!(Place::of(&reader(&[0; 512]), &volume(), u64::MAX), None);
    }
}
