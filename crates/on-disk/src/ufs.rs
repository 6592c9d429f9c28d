//! UFS of the BSDs (`struct fs` and `struct cg` of FreeBSD's `ufs/ffs/fs.h`, `struct ufs1_dinode`
//! and `ufs2_dinode` of its `ufs/ufs/dinode.h`). Numbers have the lowest byte first.
//!
//! Space is allocated in fragments, of which up to eight are a block. Fragments are numbered from
//! the beginning of the volume, and divided into cylinder groups.

use crate::{Fields, Read};
use std::collections::HashSet;
use virt_bmap_ranges::{DeviceOffset, FileOffset, Range};

/// Where UFS2 and UFS1 have their superblock. What is in front is left to boot loaders.
const PLACES: [u64; 2] = [64 << 10, 8 << 10];
/// Bytes that are read of a superblock.
const HEAD: u64 = 1376;

const UFS1: u32 = 0x0001_1954;
const UFS2: u32 = 0x1954_0119;

/// Most cylinder groups, and bytes of the largest descriptor of one.
const MOST_GROUPS: u64 = 1 << 18;
const LARGEST_DESCRIPTOR: u64 = 64 << 10;

/// Direct blocks of an inode, and levels of indirect ones.
const DIRECT: u64 = 12;
const LEVELS: usize = 3;

/// Most fragments, or blocks of them, of one file whose places are wanted.
const MOST_BLOCKS: usize = 1 << 22;

/// A volume, by its superblock. Places are numbers of fragments, sizes are bytes.
#[derive(Clone, Debug)]
pub struct Volume {
    is_ufs2: bool,
    block: u64,
    fragment: u64,
    fragments: u64,
    /// How many cylinder groups there are.
    pub groups: u64,
    group_fragments: u64,
    group_inodes: u64,
    /// What a group has besides data, counted from its start: a superblock, its descriptor, and
    /// inodes up to its data.
    superblock: u64,
    descriptor: u64,
    inodes: u64,
    data: u64,
    descriptor_size: u64,
    /// The totals of all groups.
    summary: u64,
    summary_size: u64,
    /// In UFS1, groups start at different places.
    stagger: u64,
    mask: u64,
}

/// What a cylinder group says of itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Group {
    /// The free fragments, in bytes.
    pub free: Vec<Range<DeviceOffset>>,
    /// The inodes in use.
    pub inodes: Vec<u64>,
}

/// Where the metadata of a cylinder group lies.
#[derive(Debug, PartialEq, Eq)]
pub struct Parts {
    /// Its copy of the superblock.
    pub superblock: Range<DeviceOffset>,
    /// Its descriptor.
    pub descriptor: Range<DeviceOffset>,
    /// Its inodes.
    pub inodes: Range<DeviceOffset>,
}

/// Where a file or directory lies.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its fragments, in the order of the file, without those of holes.
    pub data: Vec<Part>,
    /// The blocks with numbers of further blocks.
    pub indirect: Vec<Range<DeviceOffset>>,
    /// The blocks of its extended attributes.
    pub attributes: Vec<Range<DeviceOffset>>,
}

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its offset in the file.
    pub offset: u64,
    /// Where it lies.
    pub range: Range<DeviceOffset>,
}

impl Volume {
    /// The volume whose superblock is where its kind has it.
    pub fn of(read: Read<'_>) -> Option<Self> {
        PLACES.iter().find_map(|at| Self::of_superblock(&read(*at, HEAD)?, *at))
    }

