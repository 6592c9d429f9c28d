//! Which blocks of an F2FS are in use: `/proc/fs/f2fs/DEVICE/segment_bits`, which the kernel makes
//! of its table of segments (`segment_bits_seq_show` in its `fs/f2fs/sysfs.c`), and of the
//! superblock where the segments begin (`struct f2fs_super_block` of `linux/f2fs_fs.h`).

use crate::getfsmap::{Spaces, push};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use virt_bmap_agent_protocol::record::BlockPurpose;

/// Most parts. A filesystem with more is not examined.
const MOST: usize = 1 << 23;

/// The blocks of all segments on the device at this path: free, or in use. `None` if the kernel
/// does not report them, or reports too many.
///
/// # Errors
/// The device cannot be read.
pub(crate) fn spaces(path: &str, device: OwnedFd) -> Result<Option<Spaces>, Errno> {
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let name = path.trim_start_matches("/dev/");
    let Ok(bits) = File::open(format!("/proc/fs/f2fs/{name}/segment_bits")) else { return Ok(None) };
    let mut superblock = [0; 128];
    File::from(device).read_exact_at(&mut superblock, 1024).map_err(errno)?;
    let Some(segments) = Segments::of(&superblock) else { return Ok(None) };
    let mut spaces = Spaces::new();
    for line in BufReader::new(bits).lines() {
        segments.add(&line.map_err(errno)?, &mut spaces);
        if spaces.values().map(Vec::len).sum::<usize>() > MOST {
            return Ok(None);
        }
    }
    Ok(Some(spaces).filter(|spaces| !spaces.is_empty()))
}

/// The place of the segments.
struct Segments {
    /// Offset of the first segment, in bytes.
    start: u64,
    block: u64,
    /// Number of blocks in a segment.
    blocks: u64,
}

impl Segments {
    fn of(superblock: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(*superblock.get(at..)?.first_chunk()?));
        let (block, blocks) = (1u64.checked_shl(word(16)?)?, 1u64.checked_shl(word(20)?)?);
        let makes_sense = (512..=65536).contains(&block) && (8..=65536).contains(&blocks);
        makes_sense.then_some(Self { start: u64::from(word(92)?) * block, block, blocks })
    }

    /// Adds a segment's line: its number, its type, how many blocks are valid, and a bit for each,
    /// the highest first. The lines above the table have another form.
    fn add(&self, line: &str, spaces: &mut Spaces) -> Option<()> {
        let mut parts = line.split('|');
        let mut about = parts.next()?.split_whitespace();
        let number: u64 = about.next()?.parse().ok()?;
        // `CURSEG_HOT_NODE` and what follows it.
        let holds_nodes = about.next()?.parse::<u8>().ok()? >= 3;
        let used = if holds_nodes { BlockPurpose::Nodes } else { BlockPurpose::Unknown };
        let bits = parts.nth(1)?.split_whitespace().map(|byte| u8::from_str_radix(byte, 16));
        let mut at = number.checked_mul(self.blocks * self.block)?.checked_add(self.start)?;
        for byte in bits.take(usize::try_from(self.blocks / 8).ok()?) {
            let byte = byte.ok()?;
            for bit in (0..8).rev() {
                let purpose = if byte >> bit & 1 == 0 { BlockPurpose::Free } else { used };
                push(spaces, purpose, at, self.block);
                at = at.checked_add(self.block)?;
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_a_segment_are_its_blocks() {
        let mut superblock = [0; 128];
        for (at, word) in [(16, 12u32), (20, 4), (92, 100)] {
            superblock[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        let segments = Segments::of(&superblock).unwrap();
        let mut spaces = Spaces::new();
        for line in [
            "format: segment_type|valid_blocks|bitmaps",
            "",
            "2         3|1  | 80 01",
            "3         0|0  | 00 00",
        ] {
            segments.add(line, &mut spaces);
        }
        let block = |number: u64, count: u64| ((100 + number) * 4096, count * 4096);
        assert_eq!(spaces[&BlockPurpose::Nodes], [block(32, 1), block(47, 1)]);
        assert_eq!(spaces[&BlockPurpose::Free], [block(33, 14), block(48, 16)]);
        superblock[16] = 200;
        assert!(Segments::of(&superblock).is_none() && Segments::of(&superblock[..90]).is_none());
    }
}
