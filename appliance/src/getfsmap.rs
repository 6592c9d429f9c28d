//! The purpose of each part of a filesystem's device: the GETFSMAP ioctl
//! (`ioctl_getfsmap(2)`, `linux/fsmap.h`). ext4 and XFS have it.

use crate::fiemap::is_supported;
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use std::collections::BTreeMap;
use virt_bmap_agent_protocol::record::BlockPurpose;

/// Number of records in one call.
const COUNT: usize = 1024;

/// Most records. A filesystem with more is not examined.
const MOST: usize = 1 << 23;

/// `FMR_OF_ATTR_FORK`, `FMR_OF_EXTENT_MAP`, `FMR_OF_SPECIAL_OWNER`, `FMR_OF_LAST`.
const ATTRIBUTES: u32 = 0x2;
const EXTENT_MAP: u32 = 0x4;
const SPECIAL: u32 = 0x10;
const LAST: u32 = 0x20;

/// `FMH_OF_DEV_T`: the records' devices are device numbers.
const DEVICE_NUMBERS: u32 = 0x1;

/// `struct fsmap`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Fsmap {
    device: u32,
    flags: u32,
    physical: u64,
    owner: u64,
    offset: u64,
    length: u64,
    reserved: [u64; 3],
}

/// `struct fsmap_head`, without its records.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Head {
    iflags: u32,
    oflags: u32,
    count: u32,
    entries: u32,
    reserved: [u64; 6],
    keys: [Fsmap; 2],
}

#[repr(C)]
struct Request {
    head: Head,
    records: [Fsmap; COUNT],
}

/// Parts of a device (start and length in bytes) by their purpose.
pub(crate) type Spaces = BTreeMap<BlockPurpose, Vec<(u64, u64)>>;

/// Adds a part, and joins it with the last one if they touch.
pub(crate) fn push(spaces: &mut Spaces, purpose: BlockPurpose, start: u64, length: u64) {
    let pieces = spaces.entry(purpose).or_default();
    match pieces.last_mut() {
        Some((before, so_far)) if before.checked_add(*so_far) == Some(start) => {
            *so_far = so_far.saturating_add(length);
        }
        _ => pieces.push((start, length)),
    }
}

/// The parts of the filesystem of an open file that lie on `device`; `None` if the filesystem does
/// not report them, or reports too many.
///
/// # Errors
/// The error of the ioctl, except "not supported".
pub(crate) fn spaces(file: impl AsFd, device: u64) -> Result<Option<Spaces>, Errno> {
    /// `FS_IOC_GETFSMAP`; the number has the size of the head alone.
    const OPCODE: Opcode = opcode::read_write::<Head>(b'X', 59);
    let everything = Fsmap {
        device: u32::MAX,
        flags: u32::MAX,
        physical: u64::MAX,
        owner: u64::MAX,
        offset: u64::MAX,
        ..Fsmap::default()
    };
    let mut spaces = Spaces::new();
    let mut total = 0;
    let mut from = Fsmap::default();
    loop {
        let head = Head { count: COUNT as u32, keys: [from, everything], ..Head::default() };
        let mut request = Box::new(Request { head, records: [Fsmap::default(); COUNT] });
        #[allow(unsafe_code)]
        // SAFETY: `Request` is laid out as `struct fsmap_head` followed by `count` elements of
        // `struct fsmap`, which is what the kernel fills in, and it outlives the call.
        let result = unsafe { ioctl(file.as_fd(), Updater::<OPCODE, Request>::new(&mut request)) };
        if !is_supported(result)? {
            return Ok(None);
        }
        let entries = (request.head.entries as usize).min(COUNT);
        let has_numbers = request.head.oflags & DEVICE_NUMBERS != 0;
        for record in &request.records[..entries] {
            // An external log or realtime device is another device.
            if !has_numbers || u64::from(record.device) == device {
                push(&mut spaces, purpose(record), record.physical, record.length);
            }
        }
        total += entries;
        match request.records[..entries].last() {
            Some(last) if last.flags & LAST == 0 && total <= MOST => from = *last,
            Some(_) if total > MOST => return Ok(None),
            _ => return Ok(Some(spaces)),
        }
    }
}

/// `FMR_OWN_*` of `linux/fsmap.h`, `XFS_FMR_OWN_*` of `xfs_fs.h`, `EXT4_FMR_OWN_*` of
/// `fs/ext4/fsmap.h`.
fn purpose(record: &Fsmap) -> BlockPurpose {
    if record.flags & SPECIAL == 0 {
        return match record.flags {
            flags if flags & EXTENT_MAP != 0 => BlockPurpose::ExtentMaps,
            flags if flags & ATTRIBUTES != 0 => BlockPurpose::Attributes,
            _ => BlockPurpose::Unknown,
        };
    }
    const X: u64 = (b'X' as u64) << 32;
    const F: u64 = (b'f' as u64) << 32;
    const PURPOSES: [(u64, BlockPurpose); 14] = [
        (1, BlockPurpose::Free),
        (3, BlockPurpose::Metadata),
        (X | 1, BlockPurpose::Superblocks),
        (X | 2, BlockPurpose::Log),
        (X | 3, BlockPurpose::FreeSpaceTrees),
        (X | 4, BlockPurpose::InodeTrees),
        (X | 5, BlockPurpose::Inodes),
        (X | 6, BlockPurpose::ReferenceCounts),
        (X | 7, BlockPurpose::Staging),
        (X | 8, BlockPurpose::Defective),
        (F | 1, BlockPurpose::GroupDescriptors),
        (F | 2, BlockPurpose::ReservedDescriptors),
        (F | 3, BlockPurpose::BlockBitmaps),
        (F | 4, BlockPurpose::InodeBitmaps),
    ];
    let known = PURPOSES.iter().find(|(code, _)| *code == record.owner);
    known.map_or(BlockPurpose::Unknown, |(_, purpose)| *purpose)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_as_large_as_the_kernels() {
        assert_eq!((size_of::<Fsmap>(), size_of::<Head>()), (64, 192));
    }

    #[test]
    fn codes_become_purposes() {
        let of = |flags, owner| self::purpose(&Fsmap { flags, owner, ..Fsmap::default() });
        assert_eq!(of(SPECIAL, 1), BlockPurpose::Free);
        assert_eq!(of(SPECIAL, 2), BlockPurpose::Unknown);
        assert_eq!(of(SPECIAL, 0x66_0000_0004), BlockPurpose::InodeBitmaps);
        assert_eq!(of(SPECIAL, 0x58_0000_0002), BlockPurpose::Log);
        assert_eq!(of(0, 1), BlockPurpose::Unknown);
        assert_eq!(of(ATTRIBUTES, 130), BlockPurpose::Attributes);
        assert_eq!(of(ATTRIBUTES | EXTENT_MAP, 130), BlockPurpose::ExtentMaps);
    }
}
