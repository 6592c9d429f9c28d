//! The FIEMAP ioctl (`Documentation/filesystems/fiemap.rst`, `linux/fiemap.h`).

use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::ioctl::{Updater, ioctl, opcode};
use virt_bmap_agent::record::Extent;

/// Extents asked for at a time.
const COUNT: usize = 128;

/// A file with more extents than this is read whole, and its extents are not kept.
const MOST: usize = 1 << 20;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Header {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

#[repr(C)]
struct Request {
    header: Header,
    extents: [RawExtent; COUNT],
}

/// All extents of an open file or directory, in order; `None` where the file system has no FIEMAP, or
/// the list is too long or makes no sense.
///
/// # Errors
/// What the ioctl says, but for "not supported".
pub(crate) fn extents(file: impl AsFd) -> Result<Option<Vec<Extent>>, Errno> {
    /// `FS_IOC_FIEMAP`; the number counts the header alone.
    const OPCODE: rustix::ioctl::Opcode = opcode::read_write::<Header>(b'f', 11);
    let mut extents: Vec<Extent> = Vec::new();
    let mut start = 0;
    loop {
        let header =
            Header { start, length: u64::MAX - start, extent_count: COUNT as u32, ..Header::default() };
        let mut request = Request { header, extents: [RawExtent::default(); COUNT] };
        #[allow(unsafe_code)]
        // SAFETY: `Request` is laid out as `struct fiemap` followed by `extent_count` elements of
        // `struct fiemap_extent`, which is what the kernel fills in, and it outlives the call.
        let result = unsafe { ioctl(file.as_fd(), Updater::<OPCODE, Request>::new(&mut request)) };
        match result {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::NOSYS) => return Ok(None),
            Err(error) => return Err(error),
        }
        let mapped = (request.header.mapped_extents as usize).min(COUNT);
        for raw in &request.extents[..mapped] {
            let end = raw.logical.checked_add(raw.length);
            let (Some(end), true) = (end, raw.logical >= start && raw.length > 0) else {
                return Ok(None);
            };
            start = end;
            extents.push(Extent {
                logical: raw.logical,
                physical: raw.physical,
                length: raw.length,
                flags: raw.flags,
            });
        }
        let last = extents.last().is_none_or(|e| e.flags & Extent::LAST != 0);
        if mapped == 0 || last {
            return Ok(Some(extents));
        }
        if extents.len() > MOST {
            return Ok(None);
        }
    }
}
