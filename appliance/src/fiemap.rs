//! The place of a file on its device: the FIEMAP ioctl (`Documentation/filesystems/fiemap.rst`,
//! `linux/fiemap.h`), and the older FIBMAP, a call for each block, for filesystems that lack it
//! (`linux/fs.h`).

use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use rustix::ioctl::{Getter, Updater, ioctl, opcode};
use virt_bmap_agent_protocol::record::Extent;

/// Number of extents in the first call: most files have no more, and a larger buffer must be
/// cleared for each file.
const FEW: usize = 4;
/// Number of extents in the following calls.
const COUNT: usize = 128;

/// Most extents of a file. A file with more is read whole, and its extents are not kept.
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
struct Request<const ROOM: usize> {
    header: Header,
    extents: [RawExtent; ROOM],
}

/// All extents of an open file or directory, in order; `None` if the filesystem has no FIEMAP, or
/// the list is too long or inconsistent.
///
/// # Errors
/// The error of the ioctl, except "not supported".
pub(crate) fn extents(file: impl AsFd) -> Result<Option<Vec<Extent>>, Errno> {
    fiemap(file, 0)
}

/// The extents of the extended attributes of an open file or directory. ext4 gives their block only
/// if none of them is in the inode.
pub(crate) fn attributes(file: impl AsFd) -> Vec<Extent> {
    /// `FIEMAP_FLAG_XATTR`
    const XATTR: u32 = 0x2;
    // The kernel returns an error if there are none.
    fiemap(file, XATTR).ok().flatten().unwrap_or_default()
}

/// Whether the filesystem supports the call that had this result.
///
/// # Errors
/// Any other error.
pub(crate) fn is_supported(result: Result<(), Errno>) -> Result<bool, Errno> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::NOSYS) => Ok(false),
        Err(error) => Err(error),
    }
}

fn fiemap(file: impl AsFd, flags: u32) -> Result<Option<Vec<Extent>>, Errno> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut answer = ask::<FEW>(file.as_fd(), flags, &mut extents)?;
    while let Answer::More = answer {
        answer = match extents.len() {
            ..=MOST => ask::<COUNT>(file.as_fd(), flags, &mut extents)?,
            _ => Answer::Unknown,
        };
    }
    Ok(matches!(answer, Answer::All).then_some(extents))
}

/// The answer to a request for extents.
enum Answer {
    /// Unknown or inconsistent.
    Unknown,
    /// Extents; there may be more.
    More,
    All,
}

/// Requests the extents after the known ones.
fn ask<const ROOM: usize>(
    file: BorrowedFd<'_>,
    flags: u32,
    extents: &mut Vec<Extent>,
) -> Result<Answer, Errno> {
    /// `FS_IOC_FIEMAP`; the number has the size of the header alone.
    const OPCODE: rustix::ioctl::Opcode = opcode::read_write::<Header>(b'f', 11);
    let mut start = extents.last().map_or(0, |last| last.logical + last.length);
    let header =
        Header { start, length: u64::MAX - start, flags, extent_count: ROOM as u32, ..Header::default() };
    let mut request = Request { header, extents: [RawExtent::default(); ROOM] };
    #[allow(unsafe_code)]
    // SAFETY: `Request` is laid out as `struct fiemap` followed by `extent_count` elements of
    // `struct fiemap_extent`, which is what the kernel fills in, and it outlives the call.
    let result = unsafe { ioctl(file, Updater::<OPCODE, Request<ROOM>>::new(&mut request)) };
    if !is_supported(result)? {
        return Ok(Answer::Unknown);
    }
    let mapped = (request.header.mapped_extents as usize).min(ROOM);
    for raw in &request.extents[..mapped] {
        let end = raw.logical.checked_add(raw.length);
        let (Some(end), true) = (end, raw.logical >= start && raw.length > 0) else {
            return Ok(Answer::Unknown);
        };
        start = end;
        // F2FS gives 0 for blocks that it has reserved for a file and that have no place yet
        // (`f2fs_fiemap` of the kernel). No filesystem has a file's data in its first block.
        let is_nowhere = raw.physical == 0 && raw.flags & Extent::UNWRITTEN != 0;
        extents.push(Extent {
            logical: raw.logical,
            physical: raw.physical,
            length: raw.length,
            flags: raw.flags | if is_nowhere { Extent::UNKNOWN } else { 0 },
        });
    }
    let last = extents.last().is_none_or(|e| e.flags & Extent::LAST != 0);
    Ok(if mapped == 0 || last { Answer::All } else { Answer::More })
}

