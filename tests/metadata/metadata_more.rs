//! `--metadata` of HFS+, nilfs2, UDF and JFS. The map's free space is compared with what other
//! programs report, and with the patterns on the raw disks: it has no sector of a file that exists,
//! and every sector that is left of a deleted file.

use super::with_metadata;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use virt_bmap_map::{self as bmap, Kind, Map, ObjectName};
use virt_bmap_testutil::ranges::{Range, bytes, difference, intersection, normalise};
use virt_bmap_testutil::tools::needs;
use virt_bmap_testutil::{cache, guestfish, mastering, oracle_pattern, special, tools};

const MIB: u64 = 1 << 20;

/// The ids of the files that are written first, of which two thirds are deleted, and of those that
/// are written after that.
const FIRST: RangeInclusive<u32> = 1..=180;
const THEN: RangeInclusive<u32> = 500..=520;

const DISKS: [&str; 5] = ["hfsplus", "nilfs2", "udf", "udf-2k", "jfs"];

/// Makes the nilfs2 and the JFS, and fills all filesystems.
const SCRIPT: &str = r#"debug-upload {staged}/first.tar /tmp/first.tar 0600
debug-upload {staged}/then.tar /tmp/then.tar 0600
debug-upload {staged}/fill.sh /tmp/fill.sh 0700
debug sh 'mkfs.nilfs2 -q -f -B 16 /dev/sdb >&2 && mkfs.jfs -q /dev/sde >&2 && mkdir /t'
debug sh 'mount -t hfsplus /dev/sda /t && sh /tmp/fill.sh >&2'
debug sh 'mount -i -t nilfs2 /dev/sdb /t && sh /tmp/fill.sh >&2'
debug sh 'mount -t udf /dev/sdc /t && sh /tmp/fill.sh >&2'
debug sh 'mount -t udf /dev/sdd /t && sh /tmp/fill.sh >&2'
debug sh 'mount -t jfs /dev/sde /t && dd if=/dev/zero of=/t/big bs=1M count=40 2>&1 && sh /tmp/fill.sh >&2'
debug sh 'mount -i -t nilfs2 -o ro /dev/sdb /t && lssu -a /dev/sdb'
"#;

/// Writes and deletes files so that the free space is in many pieces.
const FILL: &str = "set -eu
cd /t
tar --no-same-owner -xf /tmp/first.tar
sync
for d in 0 1 2; do for i in $(seq $d 3 180); do case $d in 0) ;; *) rm -f d$((i % 7))/f$i ;; esac; done; sync; done
tar --no-same-owner -xf /tmp/then.tar
rm -f d*/f5?? d0/f3* big
sync
cd /
umount /t
";

#[test]
fn what_is_not_in_use_is_free() {
    needs!("guestfish", "tar", "xorriso", "blkls", "mkudffs", "udfinfo", "jfs_fsck");
    let sources = (SCRIPT, FILL, include_str!("metadata_more.rs"), mastering::SOURCE);
    let dir = cache::directory("metadata-more", &cache::key(sources), make);
    let disks = DISKS.map(|name| dir.join(format!("{name}.raw")));
    let (run, map) = with_metadata::map(&disks, &[]);
    run.assert_code(0);
    let views: Vec<View<'_>> =
        (1..).zip(&disks).map(|(disk, image)| View { map: &map, disk, image }).collect();
    hfsplus(&views[0]);
    nilfs2(&views[1]);
    for view in &views {
        view.is_as_the_disk_says();
    }
    udf(&views[2], 512);
    udf(&views[3], 2048);
    jfs(&views[4]);
    for view in [&views[0], &views[2], &views[3], &views[4]] {
        view.has_what_is_left_of_files();
    }
}

