//! The `$MFT` of an NTFS volume, read from its device while ntfs-3g has the volume mounted.
//!
//! ntfs-3g shows neither where named streams lie nor files with the reparse points of others, and
//! FIBMAP is a call for each block. The `$MFT` has it all. A single record is read through the
//! cache of the block device, where ntfs-3g has just put it; all of `$MFT` goes past the cache.

use crate::buffer::{ALIGNMENT, AlignedBuffer};
use crate::getfsmap::{Spaces, push};
use rustix::fd::OwnedFd;
use rustix::io::{Errno, pread};
use std::cell::RefCell;
use std::io;
use virt_bmap_agent_protocol::record::{BlockPurpose, Extent, ObjectKind};
use virt_bmap_ntfs::{AttributeType, Content, File, ReadAt, Stream, Volume};

/// Bytes in a page of the kernel.
const PAGE: u64 = 4096;

/// Reads of at least this length go past the cache.
const LONG: usize = 64 << 10;

/// Bytes that are read past the cache at a time.
const CHUNK: usize = 1 << 20;

/// The name of the index that is a directory.
const I30: &[u8] = b"$I30";

/// `IO_REPARSE_TAG_WOF`: the data is in a stream, compressed.
const WOF: u32 = 0x8000_0017;

/// The block device of a volume.
pub(crate) struct Device {
    cached: OwnedFd,
    direct: Option<OwnedFd>,
    buffer: RefCell<AlignedBuffer>,
}

impl Device {
    /// `cached` and `direct` are one device, opened without and with `O_DIRECT`.
    pub(crate) fn new(cached: OwnedFd, direct: Option<OwnedFd>) -> Self {
        Self { cached, direct, buffer: RefCell::new(AlignedBuffer::new(CHUNK)) }
    }
}

