//! Each limit: a message at the limit is accepted, and one beyond it is refused.

use virt_bmap_agent_protocol::bounds::*;
use virt_bmap_agent_protocol::codec::{
    AREA_HEADER, DecodeError, EncodeError, Message, area_length, decode, decode_area, encode_area,
};
use virt_bmap_agent_protocol::record::{
    BlockPurpose, Chunk, Extent, Filesystem, Member, Ntfs, Object, ObjectKind, Operation, ReadFailure,
};
use virt_bmap_agent_protocol::*;

fn object(name: Vec<u8>) -> Record {
    Record::Object(Object {
        id: 5,
        parent: 4,
        kind: ObjectKind::File,
        inode: u64::MAX,
        size: 1,
        allocated: 4096,
        links: 2,
        mode: 0o100_644,
        owner: None,
        modified: -1,
        changed: i64::MAX,
        born: Some(i64::MAX),
        name,
    })
}

fn extents(count: usize) -> Record {
    let extent = Extent { logical: u64::MAX, physical: u64::MAX, length: u64::MAX, flags: u32::MAX };
    Record::Extents { id: 5, extents: vec![extent; count] }
}

fn chunk(count: usize) -> Record {
    Record::Chunk(Chunk {
        start: 1 << 40,
        length: 1 << 30,
        stripe_length: 65536,
        profile: 0x11,
        sub_stripes: 1,
        stripes: vec![(1, 1 << 20); count],
    })
}

fn failure(name: Vec<u8>) -> Record {
    Record::ReadFailure(ReadFailure { operation: Operation::Read, errno: 5, parent: 4, name, offset: 512 })
}

/// One record of each kind, in the order of their kinds.
fn one_of_each() -> Vec<Record> {
    let name = b"a\n\xff".to_vec();
    vec![
        Record::Hello { version: 1 },
        Record::Filesystem(Filesystem { magic: 0xef53, block_size: 4096, ..Filesystem::default() }),
        object(name.clone()),
        extents(1),
        Record::Link { id: 5, parent: 4, name: name.clone() },
        Record::Known { id: 6, parent: 4, inode: 1 << 40, name: name.clone() },
        Record::Unsure { id: 4 },
        Record::Tag { id: 5, reset: true },
        Record::Series { ids: vec![5, 7] },
        Record::Listing { ids: vec![2, 3] },
        Record::SelectFiles { ids: vec![5] },
        Record::BatchEnd,
        failure(name),
        Record::Space { purpose: BlockPurpose::Inodes, parts: vec![(0, 4096), (1 << 40, 512)] },
        Record::Done,
        Record::Packed,
        Record::Shared { id: 5 },
        Record::Encrypted { id: 5 },
        chunk(2),
        Record::Member(Member { id: 2, major: 8, minor: 17 }),
        Record::Placed { id: 5 },
        Record::Reparse { id: 5, tag: 0x8000_0017 },
        Record::Computed { id: 3, beside: vec![(0, 512), (1 << 40, 4096)] },
        Record::Ntfs(Ntfs { is_unclean: true, damaged: 300, ..Ntfs::default() }),
        Record::Unlocked(Unlocked::Never),
        Record::Items { tree: 5, items: vec![0, 1, 255] },
        Record::Ended(Ended::Failed("busy".into())),
        Record::Contradiction { parent: 4, name: b"b".to_vec() },
    ]
}

fn bytes(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    bytes
}

fn accept(record: &Record) {
    let bytes = bytes(record);
    assert_eq!(Record::decode(&bytes).unwrap().map(|(_, used)| used), Some(bytes.len()));
}

