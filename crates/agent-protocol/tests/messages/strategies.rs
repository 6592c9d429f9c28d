//! Any message that is within the limits.

use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use std::collections::HashSet;
use std::num::NonZeroU32;
use virt_bmap_agent_protocol::inventory::{
    Description, DeviceNumber, MdArray, MdMember, Report, ReportError, ReportedKind,
};
use virt_bmap_agent_protocol::record::{
    BlockPurpose, Chunk, Extent, Filesystem, Member, Ntfs, Object, ObjectKind, Operation, ReadFailure,
};
use virt_bmap_agent_protocol::{
    DeviceRead, DeviceReads, Encryption, EndTask, Ended, Entry, FsKind, InodeSet, Leave, Listing, Listings,
    Mount, Opener, ReadOrder, Record, Reply, Sample, Secret, Task, TreeItems, Unlock, Unlocked, WalkPlan,
};

fn name() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..300)
}

/// Distinct numbers, in any order.
fn ids() -> impl Strategy<Value = Vec<u32>> {
    vec(any::<u32>(), 0..1023).prop_map(|mut ids| {
        let mut seen = HashSet::new();
        ids.retain(|id| seen.insert(*id));
        ids
    })
}

fn pairs() -> impl Strategy<Value = Vec<(u64, u64)>> {
    vec(any::<(u64, u64)>(), 0..100)
}

fn extent() -> impl Strategy<Value = Extent> {
    any::<(u64, u64, u64, u32)>().prop_map(|(logical, physical, length, flags)| Extent {
        logical,
        physical,
        length,
        flags,
    })
}

fn object() -> impl Strategy<Value = Record> {
    let kind = prop_oneof![
        Just(ObjectKind::Directory),
        Just(ObjectKind::File),
        Just(ObjectKind::Symlink),
        Just(ObjectKind::Metadata)
    ];
    let words = any::<(u32, u32, u64, u64, u64, u32, u32, i64, i64)>();
    let known = any::<(Option<(u32, u32)>, Option<i64>)>();
    (kind, words, known, name()).prop_map(|(kind, words, (owner, born), name)| {
        let (id, parent, inode, size, allocated, links, mode, modified, changed) = words;
        Record::Object(Object {
            id,
            parent,
            kind,
            inode,
            size,
            allocated,
            links,
            mode,
            owner,
            modified,
            changed,
            born,
            name,
        })
    })
}

fn failure() -> impl Strategy<Value = Record> {
    let operation = prop_oneof![
        Just(Operation::Open),
        Just(Operation::Stat),
        Just(Operation::List),
        Just(Operation::Read),
        Just(Operation::Fiemap),
        Just(Operation::Loop),
        Just(Operation::Attributes),
        Just(Operation::Fsmap),
    ];
    (operation, any::<i32>(), any::<u32>(), name(), any::<u64>()).prop_map(
        |(operation, errno, parent, name, offset)| {
            Record::ReadFailure(ReadFailure { operation, errno, parent, name, offset })
        },
    )
}

fn space() -> impl Strategy<Value = Record> {
    let purpose =
        prop_oneof![Just(BlockPurpose::Free), Just(BlockPurpose::Inodes), Just(BlockPurpose::ExtentMaps)];
    (purpose, pairs()).prop_map(|(purpose, parts)| Record::Space { purpose, parts })
}

fn chunk() -> impl Strategy<Value = Record> {
    (any::<(u64, u64, u64, u64, u16)>(), pairs()).prop_map(|(words, stripes)| {
        let (start, length, stripe_length, profile, sub_stripes) = words;
        Record::Chunk(Chunk { start, length, stripe_length, profile, sub_stripes, stripes })
    })
}

