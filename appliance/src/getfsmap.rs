//! What each part of a filesystem's device is for, as the filesystem itself says: the GETFSMAP ioctl
//! (`ioctl_getfsmap(2)`, `linux/fsmap.h`). ext4 and XFS have it.

use crate::fiemap::is_supported;
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use std::collections::BTreeMap;
use virt_bmap_agent_protocol::record::Owner;

/// Records asked for at a time.
const COUNT: usize = 1024;

/// A filesystem in more pieces than this is left alone.
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

/// Pieces of a device, start and length in bytes, by what they are for.
pub(crate) type Spaces = BTreeMap<Owner, Vec<(u64, u64)>>;

/// Adds a piece, to the last one where it begins at its end.
pub(crate) fn push(spaces: &mut Spaces, owner: Owner, start: u64, length: u64) {
    let pieces = spaces.entry(owner).or_default();
    match pieces.last_mut() {
        Some((before, so_far)) if before.checked_add(*so_far) == Some(start) => {
            *so_far = so_far.saturating_add(length);
        }
        _ => pieces.push((start, length)),
    }
}

/// The pieces of the filesystem of an open file, as far as they lie on `device`; `None` where it does not
/// say, or says too much.
///
/// # Errors
/// What the ioctl says, but for "not supported".
pub(crate) fn spaces(file: impl AsFd, device: u64) -> Result<Option<Spaces>, Errno> {
    /// `FS_IOC_GETFSMAP`; the number counts the head alone.
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
            // A log or realtime device of its own is another device.
            if !has_numbers || u64::from(record.device) == device {
                push(&mut spaces, owner(record), record.physical, record.length);
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

/// `FMR_OWN_*` of `linux/fsmap.h`, `XFS_FMR_OWN_*` of `xfs_fs.h`, `EXT4_FMR_OWN_*` of `fs/ext4/fsmap.h`.
fn owner(record: &Fsmap) -> Owner {
    if record.flags & SPECIAL == 0 {
        return match record.flags {
            flags if flags & EXTENT_MAP != 0 => Owner::ExtentMaps,
            flags if flags & ATTRIBUTES != 0 => Owner::Attributes,
            _ => Owner::Unknown,
        };
    }
    const X: u64 = (b'X' as u64) << 32;
    const F: u64 = (b'f' as u64) << 32;
    const OWNERS: [(u64, Owner); 14] = [
        (1, Owner::Free),
        (3, Owner::Metadata),
        (X | 1, Owner::Superblocks),
        (X | 2, Owner::Log),
        (X | 3, Owner::FreeSpaceTrees),
        (X | 4, Owner::InodeTrees),
        (X | 5, Owner::Inodes),
        (X | 6, Owner::ReferenceCounts),
        (X | 7, Owner::Staging),
        (X | 8, Owner::Defective),
        (F | 1, Owner::GroupDescriptors),
        (F | 2, Owner::ReservedDescriptors),
        (F | 3, Owner::BlockBitmaps),
        (F | 4, Owner::InodeBitmaps),
    ];
    let known = OWNERS.iter().find(|(code, _)| *code == record.owner);
    known.map_or(Owner::Unknown, |(_, owner)| *owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_as_large_as_the_kernels() {
        assert_eq!((size_of::<Fsmap>(), size_of::<Head>()), (64, 192));
    }

    #[test]
    fn owners_are_told_apart() {
        let of = |flags, owner| self::owner(&Fsmap { flags, owner, ..Fsmap::default() });
        assert_eq!(of(SPECIAL, 1), Owner::Free);
        assert_eq!(of(SPECIAL, 2), Owner::Unknown);
        assert_eq!(of(SPECIAL, 0x66_0000_0004), Owner::InodeBitmaps);
        assert_eq!(of(SPECIAL, 0x58_0000_0002), Owner::Log);
        assert_eq!(of(0, 1), Owner::Unknown);
        assert_eq!(of(ATTRIBUTES, 130), Owner::Attributes);
        assert_eq!(of(ATTRIBUTES | EXTENT_MAP, 130), Owner::ExtentMaps);
    }
}