    fn of_superblock(bytes: &[u8], at: u64) -> Option<Self> {
        let word = |at| bytes.le32(at).map(u64::from);
        let magic = bytes.le32(1372)?;
        let is_ufs2 = magic == UFS2;
        let (fragments, summary) = match magic {
            UFS2 => (bytes.le64(1080)?, bytes.le64(1096)?),
            // An UFS1 with blocks of 64 KiB has a copy there.
            UFS1 if at == PLACES[1] => (word(36)?, word(152)?),
            _ => return None,
        };
        let volume = Self {
            is_ufs2,
            block: word(48)?,
            fragment: word(52)?,
            fragments,
            groups: word(44)?,
            group_fragments: word(188)?,
            group_inodes: word(184)?,
            superblock: word(8)?,
            descriptor: word(12)?,
            inodes: word(16)?,
            data: word(20)?,
            descriptor_size: word(160)?,
            summary,
            summary_size: word(156)?,
            stagger: if is_ufs2 { 0 } else { word(24)? },
            mask: word(28)?,
        };
        let parts = [volume.superblock, volume.descriptor, volume.inodes, volume.data];
        let makes_sense = volume.fragment.is_power_of_two()
            && (512..=65536).contains(&volume.fragment)
            && volume.block.is_power_of_two()
            && (volume.fragment..=8 * volume.fragment).contains(&volume.block)
            && (1..=MOST_GROUPS).contains(&volume.groups)
            && parts.is_sorted()
            && volume.group_fragments > 0
            && volume.group_inodes > 0
            && volume.descriptor_size <= LARGEST_DESCRIPTOR
            && fragments.div_ceil(volume.group_fragments) == volume.groups
            && fragments.checked_mul(volume.fragment).is_some();
        makes_sense.then_some(volume)
    }

    /// Bytes of the volume.
    pub fn size(&self) -> u64 {
        self.fragments * self.fragment
    }

    /// What is left to boot loaders.
    pub fn boot_blocks(&self) -> Range<DeviceOffset> {
        Range::new(0, self.superblock.saturating_mul(self.fragment).min(self.size()))
    }

    /// The totals of all groups.
    pub fn summary(&self) -> Option<Range<DeviceOffset>> {
        self.range(self.summary, self.summary_size)
    }

    /// Where the metadata of a group lies.
    pub fn parts(&self, group: u64) -> Option<Parts> {
        let start = self.start(group)?;
        let range = |first: u64, end: u64| {
            self.range(start.checked_add(first)?, (end - first).checked_mul(self.fragment)?)
        };
        // Each has whole blocks.
        Some(Parts {
            superblock: range(self.superblock, self.descriptor)?,
            descriptor: range(self.descriptor, self.inodes)?,
            inodes: range(self.inodes, self.data)?,
        })
    }

    /// What the descriptor of a group says; `None` if it is damaged.
    pub fn group(&self, read: Read<'_>, group: u64) -> Option<Group> {
        const MAGIC: u32 = 0x0009_0255;
        let at = self.start(group)?.checked_add(self.descriptor)?.checked_mul(self.fragment)?;
        let bytes = read(at, self.descriptor_size)?;
        if bytes.le32(4)? != MAGIC || u64::from(bytes.le32(12)?) != group {
            return None;
        }
        let first = group.checked_mul(self.group_fragments)?;
        let count = self.group_fragments.min(self.fragments.checked_sub(first)?);
        let set = |at: usize, count: u64| -> Option<Vec<Range<DeviceOffset>>> {
            let bits = bytes.get(usize::try_from(bytes.le32(at)?).ok()?..)?;
            (count.div_ceil(8) <= bits.len() as u64).then(|| runs(bits, count))
        };
        let in_bytes = |run: Range<DeviceOffset>| {
            Range::new((first + run.start.0) * self.fragment, (first + run.end.0) * self.fragment)
        };
        let first_inode = group.checked_mul(self.group_inodes)?;
        Some(Group {
            free: set(96, count)?.into_iter().map(in_bytes).collect(),
            inodes: set(92, self.group_inodes)?
                .into_iter()
                .flat_map(|run| run.start.0..run.end.0)
                .filter_map(|number| first_inode.checked_add(number))
                .collect(),
        })
    }

    /// Bytes that a file of this size has allocated, without holes: whole blocks, but of a small
    /// file the last one in fragments.
    fn allocated(&self, size: u64) -> u64 {
        let is_small = size.div_ceil(self.block) <= DIRECT;
        let unit = if is_small { self.fragment } else { self.block };
        size.checked_next_multiple_of(unit).unwrap_or(size)
    }

