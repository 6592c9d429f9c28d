//! The parts of a disk that are in use, as a domain mapfile of GNU ddrescue (manual of ddrescue
//! 1.27, "Mapfile structure"; option `--domain-mapfile`): finished (`+`) is in use, and all else is
//! not tried (`?`).
//!
//! In use is all that no object of [free space](Kind::Free) has. So a map is needed that knows free
//! space, and a filesystem whose free space is not known counts as in use as a whole.

use std::io::{self, BufWriter, Write};
use thiserror::Error;

use super::hardlinks::disk_ranges;
use super::lookup::{DiskSize, disk_size};
use super::{Kind, Map};
use virt_bmap_ranges::{DiskNumber, DiskRange, IndexedRanges};

/// Why no domain can be written.
#[derive(Debug, Error)]
pub enum DomainError {
    /// The map has no such disk.
    #[error("the map has no disk {0}")]
    NoDisk(DiskNumber),
    /// The map does not have the size of the disk.
    #[error("the map has no size for disk {0}; make it again")]
    NoSize(DiskNumber),
    /// The map does not know what is free.
    #[error(
        "the map has no free space, so it is not known what is in use; make a map with metadata, as JSON \
         Lines or with --metadata"
    )]
    NoFreeSpace,
    /// The output failed.
    #[error("the domain could not be written")]
    Io(#[from] io::Error),
}

/// The bytes of a disk that are in use: all that no free space has.
///
/// # Errors
/// The map does not say.
pub fn in_use(map: &Map, disk: DiskNumber) -> Result<(IndexedRanges, u64), DomainError> {
    let size = match disk_size(map, disk) {
        DiskSize::NoDisk => return Err(DomainError::NoDisk(disk)),
        DiskSize::AtLeast(_) => return Err(DomainError::NoSize(disk)),
        DiskSize::Bytes(size) => size,
    };
    if !map.lists_metadata() {
        return Err(DomainError::NoFreeSpace);
    }
    let of = |is_free: bool| -> IndexedRanges {
        let wanted = map.objects().filter(|object| match object.kind() {
            Kind::Free => is_free,
            kind => !is_free && kind.specificity() <= Kind::Metadata.specificity(),
        });
        wanted.flat_map(disk_ranges).filter(|(number, _)| *number == disk).map(|(_, range)| range).collect()
    };
    // What is free and has an owner all the same is kept.
    let free = of(true).without(of(false).iter());
    let all: IndexedRanges = [DiskRange::new(0, size)].into_iter().collect();
    Ok((all.without(free.iter()), size))
}

/// Writes the domain of a disk.
///
/// # Errors
/// See [`DomainError`].
pub fn write(map: &Map, disk: DiskNumber, output: impl Write) -> Result<(), DomainError> {
    let (used, size) = in_use(map, disk)?;
    let mut out = BufWriter::new(output);
    writeln!(out, "# Domain of disk {disk}: + is in use. Created by {}", super::GENERATOR)?;
    writeln!(out, "# current_pos  current_status  current_pass\n0x00000000     +               1")?;
    writeln!(out, "#      pos        size  status")?;
    let mut range = |start: u64, end: u64, status| match end.saturating_sub(start) {
        0 => Ok(()),
        length => writeln!(out, "0x{start:08X}  0x{length:08X}  {status}"),
    };
    let mut at = 0;
    for span in used.iter() {
        range(at, span.start.0, '?')?;
        range(span.start.0, span.end.0, '+')?;
        at = span.end.0;
    }
    range(at, size, '?')?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{rangelist, text};

    const MAP: &str = "# virt-bmap-rs 0.1.0 map 1\n# disk 1 size=65536 format=raw name=a\n\
        1 0 1000 v /dev/sda\n1 1000 2000 f /dev/sda /a\n1 1000 2000 u /dev/sda\n1 1000 2000 v /dev/sda\n\
        1 2000 3000 u /dev/sda\n1 2000 3000 v /dev/sda\n1 3000 4000 m /dev/sda [superblocks]\n\
        1 3000 4000 v /dev/sda\n1 4000 8000 u /dev/sda\n1 4000 8000 v /dev/sda\n1 8000 10000 v /dev/sda\n";

    #[test]
    fn all_but_free_space_is_in_use() {
        let map = text::read(MAP.as_bytes()).unwrap();
        let (used, size) = in_use(&map, 1).unwrap();
        assert_eq!(size, 0x10000);
        let expected = [(0, 0x2000), (0x3000, 0x4000), (0x8000, 0x10000)];
        assert!(used.iter().eq(expected.map(|(start, end)| DiskRange::new(start, end))), "{used:?}");
        let mut out = Vec::new();
        write(&map, 1, &mut out).unwrap();
        let options = rangelist::RangeListOptions { statuses: Some(b"+".to_vec()), ..Default::default() };
        let list = rangelist::read(&out[..], &options).unwrap();
        assert_eq!((list.kind, list.end), (rangelist::Kind::Ddrescue, size));
        assert_eq!(list.spans, used);
    }

    #[test]
    fn a_map_that_does_not_know_is_refused() {
        let map = text::read(MAP.as_bytes()).unwrap();
        assert!(matches!(in_use(&map, 2), Err(DomainError::NoDisk(2))));
        let bare = text::read(&b"1 0 1000 f /dev/sda /a\n1 0 1000 v /dev/sda\n"[..]).unwrap();
        assert!(matches!(in_use(&bare, 1), Err(DomainError::NoFreeSpace)));
    }
}
