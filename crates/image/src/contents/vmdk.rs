//! The grains and tables of the extents of a VMDK (VMware's "Virtual Disk Format 5.0", "Hosted
//! Sparse Extents" and "Stream-Optimized Compressed Sparse Extents"; qemu's `block/vmdk.c`).

use super::parts::{Holds, Piece};
use crate::file::{PlainFile, bytes_at};
use crate::references::{Unreadable, broken, le32, le64};
use crate::vmdk::{MAX_DESCRIPTOR, SECTOR, SPARSE, listed};
use std::io;
use virt_bmap_ranges::{ContainerRange, DiskRange};

/// Length of the header of a sparse extent.
const HEADER: usize = 512;
/// Flag: grains are compressed.
const COMPRESSED: u32 = 1 << 16;
/// Flag: an entry of 1 is a grain of zeroes.
const HAS_ZERO_GRAINS: u32 = 1 << 2;
/// The place of the grain directory if it is in the footer.
const IN_FOOTER: u64 = u64::MAX;
/// Where the footer is, from the end of the file: before the marker of its end.
const FOOTER: u64 = 1024;
/// Most entries of a grain directory, and of a grain table, that qemu accepts.
const MAX_DIRECTORY: u64 = 32 << 20;
const MAX_TABLE: u64 = 512;
/// Before a compressed grain: its number and its length.
const GRAIN_HEADER: usize = 12;

/// Of which part of the disk the places were passed.
pub(super) enum Known {
    /// All that the file holds.
    All,
    /// The extent holds this part of the disk in a way that is not read here.
    Part(DiskRange),
}

/// Passes everything that a file of the image holds to `each`: its descriptor, or one of its
/// `extents`.
pub(super) fn walk(
    image: &PlainFile,
    extents: &[PlainFile],
    number: Option<usize>,
    size: u64,
    each: &mut dyn FnMut(Piece),
) -> Result<Known, Unreadable> {
    let is_text = !extents.is_empty();
    let Some(number) = number else {
        if is_text {
            let all = ContainerRange::new(0, image.size);
            each(Piece::whole(Holds::Descriptor, all, DiskRange::new(0, size)));
            return Ok(Known::All);
        }
        return extent(image, DiskRange::new(0, size), each);
    };
    let text = descriptor(image)?;
    let listed = listed(&text);
    if listed.len() != extents.len() {
        return broken("its descriptor names an extent that is no local file");
    }
    let mut start = 0_u64;
    for (index, (listed, file)) in listed.iter().zip(extents).enumerate() {
        let sectors = match (listed.flat, capacity(file)?) {
            (None, Some(capacity)) => capacity,
            _ => listed.sectors,
        };
        let part = DiskRange::saturating(start, sectors.saturating_mul(SECTOR));
        if index == number {
            return match listed.flat {
                Some(first) => {
                    each(Piece::data(first.saturating_mul(SECTOR), start, part.len()).until(size));
                    Ok(Known::All)
                }
                None => extent(file, part, each),
            };
        }
        start = part.end.0;
    }
    Ok(Known::All)
}

/// The text that names the extents: a file of its own, or in a sparse extent without grains.
fn descriptor(image: &PlainFile) -> Result<Vec<u8>, Unreadable> {
    let header = image.read(0, HEADER)?;
    let start = if header.starts_with(SPARSE) { le64(&header, 28)?.saturating_mul(SECTOR) } else { 0 };
    Ok(image.read(start, MAX_DESCRIPTOR)?)
}

/// Sectors of the disk that a sparse extent holds.
fn capacity(file: &PlainFile) -> io::Result<Option<u64>> {
    let header = file.read(0, HEADER)?;
    Ok(bytes_at(&header, 12).map(u64::from_le_bytes).filter(|_| header.starts_with(SPARSE)))
}

/// A sparse extent.
struct Extent<'f> {
    file: &'f PlainFile,
    flags: u32,
    /// Bytes of a grain.
    grain: u64,
    /// Entries of a grain table.
    entries: u64,
    /// The bytes of the disk that it holds.
    part: DiskRange,
}

