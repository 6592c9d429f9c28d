//! Entry points of the fuzz targets for disks inside other files. The tests call them with random
//! input.
//!
//! No input may cause a panic, or give a disk that reaches past the end.
#![allow(dead_code, reason = "each target uses one of the entries")]

use virt_bmap_archives::ova;

const BLOCK: usize = 512;

/// Reads an appliance: once as it is, and once as a sound archive with a description and a disk, of
/// which the input is the description. Returns how many disks were found.
pub(crate) fn ova(data: &[u8]) -> usize {
    let mut archive = Vec::new();
    for (name, content) in [("a.ovf", data), ("d", b"1")] {
        let mut header = [0; BLOCK];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive.extend(header);
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    }
    let mut found = 0;
    for bytes in [archive, sound_headers(data)] {
        if let Ok(ova) = ova::read(&bytes) {
            found += ova.disks.len();
            assert!(ova.disks.iter().all(|disk| disk.offset + disk.size <= bytes.len() as u64));
        }
    }
    found
}

/// The same bytes, with a magic and a checksum in each block that has the beginning of a magic:
/// random bytes are no headers without it.
fn sound_headers(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    for header in bytes.chunks_exact_mut(BLOCK).filter(|block| block[257] == b'u') {
        header[257..262].copy_from_slice(b"ustar");
        header[148..156].fill(b' ');
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}
