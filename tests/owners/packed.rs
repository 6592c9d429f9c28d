//! Filesystems that are made in one step: ISO 9660 with two trees, squashfs, EROFS with extended
//! attributes that files share, and UFS2. All of their bytes have an owner, and none of them twice
//! over: their sizes come from the programs that made them, the free space of UFS from The Sleuth
//! Kit.

use super::disks;
use super::with_metadata::pieces;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use virt_bmap_map::{Kind, Map, ObjectName};
use virt_bmap_testutil::ranges::{Range, bytes, difference, intersection, normalise};
use virt_bmap_testutil::{random, tools};

const SECTOR: u64 = 2048;

/// Makes the filesystems in this directory.
pub(crate) fn make(dir: &Path) -> Vec<PathBuf> {
    let tree = dir.join("packed.tree");
    write_tree(&tree);
    let at = |name: &str| dir.join(format!("packed-{name}.raw"));
    let boot = ["-R", "-J", "-b", "boot/loader", "-c", "boot/catalog", "-no-emul-boot"];
    let [iso, squashfs, erofs, ufs] = ["iso", "squashfs", "erofs", "ufs"].map(at);
    let run = |program: &str, options: &[&str], paths: [&Path; 2]| {
        let paths = paths.map(Path::as_os_str);
        tools::run(program, options.iter().map(OsStr::new).chain(paths))
    };
    let options = ["-as", "mkisofs", "-quiet"].iter().chain(&boot).chain(&["-o"]).copied();
    run("xorriso", &options.collect::<Vec<_>>(), [&iso, &tree]);
    let words = [tree.as_os_str(), squashfs.as_os_str(), OsStr::new("-no-progress")];
    fs::write(dir.join("mksquashfs"), tools::run("mksquashfs", words)).unwrap();
    run("mkfs.erofs", &[], [&erofs, &tree]);
    let options = ["-t", "ffs", "-o", "version=2,bsize=32768,fsize=4096,maxbpcg=100", "-s", "120m"];
    run("makefs", &options, [&ufs, &tree]);
    move_superblock(&ufs);
    [iso, squashfs, erofs, ufs].into()
}

/// Files of all sizes, one with a hole, directories, links, and extended attributes that several
/// files have and that need blocks of their own.
fn write_tree(tree: &Path) {
    fs::create_dir_all(tree.join("boot")).unwrap();
    fs::create_dir_all(tree.join("dir/sub")).unwrap();
    let mut random = random::Random::of(7, 0);
    let mut bytes = |length: usize| -> Vec<u8> { (0..length).map(|_| random.draw() as u8).collect() };
    fs::write(tree.join("boot/loader"), bytes(20_000)).unwrap();
    for number in 0..40usize {
        let path = tree.join(["dir", "dir/sub"][number % 2]).join(format!("f{number}"));
        fs::write(&path, bytes(number * 4096 + number % 3)).unwrap();
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        let value = [b'a' + (number % 6) as u8; 3000];
        rustix::fs::setxattr(&path, c"user.shared", &value, rustix::fs::XattrFlags::empty()).unwrap();
    }
    fs::write(tree.join("large"), bytes(3 << 20)).unwrap();
    let hole = File::create(tree.join("hole")).unwrap();
    hole.set_len(2 << 20).unwrap();
    hole.write_all_at(&bytes(10_000), 1 << 20).unwrap();
    std::os::unix::fs::symlink("7".repeat(200), tree.join("link")).unwrap();
}

/// This machine's makefs puts the superblock of UFS2 where no kernel looks for it. Where it
/// belongs, at 64 KiB, is the descriptor of the first cylinder group, which has room behind it.
fn move_superblock(image: &Path) {
    let file = File::options().read(true).write(true).open(image).unwrap();
    let mut superblock = vec![0; 8192];
    file.read_exact_at(&mut superblock, 8192).unwrap();
    let word = |at: usize| u64::from(u32::from_le_bytes(superblock[at..at + 4].try_into().unwrap()));
    let (descriptor, groups, fragment, per_group) = (word(12), word(44), word(52), word(188));
    assert_eq!(descriptor * fragment, 64 << 10);
    let behind = descriptor + 8192 / fragment;
    for group in 0..groups {
        let at = |number: u64| (group * per_group + number) * fragment;
        let mut bytes = vec![0; word(160) as usize];
        file.read_exact_at(&mut bytes, at(descriptor)).unwrap();
        file.write_all_at(&bytes, at(behind)).unwrap();
    }
    superblock[12..16].copy_from_slice(&(behind as u32).to_le_bytes());
    file.write_all_at(&superblock, 64 << 10).unwrap();
    file.write_all_at(&[0; 8192], 8192).unwrap();
}

