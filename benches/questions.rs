//! Speed of the answers to questions about a map, with maps and lists of a million ranges.
//!
//! `cargo bench --bench questions` measures the parts of the code. `cargo bench --bench questions
//! -- --files DIR` writes the maps and lists into a directory, so that the program itself can be
//! measured.
#![allow(clippy::unwrap_used)] // a benchmark that cannot run has nothing better to do

use criterion::{Criterion, Throughput};
use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;
use virt_bmap::changed::{Written, changes};
use virt_bmap_map::diff::diff;
use virt_bmap_map::list::{Select, list};
use virt_bmap_map::lookup::{damage, tally};
use virt_bmap_map::rangelist::{self, RangeListOptions};
use virt_bmap_map::{
    Attributes, Header, ImageFile, ImageInfo, Kind, Map, MapBuilder, ObjectName, save, text,
};
use virt_bmap_ranges::{DiskRange, FileOffset};
use virt_bmap_testutil::random::Random;

const RANGES: u64 = 1_000_000;

/// A disk with one partition and a million pieces of 4 to 64 KiB in 250,000 files. In the second
/// `generation` every tenth piece lies elsewhere, and every tenth file has another name.
fn map(generation: u64) -> Map {
    let mut random = Random::of(0, 1);
    let mut other = Random::of(0, 2);
    let mut builder = MapBuilder::new(Header::default());
    let files: Vec<_> = (0..RANGES / 4)
        .map(|file| {
            let renamed = if generation > 0 && file % 10 == 0 { "-renamed" } else { "" };
            let path = format!(
                "/usr/share/package-{}/files/part-{}/name-{file}{renamed}",
                file / 1000,
                file / 37 % 27
            );
            let name = ObjectName::path(Kind::File, b"/dev/sda1", path.as_bytes());
            builder.object(name, Attributes::default()).unwrap()
        })
        .collect();
    let mut end = 1 << 20;
    for piece in 0..RANGES {
        let file = files[random.below(files.len() as u64) as usize];
        let mut start = end + 4096 * random.below(3);
        let length = 4096 * (1 + random.below(16));
        end = start + length;
        if generation > 0 && other.below(10) == 0 {
            start += 1 << 44;
        }
        builder.piece(file, 1, DiskRange::new(start, start + length), Some(FileOffset(piece << 20))).unwrap();
    }
    for (kind, device) in [(Kind::Disk, &b"/dev/sda"[..]), (Kind::Partition, b"/dev/sda1")] {
        let object = builder.object(ObjectName::device(kind, device), Attributes::default()).unwrap();
        builder.piece(object, 1, DiskRange::new(0, 1 << 46), None).unwrap();
    }
    let image = ImageFile { name: b"guest.raw".to_vec(), format: "raw".into() };
    builder.header_mut().images =
        vec![ImageInfo { disk: 1, size: 1 << 46, sector: 512, image, snapshot: None, chain: Vec::new() }];
    builder.build()
}

/// A million ranges of 4 to 128 KiB across the files, as plain lines and as output of `qemu-img
/// map`.
fn lists() -> (String, String) {
    let mut random = Random::of(0, 3);
    let (mut plain, mut json) = (String::new(), String::from("["));
    let mut start = 0;
    for range in 0..RANGES {
        let end = start + 4096 * (1 + random.below(16));
        let depth = range % 2;
        writeln!(plain, "{start:#x} {}", (end - start) / 2).unwrap();
        let comma = if range == 0 { "" } else { ",\n" };
        write!(json, r#"{comma}{{ "start": {start}, "length": {}, "depth": {depth}, "present": true, "zero": false, "data": true, "offset": {start}}}"#, end - start).unwrap();
        start = end;
    }
    let rest = (1u64 << 46) - start;
    writeln!(json, ",\n{{ \"start\": {start}, \"length\": {rest}, \"depth\": 1, \"present\": true, \"zero\": true, \"data\": false}}]").unwrap();
    (plain, json)
}

fn write_files(directory: &Path) {
    std::fs::create_dir_all(directory).unwrap();
    save(&map(0), &directory.join("old.bmap")).unwrap();
    save(&map(1), &directory.join("new.bmap")).unwrap();
    let (plain, json) = lists();
    std::fs::write(directory.join("ranges.txt"), plain).unwrap();
    std::fs::write(directory.join("ranges.json"), json).unwrap();
}

fn measure(c: &mut Criterion) {
    let mut group = c.benchmark_group("1,000,000 ranges");
    group.sample_size(10);
    let (plain, json) = lists();
    for (name, list) in [("plain lines", &plain), ("qemu-img map", &json)] {
        group.throughput(Throughput::Bytes(list.len() as u64));
        group.bench_function(format!("read {name}"), |b| {
            b.iter(|| rangelist::read(list.as_bytes(), &RangeListOptions::default()).unwrap());
        });
    }
    group.throughput(Throughput::Elements(RANGES));
    let (old, new) = (map(0), map(1));
    let list_of_ranges = rangelist::read(plain.as_bytes(), &RangeListOptions::default()).unwrap();
    let spans = &list_of_ranges.spans;
    group.bench_function("tally", |b| b.iter(|| black_box(tally(&old, 1, spans).shares.len())));
    group.bench_function("damage", |b| b.iter(|| black_box(damage(&old, 1, spans).hit.len())));
    group.bench_function("diff", |b| b.iter(|| black_box(diff(&old, &new).len())));
    let written = Written { held: spans.clone(), differs: spans.clone(), ..Written::default() };
    group.bench_function("changed", |b| {
        b.iter(|| black_box(changes(&old, &new, 1, &written).files.len()));
    });
    let select = Select { kinds: vec![Kind::File], device: None, globs: Vec::new() };
    group.bench_function("list", |b| b.iter(|| black_box(list(&old, &select).len())));
    let mut written = Vec::new();
    text::write(&old, &mut written).unwrap();
    group.bench_function("read the map", |b| b.iter(|| text::read(&written[..]).unwrap()));
    group.finish();
}

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    if let Some(option) = arguments.iter().position(|argument| argument == "--files") {
        return write_files(Path::new(&arguments[option + 1]));
    }
    let mut criterion = Criterion::default().configure_from_args();
    measure(&mut criterion);
    criterion.final_summary();
}
