//! Speed of the block map, on a real map if it exists and on a map of five million pieces.
//!
//! `cargo bench --bench bmap` measures times. `cargo bench --bench bmap -- --memory WHAT` does one
//! thing and prints the peak memory of the whole process. `objects` builds a map of 1,000,000
//! files. `pieces` builds a map of 5,000,000 pieces and looks things up in it. `text` reads a map
//! of 5,000,000 lines. `jsonl` reads JSON Lines of 1,000,000 files and ranges.
#![allow(clippy::unwrap_used)] // a benchmark that cannot run has nothing better to do

use criterion::{BatchSize, Criterion, Throughput};
use std::hint::black_box;
use std::io::{self, Read, Seek};
use std::path::Path;
use std::time::Instant;
use virt_bmap_map::{
    Attributes, Compression, FileType, Format, Header, Kind, Map, MapBuilder, Marks, ObjectName, read, text,
};
use virt_bmap_ranges::{DiskOffset, DiskRange, FileOffset};
use virt_bmap_testutil::random::Random;

/// A disk with one partition. It has `files` files, each with `pieces_per_file` pieces of 4 to 64
/// KiB. Most pieces do not touch each other.
fn synthetic(files: u64, pieces_per_file: u64) -> (Map, u64) {
    let mut random = Random::of(0, 1);
    let mut builder = MapBuilder::new(Header::default());
    let handles: Vec<_> = (0..files)
        .map(|file| {
            let path =
                format!("/usr/share/some-package-{}/files/part-{}/name-{file}", file / 1000, file / 37 % 27);
            let name = ObjectName::path(Kind::File, b"/dev/sda1", path.as_bytes());
            let attributes = Attributes {
                owner: None,
                born: None,
                inode: Some(file + 12),
                size: Some(1 << 50),
                links: Some(1),
                allocated: Some(4096),
                mode: Some(0o100_644),
                modified: Some(1_400_000_000_000_000_000 + file as i64),
                changed: Some(1_400_000_000_000_000_000 + file as i64),
                marks: Marks::UNVERIFIED,
                reparse: None,
            };
            builder.object(name, attributes).unwrap()
        })
        .collect();
    let mut end = 1 << 20;
    for piece in 0..files * pieces_per_file {
        // Each piece goes to a random file, so that neighbouring pieces rarely belong to the same
        // file.
        let file = handles[random.below(files) as usize];
        let start = end + 4096 * random.below(3);
        end = start + 4096 * (1 + random.below(16));
        builder.piece(file, 1, DiskRange::new(start, end), Some(FileOffset(piece << 20))).unwrap();
    }
    for (kind, device) in [(Kind::Disk, &b"/dev/sda"[..]), (Kind::Partition, b"/dev/sda1")] {
        let object = builder.object(ObjectName::device(kind, device), Attributes::default()).unwrap();
        builder.piece(object, 1, DiskRange::new(0, end), None).unwrap();
    }
    (builder.build(), end)
}

fn fedora() -> Option<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures/fedora-20.bmap.gz");
    let Ok(file) = std::fs::File::open(&path) else {
        eprintln!("SKIPPED: {} is not there", path.display());
        return None;
    };
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut text).unwrap();
    Some(text)
}

fn on_the_fedora_map(c: &mut Criterion) {
    let Some(text) = fedora() else { return };
    let map = text::read(&text[..]).unwrap();
    let size = map.pieces().map(|piece| piece.range.end.0).max().unwrap();
    let mut group = c.benchmark_group("fedora 20");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("read", |b| b.iter(|| text::read(&text[..]).unwrap()));
    group.bench_function("write", |b| b.iter(|| text::write(&map, io::sink()).unwrap()));

    let mut random = Random::of(0, 2);
    let windows: Vec<_> = (0..1000)
        .map(|_| (random.below(size), random.below(size)))
        .map(|(a, b)| DiskRange::new(a.min(b), a.max(b)))
        .collect();
    let hits: usize = windows.iter().map(|&window| map.over(1, window).count()).sum();
    group.throughput(Throughput::Elements(hits as u64));
    group.bench_function("over 1000 wide windows", |b| {
        b.iter(|| {
            for &window in &windows {
                for hit in map.over(1, window) {
                    black_box((hit.object, hit.range, hit.file_offset));
                }
            }
        });
    });
    group.bench_function("over 1000 wide windows, most specific first", |b| {
        b.iter(|| {
            for &window in &windows {
                black_box(map.over(1, window).most_specific_first());
            }
        });
    });
    let mut offsets = std::iter::repeat_with(|| random.below(size));
    group.throughput(Throughput::Elements(1));
    group.bench_function("at", |b| {
        b.iter_batched(|| offsets.next().unwrap(), |at| map.at(1, DiskOffset(at)), BatchSize::SmallInput);
    });
    group.finish();
}

