//! Files of ext2, ext3 and ext4 that were removed while a program had them open. The kernel frees
//! their blocks when it mounts the filesystem, after it has replayed the journal, even for reading
//! only. The image holds them, so it must not.
//!
//! It leaves them alone on a filesystem that is marked as one with errors (`ext4_orphan_cleanup` in
//! its `fs/ext4/orphan.c`), so the overlay gets that mark. The mark has no other effect on a mount
//! for reading only.

use super::ProbeError;
use super::context::Context;
use super::device::Fields;
use super::layout::Layout;
use super::mount::try_mount;
use super::superblock::Ext;
use crate::appliance::Content;
use virt_bmap_agent_protocol::FsKind;
use virt_bmap_map::Cause;
use virt_bmap_on_disk::ext;
use virt_bmap_ranges::{DeviceOffset, Range};

/// Where the compatible features are in a superblock; `COMPAT_ORPHAN_FILE`.
const COMPATIBLE: usize = 0x5c;
const ORPHAN_FILE: u32 = 0x1000;
/// Bytes of the superblock, and the place of its checksum.
const SIZE: usize = 1024;
const CHECKSUM: usize = 0x3fc;

/// Mounts a filesystem so that the kernel keeps its orphans, for the first time or once more. The
/// inner error is why that failed.
pub(super) fn mount(context: &Context<'_>, filesystem: &Content) -> Result<Result<(), Cause>, ProbeError> {
    let superblock = superblock(context, filesystem);
    let marked = superblock.clone().and_then(|superblock| mark(context, filesystem, superblock));
    let mounted = try_mount(context, filesystem)?;
    let has_orphan_file =
        superblock.is_some_and(|superblock| superblock.le32(COMPATIBLE).unwrap_or(0) & ORPHAN_FILE != 0);
    match mounted {
        // The kernel replays the journal of a filesystem with a file of orphans, and then refuses
        // it, because that file is not empty. The journal is not needed any more.
        Err(cause) if has_orphan_file => {
            let options = filesystem.mount_options.iter().map(String::as_str).chain(["noload"]);
            let options = Some(options.collect::<Vec<_>>().join(","));
            let without = Content { mount_options: options, ..filesystem.clone() };
            let mounted = try_mount(context, &without)?;
            if mounted.is_ok() && marked.as_deref().is_some_and(is_unclean) {
                context.warn(&filesystem.device, Cause::JournalReplayed);
            }
            Ok(mounted.map_err(|_| cause))
        }
        mounted => Ok(mounted),
    }
}

/// The superblock of ext2, ext3 or ext4.
fn superblock(context: &Context<'_>, filesystem: &Content) -> Option<Vec<u8>> {
    filesystem.kind.as_ref().filter(|kind| kind.is_ext())?;
    let (device, at) = (&filesystem.device, Ext::AT as i64);
    context.appliance.call(|g| g.pread_device(device, SIZE as i32, at)).ok()
}

/// Marks a filesystem that may have orphans. Returns its superblock if it was marked.
fn mark(context: &Context<'_>, filesystem: &Content, superblock: Vec<u8>) -> Option<Vec<u8>> {
    let (device, at) = (&filesystem.device, Ext::AT as i64);
    let marked = with_mark(superblock)?;
    let written = context.appliance.call(|g| g.pwrite_device(device, &marked, at));
    written.ok().map(|_| marked)
}

/// Marks a filesystem that may have orphans in the overlays of the disks, before the appliance has
/// read any of it. `None`: its superblock cannot be read or written there.
pub(super) fn mark_again(context: &Context<'_>, filesystem: &Content, layout: &Layout) -> Option<()> {
    if !filesystem.kind.as_ref().is_some_and(FsKind::is_ext) {
        return Some(());
    }
    let superblock = layout.read(&context.as_seen(), Ext::AT, SIZE as u64)?;
    let Some(marked) = with_mark(superblock) else { return Some(()) };
    let range = Range::at(DeviceOffset(Ext::AT), SIZE as u64)?;
    for part in layout.part(range)? {
        let from = usize::try_from(part.device.start.0 - Ext::AT).ok()?;
        let bytes = marked.get(from..from.checked_add(usize::try_from(part.device.len()).ok()?)?)?;
        let overlay = context.overlays.get(usize::from(part.disk).checked_sub(1)?)?;
        overlay.write_at(bytes, part.start).ok()?;
    }
    Some(())
}

/// Whether the journal is to be replayed.
fn is_unclean(superblock: &[u8]) -> bool {
    const RECOVER: u32 = 4;
    superblock.le32(0x60).is_some_and(|features| features & RECOVER != 0)
}

/// A superblock with the mark, if the filesystem may have orphans that the kernel would free.
fn with_mark(mut superblock: Vec<u8>) -> Option<Vec<u8>> {
    const STATE: usize = 0x3a;
    const ERRORS: u16 = 2;
    const METADATA_CHECKSUMS: u32 = 0x400;
    const ORPHAN_PRESENT: u32 = 0x1_0000;
    Ext::of(&superblock)?;
    let (state, read_only) = (superblock.le16(STATE)?, superblock.le32(0x64)?);
    // The journal may say that there are some.
    let may_have_orphans =
        superblock.le32(0xe8)? != 0 || is_unclean(&superblock) || read_only & ORPHAN_PRESENT != 0;
    if !may_have_orphans || state & ERRORS != 0 {
        return None;
    }
    let has_checksum = read_only & METADATA_CHECKSUMS != 0;
    let sum = |superblock: &[u8]| superblock.get(..CHECKSUM).map(|bytes| ext::checksum(u32::MAX, bytes));
    // One that is wrong stays wrong: the kernel refuses it, and says why.
    if has_checksum && sum(&superblock)? != superblock.le32(CHECKSUM)? {
        return None;
    }
    superblock.get_mut(STATE..STATE + 2)?.copy_from_slice(&(state | ERRORS).to_le_bytes());
    if has_checksum {
        let sum = sum(&superblock)?;
        superblock.get_mut(CHECKSUM..CHECKSUM + 4)?.copy_from_slice(&sum.to_le_bytes());
    }
    Some(superblock)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A superblock with a checksum.
    fn superblock(words: &[(usize, u32)]) -> Vec<u8> {
        let mut superblock = vec![0; SIZE];
        for (at, word) in [(0x38, 0x0001_ef53), (0x64, 0x400)].iter().chain(words) {
            superblock[*at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        let sum = ext::checksum(u32::MAX, &superblock[..CHECKSUM]);
        superblock[CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
        superblock
    }

    #[test]
    fn filesystems_that_may_have_orphans_are_marked() {
        let none = superblock(&[]);
        assert_eq!(with_mark(none), None);
        for word in [(0xe8, 12), (0x60, 4), (0x64, 0x1_0400)] {
            let marked = with_mark(superblock(&[word])).unwrap();
            assert_eq!(marked, superblock(&[word, (0x38, 0x0003_ef53)]));
            assert_eq!(with_mark(marked), None);
        }
        let mut wrong = superblock(&[(0xe8, 12)]);
        wrong[CHECKSUM] ^= 1;
        assert_eq!(with_mark(wrong), None);
        assert_eq!(with_mark(Vec::new()), None);
    }
}
