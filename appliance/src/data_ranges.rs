//! The ranges of a file that can hold data, so that holes are not read.

use rustix::fd::OwnedFd;
use rustix::fs::{SeekFrom, Statx, seek};
use rustix::io::Errno;
use virt_bmap_agent_protocol::record::Extent;

/// Half-open range of a file, in bytes.
pub(crate) struct DataRange {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// The ranges of a file that can hold data, from its extents or else by seeking.
pub(crate) fn data_ranges(fd: &OwnedFd, stat: &Statx, extents: Option<&[Extent]>) -> Vec<DataRange> {
    let size = stat.stx_size;
    if size == 0 || (stat.stx_blocks == 0 && extents.is_none_or(<[_]>::is_empty)) {
        return Vec::new();
    }
    match extents {
        // Blocks are allocated, but no extent has them. A read of everything finds them.
        Some([]) => vec![DataRange { start: 0, end: size }],
        Some(extents) => of_extents(extents, size),
        None => seek_data_ranges(fd, size),
    }
}

/// The same for a file of `size` bytes whose extents are known.
pub(crate) fn of_extents(extents: &[Extent], size: u64) -> Vec<DataRange> {
    let mut data_ranges: Vec<DataRange> = Vec::new();
    for extent in extents.iter().filter(|e| e.flags & Extent::UNWRITTEN == 0) {
        let (start, end) = (extent.logical, size.min(extent.logical.saturating_add(extent.length)));
        match data_ranges.last_mut() {
            Some(last) if last.end == start => last.end = end.max(start),
            _ if start < end => data_ranges.push(DataRange { start, end }),
            _ => {}
        }
    }
    data_ranges
}

/// The data of a file by `SEEK_DATA` and `SEEK_HOLE`; the whole file if these fail.
fn seek_data_ranges(fd: &OwnedFd, size: u64) -> Vec<DataRange> {
    let mut data_ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(fd, SeekFrom::Data(at)) {
            Ok(start) if start >= at => start,
            Err(Errno::NXIO) => break,
            _ => return vec![DataRange { start: 0, end: size }],
        };
        let end = match seek(fd, SeekFrom::Hole(start)) {
            Ok(end) if end > start => end.min(size),
            _ => return vec![DataRange { start: 0, end: size }],
        };
        if start < end {
            data_ranges.push(DataRange { start, end });
        }
        at = end;
    }
    data_ranges
}
