use super::*;
use crate::operations::captured::Output;
use virt_bmap_map::{Attributes, Filesystem, ObjectName};
use virt_bmap_ranges::FileOffset;

const DEVICES: [&[u8]; 2] = [b"/dev/sda", b"/dev/sdb"];
/// Where the file's data lies on each disk, and where the metadata.
const DATA: DiskRange = DiskRange { start: DiskOffset(8192), end: DiskOffset(12288) };
const METADATA: DiskRange = DiskRange { start: DiskOffset(0), end: DiskOffset(4096) };

/// A map of these filesystems. Each has one file, of this time.
fn map(devices: &[usize], modified: i64) -> Map {
    let filesystem = |device: &usize| Filesystem {
        device: DEVICES[*device].to_vec(),
        kind: "ext4".into(),
        ..Filesystem::default()
    };
    let filesystems = devices.iter().map(filesystem).collect();
    let mut builder = MapBuilder::new(Header { filesystems, ..Header::default() });
    for device in devices {
        let (inode, size) = (Some(12), Some(4096));
        let attributes = Attributes { inode, size, modified: Some(modified), ..Attributes::default() };
        let name = ObjectName::path(Kind::File, DEVICES[*device], b"/f");
        let object = builder.object(name, attributes).unwrap();
        builder.piece(object, *device as DiskNumber + 1, DATA, Some(FileOffset(0))).unwrap();
    }
    builder.build()
}

/// A state that ends after so many seconds, in which a range of one disk was written.
fn states(seconds: u64, device: usize, range: DiskRange) -> States {
    let to = Duration::from_secs(seconds);
    let mut written = vec![RangeSet::new(), RangeSet::new()];
    written[device].insert(range);
    let span = Span::Time { from: to, to, is_flushed: true, states: 1 };
    States { disks: Vec::new(), written, span }
}

#[test]
fn held_data_keeps_its_time_while_other_filesystems_are_looked_at() {
    let mut maps = vec![map(&[0, 1], 1), map(&[1], 2), map(&[1], 3)].into_iter();
    let next: MapState = Box::new(move |_| {
        Ok(Look { map: maps.next().expect("a look that is needed"), replayed: Vec::new(), data: Vec::new() })
    });
    let output = Output::default();
    let mut finder = Finder::new(Box::new(output.clone()), next, OperationsFormat::Text, false).unwrap();
    finder.begin(&[]).unwrap();
    finder.look(&states(1, 0, DATA)).unwrap();
    finder.look(&states(2, 1, METADATA)).unwrap();
    finder.look(&states(3, 1, METADATA)).unwrap();
    finder.end().unwrap();
    let said = output.text();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines,
        [
            "# 2.000 s to 2.000 s",
            "touch f /dev/sdb /f",
            "# 3.000 s to 3.000 s",
            "touch f /dev/sdb /f",
            "# 1.000 s to 1.000 s",
            "write f /dev/sda /f",
        ]
    );
}

/// The map of one filesystem, with a warning about it.
fn damaged(modified: i64) -> Map {
    let map = map(&[0], modified);
    let mut header = map.header().clone();
    header.warnings = vec![Warning::on_device("/dev/sda", Cause::Unexplained { ranges: 1, bytes: 4096 })];
    let filesystems = std::mem::take(&mut header.filesystems);
    MapBuilder::new(Header { filesystems, ..header }).build()
}

/// Looks at one state after the other. `flushed`: whether the guest has flushed each. Returns the
/// operations, and what is missing.
fn looks(maps: Vec<Map>, flushed: &[bool]) -> (String, Vec<String>) {
    let mut maps = maps.into_iter();
    let next: MapState = Box::new(move |_| {
        Ok(Look { map: maps.next().expect("a look that is needed"), replayed: Vec::new(), data: Vec::new() })
    });
    let output = Output::default();
    let mut finder = Finder::new(Box::new(output.clone()), next, OperationsFormat::Text, false).unwrap();
    finder.begin(&[]).unwrap();
    for (second, is_flushed) in (1..).zip(flushed) {
        let mut states = states(second, 0, METADATA);
        let to = Duration::from_secs(second);
        states.span = Span::Time { from: to, to, is_flushed: *is_flushed, states: 1 };
        finder.look(&states).unwrap();
    }
    finder.end().unwrap();
    (output.text(), finder.into_result().missing)
}

#[test]
fn what_the_next_writes_mend_is_not_missing() {
    let (said, missing) = looks(vec![map(&[0], 1), damaged(2), map(&[0], 3)], &[false, true]);
    assert_eq!(said, "# 2.000 s to 2.000 s\ntouch f /dev/sda /f\n");
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn what_nothing_mends_is_missing() {
    // At the end, at a flush, and if it lasts.
    let (said, missing) = looks(vec![map(&[0], 1), damaged(2)], &[false]);
    assert_eq!((said.as_str(), missing.len()), ("", 1));
    let (_, missing) = looks(vec![map(&[0], 1), damaged(2)], &[true]);
    assert_eq!(missing.len(), 1);
    let many = MOST_DOUBTS as i64 + 2;
    let maps = std::iter::once(map(&[0], 1)).chain((0..many).map(damaged)).collect();
    let (_, missing) = looks(maps, &vec![false; many as usize]);
    assert_eq!(missing.len(), 1);
}
