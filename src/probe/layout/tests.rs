//! Layouts of stacked devices.

use super::*;
use crate::appliance::{DmTarget, MdArray, MdMember};

fn device(path: &str, number: DeviceNumber, size: u64, kind: DeviceKind) -> BlockDevice {
    BlockDevice { path: path.into(), node: path.into(), number, size, sector: 512, kind }
}

fn target(start: u64, length: u64, line: &str) -> DmTarget {
    let mut words = line.split(' ').map(str::to_owned);
    DmTarget { start, length, kind: words.next().unwrap(), arguments: words.collect() }
}

fn disks(count: u32) -> Vec<BlockDevice> {
    (0..count).map(|n| device(&format!("/dev/sd{n}"), (8, 16 * n), 1 << 20, DeviceKind::Disk)).collect()
}

fn inventory(targets: Vec<DmTarget>) -> Inventory {
    let on = DeviceKind::Dm { targets: vec![target(0, 1024, "linear 253:0 2")] };
    Inventory {
        disks: disks(2),
        partitions: vec![device(
            "/dev/sda1",
            (8, 1),
            64 << 10,
            DeviceKind::Partition { of: (8, 0), start: 4096 },
        )],
        volumes: vec![
            device("/dev/vg/on", (253, 1), 1024, on),
            device("/dev/vg/lv", (253, 0), 1 << 16, DeviceKind::Dm { targets }),
        ],
        ..Inventory::default()
    }
}

fn layouts_of(inventory: &Inventory) -> HashMap<String, Layout> {
    layouts(inventory, &[]).by_path
}

/// The places of a device: disk, start, length.
fn places(layout: &Layout) -> Vec<(u16, u64, u64)> {
    layout.segments().map(|s| (s.disk, s.start.0, s.device.len())).collect()
}

#[test]
fn a_volume_over_a_partition_and_a_disk() {
    let all =
        layouts_of(&inventory(vec![target(0, 8192, "linear 8:1 8"), target(8192, 4096, "linear 8:16 16")]));
    let lv = &all["/dev/vg/lv"];
    assert_eq!(places(lv), [(1, 8192, 8192), (2, 8192, 4096)]);
    // A volume that is stacked on a later one is found all the same.
    assert_eq!(places(&all["/dev/vg/on"]), [(1, 9216, 1024)]);
    let part = lv.part(Range::new(8000, 8300)).unwrap();
    assert_eq!(part.len(), 2);
    assert_eq!((part[1].disk, part[1].start), (2, DiskOffset(8192)));
    assert_eq!(lv.part(Range::new(12000, 12289)), None);
    let proofs = lv.proofs(512);
    assert_eq!(proofs.len(), 4);
    assert_eq!(proofs[1].at, DeviceOffset(8192 - 512));
    assert_eq!(proofs[1].places, [(1, DiskRange::new(16384 - 512, 16384))]);
    let proofs = lv.proofs(4096);
    let places: Vec<_> = proofs.iter().map(|proof| (proof.at.0, proof.places[0].1.start.0)).collect();
    assert_eq!(places, [(0, 8192), (4096, 12288), (8192, 8192)]);
    assert!(proofs.iter().all(|proof| proof.places[0].1.len() == 4096));
}

#[test]
fn recordings_are_translated_back() {
    let all =
        layouts_of(&inventory(vec![target(0, 8192, "linear 8:1 8"), target(8192, 4096, "linear 8:16 16")]));
    let back = |ranges: &[(u16, u64, u64)]| {
        let recording = ranges.iter().map(|&(disk, start, end)| (disk, DiskRange::new(start, end))).collect();
        all["/dev/vg/lv"].to_device(&recording)
    };
    assert!(back(&[(1, 16000, 16384), (2, 8192, 9000)]).unwrap().iter().eq([Range::new(7808, 9000)]));
    assert_eq!(back(&[(1, 8191, 9000)]), None);
    assert_eq!(back(&[(1, 16000, 16385)]), None);
    assert_eq!(back(&[(3, 0, 1)]), None);
    assert_eq!(back(&[]), Some(RangeSet::new()));
}

#[test]
fn a_passthrough_cache_is_its_origin() {
    let line = "cache 8:0 8:1 8:16 128 2 metadata2 passthrough smq 0";
    let all = layouts_of(&inventory(vec![target(0, 4096, line)]));
    assert_eq!(places(&all["/dev/vg/lv"]), [(2, 0, 4096)]);
}