fn hfsplus(view: &View<'_>) {
    let free = view.free();
    let oracle = free_by_sleuthkit(view.image, 2048);
    assert_eq!(difference(&free, &oracle), [], "not free");
    assert_eq!(difference(&oracle, &free), [], "free");
    view.leaves_nothing_out(0..view.size());
    let bitmap = view.named("[allocation file]");
    assert_eq!(view.read(&bitmap[0])[0], 0xff, "the first blocks are in use");
    let headers = view.named("[volume headers]");
    assert_eq!(headers, [1024..1536, view.size() - 1024..view.size() - 512]);
    for name in ["[catalog file]", "[extents overflow file]"] {
        // The first node of a tree is its header node.
        assert_eq!(view.read(&view.named(name)[0])[8], 1, "{name}");
    }
}

/// The oracle for nilfs2 is the segment table that `lssu` lists. Segments without a flag are clean.
fn nilfs2(view: &View<'_>) {
    const SEGMENT: u64 = 16 * 4096;
    let said = fs::read_to_string(view.image.with_file_name("lssu")).unwrap();
    // The output of the mkfs programs precedes the table.
    let (_, table) = said.split_once("SEGNUM").unwrap();
    let lines = table.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [number, _, _, flags, _] = words[..] else { return None };
        Some((number.parse::<u64>().ok()?, flags))
    });
    let segments: Vec<(u64, &str)> = lines.collect();
    assert_eq!(segments.len() as u64, view.size() / SEGMENT - 1, "{said}");
    let clean = segments.iter().filter(|(_, flags)| *flags == "---");
    let clean = normalise(clean.map(|(number, _)| number * SEGMENT..(number + 1) * SEGMENT));
    assert_eq!(view.free(), clean);
    assert!(bytes(&clean) > 10 * MIB, "{clean:?}");
    view.leaves_nothing_out(0..segments.len() as u64 * SEGMENT);
    let superblocks = view.named("[superblocks]");
    assert_eq!(superblocks, [1024..2048, view.size() - 4096..view.size() - 3072]);
}

/// The oracle for UDF is `udfinfo`, which lists the parts of a volume and counts the free blocks.
/// The patterns show which blocks are free.
fn udf(view: &View<'_>, block: u64) {
    let size = format!("--blocksize={block}");
    let said = tools::run("udfinfo", [OsStr::new(&size), view.image.as_os_str()]);
    let said = String::from_utf8_lossy(&said).into_owned();
    let free = said.lines().find_map(|line| line.strip_prefix("freeblocks=")).unwrap();
    assert_eq!(bytes(&view.free()), free.parse::<u64>().unwrap() * block, "{said}");
    let parts = |kind: &str| {
        let places = said.lines().filter_map(|line| {
            let (place, named) = line.strip_prefix("start=")?.split_once(", type=")?;
            let (start, count) = place.split_once(", blocks=").unwrap();
            let (start, count): (u64, u64) = (start.parse().unwrap(), count.parse().unwrap());
            (named == kind).then_some(start * block..(start + count) * block)
        });
        normalise(places)
    };
    let partition = parts("PSPACE");
    assert_eq!(difference(&view.free(), &partition), []);
    view.leaves_nothing_out(0..view.size());
    assert_eq!(view.named("[volume recognition sequence]"), parts("VRS"));
    assert_eq!(view.named("[anchors]"), parts("ANCHOR"));
    let descriptors = normalise([parts("MVDS"), parts("RVDS")].concat());
    assert_eq!(view.named("[volume descriptors]"), descriptors);
    assert_eq!(difference(&parts("LVID"), &view.named("[integrity descriptors]")), []);
    // The tag of the space bitmap.
    assert_eq!(view.read(&view.named("[space bitmap]")[0])[..2], 264u16.to_le_bytes());
}

