//! Files that are no disk for qemu. It would take some of them for raw disks, and read only a part
//! of others. Each is refused by its name, with what to do instead.

use super::file::{PlainFile, bytes_at};
use super::wrapped::Compression;
use std::io;
use std::path::Path;
use virt_bmap_archives::ova::is_tar;

/// What a file is that must not be taken for a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Foreign {
    /// Its kind, with an article.
    pub(super) kind: &'static str,
    /// What to do.
    pub(super) remedy: &'static str,
}

/// The beginnings of such files. Sources: `file(1)` for archives; libewf's documentation
/// of the Expert Witness format; Proxmox's `vma_spec.txt`; partclone's `partclone.h`; wimlib's `header.h`; AFFLIB's `afflib.h`.
const BEGINNINGS: [(&[u8], Foreign); 8] = [
    (b"EVF\x09\x0d\x0a\xff\0", Foreign { kind: "an EnCase image (E01)", remedy: EXPORT }),
    (b"EVF2\x0d\x0a\x81\0", Foreign { kind: "an EnCase image (Ex01)", remedy: EXPORT }),
    (
        b"LVF\x09\x0d\x0a\xff\0",
        Foreign { kind: "a logical EnCase image (L01)", remedy: "it has files, no disk" },
    ),
    (b"AFF10\x0d\x0a\0", Foreign { kind: "an AFF image", remedy: "export it with affconvert -r" }),
    (b"VMA\0", Foreign { kind: "a Proxmox backup (VMA)", remedy: "extract its disks with vma extract" }),
    (
        b"MSWIM\0\0\0",
        Foreign { kind: "a Windows image (WIM)", remedy: "it has files, no disk; apply it to one" },
    ),
    (b"partclone-image", Foreign { kind: "a partclone image", remedy: "restore it with partclone.restore" }),
    (b"7z\xbc\xaf\x27\x1c", Foreign { kind: "a 7z archive", remedy: "extract the disk from it" }),
];

const EXPORT: &str = "export it with ewfexport, or mount it with ewfmount";

/// A tar archive inside another file, or below another image.
const TAR: Foreign = Foreign {
    kind: "a tar archive, such as an OVA",
    remedy: "extract the disk, or serve it: nbdkit file FILE --filter=tar tar-entry=NAME",
};

/// A later part of an EnCase image.
const LATER_SEGMENT: Foreign = Foreign {
    kind: "a segment of an EnCase image, but not the first",
    remedy: "name the first (.E01), and export that with ewfexport",
};

/// An AFF4 container, which is a ZIP archive.
const AFF4: Foreign = Foreign { kind: "an AFF4 image", remedy: "export its disk as raw" };

/// The entries with which its writers begin ("AFF4 Standard" 1.0, 3).
const AFF4_ENTRIES: [&[u8]; 2] = [b"container.description", b"information.turtle"];

/// What the file at `path` is, if it must not be taken for a disk.
///
/// # Errors
/// It cannot be read.
pub(super) fn of(path: &Path, file: &PlainFile) -> io::Result<Option<Foreign>> {
    let head = file.read(0, 512)?;
    for (beginning, foreign) in BEGINNINGS {
        if !head.starts_with(beginning) {
            continue;
        }
        return Ok(match beginning {
            // The number of the segment follows a byte of fields: libewf, "File header".
            b"EVF\x09\x0d\x0a\xff\0" if bytes_at(&head, 9).map(u16::from_le_bytes) > Some(1) => {
                Some(LATER_SEGMENT)
            }
            _ => Some(foreign),
        });
    }
    if let Some(compression) = Compression::of(&head) {
        return Ok(Some(compression.foreign()));
    }
    if is_tar(&head) {
        return Ok(Some(TAR));
    }
    if is_differencing_vhdx(file)? {
        return Ok(Some(DIFFERENCING_VHDX));
    }
    // The name of an archive's first entry is at byte 30.
    let first = head.get(30..).filter(|_| head.starts_with(b"PK\x03\x04")).unwrap_or_default();
    let is_aff4 = AFF4_ENTRIES.iter().any(|name| first.starts_with(name));
    Ok(if is_aff4 { Some(AFF4) } else { by_name(path, &head) })
}