    /// The inode with this number; `None` if there is no such, or it cannot be read. The whole
    /// block of inodes is read.
    pub fn inode(&self, read: Read<'_>, number: u64) -> Option<Inode> {
        let (group, within) = (number / self.group_inodes, number % self.group_inodes);
        let start = self.start(group).filter(|_| group < self.groups)?.checked_add(self.inodes)?;
        let at = within * if self.is_ufs2 { 256 } else { 128 };
        let block = start.checked_mul(self.fragment)?.checked_add(at / self.block * self.block)?;
        let bytes = read(block, self.block)?;
        Inode::of(bytes.get(usize::try_from(at % self.block).ok()?..)?, self.is_ufs2)
    }

    /// Where an inode's blocks lie; `None` if there are too many, or one of them cannot be read.
    pub fn place(&self, read: Read<'_>, inode: &Inode) -> Option<Place> {
        let mut place = Place::default();
        if inode.is_short_link() {
            return Some(place);
        }
        let mut rest = Range::new(0, self.allocated(inode.size));
        let mut seen = HashSet::new();
        for pointer in &inode.direct {
            self.add_data(*pointer, &mut rest, &mut place.data)?;
        }
        for (level, pointer) in inode.indirect.iter().enumerate() {
            self.add_indirect(read, *pointer, level, &mut rest, &mut seen, &mut place)?;
        }
        let mut attributes = inode.attributes_size;
        for pointer in &inode.attributes {
            let length = attributes.min(self.block);
            place.attributes.extend(self.range(*pointer, length).filter(|_| *pointer > 0));
            attributes -= length;
        }
        Some(place)
    }

    /// Adds the block of a file at this fragment, if it is not a hole. `rest` is what of the file
    /// is still to be added.
    fn add_data(&self, pointer: u64, rest: &mut Rest, data: &mut Vec<Part>) -> Option<()> {
        let (offset, length) = (rest.start.0, self.block.min(rest.len()));
        rest.start.0 += length;
        if pointer > 0 && length > 0 {
            let range = self.range(pointer, length)?;
            match data.last_mut() {
                Some(last) if last.range.end == range.start && last.offset + last.range.len() == offset => {
                    last.range.end = range.end;
                }
                _ => data.push(Part { offset, range }),
            }
        }
        (data.len() <= MOST_BLOCKS).then_some(())
    }

    /// Adds an indirect block and the blocks that it leads to. There are as many levels below it as
    /// `level` says.
    fn add_indirect(
        &self,
        read: Read<'_>,
        pointer: u64,
        level: usize,
        rest: &mut Rest,
        seen: &mut HashSet<u64>,
        place: &mut Place,
    ) -> Option<()> {
        let width = if self.is_ufs2 { 8 } else { 4 };
        let per_block = self.block / width;
        if rest.is_empty() {
            return Some(());
        }
        if pointer == 0 {
            // A hole as large as all that it would lead to.
            let covered = per_block.pow(level as u32 + 1).saturating_mul(self.block);
            rest.start.0 += covered.min(rest.len());
            return Some(());
        }
        let range = self.range(pointer, self.block)?;
        place.indirect.push(range);
        // One that leads to itself would be followed without end.
        if !seen.insert(pointer) || seen.len() > MOST_BLOCKS {
            return None;
        }
        let bytes = read(range.start.0, range.len())?;
        for pointer in bytes.chunks_exact(width as usize) {
            let pointer = if self.is_ufs2 { pointer.le64(0)? } else { pointer.le32(0)?.into() };
            match level.checked_sub(1) {
                Some(below) => self.add_indirect(read, pointer, below, rest, seen, place)?,
                None => self.add_data(pointer, rest, &mut place.data)?,
            }
            if rest.is_empty() {
                break;
            }
        }
        Some(())
    }

    /// From where the parts of a group count (`cgstart`).
    fn start(&self, group: u64) -> Option<u64> {
        let first = group.checked_mul(self.group_fragments)?;
        first.checked_add(self.stagger.checked_mul(group & !self.mask & u64::from(u32::MAX))?)
    }

