//! The formats of maps: round trips, frozen samples, input that is not a map, and readers of other
//! projects.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use virt_bmap_map::escape::unescape;
use virt_bmap_map::{
    self, Attributes, Balance, Cause, Compression, Dialect, FileOperation, FileType, Filesystem, Format,
    Header, ImageFile, ImageInfo, Kind, Map, MapBuilder, Marks, Object, ObjectName, Piece, PieceFlags,
    ReparseTag, Role, Warning, convert, csv, jsonl, load, save,
};
use virt_bmap_ranges::{DiskRange, FileOffset};
use virt_bmap_testutil::tools::{self, needs};

const FORMATS: [(Format, &str); 5] = [
    (Format::Text, "bmap"),
    (Format::JsonLines, "jsonl"),
    (Format::Csv, "csv"),
    (Format::Dfxml, "xml"),
    (Format::Parquet, "parquet"),
];

/// Names that careless readers and writers handle wrongly.
const HOSTILE: [&[u8]; 12] = [
    b"/a\tb \\ \xff",
    b"/two\nlines\r\n",
    b"/\"quoted\",'and',comma;",
    b"/</filename><!-- ]]> &amp;",
    b"/caf\xc3\xa9 \xe2\x80\xae\xf0\x9f\x92\xbe",
    b"/\x1b[2J\x7f\xc2\x9b",
    b"/\xef\xbf\xbe\xef\xbf\xbf\xed\xa0\x80",
    b"=cmd|' /C calc'!A0",
    b"@sum",
    b"-1+2",
    b"/ leading and trailing ",
    b"/\\012 {\"base64\":\"AA==\"}",
];

#[test]
fn version_1_of_json_lines_is_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats/version-1/sample.jsonl");
    // It has no balance.
    let mut header = header();
    header.filesystems[0].balance = None;
    assert_eq!(jsonl::read(&fs::read(path).unwrap()[..]).unwrap(), sample_with(header));
}

#[test]
fn json_lines_keep_what_a_warning_is_about() {
    let mut map = sample();
    let failed = Cause::FileFailed { operation: FileOperation::Extents, errno: Some(5), offset: None };
    map.header_mut().warnings = vec![
        Warning::on_path("/dev/sda1", b"/dir/\xff\x1b", failed),
        Warning::on_device("/dev/sda3", Cause::UnknownContent),
        Warning::on_image(b"\xff.raw", Cause::ImageRoundedUp { size: 3, rounded: 512 }),
        Warning::on_guest(Cause::MoreOmitted { count: 7 }),
    ];
    assert_eq!(jsonl::read(&written(&map, Format::JsonLines)[..]).unwrap(), map);
    // A text map has one line of text for each warning.
    let text = written(&map, Format::Text);
    let lines =
        |start: &[u8]| text.split(|byte| *byte == b'\n').filter(|line| line.starts_with(start)).count();
    assert_eq!((lines(b"# warning "), lines(b"# note ")), (3, 1));
    let read = virt_bmap_map::read(&text[..], Format::Text).unwrap();
    let has_words =
        |warning: &Warning| matches!(warning.cause, Cause::Sentence { .. } | Cause::Remark { .. });
    assert!(read.header().warnings.iter().all(has_words));
    // What is missing from a map is missing for a reader of its text, too, and nothing else is.
    let missing = read.header().warnings.iter().filter(|warning| warning.is_incomplete());
    assert_eq!(missing.count(), 3);
    assert_eq!(written(&read, Format::Text), text);
}

#[test]
fn a_reparse_tag_is_in_the_formats_with_attributes() {
    let mut builder = MapBuilder::new(Header::default());
    for (name, reparse) in [(&b"/wof"[..], 0x8000_0017), (b"/odd", 0xdead_beef)] {
        let known = Attributes {
            marks: Marks::REPARSE_POINT,
            reparse: Some(ReparseTag(reparse)),
            ..Attributes::default()
        };
        let object = builder.object(ObjectName::path(Kind::File, b"/dev/sda1", name), known).unwrap();
        let start = u64::from(reparse) & !511;
        builder.piece(object, 1, DiskRange::new(start, start + 512), None).unwrap();
    }
    let map = builder.build();
    for (format, before, after) in [
        (Format::JsonLines, "\"reparse\":\"", "\""),
        (Format::Csv, "reparse-point,", "\n"),
        (Format::Dfxml, "bmap:reparse=\"", "\""),
    ] {
        let text = String::from_utf8(written(&map, format)).unwrap();
        for tag in ["0x80000017 WOF", "0xdeadbeef"] {
            assert_eq!(text.matches(&format!("{before}{tag}{after}")).count(), 1, "{text}");
        }
    }
    let read = jsonl::read(&written(&map, Format::JsonLines)[..]).unwrap();
    assert!(read == map);
    let read = csv::read(&written(&map, Format::Csv)[..]).unwrap();
    assert!(
        read.objects().all(|object| object.attributes() == map.find(object.name()).unwrap().attributes())
    );
    // An older table has no column of tags.
    let columns = csv::COLUMNS[..18].join(",");
    let old = format!("{columns}\n1,0,512,512,f,/dev/sda1,/wof,,0,,,,,,,,,reparse-point\n");
    let read = csv::read(old.as_bytes()).unwrap();
    let known = read.objects().next().unwrap().attributes();
    assert_eq!((known.marks, known.reparse), (Marks::REPARSE_POINT, None));
}

