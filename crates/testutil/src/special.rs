//! Files that can be found on a disk without a parser. Each of their sectors has the number of the
//! file and its own number, so that a scan of the raw image finds it.
//!
//! The files cover what maps get wrong most easily: holes, unwritten blocks, fragments, links,
//! names that are difficult in text formats, and paths that are longer than a system call accepts.

use super::ranges::Range;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// Bytes in a sector, the unit of the pattern.
pub const SECTOR: usize = 512;
/// The first bytes of every patterned sector.
pub const MAGIC: [u8; 8] = *b"whoseIsI";
/// The number of levels of the deep directory, `/deep` and below. Its path has about 8 KB.
pub const DEEP_LEVELS: usize = 300;
/// The number of entries of the directory `/many`.
pub const MANY: usize = 1500;

/// A patterned file.
pub struct Special {
    /// The number of the file in its pattern.
    pub id: u32,
    /// All its names, as absolute paths in its filesystem.
    pub names: Vec<Vec<u8>>,
    /// Size in bytes.
    pub size: u64,
    /// The ranges of the file that hold data. They are whole blocks, except at the end of the file.
    pub data: Vec<Range>,
    how: How,
}

/// How a file is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// The ranges of data are written in order, then the size is set.
    Plain,
    /// Blocks are allocated for the whole size before data are written.
    Preallocated,
    /// The blocks are written in turns with those of the other files of this kind, one at a time.
    Interleaved,
    /// The file is at the end of the deep directory.
    Deep,
}

const K: u64 = 1024;

/// The patterned files of one filesystem, numbered from `first`.
pub fn files(first: u32) -> Vec<Special> {
    let mut list = Vec::new();
    let mut add = |names: &[&[u8]], size: u64, data: &[Range], how| {
        let names = names.iter().map(|n| n.to_vec()).collect();
        list.push(Special { id: first + list.len() as u32, names, size, data: data.to_vec(), how });
    };
    let whole = |size: u64| [0..size];

    add(&[b"/special/plain"], 300 * K + 100, &whole(300 * K + 100), How::Plain);
    add(&[b"/special/one-block"], 4 * K, &whole(4 * K), How::Plain);
    add(&[b"/special/one-sector"], 512, &whole(512), How::Plain);
    add(&[b"/special/hole-first"], 768 * K, &[512 * K..768 * K], How::Plain);
    add(&[b"/special/hole-middle"], 1088 * K, &[0..64 * K, 1024 * K..1088 * K], How::Plain);
    add(&[b"/special/hole-last"], 2048 * K, &[0..64 * K], How::Plain);
    let every_other: Vec<_> = (0..16).map(|i| i * 128 * K + 64 * K..(i + 1) * 128 * K).collect();
    add(&[b"/special/hole-every-other"], 2048 * K, &every_other, How::Plain);
    for name in [b"/special/fragments-a", b"/special/fragments-b", b"/special/fragments-c"] {
        add(&[name], 128 * K, &whole(128 * K), How::Interleaved);
    }
    add(&[b"/special/unwritten-around"], 1024 * K, &[256 * K..320 * K], How::Preallocated);
    add(
        &[b"/special/links/one", b"/special/links/sub/two", b"/special/zz-three"],
        20 * K + 17,
        &whole(20 * K + 17),
        How::Plain,
    );
    let long = [b"/special/names/".as_slice(), &[b'n'; 255]].concat();
    for name in [
        b"/special/names/new\nline".as_slice(),
        b"/special/names/tab\there",
        b"/special/names/escape\x1b[31mred",
        b"/special/names/back\\slash\\012",
        b"/special/names/not-utf8-\xff\xfe\x80",
        b"/special/names/delete-\x7f",
        b"/special/names/ leading and trailing ",
        b"/special/names/-dash",
        b"/special/names/quote'\"`$(x)",
        "/special/names/Grüße-日本".as_bytes(),
        b"/special/names/# hash",
        b"/special/names/dir with\nnewline/inner",
        &long,
    ] {
        add(&[name], 5 * K + 100, &whole(5 * K + 100), How::Plain);
    }
    add(&[&deep_path(b"bottom")], 6 * K, &whole(6 * K), How::Deep);
    list
}

/// The files of [`script`] that own no block. A map may not have a line for them.
pub fn without_blocks() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = ["/special/empty", "/special/hole-only", "/special/unwritten-only"]
        .iter()
        .map(|n| n.as_bytes().to_vec())
        .collect();
    names.extend((1..=MANY).map(|i| format!("/many/{i}").into_bytes()));
    names
}

/// The path of `name` at the end of the deep directory.
pub fn deep_path(name: &[u8]) -> Vec<u8> {
    let mut path = b"/deep".to_vec();
    for level in 1..=DEEP_LEVELS {
        path.extend(format!("/level-{level:03}-of-a-long-way").bytes());
    }
    path.push(b'/');
    path.extend(name);
    path
}

