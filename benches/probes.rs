//! How fast guests are mapped: all probes on the same images, in one run.
//!
//! ```text
//! cargo bench --bench probes                  # three guests; writes a table in docs/performance.md
//! cargo bench --bench probes -- million       # 1,000,000 files; writes another one
//! cargo bench --bench probes -- large         # some of small, large, many, million; writes nothing
//! ```
//!
//! Needs `mke2fs` (e2fsprogs) and what mapping needs. Only the small guest is read by libguestfs's own calls:
//! another would take half an hour. The bars are printed beside, and exceeded bars end the run with status 1.
//! All but the small and the million are mapped three times, and the fastest counts. Nothing else should run
//! meanwhile.

#![allow(clippy::expect_used)]

#[path = "common/page.rs"]
mod page;

use std::fmt::Write as _;
use std::fs;
use std::num::NonZeroU32;
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
    /// Mean size of a file; where it is a block, every other file has one, and the others are empty.
    mean: u64,
    image_mib: u64,
    /// How often it is mapped with each probe.
    runs: usize,
}

const SMALL: Guest =
    Guest { name: "small", directories: 20, files: 180, mean: 44_444, image_mib: 64, runs: 1 };
const LARGE: Guest =
    Guest { name: "large", directories: 1_000, files: 9_000, mean: 44_444, image_mib: 700, runs: 3 };
const MANY: Guest =
    Guest { name: "many", directories: 5_000, files: 95_000, mean: 6_000, image_mib: 1_600, runs: 3 };
const MILLION: Guest =
    Guest { name: "million", directories: 20_000, files: 980_000, mean: 4_096, image_mib: 4_096, runs: 1 };

const EACH: Probe = Probe::Extents { every: NonZeroU32::MIN };
const HUNDREDTH: Probe = Probe::Extents { every: NonZeroU32::new(100).expect("100 is not 0") };

/// What a full read by the agent may cost on the large guest, emulated.
const MS_PER_OBJECT: f64 = 0.8;
const SECONDS_IN_ALL: f64 = 25.0;
/// How many times as fast as libguestfs's own calls that has to be, for each object.
const TIMES_AS_FAST: f64 = 150.0;
/// What an object may cost among many where the ends of extents are read.
const MS_PER_OBJECT_BY_ENDS: f64 = 0.12;
const PEAK_MEMORY: f64 = 200.0;

/// What the runs of one probe on one guest gave.
struct Measured {
    guest: &'static str,
    probe: Probe,
    objects: u64,
    bytes: u64,
    /// The fastest of the runs.
    reading: Duration,
    total: Duration,
    /// Most memory that this process had, in MB.
    peak: f64,
}