impl ReadAt for Device {
    fn read_at(&self, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
        let direct = self.direct.as_ref().filter(|_| bytes.len() >= LONG);
        while !bytes.is_empty() {
            let got = match direct {
                Some(direct) => {
                    let mut buffer = self.buffer.borrow_mut();
                    let skip = (offset % ALIGNMENT as u64) as usize;
                    let want = (skip + bytes.len()).next_multiple_of(ALIGNMENT).min(CHUNK);
                    let got = pread(direct, &mut buffer[..want], offset - skip as u64);
                    got.map(|got| {
                        let part = buffer.get(skip..got).unwrap_or_default();
                        let length = part.len().min(bytes.len());
                        bytes[..length].copy_from_slice(&part[..length]);
                        length
                    })
                }
                None => pread(&self.cached, &mut *bytes, offset),
            };
            match got {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => {
                    offset += got as u64;
                    bytes = &mut bytes[got..];
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// The extents of an attribute.
pub(crate) fn extents(volume: &Volume<Device>, file: &File, stream: &Stream) -> Vec<Extent> {
    let cluster = volume.geometry().cluster;
    let runs = match &stream.content {
        Content::Resident(_) if stream.size == 0 => return Vec::new(),
        Content::Resident(_) => {
            // The record, in which it lies; the place is 0 where a record has several pieces.
            let physical = volume.place_of(stream.record).unwrap_or(0);
            return vec![Extent { logical: 0, physical, length: stream.size, flags: Extent::INLINE }];
        }
        Content::Runs(runs) => runs,
    };
    let is_wof = file.reparse == Some(WOF) && !stream.name.is_empty();
    let mut flags = 0;
    if stream.is_compressed || stream.is_encrypted || is_wof {
        flags |= Extent::ENCODED;
    }
    if stream.is_encrypted {
        flags |= Extent::ENCRYPTED;
    }
    let written = if flags != 0 { u64::MAX } else { written(stream, cluster) };
    let mut extents = Vec::new();
    for (lcn, run) in runs.iter().filter_map(|run| Some((run.lcn?, run))) {
        let (logical, physical, length) = (run.vcn * cluster, lcn * cluster, run.length * cluster);
        let first = written.saturating_sub(logical).min(length);
        let parts = [(0, first, flags), (first, length - first, flags | Extent::UNWRITTEN)];
        for (into, length, flags) in parts.into_iter().filter(|(_, length, _)| *length > 0) {
            extents.push(Extent { logical: logical + into, physical: physical + into, length, flags });
        }
    }
    extents
}

/// How many bytes of an attribute have been written: whole clusters, unless its initialized size
/// lies before its end; then reads end with the page that has the last written byte.
fn written(stream: &Stream, cluster: u64) -> u64 {
    let unit = if stream.initialized < stream.size { cluster.min(PAGE) } else { cluster };
    stream.initialized.checked_next_multiple_of(unit).unwrap_or(u64::MAX)
}

/// The attribute that makes up the object of a file: its data, or the blocks of a directory's index.
pub(crate) fn main_stream(file: &File) -> Option<&Stream> {
    match file.is_directory {
        true => file.named(AttributeType::INDEX_ALLOCATION, I30),
        false => file.data(),
    }
}

/// What an attribute of a file is in the map, if it is an object of its own: its kind, and what is
/// added to the path of the file.
pub(crate) fn part(file: &File, stream: &Stream) -> Option<(ObjectKind, Vec<u8>)> {
    if main_stream(file).is_some_and(|main| std::ptr::eq(main, stream)) {
        return None;
    }
    let is_stream = stream.kind == AttributeType::DATA && !stream.name.is_empty();
    if !is_stream && stream.clusters() == 0 {
        return None;
    }
    let of_index = stream.name == I30 || stream.name.is_empty();
    let mut suffix = Vec::new();
    if !of_index {
        suffix.push(b':');
        suffix.extend(stream.name.iter().flat_map(|byte| match byte {
            // No path in a map has these within a name.
            b'/' => b"%2F".as_slice(),
            0 => b"%00",
            byte => std::slice::from_ref(byte),
        }));
    }
    let what = match stream.kind {
        AttributeType::DATA if is_stream => return Some((ObjectKind::File, suffix)),
        AttributeType::DATA => " [data]",
        // The index of a file that is no directory, such as `$Secure:$SDH`.
        AttributeType::INDEX_ALLOCATION if !of_index => "",
        AttributeType::INDEX_ALLOCATION => " [index]",
        AttributeType::BITMAP if file.is_directory || !of_index => " [index bitmap]",
        AttributeType::BITMAP => " [bitmap]",
        AttributeType::ATTRIBUTE_LIST => " [attribute list]",
        AttributeType::SECURITY_DESCRIPTOR => " [security descriptor]",
        AttributeType::REPARSE_POINT => " [reparse point]",
        AttributeType::EA => " [extended attributes]",
        AttributeType::LOGGED_UTILITY_STREAM => " [logged utility stream]",
        AttributeType(_) => " [attribute]",
    };
    suffix.extend(what.bytes());
    Some((ObjectKind::Metadata, suffix))
}

/// Whether ntfs-3g shows a file with this tag as the symbolic link that it is: junctions, symbolic
/// links of Windows and those of its Linux subsystem.
pub(crate) fn is_link(tag: Option<u32>) -> bool {
    const MOUNT_POINT: u32 = 0xa000_0003;
    const SYMLINK: u32 = 0xa000_000c;
    const LX_SYMLINK: u32 = 0xa000_001d;
    matches!(tag, Some(MOUNT_POINT | SYMLINK | LX_SYMLINK))
}

/// The clusters of the volume: free, or in use.
pub(crate) fn spaces(volume: &Volume<Device>) -> Result<Option<Spaces>, Errno> {
    let cluster = volume.geometry().cluster;
    let mut spaces = Spaces::new();
    let mut end = 0;
    let mut used_until = |spaces: &mut Spaces, first: u64| {
        if end < first {
            push(spaces, BlockPurpose::Unknown, end * cluster, (first - end) * cluster);
        }
        end = first;
    };
    let free = volume.free_clusters(|first, count| {
        used_until(&mut spaces, first);
        push(&mut spaces, BlockPurpose::Free, first * cluster, count * cluster);
        used_until(&mut Spaces::new(), first + count);
    });
    used_until(&mut spaces, volume.geometry().clusters());
    free.map(|()| Some(spaces)).map_err(|_| Errno::UCLEAN)
}
