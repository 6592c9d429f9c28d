//! `--metadata`: how much of a used disk has a name, and whether the map's free space is really
//! unused.
//!
//! One guest of three disks has all kinds of metadata. It is mapped once.

use super::with_metadata;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use virt_bmap_map::{self as bmap, Kind, Map, Marks, ObjectName, PieceFlags};
use virt_bmap_testutil::layout::{self, Volume};
use virt_bmap_testutil::ranges::{Range, bytes, difference, intersection, normalise};
use virt_bmap_testutil::sandbox::Sandbox;
use virt_bmap_testutil::tools::needs;
use virt_bmap_testutil::{cache, guestfish, tools};

/// The object for allocated bytes that are not read and have no name. It does not count as a name.
const ALLOCATED: &[u8] = b"[allocated]";

#[test]
fn what_is_used_has_a_name_and_what_is_free_is_free() {
    needs!("guestfish", "sfdisk", "tar", "dumpe2fs", "debugfs", "xfs_db", "blkls", "mmls");
    let guest = Guest::get();
    let (run, map) = with_metadata::map(&guest.disks, &["-o", "guest.bmap"]);
    // Only the encrypted partition cannot be examined.
    assert_eq!(run.status.code(), Some(3), "{}", run.stderr);
    assert!(run.stderr.lines().all(|line| line.contains("/dev/sda9: ")), "{}", run.stderr);
    let view = View { map: &map, guest: &guest };

    // ext4 with small blocks, ext4 with inline data, XFS, FAT, NTFS.
    for (device, least) in [
        ("/dev/sda1", 0.99),
        ("/dev/sda2", 0.99),
        ("/dev/sda3", 0.99),
        ("/dev/sda5", 0.99),
        ("/dev/sda6", 0.99),
    ] {
        let oracle = guest.free(device);
        let ours = view.free(device);
        // XFS reserves a few free blocks for the trees that list free space.
        let kept = view.ranges(Kind::Metadata, device, b"[free list]");
        let all = normalise(ours.iter().chain(&kept).cloned());
        assert_eq!(difference(&all, &oracle), [], "not free on {device}");
        let mut missing = difference(&oracle, &all);
        if device == "/dev/sda5" {
            // The sectors behind the last cluster can never be used, but The Sleuth Kit calls them
            // free.
            let end = oracle.last().unwrap().end;
            missing.retain(|range| range.end < end || range.end - range.start >= 2048);
        }
        assert_eq!(missing, [], "free on {device}");
        let mapped = map.header().filesystems.iter().find(|f| f.device == device.as_bytes()).unwrap();
        assert_eq!(mapped.free_mapped, Some(bytes(&ours)), "{device}");

        let used = difference(&guest.volume(device).on_disk(), &oracle);
        let named = intersection(&used, &view.named(device));
        let share = bytes(&named) as f64 / bytes(&used) as f64;
        eprintln!("{device}: {:.3} % of {} used bytes have a name", 100.0 * share, bytes(&used));
        assert!(share >= least, "{device}: {share}, not {:?}", difference(&used, &named));
        // Every used byte is named or allocated, except at the end of the filesystem.
        let rest = view.ranges(Kind::Metadata, device, ALLOCATED);
        let end = guest.volume(device).on_disk().last().unwrap().end;
        let mut unsaid = difference(&difference(&used, &named), &rest);
        unsaid.retain(|range| range.end + 4096 < end || range.end - range.start > 32 << 10);
        assert_eq!(unsaid, [], "{device}");
    }
    view.ext4_names_are_those_of_dumpe2fs("/dev/sda1");
    view.attributes_and_links_are_where_debugfs_says("/dev/sda1");
    view.a_link_of_xfs_is_where_its_target_is("/dev/sda3");
    view.inline_data_is_in_what_holds_it();
    view.devices_have_their_metadata();
    view.what_is_in_no_partition_is_free("/dev/sda", &guest.disks[0]);
    view.what_is_in_no_partition_is_free("/dev/sdb", &guest.disks[1]);
    view.exfat_is_mapped(&guest.disks[2]);

    // The text map names metadata and free space too, and `lookup` names free space.
    let text = fs::read_to_string(run.sandbox.cwd().join("guest.bmap")).unwrap();
    assert!(text.contains(" m /dev/sda1 [inodes]\n") && text.contains(" u /dev/sda1\n"));
    let free = view.free("/dev/sda1")[0].start;
    let offset = format!("{free:#x}");
    let asked = Sandbox::new().run([
        OsStr::new("lookup"),
        run.sandbox.cwd().join("guest.jsonl").as_os_str(),
        OsStr::new(&offset),
    ]);
    let said = String::from_utf8(asked.stdout).unwrap();
    assert!(said.contains("\n  free space of /dev/sda1\n"), "{said}");
}

