//! Where the blocks of an inode lie: by a tree of extents, or by blocks with numbers of blocks
//! ("The Contents of inode.i_block" in `Documentation/filesystems/ext4` of the kernel).

use super::{Filesystem, POINTERS, POINTERS_LENGTH, le48};
use crate::inode::{self, Part};
use crate::{Fields, Read};
use std::collections::HashSet;
use virt_bmap_ranges::{DeviceOffset, Range};

/// Flags of inodes: `EXT4_EXTENTS_FL`, `EXT4_INLINE_DATA_FL`.
const EXTENTS: u32 = 0x8_0000;
const INLINE_DATA: u32 = 0x1000_0000;

/// Blocks to which an inode points directly. Three more pointers lead there by one, two and three
/// blocks with numbers of blocks.
pub(super) const DIRECT: usize = 12;

/// The magic number of a node of a tree of extents, the bytes of its header and of its entries, and
/// the depth of the largest tree.
pub(super) const NODE: u16 = 0xf30a;
pub(super) const ENTRY: usize = 12;
const DEEPEST: u16 = 5;
/// Extents with more blocks are unwritten; so many blocks are subtracted (`EXT_INIT_MAX_LEN`).
const LONGEST: u16 = 0x8000;

/// Most parts of a file, and blocks of its tree.
const MOST: usize = 1 << 22;

/// Where a file lies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its data, in the order of the file, without holes.
    pub data: Vec<Part>,
    /// The nodes of its tree of extents, or the blocks with numbers of blocks.
    pub tree: Vec<Range<DeviceOffset>>,
    /// The block of its extended attributes.
    pub attributes: Option<Range<DeviceOffset>>,
}

impl Place {
    /// All that belongs to the file.
    pub fn ranges(&self) -> impl Iterator<Item = Range<DeviceOffset>> + '_ {
        let data = self.data.iter().map(|part| part.range);
        data.chain(self.tree.iter().copied()).chain(self.attributes)
    }
}

impl Filesystem {
    /// Where the blocks of an inode lie; `None` if they cannot be read, or contradict each other.
    pub fn place(&self, read: Read<'_>, inode: u64) -> Option<Place> {
        self.place_of(read, &self.inode(read, inode)?)
    }

    /// The same for the bytes of an inode.
    pub(super) fn place_of(&self, read: Read<'_>, inode: &[u8]) -> Option<Place> {
        let attributes = le48(inode, 0x68, 0x76)?;
        let attributes = if attributes > 0 { Some(self.range(attributes, 1)?) } else { None };
        let mut blocks = Blocks {
            filesystem: self,
            read,
            place: Place { attributes, ..Place::default() },
            seen: HashSet::new(),
        };
        let flags = inode.le32(0x20)?;
        let pointers = inode.get(POINTERS..POINTERS + POINTERS_LENGTH)?;
        if has_blocks(inode)? && flags & INLINE_DATA == 0 {
            if flags & EXTENTS != 0 {
                blocks.node(pointers, None)?;
            } else {
                blocks.pointers(pointers)?;
            }
        }
        Some(blocks.place)
    }

    /// Blocks of the filesystem, by the number of the first one.
    pub(super) fn range(&self, first: u64, count: u64) -> Option<Range<DeviceOffset>> {
        let start = DeviceOffset(first.checked_mul(self.block)?);
        let range = Range::at(start, count.checked_mul(self.block)?)?;
        (first > 0 && range.end.0 <= self.size).then_some(range)
    }
}

/// An entry of a leaf of a tree of extents, in blocks.
pub(super) struct ExtentEntry {
    /// Its first block in the file.
    pub(super) logical: u64,
    /// Its first block in the filesystem.
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) is_unwritten: bool,
}

impl ExtentEntry {
    pub(super) fn of(entry: &[u8]) -> Option<Self> {
        let length = entry.le16(4)?;
        let is_unwritten = length > LONGEST;
        let count = if is_unwritten { length - LONGEST } else { length };
        let (logical, first) = (entry.le32(0)?.into(), le48(entry, 8, 6)?);
        Some(Self { logical, first, count: count.into(), is_unwritten })
    }
}

