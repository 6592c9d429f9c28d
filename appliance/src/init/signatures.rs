//! Signatures by which a device says that an assembler has to be run: a few sectors at its
//! beginning and its end.

use std::io;
use std::os::unix::fs::FileExt;

/// What there is to assemble.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Members of md arrays, or of the RAID of a disk controller that mdadm knows.
    pub(super) md: bool,
    /// A physical volume of LVM.
    pub(super) lvm: bool,
    /// A disk of Windows dynamic volumes.
    pub(super) ldm: bool,
    /// A device of a btrfs.
    pub(super) btrfs: bool,
}

const SECTOR: usize = 512;
/// As much of the beginning as is looked at.
const HEAD: usize = 68 << 10;
/// As much of the end: the superblock of md's version 0.90 is 64 to 128 KiB before it, and those of
/// dynamic disks and of disk controllers are in the last sectors.
const TAIL: usize = 128 << 10;

/// Examines a device of `size` bytes.
pub(super) fn examine(device: &impl FileExt, size: u64) -> io::Result<Found> {
    let head = read(device, 0, size.min(HEAD as u64) as usize)?;
    let start = size.saturating_sub(TAIL as u64);
    let tail = read(device, start, (size - start) as usize)?;
    Ok(find(&head, &tail, size))
}

fn read(device: &impl FileExt, at: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    device.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

fn find(head: &[u8], tail: &[u8], size: u64) -> Found {
    let at = |offset: usize, signature: &[u8]| head.get(offset..).is_some_and(|it| it.starts_with(signature));
    let in_tail = |offset: u64, signature: &[u8]| {
        let start = size - tail.len() as u64;
        let offset = offset.checked_sub(start).and_then(|offset| usize::try_from(offset).ok());
        offset.and_then(|offset| tail.get(offset..)).is_some_and(|it| it.starts_with(signature))
    };
    let from_end =
        |bytes: u64, signature: &[u8]| size.checked_sub(bytes).is_some_and(|at| in_tail(at, signature));
    // `MD_SB_MAGIC` in linux/raid/md_p.h. Version 0.90 has the byte order of the machine that made it.
    let md = 0xa92b_4efc_u32;
    // `calc_sb_1_csum` and `super_1_load` in drivers/md/md.c: 8 KiB before the end, on a boundary
    // of 4 KiB.
    let version_1_0 = (size / SECTOR as u64).checked_sub(16).map(|sector| (sector & !7) * SECTOR as u64);
    // `MD_NEW_SIZE_SECTORS` in linux/raid/md_p.h.
    let version_0_90 = (size & !0xffff).checked_sub(0x10000);
    let is_md = at(0, &md.to_le_bytes())
        || at(4096, &md.to_le_bytes())
        || version_1_0.is_some_and(|offset| in_tail(offset, &md.to_le_bytes()))
        || version_0_90.is_some_and(|offset| {
            in_tail(offset, &md.to_le_bytes()) || in_tail(offset, &md.to_be_bytes())
        })
        // Anchors of the disk controllers' formats, `super-intel.c` and `super-ddf.c` of mdadm.
        || [2, 1].iter().any(|sectors| from_end(sectors * SECTOR as u64, b"Intel Raid ISM Cfg Sig."))
        || from_end(SECTOR as u64, &[0xde, 0x11, 0xde, 0x11]);
    Found {
        md: is_md,
        // The label is in one of the first four sectors: `lib/format_text/layout.h` of LVM.
        lvm: (0..4).any(|sector| at(sector * SECTOR, b"LABELONE")),
        // `PRIVHEAD` is in the sector 6 of an MBR disk and in the last sector of a metadata
        // partition of a GPT disk; an MBR disk has a partition of type 0x42 (`ldm.h` of the kernel).
        ldm: at(6 * SECTOR, b"PRIVHEAD")
            || from_end(SECTOR as u64, b"PRIVHEAD")
            || at(510, &[0x55, 0xaa]) && (0..4).any(|entry| at(446 + entry * 16 + 4, &[0x42])),
        // `btrfs_super_block::magic`, in the first superblock.
        btrfs: at((64 << 10) + 0x40, b"_BHRfS_M"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = (1 << 20) + 4096 + 512;

    fn found(at: usize, signature: &[u8]) -> Found {
        let mut device = vec![0; SIZE];
        device[at..at + signature.len()].copy_from_slice(signature);
        find(&device[..HEAD], &device[SIZE - TAIL..], SIZE as u64)
    }

    #[test]
    fn each_signature_is_found_in_its_place() {
        let md = Found { md: true, ..Found::default() };
        let magic = [0xfc, 0x4e, 0x2b, 0xa9];
        // mdadm(8): 1.0 at the end, 1.1 at the beginning, 1.2 at 4 KiB, 0.90 in the last 64 KiB
        // that are aligned to it.
        for at in [0, 4096, 0x10_0000 - 0x1000, 0x0f_0000] {
            assert_eq!(found(at, &magic), md, "{at:#x}");
        }
        assert_eq!(found(0x0f_0000, &[0xa9, 0x2b, 0x4e, 0xfc]), md);
        assert_eq!(found(SIZE - 1024, b"Intel Raid ISM Cfg Sig. 1.3.00"), md);
        assert_eq!(found(SIZE - 512, &[0xde, 0x11, 0xde, 0x11]), md);
        let lvm = Found { lvm: true, ..Found::default() };
        assert_eq!([0, 512, 1024, 1536].map(|at| found(at, b"LABELONE")), [lvm; 4]);
        let ldm = Found { ldm: true, ..Found::default() };
        assert_eq!([3072, SIZE - 512].map(|at| found(at, b"PRIVHEAD")), [ldm; 2]);
        assert_eq!(found(65536 + 64, b"_BHRfS_M"), Found { btrfs: true, ..Found::default() });
    }

    #[test]
    fn nothing_is_found_elsewhere_or_on_small_devices() {
        assert_eq!(found(2048, b"LABELONE"), Found::default());
        assert_eq!(found(8192, &[0xfc, 0x4e, 0x2b, 0xa9]), Found::default());
        for size in [0, 1, 511, 512, 8191, 8192, 65535] {
            let device = vec![0; size];
            assert_eq!(find(&device, &device, size as u64), Found::default(), "{size}");
        }
    }
}
