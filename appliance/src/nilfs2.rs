//! Which segments of a nilfs2 are clean, that is, free: the kernel's table of segments
//! (NILFS_IOCTL_GET_SUINFO of `linux/nilfs2_api.h`), and of the superblock how large segments are
//! (`struct nilfs_super_block` of `linux/nilfs2_ondisk.h`).
//!
//! A segment that is not clean counts as used as a whole. It may hold only data that was
//! overwritten since: the filesystem keeps that until its cleaner runs.

use crate::fiemap::is_supported;
use crate::getfsmap::{Spaces, push};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Updater, ioctl, opcode};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use virt_bmap_agent_protocol::record::BlockPurpose;

/// Magic number of its superblock.
const MAGIC: u64 = 0x3434;

/// Number of segments in one call.
const COUNT: usize = 1024;

/// Most segments. A filesystem with more is not examined; with the usual 8 MiB this is 64 TiB.
const MOST: u64 = 1 << 23;

/// `struct nilfs_sustat`
#[repr(C)]
struct Statistics {
    segments: u64,
    rest: [u64; 5],
}

/// `struct nilfs_argv`
#[repr(C)]
struct Arguments {
    base: u64,
    count: u32,
    size: u16,
    flags: u16,
    index: u64,
}

/// `struct nilfs_suinfo`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Usage {
    modified: u64,
    blocks: u32,
    flags: u32,
}

/// Most calls for checkpoints.
const MOST_CALLS: usize = 1 << 16;

/// `struct nilfs_cpinfo`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Checkpoint {
    flags: u32,
    pad: u32,
    number: u64,
    rest: [u64; 5],
}

/// Has the kernel read the whole list of checkpoints (NILFS_IOCTL_GET_CPINFO). It is metadata in
/// use. How much of it a mount reads depends on the kernel's version, and what nobody reads looks
/// superseded.
pub(crate) fn read_checkpoints(root: impl AsFd) -> Result<(), Errno> {
    const OPCODE: Opcode = opcode::read::<Arguments>(b'n', 0x82);
    let mut checkpoints = vec![Checkpoint::default(); COUNT];
    let mut next = 1;
    for _ in 0..MOST_CALLS {
        let mut arguments = Arguments {
            base: checkpoints.as_mut_ptr() as u64,
            count: COUNT as u32,
            size: size_of::<Checkpoint>() as u16,
            flags: 0,
            index: next,
        };
        #[allow(unsafe_code)]
        // SAFETY: `Arguments` is laid out as `struct nilfs_argv`, and says where `count` elements
        // are that are laid out as `struct nilfs_cpinfo`, which the kernel fills in; both outlive
        // the call.
        let result = unsafe { ioctl(root.as_fd(), Updater::<OPCODE, Arguments>::new(&mut arguments)) };
        if !is_supported(result)? {
            return Ok(());
        }
        let listed = checkpoints.get(..arguments.count as usize).unwrap_or_default();
        match listed.last() {
            Some(last) if last.number >= next && last.number < u64::MAX => next = last.number + 1,
            _ => return Ok(()),
        }
    }
    Ok(())
}

/// All segments on the device: free, or in use. `None` if the kernel does not report them, or
/// reports too many.
///
/// # Errors
/// The error of the ioctl, except "not supported"; or the device cannot be read.
pub(crate) fn spaces(root: impl AsFd, device: OwnedFd) -> Result<Option<Spaces>, Errno> {
    let mut superblock = [0; 64];
    File::from(device)
        .read_exact_at(&mut superblock, 1024)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let Some(segments) = Segments::of(&superblock) else { return Ok(None) };
    const STATISTICS: Opcode = opcode::read::<Statistics>(b'n', 0x85);
    #[allow(unsafe_code)]
    // SAFETY: `Statistics` is laid out as `struct nilfs_sustat`, which the kernel fills in.
    let statistics = unsafe { ioctl(root.as_fd(), Getter::<STATISTICS, Statistics>::new()) };
    // The kernel does not check for segments past the last one. The first superblock may be damaged
    // and give another number than the kernel, which then uses the second one.
    let is_same = statistics.as_ref().is_ok_and(|statistics| statistics.segments == segments.count);
    if !is_supported(statistics.map(drop))? || !is_same {
        return Ok(None);
    }
    let mut spaces = Spaces::new();
    let mut number = 0;
    while number < segments.count {
        let usages = usages(root.as_fd(), number, segments.count - number)?;
        if usages.is_empty() {
            return Ok(None);
        }
        for usage in usages {
            segments.add(number, usage.flags, &mut spaces);
            number += 1;
        }
    }
    Ok(Some(spaces).filter(|spaces| !spaces.is_empty()))
}