fn file(name: &[u8], format: &str) -> ImageFile {
    ImageFile { name: name.to_vec(), format: format.to_owned() }
}

/// A map that uses everything a map can have.
fn sample() -> Map {
    sample_with(header())
}

/// The header of that map.
fn header() -> Header {
    Header {
        generator: "virt-bmap-rs 0.1.0".to_owned(),
        images: vec![
            ImageInfo {
                disk: 1,
                size: 0x10_0000,
                sector: 512,
                image: file(b"guest-000001.vmdk", "vmdk"),
                snapshot: None,
                chain: vec![file(b"base\n\xff.vmdk", "vmdk")],
            },
            ImageInfo {
                disk: 2,
                size: 0x10_0000,
                sector: 512,
                image: file(b"/tmp/data & more", "raw"),
                snapshot: None,
                chain: vec![],
            },
        ],
        filesystems: vec![
            Filesystem {
                device: b"/dev/sda1".to_vec(),
                kind: "ext4".to_owned(),
                block_size: Some(1024),
                size: Some(0xf_0000),
                free: Some(4096),
                free_mapped: None,
                balance: Some(Balance {
                    used: 0xe_f000,
                    files: 0xe_0000,
                    directories: 0x1000,
                    metadata: 0xc000,
                    superseded: 0x1000,
                    unexplained: 0x1000,
                    claimed_twice: 1,
                    claimed_free: 2,
                }),
                directories: 1,
                files: 5,
                inodes: [(1, [7; 16]), (9, [8; 16]), (65, [0xff; 16])].into(),
            },
            Filesystem { device: b"/dev/md0".to_vec(), kind: "xfs".to_owned(), ..Filesystem::default() },
        ],
        warnings: vec![Warning::sentence("/dev/sda3: unknown filesystem")],
        comments: vec![b" made for the test \xff".to_vec()],
    }
}

fn sample_with(header: Header) -> Map {
    let mut builder = MapBuilder::new(header);
    let mut add = |name: ObjectName<'_>, attributes, pieces: &[(u16, u64, u64, Option<u64>, Role)]| {
        let object = builder.object(name, attributes).unwrap();
        for &(disk, start, end, offset, role) in pieces {
            builder.piece_as(object, disk, DiskRange::new(start, end), offset.map(FileOffset), role).unwrap();
        }
    };
    let (none, plain) = (Attributes::default(), Role::default());
    let path = |path| ObjectName::path(Kind::File, b"/dev/sda1", path);
    add(ObjectName::device(Kind::Disk, b"/dev/sda"), none, &[(1, 0, 0x10_0000, None, plain)]);
    add(ObjectName::device(Kind::Disk, b"/dev/sdb"), none, &[(2, 0, 0x10_0000, None, plain)]);
    add(ObjectName::device(Kind::Partition, b"/dev/sda1"), none, &[(1, 0x1_0000, 0x10_0000, None, plain)]);
    let legs = [(1, 0x400, 0x800, Some(0), Role::copy(0)), (2, 0x400, 0x800, Some(0), Role::copy(1))];
    add(ObjectName::device(Kind::MappedDevice, b"/dev/md0"), none, &legs);
    add(
        ObjectName::path(Kind::Metadata, b"/dev/sda1", b"journal"),
        none,
        &[(1, 0x2_0000, 0x2_1000, None, plain)],
    );
    add(
        ObjectName::path(Kind::Directory, b"/dev/sda1", b"/"),
        Attributes { inode: Some(2), size: Some(1024), links: Some(3), mode: Some(0o40_755), ..none },
        &[(1, 0x1_1000, 0x1_1400, Some(0), plain)],
    );
    let whole = Attributes {
        inode: Some(12),
        size: Some(5000),
        links: Some(2),
        allocated: Some(9216),
        mode: Some(0o100_644),
        modified: Some(1_400_000_000_123_456_789),
        changed: Some(-1),
        marks: Marks::SPARSE | Marks::PREALLOCATED,
        ..none
    };
    let pieces = [
        (1, 0x3_0000, 0x3_1000, Some(0x1000), plain),
        (1, 0x2_8000, 0x2_9000, Some(0), plain),
        (1, 0x3_4000, 0x3_4400, Some(0x2000), PieceFlags::UNWRITTEN.into()),
    ];
    add(path(b"/etc.conf"), whole, &pieces);
    add(path(b"/link"), whole, &pieces);
    let marks = Marks::NO_BLOCKS | Marks::UNVERIFIED;
    add(path(b"/empty"), Attributes { inode: Some(13), size: Some(0), links: Some(1), marks, ..none }, &[]);
    let marks = Marks::INLINE | Marks::NO_BLOCKS;
    let inline = [(1, 0x1_2000, 0x1_200a, Some(0), PieceFlags::INLINE.into())];
    add(path(b"/small"), Attributes { inode: Some(14), size: Some(10), marks, ..none }, &inline);
    let marks = Marks::ENCODED | Marks::ENCRYPTED | Marks::INEXACT;
    let encoded = [(1, 0x5_0000, 0x5_1000, Some(0), PieceFlags::ENCODED.into())];
    add(path(b"/packed"), Attributes { inode: Some(15), size: Some(100_000), marks, ..none }, &encoded);
    let legs = [
        (1, 0x800, 0xc00, Some(0), Role::copy(0)),
        (2, 0x800, 0xc00, Some(0), Role::copy(1)),
        (2, 0xc00, 0x1000, None, PieceFlags::PARITY.into()),
    ];
    add(ObjectName::path(Kind::File, b"/dev/md0", b"/var/log"), none, &legs);
    for (number, name) in (0..).zip(HOSTILE) {
        let start = 0x6_0000 + number * 0x1000;
        add(path(name), none, &[(1, start, start + 0x1000, Some(0), plain)]);
    }
    builder.build()
}

