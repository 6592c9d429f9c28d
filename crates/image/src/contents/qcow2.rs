//! The clusters and tables of a qcow2 (qemu's `docs/interop/qcow2.txt`).

use super::parts::{Holds, Piece};
use crate::file::{PlainFile, bytes_at};
use crate::references::{MAX_HEADER, MAX_L1, Unreadable, be32, be64, broken};
use std::io;
use virt_bmap_ranges::{ContainerRange, DiskRange};

/// The offset in an entry of a first- or second-level table.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The offset in an entry of the refcount table.
const REFCOUNT_OFFSET: u64 = 0xffff_ffff_ffff_fe00;
/// The cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Its refcount is one. With a data file, this tells the cluster at 0 from one that is not there.
const COPIED: u64 = 1 << 63;
/// The cluster reads as zeroes.
const ZERO: u64 = 1;
/// Incompatible feature: entries of second-level tables have 16 bytes.
const EXTENDED: u64 = 1 << 4;
/// Subclusters of a cluster with such an entry.
const SUBCLUSTERS: u64 = 32;
/// Unit of the length of compressed data.
const SECTOR: u64 = 512;
/// Largest refcount table, and most snapshots, that qemu opens (`block/qcow2.h`).
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
const MAX_SNAPSHOTS: u32 = 65536;
const MAX_SNAPSHOT_EXTRA: u32 = 1024;

/// Sizes that all tables share.
#[derive(Clone, Copy)]
struct Geometry {
    cluster_bits: u32,
    cluster: u64,
    /// Bytes of an entry of a second-level table.
    entry: u64,
    /// Bytes of the disk.
    size: u64,
    /// Whether the clusters are in another file.
    is_split: bool,
}

impl Geometry {
    /// Bytes of the disk for which a second-level table has entries.
    fn covers(self) -> u64 {
        self.cluster / self.entry * self.cluster
    }
}

/// Passes everything that the image holds to `each`. Clusters that a data file holds are passed
/// with their places there.
pub(super) fn walk(file: &PlainFile, is_split: bool, each: &mut dyn FnMut(Piece)) -> Result<(), Unreadable> {
    let header = file.read(0, MAX_HEADER)?;
    let version = be32(&header, 4)?;
    let cluster_bits = be32(&header, 20)?;
    if !(9..=21).contains(&cluster_bits) {
        return broken("its cluster size is not possible");
    }
    let features = if version >= 3 { be64(&header, 72)? } else { 0 };
    let geometry = Geometry {
        cluster_bits,
        cluster: 1 << cluster_bits,
        entry: if features & EXTENDED == 0 { 8 } else { 16 },
        size: be64(&header, 24)?,
        is_split,
    };
    let all = DiskRange::new(0, geometry.size);
    each(Piece::whole(Holds::Header, ContainerRange::new(0, header_end(&header, geometry)?), all));
    refcounts(file, &header, geometry, each)?;
    snapshots(file, &header, each)?;
    let (count, offset) = (u64::from(be32(&header, 36)?), be64(&header, 40)?);
    if count * 8 > MAX_L1 {
        return broken("its first-level table is too long");
    }
    // The table may be longer than the disk needs.
    let count = count.min(geometry.size.div_ceil(geometry.covers()));
    let table = ContainerRange::saturating(offset, count * 8);
    each(Piece::table(Holds::FirstTable, table, 0, 8, geometry.covers()).until(geometry.size));
    let mut most = file.size / geometry.cluster + 1;
    for (index, entry) in (0..).zip(file.read(offset, (count * 8) as usize)?.as_chunks().0) {
        let offset = u64::from_be_bytes(*entry) & OFFSET;
        if offset != 0 {
            most = most.checked_sub(1).ok_or_else(more_tables)?;
            second_level(file, offset, index * geometry.covers(), geometry, each)?;
        }
    }
    Ok(())
}

/// A table that several entries name is read once for each.
fn more_tables() -> Unreadable {
    Unreadable::Broken("it has more second-level tables than it has room for".to_owned())
}

/// Where the header ends, with its extensions and the name of the backing file.
fn header_end(header: &[u8], geometry: Geometry) -> Result<u64, Unreadable> {
    let fixed = if be32(header, 4)? >= 3 { be32(header, 100)?.into() } else { 72 };
    let mut end: u64 = fixed;
    while end < geometry.cluster
        && let (Ok(kind), Ok(length)) = (be32(header, end as usize), be32(header, end as usize + 4))
    {
        end += 8 + u64::from(length).next_multiple_of(8);
        if kind == 0 {
            break;
        }
    }
    let name = be64(header, 8)?.saturating_add(be32(header, 16)?.into());
    Ok(end.max(name).min(geometry.cluster.max(fixed)))
}

