//! How fast guests are mapped: both probes on the same images, in one run.
//!
//! ```text
//! cargo bench --bench probes                  # a guest of 10,000 objects and 400 MB, and a small one
//! cargo bench --bench probes -- --small       # the small one alone
//! ```
//!
//! Needs `mke2fs` (e2fsprogs) and what mapping needs. The large guest is read by the agent alone: the other
//! probe would take half an hour. The bars that it is held to are printed beside, and exceeded bars end the
//! run with status 1. The large guest is mapped three times, and the fastest counts. Nothing else should run
//! meanwhile.

#![allow(clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use virt_bmap::mapper::{Cancel, Disk, Event, Options, map_guest};
use virt_bmap::probe::channel::Snapshot;
use virt_bmap::probe::{Phase, Probe};

/// A guest to be mapped: one ext4 file system on a whole disk.
struct Guest {
    name: &'static str,
    directories: usize,
    files: usize,
    bytes: u64,
    image_mib: u64,
}

const SMALL: Guest = Guest { name: "small", directories: 20, files: 180, bytes: 8_000_000, image_mib: 64 };
const LARGE: Guest =
    Guest { name: "large", directories: 1_000, files: 9_000, bytes: 400_000_000, image_mib: 700 };

/// What a full read by the agent may cost on the large guest, emulated.
const MS_PER_OBJECT: f64 = 0.8;
const SECONDS_IN_ALL: f64 = 25.0;
const PEAK_MEMORY: u64 = 200_000_000;

struct Result {
    objects: u64,
    bytes: u64,
    reading: Duration,
    total: Duration,
}

fn main() -> ExitCode {
    let small_only = std::env::args().any(|argument| argument == "--small");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("probes");
    println!(
        "{:6} {:9} {:>8} {:>8} {:>9} {:>11} {:>9} {:>8}",
        "guest", "probe", "objects", "MB", "reading s", "ms/object", "MB/s", "total s"
    );
    let small = SMALL.image(&directory);
    let reference = report(&SMALL, &small, Probe::Guestfsd);
    let agent = report(&SMALL, &small, Probe::Agent);
    let per_object = |r: &Result| r.reading.as_secs_f64() / r.objects as f64;
    println!("the agent is {:.0} times as fast for each object", per_object(&reference) / per_object(&agent));
    if small_only {
        return ExitCode::SUCCESS;
    }
    let image = LARGE.image(&directory);
    // The best of three: whatever else the machine does only ever makes a run slower.
    let runs = [(); 3].map(|()| report(&LARGE, &image, Probe::Agent));
    let fastest = |of: fn(&Result) -> Duration| runs.iter().map(of).min().unwrap_or_default();
    let ms_per_object = fastest(|run| run.reading).as_secs_f64() * 1e3 / runs[0].objects as f64;
    let bars = [
        ("ms per object", ms_per_object, MS_PER_OBJECT),
        ("seconds in all", fastest(|run| run.total).as_secs_f64(), SECONDS_IN_ALL),
        ("peak memory in MB", peak_memory() as f64 / 1e6, PEAK_MEMORY as f64 / 1e6),
    ];
    let mut exit = ExitCode::SUCCESS;
    for (what, value, bar) in bars {
        println!("large, agent: {what}: {value:.2}, at most {bar}");
        if value > bar {
            exit = ExitCode::FAILURE;
        }
    }
    exit
}

fn report(guest: &Guest, image: &Path, probe: Probe) -> Result {
    let result = map(image, probe);
    let (reading, total) = (result.reading.as_secs_f64(), result.total.as_secs_f64());
    println!(
        "{:6} {:9} {:8} {:8.1} {:9.2} {:11.3} {:9.1} {:8.1}",
        guest.name,
        format!("{probe:?}").to_lowercase(),
        result.objects,
        result.bytes as f64 / 1e6,
        reading,
        reading * 1e3 / result.objects as f64,
        result.bytes as f64 / 1e6 / reading,
        total
    );
    result
}

fn map(image: &Path, probe: Probe) -> Result {
    let disks = [Disk { path: image.to_owned(), format: Some(virt_bmap::image::Format::Raw) }];
    let options = Options { probe, ..Options::default() };
    let (mut began, mut ended, mut last) = (None, None, Snapshot::default());
    let mapped = map_guest(&disks, &options, &Cancel::default(), &mut |event| {
        if let Event::Progress(phase, snapshot) = event {
            match phase {
                Phase::Filesystem { .. } => {
                    began.get_or_insert_with(Instant::now);
                    last = snapshot;
                }
                Phase::Closing => {
                    ended.get_or_insert_with(Instant::now);
                }
                _ => {}
            }
        }
    })
    .expect("the guest is mapped");
    assert!(mapped.unexamined.is_empty() && mapped.warnings.is_empty());
    let ended = ended.unwrap_or_else(Instant::now);
    let data: u64 = mapped
        .map
        .objects()
        .filter(|o| !o.name().path.is_empty())
        .flat_map(|o| o.pieces().map(|p| p.range.len()).collect::<Vec<_>>())
        .sum();
    Result {
        objects: mapped.counts.directories + mapped.counts.files,
        bytes: data.max(last.bytes),
        reading: ended - began.unwrap_or(ended),
        total: mapped.elapsed,
    }
}

impl Guest {
    /// Makes the image, if it is not there from a former run.
    fn image(&self, directory: &Path) -> PathBuf {
        let image = directory.join(format!("{}.img", self.name));
        if image.exists() {
            return image;
        }
        let tree = directory.join(self.name);
        let mut random = Random(1);
        let mut content = vec![0; 8 << 20];
        for chunk in content.chunks_mut(8) {
            chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
        }
        let mut folder = tree.clone();
        for number in 0..self.files {
            if number.is_multiple_of((self.files / self.directories).max(1)) {
                folder = tree.join(format!("d{}", number % 17)).join(format!("directory{number}"));
                fs::create_dir_all(&folder).expect("a directory is made");
            }
            // Sizes as in real guests: most files are small, a few are large, the mean is what is asked for.
            let mean = self.bytes / self.files as u64;
            let size = if random.next().is_multiple_of(10) {
                random.next() % (mean * 14)
            } else {
                random.next() % (mean * 2 / 3)
            };
            let from = (random.next() % 1024) as usize;
            let size = (size as usize).min(content.len() - from);
            fs::write(folder.join(format!("file{number}")), &content[from..from + size])
                .expect("a file is written");
        }
        let partial = image.with_extension("partial");
        let file = fs::File::create(&partial).expect("an image is made");
        file.set_len(self.image_mib << 20).expect("an image gets its size");
        let status = Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-d"])
            .arg(&tree)
            .arg(&partial)
            .status();
        assert!(status.expect("mke2fs runs").success());
        fs::rename(&partial, &image).expect("the image gets its name");
        fs::remove_dir_all(&tree).expect("the tree is removed");
        image
    }
}

/// Numbers that are the same on every run (a linear congruential generator).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 20
    }
}

/// Most memory that this process had, in bytes (`VmHWM` of proc(5)).
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel says");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}
