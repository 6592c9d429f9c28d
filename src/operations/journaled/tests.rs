use super::*;
use virt_bmap_image::Allocation;
use virt_bmap_map::{Attributes, Header, MapBuilder, ObjectName};
use virt_bmap_ranges::FileOffset;

const DEVICE: &[u8] = b"/dev/sda";

/// A disk in memory.
struct Memory(Vec<u8>);

impl Source for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn try_read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<bool> {
        self.read_at(buf, offset).map(|()| true)
    }

    fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<()> {
        let start = offset.0 as usize;
        let part = self.0.get(start..start + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(part);
        Ok(())
    }

    fn allocation(&self, range: DiskRange) -> io::Result<Vec<Allocation>> {
        Ok(vec![Allocation { range, is_hole: false }])
    }
}

/// A disk of 16 blocks, each full of its byte.
fn disk(blocks: [u8; 16]) -> Vec<Arc<dyn Source>> {
    vec![Arc::new(Memory(blocks.into_iter().flat_map(|byte| [byte; BLOCK as usize]).collect()))]
}

fn set(parts: &[(u64, u64)]) -> RangeSet<DiskOffset> {
    parts.iter().map(|(start, end)| DiskRange::new(start * BLOCK, end * BLOCK)).collect()
}

/// What mounting wrote from a block on.
fn replayed(block: u64, bytes: &[u8]) -> Replayed {
    let bytes = bytes.iter().flat_map(|byte| [*byte; BLOCK as usize]).collect();
    Replayed { device: DEVICE.to_vec(), disk: 1, start: DiskOffset(block * BLOCK), bytes }
}

/// The maps of a filesystem whose file has the blocks 4 to 11.
fn maps() -> Maps {
    let mut builder = MapBuilder::new(Header::default());
    let name = ObjectName::path(Kind::File, DEVICE, b"/f");
    let file = builder.object(name, Attributes::default()).unwrap();
    builder.piece(file, 1, DiskRange::new(4 * BLOCK, 12 * BLOCK), Some(FileOffset(0))).unwrap();
    Maps::from([(DEVICE.to_vec(), Arc::new(builder.build()))])
}

#[test]
fn what_mounting_wrote_is_a_change_if_the_bytes_were_others() {
    let mut seen = Seen { disks: disk([0; 16]), ..Seen::default() };
    let first = vec![replayed(4, &[7, 0, 8])];
    assert_eq!(seen.changed(&first, &maps()).unwrap(), [set(&[(4, 5), (6, 7)])]);
    seen.replace([DEVICE].into_iter(), first);
    // The journal is replayed again, and has a block more. Block 6 has become another.
    let second = vec![replayed(4, &[7, 0, 9, 1])];
    assert_eq!(seen.changed(&second, &maps()).unwrap(), [set(&[(6, 8)])]);
    // Blocks that no file had are new, whatever they held.
    assert_eq!(seen.changed(&[replayed(12, &[0, 0])], &maps()).unwrap(), [set(&[(12, 14)])]);
    // Without a look before, all is new.
    assert_eq!(Seen::default().changed(&second, &maps()).unwrap(), [set(&[(4, 8)])]);
}

#[test]
fn data_that_was_in_a_journal_is_no_news_in_its_place() {
    let mut seen = Seen { disks: disk([0; 16]), ..Seen::default() };
    seen.replace([DEVICE].into_iter(), vec![replayed(4, &[7, 8]), replayed(9, &[5])]);
    let mut blocks = [0; 16];
    (blocks[4], blocks[5], blocks[9]) = (7, 6, 5);
    let written = [set(&[(3, 6), (9, 10), (14, 15)])];
    let left = seen.without_known(&written, &disk(blocks)).unwrap();
    assert_eq!(left, [set(&[(3, 4), (5, 6), (14, 15)])]);
    assert!(seen.has_replayed(&left));
    assert!(!seen.has_replayed(&[set(&[(3, 4), (6, 9)])]));
    // What a later look does not find in the journal is in its place.
    seen.replace([DEVICE].into_iter(), Vec::new());
    assert_eq!(seen.without_known(&written, &disk(blocks)).unwrap(), written);
}

#[test]
fn only_the_data_is_taken_out_of_what_mounting_wrote() {
    let maps = maps();
    let ranges = vec![set(&[(2, 6)])];
    let mounted = disk([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    let data = Replayed::of(&maps[DEVICE], &ranges, &mounted).unwrap();
    assert_eq!(data, [replayed(4, &[5, 6])]);
    assert_eq!(without_data(ranges, &data), [set(&[(2, 4)])]);
}
