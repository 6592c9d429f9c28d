//! The files of every filesystem in the table, and the script that writes them.
//!
//! Every sector of every file has a different pattern (see `special.rs` of the crate `testutil`),
//! so that a scan of the disks finds each sector without a parser. The files differ in what maps
//! get wrong: their size compared with the block, holes, fragments, hard links, blocks that were
//! never written.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use virt_bmap_testutil::special::{MAGIC, SECTOR, sector};

const K: u64 = 1024;
/// The unit in which the script writes. The source of each file begins at a multiple of it in the
/// blob.
const UNIT: u64 = 4 * K;

/// What a filesystem can do. This decides which files it gets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Abilities {
    /// Files may have holes.
    pub(crate) holes: bool,
    /// `fallocate` works, and the filesystem knows which blocks were not written.
    pub(crate) unwritten: bool,
    /// A file may have several names.
    pub(crate) links: bool,
    /// Files may share blocks.
    pub(crate) reflinks: bool,
    /// The filesystem compresses, so the files have contents that compress well.
    pub(crate) compressible: bool,
    /// Files and directories may have named streams.
    pub(crate) streams: bool,
    /// Files may have a resource fork.
    pub(crate) forks: bool,
    /// A name has few characters.
    pub(crate) short_names: bool,
}

impl Abilities {
    /// What ext4 can do.
    pub(crate) const UNIX: Self = Self { holes: true, unwritten: true, links: true, ..Self::FAT };
    /// What FAT can do.
    pub(crate) const FAT: Self = Self {
        holes: false,
        unwritten: false,
        links: false,
        reflinks: false,
        compressible: false,
        streams: false,
        forks: false,
        short_names: false,
    };

    /// The same without blocks that are allocated but not written.
    pub(crate) const fn no_unwritten(self) -> Self {
        Self { unwritten: false, ..self }
    }

    /// The same with shared blocks.
    pub(crate) const fn with_reflinks(self) -> Self {
        Self { reflinks: true, ..self }
    }

    /// The same with named streams.
    pub(crate) const fn with_streams(self) -> Self {
        Self { streams: true, ..self }
    }

    /// The same with contents that compress well.
    pub(crate) const fn compressible(self) -> Self {
        Self { compressible: true, ..self }
    }
}

/// A part of a file that holds data: the `length` bytes at offset `at` are those of the pattern of
/// file `id` at offset `from`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The offset in the file.
    pub(crate) at: u64,
    /// The number of bytes.
    pub(crate) length: u64,
    /// The number of the file that has this pattern.
    pub(crate) id: u32,
    /// The offset in that file's pattern.
    pub(crate) from: u64,
}

/// The end of the name of a resource fork.
pub(crate) const FORK: &str = ":rsrc";

/// The name of a sector: the numbers that its pattern contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SectorName {
    /// The number of the file for which the pattern was made.
    pub(crate) id: u32,
    /// The number of the sector in that file.
    pub(crate) number: u32,
}

/// One file of a population.
#[derive(Clone, Debug)]
pub(crate) struct TestFile {
    /// Its names, as absolute paths in its filesystem.
    pub(crate) names: Vec<String>,
    /// Size in bytes.
    pub(crate) size: u64,
    /// Its parts that hold data.
    pub(crate) parts: Vec<Part>,
    /// The number of its pattern.
    id: u32,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Plain,
    /// Before data are written, blocks are allocated for this many bytes. The size of the file does
    /// not grow.
    Preallocated(u64),
    /// Written in turns with the other files of this kind.
    Interleaved,
    /// Shares the blocks of the plain file before it. Then its parts with its own `id` are written.
    Clone,
}

impl TestFile {
    /// Whether it is a named stream or a resource fork.
    pub(crate) fn is_stream(&self) -> bool {
        self.names[0].contains(':')
    }

    /// Every sector that holds data, with the number of bytes that belong to the file.
    pub(crate) fn sectors(&self) -> Vec<(SectorName, usize)> {
        let mut list = Vec::new();
        for part in &self.parts {
            let mut done = 0;
            while done < part.length {
                let number = u32::try_from((part.from + done) / SECTOR as u64).unwrap();
                let length = (part.length - done).min(SECTOR as u64);
                list.push((SectorName { id: part.id, number }, length as usize));
                done += length;
            }
        }
        list
    }
}

