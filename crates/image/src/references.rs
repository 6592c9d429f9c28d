//! Reads the references of an image to other files, before qemu, which would open them, sees the
//! image.
//!
//! Only the formats that can refer to other files are looked at: qcow, qcow2, QED and VMDK. Layouts
//! are those of qemu's `docs/interop/qcow2.txt` and `docs/interop/qed_spec.txt`, of its
//! `block/qcow.c`, and of VMware's "Virtual Disk Format 5.0" with the reading that qemu's
//! `block/vmdk.c` gives it.

use super::error::FileRole;
use super::file::{PlainFile, bytes_at};
use super::foreign::{self, Foreign};
use super::{ImageFormat, vmdk};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// How much of a file qemu looks at to tell its format.
const PROBE_SIZE: usize = 512;

/// Longest name of a backing file, by qemu's limit for all formats.
const MAX_NAME: usize = 1023;

/// Longest header with extensions that is read: the largest cluster, 2 MiB.
pub(super) const MAX_HEADER: usize = 2 << 20;

/// Largest first-level table that qemu accepts, in bytes.
pub(super) const MAX_L1: u64 = 32 << 20;

/// The references of an image, and its own length.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct References {
    /// In the order in which the image names them.
    pub(super) files: Vec<Reference>,
    /// Least length of the image's own file, if known.
    pub(super) needed: u64,
    /// Whether qemu encrypts its data.
    pub(super) is_encrypted: bool,
}

/// A file that an image needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) role: FileRole,
    /// Its name in the image.
    pub(super) name: OsString,
    /// Its format, if the image states it.
    pub(super) format: Option<String>,
    /// Its least length, if known.
    pub(super) needed: u64,
}

/// Why an image's references cannot be read.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// The image breaks its format's rules.
    Broken(String),
    /// It is only a part of a disk.
    Foreign(Foreign),
    Io(io::Error),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

pub(super) fn broken<T>(reason: &str) -> Result<T, Unreadable> {
    Err(Unreadable::Broken(reason.to_owned()))
}

/// The format of a file, as far as it must be known before qemu sees the file: which of the formats
/// that can refer to other files it has, for each file that qemu would take for one. `None` for all
/// others, with one exception: what begins with a LUKS header is far more often the raw disk of a
/// guest that encrypts all of it than an image that qemu encrypts.
pub(super) fn sniff(file: &PlainFile) -> io::Result<Option<ImageFormat>> {
    let head = file.read(0, PROBE_SIZE)?;
    Ok(match bytes_at::<4>(&head, 0) {
        Some([b'Q', b'F', b'I', 0xfb]) => match bytes_at(&head, 4).map(u32::from_be_bytes) {
            Some(1) => Some(ImageFormat::Qcow),
            _ => Some(ImageFormat::Qcow2),
        },
        Some([b'Q', b'E', b'D', 0]) => Some(ImageFormat::Qed),
        Some(_) if head.starts_with(b"LUKS\xba\xbe") => Some(ImageFormat::Raw),
        _ => vmdk::is_vmdk(&head).then_some(ImageFormat::Vmdk),
    })
}

/// Reads what `file`, which is in `format`, refers to.
pub(super) fn read(file: &PlainFile, format: ImageFormat) -> Result<References, Unreadable> {
    match format {
        ImageFormat::Qcow => qcow(file),
        ImageFormat::Qcow2 => qcow2(file),
        ImageFormat::Qed => qed(file),
        ImageFormat::Vmdk => vmdk::references(file),
        ImageFormat::Vpc if is_differencing_vhd(file)? => Err(Unreadable::Foreign(foreign::DIFFERENCING_VHD)),
        ImageFormat::Vhdx if foreign::is_differencing_vhdx(file)? => {
            Err(Unreadable::Foreign(foreign::DIFFERENCING_VHDX))
        }
        ImageFormat::Vdi => Ok(References { needed: vdi_size(file)?, ..References::default() }),
        ImageFormat::Luks => Ok(References { is_encrypted: true, ..References::default() }),
        _ => Ok(References::default()),
    }
}

/// Whether a file ends like a VHD of fixed size, which has nothing else to be known by: the disk's
/// bytes, and then a footer (Virtual Hard Disk Image Format Specification 1.0).
pub(super) fn has_vhd_footer(file: &PlainFile) -> io::Result<bool> {
    Ok(file.read(file.size.saturating_sub(512), 8)? == b"conectix")
}

/// Whether a file ends like a disk image of macOS, whose beginning is arbitrary: with a trailer of
/// 512 bytes (`UDIFResourceFile`; qemu's `block/dmg.c`).
pub(super) fn has_dmg_trailer(file: &PlainFile) -> io::Result<bool> {
    Ok(file.read(file.size.saturating_sub(512), 4)? == b"koly")
}