#[track_caller]
fn refuse(record: &Record, what: &'static str) {
    match Record::decode(&bytes(record)) {
        Err(DecodeError::Limit { limit: Limit::Most { what: got, .. }, .. }) => assert_eq!(got, what),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_kind_is_known_and_no_other() {
    let records = one_of_each();
    assert_eq!(Some(records.len() as u8), Record::KINDS);
    for (kind, record) in (0..).zip(&records) {
        assert_eq!(bytes(record)[4], kind, "{record:?}");
        accept(record);
    }
    let next = records.len() as u8;
    for kind in [next, 99, 128, 255] {
        assert_eq!(Record::decode(&[1, 0, 0, 0, kind]), Err(DecodeError::Kind { message: "record", kind }));
        assert_eq!(decode::<Task>(&[kind]), Err(DecodeError::Kind { message: "task", kind }));
    }
    assert_eq!(decode::<Task>(&[7]), Err(DecodeError::Kind { message: "task", kind: 7 }));
}

#[test]
fn a_body_that_does_not_fit_its_kind_is_refused() {
    for record in one_of_each() {
        let whole = bytes(&record);
        let mut longer = whole.clone();
        longer.push(0);
        longer[0] += 1;
        let trailing = DecodeError::Trailing { message: "record", bytes: 1 };
        assert_eq!(Record::decode(&longer), Err(trailing), "{record:?}");
        let mut shorter = whole;
        shorter.pop();
        assert_eq!(Record::decode(&shorter), Ok(None), "not all of it is there");
        shorter[0] -= 1;
        assert!(matches!(Record::decode(&shorter), Err(DecodeError::Malformed { .. })), "{record:?}");
    }
}

#[test]
fn values_that_do_not_exist_are_refused() {
    // A kind of object, a purpose, an operation, a truth value and a length.
    let object = [&[2, 5, 4, 4][..], &[0; 9]].concat();
    for body in [&object[..], &[13, 23, 0], &[12, 8, 0, 0, 0, 0], &[7, 1, 2], &[8, 255, 255, 255, 255, 15]] {
        let record = [&(body.len() as u32).to_le_bytes()[..], body].concat();
        assert!(matches!(Record::decode(&record), Err(DecodeError::Malformed { .. })), "{body:?}");
    }
    // A sample of every 0th.
    let walk = |one_in| [&[0, 1, 1, 0, 2, one_in, 7][..], &[0; 5]].concat();
    assert!(decode::<Task>(&walk(1)).is_ok());
    assert!(matches!(decode::<Task>(&walk(0)), Err(DecodeError::Malformed { .. })));
}

#[test]
fn a_long_record_is_refused_by_its_length() {
    let most = (RECORD_BYTES as u32).to_le_bytes();
    assert_eq!(Record::decode(&most), Ok(None));
    let beyond = (RECORD_BYTES as u32 + 1).to_le_bytes();
    assert!(
        matches!(Record::decode(&beyond), Err(DecodeError::TooLong { length, .. }) if length == RECORD_BYTES as u64 + 1)
    );
    assert!(matches!(Record::decode(&[255; 4]), Err(DecodeError::TooLong { .. })));
}

#[test]
fn long_names_are_refused() {
    let (most, beyond) = (vec![b'a'; NAME_BYTES], vec![b'a'; NAME_BYTES + 1]);
    for of in [
        object,
        failure,
        |name| Record::Link { id: 5, parent: 4, name },
        |name| Record::Known { id: 5, parent: 4, inode: 3, name },
    ] {
        accept(&of(most.clone()));
        refuse(&of(beyond.clone()), "bytes of a name");
    }
}

#[test]
fn long_lists_are_refused() {
    accept(&extents(EXTENTS_PER_RECORD));
    refuse(&extents(EXTENTS_PER_RECORD + 1), "extents");
    let space =
        |count| Record::Space { purpose: BlockPurpose::Free, parts: vec![(u64::MAX, u64::MAX); count] };
    accept(&space(EXTENTS_PER_RECORD));
    refuse(&space(EXTENTS_PER_RECORD + 1), "parts of the device");
    accept(&chunk(STRIPES));
    refuse(&chunk(STRIPES + 1), "stripes");
    let ids = |count: usize| (0..count as u32).map(|id| u32::MAX - id).collect::<Vec<_>>();
    for of in [|ids| Record::Series { ids }, |ids| Record::Listing { ids }, |ids| Record::SelectFiles { ids }]
    {
        accept(&of(ids(FILES_PER_BATCH)));
        refuse(&of(ids(FILES_PER_BATCH + 1)), "files of a batch");
        let repeated = Record::decode(&bytes(&of(vec![7, 9, 7])));
        let limit = Limit::Repeated { what: "files of a batch" };
        assert_eq!(repeated, Err(DecodeError::Limit { message: "record", limit }));
    }
}

#[test]
fn a_full_reply_fits_into_its_area_and_a_larger_one_is_not_sent() {
    let reply = |count: usize| Reply { files: (0..count as u32).map(|id| u32::MAX - id).collect() };
    let area = encode_area(&reply(FILES_PER_BATCH)).unwrap();
    assert!(area.len() <= REPLY_SIZE);
    let beyond = encode_area(&reply(FILES_PER_BATCH + 1));
    assert!(matches!(beyond, Err(EncodeError::Limit { message: "reply", .. })));
    // Nor is it accepted.
    let mut bytes = vec![0x80, 8];
    bytes.extend([1; 1024]);
    assert!(matches!(decode::<Reply>(&bytes), Err(DecodeError::Limit { message: "reply", .. })));
}

fn walk() -> WalkPlan {
    WalkPlan {
        sequence: 1,
        first: 2,
        root: "/sysroot".into(),
        order: ReadOrder::Series,
        asks: true,
        uses_tables: true,
        known: InodeSet::default(),
        listings: Listings::default(),
        lookahead: Vec::new(),
    }
}

#[track_caller]
fn unsendable(task: Task, limit: Limit) {
    assert_eq!(encode_area(&task), Err(EncodeError::Limit { message: "task", limit }));
}

#[test]
fn tasks_have_limits() {
    let most = |what, most| Limit::Most { what, got: most + 1, most };
    let root = |bytes| Task::Walk(WalkPlan { root: "r".repeat(bytes), ..walk() });
    assert!(encode_area(&root(PATH_BYTES)).is_ok());
    unsendable(root(PATH_BYTES + 1), most("bytes of a path", PATH_BYTES));

    let lookahead = |count| Task::Walk(WalkPlan { lookahead: vec![(1, 2); count], ..walk() });
    assert!(encode_area(&lookahead(LOOKAHEAD_PARTS)).is_ok());
    unsendable(lookahead(LOOKAHEAD_PARTS + 1), most("parts to read in advance", LOOKAHEAD_PARTS));

    let read = DeviceRead { tag: 1, device: String::new(), offset: 0, length: 0 };
    let reads = |count| Task::ReadDevices(DeviceReads { sequence: 0, reads: vec![read.clone(); count] });
    assert!(encode_area(&reads(DEVICE_READS)).is_ok());
    unsendable(reads(DEVICE_READS + 1), most("reads of devices", DEVICE_READS));
    let device = DeviceRead { device: "d".repeat(PATH_BYTES + 1), ..read };
    let task = Task::ReadDevices(DeviceReads { sequence: 0, reads: vec![device] });
    unsendable(task, most("bytes of a path", PATH_BYTES));

    let secret =
        |bytes| Task::Unlock(Unlock { opener: Opener::Passphrase(Secret::new(vec![7; bytes])), ..unlock() });
    assert!(encode_area(&secret(SECRET_BYTES)).is_ok());
    unsendable(secret(SECRET_BYTES + 1), most("bytes of a secret", SECRET_BYTES));
    for name in [0, PATH_BYTES + 1] {
        let device = "d".repeat(PATH_BYTES + 1 - name);
        let task = Task::Unlock(Unlock { device, name: "n".repeat(name), ..unlock() });
        unsendable(task, most("bytes of a path", PATH_BYTES));
    }
}

fn unlock() -> Unlock {
    Unlock {
        sequence: 7,
        device: "/dev/sda2".into(),
        name: "luks-1".into(),
        encryption: Encryption::Luks,
        opener: Opener::VolumeKey(Secret::new(b"sesame".to_vec())),
        seconds: 240,
    }
}

#[test]
fn a_secret_is_not_printed() {
    let printed = format!("{:?}", Task::Unlock(unlock()));
    assert!(printed.contains("/dev/sda2") && !printed.contains("sesame") && !printed.contains("115"));
    let mut bytes = b"sesame".to_vec();
    wipe(&mut bytes);
    assert_eq!(bytes, [0; 6]);
}

#[test]
fn a_task_that_is_too_long_as_a_whole_is_not_sent() {
    let read = DeviceRead { tag: 1, device: "d".repeat(PATH_BYTES), offset: 0, length: 0 };
    let count = TASK_BYTES / PATH_BYTES + 1;
    let task = Task::ReadDevices(DeviceReads { sequence: 0, reads: vec![read; count] });
    assert!(matches!(encode_area(&task), Err(EncodeError::TooLong { message: "task", .. })));
}

#[test]
fn names_in_listings_stay_in_their_directory() {
    let listings = |name: &[u8]| {
        let entries = vec![Entry { inode: 1, kind: ObjectKind::Directory, name: name.to_vec() }];
        let listings = Listings::from_iter([(2, Listing { objects: 0, entries })]);
        Task::Walk(WalkPlan { listings, ..walk() })
    };
    assert!(encode_area(&listings(b"...")).is_ok());
    assert!(encode_area(&listings(&[b'a'; NAME_BYTES])).is_ok());
    for name in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0"] {
        unsendable(listings(name), Limit::Name);
    }
    let most = Limit::Most { what: "bytes of a name", got: NAME_BYTES + 1, most: NAME_BYTES };
    unsendable(listings(&[b'a'; NAME_BYTES + 1]), most);
}

#[test]
fn listings_are_limited_by_their_bytes() {
    // Directories without entries count as well: they, too, take memory.
    let listings = |count: u64| Listings::from_iter((0..count).map(|n| ((1 << 40) + n, Listing::default())));
    let each = 6 + 1 + 1;
    assert!(listings((LISTINGS_BYTES / each) as u64 - 1).fit());
    let beyond = listings((LISTINGS_BYTES / each) as u64);
    assert!(!beyond.fit());
    let encoded = encode_area(&Task::Walk(WalkPlan { listings: beyond, ..walk() }));
    let limit = Limit::Most { what: "bytes of listings", got: LISTINGS_BYTES + 4, most: LISTINGS_BYTES };
    assert_eq!(encoded, Err(EncodeError::Limit { message: "task", limit }));
}

/// What 1 MiB of records can make the host hold: a list has at most a few times the bytes of its
/// record.
#[test]
fn a_stated_length_alone_allocates_nothing_large() {
    // The length of a name, of a list and of a list in a list: 2^40, followed by nothing.
    let huge = [0x80, 0x80, 0x80, 0x80, 0x80, 0x20];
    for head in [&[4, 5, 4][..], &[3, 5], &[13, 0], &[8], &[18, 0, 0, 0, 0, 0]] {
        let body = [head, &huge[..]].concat();
        let record = [&(body.len() as u32).to_le_bytes()[..], &body].concat();
        assert!(matches!(Record::decode(&record), Err(DecodeError::Malformed { .. })), "{head:?}");
    }
    for head in [&[0, 1, 1][..], &[0, 1, 1, 0, 0, 0, 0], &[0, 1, 1, 0, 0, 0, 0, 0], &[1, 0]] {
        let task = [head, &huge[..]].concat();
        assert!(matches!(decode::<Task>(&task), Err(DecodeError::Malformed { .. })), "{head:?}");
    }
}

#[test]
fn sets_of_inodes_keep_their_order() {
    // A plan with two runs, as bytes.
    let plan = |runs: [u8; 4]| [&[0, 1, 1, 0, 0, 0, 0, 2][..], &runs[..], &[0, 0]].concat();
    let Ok(Task::Walk(walk)) = decode::<Task>(&plan([2, 3, 5, 9])) else { panic!("a plan") };
    assert!(walk.known.contains(2) && !walk.known.contains(3) && walk.known.contains(8));
    for runs in [[5, 9, 2, 3], [2, 5, 5, 9], [2, 5, 4, 9], [3, 3, 5, 9], [3, 2, 5, 9]] {
        let limit = Limit::Order { what: "runs of inodes" };
        assert_eq!(decode::<Task>(&plan(runs)), Err(DecodeError::Limit { message: "task", limit }));
    }
    // Numbers beyond the limit are omitted.
    let set: InodeSet = (0..INODE_RUNS as u64 + 9).map(|n| n * 2).collect();
    assert!(set.contains(2 * INODE_RUNS as u64 - 2) && !set.contains(2 * INODE_RUNS as u64));
    assert!(encode_area(&Task::Walk(WalkPlan { known: set, ..self::walk() })).is_ok());
}

#[test]
fn an_area_is_of_this_version_and_whole() {
    let task = Task::Walk(walk());
    let area = encode_area(&task).unwrap();
    assert_eq!(area_length::<Task>(&area), Ok(area.len()));
    let padded = [&area[..], &[0; 99]].concat();
    assert_eq!(decode_area::<Task>(&padded), Ok(task));
    assert!(matches!(decode_area::<Task>(&area[..area.len() - 1]), Err(DecodeError::Malformed { .. })));
    assert!(matches!(decode_area::<Task>(&area[..AREA_HEADER - 1]), Err(DecodeError::Malformed { .. })));
    let version = DecodeError::Version { message: "task", version: 0 };
    assert_eq!(decode_area::<Task>(&[0; 512]), Err(version), "nothing was handed over");
    let mut long = area;
    long[4..8].copy_from_slice(&(TASK_BYTES as u32 + 1).to_le_bytes());
    assert!(matches!(decode_area::<Task>(&long), Err(DecodeError::TooLong { message: "task", .. })));
}

#[test]
fn the_areas_of_the_control_disk_do_not_overlap() {
    assert!(frame::MAX as u64 <= REPLY_OFFSET);
    assert!(REPLY_OFFSET + REPLY_SIZE as u64 <= TASK_OFFSET);
    assert!(TASK_OFFSET + (AREA_HEADER + TASK_BYTES) as u64 + (1 << 20) <= CONTROL_SIZE);
}
