//! The text map, compared with maps of the original and with a model of bytes, and input that is
//! not a map.

use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;
use std::process::Command;
use virt_bmap_map::text::{self, LineError, ReadError, WriteError};
use virt_bmap_map::{
    Attributes, Balance, Dialect, Filesystem, Header, ImageFile, ImageInfo, Kind, Map, MapBuilder, NameError,
    Object, ObjectName, PieceFlags, Role, Warning, convert, load, save,
};
use virt_bmap_ranges::{DiskOffset, DiskRange};
use virt_bmap_testutil::tools;

fn written(map: &Map) -> Vec<u8> {
    let mut out = Vec::new();
    text::write(map, &mut out).unwrap();
    out
}

/// A map of a Fedora 20 guest that the original program made.
fn fedora() -> Option<Vec<u8>> {
    let file = std::fs::File::open(tools::original_map()?).unwrap();
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut text).unwrap();
    Some(text)
}

mod the_original {
    use super::*;

    #[test]
    fn its_map_comes_back_byte_for_byte() {
        let Some(text) = fedora() else { return };
        let map = text::read(&text[..]).unwrap();
        assert_eq!(map.dialect(), Dialect::Original);
        let count = |kind| map.objects().filter(|object| object.kind() == kind).count();
        assert_eq!((count(Kind::File), count(Kind::Directory), count(Kind::Partition)), (20554, 3346, 3));
        assert!(written(&map) == text, "the map that was written differs from the one that was read");
    }

    #[test]
    fn its_file_is_converted_to_the_same_bytes() {
        let Some(text) = fedora() else { return };
        let directory = tempfile::tempdir().unwrap();
        let (input, output) = (directory.path().join("bmap"), directory.path().join("out.bmap"));
        std::fs::write(&input, &text).unwrap();
        convert(&input, &output).unwrap();
        assert!(std::fs::read(&output).unwrap() == text);
        convert(&output, &output).unwrap();
        assert!(std::fs::read(&output).unwrap() == text);
    }

    #[test]
    fn look_ups_in_its_map_agree_with_its_lines() {
        let Some(text) = fedora() else { return };
        let map = text::read(&text[..]).unwrap();
        let lines: Vec<Line> = lines(&text);
        for group in lines.chunk_by(|a, b| a.range == b.range).step_by(7) {
            let range = group[0].range;
            let said: BTreeSet<Vec<u8>> = group.iter().map(|line| line.object.clone()).collect();
            for offset in [range.start, DiskOffset(range.end.0 - 1)] {
                let found: BTreeSet<_> =
                    map.at(1, offset).iter().map(|hit| object_string(hit.object.name())).collect();
                assert_eq!(found, said, "at {offset:#x}");
            }
            let kinds: Vec<_> = map.at(1, range.start).iter().map(|hit| hit.object.kind()).collect();
            assert!(kinds.is_sorted());
        }
    }

    #[test]
    fn nothing_is_unescaped_in_its_dialect() {
        let text = b"1 0 200 f /dev/sda1 /a\\012b \xff\t \n1 0 200 v /dev/my disk\n";
        let map = text::read(&text[..]).unwrap();
        assert_eq!(map.objects().next().unwrap().name().path, b"/a\\012b \xff\t ");
        assert_eq!(written(&map), text);
    }

    #[test]
    fn comments_above_its_map_stay() {
        let text = b"# disk 1 of my old map\n#\n#warning \\\n1 0 200 v /dev/sda\n";
        let map = text::read(&text[..]).unwrap();
        assert_eq!(map.dialect(), Dialect::Original);
        assert_eq!(map.header().comments.len(), 3);
        assert_eq!(written(&map), text);
    }

    #[test]
    fn logical_volumes_of_its_first_version_are_read() {
        let text = b"1 0 200 lvm_lv /dev/vg/root\n1 0 200 v /dev/sda\n";
        let map = text::read(&text[..]).unwrap();
        assert_eq!(written(&map), b"1 0 200 l /dev/vg/root\n1 0 200 v /dev/sda\n");
    }