/// The pattern of one sector of a file.
pub fn sector(id: u32, number: u32) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&id.to_le_bytes());
    bytes[12..16].copy_from_slice(&number.to_le_bytes());
    // The rest is random data, which neither repeats nor compresses.
    let mut state = u64::from(id) << 32 | u64::from(number) | 1 << 63;
    for word in bytes[16..].chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// Writes the full pattern of each file into `dir`, under the file's number. [`script`] copies from
/// these sources.
pub fn write_sources(dir: &Path, files: &[Special]) {
    for file in files {
        let sectors = file.size.div_ceil(SECTOR as u64) as u32;
        let mut content: Vec<u8> = (0..sectors).flat_map(|n| sector(file.id, n)).collect();
        content.truncate(file.size as usize);
        fs::write(dir.join(file.id.to_string()), content).unwrap();
    }
}

/// The bash script that makes the files, and objects without data. Its first argument is the
/// directory in which it makes them, its second the directory of the sources. The appliance runs
/// it.
pub fn script(files: &[Special]) -> String {
    let mut s = String::from("set -eu\ncd \"$1\"\nS=$2\nmkdir -p many");
    for file in files.iter().filter(|f| f.how != How::Deep) {
        for name in &file.names {
            let end = name.iter().rposition(|&b| b == b'/').unwrap();
            write!(s, " {}", quote(&name[1..end])).unwrap();
        }
    }
    s.push('\n');
    for file in files {
        let name = quote(&file.names[0][1..]);
        match file.how {
            How::Interleaved => continue,
            How::Deep => {
                deep(&mut s, file.id);
                continue;
            }
            How::Preallocated => writeln!(s, "fallocate -l {} {name}", file.size).unwrap(),
            How::Plain => (),
        }
        for data in &file.data {
            copy(&mut s, file.id, &name, data, "conv=notrunc");
        }
        if file.data.last().is_none_or(|data| data.end < file.size) {
            writeln!(s, "truncate -s {} {name}", file.size).unwrap();
        }
        for link in &file.names[1..] {
            writeln!(s, "ln {name} {}", quote(&link[1..])).unwrap();
        }
    }
    // The files are written in turns, first the even blocks, then the odd ones. Each write is
    // synced to the disk before the next.
    let interleaved: Vec<_> = files.iter().filter(|f| f.how == How::Interleaved).collect();
    let blocks = interleaved[0].size / (4 * K);
    for block in (0..blocks).step_by(2).chain((1..blocks).step_by(2)) {
        for file in &interleaved {
            let range = block * 4 * K..(block + 1) * 4 * K;
            copy(&mut s, file.id, &quote(&file.names[0][1..]), &range, "oflag=direct conv=notrunc");
        }
    }
    s.push_str(": > special/empty\nprintf x > special/one-byte\n");
    s.push_str("truncate -s 1M special/hole-only\nfallocate -l 512K special/unwritten-only\n");
    s.push_str("ln -s plain special/symlink\nln -s /nowhere special/dangling\nmkfifo special/fifo\n");
    s.push_str("mknod special/char c 1 3\nmknod special/block b 7 0\n");
    writeln!(s, "(cd many; for i in $(seq {MANY}); do : > $i; done)").unwrap();
    s.push_str("sync\n");
    s
}

/// Adds the commands that make the deep directory. They change into each level, since the whole
/// path is too long for a system call.
fn deep(script: &mut String, id: u32) {
    let path = deep_path(b"");
    let levels: Vec<_> = path[1..path.len() - 1].split(|&b| b == b'/').collect();
    script.push('(');
    for part in levels.chunks(100) {
        let part = quote(&part.join(&b'/'));
        write!(script, "mkdir -p {part}; cd {part}; ").unwrap();
    }
    writeln!(script, "cp $S/{id} bottom)").unwrap();
}

/// Adds the command that copies one range from the source of a file to the file.
fn copy(script: &mut String, id: u32, name: &str, range: &Range, flags: &str) {
    assert_eq!(range.start % (4 * K), 0);
    let block = range.start / (4 * K);
    let count = (range.end - range.start).div_ceil(4 * K);
    writeln!(
        script,
        "dd status=none bs=4096 if=$S/{id} of={name} skip={block} seek={block} count={count} {flags}"
    )
    .unwrap();
}

/// Quotes a name so that bash reads the same bytes.
fn quote(name: &[u8]) -> String {
    let mut quoted = String::from("./$'");
    for &byte in name {
        if byte.is_ascii_alphanumeric() || b"/-_. ".contains(&byte) {
            quoted.push(char::from(byte));
        } else {
            write!(quoted, "\\{byte:03o}").unwrap();
        }
    }
    quoted.push('\'');
    quoted
}
