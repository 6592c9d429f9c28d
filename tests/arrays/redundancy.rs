//! Copies and parity are what the map says. The bytes of the images show this, and what is left of
//! a file after copies were corrupted.
//!
//! One guest has arrays of each level, made by md and by LVM, each with a `/file`. The members of
//! an array lie at the same offset on each of its disks. Free space is filled with noise, so that
//! parity does not happen to be a copy of data.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use virt_bmap_testutil::cache;
use virt_bmap_testutil::layered::{self, pattern};
use virt_bmap_testutil::mapped::{CORRUPT, Mapped, Piece};
use virt_bmap_testutil::tools::{self, needs};

const MIB: u64 = 1 << 20;
/// The size of each partition in MiB. Each member is one partition. The members of an array are the
/// partitions with the array's number on several disks.
const PART: u64 = 8;
const DISKS: [(u64, &[u64]); 5] = [(PART * 10 + 2, &[PART; 10]); 5];

/// Bytes of each file: several rows of each array, and not a whole number of blocks.
const SIZE: usize = 1500 * 1024 + 700;
const BLOCK: u64 = 4096;

/// An array of the guest.
struct Array {
    /// The options for `mdadm` or `lvcreate`.
    how: &'static str,
    by: By,
    disks: usize,
    redundancy: Redundancy,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Md,
    Lvm,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Redundancy {
    /// Each disk has all data.
    Mirror,
    /// P is the sum of the data of a row.
    P,
    /// As `P`. In addition, Q is the sum of the data, each multiplied by a power of two. md counts
    /// the data of a row from the member behind Q.
    PQ,
    /// As `PQ`, but the members are counted from the first one, and P and Q are counted too. DDF's
    /// layouts do this, and LVM's layout is one of them (`raid6_idx_to_slot` in
    /// `drivers/md/raid5.c`).
    PQFromFirst,
}

use By::{Lvm, Md};
use Redundancy::{Mirror, P, PQ, PQFromFirst};

const fn array(how: &'static str, by: By, disks: usize, redundancy: Redundancy) -> Array {
    Array { how, by, disks, redundancy }
}

const ARRAYS: [Array; 10] = [
    array("--level=1", Md, 2, Mirror),
    array("--level=4 --chunk=64", Md, 3, P),
    array("--level=5 --chunk=64", Md, 4, P),
    array("--level=5 --chunk=16 --layout=right-asymmetric", Md, 3, P),
    array("--level=6 --chunk=64", Md, 5, PQ),
    array("--level=6 --chunk=16 --layout=left-asymmetric", Md, 4, PQ),
    array("--level=6 --chunk=16 --layout=right-symmetric", Md, 5, PQ),
    array("--type raid1 -m 1 -l 4", Lvm, 2, Mirror),
    array("--type raid5 -i 2 -l 8", Lvm, 3, P),
    array("--type raid6 -i 3 -l 12", Lvm, 5, PQFromFirst),
];

impl Array {
    fn device(&self, number: usize) -> String {
        match self.by {
            Md => format!("/dev/md{number}"),
            Lvm => format!("/dev/vg{number}/lv"),
        }
    }

    /// The name of the array's file in the map.
    fn file(&self, number: usize) -> String {
        format!("f {} /file", self.device(number))
    }