    /// Whole fragments for so many bytes, if the volume has them.
    fn range(&self, first: u64, length: u64) -> Option<Range<DeviceOffset>> {
        let start = DeviceOffset(first.checked_mul(self.fragment)?);
        let range = Range::at(start, length.checked_next_multiple_of(self.fragment)?);
        range.filter(|range| range.end.0 <= self.size())
    }
}

/// A part of a file up to its end.
type Rest = Range<FileOffset>;

/// What an inode says of its blocks.
#[derive(Debug, PartialEq, Eq)]
pub struct Inode {
    mode: u16,
    size: u64,
    blocks: u64,
    direct: [u64; DIRECT as usize],
    indirect: [u64; LEVELS],
    attributes_size: u64,
    attributes: [u64; 2],
}

impl Inode {
    fn of(bytes: &[u8], is_ufs2: bool) -> Option<Self> {
        let word = |at: usize| bytes.le32(at).map(u64::from);
        let list = |at: usize| -> Option<[u64; DIRECT as usize + LEVELS]> {
            let mut list = [0; DIRECT as usize + LEVELS];
            for (number, pointer) in list.iter_mut().enumerate() {
                *pointer = if is_ufs2 { bytes.le64(at + 8 * number)? } else { word(at + 4 * number)? };
            }
            Some(list)
        };
        let list = list(if is_ufs2 { 112 } else { 40 })?;
        let (direct, indirect) = list.split_first_chunk()?;
        Some(Self {
            mode: bytes.le16(0)?,
            size: bytes.le64(if is_ufs2 { 16 } else { 8 })?,
            blocks: if is_ufs2 { bytes.le64(24)? } else { word(104)? },
            direct: *direct,
            indirect: *indirect.first_chunk()?,
            attributes_size: if is_ufs2 { word(92)? } else { 0 },
            attributes: if is_ufs2 { [bytes.le64(96)?, bytes.le64(104)?] } else { [0; 2] },
        })
    }

    /// Whether it has no data in blocks: it is a device, or a link whose target is in the inode.
    fn is_short_link(&self) -> bool {
        const TYPES: u16 = 0o170_000;
        const WITH_BLOCKS: [u16; 3] = [0o040_000, 0o100_000, 0o120_000];
        !WITH_BLOCKS.contains(&(self.mode & TYPES)) || self.blocks == 0
    }
}

