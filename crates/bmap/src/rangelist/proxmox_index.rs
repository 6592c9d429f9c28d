//! An index of fixed chunks (`.fidx`) of Proxmox Backup Server ("File Formats", "Fixed Index
//! Format"), compared with that of an earlier backup of the disk: the chunks whose digests differ.
//!
//! The header has 4096 bytes, numbers are little-endian: magic, UUID, time, digest of the index,
//! size of the disk at byte 64, size of a chunk at byte 72. Then comes a SHA-256 digest for each
//! chunk.

use std::io::{self, BufRead, Read};

use super::{Entries, Kind, ListError, RangeListOptions};

const MAGIC: [u8; 8] = [47, 127, 65, 237, 145, 253, 15, 205];
const HEADER: usize = 4096;
const DIGEST: usize = 32;

/// Whether a file begins like one.
pub(super) fn is(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
}

/// Size of the disk and of a chunk.
#[derive(PartialEq, Eq)]
struct Sizes {
    disk: u64,
    chunk: u64,
}

fn broken<T>(problem: &'static str) -> Result<T, ListError> {
    Err(ListError::Broken { kind: Kind::ProxmoxIndex, problem })
}

/// Fills `bytes`, or says that the index is too short.
fn fill(input: &mut dyn Read, bytes: &mut [u8]) -> Result<(), ListError> {
    match input.read_exact(bytes) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => broken("it ends too early"),
        done => Ok(done?),
    }
}

fn sizes(input: &mut dyn Read) -> Result<Sizes, ListError> {
    let mut header = [0; HEADER];
    fill(input, &mut header)?;
    if !is(&header) {
        return broken("it has another magic number");
    }
    let number = |at: usize| header[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let sizes = Sizes { disk: number(64), chunk: number(72) };
    if sizes.chunk == 0 {
        return broken("its chunks have no size");
    }
    Ok(sizes)
}

pub(super) fn read(
    input: &mut dyn BufRead,
    options: &RangeListOptions,
    entries: &mut Entries,
) -> Result<String, ListError> {
    let mut older = options.older.as_deref().ok_or(ListError::NoOlder)?;
    let now = sizes(input)?;
    if now != sizes(&mut older)? {
        return Err(ListError::OtherDisk);
    }
    let mut digests = [[0; DIGEST]; 2];
    let mut start = 0;
    while start < now.disk {
        let [new, old] = &mut digests;
        fill(input, new)?;
        fill(&mut older, old)?;
        let length = now.chunk.min(now.disk - start);
        let problem =
            |problem| ListError::Entry { entry: start / now.chunk + 1, kind: Kind::ProxmoxIndex, problem };
        entries.push(start, length, new != old).map_err(problem)?;
        start += length;
    }
    if !input.fill_buf()?.is_empty() {
        return broken("it goes on after its last chunk");
    }
    Ok(format!("chunks of {} bytes that differ", now.chunk))
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, ListError, RangeListOptions, read};
    use super::{HEADER, MAGIC};
    use virt_bmap_ranges::DiskRange;

    fn index(disk: u64, digests: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[64..72].copy_from_slice(&disk.to_le_bytes());
        bytes[72..80].copy_from_slice(&(4_u64 << 20).to_le_bytes());
        bytes.extend(digests.iter().flat_map(|&digest| [digest; 32]));
        bytes
    }

    fn compare(new: &[u8], old: Option<Vec<u8>>) -> Result<super::super::RangeList, ListError> {
        read(new, &RangeListOptions { older: old, ..RangeListOptions::default() })
    }

    #[test]
    fn chunks_that_differ_count() {
        let size = (9 << 20) + 512;
        let list = compare(&index(size, &[1, 2, 3]), Some(index(size, &[1, 9, 8]))).unwrap();
        assert_eq!((list.kind, list.entries, list.counted, list.end), (Kind::ProxmoxIndex, 3, 2, size));
        assert_eq!(list.spans.iter().collect::<Vec<_>>(), [DiskRange::new(4 << 20, size)]);
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let size = 8 << 20;
        let whole = index(size, &[1, 2]);
        assert!(matches!(compare(&whole, None), Err(ListError::NoOlder)));
        assert!(matches!(compare(&whole, Some(index(4 << 20, &[1]))), Err(ListError::OtherDisk)));
        for (new, old) in [
            (whole[..whole.len() - 1].to_vec(), whole.clone()),
            (whole.clone(), whole[..5000.min(whole.len() - 1)].to_vec()),
            (whole.clone(), b"rbd".to_vec()),
            (index(size, &[1, 2, 3]), whole.clone()),
        ] {
            assert!(matches!(compare(&new, Some(old)), Err(ListError::Broken { .. })));
        }
    }
}
