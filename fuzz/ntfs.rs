//! Entry point of the fuzz target for NTFS: the input becomes records of a small volume whose boot
//! sector and first record are sound. The tests call it with random input.
//!
//! No input may cause a panic or give a run outside of the volume.

use virt_bmap_ntfs::{Volume, runs};

const CLUSTER: usize = 512;
const RECORD: usize = 1024;
/// Where `$MFT` begins.
const MFT: usize = 4 * CLUSTER;
const MOST_RECORDS: usize = 64;

/// Reads a volume with these records after the first one. Returns how many files it has.
pub(crate) fn volume(data: &[u8]) -> usize {
    let (list, _) = runs(data, 0, 1000);
    assert!(list.iter().all(|run| run.length > 0 && run.lcn.is_none_or(|lcn| lcn + run.length <= 1000)));

    let image = image(data);
    let clusters = (image.len() / CLUSTER) as u64;
    let Ok(volume) = Volume::open(&image[..]) else { return 0 };
    let mut count = 0;
    for file in volume.files().filter_map(|(_, file)| file.ok()) {
        count += 1;
        for stream in &file.streams {
            assert!(stream.runs().iter().all(|run| run.lcn.is_none_or(|lcn| lcn + run.length <= clusters)));
            assert!(stream.runs().windows(2).all(|pair| pair[0].end() <= pair[1].vcn));
        }
        let _ = volume.entries(&file, |_| {});
    }
    let _ = volume.free_clusters(|first, length| assert!(length > 0 && first + length <= clusters));
    let _ = (volume.is_dirty(), volume.is_log_open());
    count
}

fn image(data: &[u8]) -> Vec<u8> {
    let records = (data.len() / RECORD + 2).min(MOST_RECORDS);
    let mut image = vec![0; MFT + records * RECORD];
    let clusters = image.len() / CLUSTER;
    image[3..11].copy_from_slice(b"NTFS    ");
    image[0x0c..0x0e].copy_from_slice(&[2, 1]);
    image[0x28..0x30].copy_from_slice(&(clusters as u64).to_le_bytes());
    image[0x30] = (MFT / CLUSTER) as u8;
    image[0x40] = 0xf6;

    let mft = &mut image[MFT..];
    let length = data.len().min(mft.len() - RECORD);
    mft[RECORD..][..length].copy_from_slice(&data[..length]);
    let mut first = vec![0; 0x38];
    for (at, value) in [(0x14, 0x38), (0x16, 1), (0x18, 0x38 + 0x58)] {
        first[at] = value;
    }
    first.extend([0x80, 0, 0, 0, 0x50, 0, 0, 0, 1]);
    first.resize(0x38 + 24, 0);
    first.extend((2 * records as u64 - 1).to_le_bytes());
    first.extend([0x40, 0, 0, 0, 0, 0, 0, 0]);
    first.extend([(records * RECORD) as u64; 3].iter().flat_map(|size| size.to_le_bytes()));
    // The runs: of a length in one byte, at a place in one byte.
    first.extend([0x11, 2 * records as u8, (MFT / CLUSTER) as u8]);
    first.resize(0x38 + 0x50, 0);
    first.extend([0xff; 8]);
    mft[..first.len()].copy_from_slice(&first);
    // Random bytes are no records without this.
    for record in mft.chunks_exact_mut(RECORD) {
        record[..8].copy_from_slice(&[b'F', b'I', b'L', b'E', 0x30, 0, 3, 0]);
        record[0x16] |= 1;
        record[0x30..0x36].fill(0);
        record[510..512].fill(0);
        record[1022..].fill(0);
    }
    image
}