    #[test]
    fn names_that_it_cannot_hold_are_refused_in_its_dialect() {
        for (name, what) in [
            (ObjectName::path(Kind::File, b"/dev/sda1", b"/a\nb"), "line feed"),
            (ObjectName::path(Kind::File, b"/dev/my disk", b"/a"), "space in its device"),
        ] {
            let mut builder = MapBuilder::new(Header::default());
            let file = builder.object(name, Attributes::default()).unwrap();
            builder.piece(file, 1, DiskRange::new(0, 1), None).unwrap();
            let mut map = builder.build();
            assert_eq!(text::read(&written(&map)[..]).unwrap(), map);
            map.set_dialect(Dialect::Original);
            let error = text::write(&map, Vec::new()).unwrap_err();
            assert!(matches!(error, WriteError::Unwritable { what: found, .. } if found == what), "{error}");
        }
    }
}

/// A line of a map, parsed without our reader.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    disk: u16,
    range: DiskRange,
    /// `TYPE DEVICE PATH` as the line has it.
    object: Vec<u8>,
}

fn lines(text: &[u8]) -> Vec<Line> {
    text.split_inclusive(|&byte| byte == b'\n')
        .map(|line| line.strip_suffix(b"\n").unwrap())
        .filter(|line| !line.starts_with(b"#"))
        .map(|line| {
            let fields: Vec<&[u8]> = line.splitn(4, |&byte| byte == b' ').collect();
            let offset = |field| u64::from_str_radix(std::str::from_utf8(field).unwrap(), 16).unwrap();
            Line {
                disk: std::str::from_utf8(fields[0]).unwrap().parse().unwrap(),
                range: DiskRange { start: DiskOffset(offset(fields[1])), end: DiskOffset(offset(fields[2])) },
                object: fields[3].to_vec(),
            }
        })
        .collect()
}

fn object_string(name: ObjectName<'_>) -> Vec<u8> {
    let mut string = vec![name.kind.letter(), b' '];
    string.extend_from_slice(name.device);
    if !name.path.is_empty() {
        string.push(b' ');
        string.extend_from_slice(name.path);
    }
    string
}

/// `object_string` in our dialect, according to the rule in the documentation.
fn escaped_string(name: ObjectName<'_>) -> Vec<u8> {
    let mut string = vec![name.kind.letter(), b' '];
    let mut push = |part: &[u8], space: bool| {
        for &byte in part {
            if byte < 0x20 || byte == 0x7f || byte == b'\\' || (space && byte == b' ') {
                string.extend_from_slice(format!("\\{byte:03o}").as_bytes());
            } else {
                string.push(byte);
            }
        }
    };
    push(name.device, true);
    if !name.path.is_empty() {
        push(b" ", false);
        push(name.path, false);
    }
    string
}

mod properties {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
    struct Name {
        kind: Kind,
        device: Vec<u8>,
        path: Vec<u8>,
    }

