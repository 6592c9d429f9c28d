//! Objects that are placed by their extents, and those that no directory names.

use super::*;
use virt_bmap_agent_protocol::record::Ntfs;

#[test]
fn placed_objects_lie_where_their_extents_are_whatever_is_read() {
    let mut agent = Agent::walking();
    agent.say(&[extents(1, 8192, 4096), Record::Placed { id: 1 }]).unwrap();
    agent.tag(1, false);
    agent.read(65536, 69632);
    agent.tag(0, false);
    agent.say(&[object(2, 1, ObjectKind::File, b"file:stream", 8192)]).unwrap();
    let extents = |flags| {
        let extent = |logical, physical, flags| Extent { logical, physical, length: 4096, flags };
        vec![extent(0, 1 << 17, flags), extent(4096, 1 << 18, flags | Extent::UNWRITTEN)]
    };
    agent.say(&[Record::Extents { id: 2, extents: extents(0) }, Record::Placed { id: 2 }]).unwrap();
    agent.say(&[Record::Link { id: 2, parent: 1, name: b"link:stream".to_vec() }]).unwrap();
    agent.say(&[object(3, 1, ObjectKind::Metadata, b"file [attribute list]", 4096)]).unwrap();
    agent.say(&[Record::Extents { id: 3, extents: extents(Extent::ENCODED) }]).unwrap();
    agent.say(&[Record::Placed { id: 3 }, Record::BatchEnd, Record::Done]).unwrap();
    let remains = agent.channel.end().unwrap();
    assert_eq!(remains.untagged.iter().map(|(_, range)| range.start.0).collect::<Vec<_>>(), [65536]);
    let (found, warnings) = agent.channel.take();
    assert!(warnings.list().is_empty());
    let map = found.into_map().unwrap();
    let pieces = |kind, path: &[u8]| -> Vec<(u64, bool)> {
        let object = map.find(virt_bmap_map::ObjectName::path(kind, b"/dev/sda", path)).unwrap();
        let unwritten = virt_bmap_map::PieceFlags::UNWRITTEN;
        object.pieces().map(|piece| (piece.range.start.0, piece.role.flags.contains(unwritten))).collect()
    };
    assert_eq!(pieces(Kind::Directory, b"/"), [(8192, false)]);
    for path in [b"/file:stream", b"/link:stream"] {
        assert_eq!(pieces(Kind::File, path), [(1 << 17, false), (1 << 18, true)]);
    }
    assert_eq!(pieces(Kind::Metadata, b"/file [attribute list]")[0], (1 << 17, false));
}

#[test]
fn extents_outside_of_the_layout_are_a_warning() {
    let mut agent = Agent::walking();
    agent.say(&[object(2, 1, ObjectKind::File, b"far:away", 4096)]).unwrap();
    agent.say(&[extents(2, 1 << 30, 4096), Record::Placed { id: 2 }, Record::Done]).unwrap();
    agent.channel.end().unwrap();
    let cause = Cause::FileFailed { operation: FileOperation::Extents, errno: None, offset: None };
    assert_eq!(agent.channel.take().1.list(), [Warning::on_path("/dev/sda", b"/far:away", cause)]);
}

#[test]
fn an_orphan_is_named_by_its_inode() {
    let mut agent = Agent::walking();
    agent.say(&[object(2, 0, ObjectKind::File, b"", 4096), extents(2, 4096, 4096)]).unwrap();
    agent.say(&[Record::Placed { id: 2 }]).unwrap();
    agent.say(&[object(3, 0, ObjectKind::File, b":a", 4096), extents(3, 8192, 4096)]).unwrap();
    agent.say(&[Record::Placed { id: 3 }]).unwrap();
    let orphans = "1 1000 2000 f /dev/sda [orphan inode 2]\n1 2000 3000 f /dev/sda [orphan inode 3]:a\n";
    assert_eq!(agent.lines(), orphans);
    for name in [&b"a"[..], b"/a", b":a/b", b" a", b":a\0"] {
        assert!(Agent::walking().say(&[object(2, 0, ObjectKind::File, name, 1)]).is_err());
    }
}

#[test]
fn unknown_objects_are_not_placed() {
    assert!(Agent::walking().say(&[Record::Placed { id: 2 }]).is_err());
    assert!(Agent::walking().say(&[Record::Reparse { id: 2, tag: 1 }]).is_err());
}

#[test]
fn the_state_of_a_volume_becomes_warnings() {
    let mut agent = Agent::walking();
    let state = Ntfs { is_hibernated: true, is_unclean: true, damaged: 2 };
    agent.say(&[Record::Ntfs(Ntfs::default()), Record::Ntfs(state), Record::Done]).unwrap();
    agent.channel.end().unwrap();
    let causes: Vec<Cause> = agent.channel.take().1.list().into_iter().map(|warning| warning.cause).collect();
    let expected = [Cause::RecordsDamaged { count: 2 }, Cause::Hibernated, Cause::NotUnmounted];
    assert_eq!(causes, expected);
}