fn extent(file: &PlainFile, part: DiskRange, each: &mut dyn FnMut(Piece)) -> Result<Known, Unreadable> {
    let mut header = file.read(0, HEADER)?;
    if !header.starts_with(SPARSE) {
        // The older and newer sparse extents of ESX.
        return Ok(Known::Part(part));
    }
    let whole =
        |holds, start: u64, length| Piece::whole(holds, ContainerRange::saturating(start, length), part);
    each(whole(Holds::Header, 0, HEADER as u64));
    if le64(&header, 56)? == IN_FOOTER {
        let at = file.size.saturating_sub(FOOTER);
        header = file.read(at, HEADER)?;
        if !header.starts_with(SPARSE) {
            return broken("its footer is missing");
        }
        each(whole(Holds::Header, at, HEADER as u64));
    }
    let sectors = |at| Ok::<u64, Unreadable>(le64(&header, at)?.saturating_mul(SECTOR));
    let (start, length) = (sectors(28)?, sectors(36)?);
    if start > 0 {
        each(whole(Holds::Descriptor, start, length));
    }
    let (grain, entries) = (sectors(20)?, u64::from(le32(&header, 44)?));
    if grain == 0 || entries == 0 || entries > MAX_TABLE {
        return broken("its grains are not possible");
    }
    let extent = Extent { file, flags: le32(&header, 8)?, grain, entries, part };
    // The copy first: it is smaller, and the tables of both may be one.
    if let copy @ 1.. = sectors(48)? {
        extent.tables(copy, true, each)?;
    }
    extent.tables(sectors(56)?, false, each)?;
    Ok(Known::All)
}

impl Extent<'_> {
    /// A grain directory and the tables that it names.
    fn tables(&self, start: u64, is_copy: bool, each: &mut dyn FnMut(Piece)) -> Result<(), Unreadable> {
        let covers = self.entries.saturating_mul(self.grain);
        let count = self.part.len().div_ceil(covers);
        if count > MAX_DIRECTORY {
            return broken("its grain directory is too long");
        }
        let at = ContainerRange::saturating(start, count * 4);
        each(match is_copy {
            true => Piece::alone(Holds::TableCopy, at),
            false => Piece::table(Holds::FirstTable, at, self.part.start.0, 4, covers).until(self.part.end.0),
        });
        let mut most = self.file.size / (self.entries * 4) + 1;
        for (index, entry) in (0..).zip(self.file.read(start, (count * 4) as usize)?.as_chunks().0) {
            let at = u64::from(u32::from_le_bytes(*entry)) * SECTOR;
            if at == 0 {
                continue;
            }
            let Some(left) = most.checked_sub(1) else {
                return broken("it has more grain tables than it has room for");
            };
            most = left;
            let table = ContainerRange::saturating(at, self.entries * 4);
            if is_copy {
                each(Piece::alone(Holds::TableCopy, table));
            } else {
                let guest = self.part.start.0.saturating_add(covers.saturating_mul(index));
                each(Piece::table(Holds::SecondTable, table, guest, 4, self.grain).until(self.part.end.0));
                self.grains(table, guest, each)?;
            }
        }
        Ok(())
    }

    /// The grains that a table names, for the bytes of the disk from `guest` on.
    fn grains(&self, table: ContainerRange, guest: u64, each: &mut dyn FnMut(Piece)) -> io::Result<()> {
        let bytes = self.file.read(table.start.0, table.len() as usize)?;
        for (index, entry) in (0..).zip(bytes.as_chunks().0) {
            let start = guest.saturating_add(self.grain.saturating_mul(index));
            if start >= self.part.end.0 {
                break;
            }
            let at = match u32::from_le_bytes(*entry) {
                0 => continue,
                1 if self.flags & HAS_ZERO_GRAINS != 0 => continue,
                sector => u64::from(sector) * SECTOR,
            };
            let piece = if self.flags & COMPRESSED == 0 {
                Piece::data(at, start, self.grain)
            } else {
                let header = self.file.read(at, GRAIN_HEADER)?;
                let length = bytes_at(&header, 8).map_or(0, u32::from_le_bytes);
                let at = ContainerRange::saturating(at, GRAIN_HEADER as u64 + u64::from(length));
                Piece::whole(Holds::Compressed, at, DiskRange::saturating(start, self.grain))
            };
            each(piece.until(self.part.end.0));
        }
        Ok(())
    }
}