/// Runs of bits that are set, the lowest of each byte first, by their numbers.
fn runs(bits: &[u8], count: u64) -> Vec<Range<DeviceOffset>> {
    let mut runs: Vec<Range<DeviceOffset>> = Vec::new();
    for number in 0..count {
        let byte = bits.get((number / 8) as usize).copied().unwrap_or(0);
        if byte >> (number % 8) & 1 == 1 {
            match runs.last_mut() {
                Some(last) if last.end.0 == number => last.end.0 += 1,
                _ => runs.push(Range::new(number, number + 1)),
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader;

    const K: usize = 1024;

    fn put(disk: &mut [u8], at: usize, words: &[(usize, u32)]) {
        for (offset, word) in words {
            disk[at + offset..at + offset + 4].copy_from_slice(&word.to_le_bytes());
        }
    }

    /// A UFS1 with fragments of 1 KiB, 4 to a block. Its groups have 64 and 40 fragments.
    /// Superblocks are at fragment 4, descriptors at 12, inodes from 16 to 20; in the second group,
    /// 4 fragments later. Inode 9 has an indirect block.
    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 104 * K];
        let words = [
            (8, 4u32),
            (12, 12),
            (16, 16),
            (20, 20),
            (24, 4),
            (28, !1),
            (36, 104),
            (44, 2),
            (48, 4096),
            (52, 1024),
            (152, 20),
            (156, 32),
            (160, 512),
            (184, 8),
            (188, 64),
            (1372, UFS1),
        ];
        put(&mut disk, 8 * K, &words);
        for (group, at) in [(0u32, 12), (1, 80)] {
            put(&mut disk, at * K, &[(4, 0x0009_0255), (12, group), (92, 180), (96, 200)]);
            // The last eight of 40 fragments are free, and one before; two inodes are in use.
            disk[at * K + 203..at * K + 205].copy_from_slice(&[0x40, 0xff]);
            disk[at * K + 180] = 0b10_0010;
        }
        let inode = 84 * K + 128;
        put(&mut disk, inode, &[(0, 0o100_644), (8, 13 * 4096 + 1), (104, 99), (40, 24), (44, 28), (88, 36)]);
        put(&mut disk, 36 * K, &[(0, 40)]);
        disk
    }

    fn fragments(ranges: &[Range<DeviceOffset>]) -> Vec<(u64, u64)> {
        ranges.iter().map(|range| (range.start.0 >> 10, range.end.0 >> 10)).collect()
    }

    #[test]
    fn parts_of_a_group_count_from_its_start() {
        let volume = Volume::of(&reader(&disk())).unwrap();
        let of = |group| {
            let Parts { superblock, descriptor, inodes } = volume.parts(group).unwrap();
            fragments(&[superblock, descriptor, inodes])
        };
        assert_eq!(of(0), [(4, 12), (12, 16), (16, 20)]);
        assert_eq!(of(1), [(72, 80), (80, 84), (84, 88)]);
        let summary = volume.summary().unwrap();
        assert_eq!(fragments(&[volume.boot_blocks(), summary]), [(0, 4), (20, 21)]);
        let group = volume.group(&reader(&disk()), 1).unwrap();
        assert_eq!(fragments(&group.free), [(94, 95), (96, 104)]);
        assert_eq!(group.inodes, [9, 13]);
    }

    #[test]
    fn large_files_have_whole_blocks() {
        let disk = disk();
        let volume = Volume::of(&reader(&disk)).unwrap();
        assert_eq!([5000, 12 * 4096, 12 * 4096 + 1].map(|size| volume.allocated(size)), [5120, 49152, 53248]);
        let inode = volume.inode(&reader(&disk), 9).unwrap();
        let place = volume.place(&reader(&disk), &inode).unwrap();
        let parts = place.data.iter().map(|part| (part.offset >> 10, part.range));
        let parts: Vec<_> = parts.map(|(offset, range)| (offset, fragments(&[range])[0])).collect();
        assert_eq!(parts, [(0, (24, 32)), (48, (40, 44))]);
        assert_eq!(fragments(&place.indirect), [(36, 40)]);
        // Nothing is in the inode of the same number of the first group.
        let inode = volume.inode(&reader(&disk), 1).unwrap();
        assert_eq!(volume.place(&reader(&disk), &inode), Some(Place::default()));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let group = |at: usize| {
            let mut disk = disk();
            disk[80 * K + at] ^= 0x7e;
            Volume::of(&reader(&disk)).unwrap().group(&reader(&disk), 1)
        };
        // The magic number, the number of the group, the places of the bitmaps.
        assert!([4, 12, 93, 97].into_iter().all(|at| group(at).is_none()));
        // A fragment of another size, too many fragments, none in a group, parts in another order.
        for (at, byte) in [(52, 1), (38, 1), (188, 0), (9, 1)] {
            let mut disk = disk();
            disk[8192 + at] = byte;
            assert!(Volume::of(&reader(&disk)).is_none(), "{at}");
        }
        // A block behind the end, and an indirect block that leads there.
        for at in [84 * K + 128 + 40, 36 * K] {
            let mut disk = disk();
            disk[at + 2] = 1;
            let volume = Volume::of(&reader(&disk)).unwrap();
            let inode = volume.inode(&reader(&disk), 9).unwrap();
            assert_eq!(volume.place(&reader(&disk), &inode), None, "{at}");
        }
        assert!(Volume::of(&reader(&disk()[..9000])).is_none());
        // Two indirect blocks that are one.
        let mut disk = disk();
        put(&mut disk, 84 * K + 128, &[(8, 2000 * 4096), (92, 36)]);
        let volume = Volume::of(&reader(&disk)).unwrap();
        let inode = volume.inode(&reader(&disk), 9).unwrap();
        assert_eq!(volume.place(&reader(&disk), &inode), None);
    }
}
