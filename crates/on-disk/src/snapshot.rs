//! The store of a snapshot of the device mapper: which chunks of the origin it holds, and where
//! (`drivers/md/dm-snap-persistent.c` of the kernel). LVM calls it the COW volume.
//!
//! The first chunk is a header. Areas follow: a chunk with a list of exceptions, and as many chunks
//! of data as the list has room for.

use crate::{Fields, Read};

const MAGIC: u32 = 0x7041_6e53;
/// Bytes of an exception: the number of a chunk of the origin, and of the chunk that holds it.
const EXCEPTION: usize = 16;

/// What a store holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Store {
    /// Chunks of the origin, ascending, and the chunks of the store that hold them.
    pub exceptions: Vec<(u64, u64)>,
    /// The chunks of the store with its header and its lists.
    pub lists: Vec<u64>,
}

/// What a valid store with chunks of so many bytes holds. `size` is that of the store, in bytes.
/// `None` if it has another size of chunks, or is damaged or full.
pub fn store(read: Read<'_>, chunk: u64, size: u64) -> Option<Store> {
    let header = read(0, 512)?;
    let is_store = header.le32(0)? == MAGIC && header.le32(4)? == 1;
    if !is_store || u64::from(header.le32(12)?) * 512 != chunk || chunk < 512 {
        return None;
    }
    let chunks = size / chunk;
    let per_area = chunk / EXCEPTION as u64;
    let mut store = Store { exceptions: Vec::new(), lists: vec![0] };
    let mut area = 1;
    'areas: while area < chunks {
        let list = read(area.checked_mul(chunk)?, chunk)?;
        store.lists.push(area);
        for exception in list.chunks_exact(EXCEPTION) {
            let (old, new) = (exception.le64(0)?, exception.le64(8)?);
            if new == 0 {
                break 'areas;
            }
            if new >= chunks {
                return None;
            }
            store.exceptions.push((old, new));
        }
        area += per_area + 1;
    }
    store.exceptions.sort_unstable();
    // A chunk of the origin is kept once.
    store.exceptions.is_sorted_by(|a, b| a.0 < b.0).then_some(store)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader;

    /// A store with chunks of 512 bytes, so 32 exceptions in an area, with these exceptions.
    fn disk(exceptions: &[(u64, u64)]) -> Vec<u8> {
        let mut disk = vec![0; 100 * 512];
        for (at, word) in [(0, MAGIC), (4, 1), (8, 1), (12, 1)] {
            disk[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        for (index, (old, new)) in exceptions.iter().enumerate() {
            let at = (1 + index / 32 * 33) * 512 + index % 32 * 16;
            disk[at..at + 8].copy_from_slice(&old.to_le_bytes());
            disk[at + 8..at + 16].copy_from_slice(&new.to_le_bytes());
        }
        disk
    }

    fn found(disk: &[u8]) -> Option<Vec<(u64, u64)>> {
        Some(store(&reader(disk), 512, disk.len() as u64)?.exceptions)
    }

    #[test]
    fn exceptions_of_all_areas_are_found() {
        let all: Vec<_> = (0..40).map(|number| (number * 7, 99 - number)).collect();
        assert_eq!(found(&disk(&all)), Some(all.clone()));
        assert_eq!(found(&disk(&[(5, 2), (3, 3)])), Some(vec![(3, 3), (5, 2)]));
        assert_eq!(found(&disk(&[])), Some(Vec::new()));
        assert_eq!(store(&reader(&disk(&all)), 512, 100 * 512).unwrap().lists, [0, 1, 34]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!(found(&disk(&[(5, 2), (5, 3)])), None);
        assert_eq!(found(&disk(&[(5, 100)])), None);
        let mut invalid = disk(&[]);
        invalid[4] = 0;
        assert_eq!(found(&invalid), None);
        assert_eq!(store(&reader(&disk(&[])), 4096, 100 * 512), None);
    }
}