    impl Name {
        fn as_ref(&self) -> ObjectName<'_> {
            ObjectName { kind: self.kind, device: &self.device, path: &self.path }
        }
    }

    fn name() -> impl Strategy<Value = Name> {
        let device = prop_oneof![
            4 => prop::sample::select(vec![&b"/dev/sda"[..], b"/dev/sda1", b"/dev/vg/a b", b"/dev/\x01"]).prop_map(<[u8]>::to_vec),
            1 => prop::collection::vec(any::<u8>(), 1..4),
        ];
        let path = prop_oneof![
            prop::sample::select(vec![&b"/"[..], b"/a", b"/a b", b"/a\nb", b"/\\012", b"/\xff\xfe", b"\t"])
                .prop_map(<[u8]>::to_vec),
            prop::collection::vec(any::<u8>(), 1..6),
        ];
        (prop::sample::select(Kind::ALL.to_vec()), device, path, any::<bool>()).prop_map(
            |(kind, device, path, keep)| {
                let path = if kind.has_path().unwrap_or(keep) { path } else { Vec::new() };
                Name { kind, device, path }
            },
        )
    }

    #[test]
    fn only_pieces_that_hold_data_are_lines() {
        let mut builder = MapBuilder::new(Header::default());
        let file = ObjectName::path(Kind::File, b"/dev/sda1", b"/a");
        let file = builder.object(file, Attributes::default()).unwrap();
        let mut piece = |start, role| {
            builder.piece_as(file, 1, DiskRange::new(start, start + 16), None, role).unwrap();
        };
        piece(0, Role::default());
        piece(8, PieceFlags::PARITY.into());
        piece(16, Role::copy(1));
        piece(48, PieceFlags::ENCODED.into());
        piece(64, PieceFlags::UNWRITTEN.into());
        piece(96, PieceFlags::INLINE.into());
        piece(200, (PieceFlags::PARITY | PieceFlags::ENCODED).into());
        let map = builder.build();
        let text = written(&map);
        let lines = b"1 0 20 f /dev/sda1 /a\n1 30 40 f /dev/sda1 /a\n1 60 70 f /dev/sda1 /a\n";
        assert!(text.ends_with(lines), "{}", String::from_utf8_lossy(&text));
        assert_eq!(text::read(&text[..]).unwrap().pieces().len(), 3);
        // Lookups find the pieces that text leaves out, with their roles.
        let roles = |at| map.at(1, DiskOffset(at)).iter().map(|hit| hit.role).collect::<Vec<_>>();
        assert_eq!(roles(64), [PieceFlags::UNWRITTEN.into()]);
        assert_eq!(roles(8).len(), 2);
    }

    /// A piece: the index of its object, its disk, start and length.
    type PieceInput = (usize, u16, u64, u64);

    /// Names of objects, and pieces of these objects.
    fn objects_and_pieces() -> impl Strategy<Value = (Vec<Name>, Vec<PieceInput>)> {
        prop::collection::vec(name(), 1..8).prop_flat_map(|names| {
            let pieces = prop::collection::vec((0..names.len(), 1u16..4, 0u64..80, 0u64..30), 0..30);
            (Just(names), pieces)
        })
    }

    fn build(names: &[Name], pieces: &[PieceInput]) -> Map {
        let mut builder = MapBuilder::new(Header::default());
        for &(name, disk, start, length) in pieces {
            let object = builder.object(names[name].as_ref(), Attributes::default()).unwrap();
            builder.piece(object, disk, DiskRange::new(start, start + length), None).unwrap();
        }
        builder.build()
    }

    type Bytes = BTreeMap<(u16, u64), BTreeSet<Vec<u8>>>;

    proptest! {
        #[test]
        fn every_byte_has_its_objects((names, pieces) in objects_and_pieces()) {
            let map = build(&names, &pieces);
            let text = written(&map);
            let lines = lines(&text);

            let mut said = Bytes::new();
            for line in &lines {
                for byte in line.range.start.0..line.range.end.0 {
                    let objects = said.entry((line.disk, byte)).or_default();
                    prop_assert!(objects.insert(line.object.clone()), "a line twice");
                }
            }
            let mut model = Bytes::new();
            for &(name, disk, start, length) in &pieces {
                for byte in start..start + length {
                    model.entry((disk, byte)).or_default().insert(escaped_string(names[name].as_ref()));
                }
            }
            prop_assert_eq!(said, model);

            // Intervals ascend, are disjoint, and differ from the neighbours that they touch. The
            // lines of an interval are sorted by the names before these are escaped.
            let intervals: Vec<&[Line]> = lines.chunk_by(|a, b| (a.disk, a.range) == (b.disk, b.range)).collect();
            for pair in intervals.windows(2) {
                let (a, b) = (&pair[0][0], &pair[1][0]);
                prop_assert!((a.disk, a.range.end) <= (b.disk, b.range.start) || a.disk < b.disk);
                let objects = |lines: &[Line]| lines.iter().map(|line| line.object.clone()).collect::<Vec<_>>();
                prop_assert!(a.disk != b.disk || a.range.end != b.range.start || objects(pair[0]) != objects(pair[1]));
            }
            let strings: BTreeMap<_, _> = names.iter().map(|name| (escaped_string(name.as_ref()), object_string(name.as_ref()))).collect();
            for interval in intervals {
                prop_assert!(interval.iter().map(|line| &strings[&line.object]).is_sorted());
            }
        }

        #[test]
        fn what_is_written_is_read_back((names, pieces) in objects_and_pieces()) {
            let map = build(&names, &pieces);
            let text = written(&map);
            let back = text::read(&text[..]).unwrap();
            prop_assert_eq!(&written(&back), &text);
            // A text map lacks objects without pieces.
            let with_pieces: Vec<_> = map.objects().filter(|object| object.pieces().next().is_some()).map(Object::name).collect();
            prop_assert_eq!(back.objects().map(Object::name).collect::<Vec<_>>(), with_pieces);
            for byte in 0..110 {
                let at = |map: &Map| map.at(1, DiskOffset(byte)).iter().map(|hit| object_string(hit.object.name())).collect::<Vec<_>>();
                prop_assert_eq!(at(&map), at(&back));
            }
        }

        #[test]
        fn the_original_dialect_is_read_back((names, pieces) in objects_and_pieces()) {
            let mut map = build(&names, &pieces);
            map.set_dialect(Dialect::Original);
            let mut text = Vec::new();
            if text::write(&map, &mut text).is_ok() && !text.is_empty() {
                prop_assert_eq!(written(&text::read(&text[..]).unwrap()), text);
            }
        }

        #[test]
        fn a_header_is_read_back(
            images in prop::collection::vec((1u16..9, any::<u64>(), any::<Option<String>>(), prop::collection::vec((prop::collection::vec(any::<u8>(), 0..9), "[ -~]{0,6}|\\PC{0,4}"), 1..4)), 0..4),
            filesystems in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..6), any::<String>(), any::<[Option<u64>; 4]>(), any::<[u64; 2]>()), 0..3),
            warnings in prop::collection::vec(any::<String>(), 0..3),
            comments in prop::collection::vec(" ?[^\n]{0,9}", 0..3),
        ) {
            let file = |(name, format): &(Vec<u8>, String)| ImageFile { name: name.clone(), format: format.clone() };
            let images = images.iter().map(|(disk, size, snapshot, files)| ImageInfo {
                disk: *disk, size: *size, sector: size / 3, image: file(&files[0]), snapshot: snapshot.clone(), chain: files[1..].iter().map(file).collect(),
            }).collect();
            let filesystems = filesystems.into_iter().map(|(device, kind, [block_size, size, free, free_mapped], [directories, files])| {
                Filesystem { device, kind, block_size, size, free, free_mapped, directories, files, ..Filesystem::default() }
            }).collect();
            let comments = comments.into_iter().map(String::into_bytes).collect();
            let warnings = warnings.into_iter().map(Warning::sentence).collect();
            let header = Header { images, filesystems, warnings, comments, ..Header::default() };
            let map = MapBuilder::new(header).build();
            prop_assert_eq!(text::read(&written(&map)[..]).unwrap(), map);
        }

        #[test]
        fn any_input_is_read_or_refused(input in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = text::read(&input[..]);
        }

        /// The input is nearly a map, so that the reader gets far before it refuses it.
        #[test]
        fn any_map_with_a_mistake_is_read_or_refused(
            (names, pieces) in objects_and_pieces(),
            original in any::<bool>(),
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 0..6),
        ) {
            let mut map = build(&names, &pieces);
            map.set_dialect(if original { Dialect::Original } else { Dialect::Escaped });
            let mut text = Vec::new();
            let _ = text::write(&map, &mut text);
            for (place, byte, edit) in edits {
                let place = place.index(text.len() + 1);
                match edit {
                    0 => text.insert(place, byte),
                    1 if place < text.len() => text[place] = byte,
                    _ => text.truncate(place),
                }
            }
            if let Ok(map) = text::read(&text[..]) {
                map.at(1, DiskOffset(5));
                let mut again = Vec::new();
                if text::write(&map, &mut again).is_ok() && !again.is_empty() {
                    prop_assert_eq!(text::read(&again[..]).unwrap(), map);
                }
            }
        }
    }
}