/// Whether the inode has blocks, not the number of a device or a short symbolic link.
fn has_blocks(inode: &[u8]) -> Option<bool> {
    const DIRECTORY: u16 = 4;
    const FILE: u16 = 8;
    const SYMLINK: u16 = 10;
    Some(match inode.le16(0)? >> 12 {
        // Inode 1, of bad blocks, has no type.
        0 | DIRECTORY | FILE => true,
        // As e2fsprogs tells them apart (`ext2fs_is_fast_symlink`).
        SYMLINK => inode.le32(4)? as usize >= POINTERS_LENGTH,
        _ => false,
    })
}

/// The blocks of an inode that have been found so far.
struct Blocks<'a> {
    filesystem: &'a Filesystem,
    read: Read<'a>,
    place: Place,
    /// Blocks of the tree: one that leads to itself would be followed without end.
    seen: HashSet<u64>,
}

impl Blocks<'_> {
    /// Adds what a node of a tree of extents leads to. `depth` is what the node above it says.
    fn node(&mut self, node: &[u8], depth: Option<u16>) -> Option<()> {
        let (magic, count, of_node) = (node.le16(0)?, node.le16(2)?, node.le16(6)?);
        if magic != NODE || of_node > DEEPEST || depth.is_some_and(|depth| depth != of_node) {
            return None;
        }
        for entry in node.get(ENTRY..)?.get(..usize::from(count) * ENTRY)?.chunks_exact(ENTRY) {
            match of_node.checked_sub(1) {
                Some(below) => {
                    let node = self.tree_block(le48(entry, 4, 8)?)?;
                    self.node(&node, Some(below))?;
                }
                None => {
                    let ExtentEntry { logical, first, count, is_unwritten } = ExtentEntry::of(entry)?;
                    self.data(logical, first, count, is_unwritten)?;
                }
            }
        }
        Some(())
    }

    /// Adds the blocks to which an inode points.
    fn pointers(&mut self, pointers: &[u8]) -> Option<()> {
        let mut logical = 0;
        for (index, pointer) in pointers.chunks_exact(4).enumerate() {
            let levels = (index + 1).saturating_sub(DIRECT);
            self.pointer(pointer.le32(0)?.into(), levels as u32, &mut logical)?;
        }
        Some(())
    }

    /// Adds what a number of a block leads to, by so many levels of blocks with numbers. `logical`
    /// is the block of the file.
    fn pointer(&mut self, number: u64, levels: u32, logical: &mut u64) -> Option<()> {
        let below = levels.checked_sub(1);
        match (number, below) {
            (0, _) => *logical += (self.filesystem.block / 4).pow(levels),
            (_, None) => {
                self.data(*logical, number, 1, false)?;
                *logical += 1;
            }
            (_, Some(below)) => {
                for number in self.tree_block(number)?.chunks_exact(4) {
                    self.pointer(number.le32(0)?.into(), below, logical)?;
                }
            }
        }
        Some(())
    }

    /// Notes a block of the tree, and reads it.
    fn tree_block(&mut self, number: u64) -> Option<Vec<u8>> {
        let range = self.filesystem.range(number, 1)?;
        self.place.tree.push(range);
        let is_new = self.seen.insert(number) && self.seen.len() <= MOST;
        is_new.then(|| (self.read)(range.start.0, range.len()))?
    }

    /// Adds blocks of data.
    fn data(&mut self, logical: u64, first: u64, count: u64, is_unwritten: bool) -> Option<()> {
        let range = self.filesystem.range(first, count).filter(|range| !range.is_empty())?;
        let offset = logical.checked_mul(self.filesystem.block)?;
        inode::push(&mut self.place.data, Part { offset, range, is_unwritten })?;
        (self.place.data.len() <= MOST).then_some(())
    }
}