/// The files of one filesystem, all below the directory `/slug`, numbered from `first`.
pub(crate) fn files(slug: &str, first: u32, can: Abilities) -> Vec<TestFile> {
    let mut list: Vec<TestFile> = Vec::new();
    let mut add = |names: &[&str], size: u64, data: &[(u64, u64)], how| {
        let id = first + list.len() as u32;
        list.push(TestFile {
            names: names.iter().map(|name| format!("/{slug}/{name}")).collect(),
            size,
            parts: data.iter().map(|&(at, end)| Part { at, length: end - at, id, from: at }).collect(),
            id,
            how,
        });
    };
    // The oracle cannot distinguish a sector of less than 16 bytes. Only two files, of 1 and of 15
    // bytes, end with such a sector.
    for size in [0, 1, 15, 16, 100, 511, 512, 528, 700, 1023, 1024, 1041, 2047, 2048, 3000, 4095, 4096, 4113]
    {
        add(&[&format!("sizes/{size}")], size, &[(0, size)], How::Plain);
    }
    for blocks in 2..=20 {
        let size = blocks * UNIT - blocks * 190;
        add(&[&format!("blocks/{blocks}")], size, &[(0, size)], How::Plain);
    }
    for number in 0..24 {
        let size = 40 + number * 131;
        let long = if can.short_names { "file" } else { "a rather long name of a small file" };
        add(&[&format!("small/{long} {number}")], size, &[(0, size)], How::Plain);
    }
    for (name, size) in [("large/100k", 100 * K + 100), ("large/300k", 300 * K), ("large/2m", 2048 * K + 333)]
    {
        add(&[name], size, &[(0, size)], How::Plain);
    }
    for name in ["turns/a", "turns/b", "turns/c"] {
        add(&[name], 64 * K, &[(0, 64 * K)], How::Interleaved);
    }
    if can.links {
        let size = 20 * K + 17;
        add(&["links/one", "links/deep/er/two", "zz-three"], size, &[(0, size)], How::Plain);
    }
    if can.holes {
        add(&["holes/first"], 512 * K, &[(256 * K, 512 * K)], How::Plain);
        add(&["holes/middle"], 576 * K, &[(0, 64 * K), (512 * K, 576 * K)], How::Plain);
        add(&["holes/last"], 1024 * K, &[(0, 64 * K)], How::Plain);
        let every_other: Vec<_> = (0..8).map(|i| (i * 128 * K + 64 * K, (i + 1) * 128 * K)).collect();
        add(&["holes/every-other"], 1024 * K, &every_other, How::Plain);
        add(&["holes/only"], 1024 * K, &[], How::Plain);
    }
    if can.unwritten {
        add(&["unwritten/around"], 512 * K, &[(128 * K, 160 * K)], How::Preallocated(512 * K));
        add(&["unwritten/only"], 256 * K, &[], How::Preallocated(256 * K));
        add(&["unwritten/beyond"], 10 * K, &[(0, 10 * K)], How::Preallocated(128 * K));
    }
    if can.reflinks {
        add(&["clones/original"], 200 * K, &[(0, 200 * K)], How::Plain);
        let original = list.last().unwrap().id;
        for (name, change) in [("same", None), ("changed", Some((64 * K, 80 * K)))] {
            let id = first + list.len() as u32;
            let part = |at, end, id| Part { at, length: end - at, id, from: at };
            let parts = match change {
                None => vec![part(0, 200 * K, original)],
                Some((at, end)) => {
                    vec![part(0, at, original), part(at, end, id), part(end, 200 * K, original)]
                }
            };
            let names = vec![format!("/{slug}/clones/{name}")];
            list.push(TestFile { names, size: 200 * K, parts, id, how: How::Clone });
        }
    }
    let mut add = |name: &str, size: u64| {
        let id = first + list.len() as u32;
        let parts = vec![Part { at: 0, length: size, id, from: 0 }];
        list.push(TestFile { names: vec![format!("/{slug}/{name}")], size, parts, id, how: How::Plain });
    };
    if can.streams {
        add("streams/file", 5000);
        add("streams/file:large", 150 * K + 90);
        add("streams/file:small", 40);
        add("streams:directory", 30 * K);
    }
    if can.forks {
        add(&format!("streams/forked{FORK}"), 11 * K + 5);
    }
    assert!(list.len() < 1000, "the numbers of the next filesystem begin after a thousand");
    list
}

/// Whether a file belongs to the small selection for the slow probe.
pub(crate) fn is_one_of_few(file: &TestFile) -> bool {
    const FEW: [&str; 12] = [
        "sizes/0",
        "sizes/100",
        "sizes/4096",
        "sizes/4113",
        "blocks/7",
        "large/300k",
        "turns/a",
        "turns/b",
        "links/one",
        "holes/middle",
        "holes/only",
        "unwritten/around",
    ];
    let name = file.names[0][1..].split_once('/').map_or("", |(_, rest)| rest);
    FEW.contains(&name)
}

/// The bytes of one sector of a file.
pub(crate) fn bytes_of(name: SectorName, compressible: bool) -> [u8; SECTOR] {
    let mut bytes = sector(name.id, name.number);
    if compressible {
        for (i, byte) in bytes.iter_mut().enumerate().skip(16) {
            *byte = b"what compresses well "[i % 21];
        }
    }
    bytes
}

/// The sources from which the script copies the files, one after the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blob {
    files: Vec<(u32, u64, bool)>,
    /// The number of units of all sources.
    units: u64,
}