#[test]
fn the_format_is_frozen() {
    let file = |name: &[u8], format: &str| ImageFile { name: name.to_vec(), format: format.to_owned() };
    let header = Header {
        generator: "virt-bmap-rs 0.1.0".to_owned(),
        images: vec![
            ImageInfo {
                disk: 1,
                size: 6_442_450_944,
                sector: 512,
                image: file(b"guest-000002.vmdk", "vmdk"),
                snapshot: None,
                chain: vec![file(b"../guest 1.vmdk", "vmdk"), file(b"base\n\xff.vmdk", "vmdk")],
            },
            ImageInfo {
                disk: 2,
                size: 512,
                sector: 512,
                image: file(b"/tmp/data", "raw"),
                snapshot: None,
                chain: vec![],
            },
        ],
        filesystems: vec![
            Filesystem {
                device: b"/dev/vg/my root".to_vec(),
                kind: "ext4".to_owned(),
                block_size: Some(4096),
                size: Some(16384),
                free: Some(0),
                free_mapped: None,
                balance: Some(Balance {
                    used: 16384,
                    files: 4096,
                    directories: 4096,
                    metadata: 8192,
                    ..Balance::default()
                }),
                directories: 1,
                files: 2,
                ..Filesystem::default()
            },
            Filesystem { device: b"/dev/sda1".to_vec(), kind: "udf".to_owned(), ..Filesystem::default() },
        ],
        warnings: vec![Warning::sentence("/dev/sda3: unknown filesystem")],
        comments: vec![b" made for the test".to_vec(), Vec::new()],
    };
    let mut builder = MapBuilder::new(header);
    for (name, pieces) in [
        (ObjectName::device(Kind::Disk, b"/dev/sda"), &[(1, 0, 0x8000)][..]),
        (ObjectName::device(Kind::Disk, b"/dev/sdb"), &[(2, 0, 0x200)]),
        (ObjectName::device(Kind::Partition, b"/dev/sda1"), &[(1, 0x1000, 0x8000)]),
        (ObjectName::device(Kind::LogicalVolume, b"/dev/vg/my root"), &[(1, 0x2000, 0x6000)]),
        (ObjectName::path(Kind::Directory, b"/dev/vg/my root", b"/"), &[(1, 0x2000, 0x3000)]),
        (
            ObjectName::path(Kind::File, b"/dev/vg/my root", b"/a\tb \\ \xff"),
            &[(1, 0x4000, 0x5000), (1, 0x3000, 0x4000)],
        ),
        (ObjectName::path(Kind::File, b"/dev/vg/my root", b"/link"), &[(1, 0x3000, 0x5000)]),
    ] {
        let object = builder.object(name, Attributes::default()).unwrap();
        for &(disk, start, end) in pieces {
            builder.piece(object, disk, DiskRange::new(start, end), None).unwrap();
        }
    }
    let map = builder.build();
    let frozen = b"\
# virt-bmap-rs 0.1.0 map 1
# disk 1 size=6442450944 format=vmdk name=guest-000002.vmdk
# backing 1 format=vmdk name=../guest 1.vmdk
# backing 1 format=vmdk name=base\\012\xff.vmdk
# disk 2 size=512 format=raw name=/tmp/data
# filesystem /dev/vg/my\\040root type=ext4 block-size=4096 size=16384 free=0 used=16384 in-files=4096 in-directories=4096 in-metadata=8192 superseded=0 unexplained=0 claimed-twice=0 claimed-free=0 directories=1 files=2
# filesystem /dev/sda1 type=udf directories=0 files=0
# warning /dev/sda3: unknown filesystem
# made for the test
#
1 0 1000 v /dev/sda
1 1000 2000 p /dev/sda1
1 1000 2000 v /dev/sda
1 2000 3000 d /dev/vg/my\\040root /
1 2000 3000 l /dev/vg/my\\040root
1 2000 3000 p /dev/sda1
1 2000 3000 v /dev/sda
1 3000 5000 f /dev/vg/my\\040root /a\\011b \\134 \xff
1 3000 5000 f /dev/vg/my\\040root /link
1 3000 5000 l /dev/vg/my\\040root
1 3000 5000 p /dev/sda1
1 3000 5000 v /dev/sda
1 5000 6000 l /dev/vg/my\\040root
1 5000 6000 p /dev/sda1
1 5000 6000 v /dev/sda
1 6000 8000 p /dev/sda1
1 6000 8000 v /dev/sda
2 0 200 v /dev/sdb
";
    assert_eq!(String::from_utf8_lossy(&written(&map)), String::from_utf8_lossy(frozen));
    assert_eq!(written(&map), frozen);
    assert_eq!(text::read(&frozen[..]).unwrap(), map);
}

