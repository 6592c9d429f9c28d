//! `--metadata` of btrfs and F2FS: the map's free space is exactly what is not in use. The oracle
//! for btrfs is `btrfs inspect-internal dump-tree` with a translation of chunks that does not use
//! our code. The oracle for F2FS is `dump.f2fs`.

use super::with_metadata::{self, pieces};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use virt_bmap_map::{Kind, ObjectName};
use virt_bmap_testutil::ranges::{Range, bytes, difference, normalise};
use virt_bmap_testutil::tools::needs;
use virt_bmap_testutil::{cache, guestfish, tools};

/// Bytes of a node of a tree, as mkfs.btrfs makes it.
const NODE: u64 = 16 << 10;
const STRIPE: u64 = 64 << 10;
const SIZE: u64 = 400 << 20;
/// Number of the files that are made first, each by 977 bytes larger than the one before.
const FILES: usize = 120;
const SUPERBLOCKS: [u64; 2] = [64 << 10, 64 << 20];

/// Makes a btrfs on one disk with two copies of its metadata, a btrfs on two disks with striped
/// data and mirrored metadata, and an F2FS with blocks that are reserved and have no place. The
/// second copy of a btrfs superblock lies at 64 MiB.
const SCRIPT: &str = r#"disk-create a.raw raw 400M
disk-create b.raw raw 400M
disk-create c.raw raw 400M
add a.raw format:raw
add b.raw format:raw
add c.raw format:raw
disk-create d.raw raw 200M
add d.raw format:raw
run
debug sh 'mkfs.f2fs -q /dev/sdd >&2'
debug sh 'mkfs.btrfs -q -f /dev/sda >&2'
debug sh 'mkfs.btrfs -q -f -d raid0 -m raid1 /dev/sdb /dev/sdc >&2'
mkmountpoint /one
mkmountpoint /two
mount /dev/sda /one
mount /dev/sdb /two
mkmountpoint /three
mount /dev/sdd /three
tar-in some.tar /one
tar-in some.tar /two
tar-in some.tar /three
debug sh 'cd /sysroot; for d in one two; do dd if=/dev/zero of=$d/big bs=1M count=50 2>/dev/null; sync; rm $d/f1*; btrfs -q subvolume create $d/sub; dd if=/dev/zero of=$d/sub/more bs=1M count=9 2>/dev/null; dd if=/dev/zero of=$d/big bs=1M count=1 seek=7 conv=notrunc 2>/dev/null; setfattr -n user.big -v $(printf %0800d 2) $d/f2; done; sync'
debug sh 'cd /sysroot/three; sync; rm f1*; dd if=/dev/zero of=big bs=1M count=20 2>/dev/null; mkdir d; ln -s $(printf %0900d 7) link; for f in some more; do fallocate -n -l 300000 $f; done; sync'
umount-all
shutdown
"#;

#[test]
fn what_is_not_in_use_is_free() {
    needs!("guestfish", "btrfs", "dump.f2fs");
    let dir = cache::directory("metadata-free", &cache::key((SCRIPT, FILES)), |dir| {
        // One program in the appliance makes all files, since starting one takes long there.
        let tree = dir.join("tree");
        fs::create_dir(&tree).unwrap();
        let names: Vec<PathBuf> = (1..=FILES).map(|number| format!("f{number}").into()).collect();
        for (number, name) in (1..).zip(&names) {
            fs::write(tree.join(name), vec![number as u8; number * 977]).unwrap();
        }
        guestfish::tar(&dir.join("some.tar"), &tree, &names);
        guestfish::run(dir, SCRIPT);
    });
    let disks = ["a.raw", "b.raw", "c.raw", "d.raw"].map(|name| dir.join(name));
    let (run, map) = with_metadata::map(&disks, &[]);
    run.assert_code(0);

    for (device, first, members) in [("/dev/sda", 1, &disks[..1]), ("/dev/sdb", 2, &disks[1..3])] {
        let chunks = chunks(members);
        let superblocks: Vec<Range> = SUPERBLOCKS.map(|at| at..at + 4096).into();
        for (member, (used, never)) in used(&chunks, members).iter().zip(never(&chunks, members)).enumerate()
        {
            let disk = first + member as u16;
            let on = |kind, path: &[u8]| pieces(&map, disk, &ObjectName::path(kind, device.as_bytes(), path));
            assert_eq!(on(Kind::Metadata, b"[superblocks]"), superblocks, "disk {disk}");
            let taken =
                normalise([0..1 << 20].into_iter().chain(superblocks.clone()).chain(used.iter().cloned()));
            let free = difference(&difference(&[0..SIZE], &taken), &never);
            assert!(bytes(&free) > 100 << 20 && bytes(used) > 25 << 20, "{free:?}");
            assert_eq!(on(Kind::Free, b""), free, "disk {disk}");
            // All used ranges have a name.
            let objects = map.objects().filter(|object| {
                !matches!(object.kind(), Kind::Free | Kind::Disk) && object.name().device == device.as_bytes()
            });
            let known = objects.flat_map(|object| pieces(&map, disk, &object.name()));
            let known = normalise(known);
            assert_eq!(difference(used, &known), [], "disk {disk}");
            assert_eq!(difference(&difference(&[0..SIZE], &free), &known), [], "disk {disk}");
        }
    }
    let on = |kind, path: &[u8]| pieces(&map, 4, &ObjectName::path(kind, b"/dev/sdd", path));
    let free = free_of_f2fs(&disks[3], on(Kind::Metadata, b"[segment summary area]")[0].end);
    assert!(free.len() > 10, "{free:?}");
    assert_eq!(on(Kind::Free, b""), free);
    let objects = map.objects().filter(|object| !matches!(object.kind(), Kind::Free | Kind::Disk));
    let known = normalise(objects.flat_map(|object| pieces(&map, 4, &object.name())));
    let all = 0..free.last().unwrap().end;
    assert_eq!(difference(&difference(&[all], &free), &known), []);

    // The disk has the magic number of btrfs where the map has the superblock's second copy.
    let mut magic = [0; 8];
    File::open(&disks[2]).unwrap().read_exact_at(&mut magic, (64 << 20) + 64).unwrap();
    assert_eq!(&magic, b"_BHRfS_M");
    let bytes_of = |device: &str| {
        map.header().filesystems.iter().find(|f| f.device == device.as_bytes()).unwrap().free_mapped.unwrap()
    };
    assert!(bytes_of("/dev/sda") > 100 << 20 && bytes_of("/dev/sdb") > 200 << 20);
}

