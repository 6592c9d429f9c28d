//! The channel against agents of all kinds.

use super::*;
use crate::probe::baseline::{self, Baseline, Directories};
use crate::probe::layout::Layout;
use crate::probe::metadata::Inline;
use virt_bmap_agent_protocol::Sample;
use virt_bmap_agent_protocol::bounds::NAME_BYTES;
use virt_bmap_agent_protocol::record::{Filesystem, Object, Operation, Owner};
use virt_bmap_image::Overlay;
use virt_bmap_map::{Cause, FileOperation, Warning, text};
use virt_bmap_ranges::DiskRange;

/// Plays the agent.
struct Agent {
    channel: Channel,
    recorder: Arc<Recorder>,
    sequence: u32,
}

impl Agent {
    /// An agent that walks a file system on a disk of 1 MiB.
    fn walking() -> Self {
        Self::walking_for(false)
    }

    fn walking_for(metadata: bool) -> Self {
        Self::walking_in(WalkContext { metadata, ..WalkContext::default() })
    }

    /// An agent that reads the ends of every so-many-th extent.
    fn sampling(every: u32) -> Self {
        let sample = std::num::NonZeroU32::new(every).map(|every| Sample { every });
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

    /// Finds files of 64 KiB, each of one extent that begins where it is said.
    fn find(&mut self, files: &[(u32, u64)]) {
        for &(id, start) in files {
            let name = format!("file{id}");
            self.say(&[object(id, 1, ObjectKind::File, name.as_bytes(), 65536), extents(id, start, 65536)])
                .unwrap();
        }
    }

    /// Reads files as a series, each in these pieces, and returns what the host wants to have read in full.
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
        modified: 0,
        changed: 0,
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
fn encrypted_files_are_told_apart_from_those_of_which_nothing_is_known() {
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
fn what_makes_no_sense_ends_the_conversation() {
    let nonsense: [&[Record]; 17] = [
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
    for records in nonsense {
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
fn what_belongs_to_no_data_is_kept_apart() {
    let mut agent = Agent::walking_for(true);
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
    agent.say(&[Record::Space { owner: Owner::Free, pieces: vec![(1 << 20, 4096)] }]).unwrap();
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
fn metadata_that_were_not_asked_for_make_no_sense() {
    let space = |pieces| Record::Space { owner: Owner::Free, pieces };
    assert!(Agent::walking().say(&[space(vec![(0, 1)])]).is_err());
    assert!(Agent::walking_for(true).say(&[space(vec![(u64::MAX, 2)])]).is_err());
    for id in [ATTRIBUTES, ATTRIBUTES | 2] {
        assert!(Agent::walking_for(true).say(&[Record::Tag { id, reset: false }]).is_err());
    }
    assert!(Agent::walking().say(&[Record::Tag { id: ATTRIBUTES | 1, reset: false }]).is_err());
}

#[test]
fn of_a_file_whose_ends_are_where_the_kernel_says_all_is_taken_on_its_word() {
    let mut agent = Agent::sampling(1);
    agent.find(&[(2, 65536), (3, 262_144)]);
    let ends: [(u32, &[(u64, u64)]); 2] =
        [(2, &[(65536, 69632), (126_976, 131_072)]), (3, &[(262_144, 266_240), (323_584, 327_680)])];
    assert!(agent.read_series(&ends).is_empty());
    agent.say(&[Record::Done]).unwrap();
    agent.channel.end().unwrap();
    assert!(agent.channel.with(|_, warnings| warnings.list().is_empty()));
    assert_eq!(agent.lines(), "1 10000 20000 f /dev/sda /file2\n1 40000 50000 f /dev/sda /file3\n");
}

#[test]
fn a_file_that_the_kernel_lies_about_is_read_in_full() {
    let mut agent = Agent::sampling(1);
    agent.find(&[(2, 65536), (3, 262_144)]);
    // The second begins where it should, but ends elsewhere.
    let ends: [(u32, &[(u64, u64)]); 2] =
        [(2, &[(65536, 69632), (126_976, 131_072)]), (3, &[(262_144, 266_240), (4096, 8192)])];
    // Either may have been read there.
    assert_eq!(agent.read_series(&ends), [2, 3]);
    agent.tag(2, true);
    agent.read(65536, 131_072);
    agent.tag(3, true);
    agent.read(262_144, 299_008);
    agent.read(4096, 32768);
    agent.say(&[Record::Tag { id: 0, reset: false }, Record::BatchEnd, Record::Done]).unwrap();
    agent.channel.end().unwrap();
    assert_eq!(agent.channel.with(|_, warnings| warnings.list().len()), 1);
    let lines =
        "1 1000 8000 f /dev/sda /file3\n1 10000 20000 f /dev/sda /file2\n1 40000 49000 f /dev/sda /file3\n";
    assert_eq!(agent.lines(), lines);
}

#[test]
fn files_that_are_in_no_sample_are_believed_until_one_that_is_turns_out_a_lie() {
    let mut agent = Agent::sampling(4);
    agent.find(&[(2, 65536), (3, 131_072), (4, 262_144)]);
    let ends: [(u32, &[(u64, u64)]); 1] = [(4, &[(262_144, 266_240), (323_584, 327_680)])];
    assert!(agent.read_series(&ends).is_empty());
    agent.find(&[(5, 0), (6, 0), (7, 0), (8, 524_288)]);
    assert_eq!(agent.read_series(&[(8, &[(4096, 8192), (12288, 16384)])]), [8]);
    agent.tag(8, true);
    agent.read(4096, 65536 + 4096);
    // The agent hears of it as soon as that is known.
    assert!(agent.say(&[Record::Tag { id: 0, reset: false }, Record::BatchEnd]).is_err());
    assert!(matches!(agent.channel.end(), Err(ChannelError::ExtentMismatch)));
    agent.channel.forget_walk();
    assert!(agent.channel.with(|_, warnings| warnings.list().is_empty()));
    assert_eq!(agent.lines(), "");
}

#[test]
fn a_file_of_which_an_end_was_not_read_is_read_in_full() {
    let mut agent = Agent::sampling(1);
    agent.find(&[(2, 65536), (3, 262_144)]);
    let ends: [(u32, &[(u64, u64)]); 2] =
        [(2, &[(126_976, 131_072)]), (3, &[(323_584, 327_680), (262_144, 266_240)])];
    assert_eq!(agent.read_series(&ends), [2]);
}

#[test]
fn three_lies_are_forgiven_where_each_file_is_proved() {
    let mut agent = Agent::sampling(1);
    for id in 2..6 {
        agent.find(&[(id, 65536)]);
        assert_eq!(agent.read_series(&[(id, &[(0, 8192)])]), [id]);
        agent.tag(id, true);
        agent.read(0, 65536);
        let result = agent.say(&[Record::Tag { id: 0, reset: false }, Record::BatchEnd]);
        assert_eq!(result.is_ok(), id < 5, "{id}");
    }
    assert!(matches!(agent.channel.end(), Err(ChannelError::ExtentMismatch)));
}

#[test]
fn a_stray_read_costs_a_read_in_full_and_no_more() {
    let mut agent = Agent::sampling(1);
    for id in 2..20 {
        agent.find(&[(id, 65536)]);
        let with_a_stray: [(u32, &[(u64, u64)]); 1] =
            [(id, &[(65536, 69632), (524_288, 528_384), (126_976, 131_072)])];
        assert_eq!(agent.read_series(&with_a_stray), [id]);
        agent.tag(id, true);
        agent.read(65536, 131_072);
        agent.say(&[Record::Tag { id: 0, reset: false }, Record::BatchEnd]).unwrap();
    }
    agent.say(&[Record::Done]).unwrap();
    agent.channel.end().unwrap();
    assert_eq!(agent.lines().lines().filter(|line| line.starts_with("1 10000 20000 f")).count(), 18);
}

#[test]
fn what_was_written_since_is_read() {
    use virt_bmap_image::{ImageFormat, OpenOptions, open};
    use virt_bmap_ranges::DiskOffset;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let options = OpenOptions { format: Some(ImageFormat::Raw), ..OpenOptions::default() };
    let base = open(file.path(), &options).unwrap().source;
    let overlay = Arc::new(Overlay::new(base, 1 << 20, &std::env::temp_dir()).unwrap());
    overlay.write_at(&[1; 512], DiskOffset(65536 + 8192)).unwrap();
    let sample = std::num::NonZeroU32::new(1).map(|every| Sample { every });
    let mut agent =
        Agent::walking_in(WalkContext { sample, overlays: vec![overlay], ..WalkContext::default() });
    agent.find(&[(2, 65536), (3, 262_144)]);
    let ends: [(u32, &[(u64, u64)]); 2] =
        [(2, &[(65536, 69632), (126_976, 131_072)]), (3, &[(262_144, 266_240), (323_584, 327_680)])];
    assert_eq!(agent.read_series(&ends), [2]);
}

#[test]
fn directories_that_are_listed_together_get_what_was_read_of_their_blocks() {
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
    // Once it has been listed, a directory cannot be listed in a batch again.
    assert_eq!(agent.channel.state().walk.extents_held, 0);
    let lines = "1 2000 3000 d /dev/sda /dir2\n1 6000 7000 d /dev/sda /dir4\n1 7000 8000 d /dev/sda /dir5\n";
    assert!(agent.say(&[Record::Listing { ids: vec![2] }]).is_err());
    assert_eq!(agent.lines(), lines);
}

#[test]
fn what_is_as_it_was_in_an_earlier_map_is_not_read() {
    use virt_bmap_map::{Header, MapBuilder, ObjectName};
    use virt_bmap_ranges::FileOffset;
    let mut builder = MapBuilder::new(Header {
        filesystems: vec![virt_bmap_map::Filesystem {
            device: b"/dev/sda".to_vec(),
            kind: "ext4".into(),
            block_size: Some(4096),
            size: Some(0),
            ..virt_bmap_map::Filesystem::default()
        }],
        ..Header::default()
    });
    for (inode, start, size) in [(2, 65536, 65536), (3, 262_144, 65536), (4, 524_288, 8192)] {
        let (size, zero) = (Some(size), Some(0));
        let attributes =
            Attributes { inode: Some(inode), size, modified: zero, changed: zero, ..Attributes::default() };
        let name = format!("/then{inode}");
        let name = ObjectName::path(Kind::File, b"/dev/sda", name.as_bytes());
        let file = builder.object(name, attributes).unwrap();
        builder.piece(file, 1, DiskRange::new(start, start + 65536), Some(FileOffset(0))).unwrap();
    }
    let baseline = Baseline::new(Arc::new(builder.build()), std::collections::BTreeMap::new()).map(Arc::new);
    let mut agent = Agent::walking_in(WalkContext { baseline, ..WalkContext::default() });
    // The second has been moved, the third has grown.
    agent.find(&[(2, 65536), (3, 393_216), (4, 524_288)]);
    agent.say(&[Record::SelectFiles { ids: vec![2, 3, 4] }]).unwrap();
    assert_eq!(agent.channel.reply().files, [3, 4]);
    let again = agent.read_series(&[(3, &[(393_216, 458_752)]), (4, &[(524_288, 589_824)])]);
    assert_eq!((again.len(), agent.channel.taken_over()), (0, 1));
    assert!(agent.say(&[Record::SelectFiles { ids: vec![9] }]).is_err());
    assert_eq!(
        agent.lines(),
        "1 10000 20000 f /dev/sda /file2\n1 60000 70000 f /dev/sda /file3\n1 80000 90000 f /dev/sda /file4\n"
    );
}

#[test]
fn of_a_file_that_is_known_the_name_is_enough_and_no_other_may_be_given_so() {
    use virt_bmap_map::{Header, MapBuilder, ObjectName};
    let attributes = Attributes { inode: Some(12), size: Some(9), changed: Some(7), ..Attributes::default() };
    let attributes = Attributes { modified: Some(7), links: Some(1), ..attributes };
    let mut builder = MapBuilder::new(Header::default());
    let then = builder.object(ObjectName::path(Kind::File, b"/dev/sda", b"/then"), attributes).unwrap();
    builder.piece(then, 1, DiskRange::new(65536, 69632), None).unwrap();
    let map = builder.build();
    let file = map.objects().next().unwrap().id();
    let baseline = Baseline::new(Arc::new(map), std::collections::BTreeMap::new()).map(Arc::new).unwrap();
    let directories = Directories::default();
    let known = Some(Arc::new(Known { baseline, files: [(12, file)].into(), directories }));
    let walking = || Agent::walking_in(WalkContext { known: known.clone(), ..WalkContext::default() });
    let found = |id, parent, inode, name: &[u8]| Record::Known { id, parent, inode, name: name.to_vec() };

    let mut agent = walking();
    agent.say(&[found(2, 1, 12, b"now")]).unwrap();
    assert_eq!((agent.channel.taken_over(), agent.channel.take_inodes()), (1, vec![1, 12]));
    let (found_objects, _) = agent.channel.take();
    let map = found_objects.into_map().unwrap();
    let object = map.find(ObjectName::path(Kind::File, b"/dev/sda", b"/now")).unwrap();
    assert_eq!((object.attributes(), object.pieces().len()), (attributes, 1));

    for wrong in [found(2, 1, 13, b"a"), found(3, 1, 12, b"a"), found(2, 2, 12, b"a"), found(2, 1, 12, b"..")]
    {
        assert!(walking().say(std::slice::from_ref(&wrong)).is_err(), "{wrong:?}");
    }
    assert!(Agent::walking().say(&[found(2, 1, 12, b"now")]).is_err());
}

#[test]
fn with_a_directory_that_is_known_all_that_is_known_in_it_is_found_and_none_is_found_twice() {
    let baseline = Arc::new(baseline::tests::tree());
    let (directories, files) = baseline::tests::known_in_tree(&baseline);
    let device = baseline::tests::DEVICE;
    let (directories, _) = Directories::new(&baseline, device, &directories, &files);
    let known = Some(Arc::new(Known { baseline, files, directories }));
    let walking = || Agent::walking_in(WalkContext { known: known.clone(), ..WalkContext::default() });
    let found = |id, inode, name: &[u8]| Record::Known { id, parent: 1, inode, name: name.to_vec() };

    let mut agent = walking();
    agent.say(&[found(2, baseline::tests::TOP, b"renamed")]).unwrap();
    // What is left in it comes after what came with it.
    agent.say(&[object(7, 2, ObjectKind::File, b"changed", 0)]).unwrap();
    assert_eq!(agent.channel.taken_over(), 3);
    let map = agent.channel.take().0.into_map().unwrap();
    let paths: Vec<String> =
        map.objects().map(|object| String::from_utf8_lossy(object.name().path).into_owned()).collect();
    let expected = [
        "/",
        "/renamed",
        "/renamed/clean",
        "/renamed/changed",
        "/renamed/clean/one",
        "/renamed/clean/two",
        "/renamed/same",
    ];
    assert_eq!(paths, expected);
    assert_eq!(map.pieces().len(), 5);

    // It lies in another directory, too, or what came with it does.
    for inode in [baseline::tests::TOP, baseline::tests::CLEAN] {
        let again = Record::Object(Object { inode, ..directory(7) });
        let mut agent = walking();
        agent.say(&[found(2, baseline::tests::TOP, b"a")]).unwrap();
        assert!(agent.say(&[again]).is_err());
        assert!(matches!(agent.channel.end(), Err(ChannelError::Damaged)));
    }
    let mut agent = walking();
    let first = Record::Object(Object { inode: baseline::tests::CLEAN, ..directory(2) });
    assert!(agent.say(&[first, found(3, baseline::tests::TOP, b"a")]).is_err());
    assert!(walking().say(&[found(2, 99, b"a")]).is_err());
}

fn directory(id: u32) -> Object {
    match object(id, 1, ObjectKind::Directory, b"b", 0) {
        Record::Object(object) => object,
        other => panic!("{other:?}"),
    }
}

/// A record that a confused or hostile agent may send: small numbers, so that many of them are those of objects.
fn record_of(kind: u8, id: u32, number: u64) -> Record {
    let (parent, start, length) = ((number % 7) as u32, number.wrapping_mul(4096), 4096 << (number % 5));
    let ids = (1..=id).collect();
    let name = format!("n{number}").into_bytes();
    let kinds = [ObjectKind::Directory, ObjectKind::File, ObjectKind::Symlink];
    match kind % 20 {
        0..=5 => object(id, parent, kinds[(number % 3) as usize], &name, length),
        6..=8 => extents(id, start, length),
        9 | 10 => {
            Record::Tag { id: if number.is_multiple_of(3) { 0 } else { id }, reset: number.is_multiple_of(2) }
        }
        11 => Record::BatchEnd,
        12 => Record::Series { ids },
        13 => Record::SelectFiles { ids },
        14 => Record::Listing { ids },
        15 => Record::Link { id, parent, name },
        16 => Record::Space { owner: Owner::Free, pieces: vec![(start, length), (number, id.into())] },
        17 => Record::ReadFailure(record::ReadFailure {
            operation: Operation::Read,
            errno: id as i32,
            parent,
            name,
            offset: number,
        }),
        18 => {
            [Record::Encrypted { id }, Record::Shared { id }, Record::Packed][(number % 3) as usize].clone()
        }
        _ => Record::Unsure { id },
    }
}

proptest::proptest! {
    #[test]
    fn whatever_an_agent_says_the_conversation_ends_in_order(
        said in proptest::collection::vec(proptest::arbitrary::any::<(u8, u8, u8)>(), 0..60),
        sample in 0u32..3,
        metadata: bool,
    ) {
        let sample = std::num::NonZeroU32::new(sample).map(|every| Sample { every });
        let mut agent = Agent::walking_in(WalkContext { sample, metadata, ..WalkContext::default() });
        let mut next = 2;
        for (kind, id, number) in said {
            // An object has the number that is due, or the walk would be over at once.
            let is_object = kind % 20 < 6 && id > 9;
            let id = if is_object { next } else { u32::from(id) % (next + 1) };
            if agent.say(&[record_of(kind, id, number.into())]).is_err() {
                break;
            }
            next += u32::from(kind % 20 < 6);
            agent.read(u64::from(number) * 4096, u64::from(number) * 4096 + 8192);
        }
        let _ = agent.channel.end();
        let _ = agent.lines();
    }
}