fn on_five_million_pieces(c: &mut Criterion) {
    let (map, size) = synthetic(1_000_000, 5);
    let mut group = c.benchmark_group("5,000,000 pieces");
    group.sample_size(10);
    let mut random = Random::of(0, 3);
    let offsets: Vec<_> = (0..1_000_000).map(|_| DiskOffset(random.below(size))).collect();
    group.throughput(Throughput::Elements(offsets.len() as u64));
    group.bench_function("at", |b| {
        b.iter(|| {
            for &offset in &offsets {
                black_box(map.at(1, offset));
            }
        });
    });
    group.bench_function("at_each", |b| {
        b.iter(|| {
            map.at_each(1, &offsets, |_, hits| {
                black_box(hits);
            });
        });
    });
    group.bench_function("at, with names", |b| {
        b.iter(|| {
            for &offset in &offsets {
                for hit in map.at(1, offset) {
                    black_box(hit.object.name());
                }
            }
        });
    });
    group.bench_function("over 128 KiB, most specific first", |b| {
        b.iter(|| {
            for &offset in &offsets {
                black_box(
                    map.over(1, DiskRange::new(offset.0, offset.0 + (128 << 10))).most_specific_first(),
                );
            }
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("write text", |b| b.iter(|| text::write(&map, io::sink()).unwrap()));
    group.finish();
}

/// A million ranges of 200,000 files, in each format.
fn formats(c: &mut Criterion) {
    let (map, _) = synthetic(200_000, 5);
    let mut group = c.benchmark_group("1,000,000 ranges");
    group.sample_size(10);
    for (name, format) in [
        ("text", Format::Text),
        ("jsonl", Format::JsonLines),
        ("csv", Format::Csv),
        ("dfxml", Format::Dfxml),
        ("parquet", Format::Parquet),
    ] {
        let write = |compression| {
            let mut out = Vec::new();
            FileType { format, compression }.write(&map, &mut out).unwrap();
            out
        };
        let zstd = Some(Compression::Zstd);
        let (plain, compressed) = (write(None), write(zstd));
        eprintln!("{name}: {} bytes, {} with zstd", plain.len(), compressed.len());
        group.throughput(Throughput::Bytes(plain.len() as u64));
        group.bench_function(format!("save {name}"), |b| b.iter(|| format.write(&map, io::sink()).unwrap()));
        if matches!(format, Format::Text | Format::JsonLines | Format::Csv) {
            group.bench_function(format!("load {name}"), |b| b.iter(|| read(&plain[..], format).unwrap()));
        }
        if format == Format::JsonLines {
            let file = FileType { format, compression: zstd };
            group.bench_function("save jsonl.zst", |b| b.iter(|| file.write(&map, io::sink()).unwrap()));
            group.bench_function("load jsonl.zst", |b| b.iter(|| read(&compressed[..], format).unwrap()));
        }
    }
    group.finish();
}

/// The text of a map of five million lines, which is made while it is read.
struct Lines {
    random: Random,
    lines: u64,
    file: u64,
    end: u64,
    ready: io::Cursor<Vec<u8>>,
}

impl Read for Lines {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.ready.position() == self.ready.get_ref().len() as u64 && self.lines > 0 {
            let block = self.ready.get_mut();
            block.clear();
            while block.len() < 200_000 && self.lines > 0 {
                let (start, file) = (self.end, self.file);
                let end = start + 4096 * (1 + self.random.below(16));
                if self.random.below(4) > 0 {
                    let package = file / 1000;
                    let part = file / 37 % 27;
                    let line = format!(
                        "1 {start:x} {end:x} f /dev/sda1 /usr/share/some-package-{package}/files/part-{part}/name-{file}\n"
                    );
                    block.extend_from_slice(line.as_bytes());
                    self.lines -= 1;
                    self.file += 1;
                }
                for device in ["p /dev/sda1", "v /dev/sda"] {
                    block.extend_from_slice(format!("1 {start:x} {end:x} {device}\n").as_bytes());
                    self.lines = self.lines.saturating_sub(1);
                }
                self.end = end;
            }
            self.ready.set_position(0);
        }
        self.ready.read(buffer)
    }
}

/// Does one thing in this process, and prints how long it took and the peak memory.
fn memory(what: &str) {
    let start = Instant::now();
    let map = match what {
        "objects" => synthetic(1_000_000, 1).0,
        "pieces" => synthetic(1_000_000, 5).0,
        "text" => {
            let lines = Lines {
                random: Random::of(0, 4),
                lines: 5_000_000,
                file: 0,
                end: 0,
                ready: io::Cursor::default(),
            };
            text::read(lines).unwrap()
        }
        "jsonl" => {
            let mut file = tempfile::tempfile().unwrap();
            if std::env::var_os("BENCH_JSONL").is_none() {
                // Another process makes the file, so that its memory is not counted.
                let mut child = std::process::Command::new(std::env::current_exe().unwrap());
                let child = child.args(["--memory", "jsonl"]).env("BENCH_JSONL", "1");
                assert!(child.stdout(file.try_clone().unwrap()).status().unwrap().success());
                file.rewind().unwrap();
                read(file, Format::JsonLines).unwrap()
            } else {
                return Format::JsonLines.write(&synthetic(1_000_000, 1).0, io::stdout()).unwrap();
            }
        }
        _ => panic!("--memory objects|pieces|text|jsonl"),
    };
    println!("made in {:?}: {} objects, {} pieces", start.elapsed(), map.objects().len(), map.pieces().len());
    let peak = || format!("{} kB", virt_bmap::fleet::capacity::peak_memory().unwrap() >> 10);
    println!("peak {}", peak());
    if what == "objects" {
        let start = Instant::now();
        text::write(&map, io::sink()).unwrap();
        println!("written as text in {:?}, peak {}", start.elapsed(), peak());
    } else {
        let start = Instant::now();
        black_box(map.at(1, DiskOffset(0)));
        println!("indexed in {:?}, peak {}", start.elapsed(), peak());
    }
}

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    if let Some(option) = arguments.iter().position(|argument| argument == "--memory") {
        memory(arguments.get(option + 1).map_or("", String::as_str));
        return;
    }
    let mut criterion = Criterion::default().configure_from_args();
    on_the_fedora_map(&mut criterion);
    on_five_million_pieces(&mut criterion);
    formats(&mut criterion);
    criterion.final_summary();
}
