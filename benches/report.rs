//! Speed and size of the report for maps of a million ranges: `cargo bench --bench report`.
//!
//! Like the program it reads a map, makes the page, and writes it. It fails if that takes more than
//! 5 s or if the page has more than 30 MB. `cargo bench --bench report -- --files DIR` writes maps
//! and pages into a directory, so that a browser can open them.
#![allow(clippy::unwrap_used)] // a benchmark that cannot run has nothing better to do

use std::path::Path;
use std::time::{Duration, Instant};
use virt_bmap_map::{
    Attributes, FileType, Format, Header, Kind, Map, MapBuilder, Marks, ObjectName, read, report,
};
use virt_bmap_ranges::{DiskRange, FileOffset};
use virt_bmap_testutil::random::Random;

const RANGES: u64 = 1_000_000;
const MOST_TIME: Duration = Duration::from_secs(5);
const MOST_BYTES: usize = 30_000_000;

/// A disk with one partition and a million pieces of 4 to 64 KiB. Each piece belongs to a random
/// one of `files` files.
fn map(files: u64) -> Map {
    let mut random = Random::of(0, 1);
    let mut builder = MapBuilder::new(Header::default());
    let handles: Vec<_> = (0..files)
        .map(|file| {
            let (package, part, word) = (file / 1000, file / 37 % 27, random.below(1 << 40));
            let path =
                format!("/usr/share/some-package-{package}/files/part-{part}/{word:010x}-name-{file}.so");
            let attributes = Attributes {
                owner: None,
                born: None,
                inode: Some(file + 12),
                size: Some(random.below(1 << 20)),
                links: Some(1),
                allocated: Some(4096),
                mode: Some(0o100_644),
                modified: Some((1_400_000_000 + random.below(100_000_000) as i64) * 1_000_000_000),
                changed: Some(1_400_000_000_000_000_000),
                marks: Marks::empty(),
                reparse: None,
            };
            let name = ObjectName::path(Kind::File, b"/dev/sda1", path.as_bytes());
            builder.object(name, attributes).unwrap()
        })
        .collect();
    let mut end = 1 << 20;
    let mut next = vec![0; handles.len()];
    for piece in 0..RANGES {
        let file = if files == RANGES { piece } else { random.below(files) } as usize;
        let start = end + 4096 * random.below(3);
        end = start + 4096 * (1 + random.below(16));
        builder.piece(handles[file], 1, DiskRange::new(start, end), Some(FileOffset(next[file]))).unwrap();
        next[file] += end - start;
    }
    for (kind, device) in [(Kind::Disk, &b"/dev/sda"[..]), (Kind::Partition, b"/dev/sda1")] {
        let object = builder.object(ObjectName::device(kind, device), Attributes::default()).unwrap();
        builder.piece(object, 1, DiskRange::new(0, end + (1 << 20)), None).unwrap();
    }
    builder.build()
}

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    let files =
        arguments.iter().position(|argument| argument == "--files").map(|at| Path::new(&arguments[at + 1]));
    for (name, count, format) in [
        ("fragmented", RANGES / 4, Format::Text),
        ("many", RANGES, Format::Text),
        ("all-known", RANGES / 4, Format::JsonLines),
    ] {
        let mut stored = Vec::new();
        FileType { format, compression: None }.write(&map(count), &mut stored).unwrap();

        let start = Instant::now();
        let map = read(&stored[..], format).unwrap();
        let loaded = start.elapsed();
        let mut page = Vec::new();
        report::write(&map, &report::ReportOptions { title: name, ..Default::default() }, &mut page).unwrap();
        let all = start.elapsed();
        println!(
            "{name}: {count} files, {RANGES} ranges: read in {:.2} s, all in {:.2} s, {:.1} MB",
            loaded.as_secs_f64(),
            all.as_secs_f64(),
            page.len() as f64 / 1e6
        );
        if let Some(directory) = files {
            std::fs::create_dir_all(directory).unwrap();
            std::fs::write(directory.join(name).with_extension("html"), &page).unwrap();
            std::fs::write(directory.join(name).with_extension("bmap"), &stored).unwrap();
        }
        assert!(all <= MOST_TIME, "{name} took {all:?}, and may take {MOST_TIME:?}");
        assert!(page.len() <= MOST_BYTES, "{name} has {} bytes, and may have {MOST_BYTES}", page.len());
    }
}
