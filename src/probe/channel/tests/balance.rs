//! The balance of a filesystem whose agent reports everything, or leaves something out.

use super::*;
use crate::probe::metadata::balance_of_reported;
use virt_bmap_map::Balance;

const BLOCK: u64 = 4096;

/// An object: number, parent, kind, name, first block and number of blocks.
type Reported = (u32, u32, ObjectKind, &'static [u8], u64, u64);

/// The objects of the filesystem. The root has block 1.
const OBJECTS: [Reported; 4] = [
    (2, 1, ObjectKind::Directory, b"d", 2, 1),
    (3, 2, ObjectKind::File, b"f", 3, 2),
    (4, 1, ObjectKind::File, b"g", 5, 3),
    (5, 1, ObjectKind::Directory, b"empty", 8, 1),
];

/// The balance after a walk that reports these objects. Block 0 is a superblock, block 9 is read by
/// the kernel, and from block 16 on all is free.
fn balance(kind: &FsKind, objects: &[Reported]) -> (Balance, Vec<Cause>) {
    let mut agent = Agent::walking();
    agent.read(9 * BLOCK, 10 * BLOCK);
    agent.tag(1, false);
    agent.read(BLOCK, 2 * BLOCK);
    agent.tag(0, false);
    let mut numbers = std::collections::HashMap::from([(1, 1)]);
    for &(id, parent, kind, name, first, count) in objects {
        let next = numbers.len() as u32 + 1;
        numbers.insert(id, next);
        agent.say(&[object(next, numbers[&parent], kind, name, count * BLOCK)]).unwrap();
        agent.say(&[extents(next, first * BLOCK, count * BLOCK)]).unwrap();
        agent.tag(next, false);
        agent.read(first * BLOCK, (first + count) * BLOCK);
        agent.tag(0, false);
    }
    let space = |purpose, first: u64, count: u64| Record::Space {
        purpose,
        parts: vec![(first * BLOCK, count * BLOCK)],
    };
    agent
        .say(&[
            space(BlockPurpose::Superblocks, 0, 1),
            space(BlockPurpose::Unknown, 1, 9),
            space(BlockPurpose::Free, 16, 240),
            Record::BatchEnd,
            Record::Done,
        ])
        .unwrap();
    let inputs = agent.channel.end().unwrap();
    let layout = Layout::of_disk(1, 1 << 20);
    agent.channel.with(|found, _| balance_of_reported(&inputs, &layout, found, kind))
}

#[test]
fn what_is_all_reported_is_even() {
    let (balance, causes) = balance(&FsKind::Ext4, &OBJECTS);
    assert_eq!((balance.used, balance.files, balance.directories), (10 * BLOCK, 5 * BLOCK, 3 * BLOCK));
    assert_eq!((balance.metadata, balance.is_even()), (2 * BLOCK, true));
    assert!(causes.is_empty(), "{causes:?}");
}

#[test]
fn what_the_walk_drops_is_missing_to_the_byte() {
    for dropped in [4, 5] {
        let (_, _, _, _, _, count) = *OBJECTS.iter().find(|(id, ..)| *id == dropped).unwrap();
        let left: Vec<_> = OBJECTS.into_iter().filter(|(id, ..)| *id != dropped).collect();
        let (balance, causes) = balance(&FsKind::Ext4, &left);
        assert_eq!((balance.used, balance.unexplained), (10 * BLOCK, count * BLOCK), "{dropped}");
        assert_eq!(causes, [Cause::Unexplained { ranges: 1, bytes: count * BLOCK }]);
    }
}

#[test]
fn what_two_have_is_told_unless_they_may_share_it() {
    // `/g` has the second block of `/d/f`, and a free one.
    let mut objects = OBJECTS;
    (objects[2].4, objects[2].5) = (4, 13);
    let (balance, causes) = balance(&FsKind::Ext4, &objects);
    assert_eq!(balance.claimed_twice, 2 * BLOCK, "of `/d/f`, and of the directory at 8");
    assert_eq!(balance.claimed_free, BLOCK);
    let example = ["/d/f", "/g"].map(str::to_owned);
    assert_eq!(
        causes,
        [
            Cause::ClaimedTwice { ranges: 2, bytes: 2 * BLOCK, example },
            Cause::ClaimedFree { ranges: 1, bytes: BLOCK }
        ]
    );
    assert_eq!(super::balance::balance(&FsKind::Xfs, &objects).0.claimed_twice, 0);
}

/// The same image has the same warnings, whatever the order of the walk.
#[test]
fn the_example_of_what_two_have_does_not_hang_on_the_order() {
    let names: [&[u8]; 6] = [b"a", b"b", b"c", b"d", b"e", b"f"];
    for walked in [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 5, 0, 4, 1, 2]] {
        let objects: Vec<Reported> =
            walked.iter().zip(2..).map(|(&name, id)| (id, 1, ObjectKind::File, names[name], 3, 1)).collect();
        let (_, causes) = balance(&FsKind::Ext4, &objects);
        let example = ["/a", "/b"].map(str::to_owned);
        let is_twice = |cause: &Cause| matches!(cause, Cause::ClaimedTwice { example: told, ranges: 5, .. } if *told == example);
        assert!(causes.iter().any(is_twice), "{causes:?}");
    }
}