/// The guest's disks, and what oracles say of them.
struct Guest {
    disks: [PathBuf; 3],
    volumes: Vec<Volume>,
}

impl Guest {
    fn get() -> Self {
        let dir = cache::directory("metadata", &cache::key(SCRIPT), make);
        let disks = ["a.raw", "b.raw", "c.raw"].map(|name| dir.join(name));
        let volumes = layout::partitions(&disks[0], "/dev/sda");
        Self { disks, volumes }
    }

    fn volume(&self, device: &str) -> &Volume {
        self.volumes.iter().find(|volume| volume.device == device).unwrap()
    }

    /// The file with a copy of one partition of the first disk.
    fn flat(&self, device: &str) -> PathBuf {
        self.disks[0].with_file_name(device.trim_start_matches("/dev/"))
    }

    /// The free space of a device according to an oracle, in disk offsets.
    fn free(&self, device: &str) -> Vec<Range> {
        let flat = self.flat(device);
        let ranges = match device {
            "/dev/sda1" | "/dev/sda2" => free_of_ext4(&flat),
            "/dev/sda3" => free_of_xfs(&flat),
            "/dev/sda5" => free_by_sleuthkit(&flat, "fat", 512),
            _ => free_by_sleuthkit(&flat, "ntfs", 4096),
        };
        self.volume(device).to_disk(&normalise(ranges))
    }

    fn read(&self, disk: u16, range: &Range) -> Vec<u8> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let file = File::open(&self.disks[usize::from(disk) - 1]).unwrap();
        file.read_exact_at(&mut bytes, range.start).unwrap();
        bytes
    }
}

fn run(program: &str, args: &[&str], flat: &Path) -> String {
    let args: Vec<&OsStr> = args.iter().map(OsStr::new).chain([flat.as_os_str()]).collect();
    String::from_utf8_lossy(&tools::run(program, args)).into_owned()
}

/// The range in bytes of blocks that are written as `first-last`, or as `first` for one block.
fn blocks(text: &str, block: u64) -> Range {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    first.parse::<u64>().unwrap() * block..(last.parse::<u64>().unwrap() + 1) * block
}

fn free_of_ext4(flat: &Path) -> Vec<Range> {
    let text = run("dumpe2fs", &[], flat);
    let block = text.split_once("Block size:").unwrap().1.lines().next().unwrap().trim().parse().unwrap();
    let lists = text.lines().filter_map(|line| line.strip_prefix("  Free blocks: "));
    lists.flat_map(|list| list.split(", ").filter(|s| !s.is_empty())).map(|s| blocks(s, block)).collect()
}

fn free_of_xfs(flat: &Path) -> Vec<Range> {
    let superblock = run("xfs_db", &["-r", "-c", "sb 0", "-c", "p blocksize agblocks"], flat);
    let number = |name: &str| -> u64 {
        superblock
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))
            .unwrap()
            .parse()
            .unwrap()
    };
    let (block, group) = (number("blocksize"), number("agblocks"));
    let text = run("xfs_db", &["-r", "-c", "freesp -d"], flat);
    let rows = text.lines().filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().map(str::parse::<u64>).collect::<Result<_, _>>().ok()?;
        let [number, start, length] = words[..] else { return None };
        let start = (number * group + start) * block;
        Some(start..start + length * block)
    });
    rows.collect()
}

fn free_by_sleuthkit(flat: &Path, kind: &str, unit: u64) -> Vec<Range> {
    let text = run("blkls", &["-l", "-f", kind], flat);
    let units = text.lines().filter_map(|line| line.strip_suffix("|f")?.parse::<u64>().ok());
    units.map(|n| n * unit..(n + 1) * unit).collect()
}

struct View<'a> {
    map: &'a Map,
    guest: &'a Guest,
}

