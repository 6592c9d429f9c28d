//! NTFS as Windows leaves it: streams, files with the reparse points of others, sizes beyond what
//! was written, files with many names, records without a name, clusters of several sizes.
//!
//! One disk has three volumes that are filled alike. Each cluster of the map is compared with what
//! The Sleuth Kit's `istat` says of each record.

use super::with_metadata::{self, pieces};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use virt_bmap_map::{Cause, Kind, Map, Marks, ObjectName, PieceFlags, Warning};
use virt_bmap_testutil::layout::{self, Volume};
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::{cache, guestfish};

/// The volumes: device, bytes of a cluster.
const VOLUMES: [(&str, u64); 3] = [("/dev/sda1", 4096), ("/dev/sda2", 512), ("/dev/sda3", 65536)];

const SCRIPT: &str = r#"disk-create disk.raw raw 190M
add disk.raw format:raw
run
part-init /dev/sda gpt
part-add /dev/sda p 2048 124927
part-add /dev/sda p 124928 247807
part-add /dev/sda p 247808 382975
debug sh 'for d in 1,4096 2,512 3,65536; do mkntfs -q -Q -F -c ${d#*,} /dev/sda${d%,*}; done >&2'
mount-options compression /dev/sda1 /
upload fill.sh /fill.sh
debug sh 'bash -e /sysroot/fill.sh /sysroot >&2'
umount-all
mount /dev/sda2 /
upload fill.sh /fill.sh
debug sh 'bash -e /sysroot/fill.sh /sysroot >&2'
umount-all
mount /dev/sda3 /
upload fill.sh /fill.sh
debug sh 'bash -e /sysroot/fill.sh /sysroot >&2'
umount-all
shutdown
"#;

/// Fills a volume. A file is named after its content, so that `data` needs no more arguments.
pub(crate) const FILL: &str = r#"
cd "$1"
data() { head -c "$2" /dev/zero | tr '\0' "${1:0:1}" > "$1"; }
stream() { setfattr -n "user.$2" -v "0s$(head -c "$3" /dev/zero | tr '\0' s | base64 -w0)" "$1"; }
reparse() { setfattr -n system.ntfs_reparse_data -v "$2" "$1"; }
data plain 300000
mkdir many compressed cloud cloud/deeper
for i in $(seq 1 300); do echo "$i" > "many/a rather long name of file number $i"; done
for i in $(seq 1 25); do data "$i-between" 3000; head -c 15000 /dev/zero >> pieces; done
rm *-between
data fragmented 400000
stream pieces big 60000
stream pieces small 20
stream many onDir 30000
data linked 5000
stream linked extra 9000
for i in $(seq 1 70); do ln linked "a long name of the file with many names $i"; done
truncate -s 3000000 sparse
printf middle | dd of=sparse bs=1 seek=1500000 conv=notrunc status=none
truncate -s 5000000 hole
setfattr -n system.ntfs_attrib_be -v 0x00000810 compressed
data compressed/file 400000
base64 -w0 < /bin/sh | head -c 300001 > compressed/hardly
data half 2000000
data secret 50000
truncate -s 300000 wof.exe
stream wof.exe WofCompressedData 50000
reparse wof.exe 0x170000801000000001000000020000000100000000000000
data onedrive 40000
reparse onedrive 0x1a000090040000000a0b0c0d
data cloud/inside 10000
data cloud/deeper/file 6000
stream cloud/deeper/file below 7000
for i in $(seq 1 60); do echo "$i" > "cloud/a rather long name of file number $i"; done
reparse cloud 0x1a000090040000000a0b0c0d
echo > lxsym
reparse lxsym 0x1d0000a00900000002000000706c61696e
echo > appexec
reparse appexec 0x1b000080040000000a0b0c0d
{ printf 'IntxLNK\001'; head -c 4000 /dev/zero | tr '\0' a; } > interix
stream interix beside 5000
setfattr -n system.ntfs_attrib_be -v 0x00000004 interix
data first 4000
data twice 4000
{ printf hibr; head -c 8000 /dev/zero; } > hiberfil.sys
data 'Grüße 🦀' 5000
data gone 20000
sync
rm gone
"#;

