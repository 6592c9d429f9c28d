//! Entry points of the fuzz targets for disks inside other files. The tests call them with random
//! input.
//!
//! No input may cause a panic, or give a disk that reaches past the end.
#![allow(dead_code, reason = "each target uses one of the entries")]

use virt_bmap_archives::ewf::Ewf;
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

/// Reads an EnCase image, whose sections and tables get the checksums that they need: random bytes
/// are no sections without them. Returns the size of the disk.
pub(crate) fn ewf(data: &[u8]) -> u64 {
    let Ok(image) = Ewf::open(vec![sound_sections(data)]) else { return 0 };
    let mut buf = vec![0; 70_000.min(image.size() as usize)];
    for offset in [0, image.size() - buf.len() as u64] {
        let _ = image.read_at(&mut buf, offset);
    }
    assert!(image.read_at(&mut [0; 2], image.size() - 1).is_err(), "a read past the end");
    image.size()
}

/// The same bytes after the header of a file, with all checksums.
pub(crate) fn sound_sections(data: &[u8]) -> Vec<u8> {
    let mut bytes = b"EVF\x09\x0d\x0a\xff\0\x01\x01\0\0\0".to_vec();
    bytes.extend(data);
    let mut at = 13;
    for _ in 0..64 {
        let Some(section) = bytes.get(at..at + 76) else { break };
        let kind = section[..16].to_vec();
        let number = |at: usize| u64::from_le_bytes(section[at..at + 8].try_into().unwrap_or_default());
        let (next, size) = (number(16), number(24) as usize);
        seal(&mut bytes, at, 76);
        if kind.starts_with(b"volume") {
            seal(&mut bytes, at + 76, 1052);
        } else if kind.starts_with(b"table") {
            seal(&mut bytes, at + 76, 24);
            let count = bytes
                .get(at + 76..at + 80)
                .map_or(0, |count| u32::from_le_bytes(count.try_into().unwrap_or_default()));
            seal(&mut bytes, at + 100, (count as usize).saturating_mul(4).saturating_add(4));
        } else if kind.starts_with(b"digest") {
            seal(&mut bytes, at + 76, size.saturating_sub(76));
        }
        if next <= at as u64 || next > bytes.len() as u64 {
            break;
        }
        at = next as usize;
    }
    bytes
}

/// Puts the Adler-32 (RFC 1950) of the bytes before them into the last four of `length` bytes.
fn seal(bytes: &mut [u8], at: usize, length: usize) {
    let Some(part) = at.checked_add(length).and_then(|end| bytes.get_mut(at..end)) else { return };
    let Some((data, sum)) = part.split_last_chunk_mut::<4>() else { return };
    let (mut a, mut b) = (1_u32, 0_u32);
    for byte in data.iter() {
        a = (a + u32::from(*byte)) % 65521;
        b = (b + a) % 65521;
    }
    *sum = (b << 16 | a).to_le_bytes();
}

/// The bytes after the file header of an image with one chunk, which is not compressed: what the
/// tests change.
pub(crate) fn small_ewf() -> Vec<u8> {
    let mut bytes = vec![0; 13];
    let mut add = |kind: &str, content: &[u8]| {
        let mut section = vec![0; 76];
        section[..kind.len()].copy_from_slice(kind.as_bytes());
        let end = (bytes.len() + 76 + content.len()) as u64;
        section[16..24].copy_from_slice(&end.to_le_bytes());
        section[24..32].copy_from_slice(&(76 + content.len() as u64).to_le_bytes());
        bytes.extend(section);
        bytes.extend(content);
    };
    let mut volume = vec![0; 1052];
    for (at, value) in [(4, 1_u32), (8, 2), (12, 512), (16, 2)] {
        volume[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let mut chunk = vec![7; 1028];
    seal(&mut chunk, 0, 1028);
    // Two entries, of 3 and of 5 sectors.
    let mut errors = vec![0; 520 + 16 + 4];
    (errors[0], errors[524], errors[532]) = (2, 3, 5);
    let start = 13 + 76 + 1052 + 76;
    let mut table = vec![0; 32];
    table[0] = 1;
    table[24..28].copy_from_slice(&(start as u32).to_le_bytes());
    for (kind, content) in [
        ("volume", &volume[..]),
        ("sectors", &chunk),
        ("table", &table),
        ("table2", &table),
        ("error2", &errors),
        ("digest", &[0; 80]),
        ("done", &[]),
    ] {
        add(kind, content);
    }
    bytes.split_off(13)
}