/// One of the filesystems in the map.
struct View<'a> {
    map: &'a Map,
    disk: u16,
    image: &'a Path,
}

impl View<'_> {
    fn of(&self, kind: Kind, path: &str) -> Vec<Range> {
        let device = disks::device(self.disk);
        pieces(self.map, self.disk, &ObjectName::path(kind, device.as_bytes(), path.as_bytes()))
    }

    fn named(&self, name: &str) -> Vec<Range> {
        let found = self.of(Kind::Metadata, name);
        assert!(!found.is_empty(), "{}: no {name}", self.image.display());
        found
    }

    /// All bytes but those behind the end have an object, and the books are even.
    fn is_even(&self, size: u64) {
        let device = disks::device(self.disk);
        let objects = self.map.objects().filter(|object| object.kind() != Kind::Disk);
        let known = normalise(objects.flat_map(|object| pieces(self.map, self.disk, &object.name())));
        assert_eq!(difference(&[0..size], &known), [], "{device}");
        let header = &self.map.header().filesystems;
        let header = header.iter().find(|header| header.device == device.as_bytes()).unwrap();
        let balance = header.balance.unwrap();
        assert_eq!((balance.unexplained, balance.claimed_twice, balance.claimed_free), (0, 0, 0), "{device}");
        assert_eq!(balance.used + bytes(&self.of(Kind::Free, "")), size, "{device}");
        assert_eq!(self.of(Kind::Metadata, "[allocated]"), [], "{device}");
    }

    /// Padding is zeroes.
    fn has_padding(&self) {
        let disk = fs::read(self.image).unwrap();
        for range in self.named("[padding]") {
            assert!(disk[range.start as usize..range.end as usize].iter().all(|byte| *byte == 0));
        }
    }
}

/// Checks the filesystems. The first is on the disk with this number.
pub(crate) fn check(map: &Map, first: u16, images: &[PathBuf]) {
    let view = |number: usize| View { map, disk: first + number as u16, image: &images[number] };
    iso(&view(0));
    squashfs(&view(1));
    erofs(&view(2));
    ufs(&view(3));
}

fn said(program: &str, words: &[&str], image: &Path) -> String {
    let words = words.iter().map(OsStr::new).chain([image.as_os_str()]);
    String::from_utf8_lossy(&tools::run(program, words)).into_owned()
}