impl View<'_> {
    fn ranges(&self, kind: Kind, device: &str, path: &[u8]) -> Vec<Range> {
        let object = self.map.find(ObjectName::path(kind, device.as_bytes(), path));
        normalise(object.into_iter().flat_map(bmap::Object::pieces).map(|p| p.range.start.0..p.range.end.0))
    }

    fn free(&self, device: &str) -> Vec<Range> {
        self.ranges(Kind::Free, device, b"")
    }

    /// The ranges of all objects on this device that have a name.
    fn named(&self, device: &str) -> Vec<Range> {
        let is_named = |kind| matches!(kind, Kind::File | Kind::Directory | Kind::Symlink | Kind::Metadata);
        let objects = self.map.objects().filter(|object| {
            let name = object.name();
            is_named(name.kind) && name.device == device.as_bytes() && name.path != ALLOCATED
        });
        normalise(objects.flat_map(bmap::Object::pieces).map(|p| p.range.start.0..p.range.end.0))
    }

    fn ext4_names_are_those_of_dumpe2fs(&self, device: &str) {
        let flat = self.guest.flat(device);
        let text = run("dumpe2fs", &[], &flat);
        for (ours, words) in [
            ("[block bitmaps]", "Block bitmap at "),
            ("[inode bitmaps]", "Inode bitmap at "),
            ("[inodes]", "Inode table at "),
            ("[group descriptors]", "Group descriptors at "),
        ] {
            let places = text.split(words).skip(1).map(|rest| {
                let end = rest.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap();
                blocks(&rest[..end], 1024)
            });
            let places = self.guest.volume(device).to_disk(&normalise(places));
            assert_eq!(self.ranges(Kind::Metadata, device, ours.as_bytes()), places, "{ours}");
        }
        let journal = run("debugfs", &["-R", "blocks <8>"], &flat);
        let journal = journal.split_whitespace().map(|block| blocks(block, 1024));
        let journal = self.guest.volume(device).to_disk(&normalise(journal));
        let ours = self.ranges(Kind::Metadata, device, b"[journal]");
        assert_eq!(difference(&journal, &ours), []);
    }

    fn attributes_and_links_are_where_debugfs_says(&self, device: &str) {
        let flat = self.guest.flat(device);
        let volume = self.guest.volume(device);
        let link = run("debugfs", &["-R", "blocks /longlink"], &flat);
        let link = volume.to_disk(&[blocks(link.trim(), 1024)]);
        assert_eq!(self.ranges(Kind::Symlink, device, b"/longlink"), link);
        assert!(self.guest.read(1, &link[0]).starts_with(b"7777"));
        let short = self.map.find(ObjectName::path(Kind::Symlink, device.as_bytes(), b"/shortlink")).unwrap();
        assert!(short.attributes().marks.contains(Marks::NO_BLOCKS | Marks::INLINE));
        // The attributes of these files are equal, so ext4 stores them in the same block.
        for path in ["/adir", "/with-attributes", "/with-attributes-too"] {
            let said = run("debugfs", &["-R", &format!("stat {path}")], &flat);
            let block = said.split_once("File ACL: ").unwrap().1.lines().next().unwrap().trim();
            let ours = format!("{path} [extended attributes]");
            let ours = self.ranges(Kind::Metadata, device, ours.as_bytes());
            assert_eq!(ours, volume.to_disk(&[blocks(block, 1024)]), "{path}");
        }
    }

    /// XFS stores the target of a symbolic link in blocks of its own if it does not fit into the
    /// inode. Each of these blocks has a header, so the test finds them without a parser.
    fn a_link_of_xfs_is_where_its_target_is(&self, device: &str) {
        const BLOCK: usize = 4096;
        let flat = fs::read(self.guest.flat(device)).unwrap();
        let holds =
            |block: &&[u8]| block.starts_with(b"XSLM") && block.windows(900).any(|b| b == [b'8'; 900]);
        let found = (0..).step_by(BLOCK).zip(flat.chunks(BLOCK)).filter(|(_, block)| holds(block));
        let found: Vec<Range> = found.map(|(at, _)| at..at + BLOCK as u64).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        let found = self.guest.volume(device).to_disk(&found);
        assert_eq!(self.ranges(Kind::Symlink, device, b"/remotelink"), found);
        let short = self.map.find(ObjectName::path(Kind::Symlink, device.as_bytes(), b"/longlink")).unwrap();
        assert!(short.attributes().marks.contains(Marks::NO_BLOCKS | Marks::INLINE));
    }

    fn inline_data_is_in_what_holds_it(&self) {
        for (device, length) in [("/dev/sda2", 256), ("/dev/sda6", 1024)] {
            let name = ObjectName::path(Kind::File, device.as_bytes(), b"/tiny");
            let pieces: Vec<_> = self.map.find(name).unwrap().pieces().collect();
            assert_eq!(pieces.len(), 1, "{device}: {pieces:?}");
            assert!(pieces[0].role.flags.contains(PieceFlags::INLINE));
            let range = pieces[0].range.start.0..pieces[0].range.end.0;
            assert_eq!(range.end - range.start, length, "{device}");
            let held = self.guest.read(1, &range);
            assert!(held.windows(9).any(|window| window == b"tiny file"), "{device}");
        }
    }

    /// An exFAT directly on a disk: its free space, and that at least 99 % of its used bytes have a
    /// name.
    fn exfat_is_mapped(&self, disk: &Path) {
        const SECTOR: u64 = 512;
        let oracle = normalise(free_by_sleuthkit(disk, "exfat", SECTOR));
        let ours = self.free("/dev/sdc");
        assert!(bytes(&ours) > 16 << 20, "{ours:?}");
        assert_eq!(difference(&ours, &oracle), [], "not free");
        let mut missing = difference(&oracle, &ours);
        // The sectors behind the last cluster can never be used.
        missing.retain(|range| range.end - range.start >= 4096);
        assert_eq!(missing, [], "free");
        let size = std::fs::metadata(disk).unwrap().len();
        let used = difference(&[0..size], &oracle);
        let named = intersection(&used, &self.named("/dev/sdc"));
        eprintln!("/dev/sdc: {} of {} used bytes have a name", bytes(&named), bytes(&used));
        assert!(bytes(&named) * 100 >= bytes(&used) * 99, "{:?}", difference(&used, &named));
        let bitmap = self.ranges(Kind::Metadata, "/dev/sdc", b"[allocation bitmap]");
        assert_eq!(bitmap.len(), 1, "{bitmap:?}");
        // The first clusters are in use.
        assert_eq!(self.guest.read(3, &bitmap[0])[0], 0xff);
    }

    /// The free space of a disk must be what The Sleuth Kit calls unallocated, without named
    /// objects.
    fn what_is_in_no_partition_is_free(&self, device: &str, disk: &Path) {
        let text = run("mmls", &["-A"], disk);
        let rows = text.lines().filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, _, start, end, _, "Unallocated"] = words[..] else { return None };
            Some(start.parse::<u64>().unwrap() * 512..(end.parse::<u64>().unwrap() + 1) * 512)
        });
        let free = difference(&normalise(rows), &self.named(device));
        assert!(bytes(&free) > 1 << 20, "{free:?}");
        assert_eq!(self.free(device), free, "{device}");
    }

    fn devices_have_their_metadata(&self) {
        let of = |device: &str, name: &str| self.ranges(Kind::Metadata, device, name.as_bytes());
        let begins = |disk: u16, ranges: &[Range], magic: &[u8]| {
            let first = ranges.first().unwrap_or_else(|| panic!("nothing begins with {magic:?}"));
            assert!(self.guest.read(disk, first).starts_with(magic), "{ranges:?}");
        };
        // An MBR with code, then the chain of tables for the four logical partitions.
        assert_eq!(of("/dev/sda", "[boot code]"), [0..440, 1024..1536]);
        let tables = of("/dev/sda", "[partition table]");
        assert_eq!(tables.len(), 6, "{tables:?}");
        assert!(tables[1..].iter().all(|table| self.guest.read(1, table).ends_with(&[0x55, 0xaa])));
        begins(2, &of("/dev/sdb", "[partition table copy]")[..1], &[]);
        let copy = of("/dev/sdb", "[partition table copy]");
        assert!(self.guest.read(2, &copy[0])[16384..].starts_with(b"EFI PART"), "{copy:?}");
        // The MBR, the GPT header, and 32 sectors of entries.
        assert_eq!(of("/dev/sdb", "[partition table]"), [0..34 * 512]);
        // The partition in which GRUB keeps its code on disks with a GPT.
        let place = 43008 * 512;
        assert_eq!(of("/dev/sdb", "[boot code]"), [place..place + 512, place + 4096..place + 4608]);
        assert_eq!(of("/dev/sda7", "[swap]"), self.guest.volume("/dev/sda7").on_disk());
        begins(1, &of("/dev/sda8", "[LVM label]"), b"LABELONE");
        let text = self.guest.read(1, &of("/dev/sda8", "[LVM metadata]")[0]);
        assert!(text.windows(3).any(|window| window == b"vg1"));
        let volume = self.ranges(Kind::LogicalVolume, "/dev/vg1/lv", b"");
        let free = self.free("/dev/sda8");
        assert_eq!(intersection(&volume, &free), []);
        assert_eq!(bytes(&free) % (4 << 20), 0);
        assert!(bytes(&free) > 0);
        begins(1, &of("/dev/sda9", "[LUKS header]"), b"LUKS\xba\xbe");
        for member in ["/dev/sdb1", "/dev/sdb2"] {
            begins(2, &of(member, "[md superblock]"), &0xa92b_4efcu32.to_le_bytes());
        }
    }
}

