//! Compares two states of a disk, byte for byte.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use virt_bmap_image::Source;
use virt_bmap_ranges::{DiskOffset, DiskRange, IndexedRanges};

/// Number of bytes compared at a time. Differing ranges are not joined across multiples of this.
const CHUNK: u64 = 1 << 20;

/// A guest writes whole sectors, so equal bytes between two differing bytes of a sector were
/// written too.
const SECTOR: usize = 512;

/// Fewer equal bytes than this between differing bytes of two sectors are taken to be equal by
/// chance.
const CHANCE: u64 = 16;

/// Number of concurrent reads of each state.
const WORKERS: usize = 4;

/// The result of a comparison.
#[derive(Debug, Default)]
pub struct Compared {
    /// The bytes that differ: in each sector of 512 bytes, from the first to the last differing
    /// byte, because those between them were written too.
    pub differs: IndexedRanges,
    /// The bytes that could not be read in one of the states.
    pub unknown: IndexedRanges,
    /// The first read error.
    pub error: Option<io::Error>,
}

/// Compares the ranges `within` of two states of a disk. After its end, `old` counts as zeroes, as
/// for an image that is longer than the one below it. Bytes after the end of `new` are not
/// compared.
///
/// Several threads call `progress` with the number of bytes that they have just compared.
pub fn compare(
    old: &dyn Source,
    new: &dyn Source,
    within: &IndexedRanges,
    progress: &(dyn Fn(u64) + Sync),
) -> Compared {
    let disk = DiskRange::new(0, new.size());
    let chunks: Vec<DiskRange> =
        within.iter().filter_map(|span| span.intersection(disk)).flat_map(chunks).collect();
    let next = AtomicUsize::new(0);
    let all = Mutex::new((Vec::new(), Vec::new(), None));
    let work = || {
        let (mut differs, mut unknown, mut first_error) = (Vec::new(), Vec::new(), None);
        let mut buffers = [Vec::new(), Vec::new()];
        while let Some(&chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            match read_both(old, new, chunk, &mut buffers) {
                Ok(()) => differences(&buffers[0], &buffers[1], chunk.start.0, &mut differs),
                Err(error) => {
                    unknown.push(chunk);
                    first_error.get_or_insert(error);
                }
            }
            progress(chunk.len());
        }
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        all.0.append(&mut differs);
        all.1.append(&mut unknown);
        all.2 = all.2.take().or(first_error);
    };
    std::thread::scope(|scope| (0..WORKERS).for_each(|_| drop(scope.spawn(work))));
    let (differs, unknown, error) = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    Compared {
        differs: IndexedRanges::from_unsorted(differs),
        unknown: IndexedRanges::from_unsorted(unknown),
        error,
    }
}

/// The ranges that are data in at least one state of a disk; only these can differ. They do not
/// extend past the end of `new`.
///
/// # Errors
/// If the holes cannot be determined.
pub fn not_in_holes(old: &dyn Source, new: &dyn Source) -> io::Result<IndexedRanges> {
    let mut data = Vec::new();
    for source in [old, new] {
        let parts = source.allocation(DiskRange::new(0, new.size().min(source.size())))?;
        data.extend(parts.into_iter().filter(|part| !part.is_hole).map(|part| part.range));
    }
    Ok(IndexedRanges::from_unsorted(data))
}

/// Cuts a range at the multiples of [`CHUNK`].
fn chunks(span: DiskRange) -> impl Iterator<Item = DiskRange> {
    let mut start = span.start.0;
    std::iter::from_fn(move || {
        let end = (start / CHUNK + 1).saturating_mul(CHUNK).min(span.end.0);
        let chunk = (start < end).then(|| DiskRange::new(start, end));
        start = end;
        chunk
    })
}

/// Reads a chunk of both states.
fn read_both(
    old: &dyn Source,
    new: &dyn Source,
    chunk: DiskRange,
    [old_bytes, new_bytes]: &mut [Vec<u8>; 2],
) -> io::Result<()> {
    let length = chunk.len() as usize;
    old_bytes.clear();
    old_bytes.resize(length, 0);
    let below = old.size().saturating_sub(chunk.start.0).min(chunk.len()) as usize;
    read(old, &mut old_bytes[..below], chunk.start)?;
    new_bytes.resize(length, 0);
    read(new, new_bytes, chunk.start)
}

fn read(source: &dyn Source, buf: &mut [u8], offset: DiskOffset) -> io::Result<()> {
    if buf.is_empty() { Ok(()) } else { source.read_at(buf, offset) }
}

