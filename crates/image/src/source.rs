//! The trait of disks that can be read.

use std::io;
use virt_bmap_ranges::{DiskOffset, DiskRange};

/// Unit in which a guest addresses its disk, in bytes.
pub(super) const SECTOR: u64 = 512;

/// Splits a read of `buf` at `offset` into what a file of `file_size` bytes has and what lies
/// between its end and the next sector's, and fills the latter with zeroes.
pub(super) fn within_file(buf: &mut [u8], offset: DiskOffset, file_size: u64) -> io::Result<&mut [u8]> {
    let disk_size = file_size.next_multiple_of(SECTOR);
    let end = offset.0.checked_add(buf.len() as u64).filter(|end| *end <= disk_size);
    let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
    let past_end = end.saturating_sub(file_size).min(buf.len() as u64) as usize;
    let (inside, past) = buf.split_at_mut(buf.len() - past_end);
    past.fill(0);
    Ok(inside)
}

/// The bytes of one guest disk, as the guest sees them.
///
/// All methods take `&self` and may be called from many threads at once. Offsets are checked by the
/// caller: a read past [`size`](Self::size) is an error of kind
/// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof).
pub trait Source: Send + Sync + 'static {
    /// Size in bytes; a multiple of 512.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset` if that needs no waiting, and returns whether it did. What is in
    /// `buf` after `false` or an error means nothing.
    ///
    /// # Errors
    /// As for [`read_at`](Self::read_at).
    fn try_read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<bool> {
        let _ = (buf, offset);
        Ok(false)
    }

    /// Fills `buf` from `offset`; may block.
    ///
    /// # Errors
    /// The system's error.
    fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<()>;

    /// Which parts of `range` hold data and which are known to read as zeroes: a partition of
    /// `range`, ascending. May block.
    ///
    /// # Errors
    /// The system's error.
    fn allocation(&self, range: DiskRange) -> io::Result<Vec<Allocation>> {
        Ok(vec![Allocation { range, is_hole: false }])
    }
}

/// What [`Source::allocation`] knows of one range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The range.
    pub range: DiskRange,
    /// Whether they are a hole: not allocated, and read as zeroes.
    pub is_hole: bool,
}