/// Of some of the segments from this one on, of which there are `most`.
fn usages(root: impl AsFd, first: u64, most: u64) -> Result<Vec<Usage>, Errno> {
    const OPCODE: Opcode = opcode::read::<Arguments>(b'n', 0x84);
    let mut usages = vec![Usage::default(); COUNT.min(usize::try_from(most).unwrap_or(COUNT))];
    let mut arguments = Arguments {
        base: usages.as_mut_ptr() as u64,
        count: usages.len() as u32,
        size: size_of::<Usage>() as u16,
        flags: 0,
        index: first,
    };
    #[allow(unsafe_code)]
    // SAFETY: `Arguments` is laid out as `struct nilfs_argv`, and says where `count` elements are
    // that are laid out as `struct nilfs_suinfo`, which the kernel fills in; both outlive the call.
    unsafe { ioctl(root.as_fd(), Updater::<OPCODE, Arguments>::new(&mut arguments)) }?;
    usages.truncate(arguments.count as usize);
    Ok(usages)
}

/// The place of the segments.
#[derive(Debug, PartialEq, Eq)]
struct Segments {
    count: u64,
    /// Size of a segment in bytes.
    size: u64,
    /// Offset of the first segment, which begins behind the superblock.
    start: u64,
}

impl Segments {
    fn of(superblock: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(*superblock.get(at..)?.first_chunk()?));
        let long = |at: usize| Some(u64::from_le_bytes(*superblock.get(at..)?.first_chunk()?));
        // The magic number is the upper half of this word.
        if u64::from(word(4)? >> 16) != MAGIC {
            return None;
        }
        let block = 1u64 << word(20)?.checked_add(10).filter(|shift| (10..=16).contains(shift))?;
        let (count, size) = (long(24)?, u64::from(word(48)?) * block);
        let start = long(40)?.checked_mul(block)?;
        let makes_sense = count <= MOST && count.checked_mul(size).is_some() && start < size;
        makes_sense.then_some(Self { count, size, start })
    }

    /// Adds a segment. Without any flag it is clean.
    fn add(&self, number: u64, flags: u32, spaces: &mut Spaces) {
        let (start, end) = (number * self.size, (number + 1) * self.size);
        let begin = if number == 0 { self.start } else { start };
        if begin > start {
            push(spaces, BlockPurpose::Unknown, start, begin - start);
        }
        push(
            spaces,
            if flags == 0 { BlockPurpose::Free } else { BlockPurpose::LogSegments },
            begin,
            end - begin,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten segments of 16 blocks of 4 KiB.
    fn superblock() -> [u8; 64] {
        let mut superblock = [0; 64];
        for (at, word) in [(4, 0x3434_0000u32), (20, 2), (24, 10), (40, 1), (48, 16)] {
            superblock[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        superblock
    }

    #[test]
    fn structures_are_as_large_as_the_kernels() {
        assert_eq!((size_of::<Statistics>(), size_of::<Arguments>(), size_of::<Usage>()), (48, 24, 16));
        assert_eq!(size_of::<Checkpoint>(), 56);
    }

    #[test]
    fn clean_segments_are_free() {
        let segments = Segments::of(&superblock()).unwrap();
        assert_eq!(segments, Segments { count: 10, size: 65536, start: 4096 });
        let mut spaces = Spaces::new();
        for (number, flags) in [(0, 0), (1, 0), (2, 2), (3, 1), (4, 0)] {
            segments.add(number, flags, &mut spaces);
        }
        assert_eq!(spaces[&BlockPurpose::Free], [(4096, 2 * 65536 - 4096), (4 * 65536, 65536)]);
        assert_eq!(spaces[&BlockPurpose::Unknown], [(0, 4096)]);
        assert_eq!(spaces[&BlockPurpose::LogSegments], [(2 * 65536, 2 * 65536)]);
    }

    #[test]
    fn superblocks_that_make_no_sense_are_refused() {
        for (at, byte) in [(6, 0), (20, 7), (23, 0xff), (26, 0xff), (31, 0xff), (40, 16), (47, 0xff), (48, 0)]
        {
            let mut superblock = superblock();
            superblock[at] = byte;
            assert_eq!(Segments::of(&superblock), None, "{at}");
        }
        assert_eq!(Segments::of(&superblock()[..50]), None);
    }
}
