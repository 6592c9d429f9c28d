//! The channel against agents of all kinds.

mod any_agent;
mod balance;
mod placed;
mod reuse;
mod spot_checks;

use super::metadata_inputs::Inline;
use super::*;
use crate::probe::layout::Layout;
use virt_bmap_agent_protocol::bounds::NAME_BYTES;
use virt_bmap_agent_protocol::frame::{self, FrameError};
use virt_bmap_agent_protocol::record::{
    self, ATTRIBUTES, BlockPurpose, Extent, Filesystem, Object, ObjectKind, Operation,
};
use virt_bmap_agent_protocol::{FsKind, Record, Sample, VERSION};
use virt_bmap_map::{Cause, FileOperation, Kind, Marks, Warning, text};
use virt_bmap_ranges::DiskRange;

/// Plays the agent.
struct Agent {
    channel: Channel,
    recorder: Arc<Recorder>,
    sequence: u32,
}

impl Agent {
    /// An agent that walks a filesystem on a disk of 1 MiB.
    fn walking() -> Self {
        Self::walking_in(WalkContext::default())
    }

    /// An agent that spot-checks one file in so many.
    fn sampling(one_in: u32) -> Self {
        let sample = std::num::NonZeroU32::new(one_in).map(|one_in| Sample { one_in, seed: 0 });
        Self::walking_with(sample)
    }

    fn walking_with(sample: Option<Sample>) -> Self {
        Self::walking_in(WalkContext { sample, ..WalkContext::default() })
    }

    fn walking_in(context: WalkContext) -> Self {
        let recorder = Arc::new(Recorder::new());
        let channel = Channel::new(recorder.clone());
        let layout = Some(Arc::new(Layout::of_disk(1, 1 << 20)));
        let context = WalkContext { device: "/dev/sda".into(), kind: FsKind::Ext4, layout, ..context };
        let (sequence, first) = channel.begin_walk(context);
        assert_eq!((sequence, first), (0, 1));
        let mut agent = Self { channel, recorder, sequence };
        let filesystem = Filesystem { magic: 0xef53, block_size: 4096, ..Filesystem::default() };
        agent.say(&[Record::Hello { version: VERSION }, Record::Filesystem(filesystem)]).unwrap();
        agent.say(&[object(1, 1, ObjectKind::Directory, b"", 0)]).unwrap();
        agent
    }

