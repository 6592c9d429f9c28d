//! Finds compressed data on a disk without knowledge of the filesystem. A frame of zstd or a stream
//! of zlib must have the right first bytes, and it must decompress.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt;

/// The most bytes that filesystems compress in one piece.
const MOST: usize = 128 << 10;

/// RFC 8878: the magic number at the beginning of a frame.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// RFC 1950: the header of a stream with a window of 32 KiB, at the highest level.
const ZLIB: [u8; 2] = [0x78, 0xda];

/// All frames of a disk: for each its offset, its length, and its decompressed content.
pub(crate) fn frames(disk: &File) -> Vec<(u64, u64, Vec<u8>)> {
    let size = disk.metadata().unwrap().len();
    let mut frames = Vec::new();
    let mut buffer = vec![0; (1 << 20) + MOST];
    let mut start = 0;
    while let Ok(data) = rustix::fs::seek(disk, rustix::fs::SeekFrom::Data(start)) {
        start = data;
        let part = &mut buffer[..(size - start).min((1 << 20) + MOST as u64) as usize];
        disk.read_exact_at(part, start).unwrap();
        let mut frame = |hit: usize, found: Option<(usize, Vec<u8>)>| {
            frames.extend(found.map(|(length, content)| (start + hit as u64, length as u64, content)));
        };
        for hit in memchr::memmem::find_iter(part, &ZSTD).take_while(|hit| *hit < 1 << 20) {
            frame(hit, zstd(&part[hit..]));
        }
        for hit in memchr::memmem::find_iter(part, &ZLIB).take_while(|hit| *hit < 1 << 20) {
            frame(hit, zlib(&part[hit..]));
        }
        start += 1 << 20;
    }
    frames
}

fn zlib(bytes: &[u8]) -> Option<(usize, Vec<u8>)> {
    let mut content = Vec::new();
    let mut stream = flate2::bufread::ZlibDecoder::new(bytes);
    stream.read_to_end(&mut content).ok()?;
    Some((stream.total_in() as usize, content))
}

fn zstd(bytes: &[u8]) -> Option<(usize, Vec<u8>)> {
    let mut rest = bytes;
    let mut content = Vec::new();
    let mut frame = ruzstd::decoding::StreamingDecoder::new(&mut rest).ok()?;
    frame.read_to_end(&mut content).ok()?;
    Some((bytes.len() - rest.len(), content))
}
