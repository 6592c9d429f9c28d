//! Which parts of a file there is any use in reading.

use rustix::fd::OwnedFd;
use rustix::fs::{SeekFrom, Stat, seek};
use rustix::io::Errno;
use virt_bmap_agent_protocol::record::Extent;

/// Half-open range of a file, in bytes.
pub(crate) struct Piece {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// Which parts of a file can hold blocks, so that holes are not read.
pub(crate) fn pieces(fd: &OwnedFd, stat: &Stat, extents: Option<&[Extent]>) -> Vec<Piece> {
    let size = stat.st_size as u64;
    if size == 0 || (stat.st_blocks == 0 && extents.is_none_or(<[_]>::is_empty)) {
        return Vec::new();
    }
    match extents {
        // Nothing mapped, yet blocks are allocated: let the read tell.
        Some([]) => vec![Piece { start: 0, end: size }],
        Some(extents) => {
            let mut pieces: Vec<Piece> = Vec::new();
            for extent in extents.iter().filter(|e| e.flags & Extent::UNWRITTEN == 0) {
                let (start, end) = (extent.logical, size.min(extent.logical.saturating_add(extent.length)));
                match pieces.last_mut() {
                    Some(last) if last.end == start => last.end = end.max(start),
                    _ if start < end => pieces.push(Piece { start, end }),
                    _ => {}
                }
            }
            pieces
        }
        None => data_pieces(fd, size),
    }
}

/// The data of a file by `SEEK_DATA` and `SEEK_HOLE`; all of it where those are of no use.
fn data_pieces(fd: &OwnedFd, size: u64) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(fd, SeekFrom::Data(at)) {
            Ok(start) if start >= at => start,
            Err(Errno::NXIO) => break,
            _ => return vec![Piece { start: 0, end: size }],
        };
        let end = match seek(fd, SeekFrom::Hole(start)) {
            Ok(end) if end > start => end.min(size),
            _ => return vec![Piece { start: 0, end: size }],
        };
        if start < end {
            pieces.push(Piece { start, end });
        }
        at = end;
    }
    pieces
}