/// What a file is by its name, if it does not begin like a VMDK of one file: a part of a VMDK of
/// which only the descriptor makes a disk.
fn by_name(path: &Path, head: &[u8]) -> Option<Foreign> {
    const EXTENTS: [&str; 6] = ["-flat", "-delta", "-sesparse", "-rdm", "-rdmp", "-ctk"];
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_ascii_lowercase();
    let is_extent =
        name.strip_suffix(".vmdk").is_some_and(|stem| EXTENTS.iter().any(|end| stem.ends_with(end)));
    (is_extent && !head.starts_with(b"KDMV")).then_some(Foreign {
        kind: "by its name a part of a VMDK",
        remedy: "name the descriptor, the small .vmdk file beside it",
    })
}

/// A VHD that holds only the differences from its parent. qemu takes it for one of fixed size.
pub(super) const DIFFERENCING_VHD: Foreign = Foreign {
    kind: "a differencing VHD, which needs its parent",
    remedy: "merge it with its parent on a copy (Merge-VHD)",
};

/// A VHDX that holds only the differences from its parent, which qemu cannot read.
pub(super) const DIFFERENCING_VHDX: Foreign = Foreign {
    kind: "a differencing VHDX, which needs its parent",
    remedy: "merge it with its parent on a copy (Merge-VHD)",
};

/// Whether a VHDX has a parent: the flag `HasParent` of its file parameters ("VHDX Format
/// Specification" 1.00, 2.2.3, 2.6.1.1, 2.6.2.1).
///
/// # Errors
/// The file cannot be read.
pub(super) fn is_differencing_vhdx(file: &PlainFile) -> io::Result<bool> {
    const METADATA: [u8; 16] = guid(0x8b7c_a206, 0x4790, 0x4b9a, *b"\xb8\xfe\x57\x5f\x05\x0f\x88\x6e");
    const PARAMETERS: [u8; 16] = guid(0xcaa1_6737, 0xfa36, 0x4d43, *b"\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b");
    const HAS_PARENT: u32 = 2;
    if file.read(0, 8)? != b"vhdxfile" {
        return Ok(false);
    }
    // The region table is at 192 KiB: a header of 16 bytes, then entries of 32.
    let regions = file.read(192 << 10, 64 << 10)?;
    let find = |table: &[u8], first: usize, wanted: [u8; 16]| {
        (0..2047).map(|n| first + n * 32).find(|at| bytes_at::<16>(table, *at) == Some(wanted))
    };
    let Some(at) = find(&regions, 16, METADATA) else { return Ok(false) };
    let Some(start) = bytes_at(&regions, at + 16).map(u64::from_le_bytes) else { return Ok(false) };
    // The metadata table: a header of 32 bytes, then entries of 32.
    let table = file.read(start, 64 << 10)?;
    let Some(at) = find(&table, 32, PARAMETERS) else { return Ok(false) };
    let Some(offset) = bytes_at(&table, at + 16).map(u32::from_le_bytes) else { return Ok(false) };
    let item = file.read(start.saturating_add(offset.into()), 8)?;
    Ok(bytes_at(&item, 4).map(u32::from_le_bytes).is_some_and(|flags| flags & HAS_PARENT != 0))
}

/// A GUID as it lies on the disk.
const fn guid(a: u32, b: u16, c: u16, rest: [u8; 8]) -> [u8; 16] {
    let ([a0, a1, a2, a3], [b0, b1], [c0, c1]) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    let [r0, r1, r2, r3, r4, r5, r6, r7] = rest;
    [a0, a1, a2, a3, b0, b1, c0, c1, r0, r1, r2, r3, r4, r5, r6, r7]
}
