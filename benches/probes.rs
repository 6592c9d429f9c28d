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

#[path = "common/guest.rs"]
mod guest;
#[path = "common/page.rs"]
mod page;

use guest::{Guest, MANY};
use std::fmt::Write as _;
use std::fs;
use std::num::NonZeroU32;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use virt_bmap::bmap::{Map, Object};
use virt_bmap::mapper::Options;
use virt_bmap::probe::Probe;

const SMALL: Guest =
    Guest { name: "small", directories: 20, files: 180, mean: 44_444, image_mib: 64, runs: 1 };
const LARGE: Guest =
    Guest { name: "large", directories: 1_000, files: 9_000, mean: 44_444, image_mib: 700, runs: 3 };
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
        all.extend(probes.iter().map(|probe| measure(guest, &image, *probe)));
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

/// Maps a guest as often as it says.
fn measure(guest: &Guest, image: &Path, probe: Probe) -> Measured {
    // The kernel forgets how much memory there was: proc(5).
    fs::write("/proc/self/clear_refs", "5").expect("the kernel forgets");
    let mut best = Measured {
        guest: guest.name,
        probe,
        objects: 0,
        bytes: 0,
        reading: Duration::MAX,
        total: Duration::MAX,
        peak: 0.0,
    };
    for _ in 0..guest.runs {
        let run = guest::map(image, &Options { probe, ..Options::default() });
        let (objects, bytes) =
            (run.mapped.counts.directories + run.mapped.counts.files, bytes(&run.mapped.map));
        let (reading, total) = (run.reading, run.mapped.elapsed);
        println!(
            "{}, {}: {objects} objects, {:.1} MB in {:.2} s, {:.4} ms each; {:.1} s in all",
            guest.name,
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

/// Bytes of all directories and files.
fn bytes(map: &Map) -> u64 {
    let named = map.objects().filter(|object| !object.name().path.is_empty());
    named.flat_map(Object::pieces).map(|piece| piece.range.len()).sum()
}

/// Most memory that this process had, in bytes (`VmHWM` of proc(5)).
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel says");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}