/// Makes the disks. [`make`] adds some parts by hand.
const SCRIPT: &str = r#"disk-create a.raw raw 640M
disk-create b.raw raw 32M
disk-create c.raw raw 32M
add a.raw format:raw
add b.raw format:raw
add c.raw format:raw
run
part-init /dev/sda msdos
part-add /dev/sda p 2048 131071
part-add /dev/sda p 131072 196607
part-add /dev/sda p 196608 868351
part-add /dev/sda e 868352 -1
part-add /dev/sda l 870400 935935
part-add /dev/sda l 937984 1019903
part-add /dev/sda l 1021952 1054719
part-add /dev/sda l 1056768 1138687
part-add /dev/sda l 1140736 1245183
part-init /dev/sdb gpt
part-add /dev/sdb p 2048 22527
part-add /dev/sdb p 22528 43007
part-add /dev/sdb p 43008 45055
part-set-gpt-type /dev/sdb 3 21686148-6449-6E6F-744E-656564454649
mkfs ext4 /dev/sda1 blocksize:1024
debug sh 'mkfs.ext4 -q -F -O inline_data -I 256 /dev/sda2'
mkfs xfs /dev/sda3
mkfs vfat /dev/sda5
mkfs ntfs /dev/sda6
mkswap /dev/sda7
debug sh 'mkfs.exfat -c 4096 /dev/sdc >&2'
pvcreate /dev/sda8
vgcreate vg1 /dev/sda8
lvcreate lv vg1 16
debug sh 'echo -n secret | cryptsetup --batch-mode --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 luksFormat /dev/sda9 -'
debug sh 'mdadm --create /dev/md/a --run --assume-clean --level=1 --metadata=1.2 --raid-devices=2 /dev/sdb1 /dev/sdb2 2>&1'
mkfs ext4 /dev/vg1/lv
mkfs ext4 /dev/md/a
mount /dev/sda1 /
mkdir /inline
mkdir /xfs
mkdir /vfat
mkdir /ntfs
mkdir /exfat
mount /dev/sda2 /inline
mount /dev/sda3 /xfs
mount /dev/sda5 /vfat
mount /dev/sda6 /ntfs
mount /dev/sdc /exfat
tar-in {tar} /
tar-in {tar} /xfs
debug sh 'cd /sysroot; for d in . inline xfs; do ln -s $(printf %0100d 0 | tr 0 7) $d/longlink; ln -s short $d/shortlink; mkdir $d/adir; setfattr -n user.big -v $(printf %0800d 2) $d/adir; for f in with-attributes with-attributes-too; do echo $f > $d/$f; setfattr -n user.big -v $(printf %0700d 1) $d/$f; done; done; for d in inline vfat ntfs exfat; do echo "tiny file" > $d/tiny; dd if=/dev/urandom of=$d/big bs=1M count=3; rm -f $d/gone; done; ln -s $(printf %0900d 0 | tr 0 8) xfs/remotelink; dd if=/dev/urandom of=xfs/big bs=1M count=20'
umount-all
debug sh 'mdadm --stop /dev/md/a'
shutdown
"#;

