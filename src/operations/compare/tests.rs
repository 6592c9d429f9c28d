use super::*;
use virt_bmap_map::{Filesystem, Header, MapBuilder, Owner};
use virt_bmap_ranges::FileOffset;

/// A file or directory: path, inode, size, time of modification, mode, first byte of its blocks on
/// the disk.
type Spec<'s> = (&'s [u8], u64, u64, i64, u16, &'s [u64]);

const BLOCK: u64 = 4096;
const FILE: u16 = 0o100_644;
const DIRECTORY: u16 = 0o040_755;

fn map(kind: &str, specs: &[Spec<'_>]) -> Map {
    map_with_births(kind, specs, &[])
}

/// The same; the objects with these inodes were made at these times.
fn map_with_births(kind: &str, specs: &[Spec<'_>], births: &[(u64, i64)]) -> Map {
    let born = |inode| births.iter().find(|birth| birth.0 == inode).map(|birth| birth.1);
    map_of_born(kind, &specs.iter().map(|spec| (*spec, born(spec.1))).collect::<Vec<_>>())
}

/// The map of objects that were made at these times.
fn map_of_born(kind: &str, specs: &[(Spec<'_>, Option<i64>)]) -> Map {
    let mut header = Header::default();
    let device = b"/dev/sda1".to_vec();
    let filesystem =
        Filesystem { device, kind: kind.into(), block_size: Some(BLOCK), ..Filesystem::default() };
    header.filesystems.push(filesystem);
    let mut builder = MapBuilder::new(header);
    for &((path, inode, size, modified, mode, blocks), born) in specs {
        let kind = if mode == DIRECTORY { Kind::Directory } else { Kind::File };
        let names = specs.iter().filter(|other| (other.0.1, other.1) == (inode, born)).count() as u32;
        let attributes = Attributes {
            inode: Some(inode),
            size: Some(size),
            links: Some(names),
            mode: Some(mode),
            modified: Some(modified),
            born,
            marks: if blocks.is_empty() { Marks::NO_BLOCKS } else { Marks::empty() },
            ..Attributes::default()
        };
        let object = builder.object(ObjectName::path(kind, b"/dev/sda1", path), attributes).unwrap();
        for (number, start) in (0..).zip(blocks) {
            let place = Some(FileOffset(number * BLOCK));
            builder.piece(object, 1, DiskRange::new(*start, start + BLOCK), place).unwrap();
        }
    }
    builder.build()
}

fn operations(kind: &str, old: &[Spec<'_>], new: &[Spec<'_>], written: &[(u64, u64)]) -> Vec<String> {
    compared(&map(kind, old), &map(kind, new), written)
}

fn compared(old: &Map, new: &Map, written: &[(u64, u64)]) -> Vec<String> {
    let ranges =
        |ranges: &[(u64, u64)]| ranges.iter().map(|&(start, end)| DiskRange::new(start, end)).collect();
    let written = Written { seen: vec![ranges(written)], ..Written::default() };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let line = |operation: &Operation<'_>| {
        let from = operation.from.map(|from| format!("{} -> ", text(from.path))).unwrap_or_default();
        format!(
            "{} {from}{} {}",
            operation.action.word(),
            text(operation.name.path),
            operation.written_bytes()
        )
    };
    compare(old, new, b"/dev/sda1", &written).iter().map(line).collect()
}

#[test]
fn added_and_removed_objects() {
    let old: &[Spec<'_>] = &[
        (b"/", 2, 4096, 1, DIRECTORY, &[0]),
        (b"/d", 11, 4096, 1, DIRECTORY, &[4096]),
        (b"/d/gone", 12, 100, 1, FILE, &[8192]),
        (b"/kept", 13, 100, 1, FILE, &[12288]),
    ];
    let new: &[Spec<'_>] = &[
        (b"/", 2, 4096, 2, DIRECTORY, &[0]),
        (b"/new", 14, 5000, 2, FILE, &[20480, 24576]),
        (b"/kept", 13, 100, 1, FILE, &[12288]),
        (b"/e", 15, 4096, 2, DIRECTORY, &[28672]),
    ];
    let found = operations("ext4", old, new, &[(20480, 28672)]);
    assert_eq!(found, ["delete /d/gone 0", "rmdir /d 0", "mkdir /e 0", "create /new 8192"]);
}

#[test]
fn renaming_a_directory_moves_its_content() {
    let old: &[Spec<'_>] = &[
        (b"/a", 11, 4096, 1, DIRECTORY, &[0]),
        (b"/a/b", 12, 4096, 1, DIRECTORY, &[4096]),
        (b"/a/b/f", 13, 100, 1, FILE, &[8192]),
        (b"/a/g", 14, 100, 1, FILE, &[12288]),
    ];
    let new: &[Spec<'_>] = &[
        (b"/z", 11, 4096, 1, DIRECTORY, &[0]),
        (b"/z/b", 12, 4096, 1, DIRECTORY, &[4096]),
        (b"/z/b/f", 13, 100, 1, FILE, &[8192]),
        (b"/z/other", 14, 100, 1, FILE, &[12288]),
    ];
    assert_eq!(operations("xfs", old, new, &[]), ["rename /a -> /z 0", "rename /a/g -> /z/other 0"]);
}

#[test]
fn a_file_is_identified_by_its_inode() {
    // Replaced by renaming another over it; and two that change their names.
    let old: &[Spec<'_>] = &[
        (b"/f", 11, 100, 1, FILE, &[0]),
        (b"/f.new", 12, 100, 2, FILE, &[4096]),
        (b"/x", 13, 100, 1, FILE, &[8192]),
        (b"/y", 14, 100, 1, FILE, &[12288]),
    ];
    let new: &[Spec<'_>] = &[
        (b"/f", 12, 100, 2, FILE, &[4096]),
        (b"/x", 14, 100, 1, FILE, &[12288]),
        (b"/y", 13, 100, 1, FILE, &[8192]),
    ];
    assert_eq!(
        operations("ext4", old, new, &[]),
        ["delete /f 0", "rename /f.new -> /f 0", "exchange /x -> /y 0"]
    );
    // An inode that was given back: other data, of another time.
    let new: &[Spec<'_>] = &[(b"/g", 11, 100, 3, FILE, &[16384])];
    assert_eq!(operations("ext4", &old[..1], new, &[(16384, 20480)]), ["delete /f 0", "create /g 4096"]);
}

/// The operations from one file, directory or link to another with the same inode.
fn with_births(kind: &str, old: (Spec<'_>, Option<i64>), new: (Spec<'_>, Option<i64>)) -> Vec<String> {
    let map = |(spec, born): (Spec<'_>, Option<i64>)| {
        map_with_births(kind, &[spec], born.map(|born| (spec.1, born)).as_slice())
    };
    let written: Vec<(u64, u64)> = new.0.5.iter().map(|start| (*start, start + BLOCK)).collect();
    compared(&map(old), &map(new), &written)
}

#[test]
fn a_file_is_the_same_if_it_was_made_at_the_same_time() {
    let old: Spec<'_> = (b"/f", 11, 9000, 1, FILE, &[0, 4096, 8192]);
    // Renamed, emptied and written again: other bytes, of another time.
    let new: Spec<'_> = (b"/g", 11, 5000, 3, FILE, &[16384, 20480]);
    let same = ["rename /f -> /g 0", "truncate /g 0", "write /g 4096"];
    let other = ["delete /f 0", "create /g 8192"];
    for kind in ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"] {
        assert_eq!(with_births(kind, (old, Some(7)), (new, Some(7))), same, "{kind}");
        assert_eq!(with_births(kind, (old, Some(7)), (new, Some(8))), other, "{kind}");
    }
    // If either side does not know it, the bytes and the times decide.
    for (before, after) in [(None, None), (Some(7), None), (None, Some(7))] {
        assert_eq!(with_births("xfs", (old, before), (new, after)), other);
    }
    // So they do if the new one has not been modified since it was made: another one may have been
    // made in the same tick of the clock.
    assert_eq!(with_births("xfs", (old, Some(3)), (new, Some(3))), other);
    let early: Spec<'_> = (b"/f", 11, 9000, 3, FILE, &[0, 4096, 8192]);
    assert_eq!(with_births("xfs", (early, Some(3)), (new, Some(3))), other);
    let moved: Spec<'_> = (b"/g", 11, 9000, 3, FILE, &[0, 4096, 8192]);
    assert_eq!(with_births("xfs", (early, Some(3)), (moved, Some(3))), ["rename /f -> /g 0"]);
    let [empty, renamed] = [b"/f", b"/g"].map(|path| -> Spec<'_> { (path, 11, 0, 3, FILE, &[]) });
    assert_eq!(with_births("xfs", (empty, Some(3)), (renamed, Some(3))), ["rename /f -> /g 0"]);
    // And where programs can set the time.
    assert_eq!(with_births("ntfs", (old, Some(7)), (new, Some(7))), other);
}

#[test]
fn a_file_that_was_made_at_another_time_is_another() {
    // At the same place, with the same time of modification.
    let file = |path| -> Spec<'static> { (path, 11, 4096, 1, FILE, &[0]) };
    let done = |old, new| with_births("ext4", (old, Some(7)), (new, Some(9)));
    assert_eq!(done(file(b"/f"), file(b"/g")), ["delete /f 0", "create /g 4096"]);
    // Even under its name.
    assert_eq!(done(file(b"/f"), file(b"/f")), ["delete /f 0", "create /f 4096"]);
    let directory = |path| -> Spec<'static> { (path, 11, 4096, 1, DIRECTORY, &[0]) };
    assert_eq!(done(directory(b"/d"), directory(b"/e")), ["rmdir /d 0", "mkdir /e 0"]);
    assert_eq!(done(directory(b"/d"), directory(b"/d")), ["rmdir /d 0", "mkdir /d 0"]);
    let unknown = with_births("ext4", (file(b"/f"), Some(7)), (file(b"/g"), None));
    assert_eq!(unknown, ["rename /f -> /g 0"]);
    // The time of a file of UDF may change.
    assert_eq!(with_births("udf", (file(b"/f"), Some(7)), (file(b"/g"), Some(5))), ["rename /f -> /g 0"]);
}

#[test]
fn an_inode_of_several_names_is_used_again() {
    let file = |path, blocks| -> Spec<'static> { (path, 11, 4096, 1, FILE, blocks) };
    let old = map_with_births("xfs", &[file(b"/a", &[0]), file(b"/b", &[0])], &[(11, 7)]);
    let new = [file(b"/b", &[4096]), file(b"/c", &[4096])];
    let other = map_with_births("xfs", &new, &[(11, 8)]);
    let expected = ["delete /b 0", "delete /a 0", "create /b 4096", "link /b -> /c 0"];
    assert_eq!(compared(&old, &other, &[(4096, 8192)]), expected);
    let same = map_with_births("xfs", &new, &[(11, 7)]);
    assert_eq!(compared(&old, &same, &[]), ["rename /a -> /c 0"]);
    // Two files that have each other's inodes are not exchanged if both were made anew.
    let two = [file(b"/x", &[0]), (b"/y", 12, 4096, 1, FILE, &[4096][..])];
    let turned = [file(b"/y", &[0]), (b"/x", 12, 4096, 1, FILE, &[4096][..])];
    let [old, same, other] = [(&two, [1, 2]), (&turned, [1, 2]), (&turned, [3, 4])]
        .map(|(specs, [first, second])| map_with_births("xfs", specs, &[(11, first), (12, second)]));
    assert_eq!(compared(&old, &same, &[]), ["exchange /x -> /y 0"]);
    let expected = ["delete /y 0", "delete /x 0", "create /x 0", "create /y 0"];
    assert_eq!(compared(&old, &other, &[]), expected);
}

#[test]
fn files_of_two_subvolumes_have_one_inode_number() {
    let file = |path, start: &'static [u64]| -> Spec<'static> { (path, 300, 4096, 1, FILE, start) };
    let map = |files: &[(&'static [u8], &'static [u64], i64)]| {
        let specs: Vec<_> = files.iter().map(|(path, at, born)| (file(path, at), Some(*born))).collect();
        map_of_born("btrfs", &specs)
    };
    let home: (&[u8], &[u64], i64) = (b"/@home/x", &[0], 7);
    // One is renamed while another with its number is made.
    let new = map(&[(b"/@/n", &[4096], 9), (b"/@home/y", &[0], 7)]);
    let expected = ["create /@/n 4096", "rename /@home/x -> /@home/y 0"];
    assert_eq!(compared(&map(&[home]), &new, &[(4096, 8192)]), expected);
    // One is renamed while the other is deleted.
    let old = map(&[(b"/@/f", &[4096], 1), home]);
    let new = map(&[(b"/@home/y", &[0], 7)]);
    assert_eq!(compared(&old, &new, &[]), ["delete /@/f 0", "rename /@home/x -> /@home/y 0"]);
    // A new one is no link to one that stays.
    let new = map(&[(b"/@/n", &[4096], 9), home]);
    assert_eq!(compared(&map(&[home]), &new, &[(4096, 8192)]), ["create /@/n 4096"]);
    assert_eq!(compared(&new, &map(&[home]), &[]), ["delete /@/n 0"]);
}

#[test]
fn names_of_one_file() {
    let one: &[Spec<'_>] = &[(b"/a", 11, 100, 1, FILE, &[0])];
    let two: &[Spec<'_>] = &[(b"/a", 11, 100, 1, FILE, &[0]), (b"/b", 11, 100, 1, FILE, &[0])];
    let other: &[Spec<'_>] = &[(b"/b", 11, 100, 1, FILE, &[0]), (b"/c", 11, 100, 1, FILE, &[0])];
    assert_eq!(operations("ext4", one, two, &[]), ["link /a -> /b 0"]);
    assert_eq!(operations("ext4", two, one, &[]), ["unlink /b 0"]);
    assert_eq!(operations("ext4", two, other, &[]), ["rename /a -> /c 0"]);
    let grown: &[Spec<'_>] = &[(b"/a", 11, 200, 2, FILE, &[0]), (b"/b", 11, 200, 2, FILE, &[0])];
    assert_eq!(operations("ext4", two, grown, &[(0, 4096)]), ["append /a 4096"], "said once");
}

#[test]
fn operations_on_the_data_of_a_file() {
    let file = |size, modified, mode, blocks| -> Vec<Spec<'static>> {
        vec![(b"/f", 11, size, modified, mode, blocks)]
    };
    let old = file(6000, 1, FILE, &[0, 8192]);
    let done = |new: Vec<Spec<'static>>, written: &[(u64, u64)]| operations("ext4", &old, &new, written);
    assert_eq!(done(file(6000, 1, FILE, &[0, 8192]), &[]), <[&str; 0]>::default());
    assert_eq!(done(file(6000, 2, FILE, &[0, 8192]), &[(0, 512)]), ["write /f 512"]);
    assert_eq!(done(file(6000, 2, FILE, &[0, 8192]), &[(4096, 8192)]), ["touch /f 0"]);
    // The block in which it ended is written again.
    assert_eq!(done(file(9000, 2, FILE, &[0, 8192, 16384]), &[(8192, 20480)]), ["append /f 8192"]);
    assert_eq!(
        done(file(9000, 2, FILE, &[0, 8192, 16384]), &[(0, 4096), (16384, 20480)]),
        ["write /f 4096", "append /f 4096"]
    );
    // So it is within one tick of the guest's clock, wherever the blocks are now.
    assert_eq!(
        done(file(9000, 1, FILE, &[4096, 8192, 16384]), &[(4096, 8192), (16384, 20480)]),
        ["write /f 4096", "append /f 4096"]
    );
    assert_eq!(done(file(9000, 2, FILE, &[0, 8192]), &[]), ["truncate /f 0"]);
    assert_eq!(done(file(100, 2, FILE, &[0]), &[(0, 4096)]), ["truncate /f 0"]);
    assert_eq!(done(file(5000, 2, FILE, &[0, 8192]), &[(0, 4096)]), ["truncate /f 0", "write /f 4096"]);
    assert_eq!(done(file(6000, 1, FILE, &[4096, 12288]), &[(4096, 8192), (12288, 16384)]), ["move /f 8192"]);
    assert_eq!(
        done(file(6000, 2, FILE, &[4096, 8192]), &[(4096, 8192)]),
        ["write /f 4096"],
        "copied on write"
    );
    assert_eq!(done(file(6000, 1, 0o100_600, &[0, 8192]), &[]), ["chmod /f 0"]);
}

#[test]
fn a_hole_is_punched() {
    let (old, new) = (&[(0, 0), (4096, 8192), (8192, 16384)], &[(0, 0), (8192, 16384)]);
    let file = |modified, pieces: &[(u64, u64)]| {
        let map = map("ext4", &[]);
        let mut builder = MapBuilder::new(map.header().clone());
        let attributes = Attributes {
            inode: Some(11),
            size: Some(12288),
            modified: Some(modified),
            ..Attributes::default()
        };
        let name = ObjectName::path(Kind::File, b"/dev/sda1", b"/f");
        let object = builder.object(name, attributes).unwrap();
        for &(place, start) in pieces {
            let range = DiskRange::new(start, start + BLOCK);
            builder.piece(object, 1, range, Some(FileOffset(place))).unwrap();
        }
        builder.build()
    };
    let written = Written::default();
    let (old, new) = (file(1, old), file(2, new));
    let actions = |found: Vec<Operation<'_>>| -> Vec<Action> {
        found.iter().map(|operation| operation.action).collect()
    };
    assert_eq!(actions(compare(&old, &new, b"/dev/sda1", &written)), [Action::Punch]);
    assert_eq!(actions(compare(&new, &old, b"/dev/sda1", &written)), [Action::Touch]);
}

#[test]
fn what_changes_an_inode_alone() {
    let file = |changed, owner, mode| {
        let mut builder = MapBuilder::new(map("ext4", &[]).header().clone());
        let owner = Some(Owner { user: owner, group: 0 });
        let attributes = Attributes {
            inode: Some(11),
            size: Some(0),
            mode: Some(mode),
            modified: Some(1),
            changed: Some(changed),
            owner,
            ..Attributes::default()
        };
        builder.object(ObjectName::path(Kind::File, b"/dev/sda1", b"/f"), attributes).unwrap();
        builder.build()
    };
    let old = file(1, 0, 0o104_755);
    let done = |new: Map| -> Vec<Action> {
        let written = Written::default();
        let found = compare(&old, &new, b"/dev/sda1", &written);
        found.iter().map(|operation| operation.action).collect()
    };
    assert_eq!(done(file(2, 0, 0o104_755)), [Action::Setxattr]);
    assert_eq!(done(file(2, 7, 0o100_755)), [Action::Chown]);
    assert_eq!(done(file(2, 7, 0o100_700)), [Action::Chmod, Action::Chown]);
    assert_eq!(done(file(2, 0, 0o104_700)), [Action::Chmod]);
}

#[test]
fn data_in_a_journal_is_data() {
    let old = map("ext4", &[(b"/f", 11, 6000, 1, FILE, &[0, 8192])]);
    let new = map("ext4", &[(b"/f", 11, 6000, 2, FILE, &[0, 8192])]);
    let replayed = vec![[DiskRange::new(0, 4096)].into_iter().collect()];
    let found = compare(&old, &new, b"/dev/sda1", &Written { replayed, ..Written::default() });
    assert_eq!(found.iter().map(|operation| operation.action).collect::<Vec<_>>(), [Action::Write]);
}

#[test]
fn without_lasting_inodes_a_file_is_identified_by_its_place() {
    let old: &[Spec<'_>] = &[(b"/a", 100, 100, 1, FILE, &[0]), (b"/k", 101, 100, 1, FILE, &[4096])];
    let new: &[Spec<'_>] = &[(b"/b", 200, 100, 1, FILE, &[0]), (b"/k", 201, 100, 1, FILE, &[4096])];
    assert_eq!(operations("vfat", old, new, &[]), ["rename /a -> /b 0"]);
}

#[test]
fn a_file_system_that_could_not_be_examined_is_not_empty() {
    let old = map("ext4", &[(b"/f", 11, 100, 1, FILE, &[0])]);
    let new = MapBuilder::new(Header::default()).build();
    assert!(compare(&old, &new, b"/dev/sda1", &Written::default()).is_empty());
}

#[test]
fn what_lies_in_the_inode_is_written_with_it() {
    // A file of NTFS in its record of the `$MFT`.
    const RECORD: DiskRange = DiskRange { start: DiskOffset(4096), end: DiskOffset(5120) };
    let file = |size, modified, changed| {
        let mut builder = MapBuilder::new(map("ntfs", &[]).header().clone());
        let attributes = Attributes {
            inode: Some(64),
            size: Some(size),
            modified: Some(modified),
            changed: Some(changed),
            marks: Marks::INLINE,
            ..Attributes::default()
        };
        let name = ObjectName::path(Kind::File, b"/dev/sda1", b"/f");
        let object = builder.object(name, attributes).unwrap();
        builder.piece(object, 1, RECORD, None).unwrap();
        builder.build()
    };
    let written = Written { seen: vec![[RECORD].into_iter().collect()], ..Written::default() };
    const SECOND: i64 = 1_000_000_000;
    let old = file(100, 5 * SECOND, 5 * SECOND);
    for (new, expected) in [
        (file(100, 7 * SECOND, 7 * SECOND), vec![Action::Write]),
        (file(100, SECOND, 7 * SECOND), vec![Action::Touch]),
        (file(120, 7 * SECOND, 7 * SECOND), vec![Action::Append]),
        (file(60, 7 * SECOND, 7 * SECOND), vec![Action::Truncate]),
        (file(100, 5 * SECOND, 5 * SECOND), vec![]),
    ] {
        let found = compare(&old, &new, b"/dev/sda1", &written);
        assert_eq!(found.iter().map(|operation| operation.action).collect::<Vec<_>>(), expected);
    }
}
