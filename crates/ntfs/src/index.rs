//! The entries of a directory: its index `$I30`, in the record (`INDEX_ROOT` of `layout.h`) and in
//! blocks (`INDEX_BLOCK`). All blocks in use are read, one after the other; the tree is not
//! followed, so that it cannot have loops.

use crate::attribute::AttributeType;
use crate::fields::Fields as _;
use crate::file::{Content, File};
use crate::name::Name;
use crate::record::{Problem, Reference};
use crate::volume::Volume;
use crate::{ReadAt, fixup};

/// Name of the index of file names.
const I30: &[u8] = b"$I30";

/// Largest index block in bytes.
const LARGEST_BLOCK: u64 = 64 << 10;

/// Largest bitmap of index blocks: 16 million blocks.
const LARGEST_BITMAP: u64 = 2 << 20;

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The file.
    pub file: Reference,
    /// Its name here.
    pub name: Name,
}

impl<R: ReadAt> Volume<R> {
    /// Calls `found` with each entry of a directory, in the order on the disk.
    ///
    /// # Errors
    /// [`Problem::Index`] if a part of the index is damaged. The other entries have been given.
    pub fn entries(&self, directory: &File, mut found: impl FnMut(IndexEntry)) -> Result<(), Problem> {
        let root = directory.named(AttributeType::INDEX_ROOT, I30).map(|stream| &stream.content);
        let Some(Content::Resident(root)) = root else { return Err(Problem::Index) };
        let size = u64::from(root.le32(8).ok_or(Problem::Index)?);
        let is_block = size.is_power_of_two() && (512..=LARGEST_BLOCK).contains(&size);
        let mut result = entries(root.get(16..).unwrap_or_default(), &mut found).ok_or(Problem::Index);
        let Some(allocation) = directory.named(AttributeType::INDEX_ALLOCATION, I30) else { return result };
        if !is_block {
            return Err(Problem::Index);
        }
        let bitmap = directory.named(AttributeType::BITMAP, I30);
        let bitmap =
            bitmap.and_then(|bitmap| self.small_content(bitmap, LARGEST_BITMAP)).ok_or(Problem::Index)?;
        let blocks = allocation.initialized / size;
        let is_used = |number: &u64| {
            bitmap.get((number / 8) as usize).is_some_and(|byte| byte >> (number % 8) & 1 == 1)
        };
        for number in (0..blocks.min(bitmap.len() as u64 * 8)).filter(is_used) {
            let mut block = vec![0; size as usize];
            let is_sound = self.read_runs(allocation.runs(), number * size, &mut block).is_some()
                && block.starts_with(b"INDX")
                && fixup::undo(&mut block).is_some()
                && entries(block.get(24..).unwrap_or_default(), &mut found).is_some();
            if !is_sound {
                result = Err(Problem::Index);
            }
        }
        result
    }
}

/// The entries after an index header (`INDEX_HEADER`), with which `bytes` begins.
fn entries(bytes: &[u8], found: &mut impl FnMut(IndexEntry)) -> Option<()> {
    const IS_END: u16 = 2;
    let (start, end) = (bytes.le32(0)?, bytes.le32(4)?);
    let mut rest = bytes.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)?;
    loop {
        let length = usize::from(rest.le16(8)?);
        let entry = rest.get(..length).filter(|_| length >= 16)?;
        if entry.le16(12)? & IS_END != 0 {
            return Some(());
        }
        let key = entry.get(16..)?.get(..usize::from(entry.le16(10)?))?;
        found(IndexEntry { file: entry.le64(0)?.into(), name: Name::of(key)? });
        rest = &rest[length..];
    }
}