    fn say(&mut self, records: &[Record]) -> Result<(), &'static str> {
        let mut bytes = Vec::new();
        records.iter().for_each(|record| record.encode(&mut bytes));
        let frame = frame::of(self.sequence, &bytes);
        self.sequence += 1;
        self.channel.frame(&frame)
    }

    fn tag(&mut self, id: u32, reset: bool) {
        self.say(&[Record::Tag { id, reset }]).unwrap();
    }

    /// Reports files of 64 KiB, each with one extent that begins at the given offset.
    fn find(&mut self, files: &[(u32, u64)]) {
        for &(id, start) in files {
            let name = format!("file{id}");
            self.say(&[object(id, 1, ObjectKind::File, name.as_bytes(), 65536), extents(id, start, 65536)])
                .unwrap();
        }
    }

    /// Reads files as a series, each in these ranges, and returns the files that the host wants to
    /// have read in full.
    fn read_series(&mut self, files: &[(u32, &[(u64, u64)])]) -> Vec<u32> {
        self.say(&[Record::Series { ids: files.iter().map(|(id, _)| *id).collect() }]).unwrap();
        for (start, end) in files.iter().flat_map(|(_, pieces)| *pieces) {
            self.read(*start, *end);
        }
        self.say(&[Record::Tag { id: 0, reset: false }, Record::BatchEnd]).unwrap();
        self.channel.reply().files
    }

    fn read(&self, start: u64, end: u64) {
        self.recorder.read(1, DiskRange::new(start, end));
    }

    /// The map's lines, without the header.
    fn lines(self) -> String {
        let mut out = Vec::new();
        text::write(&self.channel.take().0.into_map().unwrap(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect()
    }
}

fn object(id: u32, parent: u32, kind: ObjectKind, name: &[u8], size: u64) -> Record {
    Record::Object(Object {
        id,
        parent,
        kind,
        inode: id.into(),
        size,
        allocated: size,
        links: 2,
        mode: 0,
        owner: None,
        modified: 0,
        changed: 0,
        born: None,
        name: name.to_vec(),
    })
}

fn extents(id: u32, physical: u64, length: u64) -> Record {
    Record::Extents { id, extents: vec![Extent { logical: 0, physical, length, flags: Extent::LAST }] }
}

#[test]
fn what_is_read_under_a_tag_belongs_to_its_object() {
    let mut agent = Agent::walking();
    agent.tag(1, false);
    agent.read(0, 4096);
    agent.tag(0, false);
    agent.read(1 << 19, (1 << 19) + 512); // metadata, nobody's
    agent.say(&[object(2, 1, ObjectKind::File, b"a", 4096), extents(2, 8192, 4096)]).unwrap();
    agent.say(&[Record::Link { id: 2, parent: 1, name: b"b".to_vec() }]).unwrap();
    agent.tag(2, false);
    agent.read(8192, 12288);
    agent.say(&[Record::Tag { id: 0, reset: false }, Record::BatchEnd]).unwrap();
    assert_eq!(agent.channel.reply(), Reply::default());
    agent.say(&[Record::Done]).unwrap();
    agent.channel.end().unwrap();
    assert_eq!(agent.channel.snapshot().objects, 3);
    assert_eq!(
        agent.lines(),
        "1 0 1000 d /dev/sda /\n1 2000 3000 f /dev/sda /a\n1 2000 3000 f /dev/sda /b\n"
    );
}

#[test]
fn a_file_that_was_read_elsewhere_is_read_once_more() {
    let mut agent = Agent::walking();
    agent.say(&[object(2, 1, ObjectKind::File, b"a", 4096), extents(2, 8192, 4096)]).unwrap();
    agent.say(&[object(3, 1, ObjectKind::File, b"b", 4096), extents(3, 16384, 4096)]).unwrap();
    for (id, start) in [(2, 8192), (3, 16384)] {
        agent.tag(id, false);
        agent.read(start, start + 4096);
        agent.read(65536, 69632); // a block of checksums, say
    }
    agent.say(&[Record::Tag { id: 0, reset: false }, Record::BatchEnd]).unwrap();
    assert_eq!(agent.channel.reply().files, [2, 3]);
    agent.tag(2, true);
    agent.read(8192, 12288);
    agent.tag(3, true);
    agent.read(16384, 16384 + 8192); // no better
    agent.say(&[Record::Tag { id: 0, reset: false }, Record::Done]).unwrap();
    agent.channel.end().unwrap();
    let (found, warnings) = agent.channel.take();
    assert_eq!(warnings.list(), [Warning::on_device("/dev/sda", Cause::NotExact { count: 1 })]);
    let mut out = Vec::new();
    text::write(&found.into_map().unwrap(), &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.ends_with("1 2000 3000 f /dev/sda /a\n1 4000 6000 f /dev/sda /b\n"), "{text}");
}

#[test]
fn an_agent_that_dies_leaves_what_it_had_read() {
    let mut agent = Agent::walking();
    agent.say(&[object(2, 1, ObjectKind::File, b"a", 4096), extents(2, 8192, 4096)]).unwrap();
    agent.tag(2, false);
    agent.read(0, 512);
    agent.tag(0, false);
    assert!(matches!(agent.channel.end(), Err(ChannelError::Unfinished)));
    assert_eq!(agent.lines(), "1 0 200 f /dev/sda /a\n");
}

#[test]
fn encrypted_files_are_counted_by_whether_their_place_is_known() {
    let mut agent = Agent::walking();
    agent.say(&[object(2, 1, ObjectKind::File, b"a", 4096), Record::Encrypted { id: 2 }]).unwrap();
    agent.say(&[extents(2, 8192, 4096), object(3, 1, ObjectKind::File, b"b", 512)]).unwrap();
    agent.say(&[Record::Encrypted { id: 3 }]).unwrap();
    agent.tag(2, false);
    agent.read(8192, 12288);
    agent.say(&[Record::Tag { id: 0, reset: false }, Record::BatchEnd, Record::Done]).unwrap();
    agent.channel.end().unwrap();
    let (found, warnings) = agent.channel.take();
    let expected = [Cause::EncryptedFilesUnplaced { count: 1 }, Cause::EncryptedNames { count: 1 }];
    assert_eq!(warnings.list(), expected.map(|cause| Warning::on_device("/dev/sda", cause)));
    let map = found.into_map().unwrap();
    let files: Vec<_> = map.objects().filter(|object| object.name().kind == Kind::File).collect();
    assert!(files.iter().all(|file| file.attributes().marks.contains(Marks::ENCRYPTED)));
    let pieces: Vec<_> = files.iter().map(|file| file.pieces().count()).collect();
    assert_eq!(pieces, [1, 0]);
}

#[test]
fn violations_of_the_protocol_end_the_conversation() {
    let violations: [&[Record]; 17] = [
        &[Record::Encrypted { id: 1 }],
        &[Record::Hello { version: VERSION + 1 }],
        &[object(3, 1, ObjectKind::File, b"a", 0)],
        &[object(1, 1, ObjectKind::File, b"a", 0)],
        &[object(2, 2, ObjectKind::File, b"a", 0)],
        &[object(2, 9, ObjectKind::File, b"a", 0)],
        &[object(2, 1, ObjectKind::File, b"a/b", 0)],
        &[object(2, 1, ObjectKind::File, b"..", 0)],
        &[object(2, 1, ObjectKind::File, &[b'a'; NAME_BYTES + 1], 0)],
        &[object(2, 1, ObjectKind::File, b"a", 0), object(3, 2, ObjectKind::File, b"b", 0)],
        &[extents(2, 0, 1)],
        &[Record::Link { id: 1, parent: 1, name: b"a".to_vec() }],
        &[Record::Tag { id: 2, reset: false }],
        &[Record::Tag { id: FIRST_PROOF, reset: false }],
        &[Record::Done, Record::BatchEnd],
        &[Record::Shared { id: 1 }],
        &[Record::Member(record::Member { id: 1, major: 8, minor: 0 })],
    ];
    for records in violations {
        let mut agent = Agent::walking();
        assert!(agent.say(records).is_err(), "{records:?}");
        assert!(agent.say(&[Record::Done]).is_err(), "{records:?}");
        assert!(agent.channel.end().is_err(), "{records:?}");
    }
}

#[test]
fn frames_out_of_order_are_refused() {
    let mut agent = Agent::walking();
    agent.sequence += 1;
    assert!(agent.say(&[Record::BatchEnd]).is_err());
    assert!(matches!(agent.channel.end(), Err(ChannelError::Frame(FrameError::Sequence { .. }))));
}

#[test]
fn warnings_name_their_place() {
    let mut agent = Agent::walking();
    agent.say(&[object(2, 1, ObjectKind::Directory, b"etc", 0)]).unwrap();
    let trouble = |operation, parent, name: &[u8]| {
        Record::ReadFailure(record::ReadFailure {
            operation,
            errno: 5,
            parent,
            name: name.to_vec(),
            offset: 4096,
        })
    };
    agent
        .say(&[
            trouble(Operation::Read, 2, b"a\x1b[2J"),
            trouble(Operation::List, 2, b""),
            trouble(Operation::Open, 77, b"x"),
            Record::Done,
        ])
        .unwrap();
    agent.channel.end().unwrap();
    let failed = |path: &[u8], operation, offset| {
        Warning::on_path("/dev/sda", path, Cause::FileFailed { operation, errno: Some(5), offset })
    };
    assert_eq!(
        agent.channel.take().1.list(),
        [
            failed(b".../x", FileOperation::Open, None),
            failed(b"/etc", FileOperation::List, None),
            failed(b"/etc/a\x1b[2J", FileOperation::Read, Some(4096)),
        ]
    );
}

#[test]
fn inputs_of_metadata_objects_are_gathered() {
    let mut agent = Agent::walking();
    agent.read(1 << 19, (1 << 19) + 512);
    agent.tag(1, false);
    agent.read(0, 4096);
    agent.tag(1 | ATTRIBUTES, false);
    agent.read(1 << 16, (1 << 16) + 512);
    agent.tag(0, false);
    agent.say(&[object(2, 1, ObjectKind::Symlink, b"long", 512)]).unwrap();
    agent.say(&[object(3, 1, ObjectKind::Symlink, b"short", 0)]).unwrap();
    agent.say(&[object(4, 1, ObjectKind::File, b"inline", 5)]).unwrap();
    let inline = Extent { logical: 0, physical: 4242, length: 5, flags: Extent::INLINE | Extent::LAST };
    agent.say(&[Record::Extents { id: 4, extents: vec![inline] }]).unwrap();
    agent.tag(2, false);
    agent.read(1 << 17, (1 << 17) + 512);
    agent.tag(0, false);
    agent.read(1 << 18, (1 << 18) + 512);
    agent.say(&[Record::Space { purpose: BlockPurpose::Free, parts: vec![(1 << 20, 4096)] }]).unwrap();
    agent.say(&[Record::BatchEnd, Record::Done]).unwrap();
    let remains = agent.channel.end().unwrap();
    let untagged: Vec<_> = remains.untagged.iter().map(|(_, range)| range.start.0).collect();
    assert_eq!(untagged, [1 << 18, 1 << 19]);
    let owned: Vec<_> = remains.owned.iter().map(|(_, range)| range.start.0).collect();
    assert_eq!(owned, [0, 1 << 17]);
    assert_eq!(remains.attributes[&1].recording.bytes(), 512);
    assert_eq!(remains.inline, [Inline::Block { object: 4, at: 4242 }]);
    assert_eq!(agent.lines(), "1 0 1000 d /dev/sda /\n1 20000 20200 s /dev/sda /long\n");
}

#[test]
fn metadata_of_nothing_that_is_known_violates_the_protocol() {
    let space = |pieces| Record::Space { purpose: BlockPurpose::Free, parts: pieces };
    assert!(Agent::walking().say(&[space(vec![(u64::MAX, 2)])]).is_err());
    for id in [ATTRIBUTES, ATTRIBUTES | 2] {
        assert!(Agent::walking().say(&[Record::Tag { id, reset: false }]).is_err());
    }
}

#[test]
fn directories_that_are_listed_together_have_their_blocks_and_say_if_none_was_read() {
    let mut agent = Agent::sampling(1);
    for (id, start) in [(2, 8192), (3, 16384), (4, 24576), (5, 28672)] {
        let name = format!("dir{id}");
        agent.say(&[object(id, 1, ObjectKind::Directory, name.as_bytes(), 4096)]).unwrap();
        agent.say(&[extents(id, start, 4096)]).unwrap();
    }
    agent.say(&[Record::Listing { ids: vec![2, 3, 4, 5] }]).unwrap();
    agent.read(24576, 32768); // of two at once
    agent.read(8192, 12288);
    agent.read(65536, 69632);
    agent.tag(0, false);
    // A directory that has been listed cannot be listed in a batch again.
    assert_eq!(agent.channel.state().walk.extents_held, 0);
    assert!(agent.say(&[Record::Listing { ids: vec![2] }]).is_err());
    let map = agent.channel.take().0.into_map().unwrap();
    assert_eq!(
        directories(&map),
        [
            (&b"/dir2"[..], vec![(8192, 12288)], Marks::empty()),
            (b"/dir3", vec![(16384, 20480)], Marks::UNVERIFIED),
            (b"/dir4", vec![(24576, 28672)], Marks::empty()),
            (b"/dir5", vec![(28672, 32768)], Marks::empty()),
        ]
    );
}

/// Path, pieces and marks of a directory.
type Mapped<'a> = (&'a [u8], Vec<(u64, u64)>, Marks);