    /// How many blocks of parity each row has.
    fn parities(&self) -> usize {
        match self.redundancy {
            Mirror => 0,
            P => 1,
            PQ | PQFromFirst => 2,
        }
    }
}

/// The arrays with their numbers. The number is also the number of the array's file.
fn arrays() -> impl Iterator<Item = (usize, &'static Array)> {
    (1..).zip(&ARRAYS)
}

fn script() -> String {
    let mut s = String::from(
        "synced() { for i in $(seq 300); do [ \"$(lvs --noheadings -o sync_percent $1 | tr -d ' ')\" = 100.00 ] && return; sleep 0.2; done; false; }\n",
    );
    for (number, array) in arrays() {
        let members: Vec<String> =
            (1..=array.disks).map(|disk| format!("{}{number}", layered::device(disk))).collect();
        let (members, count, how) = (members.join(" "), array.disks, array.how);
        let device = match array.by {
            Md => format!("/dev/md/{number}"),
            Lvm => array.device(number),
        };
        match array.by {
            Md => writeln!(
                s,
                "mdadm --create {device} --run --quiet --metadata=1.2 --data-offset=1024 --homehost=any --assume-clean \
                 --bitmap=none {how} --raid-devices={count} {members}"
            ),
            Lvm => writeln!(
                s,
                "pvcreate -q {members} >/dev/null\nvgcreate -q -s 1M vg{number} {members}\n\
                 lvcreate -q -y {how} -n lv vg{number} {members} >/dev/null\nsynced vg{number}/lv"
            ),
        }
        .unwrap();
        if array.redundancy != Mirror {
            writeln!(s, "dd status=none if=/dev/urandom of={device} bs=1M 2>/dev/null || true").unwrap();
        }
        s.push_str(&layered::fill(&device, "mkfs.ext4 -q -b 4096 -E nodiscard", number, SIZE));
        writeln!(s, "umount /mnt/{number}").unwrap();
        match array.by {
            Md => writeln!(s, "mdadm --stop --quiet {device}"),
            Lvm => writeln!(s, "vgchange -q -an vg{number} >/dev/null"),
        }
        .unwrap();
    }
    s
}

fn disks() -> Vec<PathBuf> {
    let key = cache::key((script(), DISKS, SIZE, layered::SOURCE));
    let dir = cache::directory("redundancy", &key, |dir| {
        let files: Vec<Vec<u8>> = arrays().map(|(number, _)| content(number)).collect();
        layered::make(dir, &DISKS, &files, &script());
    });
    (1..=DISKS.len()).map(|number| dir.join(format!("{number}.raw"))).collect()
}

fn content(number: usize) -> Vec<u8> {
    pattern(number as u32, SIZE)
}

fn map() -> &'static Mapped {
    static MAP: OnceLock<Mapped> = OnceLock::new();
    MAP.get_or_init(|| Mapped::of(&disks(), &[]))
}

#[test]
fn every_copy_is_the_file() {
    needs!("guestfish", "sfdisk");
    let map = map();
    assert_eq!(map.code, 0, "{}", map.stderr);
    for (number, array) in arrays() {
        let object = array.file(number);
        let copies = if array.redundancy == Mirror { array.disks as u64 } else { 1 };
        for copy in 0..copies {
            assert!(map.file(&object, copy, SIZE) == content(number), "{object}, copy {copy}");
        }
        let is_known = |piece: &Piece| piece.is_parity || piece.copy < copies;
        assert!(map.pieces(&object).iter().all(is_known), "{object}");
        assert!(map.objects[&object].get("marks").is_none(), "{object}: {}", map.objects[&object]["marks"]);
        // The text map cannot distinguish parity from data, so it lists only data.
        let ending = format!(" {object}");
        let lines = map.text.lines().filter_map(|line| line.strip_suffix(ending.as_str()));
        let bytes = |line: &str| {
            let hex = |word: &str| u64::from_str_radix(word, 16).unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            hex(words[2]) - hex(words[1])
        };
        assert_eq!(lines.map(bytes).sum::<u64>(), copies * (SIZE as u64).next_multiple_of(BLOCK), "{object}");
    }
}

/// Twice `x` in the field of 256 elements that RAID 6 computes in (H. P. Anvin, "The mathematics of
/// RAID-6").
fn twice(x: u8) -> u8 {
    (x << 1) ^ if x & 0x80 == 0 { 0 } else { 0x1d }
}

/// P and Q of a row with `data`.
fn parity(data: &[Vec<u8>]) -> [Vec<u8>; 2] {
    let [mut p, mut q] = [0, 1].map(|_| vec![0; BLOCK as usize]);
    // Horner's method: the first block is multiplied by the lowest power.
    for block in data.iter().rev() {
        for ((p, q), byte) in p.iter_mut().zip(&mut q).zip(block) {
            *p ^= byte;
            *q = twice(*q) ^ byte;
        }
    }
    [p, q]
}

/// The disks of the pieces that contain the offset `at` and for which `is_one` holds.
fn disks_at(pieces: &[Piece], at: u64, is_one: impl Fn(&Piece) -> bool) -> Vec<usize> {
    let here = pieces.iter().filter(|piece| (piece.start..piece.end).contains(&at) && is_one(piece));
    here.map(|piece| piece.disk).collect()
}

