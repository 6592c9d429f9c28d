//! The raw image as oracle. A search finds patterned sectors without a parser.

use super::ranges::{Range, normalise};
use super::special::{MAGIC, SECTOR, sector};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The patterned sectors of a disk: the number of the file, the number of the sector in it, and all
/// disk offsets at which that sector was found.
pub type Found = BTreeMap<u32, BTreeMap<u32, Vec<u64>>>;

/// Looks for patterned sectors in the raw image `disk`.
///
/// The last sector of a file may be incomplete. It is recognised by its first 16 bytes.
pub fn scan(disk: &Path) -> Found {
    let file = File::open(disk).unwrap();
    let size = file.metadata().unwrap().len();
    let mut found = Found::new();
    let mut buffer = vec![0; 1 << 20];
    for start in (0..size).step_by(buffer.len()) {
        let part = &mut buffer[..(size - start).min(1 << 20) as usize];
        file.read_exact_at(part, start).unwrap();
        for (i, bytes) in part.chunks(SECTOR).enumerate() {
            if !bytes.starts_with(&MAGIC) {
                continue;
            }
            let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let (id, n) = (number(8), number(12));
            // At the end of a file, zeroes follow the first bytes of the pattern.
            let whole = sector(id, n);
            let end = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
            if bytes[..end] == whole[..end] {
                found.entry(id).or_default().entry(n).or_default().push(start + (i * SECTOR) as u64);
            }
        }
    }
    found
}

/// The places of the sectors of file `id`. Each sector must be found exactly once.
pub fn on_disk(found: &Found, id: u32) -> Vec<Range> {
    let sectors = found.get(&id).unwrap_or_else(|| panic!("no sector of file {id} on the disk"));
    normalise(sectors.iter().map(|(n, places)| {
        let [place] = places[..] else { panic!("sector {n} of file {id} stands at {places:x?}") };
        place..place + SECTOR as u64
    }))
}
