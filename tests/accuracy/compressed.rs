//! Finds compressed data on a disk without knowledge of the filesystem. A frame of zstd or a stream
//! of zlib must have the right first bytes, and it must decompress. A block of LZ4 has no first
//! bytes of its own: it must decompress to something that has a pattern.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt;

/// The most bytes that filesystems compress in one piece.
const MOST: usize = 128 << 10;

/// RFC 8878: the magic number at the beginning of a frame.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// RFC 1950: the header of a stream with a window of 32 KiB, at the highest level.
const ZLIB: [u8; 2] = [0x78, 0xda];

/// Bytes of the blocks in which EROFS keeps data that LZ4 has compressed. Zeroes precede the data.
const LZ4_BLOCK: usize = 4096;

/// The most bytes that a block of LZ4 can hold: each byte of it stands for at most 255.
const LZ4_MOST: usize = LZ4_BLOCK * 255;

/// All blocks of a disk that LZ4 has compressed and that hold `pattern`: for each its offset, its
/// length, and its decompressed content.
pub(crate) fn lz4_blocks(disk: &File, pattern: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
    let size = disk.metadata().unwrap().len();
    let mut blocks = Vec::new();
    let (mut block, mut content) = ([0; LZ4_BLOCK], vec![0; LZ4_MOST]);
    let mut at = 0;
    while let Ok(data) = rustix::fs::seek(disk, rustix::fs::SeekFrom::Data(at)) {
        at = data.next_multiple_of(LZ4_BLOCK as u64);
        if at + LZ4_BLOCK as u64 > size {
            break;
        }
        disk.read_exact_at(&mut block, at).unwrap();
        // Compressed data still has the pattern once, as it is.
        let is_one = memchr::memmem::find(&block, pattern).is_some();
        let first = block.iter().position(|byte| *byte != 0).filter(|_| is_one);
        let length =
            first.and_then(|first| lz4_flex::block::decompress_into(&block[first..], &mut content).ok());
        if let Some(length) = length {
            blocks.push((at, LZ4_BLOCK as u64, content[..length].to_vec()));
        }
        at += LZ4_BLOCK as u64;
    }
    blocks
}

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