#[test]
fn every_cluster_has_the_owner_that_istat_names() {
    needs!("guestfish", "mkntfs", "istat", "fsstat");
    let guest = Guest::get();
    let (run, map) = with_metadata::map(std::slice::from_ref(&guest.disk), &[]);
    // The patches of `make` leave the books uneven.
    run.assert_code(3);
    for (volume, (device, cluster)) in guest.volumes.iter().zip(VOLUMES) {
        let flat = guest.flat(device);
        let view = View { map: &map, volume, cluster, flat };
        view.clusters();
        view.names();
    }
    warnings_are_those_of_the_volumes(&map);
}

/// The patches of [`make`] let a record be in use whose clusters are free. They make the second
/// volume unclean, and let two of its files claim a cluster, so that nothing has the other one.
fn warnings_are_those_of_the_volumes(map: &Map) {
    let mut expected = BTreeSet::new();
    for (device, cluster) in VOLUMES {
        let mut add = |cause| expected.insert(Warning::on_device(device, cause));
        add(Cause::Hibernated);
        add(Cause::ClaimedFree { ranges: 1, bytes: 20_000u64.next_multiple_of(cluster) });
        if device == "/dev/sda2" {
            add(Cause::NotUnmounted);
            let example = ["/first", "/twice"].map(str::to_owned);
            add(Cause::ClaimedTwice { ranges: 1, bytes: 4096, example });
            add(Cause::Unexplained { ranges: 1, bytes: 4096 });
        }
    }
    assert_eq!(map.header().warnings.iter().cloned().collect::<BTreeSet<_>>(), expected);
}

struct Guest {
    disk: PathBuf,
    volumes: Vec<Volume>,
}

impl Guest {
    fn get() -> Self {
        let dir = cache::directory("ntfs", &cache::key((SCRIPT, FILL, 2)), make);
        let disk = dir.join("disk.raw");
        let volumes = layout::partitions(&disk, "/dev/sda");
        Self { disk, volumes }
    }

    fn flat(&self, device: &str) -> PathBuf {
        self.disk.with_file_name(device.trim_start_matches("/dev/"))
    }
}

fn make(dir: &Path) {
    fs::write(dir.join("fill.sh"), FILL).unwrap();
    guestfish::run(dir, SCRIPT);
    let disk = dir.join("disk.raw");
    let file = File::options().read(true).write(true).open(&disk).unwrap();
    for volume in layout::partitions(&disk, "/dev/sda") {
        let flat = dir.join(volume.device.trim_start_matches("/dev/"));
        volume.extract(&disk, &flat);
        let bytes = fs::read(&flat).unwrap();
        let start = volume.on_disk()[0].start;
        let patch = |at: usize, bytes: &[u8]| file.write_all_at(bytes, start + at as u64).unwrap();
        let record = |name: &str| records(&bytes, name)[0];
        // `initialized_size`
        patch(data(&bytes, record("half")) + 56, &1_000_000u64.to_le_bytes());
        // Encrypted.
        patch(data(&bytes, record("secret")) + 12, &0x4000u16.to_le_bytes());
        // In use, again.
        patch(record("gone") + 0x16, &[1]);
        if volume.device == "/dev/sda2" {
            let (first, twice) = (data(&bytes, record("first")), data(&bytes, record("twice")));
            patch(twice + 64, &bytes[first + 64..first + 72]);
            // `VOLUME_IS_DIRTY`
            // The mirror has the first records, too, and ntfs-3g compares both.
            for record in records(&bytes, "$Volume") {
                let information = attribute(&bytes, record, 0x70);
                patch(information + usize::from(bytes[information + 20]) + 10, &[1]);
            }
        }
        fs::remove_file(&flat).unwrap();
        volume.extract(&disk, &flat);
    }
}

/// Where the records of the file with this name begin.
fn records(volume: &[u8], name: &str) -> Vec<usize> {
    let utf16: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let holds = |at: &usize| {
        volume[*at..].starts_with(b"FILE")
            && std::iter::successors(Some(*at + 0x38), |at| next(volume, *at)).any(|at| {
                let value = at + usize::from(volume[at + 20]);
                let is_name = volume[at] == 0x30 && usize::from(volume[value + 0x40]) * 2 == utf16.len();
                is_name && volume[value + 0x42..].starts_with(&utf16)
            })
    };
    let records: Vec<usize> = (0..volume.len() - 1024).step_by(512).filter(holds).collect();
    assert!(!records.is_empty(), "no record of {name:?}");
    records
}

