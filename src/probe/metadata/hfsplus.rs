//! HFS+ and HFSX: the kernel reports nothing of their metadata, but the volume header says where
//! the filesystem's own files lie, and one of these is the bitmap of blocks in use (Apple's
//! Technical Note TN1150, "HFS Plus Volume Format").

use super::{Blocks, Facts, RESERVED, units};
use crate::probe::device::{Device, Fields};
use virt_bmap_ranges::{DeviceOffset, Range};

/// Largest bitmap that is read: of 2³⁰ blocks.
const LARGEST: u64 = 128 << 20;

/// Where the volume header lies, and how far from the end its copy lies.
const HEADER: u64 = 1024;
const HEADER_SIZE: u64 = 512;

/// Attributes of the volume: it was unmounted; it is inconsistent; it has a journal.
const UNMOUNTED: u32 = 1 << 8;
const INCONSISTENT: u32 = 1 << 11;
const JOURNALED: u32 = 1 << 13;

/// A flag of the journal: it is on this volume.
const JOURNAL_IS_HERE: u32 = 1;

/// The files that the volume header describes, and the offsets of their descriptions.
const ALLOCATION_FILE: usize = 112;
const FILES: [(&str, usize); 5] = [
    ("[allocation file]", ALLOCATION_FILE),
    ("[extents overflow file]", 192),
    ("[catalog file]", 272),
    ("[attributes file]", 352),
    ("[startup file]", 432),
];

pub(super) fn describe(facts: &mut Facts, device: &mut Device<'_>, read: &Blocks) {
    let Some(header) = device.read(HEADER, HEADER_SIZE) else { return };
    let Some(volume) = Volume::of(&header).filter(|volume| volume.end() <= device.size) else { return };
    let is_read = |range: &Range<DeviceOffset>| read.overlap(*range).next().is_some();
    let copies = [volume.end(), device.size].map(|end| end.saturating_sub(HEADER));
    let is_header = |at: &u64| device.read(*at, 4).is_some_and(|bytes| bytes == header[..4]);
    let headers = [HEADER].into_iter().chain(copies.into_iter().filter(is_header));
    facts.name("[volume headers]", headers.map(|at| Range::new(at, at + HEADER_SIZE)), true);
    facts.name(RESERVED, volume.reserved(), true);
    for (name, at) in FILES {
        let extents = volume.extents(&header, at).unwrap_or_default();
        let is_read = extents.iter().any(is_read);
        facts.name(name, extents, is_read);
    }
    if let Some(block) = volume.journal {
        let journal = device.read(block.start.0, 52).and_then(|about| volume.journal(&about));
        let begins = |range: Range<DeviceOffset>| device.read(range.start.0, 4);
        // The byte order is that of the machine that made it.
        let is_one = journal.and_then(begins).is_some_and(|magic| magic == *b"JNLx" || magic == *b"xLNJ");
        facts.name("[journal]", [block].into_iter().chain(journal), is_one);
    }
    let _ = describe_free(facts, device, &volume, &header);
}

fn describe_free(facts: &mut Facts, device: &Device<'_>, volume: &Volume, header: &[u8]) -> Option<()> {
    let length = volume.blocks.div_ceil(8);
    // The kernel does not replay the journal, which may change the blocks in use.
    if !volume.is_clean || length > LARGEST {
        return None;
    }
    let mut bits = Vec::new();
    for extent in volume.extents(header, ALLOCATION_FILE)? {
        bits.extend(device.read(extent.start.0, extent.len().min(length - bits.len() as u64))?);
    }
    if bits.len() as u64 != length {
        return None;
    }
    facts.free = Some(units((0..volume.blocks).filter(|block| is_free(&bits, *block)), 0, volume.block));
    facts.whole.insert(Range::new(0, volume.end()));
    Some(())
}

/// The highest bit is the first block.
fn is_free(bits: &[u8], block: u64) -> bool {
    bits.get((block / 8) as usize).is_some_and(|bits| bits << (block % 8) & 0x80 == 0)
}

/// The content of the volume header.
#[derive(Debug, PartialEq, Eq)]
struct Volume {
    /// Bytes of an allocation block.
    block: u64,
    blocks: u64,
    is_clean: bool,
    /// The block that says where the journal lies.
    journal: Option<Range<DeviceOffset>>,
}

impl Volume {
    fn of(header: &[u8]) -> Option<Self> {
        if !matches!(header.get(..2)?, b"H+" | b"HX") {
            return None;
        }
        let (attributes, block) = (header.be32(4)?, header.be32(40)?);
        if !block.is_power_of_two() || block < 512 {
            return None;
        }
        let is_clean = attributes & (UNMOUNTED | INCONSISTENT) == UNMOUNTED;
        let mut volume =
            Self { block: block.into(), blocks: header.be32(44)?.into(), is_clean, journal: None };
        if attributes & JOURNALED != 0 {
            volume.journal = volume.place(header.be32(12)?, 1);
        }
        Some(volume)
    }