mod refused {
    use super::*;

    /// The number of the line that is refused, and what is wrong with it.
    fn problem(text: &[u8]) -> (u64, LineError) {
        match text::read(text) {
            Err(ReadError::Line { line, problem }) => (line, problem),
            other => panic!("{:?} gave {other:?}", String::from_utf8_lossy(text)),
        }
    }

    #[test]
    fn wrong_lines() {
        let found = |found: &str| found.to_owned();
        let range = DiskRange::new;
        let cases: Vec<(&[u8], LineError)> = vec![
            (b"0 0 1 v /dev/sda\n", LineError::BadDisk { found: found("0") }),
            (b"01 0 1 v /dev/sda\n", LineError::BadDisk { found: found("01") }),
            (b"65536 0 1 v /dev/sda\n", LineError::BadDisk { found: found("65536") }),
            (b"x 0 1 v /dev/sda\n", LineError::BadDisk { found: found("x") }),
            (b"\n", LineError::Missing { field: "start offset" }),
            (b"1 0\n", LineError::Missing { field: "end offset" }),
            (b"1 0 1\n", LineError::Missing { field: "type" }),
            (b"1 0 1 v\n", LineError::Missing { field: "device" }),
            (b"1 0x0 1 v /dev/sda\n", LineError::BadNumber { field: "start", found: found("0x0") }),
            (b"1 0 \x1b[1m v /dev/sda\n", LineError::BadNumber { field: "end", found: found("\\033[1m") }),
            (b"1 A0 B0 v /dev/sda\n", LineError::BadNumber { field: "start", found: found("A0") }),
            (
                b"1 0 10000000000000000 v /dev/sda\n",
                LineError::BadNumber { field: "end", found: found("10000000000000000") },
            ),
            (b"1 20 10 v /dev/sda\n", LineError::EndNotAfterStart { start: 0x20, end: 0x10 }),
            (b"1 20 20 v /dev/sda\n", LineError::EndNotAfterStart { start: 0x20, end: 0x20 }),
            (b"1 0 1 ? /dev/sda\n", LineError::UnknownType { found: found("?") }),
            (b"1 0 1 vv /dev/sda\n", LineError::UnknownType { found: found("vv") }),
            (b"1 0 1 v \n", LineError::Name(NameError::NoDevice)),
            (b"1 0 1 f  /a\n", LineError::Name(NameError::NoDevice)),
            (b"1 0 1 f /dev/sda1\n", LineError::Name(NameError::NoPath(Kind::File))),
            (b"1 0 1 d /dev/sda1 \n", LineError::Name(NameError::NoPath(Kind::Directory))),
            (b"1 0 1 v /dev/sda", LineError::Truncated),
            (b"1 0 1 v /dev/sda\n# late\n", LineError::LateComment),
            (
                b"1 10 30 v /dev/sda\n1 20 40 p /dev/sda1\n",
                LineError::NotAscending {
                    disk: 1,
                    range: range(0x20, 0x40),
                    above_disk: 1,
                    above: range(0x10, 0x30),
                },
            ),
            (
                b"1 10 30 v /dev/sda\n1 10 20 p /dev/sda1\n",
                LineError::NotAscending {
                    disk: 1,
                    range: range(0x10, 0x20),
                    above_disk: 1,
                    above: range(0x10, 0x30),
                },
            ),
            (
                b"2 0 10 v /dev/sdb\n1 10 20 v /dev/sda\n",
                LineError::NotAscending {
                    disk: 1,
                    range: range(0x10, 0x20),
                    above_disk: 2,
                    above: range(0, 0x10),
                },
            ),
        ];
        for (text, wanted) in cases {
            let line = text.strip_suffix(b"\n").unwrap_or(text).iter().filter(|&&byte| byte == b'\n').count();
            // The text is repeated below a header and a valid line of an earlier disk. The error is
            // then on line 3 or later.
            if !matches!(wanted, LineError::NotAscending { .. }) {
                let mut whole = b"# virt-bmap-rs 9 map 1\n1 0 100 v /dev/sda\n".to_vec();
                whole.extend_from_slice(
                    text.strip_prefix(b"1 ").map_or(text.to_vec(), |rest| [b"2 ", rest].concat()).as_slice(),
                );
                assert_eq!(
                    problem(&whole),
                    (line as u64 + 3, wanted.clone()),
                    "{}",
                    String::from_utf8_lossy(&whole)
                );
            } else {
                assert_eq!(problem(text), (line as u64 + 1, wanted), "{}", String::from_utf8_lossy(text));
            }
        }
    }