fn written(map: &Map, format: Format) -> Vec<u8> {
    let mut out = Vec::new();
    format.write(map, &mut out).unwrap();
    out
}

mod frozen {
    use super::*;

    /// Compares what is written with a file that a person has checked. `VIRT_BMAP_BLESS=1` writes
    /// the file again.
    fn frozen(format: Format, suffix: &str) -> Vec<u8> {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats").join(format!("sample.{suffix}"));
        let now = written(&sample(), format);
        if std::env::var_os("VIRT_BMAP_BLESS").is_some() {
            fs::write(&path, &now).unwrap();
        }
        let frozen = fs::read(&path).unwrap();
        assert_eq!(String::from_utf8_lossy(&now), String::from_utf8_lossy(&frozen), "{}", path.display());
        assert!(now == frozen);
        now
    }

    #[test]
    fn text() {
        frozen(Format::Text, "bmap");
    }

    #[test]
    fn json_lines() {
        let bytes = frozen(Format::JsonLines, "jsonl");
        assert_eq!(jsonl::read(&bytes[..]).unwrap(), sample());
        assert!(std::str::from_utf8(&bytes).is_ok());
    }

    #[test]
    fn csv() {
        let bytes = frozen(Format::Csv, "csv");
        assert!(std::str::from_utf8(&bytes).is_ok());
        // No line has more than one row, and no cell is a formula.
        let map = csv::read(&bytes[..]).unwrap();
        assert_eq!(bytes.iter().filter(|&&byte| byte == b'\n').count(), map.pieces().len() + 1);
        assert!(!bytes.windows(2).any(|pair| pair[0] == b',' && b"=+@".contains(&pair[1])));
    }

    #[test]
    fn dfxml() {
        frozen(Format::Dfxml, "xml");
    }
}