    fn end(&self) -> u64 {
        self.blocks * self.block
    }

    /// What the blocks that hold the headers have in front of them and behind them: room for boot
    /// code, and for Apple.
    fn reserved(&self) -> [Range<DeviceOffset>; 4] {
        let (first, last) = (HEADER + HEADER_SIZE, self.end().saturating_sub(HEADER));
        let start = (last / self.block * self.block).max(first);
        [
            Range::new(0, HEADER),
            Range::new(first, first.next_multiple_of(self.block)),
            Range::new(start.min(last), last),
            Range::new(last + HEADER_SIZE, last + HEADER),
        ]
    }

    /// Where blocks lie; `None` if they are not on the volume.
    fn place(&self, first: u32, count: u32) -> Option<Range<DeviceOffset>> {
        let (first, last) = (u64::from(first), u64::from(first) + u64::from(count));
        (last <= self.blocks).then(|| Range::new(first * self.block, last * self.block))
    }

    /// The extents of one of the [`FILES`]; `None` if it has more than fit into the header.
    fn extents(&self, header: &[u8], at: usize) -> Option<Vec<Range<DeviceOffset>>> {
        let mut left = header.be32(at + 12)?;
        let mut extents = Vec::new();
        for at in (at + 16..at + 80).step_by(8) {
            let (first, count) = (header.be32(at)?, header.be32(at + 4)?);
            left = left.checked_sub(count)?;
            extents.extend(Some(self.place(first, count)?).filter(|extent| !extent.is_empty()));
        }
        (left == 0).then_some(extents)
    }

    /// Where the journal lies, according to the block that describes it.
    fn journal(&self, about: &[u8]) -> Option<Range<DeviceOffset>> {
        let range = Range::at(DeviceOffset(about.be64(36)?), about.be64(44)?)?;
        (about.be32(0)? & JOURNAL_IS_HERE != 0 && range.end.0 <= self.end()).then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A journaled volume of 1000 blocks of 4 KiB, whose bitmap has two extents.
    fn header() -> Vec<u8> {
        let mut header = vec![0; 512];
        header[..4].copy_from_slice(b"H+\0\x04");
        let words = [(4, UNMOUNTED | JOURNALED), (12, 7), (40, 4096), (44, 1000)];
        let bitmap = [(124, 3), (128, 2), (132, 1), (136, 10), (140, 2)];
        for (at, word) in words.into_iter().chain(bitmap) {
            header[at..at + 4].copy_from_slice(&u32::to_be_bytes(word));
        }
        header
    }

    fn with(at: usize, byte: u8) -> Vec<u8> {
        let mut header = header();
        header[at] = byte;
        header
    }

    fn blocks(first: u64, count: u64) -> Range<DeviceOffset> {
        Range::new(first * 4096, (first + count) * 4096)
    }

    #[test]
    fn files_are_found() {
        let volume = Volume::of(&header()).unwrap();
        assert_eq!((volume.end(), volume.is_clean), (1000 * 4096, true));
        assert_eq!(volume.extents(&header(), ALLOCATION_FILE), Some(vec![blocks(2, 1), blocks(10, 2)]));
        assert_eq!(volume.extents(&header(), 192), Some(vec![]));
        assert_eq!(volume.journal, Some(blocks(7, 1)));
        let mut about = vec![0; 52];
        (about[3], about[42], about[50]) = (1, 0x10, 0x20);
        assert_eq!(volume.journal(&about), Some(Range::new(0x1000, 0x3000)));
        about[3] = 2;
        assert_eq!(volume.journal(&about), None);
        (about[3], about[36]) = (1, 0xff);
        assert_eq!(volume.journal(&about), None);
        assert!(Volume::of(&with(1, b'X')).is_some());
        let end = 1000 * 4096;
        let reserved = [(0, 1024), (1536, 4096), (end - 4096, end - 1024), (end - 512, end)];
        assert_eq!(volume.reserved(), reserved.map(|(start, end)| Range::new(start, end)));
    }

    #[test]
    fn bits_are_counted_from_the_highest() {
        let bits = [0b1110_1111, 0b0111_1111];
        assert_eq!((0..20).filter(|block| is_free(&bits, *block)).collect::<Vec<_>>(), [3, 8]);
    }

    #[test]
    fn invalid_headers_are_refused() {
        for (at, byte) in [(0, b'B'), (42, 0), (43, 1), (40, 0x80)] {
            assert_eq!(Volume::of(&with(at, byte)), None, "{at}");
        }
        let extents = |header: Vec<u8>| Volume::of(&header).unwrap().extents(&header, ALLOCATION_FILE);
        // More extents, fewer blocks than in them, and a place beyond the end of the volume.
        for (at, byte) in [(127, 4), (127, 2), (128, 0xff), (138, 4)] {
            assert_eq!(extents(with(at, byte)), None, "{at}");
        }
        for attributes in [0, 0x09] {
            assert!(!Volume::of(&with(6, attributes)).unwrap().is_clean);
        }
    }
}