    #[test]
    fn what_only_our_dialect_refuses() {
        let header = b"# virt-bmap-rs 0.1.0 map 1\n";
        let line = |line: &[u8]| problem(&[header, line].concat());
        assert!(matches!(line(b"1 0 1 f /dev/sda1 /a\\9\n"), (2, LineError::Escape(_))));
        assert_eq!(
            line(b"1 0 1 v /dev/my disk\n"),
            (2, LineError::Name(NameError::UnexpectedPath(Kind::Disk)))
        );
        for wrong in [
            &b"# disk 0 size=1 format=raw name=a\n"[..],
            b"# disk 1 size=x format=raw name=a\n",
            b"# disk 1 size=1 name=a\n",
            b"# disk 1 size=1 format=raw\n",
            b"# backing 1 format=raw name=a\n",
            b"# disk 1 size=1 format=raw name=a\n# backing 2 format=raw name=b\n",
            b"# warning \\377\n",
            b"# filesystem  type=ext4 directories=0 files=0\n",
            b"# filesystem /dev/sda1 directories=0 files=0\n",
            b"# filesystem /dev/sda1 type=ext4 size=x directories=0 files=0\n",
            b"# filesystem /dev/sda1 type=ext4 directories=0\n",
            b"# filesystem /dev/sda1 type=ext4 directories=0 files=0 more=1\n",
        ] {
            let (_, problem) = line(wrong);
            assert!(matches!(problem, LineError::Header { .. }), "{problem}");
        }
        assert_eq!(problem(b"# virt-bmap-rs 7.0.0 map 2\n"), (1, LineError::Version { version: 2 }));
        assert_eq!(text::read(&header[..]).unwrap().objects().len(), 0);
    }