mod round_trips {
    use super::*;

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            2 => prop::sample::select(HOSTILE.to_vec()).prop_map(<[u8]>::to_vec),
            1 => prop::collection::vec(any::<u8>(), 1..9),
            1 => "/[a-c]{1,2}".prop_map(String::into_bytes),
        ]
    }

    fn attributes() -> impl Strategy<Value = Attributes> {
        let numbers = any::<(Option<u64>, Option<u64>, Option<u32>, Option<u64>, Option<u16>)>();
        (numbers, any::<(Option<i64>, Option<i64>, u16, Option<u32>)>()).prop_map(
            |((inode, size, links, allocated, mode), (modified, changed, marks, reparse))| Attributes {
                inode,
                size,
                links,
                allocated,
                mode,
                modified,
                changed,
                marks: Marks::from_bits_truncate(marks),
                reparse: reparse.map(ReparseTag),
                owner: None,
                born: None,
            },
        )
    }

    fn header() -> impl Strategy<Value = Header> {
        let files = prop::collection::vec((bytes(), any::<String>()), 1..4);
        let images =
            prop::collection::vec((1u16..9, any::<[u64; 2]>(), any::<Option<String>>(), files), 0..3);
        let numbers = any::<([Option<u64>; 4], [u64; 2])>();
        // The inode numbers are close to each other, so that some groups of eight are neighbours.
        let first = prop_oneof![0..200u64, any::<u64>()].prop_map(|inode| inode / 8 * 8 + 1);
        let inodes = prop::collection::btree_map(first, any::<[u8; 16]>(), 0..9);
        let filesystems = prop::collection::vec((bytes(), any::<String>(), numbers, inodes), 0..3);
        let rest = (prop::collection::vec(any::<String>(), 0..3), prop::collection::vec(bytes(), 0..3));
        (images, filesystems, rest).prop_map(|(images, filesystems, (warnings, comments))| {
            let images = images.into_iter().map(|(disk, [size, sector], snapshot, files)| {
                let mut files = files.iter().map(|(name, format)| file(name, format));
                let image = files.next().unwrap();
                ImageInfo { disk, size, sector, image, snapshot, chain: files.collect() }
            });
            let filesystems = filesystems.into_iter().map(|(device, kind, (numbers, counts), inodes)| {
                let ([block_size, size, free, free_mapped], [directories, files]) = (numbers, counts);
                let balance = None;
                Filesystem {
                    device,
                    kind,
                    block_size,
                    size,
                    free,
                    free_mapped,
                    balance,
                    directories,
                    files,
                    inodes,
                }
            });
            Header {
                images: images.collect(),
                filesystems: filesystems.collect(),
                warnings: warnings.into_iter().map(Warning::sentence).collect(),
                comments,
                ..Header::default()
            }
        })
    }

    prop_compose! {
        fn map()(
            header in header(),
            original in any::<bool>(),
            objects in prop::collection::vec((prop::sample::select(Kind::ALL.to_vec()), bytes(), bytes(), attributes()), 1..6),
            pieces in prop::collection::vec((any::<prop::sample::Index>(), 1u16..4, 0u64..90, 1u64..30, any::<Option<u32>>(), 0u8..3, any::<u8>()), 0..20),
        ) -> Map {
            let mut builder = MapBuilder::new(header);
            let objects: Vec<_> = objects.iter().map(|(kind, device, path, attributes)| {
                let path = if kind.has_path() == Some(false) { &b""[..] } else { path };
                builder.object(ObjectName::path(*kind, device, path), *attributes).unwrap()
            }).collect();
            for (object, disk, start, length, offset, copy, flags) in pieces {
                let role = Role { copy, flags: PieceFlags::from_bits_truncate(flags) };
                let offset = offset.map(|offset| FileOffset(offset.into()));
                builder.piece_as(*object.get(&objects), disk, DiskRange::new(start, start + length), offset, role).unwrap();
            }
            let mut map = builder.build();
            map.set_dialect(if original { Dialect::Original } else { Dialect::Escaped });
            map
        }
    }

    /// What a table keeps of a map: for each row the object and the piece.
    fn table(map: &Map) -> Vec<(String, Attributes, Piece)> {
        // The numbers of objects differ if some objects have no piece.
        let first = map.objects().next().map(Object::id);
        let row = |piece: Piece| {
            let object = map.object(piece.object);
            (format!("{:?}", object.name()), object.attributes(), Piece { object: first.unwrap(), ..piece })
        };
        map.pieces().map(row).collect()
    }

    proptest! {
        #[test]
        fn json_lines_lose_nothing(map in map(), compression in prop::sample::select(vec![None, Some(Compression::Gzip), Some(Compression::Zstd)])) {
            let mut out = Vec::new();
            FileType { format: Format::JsonLines, compression }.write(&map, &mut out).unwrap();
            prop_assert_eq!(&virt_bmap_map::read(&out[..], Format::Text).unwrap(), &map);
        }

        #[test]
        fn csv_loses_no_row(map in map()) {
            let out = written(&map, Format::Csv);
            let back = csv::read(&out[..]).unwrap();
            prop_assert_eq!(table(&back), table(&map));
            prop_assert_eq!(written(&back, Format::Csv), out);
        }

        #[test]
        fn every_map_is_well_formed_xml(map in map()) {
            let xml = String::from_utf8(written(&map, Format::Dfxml)).unwrap();
            let document = roxmltree::Document::parse(&xml).unwrap();
            let names = document.descendants().filter(|node| node.has_tag_name((virt_bmap_map::dfxml::NAMESPACE, "filename")));
            let names: Vec<Vec<u8>> = names.map(|node| unescape(node.text().unwrap().as_bytes()).unwrap().into_owned()).collect();
            let mut expected: Vec<Vec<u8>> = map.objects().map(|object| object.name().path).filter(|path| !path.is_empty()).map(|path| {
                let path = path.strip_prefix(b"/").unwrap_or(path);
                if path.is_empty() { b".".to_vec() } else { path.to_vec() }
            }).collect();
            let mut names = names;
            names.sort();
            expected.sort();
            prop_assert_eq!(names, expected);
        }

        #[test]
        fn every_map_is_parquet(map in map()) {
            let out = written(&map, Format::Parquet);
            prop_assert!(out.starts_with(b"PAR1") && out.ends_with(b"PAR1"));
        }

        #[test]
        fn any_input_is_read_or_refused(input in prop::collection::vec(any::<u8>(), 0..300), format in prop::sample::select(FORMATS.to_vec())) {
            let _ = virt_bmap_map::read(&input[..], format.0);
        }

        /// The input is nearly a map, so that readers get far before they refuse it.
        #[test]
        fn any_map_with_a_mistake_is_read_or_refused(
            map in map(),
            format in prop::sample::select(vec![Format::JsonLines, Format::Csv]),
            compression in prop::sample::select(vec![None, None, None, Some(Compression::Gzip), Some(Compression::Zstd)]),
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..6),
        ) {
            let mut bytes = Vec::new();
            FileType { format, compression }.write(&map, &mut bytes).unwrap();
            for (place, byte, edit) in edits {
                let place = place.index(bytes.len() + 1);
                match edit {
                    0 => bytes.insert(place, byte),
                    1 if place < bytes.len() => bytes[place] = byte,
                    _ => bytes.truncate(place),
                }
            }
            match virt_bmap_map::read(&bytes[..], format) {
                Ok(map) => prop_assert_eq!(&virt_bmap_map::read(&written(&map, Format::JsonLines)[..], format).unwrap(), &map),
                Err(error) => {
                    let message = format!("{:#}", anyhow::Error::from(error));
                    prop_assert!(!message.contains(char::is_control), "{:?}", message);
                }
            }
        }
    }

    #[test]
    fn an_object_of_many_ranges_has_several_lines() {
        let mut builder = MapBuilder::new(Header::default());
        let name = ObjectName::path(Kind::File, b"/dev/sda1", b"/a");
        let attributes = Attributes { inode: Some(5), marks: Marks::SPARSE, ..Attributes::default() };
        let object = builder.object(name, attributes).unwrap();
        for number in 0..2 * jsonl::MAX_RANGES as u64 + 1 {
            builder.piece(object, 1, DiskRange::new(2 * number, 2 * number + 1), None).unwrap();
        }
        let map = builder.build();
        let out = written(&map, Format::JsonLines);
        assert_eq!(out.iter().filter(|&&byte| byte == b'\n').count(), 4);
        assert_eq!(jsonl::read(&out[..]).unwrap(), map);
    }

    #[test]
    fn a_maps_text_survives_json_lines_and_compression() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut original = b"1 0 200 v /dev/sda\n1 200 400 f /dev/sda1 /a\\ \xff\n".to_vec();
        for dialect in 0..2 {
            fs::write(path("in.bmap"), &original).unwrap();
            let mut from = path("in.bmap");
            for to in ["a.jsonl", "b.jsonl.zst", "c.jsonl.gz", "d.bmap.gz", "e.txt.zst", "F.JSONL", "out"] {
                convert(&from, &path(to)).unwrap();
                from = path(to);
            }
            assert!(fs::read(&from).unwrap() == original, "dialect {dialect}");
            original = written(&sample(), Format::Text);
        }
    }
}