/// Any record.
pub(crate) fn record() -> impl Strategy<Value = Record> {
    prop_oneof![
        any::<u16>().prop_map(|version| Record::Hello { version }),
        any::<[u64; 6]>().prop_map(|[magic, block_size, blocks, blocks_free, files, files_free]| {
            Record::Filesystem(Filesystem { magic, block_size, blocks, blocks_free, files, files_free })
        }),
        object(),
        (any::<u32>(), vec(extent(), 0..100)).prop_map(|(id, extents)| Record::Extents { id, extents }),
        (any::<u32>(), name()).prop_map(|(parent, name)| Record::Contradiction { parent, name }),
        (any::<(u32, u32)>(), name()).prop_map(|((id, parent), name)| Record::Link { id, parent, name }),
        (any::<(u32, u32, u64)>(), name()).prop_map(|((id, parent, inode), name)| Record::Known {
            id,
            parent,
            inode,
            name
        }),
        any::<u32>().prop_map(|id| Record::Unsure { id }),
        any::<(u32, bool)>().prop_map(|(id, reset)| Record::Tag { id, reset }),
        ids().prop_map(|ids| Record::Series { ids }),
        ids().prop_map(|ids| Record::Listing { ids }),
        ids().prop_map(|ids| Record::SelectFiles { ids }),
        prop_oneof![Just(Record::BatchEnd), Just(Record::Done), Just(Record::Packed)],
        failure(),
        space(),
        any::<u32>().prop_map(|id| Record::Shared { id }),
        any::<u32>().prop_map(|id| Record::Encrypted { id }),
        any::<u32>().prop_map(|id| Record::Placed { id }),
        any::<(u32, u32)>().prop_map(|(id, tag)| Record::Reparse { id, tag }),
        any::<(bool, bool, u64)>().prop_map(|(is_hibernated, is_unclean, damaged)| {
            Record::Ntfs(Ntfs { is_hibernated, is_unclean, damaged })
        }),
        proptest::sample::select(vec![Unlocked::Yes, Unlocked::No, Unlocked::Memory, Unlocked::Never])
            .prop_map(Record::Unlocked),
        chunk(),
        any::<(u64, u32, u32)>().prop_map(|(id, major, minor)| Record::Member(Member { id, major, minor })),
        (any::<u32>(), pairs()).prop_map(|(id, beside)| Record::Computed { id, beside }),
        (any::<u64>(), vec(any::<u8>(), 0..99)).prop_map(|(tree, items)| Record::Items { tree, items }),
        ".{0,99}".prop_map(|text| Record::Ended(Ended::Done(text))),
        ".{0,99}".prop_map(|text| Record::Ended(Ended::Failed(text))),
    ]
}

/// Any reply.
pub(crate) fn reply() -> impl Strategy<Value = Reply> {
    ids().prop_map(|files| Reply { files })
}

fn listings() -> impl Strategy<Value = Listings> {
    let name =
        vec(any::<u8>().prop_map(|byte| if matches!(byte, 0 | b'/' | b'.') { b'x' } else { byte }), 1..99);
    let kind = prop_oneof![Just(ObjectKind::Directory), Just(ObjectKind::File), Just(ObjectKind::Symlink)];
    let entry = (any::<u64>(), kind, name).prop_map(|(inode, kind, name)| Entry { inode, kind, name });
    let listing =
        (any::<u32>(), vec(entry, 0..9)).prop_map(|(objects, entries)| Listing { objects, entries });
    vec((any::<u64>(), listing), 0..9).prop_map(Listings::from_iter)
}