    #[test]
    fn lines_without_end() {
        let mut text = b"1 0 1 v /dev/sda\n1 1 2 f /dev/sda1 /".to_vec();
        text.resize(text.len() + text::MAX_LINE, b'a');
        assert_eq!(problem(&text), (2, LineError::TooLong));
        text.push(b'\n');
        assert_eq!(problem(&text), (2, LineError::TooLong));
        let mut text = b"1 1 2 f /dev/sda1 /".to_vec();
        text.resize(text.len() + 300_000, b'a');
        text.push(b'\n');
        assert!(matches!(problem(&text), (1, LineError::Name(NameError::TooLong { what: "path", .. }))));
    }

    #[test]
    fn the_longest_names_fit_a_line() {
        let (device, path) = ([b'\x01'; virt_bmap_map::MAX_DEVICE], [b'\\'; virt_bmap_map::MAX_PATH]);
        let mut builder = MapBuilder::new(Header::default());
        let file =
            builder.object(ObjectName::path(Kind::File, &device, &path), Attributes::default()).unwrap();
        builder.piece(file, u16::MAX, DiskRange::new(u64::MAX - 1, u64::MAX), None).unwrap();
        let map = builder.build();
        assert_eq!(text::read(&written(&map)[..]).unwrap(), map);
    }

    #[test]
    fn files_that_are_no_maps() {
        let message = |text: &[u8]| text::read(text).unwrap_err().to_string();
        assert!(message(b"").contains("empty"));
        assert!(message(b"# only a comment\n").contains("nothing in it but comments"));
        assert!(message(b"\x1f\x8b\x08\x00").contains(r"begins with `\037\213\010\000`"));
        assert!(message(&[0; 5000]).contains("not a block map"));
        assert!(message(b"{\"version\": 1}\n").contains("not a block map"));
        assert!(message(b"<?xml version=\"1.0\"?>\n<dfxml/>\n").contains("not a block map"));
        let comment = "<!-- ".to_owned() + &"words ".repeat(300) + "-->\n\n";
        let bmap_tools = format!("<?xml version=\"1.0\" ?>\n{comment}<bmap version=\"2.0\">\n</bmap>\n");
        assert!(message(bmap_tools.as_bytes()).contains("bmap-tools"));
        assert!(message(b"\xef\xbb\xbf<bmap version=\"1.3\">").contains("bmap-tools"));
    }