mod recognition {
    use super::*;

    #[test]
    fn suffixes() {
        for (name, format, compression) in [
            ("bmap", Format::Text, None),
            ("a.bmap", Format::Text, None),
            ("a.txt.gz", Format::Text, Some(Compression::Gzip)),
            ("a.gz", Format::Text, Some(Compression::Gzip)),
            ("a.b/c.JSONL.Zst", Format::JsonLines, Some(Compression::Zstd)),
            ("a.csv", Format::Csv, None),
            ("a.xml", Format::Dfxml, None),
            ("a.parquet", Format::Parquet, None),
            ("csv", Format::Text, None),
            ("-", Format::Text, None),
        ] {
            assert_eq!(FileType::of(name.as_ref()), FileType { format, compression }, "{name}");
        }
    }

    #[test]
    fn what_a_file_contains_counts_more_than_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("map.csv.gz");
        for format in [Format::Text, Format::JsonLines, Format::Csv] {
            for compression in [None, Some(Compression::Gzip), Some(Compression::Zstd)] {
                let mut out = Vec::new();
                FileType { format, compression }.write(&sample(), &mut out).unwrap();
                fs::write(&path, &out).unwrap();
                assert_eq!(
                    load(&path).unwrap().pieces().len(),
                    virt_bmap_map::read(&out[..], Format::Text).unwrap().pieces().len()
                );
            }
        }
    }

    #[test]
    fn standard_input_may_be_in_any_format() {
        let mut compressed = Vec::new();
        let file = FileType { format: Format::JsonLines, compression: Some(Compression::Zstd) };
        file.write(&sample(), &mut compressed).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_virt-bmap-rs"))
            .args(["convert", "-", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&compressed).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert!(output.stdout == written(&sample(), Format::Text));
    }

    #[test]
    fn gzip_and_zstd_read_what_is_compressed() {
        needs!("gzip", "zstd");
        let directory = tempfile::tempdir().unwrap();
        for (suffix, program) in [("gz", "gzip"), ("zst", "zstd")] {
            let path = directory.path().join(format!("map.jsonl.{suffix}"));
            save(&sample(), &path).unwrap();
            let plain = tools::run(program, [Path::new("-dc"), &path]);
            assert!(plain == written(&sample(), Format::JsonLines));
            // In the other direction, gzip and zstd write two members, as their manuals allow.
            let half = plain.len() / 2;
            let mut members = Vec::new();
            for part in [&plain[..half], &plain[half..]] {
                let file = directory.path().join("part");
                fs::write(&file, part).unwrap();
                members.extend(tools::run(program, [Path::new("-c"), &file]));
            }
            assert_eq!(virt_bmap_map::read(&members[..], Format::Text).unwrap(), sample());
        }
    }
}

mod refused {
    use super::*;

    fn message(input: &[u8], named: Format) -> String {
        let error = virt_bmap_map::read(input, named).unwrap_err();
        format!("{:#}", anyhow::Error::from(error))
    }

    #[test]
    fn formats_that_are_only_written() {
        let directory = tempfile::tempdir().unwrap();
        for (suffix, word) in
            [("xml", "DFXML"), ("parquet", "Parquet"), ("xml.gz", "DFXML"), ("parquet.zst", "Parquet")]
        {
            let path = directory.path().join(format!("map.{suffix}"));
            save(&sample(), &path).unwrap();
            let error = anyhow::Error::from(convert(&path, &directory.path().join("out.bmap")).unwrap_err());
            assert!(
                format!("{error:#}").contains(&format!("this is {word}, which is written only")),
                "{error:#}"
            );
        }
        assert!(!directory.path().join("out.bmap").exists());
    }