fn make(dir: &Path) {
    let staging = tempfile::tempdir().unwrap();
    let files = walk(Path::new("/usr/share/doc"), 300);
    guestfish::tar(&staging.path().join("files.tar"), Path::new("/"), &files);
    let tar = staging.path().join("files.tar");
    guestfish::run(dir, &SCRIPT.replace("{tar}", &tar.display().to_string()));
    let image = dir.join("a.raw");
    // Boot code: on the first disk in the MBR and in the gap behind it, on the second disk in a
    // partition for it.
    let file = File::options().write(true).open(&image).unwrap();
    file.write_all_at(b"\xeb\x63boot code", 0).unwrap();
    file.write_all_at(b"and more of it", 1024).unwrap();
    let file = File::options().write(true).open(dir.join("b.raw")).unwrap();
    for at in [0, 4096] {
        file.write_all_at(b"boot code", 43008 * 512 + at).unwrap();
    }
    for volume in layout::partitions(&image, "/dev/sda") {
        volume.extract(&image, &dir.join(volume.device.trim_start_matches("/dev/")));
    }
}

/// Up to `most` small files of this machine that are below `from`, relative to `/`.
fn walk(from: &Path, most: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![from.to_owned()];
    while let Some(directory) = left.pop() {
        let mut entries: Vec<_> = fs::read_dir(&directory).unwrap().flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                left.push(entry.path());
            } else if metadata.is_file() && metadata.len() < 32 << 10 {
                found.push(entry.path().strip_prefix("/").unwrap().to_owned());
            }
            if found.len() >= most {
                return found;
            }
        }
    }
    found
}
