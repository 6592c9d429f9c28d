//! What an inode says of a file or a symbolic link, in terms that several filesystems share.

use virt_bmap_ranges::{DeviceOffset, Range};

/// A file or symbolic link, by its inode alone: its blocks are all named there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Its type and permissions, as `stat(2)` gives them.
    pub mode: u32,
    /// User and group that it belongs to.
    pub owner: (u32, u32),
    /// Its names.
    pub links: u32,
    /// Its length in bytes.
    pub size: u64,
    /// Bytes of its blocks.
    pub allocated: u64,
    /// When its data was changed, in nanoseconds since 1970.
    pub modified: i64,
    /// When it was changed itself, in nanoseconds since 1970.
    pub changed: i64,
    /// When it was made, in nanoseconds since 1970, if the inode has that. 0 if the program that
    /// made it has not set it.
    pub born: Option<i64>,
    /// Which of the files that have had this number it is. A handle of the file has it, too
    /// (`name_to_handle_at(2)`).
    pub generation: u32,
    /// Its data, in the order of the file, without holes. No two parts overlap in the file.
    pub data: Vec<Part>,
}

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its offset in the file, in bytes.
    pub offset: u64,
    /// Where it lies.
    pub range: Range<DeviceOffset>,
    /// Whether it is reserved only: it reads as zeroes.
    pub is_unwritten: bool,
}

/// Where an inode lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InodePlace {
    /// Its first byte.
    pub at: DeviceOffset,
    /// A part of the device with nothing but inodes, which has this one.
    pub table: Range<DeviceOffset>,
}

/// Adds a part of a file; parts that touch are joined. `None` if it does not come after the others.
pub(crate) fn push(data: &mut Vec<Part>, part: Part) -> Option<()> {
    match data.last_mut() {
        Some(last) if part.offset < last.offset.checked_add(last.range.len())? => return None,
        Some(last)
            if (last.range.end, last.offset + last.range.len(), last.is_unwritten)
                == (part.range.start, part.offset, part.is_unwritten) =>
        {
            last.range.end = part.range.end;
        }
        _ => data.push(part),
    }
    Some(())
}

/// A time in nanoseconds, as [`Inode`] has it. Where it does not fit, it is the earliest or the
/// latest one that does.
pub fn nanoseconds(seconds: i64, nanoseconds: u32) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds.into())
}

/// The bytes of all parts.
pub(crate) fn bytes(data: &[Part]) -> u64 {
    data.iter().map(|part| part.range.len()).fold(0, u64::saturating_add)
}