/// A chunk of btrfs: its range in the address space, and for each stripe the number of the device,
/// counted from 1, and the offset there.
struct Chunk {
    start: u64,
    length: u64,
    is_striped: bool,
    stripes: Vec<(usize, u64)>,
}

fn chunks(members: &[PathBuf]) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> = Vec::new();
    for line in tree("chunk", members).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["item", _, "key", "(FIRST_CHUNK_TREE", "CHUNK_ITEM", at, ..] => {
                let start = at.trim_end_matches(')').parse().unwrap();
                chunks.push(Chunk { start, length: 0, is_striped: false, stripes: Vec::new() });
            }
            ["length", length, "owner", .., kind] => {
                let chunk = chunks.last_mut().unwrap();
                (chunk.length, chunk.is_striped) = (length.parse().unwrap(), kind.contains("RAID0"));
            }
            ["stripe", _, "devid", device, "offset", at] => {
                chunks.last_mut().unwrap().stripes.push((device.parse().unwrap(), at.parse().unwrap()));
            }
            _ => {}
        }
    }
    chunks
}

/// For each device, the ranges that btrfs never uses: those that have the same address as a
/// superblock of this or another device.
fn never(chunks: &[Chunk], members: &[PathBuf]) -> Vec<Vec<Range>> {
    let mut never = vec![Vec::new(); members.len()];
    for chunk in chunks.iter().filter(|chunk| !chunk.is_striped) {
        for at in chunk.stripes.iter().flat_map(|(_, offset)| SUPERBLOCKS.map(|at| at.wrapping_sub(*offset)))
        {
            for (device, offset) in chunk.stripes.iter().filter(|_| at < chunk.length) {
                never[device - 1].push(offset + at..offset + at + 4096);
            }
        }
    }
    never.into_iter().map(normalise).collect()
}

/// For each device, the ranges that extents use.
fn used(chunks: &[Chunk], members: &[PathBuf]) -> Vec<Vec<Range>> {
    let mut used = vec![Vec::new(); members.len()];
    for line in tree("extent", members).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["item", _, "key", start, kind, rest, ..] = words[..] else { continue };
        let length = match kind {
            "EXTENT_ITEM" => rest.trim_end_matches(')').parse().unwrap(),
            "METADATA_ITEM" => NODE,
            _ => continue,
        };
        let start: u64 = start.trim_start_matches('(').parse().unwrap();
        let chunk = chunks.iter().find(|c| (c.start..c.start + c.length).contains(&start)).unwrap();
        for at in (start - chunk.start..start - chunk.start + length).step_by(4096) {
            if chunk.is_striped {
                let (stripe, count) = (at / STRIPE, chunk.stripes.len() as u64);
                let (device, offset) = chunk.stripes[(stripe % count) as usize];
                let at = offset + stripe / count * STRIPE + at % STRIPE;
                used[device - 1].push(at..at + 4096);
            } else {
                for (device, offset) in &chunk.stripes {
                    used[device - 1].push(offset + at..offset + at + 4096);
                }
            }
        }
    }
    used.into_iter().map(normalise).collect()
}

fn tree(name: &str, members: &[PathBuf]) -> String {
    let args = ["inspect-internal", "dump-tree", "--noscan", "-t", name].map(OsStr::new);
    let text = tools::run("btrfs", args.into_iter().chain(members.iter().map(|member| member.as_os_str())));
    String::from_utf8(text).unwrap()
}

/// Free space according to the segment table of F2FS. The first segment begins at `main`.
fn free_of_f2fs(disk: &Path, main: u64) -> Vec<Range> {
    const SEGMENT: u64 = 2 << 20;
    let dir = tempfile::tempdir().unwrap();
    tools::output(tools::command("dump.f2fs").args(["-s", "0~-1"]).arg(disk).current_dir(dir.path()));
    let text = std::fs::read_to_string(dir.path().join("dump_sit")).unwrap();
    let (mut free, mut at) = (Vec::new(), main);
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("segno:") {
            let words: Vec<&str> = rest.split_whitespace().collect();
            at = main + words[0].parse::<u64>().unwrap() * SEGMENT;
            // dump.f2fs prints no bits for a segment without valid blocks.
            free.extend((words[1..3] == ["vblocks:", "0"]).then_some(at..at + SEGMENT));
            continue;
        }
        for byte in line.split_whitespace().map_while(|byte| u8::from_str_radix(byte, 16).ok()) {
            for bit in (0..8).rev() {
                free.extend((byte >> bit & 1 == 0).then_some(at..at + 4096));
                at += 4096;
            }
        }
    }
    normalise(free)
}