/// Whether a VHDX has a log that may have to be replayed: the newer of its two headers names one
/// ("VHDX Format Specification" 1.00, 2.2.2: sequence number at byte 8, GUID of the log at 48).
pub(super) fn has_vhdx_log(file: &PlainFile) -> io::Result<bool> {
    if file.read(0, 8)? != b"vhdxfile" {
        return Ok(false);
    }
    let mut newest = None;
    for at in [64 << 10, 128 << 10] {
        let header = file.read(at, 64)?;
        let sequence = bytes_at(&header, 8).map(u64::from_le_bytes).filter(|_| header.starts_with(b"head"));
        newest = newest.max(sequence.and_then(|sequence| Some((sequence, bytes_at::<16>(&header, 48)?))));
    }
    Ok(newest.is_some_and(|(_, log)| log != [0; 16]))
}

/// Whether a VHD only has the differences from a parent. qemu takes such a file for one of fixed
/// size and would give its tables for the disk. The type is at byte 60 of the footer, of which a
/// dynamic or differencing disk has a copy at its beginning.
fn is_differencing_vhd(file: &PlainFile) -> io::Result<bool> {
    const DIFFERENCING: u32 = 4;
    let head = file.read(0, PROBE_SIZE)?;
    Ok(head.starts_with(b"conectix") && bytes_at(&head, 60).map(u32::from_be_bytes) == Some(DIFFERENCING))
}

/// The name of a backing file that a header places at `offset`.
fn backing(
    file: &PlainFile,
    offset: u64,
    length: usize,
    format: Option<String>,
) -> Result<Option<Reference>, Unreadable> {
    if offset == 0 || length == 0 {
        return Ok(None);
    }
    if length > MAX_NAME {
        return broken("the name of its backing file is too long");
    }
    let mut name = file.read(offset, length)?;
    if name.len() < length {
        return broken("the name of its backing file lies past its end");
    }
    // qemu keeps it as a C string.
    name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(length));
    if name.is_empty() {
        return Ok(None);
    }
    Ok(Some(Reference { role: FileRole::Backing, name: OsString::from_vec(name), format, needed: 0 }))
}

pub(super) fn be32(header: &[u8], offset: usize) -> Result<u32, Unreadable> {
    bytes_at(header, offset).map(u32::from_be_bytes).map_or_else(|| broken("its header is cut off"), Ok)
}

pub(super) fn be64(header: &[u8], offset: usize) -> Result<u64, Unreadable> {
    bytes_at(header, offset).map(u64::from_be_bytes).map_or_else(|| broken("its header is cut off"), Ok)
}

pub(super) fn le32(header: &[u8], offset: usize) -> Result<u32, Unreadable> {
    be32(header, offset).map(u32::swap_bytes)
}

pub(super) fn le64(header: &[u8], offset: usize) -> Result<u64, Unreadable> {
    be64(header, offset).map(u64::swap_bytes)
}

fn qcow(file: &PlainFile) -> Result<References, Unreadable> {
    let header = file.read(0, PROBE_SIZE)?;
    let backing = backing(file, be64(&header, 8)?, be32(&header, 16)? as usize, None)?;
    let is_encrypted = be32(&header, 36)? != 0;
    Ok(References { files: backing.into_iter().collect(), needed: 0, is_encrypted })
}

fn qed(file: &PlainFile) -> Result<References, Unreadable> {
    const HAS_BACKING: u64 = 1;
    const BACKING_IS_RAW: u64 = 4;
    let header = file.read(0, PROBE_SIZE)?;
    let features = le64(&header, 16)?;
    if features & HAS_BACKING == 0 {
        return Ok(References::default());
    }
    let format = (features & BACKING_IS_RAW != 0).then(|| ImageFormat::Raw.to_string());
    let backing = backing(file, le32(&header, 56)?.into(), le32(&header, 60)? as usize, format)?;
    Ok(References { files: backing.into_iter().collect(), ..References::default() })
}

fn qcow2(file: &PlainFile) -> Result<References, Unreadable> {
    const EXTERNAL_DATA: u64 = 4;
    const BACKING_FORMAT: u32 = 0xe279_2aca;
    const DATA_FILE: u32 = 0x4441_5441;

    let header = file.read(0, MAX_HEADER)?;
    let version = be32(&header, 4)?;
    let backing_offset = be64(&header, 8)?;
    let backing_size = be32(&header, 16)? as usize;
    let cluster_bits = be32(&header, 20)?;
    if !(9..=21).contains(&cluster_bits) {
        return broken("its cluster size is not possible");
    }
    let cluster = 1_u64 << cluster_bits;
    let (incompatible, length) = match version {
        2 => (0, 72),
        3 => (be64(&header, 72)?, be32(&header, 100)? as usize),
        _ => return broken("its version is not known"),
    };

    let mut format = None;
    let mut data_file = None;
    let end = match backing_offset {
        0 => cluster,
        offset => offset.min(cluster),
    };
    let mut rest = header.get(length..header.len().min(end as usize)).unwrap_or_default();
    while rest.len() >= 8 {
        let (kind, length) = (be32(rest, 0)?, be32(rest, 4)? as usize);
        if kind == 0 {
            break;
        }
        let Some(value) = rest.get(8..).and_then(|rest| rest.get(..length)) else {
            return broken("one of its header extensions is longer than the header");
        };
        match kind {
            BACKING_FORMAT => format = Some(String::from_utf8_lossy(value).into_owned()),
            DATA_FILE => data_file = Some(OsStr::from_bytes(value).to_owned()),
            _ => {}
        }
        rest = rest.get(8 + length.next_multiple_of(8)..).unwrap_or_default();
    }

    let mut files = Vec::new();
    if incompatible & EXTERNAL_DATA != 0 {
        match data_file {
            Some(name) => {
                files.push(Reference {
                    role: FileRole::DataFile,
                    name,
                    format: Some("raw".to_owned()),
                    needed: 0,
                });
            }
            None => return broken("it keeps its data in another file but does not name it"),
        }
    }
    files.extend(backing(file, backing_offset, backing_size, format)?);
    let is_encrypted = be32(&header, 32)? != 0;
    Ok(References { files, needed: qcow2_size(file, &header, cluster)?, is_encrypted })
}

