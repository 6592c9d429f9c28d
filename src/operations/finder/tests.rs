use super::*;
use crate::operations::captured::Output;
use virt_bmap_map::{Attributes, Filesystem, ObjectName};
use virt_bmap_ranges::{DiskNumber, DiskRange, FileOffset};

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

/// A moment of a trace, in seconds.
fn time(seconds: u64, is_flushed: bool) -> Span {
    let to = Duration::from_secs(seconds);
    Span::Time { from: to, to, is_flushed, states: 1 }
}

/// A state that ends after so many seconds, in which a range of one disk was written.
fn states(seconds: u64, device: usize, range: DiskRange) -> States {
    let mut written = vec![RangeSet::new(), RangeSet::new()];
    written[device].insert(range);
    States { disks: Vec::new(), written, span: time(seconds, true) }
}

/// A finder that has begun. Its looks find these maps, one after the other.
fn finder(maps: Vec<Map>) -> (Output, Finder) {
    let mut maps = maps.into_iter();
    let next: MapState = Box::new(move |_| {
        Ok(Look { map: maps.next().expect("a look that is needed"), replayed: Vec::new(), data: Vec::new() })
    });
    let output = Output::default();
    let mut finder = Finder::new(Box::new(output.clone()), next, OperationsFormat::Text, false).unwrap();
    finder.begin(&[]).unwrap();
    (output, finder)
}

#[test]
fn held_data_keeps_its_time_while_other_filesystems_are_looked_at() {
    let (output, mut finder) = finder(vec![map(&[0, 1], 1), map(&[1], 2), map(&[1], 3)]);
    finder.look(states(1, 0, DATA)).unwrap();
    finder.look(states(2, 1, METADATA)).unwrap();
    finder.look(states(3, 1, METADATA)).unwrap();
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

/// The operations of a guest that writes data at 1 s and metadata at two later times, in
/// milliseconds. Only the last state has another inode. `flushed`: whether it has flushed the data.
fn data_and_inode(metadata: [u64; 2], flushed: bool) -> String {
    let (output, mut finder) = finder(vec![map(&[0], 1), map(&[0], 1), map(&[0], 2)]);
    let moment = |milliseconds, is_flushed| {
        let to = Duration::from_millis(milliseconds);
        Span::Time { from: to, to, is_flushed, states: 1 }
    };
    finder.look(States { span: moment(1000, flushed), ..states(0, 0, DATA) }).unwrap();
    for (at, is_flushed) in metadata.into_iter().zip([false, true]) {
        finder.look(States { span: moment(at, is_flushed), ..states(0, 0, METADATA) }).unwrap();
    }
    finder.end().unwrap();
    output.text()
}

#[test]
fn data_waits_for_its_inode_until_the_next_flush() {
    // The guest pauses twice in the middle of one `sync`.
    assert_eq!(data_and_inode([1100, 1200], false), "# 1.200 s to 1.200 s\nwrite f /dev/sda /f\n");
    // It flushes the data, and the inode with a later `sync`.
    assert_eq!(data_and_inode([1100, 1200], true), "# 1.000 s to 1.000 s\nwrite f /dev/sda /f\n");
    // It does not flush, and goes on much later.
    let late = "# 1.000 s to 1.000 s, not flushed\nwrite f /dev/sda /f\n";
    assert_eq!(data_and_inode([2100, 2200], false), late);
}

/// The map of one filesystem in which nothing was found, with a warning about it.
fn damaged(modified: i64) -> Map {
    let map = map(&[0], modified);
    let mut header = map.header().clone();
    header.warnings = vec![Warning::on_device("/dev/sda", Cause::Unexplained { ranges: 1, bytes: 4096 })];
    let filesystems = std::mem::take(&mut header.filesystems);
    MapBuilder::new(Header { filesystems, ..header }).build()
}

/// Looks at one state after the other: the maps are those of the beginning and of the state after
/// each span. Returns the operations, and what is missing.
fn looks(maps: Vec<Map>, spans: Vec<Span>) -> (String, Vec<Missing>) {
    let (output, mut finder) = finder(maps);
    for span in spans {
        finder.look(States { span, ..states(0, 0, METADATA) }).unwrap();
    }
    finder.end().unwrap();
    (output.text(), finder.into_result().missing)
}

#[test]
fn what_the_next_writes_mend_is_not_missing() {
    // ext4 without a journal flushes in the middle of sync(2), too.
    for is_flushed in [false, true] {
        let spans = vec![time(1, is_flushed), time(2, true)];
        let (said, missing) = looks(vec![map(&[0], 1), damaged(2), map(&[0], 3)], spans);
        assert_eq!(said, "# 1.000 s to 2.000 s, 2 states together\ntouch f /dev/sda /f\n");
        assert_eq!(missing, []);
    }
}

#[test]
fn what_nothing_mends_is_missing() {
    // At the end, and if it lasts.
    let (said, missing) = looks(vec![map(&[0], 1), damaged(2)], vec![time(1, true)]);
    assert_eq!((said.as_str(), missing.len()), ("", 1));
    let many = MOST_DOUBTS as u64 + 1;
    let maps = std::iter::once(map(&[0], 1)).chain((2..).take(many as usize).map(damaged)).collect();
    let (said, missing) = looks(maps, (1..=many).map(|second| time(second, false)).collect());
    assert_eq!(said, "# 1.000 s to 9.000 s, not flushed, 9 states together\ndelete f /dev/sda /f\n");
    assert_eq!(missing.len(), 1);
}

#[test]
fn a_backup_is_no_unfinished_state() {
    let [monday, tuesday, wednesday] = ["monday", "tuesday", "wednesday"].map(|name| name.as_bytes().into());
    let spans = vec![
        Span::Between { from: monday, to: Arc::clone(&tuesday) },
        Span::Between { from: tuesday, to: wednesday },
    ];
    let (said, missing) = looks(vec![map(&[0], 1), damaged(2), map(&[0], 3)], spans);
    assert_eq!(
        said,
        "# monday to tuesday\ndelete f /dev/sda /f\n# tuesday to wednesday\ncreate f /dev/sda /f\n"
    );
    assert_eq!(missing.len(), 1);
}