impl Blob {
    /// Appends the full pattern of a file and returns the unit where it begins.
    fn append(&mut self, file: &TestFile, compressible: bool) -> u64 {
        let first = self.units;
        let units = file.size.div_ceil(UNIT);
        self.files.push((file.id, units, compressible));
        self.units += units;
        first
    }

    /// Writes the blob as a disk image.
    pub(crate) fn write(&self, path: &Path) {
        let mut out = BufWriter::new(File::create(path).unwrap());
        for &(id, units, compressible) in &self.files {
            for number in 0..units * (UNIT / SECTOR as u64) {
                out.write_all(&bytes_of(SectorName { id, number: number as u32 }, compressible)).unwrap();
            }
        }
        // The size of a disk cannot be 0.
        out.write_all(&[0; UNIT as usize]).unwrap();
        out.flush().unwrap();
    }
}

/// The bash function that the scripts of [`script`] call. Its arguments are the unit in the blob,
/// the unit in the file, the number of bytes, and the file.
pub(crate) const PRELUDE: &str = r#"set -eu
SRC=/dev/disk/guestfs/src
w() {
    dd status=none bs=4096 iflag=fullblock,count_bytes if=$SRC skip=$1 seek=$2 count=$3 of="$4" conv=notrunc${5-}
}
"#;

/// The commands that make `files` in the current directory, which is the root of the filesystem.
/// Appends the sources of the files to `blob`.
pub(crate) fn script(files: &[TestFile], can: Abilities, blob: &mut Blob) -> String {
    let mut s = String::from("mkdir -p");
    let mut directories: Vec<&str> =
        files.iter().flat_map(|f| &f.names).map(|name| &name[1..name.rfind('/').unwrap()]).collect();
    directories.sort_unstable();
    directories.dedup();
    for directory in directories {
        write!(s, " '{directory}'").unwrap();
    }
    s.push('\n');
    let mut turns = Vec::new();
    let mut before = "";
    for file in files {
        let source = blob.append(file, can.compressible);
        let name = &file.names[0][1..];
        match file.how {
            How::Interleaved => {
                turns.push((source, name, file.size));
                continue;
            }
            How::Preallocated(bytes) => {
                writeln!(s, ": > '{name}'; fallocate -n -l {bytes} '{name}'").unwrap();
            }
            How::Clone => writeln!(s, "cp --reflink=always '{before}' '{name}'").unwrap(),
            How::Plain => before = name,
        }
        for part in file.parts.iter().filter(|part| part.id == file.id && part.length > 0) {
            let unit = part.at / UNIT;
            writeln!(s, "w {} {unit} {} '{name}'", source + unit, part.length).unwrap();
        }
        if file.parts.last().is_none_or(|part| part.at + part.length < file.size || part.length == 0) {
            writeln!(s, "truncate -s {} '{name}'", file.size).unwrap();
        }
        for link in &file.names[1..] {
            writeln!(s, "ln '{name}' '{}'", &link[1..]).unwrap();
        }
    }
    // The files are written in turns, first the even units, then the odd ones. Each write is synced
    // to the disk before the next.
    let units = turns.first().map_or(0, |(_, _, size)| size / UNIT);
    for unit in (0..units).step_by(2).chain((1..units).step_by(2)) {
        for (source, name, _) in &turns {
            writeln!(s, "w {} {unit} {UNIT} '{name}' ,fsync", source + unit).unwrap();
        }
    }
    s.push_str("sync\n");
    s
}

/// Writes the files below `root` on this machine, for filesystems that a program makes from a
/// directory. The file of a resource fork has the content of the fork.
pub(crate) fn write_tree(root: &Path, files: &[TestFile], can: Abilities) {
    use std::os::unix::fs::FileExt as _;
    for file in files {
        let path = |name: &str| root.join(name[1..].trim_end_matches(FORK));
        let first = path(&file.names[0]);
        std::fs::create_dir_all(first.parent().unwrap()).unwrap();
        let out = File::create(&first).unwrap();
        for part in &file.parts {
            let mut at = part.at;
            while at < part.at + part.length {
                let number = ((part.from + at - part.at) / SECTOR as u64) as u32;
                let bytes = bytes_of(SectorName { id: part.id, number }, can.compressible);
                let length = (part.at + part.length - at).min(SECTOR as u64);
                out.write_all_at(&bytes[..length as usize], at).unwrap();
                at += length;
            }
        }
        out.set_len(file.size).unwrap();
        for link in &file.names[1..] {
            std::fs::create_dir_all(path(link).parent().unwrap()).unwrap();
            std::fs::hard_link(&first, path(link)).unwrap();
        }
    }
}

/// The name of the sector of a pattern that these bytes begin with, if they begin with one.
pub(crate) fn name_in(bytes: &[u8]) -> Option<SectorName> {
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    bytes.starts_with(&MAGIC).then_some(())?;
    Some(SectorName { id: number(8)?, number: number(12)? })
}