/// How long the file must be to hold its tables. A table that is cut off is not noticed by qemu,
/// who takes what lies past the end of a file for zeroes, that is for "not allocated".
fn qcow2_size(file: &PlainFile, header: &[u8], cluster: u64) -> Result<u64, Unreadable> {
    const TABLE_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    let (count, offset) = (u64::from(be32(header, 36)?), be64(header, 40)?);
    if count * 8 > MAX_L1 {
        return broken("its first-level table is too long");
    }
    let mut needed = match count {
        0 => 0,
        _ => offset.saturating_add(count * 8),
    };
    let table = file.read(offset, (count * 8) as usize)?;
    for entry in table.as_chunks().0 {
        let second_level = u64::from_be_bytes(*entry) & TABLE_OFFSET;
        if second_level != 0 {
            needed = needed.max(second_level + cluster);
        }
    }
    Ok(needed)
}

/// How long a VDI must be to hold the blocks that it says it has allocated. The header's fields,
/// all little-endian, are those of qemu's `block/vdi.c`.
fn vdi_size(file: &PlainFile) -> Result<u64, Unreadable> {
    let header = file.read(0, PROBE_SIZE)?;
    let data: u64 = le32(&header, 0x158)?.into();
    let block_size: u64 = le32(&header, 0x178)?.into();
    let allocated: u64 = le32(&header, 0x184)?.into();
    Ok(data + block_size * allocated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn plain(content: &[u8]) -> PlainFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        PlainFile::open(file.path()).unwrap()
    }

    fn names(references: &References) -> Vec<(FileRole, &str)> {
        references.files.iter().map(|f| (f.role, f.name.to_str().unwrap())).collect()
    }

    /// A qcow2 header, version 3, with a backing file, its format, and a data file.
    fn qcow2_header() -> Vec<u8> {
        let mut bytes = vec![0; 65536];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, b"QFI\xfb\0\0\0\x03");
        put(8, &400_u64.to_be_bytes());
        put(16, &8_u32.to_be_bytes());
        put(20, &16_u32.to_be_bytes());
        put(72, &4_u64.to_be_bytes());
        put(100, &104_u32.to_be_bytes());
        put(104, b"\xe2\x79\x2a\xca\0\0\0\x03raw\0\0\0\0\0");
        put(120, b"DATA\0\0\0\x05a.raw\0\0\0");
        put(400, b"base.img");
        bytes
    }

    #[test]
    fn qcow2_names_its_backing_file_and_its_data_file() {
        let file = plain(&qcow2_header());
        assert_eq!(sniff(&file).unwrap(), Some(ImageFormat::Qcow2));
        let references = read(&file, ImageFormat::Qcow2).unwrap();
        assert_eq!(names(&references), [(FileRole::DataFile, "a.raw"), (FileRole::Backing, "base.img")]);
        assert_eq!(references.files[1].format.as_deref(), Some("raw"));
    }

    #[test]
    fn a_qcow2_table_past_the_end_is_needed() {
        let mut bytes = qcow2_header();
        bytes[36..40].copy_from_slice(&2_u32.to_be_bytes());
        bytes[40..48].copy_from_slice(&1024_u64.to_be_bytes());
        bytes[1032..1040].copy_from_slice(&(1_u64 << 63 | 0x20000).to_be_bytes());
        let references = read(&plain(&bytes), ImageFormat::Qcow2).unwrap();
        assert_eq!(references.needed, 0x30000);
        bytes[40..48].copy_from_slice(&u64::MAX.to_be_bytes());
        assert_eq!(read(&plain(&bytes), ImageFormat::Qcow2).unwrap().needed, u64::MAX);
    }

    proptest! {
        /// Whatever is in a header: an answer or a refusal.
        #[test]
        fn no_header_makes_it_panic(
            changes in prop::collection::vec((0usize..512, any::<u8>()), 0..12),
            cut in 1usize..2000,
            format in prop::sample::select(ImageFormat::ALL),
        ) {
            let mut bytes = qcow2_header();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            bytes.truncate(cut);
            let file = plain(&bytes);
            let _ = sniff(&file).unwrap();
            let _ = read(&file, format);
        }
    }
}