#[test]
fn a_member_that_is_not_known_is_not_missing() {
    let of = |line| layouts_of(&inventory(vec![target(0, 4096, line)])).remove("/dev/vg/lv");
    assert!(of("raid raid5_ls 1 8 3 - 8:0 - 8:16 - 253:77").is_none());
    assert!(of("raid raid1 1 0 2 - 8:0 - 253:77").is_none());
    assert!(of("raid raid5_ls 1 8 3 - - - 8:0 - 8:16").unwrap().is_partial());
    assert!(!of("raid raid1 1 0 2 - 8:0 - -").unwrap().is_partial());
    let line = target(0, 4096, "raid raid5_ls 1 8 3 - 8:0 - 8:16 - -");
    assert_eq!(line.missing_members(), 1);
}

/// As in a volume of BitLocker, whose metadata lies between its data.
#[test]
fn what_reads_as_zeroes_is_on_no_disk() {
    let targets = vec![
        target(0, 4096, "linear 8:0 0"),
        target(4096, 4096, "zero"),
        target(8192, 4096, "linear 8:0 16"),
    ];
    let all = layouts_of(&inventory(targets));
    let layout = &all["/dev/vg/lv"];
    assert_eq!(places(layout), [(1, 0, 4096), (1, 8192, 4096)]);
    let whole = Range::new(0, 12288);
    assert!(layout.covers(whole) && !layout.is_partial() && !layout.covers(Range::new(0, 12289)));
    let parts: Vec<_> = layout.on_disks(&[whole].into_iter().collect()).iter().collect();
    assert_eq!(parts, [Range::new(0, 4096), Range::new(8192, 12288)]);
}

#[test]
fn stripes_alternate() {
    let all = layouts_of(&inventory(vec![target(0, 20480, "striped 2 16 8:0 0 8:16 8")]));
    assert_eq!(places(&all["/dev/vg/lv"]), [(1, 0, 8192), (2, 4096, 8192), (1, 8192, 4096)]);
}

#[test]
fn mirrors_have_copies() {
    for line in ["mirror core 1 1024 2 8:0 8 8:16 16", "raid raid1 3 0 region_size 4096 2 - 8:0 - 8:16"] {
        let all = layouts_of(&inventory(vec![target(0, 4096, line)]));
        let lv = &all["/dev/vg/lv"];
        assert_eq!(lv.copy_count(), 2);
        let starts: Vec<_> = lv.segments().map(|s| (s.disk, s.copy, s.device.len())).collect();
        assert_eq!(starts, [(1, 0, 4096), (2, 1, 4096)]);
        assert_eq!(lv.proofs(512).len(), 2);
        assert_eq!(lv.proofs(512)[0].places.len(), 2);
        let mut alone = lv.clone();
        alone.retain_copies(|_, _| false);
        assert_eq!(alone.copy_count(), 1);
        assert_eq!(alone.by_disk.len(), 1);
    }
}

/// A disk of these bytes.
struct Bytes(Vec<u8>);