/// Any task.
pub(crate) fn task() -> impl Strategy<Value = Task> {
    let order = prop_oneof![
        Just(ReadOrder::Tags),
        Just(ReadOrder::Series),
        any::<(u32, u64)>().prop_map(|(one_in, seed)| ReadOrder::Ends(Sample {
            one_in: NonZeroU32::new(one_in).unwrap_or(NonZeroU32::MIN),
            seed,
        })),
    ];
    let known = btree_set(any::<u64>(), 0..99).prop_map(InodeSet::from_iter);
    let walk = (any::<(u32, u32, [bool; 2])>(), ".{0,99}", order, known, listings(), pairs()).prop_map(
        |((sequence, first, [asks, uses_tables]), root, order, known, listings, lookahead)| {
            Task::Walk(WalkPlan {
                sequence,
                first,
                root,
                order,
                asks,
                uses_tables,
                known,
                listings,
                lookahead,
            })
        },
    );
    let read = (any::<(u32, u64, u64)>(), ".{0,99}").prop_map(|((tag, offset, length), device)| DeviceRead {
        tag,
        device,
        offset,
        length,
    });
    let reads = (any::<u32>(), vec(read, 0..99))
        .prop_map(|(sequence, reads)| Task::ReadDevices(DeviceReads { sequence, reads }));
    let secret = || vec(any::<u8>(), 0..99).prop_map(Secret::new);
    let opener = prop_oneof![secret().prop_map(Opener::Passphrase), secret().prop_map(Opener::VolumeKey)];
    let encryption = prop_oneof![Just(Encryption::Luks), Just(Encryption::BitLocker)];
    let unlock = (any::<(u32, u64)>(), ".{0,99}", ".{0,99}", encryption, opener).prop_map(
        |((sequence, seconds), device, name, encryption, opener)| {
            Task::Unlock(Unlock { sequence, device, name, encryption, opener, seconds })
        },
    );
    let items =
        (any::<u32>(), ".{0,99}").prop_map(|(sequence, root)| Task::Items(TreeItems { sequence, root }));
    let mount = (any::<u32>(), [".{0,99}", "[a-z0-9]{0,9}", ".{0,99}", ".{0,99}"]).prop_map(
        |(sequence, [device, kind, options, root])| {
            Task::Mount(Mount { sequence, device, kind, options, root })
        },
    );
    let leave = (any::<u32>(), ".{0,99}").prop_map(|(sequence, root)| Task::Leave(Leave { sequence, root }));
    let end = any::<u32>().prop_map(|sequence| Task::End(EndTask { sequence }));
    prop_oneof![walk, reads, unlock, items, mount, leave, end]
}

fn number() -> impl Strategy<Value = DeviceNumber> {
    any::<DeviceNumber>()
}

/// A word of the inventory.
fn word() -> &'static str {
    "[!-~]{1,20}"
}

/// Any report of a device.
pub(crate) fn report() -> impl Strategy<Value = Report> {
    let member = (any::<(u64, u64, u64)>(), number()).prop_map(|((slot, offset, size), device)| MdMember {
        slot,
        device,
        offset,
        size,
    });
    let array = (word(), any::<(u64, u64, u64)>(), vec(member, 0..5), vec(number(), 0..3)).prop_map(
        |(level, (disks, chunk, layout), members, spares)| {
            ReportedKind::Md(MdArray { level, disks, chunk, layout, members, spares })
        },
    );
    let kind = prop_oneof![
        Just(ReportedKind::Disk),
        (number(), any::<u64>()).prop_map(|(of, start)| ReportedKind::Partition { of, start }),
        (word(), "[!-~]{0,20}").prop_map(|(name, uuid)| ReportedKind::Dm { name, uuid }),
        array,
    ];
    let content = option::of(word().prop_map(|name| FsKind::from_name(&name)));
    let sector = (9u32..=12).prop_map(|shift| 1 << shift);
    let description = (number(), word(), any::<u64>(), sector, kind, content, option::of(word())).prop_map(
        |(number, node, size, sector, kind, content, uuid)| Description {
            number,
            node,
            size,
            sector,
            kind,
            content,
            uuid,
        },
    );
    let result = prop_oneof![
        9 => description.prop_map(Ok),
        1 => "[ -~]{0,40}".prop_map(|error| Err(ReportError::Failed(error))),
    ];
    ("/dev/[!-~]{1,20}", result).prop_map(|(path, result)| Report { path, result })
}