impl Measured {
    fn ms_per_object(&self) -> f64 {
        self.reading.as_secs_f64() * 1e3 / self.objects as f64
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let is_wanted = |guest: &Guest| match arguments.as_slice() {
        [] => guest.name != "million",
        named => named.iter().any(|name| name == guest.name),
    };
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("probes");
    let mut all = Vec::new();
    for guest in [SMALL, LARGE, MANY, MILLION].iter().filter(|guest| is_wanted(guest)) {
        let image = guest.image(&directory);
        let probes: &[Probe] = match guest.name {
            "small" => &[Probe::Guestfsd, Probe::Agent, EACH],
            _ => &[Probe::Agent, EACH, HUNDREDTH],
        };
        all.extend(probes.iter().map(|probe| guest.measure(&image, *probe)));
    }
    let name = match arguments.as_slice() {
        [] => Some("mapping"),
        [only] if only == "million" => Some("million"),
        _ => None,
    };
    if let Some(name) = name {
        page::replace(name, &table(&all));
    }
    judge(&all)
}

/// Compares with the bars those that were measured.
fn judge(all: &[Measured]) -> ExitCode {
    let of = |guest: &str, probe| all.iter().find(|m| m.guest == guest && m.probe == probe);
    let mut bars: Vec<(String, f64, f64)> = Vec::new();
    if let Some(agent) = of("large", Probe::Agent) {
        bars.push(("large, agent: ms per object".into(), agent.ms_per_object(), MS_PER_OBJECT));
        bars.push(("large, agent: seconds in all".into(), agent.total.as_secs_f64(), SECONDS_IN_ALL));
        if let Some(stock) = of("small", Probe::Guestfsd) {
            let times = stock.ms_per_object() / agent.ms_per_object();
            println!("the agent is {times:.0} times as fast as guestfsd for each object");
            bars.push(("percent of the agent's bar for that".into(), TIMES_AS_FAST / times * 100.0, 100.0));
        }
    }
    if let Some(ends) = of("many", EACH) {
        bars.push(("many, extents: ms per object".into(), ends.ms_per_object(), MS_PER_OBJECT_BY_ENDS));
    }
    bars.extend(
        all.iter().map(|m| (format!("{}, {}: MB of memory", m.guest, name(m.probe)), m.peak, PEAK_MEMORY)),
    );
    let mut exit = ExitCode::SUCCESS;
    for (what, value, bar) in bars {
        println!("{what}: {value:.2}, at most {bar}");
        if value > bar {
            exit = ExitCode::FAILURE;
        }
    }
    exit
}

fn name(probe: Probe) -> String {
    match probe {
        Probe::Agent => "agent".into(),
        Probe::Guestfsd => "guestfsd".into(),
        EACH => "extents".into(),
        Probe::Extents { every } => format!("extents, spot check {every}"),
    }
}

fn table(all: &[Measured]) -> String {
    let mut table = String::from(
        "| guest | probe | objects | MB | reading | for each object | beside `guestfsd` | the rest (boot) | memory |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    let stock = all.iter().find(|m| m.probe == Probe::Guestfsd).map(Measured::ms_per_object);
    for m in all {
        let times = stock.map_or("-".into(), |stock| format!("{:.0} times", stock / m.ms_per_object()));
        let rest = m.total.saturating_sub(m.reading).as_secs_f64();
        let _ = writeln!(
            table,
            "| {} | {} | {} | {:.0} | {:.2} s | {:.3} ms | {times} | {rest:.1} s | {:.0} MB |",
            m.guest,
            name(m.probe),
            m.objects,
            m.bytes as f64 / 1e6,
            m.reading.as_secs_f64(),
            m.ms_per_object(),
            m.peak,
        );
    }
    table
}

/// Maps an image once: objects, bytes of them, how long reading took, and how long it all took.
fn map(image: &Path, probe: Probe) -> (u64, u64, Duration, Duration) {
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
    let objects = mapped.counts.directories + mapped.counts.files;
    (objects, data.max(last.bytes), ended - began.unwrap_or(ended), mapped.elapsed)
}

impl Guest {
    /// Maps the guest as often as it says.
    fn measure(&self, image: &Path, probe: Probe) -> Measured {
        // The kernel forgets how much memory there was: proc(5).
        fs::write("/proc/self/clear_refs", "5").expect("the kernel forgets");
        let mut best = Measured {
            guest: self.name,
            probe,
            objects: 0,
            bytes: 0,
            reading: Duration::MAX,
            total: Duration::MAX,
            peak: 0.0,
        };
        for _ in 0..self.runs {
            let (objects, bytes, reading, total) = map(image, probe);
            println!(
                "{}, {}: {objects} objects, {:.1} MB in {:.2} s, {:.4} ms each; {:.1} s in all",
                self.name,
                name(probe),
                bytes as f64 / 1e6,
                reading.as_secs_f64(),
                reading.as_secs_f64() * 1e3 / objects as f64,
                total.as_secs_f64(),
            );
            (best.objects, best.bytes) = (objects, bytes);
            best.reading = best.reading.min(reading);
            best.total = best.total.min(total);
        }
        best.peak = peak_memory() as f64 / 1e6;
        best
    }

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
            let mean = self.mean;
            let size = if mean == 4096 {
                number as u64 % 2 * mean
            } else if random.next().is_multiple_of(10) {
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
            .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-N"])
            // The directories above those of the files, and what every ext4 has, need some too.
            .arg((self.files + self.directories * 2 + 64).to_string())
            .arg("-d")
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