/// The directories below the root.
fn directories(map: &virt_bmap_map::Map) -> Vec<Mapped<'_>> {
    let directories = map.objects().filter(|object| object.name().path.starts_with(b"/dir"));
    directories
        .map(|object| {
            let pieces = object.pieces().map(|piece| (piece.range.start.0, piece.range.end.0));
            (object.name().path, pieces.collect(), object.attributes().marks)
        })
        .collect()
}

#[test]
fn a_directory_has_its_place_and_reads_beside_it_are_metadata() {
    let mut agent = Agent::walking();
    agent.say(&[object(2, 1, ObjectKind::Directory, b"dir2", 8192), extents(2, 8192, 8192)]).unwrap();
    agent.say(&[Record::Computed { id: 2, beside: vec![(0, 4096), (u64::MAX, 9)] }]).unwrap();
    agent.tag(2, false);
    agent.read(0, 512);
    // The kernel need not read all of it.
    agent.read(8192, 8704);
    agent.tag(0, false);
    // The listing goes on.
    agent.tag(2, false);
    agent.read(512, 1024);
    agent.tag(0, false);
    agent.say(&[Record::BatchEnd, Record::Done]).unwrap();
    let remains = agent.channel.end().unwrap();
    assert!(remains.untagged.iter().eq([(1, DiskRange::new(0, 1024))]));
    let (found, warnings) = agent.channel.take();
    assert_eq!(
        directories(&found.into_map().unwrap()),
        [(&b"/dir2"[..], vec![(8192, 16384)], Marks::empty())]
    );
    assert_eq!(warnings.list(), []);
}

#[test]
fn a_read_elsewhere_contradicts_a_computed_place() {
    let mut agent = Agent::walking();
    agent.say(&[object(2, 1, ObjectKind::Directory, b"dir2", 4096), extents(2, 8192, 4096)]).unwrap();
    agent.say(&[Record::Computed { id: 2, beside: vec![] }]).unwrap();
    agent.tag(2, false);
    agent.read(65536, 66048);
    agent.tag(0, false);
    agent.say(&[Record::BatchEnd, Record::Done]).unwrap();
    agent.channel.end().unwrap();
    let (found, warnings) = agent.channel.take();
    let pieces = vec![(8192, 12288), (65536, 66048)];
    let marks = Marks::INEXACT | Marks::UNVERIFIED;
    assert_eq!(directories(&found.into_map().unwrap()), [(&b"/dir2"[..], pieces, marks)]);
    assert_eq!(warnings.list(), [Warning::on_path("/dev/sda", b"/dir2", Cause::DirectoryContradicted)]);
}

#[test]
fn the_place_of_an_object_that_is_not_there_violates_the_protocol() {
    for id in [0, 9] {
        assert!(Agent::walking().say(&[Record::Computed { id, beside: vec![] }]).is_err());
    }
}
