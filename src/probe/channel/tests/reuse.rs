//! Files and directories that are reused from a baseline.

use super::*;
use crate::probe::baseline::{self, Baseline, Directories, UnchangedObjects};
use virt_bmap_map::Attributes;

#[test]
fn unchanged_files_are_reused_and_not_read() {
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
    // The second file has been moved, the third one has grown.
    agent.find(&[(2, 65536), (3, 393_216), (4, 524_288)]);
    agent.say(&[Record::SelectFiles { ids: vec![2, 3, 4] }]).unwrap();
    assert_eq!(agent.channel.reply().files, [3, 4]);
    let again = agent.read_series(&[(3, &[(393_216, 458_752)]), (4, &[(524_288, 589_824)])]);
    assert_eq!((again.len(), agent.channel.reused()), (0, 1));
    assert!(agent.say(&[Record::SelectFiles { ids: vec![9] }]).is_err());
    assert_eq!(
        agent.lines(),
        "1 10000 20000 f /dev/sda /file2\n1 60000 70000 f /dev/sda /file3\n1 80000 90000 f /dev/sda /file4\n"
    );
}

#[test]
fn an_unchanged_file_needs_only_its_name() {
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
    let known = Some(Arc::new(UnchangedObjects { baseline, files: [(12, file)].into(), directories }));
    let walking = || Agent::walking_in(WalkContext { unchanged: known.clone(), ..WalkContext::default() });
    let found = |id, parent, inode, name: &[u8]| Record::Known { id, parent, inode, name: name.to_vec() };

    let mut agent = walking();
    agent.say(&[found(2, 1, 12, b"now")]).unwrap();
    assert_eq!((agent.channel.reused(), agent.channel.take_inodes().0), (1, vec![1, 12]));
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
fn an_unchanged_directory_brings_its_unchanged_objects_once() {
    let baseline = Arc::new(baseline::tests::tree());
    let (directories, files) = baseline::tests::known_in_tree(&baseline);
    let device = baseline::tests::DEVICE;
    let (directories, _) = Directories::new(&baseline, device, &directories, &files, false);
    let known = Some(Arc::new(UnchangedObjects { baseline, files, directories }));
    let walking = || Agent::walking_in(WalkContext { unchanged: known.clone(), ..WalkContext::default() });
    let found = |id, inode, name: &[u8]| Record::Known { id, parent: 1, inode, name: name.to_vec() };

    let mut agent = walking();
    agent.say(&[found(2, baseline::tests::TOP, b"renamed")]).unwrap();
    // The rest of the directory comes after the objects that were reused with it.
    agent.say(&[object(7, 2, ObjectKind::File, b"changed", 0)]).unwrap();
    assert_eq!(agent.channel.reused(), 3);
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

    // The directory lies in another one, too, or so does a directory that was reused with it.
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