/// Adds the ranges in which `old` and `new`, bytes of the disk from `start`, differ.
fn differences(old: &[u8], new: &[u8], start: u64, found: &mut Vec<DiskRange>) {
    if old == new {
        return;
    }
    let first_here = found.len();
    let mut at = 0;
    while at < old.len() {
        let sector = at;
        at = (sector + SECTOR - (start as usize + sector) % SECTOR).min(old.len());
        let (old, new) = (&old[sector..at], &new[sector..at]);
        let differs = |(a, b): (&u8, &u8)| a != b;
        let (Some(first), Some(last)) =
            (old.iter().zip(new).position(differs), old.iter().zip(new).rposition(differs))
        else {
            continue;
        };
        let sector = start + sector as u64;
        let range = DiskRange::new(sector + first as u64, sector + last as u64 + 1);
        match found[first_here..].last_mut() {
            Some(before) if range.start.0 - before.end.0 < CHANCE => before.end = range.end,
            _ => found.push(range),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A disk in memory, of which some bytes cannot be read.
    struct Memory(Vec<u8>, DiskRange);

    impl Source for Memory {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<()> {
            let range = DiskRange::at(offset, buf.len() as u64).unwrap();
            if range.intersection(self.1).is_some() {
                return Err(io::Error::other("bad"));
            }
            let start = offset.0 as usize;
            buf.copy_from_slice(self.0.get(start..start + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
    }

    fn disk(bytes: Vec<u8>) -> Memory {
        Memory(bytes, DiskRange::new(0, 0))
    }

    proptest! {
        // Each case compares megabytes.
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn each_differing_byte_is_found_and_few_others(
            // Several changes in each of a few places.
            places in prop::collection::vec(0usize..(3 << 20) - 2000, 0..8),
            changes in prop::collection::btree_map((0usize..8, 0usize..2000), 1u8.., 0..60),
            from in 0u64..2 << 20,
            length in 0u64..2 << 20,
        ) {
            let old = disk(vec![7; 3 << 20]);
            let mut bytes = old.0.clone();
            let at = |(&(place, inside), &add): (&(usize, usize), &u8)| Some((places.get(place)? + inside, add));
            let changes: std::collections::BTreeMap<usize, u8> = changes.iter().filter_map(at).collect();
            for (&at, add) in &changes {
                bytes[at] = bytes[at].wrapping_add(*add);
            }
            let within = IndexedRanges::from_iter([DiskRange::new(from, from + length)]);
            let found = compare(&old, &disk(bytes.clone()), &within, &|_| ());
            let inside = changes.keys().filter(|&&at| (from..from + length).contains(&(at as u64)));
            prop_assert!(inside.clone().all(|&at| found.differs.bytes_in(DiskRange::new(at as u64, at as u64 + 1)) == 1));
            for range in found.differs.iter() {
                // A range begins and ends with a differing byte and has few equal bytes in between.
                let differing: Vec<_> = inside.clone().filter(|&&at| (range.start.0..range.end.0).contains(&(at as u64))).collect();
                prop_assert_eq!(*differing[0] as u64, range.start.0);
                prop_assert_eq!(**differing.last().unwrap() as u64 + 1, range.end.0);
                let is_near = |pair: &[&usize]| {
                    pair[0] / SECTOR == pair[1] / SECTOR || pair[1] - pair[0] <= CHANCE as usize
                };
                prop_assert!(differing.windows(2).all(is_near));
            }
            prop_assert!(found.unknown.is_empty() && found.error.is_none());
        }
    }

    #[test]
    fn a_shorter_old_disk_continues_with_zeroes() {
        let mut bytes = vec![0; 4096];
        bytes[3000] = 1;
        let all = IndexedRanges::from_iter([DiskRange::new(0, 1 << 30)]);
        let found = compare(&disk(vec![0; 1024]), &disk(bytes), &all, &|_| ());
        assert_eq!(found.differs.iter().collect::<Vec<_>>(), [DiskRange::new(3000, 3001)]);
        let found = compare(&disk(vec![1; 4096]), &disk(vec![0; 1024]), &all, &|_| ());
        assert_eq!(found.differs.bytes(), 1024);
    }

    #[test]
    fn unreadable_bytes_are_unknown() {
        let old = Memory(vec![0; 3 << 20], DiskRange::new(5 << 18, (5 << 18) + 1));
        let new = disk(vec![1; 3 << 20]);
        let all = IndexedRanges::from_iter([DiskRange::new(0, 3 << 20)]);
        let found = compare(&old, &new, &all, &|_| ());
        assert_eq!(found.unknown.iter().collect::<Vec<_>>(), [DiskRange::new(1 << 20, 2 << 20)]);
        assert_eq!(found.differs.bytes(), 2 << 20);
        assert_eq!(found.error.unwrap().to_string(), "bad");
    }
}