    #[test]
    fn other_things() {
        for (input, named, words) in [
            (
                &b"<?xml version=\"1.0\" ?>\n<!-- words -->\n<bmap version=\"2.0\">\n</bmap>\n"[..],
                Format::Dfxml,
                "bmap-tools",
            ),
            (b"<html/>", Format::Text, "not a block map"),
            (b"", Format::Text, "empty"),
            (b"", Format::JsonLines, "empty"),
            (b"", Format::Csv, "does not name the columns"),
            (b"hello\n", Format::JsonLines, "\"format\": \"virt-bmap\""),
            (b"{}\n", Format::Text, "\"format\": \"virt-bmap\""),
            (b"{\"format\":\"other\",\"version\":1}\n", Format::Text, "not a block map"),
            (b"a,b,c\n", Format::Csv, "does not name the columns `disk,start"),
            (b"disk,start,end\n", Format::Csv, "does not name the columns"),
            (b"hello", Format::Parquet, "written only"),
            (b"\x1f\x8b\x08\x00garbage", Format::Text, "could not be read"),
            (b"\x28\xb5\x2f\xfdgarbage", Format::Text, "could not be read"),
        ] {
            let message = message(input, named);
            assert!(message.contains(words), "{}: {message}", String::from_utf8_lossy(input));
            assert!(!message.contains('\n'));
        }
        // A map that is compressed twice.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("map.gz");
        save(&sample(), &path).unwrap();
        let mut twice = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        twice.write_all(&fs::read(&path).unwrap()).unwrap();
        assert!(message(&twice.finish().unwrap(), Format::Text).contains("not a block map"));
    }

    #[test]
    fn every_truncated_map() {
        let map = sample();
        for format in [Format::JsonLines, Format::Csv] {
            let whole = written(&map, format);
            for end in 0..whole.len() {
                let result = virt_bmap_map::read(&whole[..end], format);
                // If CSV is truncated at the end of a row, a reader cannot notice.
                if format != Format::Csv || end == 0 || whole[end - 1] != b'\n' {
                    assert!(result.is_err(), "{format} of {end} bytes");
                }
            }
        }
        for compression in [Compression::Gzip, Compression::Zstd] {
            let mut whole = Vec::new();
            FileType { format: Format::Csv, compression: Some(compression) }.write(&map, &mut whole).unwrap();
            for end in (0..whole.len()).step_by(7) {
                assert!(
                    virt_bmap_map::read(&whole[..end], Format::Csv).is_err(),
                    "{compression:?} of {end} bytes"
                );
            }
        }
        let json = written(&map, Format::JsonLines);
        let last = json[..json.len() - 1].iter().rposition(|&byte| byte == b'\n').unwrap();
        let said = message(&json[..=last], Format::JsonLines);
        assert!(said.starts_with("the map is truncated: its first line announces"), "{said}");
    }

    #[test]
    fn wrong_lines_of_json() {
        let header = "{\"format\":\"virt-bmap\",\"version\":1,\"generator\":\"virt-bmap-rs 1\",\"dialect\":\"escaped\"}\n";
        let cases = [
            ("{", "EOF while parsing"),
            ("[]", "line 2: "),
            ("{\"type\":\"q\",\"device\":\"/dev/sda\"}", "`q` is no type of object"),
            ("{\"type\":\"v\"}", "missing field `device` (byte 12 of the line)"),
            ("{\"type\":\"v\",\"device\":\"/dev/sda\",\"\\u001b\":1}", "unknown field `\\033`"),
            ("{\"type\":\"v\",\"device\":\"\"}", "no device"),
            ("{\"type\":\"f\",\"device\":\"/dev/sda\"}", "needs a path"),
            ("{\"type\":\"v\",\"device\":{\"base64\":\"%\"}}", "Invalid"),
            ("{\"type\":\"v\",\"device\":{\"base65\":\"AA==\"}}", "must be a string or"),
            ("{\"type\":\"v\",\"device\":\"a\",\"marks\":[\"odd\"]}", "`odd` is no mark of an object"),
            (
                "{\"type\":\"v\",\"device\":\"a\",\"ranges\":[{\"disk\":0,\"start\":0,\"end\":1}]}",
                "no disk 0",
            ),
            (
                "{\"type\":\"v\",\"device\":\"a\",\"ranges\":[{\"disk\":1,\"start\":1,\"end\":1}]}",
                "not after its start",
            ),
            (
                "{\"type\":\"v\",\"device\":\"a\",\"ranges\":[{\"disk\":1,\"start\":-1,\"end\":1}]}",
                "invalid value",
            ),
            (
                "{\"type\":\"v\",\"device\":\"a\",\"ranges\":[{\"disk\":1,\"start\":0,\"end\":9,\"offset\":18446744073709551610}]}",
                "64 bits",
            ),
            (
                "{\"type\":\"v\",\"device\":\"a\",\"ranges\":[{\"disk\":1,\"start\":0,\"end\":1,\"flags\":[\"x\"]}]}",
                "`x` is no flag of a range",
            ),
        ];
        for (line, words) in cases {
            let said = message(format!("{header}{line}\n").as_bytes(), Format::Text);
            assert!(said.starts_with("line 2: ") && said.contains(words), "{line}: {said}");
        }
        assert_eq!(jsonl::read(header.as_bytes()).unwrap().objects().len(), 0);
        let newer = header.replace("\"version\":1", "\"version\":7,\"new\":[]");
        let said = message(newer.as_bytes(), Format::Text);
        assert_eq!(
            said,
            "this map is of version 7 of the JSON Lines format; this program reads versions 1 to 2"
        );
    }