/// The attribute after another one.
fn next(volume: &[u8], at: usize) -> Option<usize> {
    let length = u32::from_le_bytes(*volume[at + 4..].first_chunk().unwrap()) as usize;
    let next = at + length;
    (length > 0 && volume[next..next + 4] != [0xff; 4]).then_some(next)
}

/// Where an attribute of a record begins.
fn attribute(volume: &[u8], record: usize, kind: u8) -> usize {
    let first = record + usize::from(volume[record + 0x14]);
    std::iter::successors(Some(first), |at| next(volume, *at)).find(|at| volume[*at] == kind).unwrap()
}

fn data(volume: &[u8], record: usize) -> usize {
    attribute(volume, record, 0x80)
}

/// The map of one volume, and an oracle.
pub(crate) struct View<'a> {
    pub(crate) map: &'a Map,
    pub(crate) volume: &'a Volume,
    pub(crate) cluster: u64,
    pub(crate) flat: PathBuf,
}

impl View<'_> {
    /// Compares the owners of all clusters.
    pub(crate) fn clusters(&self) {
        let device = &self.volume.device;
        let start = self.volume.on_disk()[0].start;
        let end = self.volume.on_disk()[0].end;
        let cluster_of = |offset: u64| (offset - start) / self.cluster;
        let mut owners: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        let mut unwritten = BTreeSet::new();
        let mut free = BTreeSet::new();
        for object in self.map.objects().filter(|object| object.name().device == device.as_bytes()) {
            let name = object.name();
            // The clusters that a patch takes from `/twice` are in use, and nobody's.
            let is_lost = name.path == b"[allocated]" && device == "/dev/sda2";
            assert!(is_lost || !matches!(name.path, b"[metadata]" | b"[allocated]"), "{name}");
            assert!(!is_lost || object.pieces().map(|piece| piece.range.len()).sum::<u64>() == 4096);
            assert!(!object.attributes().marks.contains(Marks::INEXACT), "{name}");
            if matches!(name.kind, Kind::Partition | Kind::Disk) || name.path == b"[boot sector copy]" {
                continue;
            }
            for piece in object.pieces().filter(|piece| !piece.role.flags.contains(PieceFlags::INLINE)) {
                let last = cluster_of(piece.range.end.0 - 1);
                for cluster in cluster_of(piece.range.start.0)..=last {
                    if name.kind == Kind::Free || is_lost {
                        free.insert(cluster);
                        continue;
                    }
                    owners.entry(cluster).or_default().insert(object.attributes().inode.unwrap_or(0));
                    if piece.role.flags.contains(PieceFlags::UNWRITTEN) {
                        unwritten.insert(cluster);
                    }
                }
            }
        }
        let expected = self.istat();
        for (cluster, records) in &expected {
            assert_eq!(owners.get(cluster), Some(records), "{device} cluster {cluster}");
        }
        for (cluster, records) in &owners {
            // istat does not list what lies beyond the initialized size; `$MFT` has such clusters.
            let is_known = expected.contains_key(cluster) || unwritten.contains(cluster);
            assert!(is_known, "{device} cluster {cluster} of {records:?}");
            assert!(!free.contains(cluster), "{device} cluster {cluster} of {records:?} is free");
        }
        for cluster in 0..(end - start - 512) / self.cluster {
            assert!(owners.contains_key(&cluster) || free.contains(&cluster), "{device} cluster {cluster}");
        }
    }

    fn names(&self) {
        let device = self.volume.device.as_bytes();
        let bytes = |kind, path: &str| {
            let name = ObjectName::path(kind, device, path.as_bytes());
            let object = self.map.find(name).unwrap_or_else(|| panic!("no {name}"));
            let ranges = pieces(self.map, 1, &name);
            (ranges.iter().map(|range| range.end - range.start).sum::<u64>(), object.attributes().marks)
        };
        let whole = |size: u64| size.next_multiple_of(self.cluster);
        for (path, size) in [
            ("/plain", 300_000),
            ("/pieces:big", 60_000),
            ("/many:onDir", 30_000),
            ("/linked", 5000),
            ("/linked:extra", 9000),
            ("/a long name of the file with many names 7", 5000),
            ("/a long name of the file with many names 7:extra", 9000),
            ("/wof.exe:WofCompressedData", 50_000),
            ("/onedrive", 40_000),
            ("/cloud/inside", 10_000),
            ("/cloud/deeper/file", 6000),
            ("/cloud/deeper/file:below", 7000),
            ("/interix", 4008),
            ("/interix:beside", 5000),
            ("/half", 2_000_000),
            ("/secret", 50_000),
            ("/Grüße 🦀", 5000),
        ] {
            assert_eq!(bytes(Kind::File, path).0, whole(size), "{path}");
        }
        let marks = |kind, path| bytes(kind, path).1;
        assert!(marks(Kind::File, "/pieces:small").contains(Marks::INLINE));
        assert!(marks(Kind::File, "/wof.exe:WofCompressedData").contains(Marks::ENCODED));
        assert!(marks(Kind::File, "/half").contains(Marks::PREALLOCATED));
        assert!(marks(Kind::File, "/secret").contains(Marks::ENCRYPTED | Marks::ENCODED));
        for (kind, path, tag) in [
            (Kind::File, "/wof.exe", "0x80000017 WOF"),
            (Kind::File, "/onedrive", "0x9000001a CLOUD"),
            (Kind::File, "/appexec", "0x8000001b APPEXECLINK"),
            (Kind::Directory, "/cloud", "0x9000001a CLOUD"),
            (Kind::Symlink, "/lxsym", "0xa000001d LX_SYMLINK"),
        ] {
            assert!(marks(kind, path).contains(Marks::REPARSE_POINT), "{path}");
            let name = ObjectName::path(kind, device, path.as_bytes());
            let known = self.map.find(name).unwrap().attributes();
            assert_eq!(known.reparse.map(|tag| tag.to_string()).as_deref(), Some(tag), "{path}");
        }
        assert!(bytes(Kind::Directory, "/many").0 > 0 && bytes(Kind::Directory, "/cloud").0 > 0);
        for path in ["/$Secure:$SDS", "/$MFT [bitmap]", "/linked [attribute list]"] {
            assert!(bytes(Kind::Metadata, path).0 > 0, "{path}");
        }
        let orphans = self.map.objects().filter(|object| {
            object.name().device == device && object.name().path.starts_with(b"[orphan inode ")
        });
        let orphans: Vec<_> = orphans.collect();
        assert_eq!(orphans.len(), 1);
        assert_eq!(
            pieces(self.map, 1, &orphans[0].name()).iter().map(|r| r.end - r.start).sum::<u64>(),
            whole(20_000)
        );

        // What was not written is known to the page.
        let half = self.map.find(ObjectName::path(Kind::File, device, b"/half")).unwrap();
        let (unwritten, written): (Vec<_>, Vec<_>) =
            half.pieces().partition(|piece| piece.role.flags.contains(PieceFlags::UNWRITTEN));
        let written: u64 = written.iter().map(|piece| piece.range.len()).sum();
        assert_eq!(written, 1_000_000u64.next_multiple_of(self.cluster.min(4096)));
        assert!(unwritten.iter().all(|piece| piece.file_offset.is_some_and(|offset| offset.0 >= written)));
    }

    /// The records that own each cluster.
    fn istat(&self) -> BTreeMap<u64, BTreeSet<u64>> {
        let mut owners: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        let said =
            String::from_utf8(tools::run("fsstat", ["-f", "ntfs", self.flat.to_str().unwrap()])).unwrap();
        let range = said.lines().find_map(|line| line.strip_prefix("Range: 0 - ")).unwrap();
        let last: u64 = range.trim().parse().unwrap();
        // The last number is that of a directory which only The Sleuth Kit has.
        for number in 0..last {
            let output =
                tools::command("istat").args(["-f", "ntfs"]).arg(&self.flat).arg(number.to_string()).output();
            let said = String::from_utf8_lossy(&output.unwrap().stdout).into_owned();
            if !said.contains("\nAllocated") {
                continue;
            }
            let mut is_resident = true;
            for line in said.lines().skip_while(|line| !line.starts_with("Type: ")) {
                if line.starts_with("Type: ") {
                    is_resident = !line.contains("Non-Resident");
                } else if !is_resident {
                    let clusters = line.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
                    for cluster in clusters.filter(|cluster| *cluster > 0 || number == 7) {
                        owners.entry(cluster).or_default().insert(number);
                    }
                }
            }
        }
        owners
    }
}