/// The oracle for JFS is `jfs_fsck`, which compares the block map with the files and counts the
/// free blocks. The patterns show which blocks are free.
fn jfs(view: &View<'_>) {
    const BLOCK: u64 = 4096;
    let said =
        tools::run("jfs_fsck", ["-n", "-v"].map(OsStr::new).into_iter().chain([view.image.as_os_str()]));
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.contains("Filesystem is clean."), "{said}");
    let number = |name: &str| -> u64 {
        let line = said.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{said}"));
        line.trim().parse().unwrap()
    };
    assert_eq!(bytes(&view.free()), number("Free block count:") * BLOCK, "{said}");
    let (log, work) = (view.named("[journal]"), view.named("[fsck work area]"));
    let end = number("Block count:") * BLOCK;
    // The volume ends with the fsck work area and the journal. The block map does not cover them.
    assert_eq!((work[0].end, log[0].end), (log[0].start, end));
    view.leaves_nothing_out(0..end);
    for superblock in view.named("[superblocks]") {
        assert!(view.read(&superblock).starts_with(b"JFS1"));
    }
    let map = view.named("[block allocation map]");
    // The block map begins with the number of blocks that it covers, and how many of them are free.
    let words = [work[0].start / BLOCK, number("Free block count:")].map(u64::to_le_bytes).concat();
    assert!(view.read(&map[0]).starts_with(&words));
    // The files use blocks of more than one page of the block map.
    let is_far = |places: &Vec<Range>| places.iter().any(|range| range.start > 8192 * BLOCK);
    assert!(view.patterns().iter().any(|(id, places)| view.has(*id) && is_far(places)));
}

fn free_by_sleuthkit(image: &Path, unit: u64) -> Vec<Range> {
    let text =
        tools::run("blkls", ["-l", "-f", "hfs"].map(OsStr::new).into_iter().chain([image.as_os_str()]));
    let text = String::from_utf8_lossy(&text).into_owned();
    let units = text.lines().filter_map(|line| line.strip_suffix("|f")?.parse::<u64>().ok());
    normalise(units.map(|n| n * unit..(n + 1) * unit))
}

/// One disk of the map, and its image.
struct View<'a> {
    map: &'a Map,
    disk: u16,
    image: &'a Path,
}

impl View<'_> {
    fn device(&self) -> String {
        format!("/dev/sd{}", char::from(b'a' + self.disk as u8 - 1))
    }

    fn pieces(&self, kind: Kind, path: &[u8]) -> Vec<Range> {
        with_metadata::pieces(self.map, self.disk, &ObjectName::path(kind, self.device().as_bytes(), path))
    }

    fn free(&self) -> Vec<Range> {
        self.pieces(Kind::Free, b"")
    }

    /// The ranges of a metadata object, which must exist.
    fn named(&self, name: &str) -> Vec<Range> {
        let found = self.pieces(Kind::Metadata, name.as_bytes());
        assert!(!found.is_empty(), "{}: no {name}", self.device());
        found
    }

    /// The ranges of all objects but the disk and free space.
    fn known(&self) -> Vec<Range> {
        let device = self.device();
        let is_known = |object: &bmap::Object<'_>| {
            !matches!(object.kind(), Kind::Free | Kind::Disk) && object.name().device == device.as_bytes()
        };
        let pieces = self.map.objects().filter(is_known).flat_map(bmap::Object::pieces);
        normalise(pieces.map(|piece| piece.range.start.0..piece.range.end.0))
    }

    /// Every byte of `all` must be free or belong to another object.
    fn leaves_nothing_out(&self, all: Range) {
        let rest = difference(&difference(&[all], &self.free()), &self.known());
        assert_eq!(rest, [], "{}", self.device());
    }

    fn size(&self) -> u64 {
        fs::metadata(self.image).unwrap().len()
    }

    fn read(&self, range: &Range) -> Vec<u8> {
        fs::read(self.image).unwrap()[range.start as usize..range.end as usize].to_vec()
    }

    /// Free space must have no byte of another object, and no sector of a file that exists.
    fn is_as_the_disk_says(&self) {
        let (device, free, known) = (self.device(), self.free(), self.known());
        eprintln!("{device}: {} bytes are free, in {} pieces", bytes(&free), free.len());
        assert_eq!(intersection(&free, &known), [], "{device}");
        let header = self.map.header().filesystems.iter().find(|f| f.device == device.as_bytes()).unwrap();
        assert_eq!(header.free_mapped, Some(bytes(&free)), "{device}");
        let mut there = 0;
        for (id, places) in self.patterns() {
            if self.has(id) {
                // Deleted files are checked elsewhere, since nilfs2 keeps their sectors.
                assert_eq!(intersection(&places, &free), [], "{device}: {}", name(id));
                there += 1;
            }
        }
        assert!(there > 50, "{device}: {there} files");
    }

    /// Free space must be in many pieces, and have all that is left of deleted files.
    fn has_what_is_left_of_files(&self) {
        let (device, free) = (self.device(), self.free());
        assert!(free.len() > 10, "{device}: {free:?}");
        let gone: Vec<_> = self.patterns().into_iter().filter(|(id, _)| !self.has(*id)).collect();
        for (id, places) in &gone {
            assert_eq!(difference(places, &free), [], "{device}: {}", name(*id));
        }
        let left = gone.iter().map(|(_, places)| bytes(places)).sum::<u64>();
        assert!(left > 100 << 10, "{device}: {left} bytes");
    }

    fn has(&self, id: u32) -> bool {
        let path = format!("/{}", name(id));
        self.map.find(ObjectName::path(Kind::File, self.device().as_bytes(), path.as_bytes())).is_some()
    }

    /// The sectors of each file, by the file's id, found by their patterns.
    fn patterns(&self) -> Vec<(u32, Vec<Range>)> {
        let found = oracle_pattern::scan(self.image);
        let range = |at: &u64| *at..*at + special::SECTOR as u64;
        let places = |sectors: BTreeMap<u32, Vec<u64>>| normalise(sectors.values().flatten().map(range));
        found.into_iter().map(|(id, sectors)| (id, places(sectors))).collect()
    }
}