#[test]
fn parity_is_that_of_its_row() {
    needs!("guestfish", "sfdisk");
    let map = map();
    for (number, array) in arrays().filter(|(_, array)| array.redundancy != Mirror) {
        let object = array.file(number);
        let pieces = map.pieces(&object);
        let mut rows: Vec<u64> =
            pieces.iter().flat_map(|piece| (piece.start..piece.end).step_by(BLOCK as usize)).collect();
        rows.sort_unstable();
        rows.dedup();
        assert!(rows.len() as u64 >= SIZE as u64 / BLOCK / array.disks as u64, "{object}: {rows:?}");
        for at in rows {
            let on = |number: u64| disks_at(&pieces, at, |piece| piece.is_parity && piece.copy == number);
            let parities: Vec<usize> = (0..array.parities() as u64)
                .map(|number| {
                    let mut disks = on(number);
                    disks.dedup();
                    let [disk] = disks[..] else { panic!("{object}, {at:x}: parity {number} on {disks:?}") };
                    disk
                })
                .collect();
            let data = disks_at(&pieces, at, |piece| !piece.is_parity);
            assert!(!data.is_empty(), "{object}, {at:x}: parity of nothing");
            assert!(data.iter().all(|disk| !parities.contains(disk)), "{object}, {at:x}: data is parity");

            let begin = match array.redundancy {
                PQ => parities[1] % array.disks,
                Mirror | P | PQFromFirst => 0,
            };
            let row = (0..array.disks).map(|turn| (begin + turn) % array.disks + 1);
            let counts = |disk: &usize| array.redundancy == PQFromFirst || !parities.contains(disk);
            let block = |disk: usize| match parities.contains(&disk) {
                true => vec![0; BLOCK as usize],
                false => map.read(disk, at, BLOCK),
            };
            let blocks: Vec<Vec<u8>> = row.filter(counts).map(block).collect();
            for (disk, (right, name)) in parities.iter().zip(parity(&blocks).iter().zip(["P", "Q"])) {
                assert!(map.read(*disk, at, BLOCK) == *right, "{object}, {at:x}: disk {disk} has no {name}");
                assert!(right.iter().any(|byte| *byte != 0), "{object}, {at:x}: {name} shows nothing");
            }
        }
    }
}

/// Where the data of a mirror's leg begin on its disk: at the offset where `debugfs` finds the
/// file.
fn begins(disk: &Path, number: usize) -> u64 {
    let part = (1 + PART * (number as u64 - 1)) * MIB;
    let mut places = (part..part + PART * MIB).step_by(MIB as usize);
    places.find(|at| on_leg(disk, *at) == content(number)).expect("debugfs finds the file")
}

/// What `debugfs` reads from `/file` in the filesystem at offset `at` of one disk. The result is
/// empty if there is no such filesystem.
fn on_leg(disk: &Path, at: u64) -> Vec<u8> {
    let image = format!("{}?offset={at}", disk.display());
    tools::command("debugfs").args(["-R", "cat /file", &image]).output().unwrap().stdout
}

#[test]
fn a_file_is_lost_with_the_last_of_its_legs() {
    needs!("guestfish", "sfdisk", "debugfs");
    let map = map();
    for (number, array) in arrays().filter(|(_, array)| array.redundancy == Mirror) {
        let (object, content) = (array.file(number), content(number));
        let dir = tempfile::tempdir().unwrap();
        let legs = [0, 1].map(|leg| dir.path().join(format!("leg{leg}.raw")));
        let at = [0, 1].map(|leg| {
            virt_bmap_testutil::formats::copy(&map.images[leg], &legs[leg]);
            begins(&legs[leg], number)
        });
        let served = || [0, 1].map(|leg| on_leg(&legs[leg], at[leg]));
        for lost in [0, 1] {
            let copy = map.pieces(&object).into_iter().filter(|piece| piece.copy == lost as u64);
            let gone: Vec<usize> = copy
                .map(|piece| {
                    piece.corrupt(&legs[piece.disk - 1]);
                    piece.disk
                })
                .collect();
            assert!(gone.iter().all(|disk| *disk == lost + 1), "{object}: copy {lost} is on {gone:?}");
            let served = served();
            assert!(
                served[lost].iter().all(|byte| *byte == CORRUPT),
                "{object}: a part of leg {lost} is left"
            );
            assert_eq!(served.map(|served| served == content), [false, lost == 0], "{object}, after {lost}");
        }
    }
}