impl Source for Bytes {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> std::io::Result<()> {
        let at = offset.0 as usize;
        buf.copy_from_slice(self.0.get(at..at + buf.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Two disks of 1 MiB, the first with these words of eight bytes.
fn disks_with(words: &[(usize, u64)]) -> Vec<Arc<dyn Source>> {
    let mut first = vec![0; 1 << 20];
    for (at, word) in words {
        first[*at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    vec![Arc::new(Bytes(first)), Arc::new(Bytes(vec![0; 1 << 20]))]
}

#[test]
fn a_thin_volume_lies_where_the_metadata_of_its_pool_says() {
    // The metadata fills the beginning of the first disk. Its tree of devices has device 5, whose
    // blocks 1 and 2 (of 64 KiB) are blocks 9 and 3 of the second disk.
    let (devices, blocks) = (4096, 2 * 4096);
    let entries = 32 + 252 * 8;
    let disks = disks_with(&[
        (32, 27_022_010),
        (320, 1),
        (336, 128),
        (devices, 2 << 32),
        (devices + 8, 1),
        (devices + 16, 1 | 252 << 32),
        (devices + 32, 5),
        (devices + entries, 2),
        (blocks, 2 << 32),
        (blocks + 8, 2),
        (blocks + 16, 2 | 252 << 32),
        (blocks + 32, 1),
        (blocks + 40, 2),
        (blocks + entries, 9 << 24),
        (blocks + entries + 8, 3 << 24),
    ]);
    let mut inventory = inventory(vec![target(0, 250 << 10, "thin 253:7 5")]);
    let pool = target(0, 1 << 20, "thin-pool 8:0 8:16 128 0 0");
    inventory.hidden.push(device(
        "/dev/vg/pool-tpool",
        (253, 7),
        1 << 20,
        DeviceKind::Dm { targets: vec![pool] },
    ));
    let found = layouts(&inventory, &disks);
    let lv = &found.by_path["/dev/vg/lv"];
    assert_eq!(places(lv), [(2, 9 << 16, 64 << 10), (2, 3 << 16, 64 << 10)]);
    // The rest is nowhere, and known to be.
    assert_eq!((lv.size(), lv.covers(Range::new(0, 250 << 10))), (250 << 10, true));
    assert_eq!(lv.on_disks(&[Range::new(0, 250 << 10)].into_iter().collect()).bytes(), 128 << 10);
    let [lookups] = &found.lookups[..] else { panic!() };
    assert_eq!((&*lookups.device, lookups.name), ("/dev/sd0", "[thin pool metadata]"));
    assert!(lookups.places.iter().eq([(1, DiskRange::new(0, 1 << 20))]));

    // What the pool lacks is read from an external origin, as far as that goes.
    inventory.volumes[1].kind = DeviceKind::Dm { targets: vec![target(0, 250 << 10, "thin 253:7 5 8:1")] };
    let of = |inventory: &Inventory| layouts(inventory, &disks).by_path.remove("/dev/vg/lv");
    assert_eq!(places(&of(&inventory).unwrap())[0], (1, 4096, 64 << 10));
    inventory.volumes[1].kind = DeviceKind::Dm { targets: vec![target(0, 250 << 10, "thin 253:7 6")] };
    assert_eq!(of(&inventory), None, "the pool has no device 6");
}

#[test]
fn a_snapshot_lies_in_its_store_and_in_its_origin() {
    // The store is the first disk, with chunks of 4 KiB. It holds chunk 2 of the origin.
    let disks = disks_with(&[(0, 0x7041_6e53 | 1 << 32), (8, 1 | 8 << 32), (4096, 2), (4104, 7)]);
    let found = layouts(&inventory(vec![target(0, 32 << 10, "snapshot 8:16 8:0 P 8")]), &disks);
    let lv = &found.by_path["/dev/vg/lv"];
    assert_eq!(places(lv), [(2, 0, 8 << 10), (1, 7 << 12, 4 << 10), (2, 12 << 10, 20 << 10)]);
    assert_eq!(found.lookups[0].name, "[snapshot exceptions]");
    assert!(found.lookups[0].places.iter().eq([(1, DiskRange::new(0, 8 << 10))]));
    let without = layouts(&inventory(vec![target(0, 32 << 10, "snapshot 8:16 8:0 N 8")]), &disks);
    assert!(!without.by_path.contains_key("/dev/vg/lv"), "a store that is not kept");
}

#[test]
fn devices_with_unknown_tables_have_no_layout() {
    for line in [
        "thin 253:5 1",
        "raid raid1 3 0 region_size 4096 2 253:1 253:2 253:3 253:4",
        "linear 8:1",
        "cache 8:0 8:1 8:16 128 1 writethrough smq 0",
        "linear 8:99 0",
    ] {
        assert!(!layouts_of(&inventory(vec![target(0, 4096, line)])).contains_key("/dev/vg/lv"), "{line}");
    }
    // A volume that would reach past the end of the lower device has no layout, either.
    assert!(!layouts_of(&inventory(vec![target(0, 1 << 20, "linear 8:1 8")])).contains_key("/dev/vg/lv"));
    assert!(layouts_of(&inventory(Vec::new())).contains_key("/dev/sda1"));
}

fn array(
    level: &str,
    chunk: u64,
    layout: u64,
    members: &[u32],
    disks_in_all: u64,
    size: u64,
) -> Option<Layout> {
    let members = members
        .iter()
        .map(|&n| MdMember { slot: n.into(), device: (8, 16 * n), offset: 4096, size: 64 << 10 })
        .collect();
    let array =
        MdArray { level: level.into(), disks: disks_in_all, chunk, layout, members, spares: Vec::new() };
    let inventory = Inventory {
        disks: disks(4),
        others: vec![device("/dev/md0", (9, 0), size, DeviceKind::Md(array))],
        ..Inventory::default()
    };
    layouts_of(&inventory).remove("/dev/md0")
}

#[test]
fn arrays() {
    let raid1 = array("raid1", 0, 0, &[0, 1], 2, 8192).unwrap();
    assert_eq!(places(&raid1), [(1, 4096, 8192), (2, 4096, 8192)]);
    let raid0 = array("raid0", 4096, 0, &[0, 1], 2, 12288).unwrap();
    assert_eq!(places(&raid0), [(1, 4096, 4096), (2, 4096, 4096), (1, 8192, 4096)]);
    let linear = array("linear", 0, 0, &[0, 1], 2, (64 << 10) + 512).unwrap();
    assert_eq!(places(&linear), [(1, 4096, 64 << 10), (2, 4096, 512)]);
    let raid5 = array("raid5", 4096, 2, &[0, 1, 2], 3, 16384).unwrap();
    assert_eq!(places(&raid5), [(1, 4096, 4096), (2, 4096, 4096), (3, 8192, 4096), (1, 8192, 4096)]);
    // Parity is found by the bytes that it protects.
    let parity: Vec<_> =
        raid5.parity(Range::new(0, 16384)).map(|s| (s.disk, s.start.0, s.device.len())).collect();
    assert_eq!(parity, [(3, 4096, 4096), (3, 4096, 4096), (2, 8192, 4096), (2, 8192, 4096)]);
    assert_eq!(raid1.parity(Range::new(0, 8192)).count(), 0);
    // A mirror works without one of its members; the data of a missing member of a parity array is
    // on no disk.
    let mirror = array("raid1", 0, 0, &[1], 2, 8192).unwrap();
    assert!(places(&mirror) == [(2, 4096, 8192)] && !mirror.is_partial());
    let degraded = array("raid5", 4096, 2, &[0, 2], 3, 16384).unwrap();
    assert_eq!(places(&degraded), [(1, 4096, 4096), (3, 8192, 4096), (1, 8192, 4096)]);
    assert!(degraded.is_partial() && !degraded.covers(Range::new(4000, 4097)));
    assert_eq!(degraded.part(Range::new(4000, 4097)).map(|parts| parts.len()), Some(1));
    assert_eq!(array("raid0", 4096, 0, &[0], 2, 8192), None);
    assert_eq!(array("raid6", 4096, 2, &[0, 1], 2, 8192), None);
    assert_eq!(array("multipath", 0, 0, &[0], 1, 512), None);
    let raid10 = array("raid10", 4096, 0x102, &[0, 1, 2, 3], 4, 8192).unwrap();
    assert_eq!(places(&raid10), [(1, 4096, 4096), (3, 4096, 4096), (2, 4096, 4096), (4, 4096, 4096)]);
    assert!(raid10.part(Range::new(0, 8192)).is_some_and(|parts| parts.len() == 4));
}

/// Tables and superblocks may claim what no disk can hold. A layout gives up instead of counting
/// it.
#[test]
fn impossible_counts_give_no_layout() {
    assert_eq!(array("raid1", 0, 0, &[0, 1], u64::MAX, 8192), None);
    assert_eq!(array("raid5", 512, 2, &[3], 3, u64::MAX), None, "a member without a slot");
    assert_eq!(array("raid4", 512, 0, &[3], 3, u64::MAX), None);
    for line in [
        "mirror core 18446744073709551615 2 8:0 8 8:16 16",
        "mirror core 1 1024 18446744073709551615 8:0 8",
        "raid raid1 18446744073709551615 0 2 - 8:0 - 8:16",
        "raid raid1 3 0 region_size 4096 18446744073709551615 - 8:0 - 8:16",
        "striped 18446744073709551615 8 8:0 0 8:16 0",
    ] {
        assert!(!layouts_of(&inventory(vec![target(0, 1 << 20, line)])).contains_key("/dev/vg/lv"), "{line}");
    }
    let past_the_end = target(u64::MAX - 511, 1024, "linear 8:1 8");
    assert!(!layouts_of(&inventory(vec![past_the_end])).contains_key("/dev/vg/lv"));
}
