use super::*;
use crate::operations::captured::Output;
use crate::operations::{Look, LookError, MapState, OperationsFormat};
use virt_bmap_history::{Bases, Disk, HistoryOptions};
use virt_bmap_image::{Source, Writable as _};
use virt_bmap_map::{Attributes, Filesystem, Header, Kind, Map, MapBuilder, ObjectName};
use virt_bmap_ranges::{DiskOffset, DiskRange, FileOffset};

const SIZE: u64 = 64 << 10;
const DEVICE: &[u8] = b"/dev/sda";
/// Where the file's data lies, and where the metadata.
const DATA: u64 = 8192;
const METADATA: u64 = 0;

struct Zeroes;

impl Source for Zeroes {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read_at(&self, buf: &mut [u8], _offset: DiskOffset) -> io::Result<()> {
        buf.fill(0);
        Ok(())
    }
}

/// A map with one file of a block, of this time.
fn map(modified: i64) -> Map {
    let mut header = Header::default();
    let filesystem = Filesystem { device: DEVICE.to_vec(), kind: "ext4".into(), ..Filesystem::default() };
    header.filesystems.push(filesystem);
    let mut builder = MapBuilder::new(header);
    let (inode, size) = (Some(12), Some(4096));
    let attributes = Attributes { inode, size, modified: Some(modified), ..Attributes::default() };
    let object = builder.object(ObjectName::path(Kind::File, DEVICE, b"/f"), attributes).unwrap();
    builder.piece(object, 1, DiskRange::new(DATA, DATA + 4096), Some(FileOffset(0))).unwrap();
    builder.build()
}

/// A guest whose disk is watched. `maps` are those of its states, as they are asked for.
struct Watched {
    disk: Arc<Disk>,
    watcher: Watcher,
    output: Output,
}

impl Watched {
    fn start(maps: Vec<Result<Map, LookError>>) -> Self {
        let history = History::start(Bases::Private(vec![Arc::new(Zeroes)]), HistoryOptions::default());
        let history = history.unwrap();
        let disk = history.disks().remove(0);
        let mut maps = maps.into_iter();
        let map: MapState = Box::new(move |_| {
            let map = maps.next().expect("a look that is needed")?;
            Ok(Look { map, replayed: Vec::new(), data: Vec::new() })
        });
        let look_now = Arc::default();
        let options = WatcherOptions { every: None, look_now };
        let output = Output::default();
        let finder = Finder::new(Box::new(output.clone()), map, OperationsFormat::Text, false).unwrap();
        let watcher = Watcher::start(history, finder, options).unwrap();
        Self { disk, watcher, output }
    }

    fn write(&self, at: u64) -> &Self {
        self.disk.write_at(&[1; 4096], DiskOffset(at)).unwrap();
        self.disk.flush().unwrap();
        self
    }

    /// The operations, and how the watcher has ended.
    fn finish(self) -> (Vec<String>, Ended) {
        let latest = self.watcher.latest();
        let ended = self.watcher.finish();
        let output = self.output.text();
        let said: Vec<String> =
            output.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        let latest =
            latest.lines(said.len() + 1).into_iter().rev().map(|line| String::from_utf8(line).unwrap());
        assert!(latest.eq(said.iter().cloned()));
        (said, ended)
    }
}

const WRITE: &str = "write f /dev/sda /f";

#[test]
fn data_and_the_inode_after_it_are_one_write() {
    let watched = Watched::start(vec![Ok(map(1)), Ok(map(2))]);
    watched.write(DATA).write(METADATA);
    let (said, ended) = watched.finish();
    assert_eq!(said, [WRITE]);
    assert_eq!((ended.states, ended.looks), (2, 1));
    assert!(ended.missing.is_empty());
}

#[test]
fn writes_whose_inode_comes_later_are_told_one_by_one() {
    let watched = Watched::start(vec![Ok(map(1)), Ok(map(2)), Ok(map(3))]);
    watched.write(DATA).write(DATA).write(DATA).write(METADATA).write(METADATA);
    let (said, ended) = watched.finish();
    // The third is told with the inode that came after it. Nothing was written before the last one.
    assert_eq!(said, [WRITE, WRITE, WRITE, "touch f /dev/sda /f"]);
    assert_eq!((ended.states, ended.looks), (5, 2));
}

#[test]
fn data_after_which_nothing_comes_is_told_at_the_end() {
    let watched = Watched::start(vec![Ok(map(1))]);
    watched.write(DATA);
    assert_eq!(watched.finish().0, [WRITE]);
}

#[test]
fn what_could_not_be_mapped_is_in_the_next_look_or_missing() {
    let watched = Watched::start(vec![Ok(map(1)), Err("no appliance".into()), Ok(map(2))]);
    watched.write(METADATA).write(METADATA);
    let (said, ended) = watched.finish();
    assert_eq!(said, ["touch f /dev/sda /f"]);
    assert_eq!((ended.states, ended.looks, ended.missing.len()), (2, 1, 0));
    let watched = Watched::start(vec![Ok(map(1)), Err("no appliance".into())]);
    watched.write(METADATA);
    let (said, ended) = watched.finish();
    assert_eq!((said.len(), ended.looks, ended.missing.len()), (0, 0, 1));
}