fn name(id: u32) -> String {
    format!("d{}/f{id}", id % 7)
}

fn make(dir: &Path) {
    let staging = tempfile::tempdir().unwrap();
    let at = |name: &str| staging.path().join(name);
    archive(&at("first"), FIRST, |id| u64::from(id) * 977 % 30_000 + 600);
    archive(&at("then"), THEN, |id| u64::from(id) * 5_003 % 90_000);
    fs::write(at("fill.sh"), FILL).unwrap();
    fs::create_dir(at("tree")).unwrap();
    fs::write(at("tree/some"), "of before").unwrap();
    let disk = |name: &str| dir.join(format!("{name}.raw"));
    mastering::hfsplus_with_room(&at("tree"), &disk("hfsplus"), 24 * MIB);
    File::create(disk("nilfs2")).unwrap().set_len(40 * MIB).unwrap();
    mastering::udf(&disk("udf"), 24 * MIB, 512);
    mastering::udf(&disk("udf-2k"), 24 * MIB, 2048);
    File::create(disk("jfs")).unwrap().set_len(200 * MIB).unwrap();
    let add = DISKS.map(|name| format!("add {name}.raw format:raw\n")).concat();
    let script = SCRIPT.replace("{staged}", &staging.path().display().to_string());
    let said = guestfish::run(dir, &format!("{add}run\n{script}shutdown\n"));
    fs::write(dir.join("lssu"), said).unwrap();
}

/// Packs files with patterns into an archive.
fn archive(root: &Path, ids: RangeInclusive<u32>, size: impl Fn(u32) -> u64) {
    let files: Vec<PathBuf> = ids.clone().map(|id| name(id).into()).collect();
    for (id, file) in ids.zip(&files) {
        let sectors = size(id).div_ceil(special::SECTOR as u64) as u32;
        let mut content: Vec<u8> = (0..sectors).flat_map(|n| special::sector(id, n)).collect();
        content.truncate(size(id) as usize);
        fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
        fs::write(root.join(file), content).unwrap();
    }
    guestfish::tar(&root.with_extension("tar"), root, &files);
}