    #[test]
    fn wrong_rows_of_csv() {
        let header = csv::COLUMNS.join(",");
        let cases = [
            ("1,0,512,512,v,/dev/sda,,,0,,,,,,,,,", "the row has 18 columns, not 19"),
            ("0,0,512,512,v,/dev/sda,,,0,,,,,,,,,,", "no disk 0"),
            ("x,0,512,512,v,/dev/sda,,,0,,,,,,,,,,", "`x` is not valid in column disk"),
            (",0,512,512,v,/dev/sda,,,0,,,,,,,,,,", "`` is not valid in column disk"),
            ("1,0,512,511,v,/dev/sda,,,0,,,,,,,,,,", "cannot be 511 bytes long"),
            ("1,512,512,0,v,/dev/sda,,,0,,,,,,,,,,", "cannot be 0 bytes long"),
            ("1,0,512,512,q,/dev/sda,,,0,,,,,,,,,,", "`q` is not valid in column type"),
            ("1,0,512,512,f,/dev/sda,,,0,,,,,,,,,,", "needs a path"),
            ("1,0,512,512,f,/dev/sda,/\\9,,0,,,,,,,,,,", "backslash"),
            ("1,0,512,512,v,/dev/sda,,,0,odd,,,,,,,,,", "`odd` is not valid in column flags"),
            ("1,0,512,512,v,/dev/sda,,,0,,,,,,,,,\x1b,", "`\\033` is not valid in column marks"),
            ("1,0,512,512,v,/dev/sda,,,0,,,,,,,,,,7", "`7` is not valid in column reparse"),
        ];
        for (row, words) in cases {
            let said = message(format!("{header}\n{row}\n").as_bytes(), Format::Text);
            assert!(said.starts_with("line 2: ") && said.contains(words), "{row}: {said}");
        }
    }

    #[test]
    fn lines_without_end() {
        let mut csv = format!("{}\n1,0,512,512,f,/dev/sda,\"", csv::COLUMNS.join(",")).into_bytes();
        csv.resize(csv.len() + csv::MAX_ROW + 300_000, b'a');
        assert!(message(&csv, Format::Csv).contains("longer than"));
        let beginning = b"{\"format\":\"virt-bmap\",\"version\":1,\"generator\":\"".to_vec();
        let endless = beginning.chain(std::io::repeat(b'a'));
        let said = virt_bmap_map::read(endless, Format::Text).unwrap_err().to_string();
        assert!(said.starts_with("line 1: the line is longer than"), "{said}");
    }

    #[test]
    fn one_output_named_twice() {
        for out in ["-", "map.bmap"] {
            let output = Command::new(env!("CARGO_BIN_EXE_virt-bmap-rs"))
                .args(["no-such-image.raw", "-o", out, "-o", out])
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(1));
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(stderr.contains(&format!("{out}: given twice with -o")), "{stderr}");
        }
    }
}

mod oracles {
    use super::*;
    use virt_bmap_testutil::python::python;