/// Most blocks of a file for FIBMAP.
pub(crate) const MOST_BLOCKS: u64 = 4096;

/// Most clusters of a file for FIBMAP: 4 GiB in clusters of 32 KiB.
pub(crate) const MOST_CLUSTERS: u64 = 1 << 17;

/// All blocks of a file of `size` bytes; blocks that touch are joined. `None` if the filesystem has
/// no FIBMAP, if the file has more units than `most`, or if the file may have data in places that
/// FIBMAP does not show. FIBMAP gives the same answer for a hole, for a block out of its range and
/// for data in metadata: they are holes if the other blocks add up to the `allocated` bytes.
///
/// A unit is a block, or a `cluster` of this many bytes, whose blocks the filesystem never
/// separates. Of a cluster only the first and the last block of the file are asked for, if they
/// are as far from each other as in the file.
pub(crate) fn blocks(
    file: impl AsFd,
    size: u64,
    allocated: u64,
    cluster: Option<u64>,
    most: u64,
) -> Option<Vec<Extent>> {
    /// `FIBMAP` and `FIGETBSZ` are numbered without a type.
    const FIBMAP: rustix::ioctl::Opcode = opcode::none(0, 1);
    const FIGETBSZ: rustix::ioctl::Opcode = opcode::none(0, 2);
    #[allow(unsafe_code)]
    // SAFETY: FIGETBSZ writes one `int` to where its argument points.
    let block = unsafe { ioctl(file.as_fd(), Getter::<FIGETBSZ, i32>::new()) }.ok()?;
    let block = u64::try_from(block).ok().filter(|block| *block > 0)?;
    let count = size.div_ceil(block);
    let unit = cluster.map_or(1, |cluster| (cluster / block).max(1));
    if count.div_ceil(unit) > most {
        return None;
    }
    let place_of = |number: u64| -> Option<u64> {
        let mut place = i32::try_from(number).ok()?;
        #[allow(unsafe_code)]
        // SAFETY: FIBMAP reads and writes one `int` where its argument points.
        unsafe { ioctl(file.as_fd(), Updater::<FIBMAP, i32>::new(&mut place)) }.ok()?;
        // The kernel's answer is an `int`; a block beyond is reported as 0, like a hole.
        u64::try_from(place).ok()
    };
    let mut extents: Vec<Extent> = Vec::new();
    let mut received = 0;
    let mut put = |number: u64, place: u64, blocks: u64| -> Option<()> {
        let (logical, physical, length) = (number * block, place.checked_mul(block)?, blocks * block);
        received += blocks;
        match extents.last_mut() {
            Some(last)
                if last.logical + last.length == logical && last.physical + last.length == physical =>
            {
                last.length += length;
            }
            _ => extents.push(Extent { logical, physical, length, flags: 0 }),
        }
        Some(())
    };
    let mut first = 0;
    while first < count {
        let end = (first + unit).min(count);
        let place = place_of(first)?;
        let is_together = end == first + 1 || place > 0 && place_of(end - 1)? == place + (end - 1 - first);
        if is_together && place > 0 {
            put(first, place, end - first)?;
        } else if !is_together {
            for number in first..end {
                let place = place_of(number)?;
                if place > 0 {
                    put(number, place, 1)?;
                }
            }
        }
        first = end;
    }
    let is_all = received == count || received > 0 && received * block >= allocated;
    is_all.then_some(extents)
}