/// The first number behind these words, and behind the next place where they are.
fn numbers(said: &str, words: &str) -> Vec<u64> {
    let after = said.split(words).skip(1);
    let number = |text: &str| {
        text.trim_start_matches([' ', ':']).split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    after.filter_map(number).collect()
}

/// The Sleuth Kit lists the descriptors of both trees.
fn iso(view: &View<'_>) {
    let said = said("fsstat", &["-f", "iso9660"], view.image);
    view.is_even(fs::metadata(view.image).unwrap().len());
    view.has_padding();
    let sector = |number: u64| number * SECTOR..(number + 1) * SECTOR;
    let tables = numbers(&said, "Path Table Location");
    assert_eq!(tables.len(), 2, "{said}");
    for table in tables {
        assert_eq!(intersection(&view.named("[path tables]"), &[sector(table)]), [sector(table)]);
    }
    let roots = numbers(&said, "Root Directory Block");
    // The kernel shows the tree with the names of Rock Ridge.
    assert_eq!(view.of(Kind::Directory, "/"), [sector(roots[0])]);
    let other = view.named("[directories]");
    assert_eq!(intersection(&other, &[sector(roots[1])]), [sector(roots[1])]);
    // Joliet has as many directories as the tree: `/`, `/boot`, `/dir` and `/dir/sub`.
    assert!(bytes(&other) >= 4 * SECTOR);
    let catalog = view.of(Kind::File, "/boot/catalog");
    assert_eq!(catalog.len(), 1, "the list of what boots is a file here");
    assert_eq!(view.named("[volume descriptors]")[0].start, 16 * SECTOR);
}

/// `mksquashfs` tells how long each table is, and the superblock where the last one ends.
fn squashfs(view: &View<'_>) {
    let said = fs::read_to_string(view.image.with_file_name("mksquashfs")).unwrap();
    let size = fs::metadata(view.image).unwrap().len();
    view.is_even(size);
    view.has_padding();
    assert_eq!([bytes(&view.named("[directories]"))], *numbers(&said, "Directory table size"));
    let attributes = view.named("[extended attributes]");
    // It counts neither the table that numbers them nor the list of its blocks.
    let size_of_values = numbers(&said, "Xattr table size")[0];
    let more = bytes(&attributes).checked_sub(size_of_values);
    assert!(more.is_some_and(|more| (24..256).contains(&more)), "{attributes:?}, {said}");
    // What is in front of a table may share a block of the device with the data of a file.
    let inodes = numbers(&said, "Inode table size")[0];
    let inodes = difference(&view.named("[inodes]"), &[0..view.named("[directories]")[0].start - inodes]);
    assert_eq!(inodes.last().map(|range| range.end), Some(view.named("[directories]")[0].start));
    let mut used = [0; 8];
    File::open(view.image).unwrap().read_exact_at(&mut used, 40).unwrap();
    assert!(u64::from_le_bytes(used) >= attributes[0].end && size - attributes[0].end < 4096);
}

fn erofs(view: &View<'_>) {
    let said = said("dump.erofs", &["-s"], view.image);
    view.is_even(numbers(&said, "Filesystem blocks")[0] * 4096);
    // Each of the values is in a block that was read.
    let disk = fs::read(view.image).unwrap();
    for letter in b'a'..=b'f' {
        let at =
            disk.windows(3000).position(|bytes| bytes.iter().all(|byte| *byte == letter)).unwrap() as u64;
        assert_eq!(bytes(&intersection(&view.named("[metadata]"), &[at..at + 3000])), 3000);
    }
}

fn ufs(view: &View<'_>) {
    let size = fs::metadata(view.image).unwrap().len();
    let list = said("blkls", &["-l", "-f", "ufs"], view.image);
    let free = list.lines().filter_map(|line| line.strip_suffix("|f")?.parse::<u64>().ok());
    assert_eq!(view.of(Kind::Free, ""), normalise(free.map(|number| number * 4096..(number + 1) * 4096)));
    view.is_even(size);
    let said = said("fsstat", &["-f", "ufs"], view.image);
    let inodes = said.lines().filter_map(|line| {
        let (first, last) = line.trim().strip_prefix("Inode Table: ")?.split_once(" - ")?;
        Some(first.parse::<u64>().ok()? * 4096..(last.parse::<u64>().ok()? + 1) * 4096)
    });
    assert_eq!(view.named("[inodes]"), normalise(inodes), "{said}");
    // Beside its data, a file has the blocks that istat lists as indirect.
    let maps = view.named("[extent maps]");
    for path in ["/large", "/hole"] {
        let device = disks::device(view.disk);
        let object = view.map.find(ObjectName::path(Kind::File, device.as_bytes(), path.as_bytes())).unwrap();
        let inode = object.attributes().inode.unwrap().to_string();
        let words = [OsStr::new("-f"), OsStr::new("ufs"), view.image.as_os_str(), OsStr::new(&inode)];
        let said = String::from_utf8_lossy(&tools::run("istat", words)).into_owned();
        let (data, indirect) =
            said.split_once("Direct Blocks:").unwrap().1.split_once("Indirect Blocks:").unwrap();
        let fragments = |text: &str| {
            let numbers =
                text.split_whitespace().map_while(|word| word.parse::<u64>().ok()).filter(|n| *n > 0);
            normalise(numbers.map(|number| number * 4096..(number + 1) * 4096))
        };
        assert_eq!(difference(&fragments(data), &view.of(Kind::File, path)), [], "{path}");
        assert_eq!(difference(&fragments(indirect), &maps), [], "{path}");
    }
}