    fn in_python(mut python: Command, script: &str, path: &Path) -> serde_json::Value {
        let output = tools::output(python.args(["-c", script]).arg(path));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[test]
    fn duckdb_reads_parquet_and_csv() {
        let Some(_) = python("duckdb", "duckdb") else { return };
        let directory = tempfile::tempdir().unwrap();
        let map = sample();
        for (suffix, read) in [("parquet", "read_parquet"), ("csv", "read_csv"), ("csv.gz", "read_csv")] {
            let path = directory.path().join(format!("map.{suffix}"));
            save(&map, &path).unwrap();
            let options = if suffix == "parquet" { "" } else { ", all_varchar=true" };
            let script = format!(
                "import duckdb, json, sys\n\
                 rows = duckdb.sql(f\"select disk, start, \\\"end\\\", length, type, device, path, file_offset, copy, flags, inode, size, marks from {read}('{{sys.argv[1]}}'{options})\").fetchall()\n\
                 print(json.dumps([['' if v is None else str(v) for v in row] for row in rows]))"
            );
            let found = in_python(python("duckdb", "duckdb").unwrap(), &script, &path);
            let known = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
            let rows: Vec<Vec<String>> = map
                .pieces()
                .map(|piece| {
                    let object = map.object(piece.object);
                    let (name, attributes) = (object.name(), object.attributes());
                    vec![
                        piece.disk.to_string(),
                        piece.range.start.0.to_string(),
                        piece.range.end.0.to_string(),
                        piece.range.len().to_string(),
                        char::from(name.kind.letter()).to_string(),
                        String::from_utf8_lossy(name.device).into_owned(),
                        String::new(),
                        known(piece.file_offset.map(|offset| offset.0)),
                        piece.role.copy.to_string(),
                        piece.role.flags.names().collect::<Vec<_>>().join(" "),
                        known(attributes.inode),
                        known(attributes.size),
                        attributes.marks.names().collect::<Vec<_>>().join(" "),
                    ]
                })
                .collect();
            let mut found: Vec<Vec<String>> = serde_json::from_value(found).unwrap();
            for (row, piece) in found.iter_mut().zip(map.pieces()) {
                let path = std::mem::take(&mut row[6]);
                assert_eq!(*unescape(path.as_bytes()).unwrap(), *map.object(piece.object).name().path);
                assert!(!path.starts_with(['=', '+', '-', '@']));
            }
            assert_eq!(found, rows, "{suffix}");
        }
    }

    #[test]
    fn duckdb_knows_the_types() {
        let Some(python) = python("duckdb", "duckdb") else { return };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("map.parquet");
        save(&sample(), &path).unwrap();
        let script = "import duckdb, json, sys\n\
            of = f\"from read_parquet('{sys.argv[1]}')\"\n\
            types = dict((row[0], row[1]) for row in duckdb.sql(f'describe select * {of}').fetchall())\n\
            time = duckdb.sql(f\"select distinct epoch_ns(modified) {of} where path = '/etc.conf'\").fetchall()\n\
            header = duckdb.sql(f\"select value from parquet_kv_metadata('{sys.argv[1]}') where key = 'virt-bmap'\").fetchall()\n\
            print(json.dumps([types, time[0][0], bytes(header[0][0]).decode()]))";
        let found = in_python(python, script, &path);
        let names: Vec<&str> = found[0].as_object().unwrap().keys().map(String::as_str).collect();
        let mut columns = csv::COLUMNS.to_vec();
        columns.sort_unstable();
        let mut names = names;
        names.sort_unstable();
        assert_eq!(names, columns);
        for (column, kind) in
            [("disk", "USMALLINT"), ("start", "UBIGINT"), ("path", "VARCHAR"), ("links", "UINTEGER")]
        {
            assert_eq!(found[0][column], kind, "{column}");
        }
        assert!(found[0]["modified"].as_str().unwrap().starts_with("TIMESTAMP"), "{found}");
        assert_eq!(found[1], 1_400_000_000_123_456_789_i64);
        let mut without_digests = sample();
        without_digests.header_mut().filesystems[0].inodes.clear();
        let json = written(&without_digests, Format::JsonLines);
        let first = json.split(|&byte| byte == b'\n').next().unwrap();
        assert_eq!(found[2].as_str().unwrap().as_bytes(), first);
    }

    fn dfxml_sample() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("map.xml");
        save(&sample(), &path).unwrap();
        (directory, path)
    }

    #[test]
    fn xmllint_finds_dfxml_well_formed() {
        needs!("xmllint");
        let (_directory, path) = dfxml_sample();
        tools::run("xmllint", [Path::new("--noout"), Path::new("--nonet"), &path]);
    }

    /// Our DFXML has only what `fiwalk` knows: it writes the same elements, with the same parents
    /// and attributes.
    #[test]
    fn dfxml_has_the_form_of_fiwalks() {
        needs!("fiwalk", "mkfs.ext4");
        let (directory, path) = dfxml_sample();
        let (image, tree, theirs) = (
            directory.path().join("image"),
            directory.path().join("tree"),
            directory.path().join("fiwalk.xml"),
        );
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("file"), [b'x'; 9000]).unwrap();
        fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
        tools::output(
            tools::command("mkfs.ext4").args(["-q", "-O", "^inline_data", "-d"]).arg(&tree).arg(&image),
        );
        tools::output(tools::command("fiwalk").arg("-X").arg(&theirs).arg(&image));
        let form = |path: &Path| -> BTreeMap<String, Vec<String>> {
            let text = fs::read_to_string(path).unwrap();
            let document = roxmltree::Document::parse(&text).unwrap();
            let mut form: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for node in document.descendants().filter(roxmltree::Node::is_element) {
                let parent = node.parent_element().map_or("", |parent| parent.tag_name().name());
                let attributes = form.entry(format!("{parent}/{}", node.tag_name().name())).or_default();
                attributes.extend(
                    node.attributes().filter(|a| a.namespace().is_none()).map(|a| a.name().to_owned()),
                );
            }
            form
        };
        let (ours, theirs) = (form(&path), form(&theirs));
        // These are in the schema, but `fiwalk` does not write them for that image.
        let more = ["volume/allocated_only", "fileobject/compressed"];
        for (element, attributes) in ours {
            if more.contains(&element.as_str()) {
                continue;
            }
            let known = theirs.get(&element).unwrap_or_else(|| panic!("fiwalk has no {element}"));
            for attribute in attributes {
                let schema_only = ["fill", "type"].contains(&attribute.as_str());
                assert!(schema_only || known.contains(&attribute), "fiwalk's {element} has no {attribute}");
            }
        }
    }
}