fn refcounts(
    file: &PlainFile,
    header: &[u8],
    geometry: Geometry,
    each: &mut dyn FnMut(Piece),
) -> Result<(), Unreadable> {
    let length = u64::from(be32(header, 56)?) * geometry.cluster;
    let table = ContainerRange::saturating(be64(header, 48)?, length);
    each(Piece::alone(Holds::RefcountTable, table));
    let entries = file.read(table.start.0, length.min(MAX_REFCOUNT_TABLE) as usize)?;
    for entry in entries.as_chunks().0 {
        let offset = u64::from_be_bytes(*entry) & REFCOUNT_OFFSET;
        if offset != 0 {
            let block = ContainerRange::saturating(offset, geometry.cluster);
            each(Piece::alone(Holds::RefcountBlock, block));
        }
    }
    Ok(())
}

/// The list of the internal snapshots. Their clusters are not those of the disk as it is now.
fn snapshots(file: &PlainFile, header: &[u8], each: &mut dyn FnMut(Piece)) -> Result<(), Unreadable> {
    const FIXED: usize = 40;
    let (count, start) = (be32(header, 60)?.min(MAX_SNAPSHOTS), be64(header, 64)?);
    let mut at = start;
    for _ in 0..count {
        let entry = file.read(at, FIXED)?;
        let (Ok(offset), Ok(length), Ok(extra)) = (be64(&entry, 0), be32(&entry, 8), be32(&entry, 36)) else {
            break;
        };
        let (Some(id), Some(name)) = (bytes_at(&entry, 12), bytes_at(&entry, 14)) else { break };
        let names = [id, name].map(u16::from_be_bytes).map(u64::from);
        let whole = FIXED as u64 + u64::from(extra.min(MAX_SNAPSHOT_EXTRA)) + names[0] + names[1];
        at = at.saturating_add(whole.next_multiple_of(8));
        let table = ContainerRange::saturating(offset, (u64::from(length) * 8).min(MAX_L1));
        each(Piece::alone(Holds::Snapshots, table));
    }
    each(Piece::alone(Holds::Snapshots, ContainerRange::new(start, at)));
    Ok(())
}

/// A second-level table for the bytes of the disk from `guest` on, and its clusters.
fn second_level(
    file: &PlainFile,
    offset: u64,
    guest: u64,
    geometry: Geometry,
    each: &mut dyn FnMut(Piece),
) -> io::Result<()> {
    let Geometry { cluster, entry, size, .. } = geometry;
    let table = ContainerRange::saturating(offset, cluster);
    each(Piece::table(Holds::SecondTable, table, guest, entry, cluster).until(size));
    let entries = file.read(offset, cluster as usize)?;
    for (index, bytes) in (0..).zip(entries.chunks_exact(entry as usize)) {
        let start = guest + index * cluster;
        if start >= size {
            break;
        }
        let number = |at| bytes_at(bytes, at).map_or(0, u64::from_be_bytes);
        clusters(number(0), (entry == 16).then(|| number(8)), start, geometry, &mut |piece: Piece| {
            each(piece.until(size));
        });
    }
    Ok(())
}

/// The cluster that an entry places, which is for the bytes of the disk from `guest` on. `bitmap`
/// says which of its subclusters are there.
fn clusters(entry: u64, bitmap: Option<u64>, guest: u64, geometry: Geometry, each: &mut dyn FnMut(Piece)) {
    let Geometry { cluster, cluster_bits, .. } = geometry;
    if entry & COMPRESSED != 0 {
        let bits = 62 - (cluster_bits - 8);
        let offset = entry & ((1 << bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> bits;
        let length = (sectors + 1) * SECTOR - offset % SECTOR;
        let at = ContainerRange::saturating(offset, length);
        return each(Piece::whole(Holds::Compressed, at, DiskRange::saturating(guest, cluster)));
    }
    let host = entry & OFFSET;
    if host == 0 && !(geometry.is_split && entry & COPIED != 0) {
        return;
    }
    let room =
        |start: u64, length| Piece::alone(Holds::Zeroes, ContainerRange::saturating(host + start, length));
    let Some(bitmap) = bitmap else {
        return each(match entry & ZERO {
            0 => Piece::data(host, guest, cluster),
            _ => room(0, cluster),
        });
    };
    let length = cluster / SUBCLUSTERS;
    for number in 0..SUBCLUSTERS {
        let start = number * length;
        each(match bitmap >> number & 1 {
            1 => Piece::data(host + start, guest + start, length),
            _ => room(start, length),
        });
    }
}
