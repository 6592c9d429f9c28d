//! The blocks of a directory of XFS: the GETBMAPX ioctl (`ioctl_xfs_getbmapx(2)`,
//! `fs/xfs/libxfs/xfs_fs.h`), since the driver has FIEMAP for files only.

use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use virt_bmap_agent_protocol::record::Extent;

/// Units of offsets and lengths (`BBSIZE`).
const UNIT: u64 = 512;

/// Number of extents in one call.
const COUNT: usize = 64;

/// Most extents of a directory.
const MOST: usize = 1 << 20;

/// The part of a directory that is asked for, in units. Its indexes begin at 32 GiB and at 64 GiB
/// (`XFS_DIR2_LEAF_OFFSET`, `XFS_DIR2_FREE_OFFSET`), far behind its size.
const LENGTH: i64 = 1 << 40;

/// `BMV_IF_ATTRFORK`: the extents of the extended attributes. `BMV_IF_NO_HOLES`.
const ATTRIBUTES: i32 = 0x1;
const NO_HOLES: i32 = 0x10;

/// `struct getbmap`, whose size is in the number of the ioctl.
#[repr(C)]
struct Getbmap([i64; 4]);

/// `struct getbmapx`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Getbmapx {
    offset: i64,
    block: i64,
    length: i64,
    count: i32,
    entries: i32,
    iflags: i32,
    oflags: i32,
    unused: [i32; 2],
}

/// The head of the request, and the extents.
#[repr(C)]
struct Request([Getbmapx; COUNT + 1]);

/// All extents of an open directory, with its indexes; `None` if there are too many.
///
/// # Errors
/// The error of the ioctl.
pub(crate) fn extents(directory: impl AsFd) -> Result<Option<Vec<Extent>>, Errno> {
    ask(directory, NO_HOLES)
}

/// The extents of the extended attributes of an open directory.
pub(crate) fn attributes(directory: impl AsFd) -> Vec<Extent> {
    // The kernel returns an error if there are none.
    ask(directory, NO_HOLES | ATTRIBUTES).ok().flatten().unwrap_or_default()
}

fn ask(file: impl AsFd, iflags: i32) -> Result<Option<Vec<Extent>>, Errno> {
    /// `XFS_IOC_GETBMAPX`
    const OPCODE: Opcode = opcode::read_write::<Getbmap>(b'X', 56);
    let mut extents = Vec::new();
    let mut offset = 0;
    while extents.len() <= MOST {
        let mut request = Request([Getbmapx::default(); COUNT + 1]);
        let (count, length) = (COUNT as i32 + 1, LENGTH - offset);
        request.0[0] = Getbmapx { offset, length, count, iflags, ..Getbmapx::default() };
        #[allow(unsafe_code)]
        // SAFETY: `Request` is an array of `count` elements of `struct getbmapx`, whose first the
        // kernel reads and whose others it fills in, and it outlives the call.
        unsafe { ioctl(file.as_fd(), Updater::<OPCODE, Request>::new(&mut request)) }?;
        let entries = usize::try_from(request.0[0].entries).unwrap_or(0).min(COUNT);
        for raw in &request.0[1..=entries] {
            let bytes = |units: i64| u64::try_from(units).ok()?.checked_mul(UNIT);
            let end = raw.offset.checked_add(raw.length).filter(|end| raw.offset >= offset && *end > offset);
            let (Some(end), Some(logical), Some(length)) = (end, bytes(raw.offset), bytes(raw.length)) else {
                return Err(Errno::IO);
            };
            offset = end;
            // A hole has no block.
            extents.extend(bytes(raw.block).map(|physical| Extent { logical, physical, length, flags: 0 }));
        }
        if entries < COUNT || offset >= LENGTH {
            return Ok(Some(extents));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_as_large_as_the_kernels() {
        assert_eq!((size_of::<Getbmap>(), size_of::<Getbmapx>()), (32, 48));
    }
}