    #[test]
    fn comments_that_would_be_read_as_something_else() {
        for comment in [&b" disk 1"[..], b" filesystem x", b" warning x", b" backing 1", b"two\nlines"] {
            let header = Header { comments: vec![comment.to_vec()], ..Header::default() };
            let error = text::write(&MapBuilder::new(header).build(), Vec::new()).unwrap_err();
            assert!(matches!(error, WriteError::Comment { .. }), "{error}");
        }
        let header = Header { generator: "someone else".to_owned(), ..Header::default() };
        let error = text::write(&MapBuilder::new(header).build(), Vec::new()).unwrap_err();
        assert!(matches!(error, WriteError::Generator { .. }), "{error}");
    }
}

#[test]
fn what_cannot_harm_is_forgiven() {
    // The objects are out of order, one occurs twice, and an interval is split without a reason.
    let text = b"1 0 10 v /dev/sda\n1 0 10 p /dev/sda1\n1 0 10 v /dev/sda\n1 10 20 p /dev/sda1\n1 10 20 v /dev/sda\n";
    assert_eq!(written(&text::read(&text[..]).unwrap()), b"1 0 20 p /dev/sda1\n1 0 20 v /dev/sda\n");
}

#[test]
fn errors_name_the_file_and_the_cause() {
    let directory = tempfile::tempdir().unwrap();
    let bad = directory.path().join("bad.bmap");
    std::fs::write(&bad, b"1 0 10 v /dev/sda\n1 10 8 v /dev/sda\n").unwrap();
    let error = anyhow::Error::from(convert(&bad, &directory.path().join("out")).unwrap_err());
    assert!(
        format!("{error:#}").ends_with(
            "bad.bmap: could not be read as a map: line 2: the range ends at 8, not after its start 10"
        ),
        "{error:#}"
    );
    let missing = directory.path().join("missing");
    let error = anyhow::Error::from(load(&missing).unwrap_err());
    assert!(format!("{error:#}").contains("missing: could not be opened: No such file"), "{error:#}");
    let map = text::read(&b"1 0 10 v /dev/sda\n"[..]).unwrap();
    let error = anyhow::Error::from(save(&map, Path::new("/dev/full")).unwrap_err());
    assert!(format!("{error:#}").contains("/dev/full: could not be written"), "{error:#}");
    assert!(format!("{error:#}").contains("No space left"), "{error:#}");
    let error = anyhow::Error::from(save(&map, &missing.join("out")).unwrap_err());
    assert!(format!("{error:#}").contains("missing/out: could not be created: "), "{error:#}");
}

/// The map is larger than the limit for files, so the write fails halfway, as on a full disk.
#[test]
fn a_failed_write_leaves_the_former_file() {
    const CHILD: &str = "BMAP_TEST_SAVE_TO";
    let map = || {
        let mut builder = MapBuilder::new(Header::default());
        for number in 0..20_000u64 {
            let path = format!("/some/where/file-{number}");
            let name = ObjectName::path(Kind::File, b"/dev/sda1", path.as_bytes());
            let file = builder.object(name, Attributes::default()).unwrap();
            builder.piece(file, 1, DiskRange::new(number * 4096, (number + 1) * 4096), None).unwrap();
        }
        builder.build()
    };
    if let Some(path) = std::env::var_os(CHILD) {
        let error = anyhow::Error::from(save(&map(), Path::new(&path)).unwrap_err());
        assert!(format!("{error:#}").contains("File too large"), "{error:#}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.bmap");
    std::fs::write(&path, b"baseline").unwrap();
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "bmap_text::a_failed_write_leaves_the_former_file", "--nocapture"])
        .env(CHILD, &path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
    assert_eq!(std::fs::read(&path).unwrap(), b"baseline");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "something was left behind");
    save(&map(), &path).unwrap();
    assert_eq!(load(&path).unwrap(), map());
}
