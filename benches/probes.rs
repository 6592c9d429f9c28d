//! How fast guests are mapped: all probes on the same images, in one run.
//!
//! ```text
//! cargo bench --bench probes              # three guests; writes a table in docs/performance.md
//! cargo bench --bench probes -- million   # 1,000,000 files; writes another table there
//! cargo bench --bench probes -- large     # any of medium, large, many, million; writes nothing
//! ```
//!
//! Needs `mke2fs` (e2fsprogs) and what mapping needs. Only the medium guest is also read by
//! libguestfs's own calls, which takes minutes. The large one would take half an hour. The limits
//! are printed with the results, and a result above its limit ends the run with status 1. A guest
//! is mapped three times with each probe, and the fastest run counts. The million files, and
//! libguestfs's own calls, run only once. Each probe has a new process for each guest, since a
//! process may keep the memory that it once had. Nothing else should run at the same time.

#![allow(clippy::expect_used)]

#[path = "common/guest.rs"]
mod guest;
#[path = "common/page.rs"]
mod page;

use guest::{Guest, LARGE, MANY, MEDIUM, MILLION};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use virt_bmap::fleet::capacity::peak_memory;
use virt_bmap::mapper::MapperOptions;
use virt_bmap::probe::{Probe, Proof};
use virt_bmap_map::{Map, Object};

static GUESTS: [Guest; 4] = [MEDIUM, LARGE, MANY, MILLION];

const EACH: Probe = Probe::Extents(Proof::Every);
const SAMPLE: Probe = Probe::Extents(Proof::Sample { one_in: Proof::ONE_IN, seed: None });

/// The most that a full read by the agent may cost on the large guest, in an emulated appliance.
const MS_PER_OBJECT: f64 = 0.8;
const SECONDS_IN_ALL: f64 = 25.0;
/// How many times as fast the agent must be as libguestfs's own calls, for each object of the same
/// guest.
const TIMES_AS_FAST: f64 = 150.0;
/// What an object may cost among many if spot checks read the ends of extents.
const MS_PER_OBJECT_BY_ENDS: f64 = 0.12;
const PEAK_MEMORY: f64 = 200.0;

/// The results of the runs of one probe on one guest.
struct Measured {
    guest: &'static str,
    probe: Probe,
    figures: Figures,
}

/// The figures that a measuring process prints for the process that started it.
#[derive(Serialize, Deserialize)]
struct Figures {
    objects: u64,
    bytes: u64,
    /// The time of the fastest run.
    reading: Duration,
    total: Duration,
    /// The peak memory of the process, in MB.
    peak: f64,
    /// The processor time of the process for all runs, divided by their number.
    processor: Duration,
    /// What the agent did in the fastest run, and for how long by its own clock.
    phases: Vec<(String, f64)>,
}

impl Figures {
    fn ms_per_object(&self) -> f64 {
        self.reading.as_secs_f64() * 1e3 / self.objects as f64
    }
}

/// The first argument of a process that measures one guest with one probe.
const ONE: &str = "one";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("probes");
    if let [one, guest, probe] = arguments.as_slice()
        && one == ONE
    {
        return measure(guest, probe, &directory);
    }
    let is_wanted = |guest: &Guest| match arguments.as_slice() {
        [] => guest.name != MILLION.name,
        named => named.iter().any(|name| name == guest.name),
    };
    let mut all = Vec::new();
    for guest in GUESTS.iter().filter(|guest| is_wanted(guest)) {
        guest.image(&directory);
        let probes: &[Probe] = match guest.name {
            "medium" => &[Probe::Guestfsd, Probe::Agent, EACH],
            _ => &[Probe::Agent, EACH, SAMPLE],
        };
        all.extend(probes.iter().map(|probe| measured(guest, *probe)));
    }
    let name = match arguments.as_slice() {
        [] => Some("mapping"),
        [only] if only == MILLION.name => Some("million"),
        _ => None,
    };
    let tables = format!("{}\n{}", table(&all), table_of_phases(&all));
    println!("{tables}");
    if let Some(name) = name {
        page::replace(name, &tables);
    }
    judge(&all)
}

/// Compares the results that exist with the limits.
fn judge(all: &[Measured]) -> ExitCode {
    let of = |guest: &str, probe| all.iter().find(|m| m.guest == guest && m.probe == probe);
    let mut bars: Vec<(String, f64, f64)> = Vec::new();
    if let Some(agent) = of("large", Probe::Agent) {
        bars.push(("large, agent: ms per object".into(), agent.figures.ms_per_object(), MS_PER_OBJECT));
        bars.push(("large, agent: seconds in all".into(), agent.figures.total.as_secs_f64(), SECONDS_IN_ALL));
    }
    if let (Some(stock), Some(agent)) = (of("medium", Probe::Guestfsd), of("medium", Probe::Agent)) {
        let times = stock.figures.ms_per_object() / agent.figures.ms_per_object();
        println!("on the same guest the agent is {times:.0} times as fast as guestfsd for each object");
        bars.push(("percent of the agent's bar for that".into(), TIMES_AS_FAST / times * 100.0, 100.0));
    }
    if let Some(ends) = of("many", EACH) {
        bars.push((
            "many, extents: ms per object".into(),
            ends.figures.ms_per_object(),
            MS_PER_OBJECT_BY_ENDS,
        ));
    }
    bars.extend(
        all.iter()
            .map(|m| (format!("{}, {}: MB of memory", m.guest, name(m.probe)), m.figures.peak, PEAK_MEMORY)),
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
        EACH => "extents, `--proof every`".into(),
        Probe::Extents(_) => "extents".into(),
    }
}

fn table(all: &[Measured]) -> String {
    let mut table = String::from(
        "| guest | probe | objects | MB | reading | per object | speed, `guestfsd` = 1 | boot and rest | CPU time | memory |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    let stock = all.iter().find(|m| m.probe == Probe::Guestfsd).map(|m| m.figures.ms_per_object());
    for Measured { guest, probe, figures } in all {
        let each = figures.ms_per_object();
        let times = stock.map_or("-".into(), |stock| format!("{:.0}", stock / each));
        let _ = writeln!(
            table,
            "| {guest} | {} | {} | {:.0} | {:.2} s | {each:.3} ms | {times} | {:.1} s | {:.2} s | {:.0} MB |",
            name(*probe),
            figures.objects,
            figures.bytes as f64 / 1e6,
            figures.reading.as_secs_f64(),
            figures.total.saturating_sub(figures.reading).as_secs_f64(),
            figures.processor.as_secs_f64(),
            figures.peak,
        );
    }
    table
}

/// What the agent did, in percent of its time.
fn table_of_phases(all: &[Measured]) -> String {
    let mut table = String::new();
    for Measured { guest, probe, figures } in all.iter().filter(|m| !m.figures.phases.is_empty()) {
        if table.is_empty() {
            table.push_str("| guest | probe |");
            figures.phases.iter().for_each(|(name, _)| {
                let _ = write!(table, " {name} |");
            });
            let _ = writeln!(table, "\n|---|---|{}", "--:|".repeat(figures.phases.len()));
        }
        let all: f64 = figures.phases.iter().map(|(_, seconds)| seconds).sum();
        let _ = write!(table, "| {guest} | {} |", name(*probe));
        for (_, seconds) in &figures.phases {
            let _ = write!(table, " {:.0} % |", seconds / all * 100.0);
        }
        table.push('\n');
    }
    table
}

/// Lets another process map a guest.
fn measured(guest: &'static Guest, probe: Probe) -> Measured {
    let this = std::env::current_exe().expect("this program is somewhere");
    let output = Command::new(this).args([ONE, guest.name, &name(probe)]).stderr(Stdio::inherit()).output();
    let output = output.expect("this program runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    let (said, figures) = said.trim_end().rsplit_once('\n').expect("lines");
    println!("{said}");
    Measured { guest: guest.name, probe, figures: serde_json::from_str(figures).expect("figures") }
}

/// Maps a guest as often as its description says, and prints the results. The last line has the
/// [`Figures`].
fn measure(guest: &str, probe: &str, directory: &Path) -> ExitCode {
    let guest = GUESTS.iter().find(|known| known.name == guest).expect("a guest");
    let probe = *[Probe::Guestfsd, Probe::Agent, EACH, SAMPLE]
        .iter()
        .find(|known| name(**known) == probe)
        .expect("a probe");
    let image = guest.image(directory);
    let log = Log(directory.join("log"));
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.file())
        .init();
    let mut best = Figures {
        objects: 0,
        bytes: 0,
        reading: Duration::MAX,
        total: Duration::MAX,
        peak: 0.0,
        processor: Duration::ZERO,
        phases: Vec::new(),
    };
    // With libguestfs's own calls a run takes minutes.
    let runs = if probe == Probe::Guestfsd { 1 } else { guest.runs };
    for _ in 0..runs {
        log.clear();
        let run = guest::map(&image, &MapperOptions { probe, ..MapperOptions::default() });
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
        if reading < best.reading {
            best.phases = log.phases();
        }
        best.reading = best.reading.min(reading);
        best.total = best.total.min(total);
    }
    best.peak = peak_memory().expect("the kernel says") as f64 / 1e6;
    best.processor = processor_time() / runs as u32;
    println!("{}", serde_json::to_string(&best).expect("figures can be written"));
    ExitCode::SUCCESS
}

/// The file with the log of the library.
#[derive(Clone)]
struct Log(PathBuf);

impl Log {
    fn file(&self) -> fs::File {
        fs::File::options().append(true).create(true).open(&self.0).expect("the log can be written")
    }

    fn clear(&self) {
        self.file().set_len(0).expect("the log can be emptied");
    }

    /// What the agent did while it walked.
    fn phases(&self) -> Vec<(String, f64)> {
        let log = fs::read_to_string(&self.0).expect("the log can be read");
        let mut spent =
            log.lines().filter_map(|line| line.split_once(" directories listed, ")).map(|(_, spent)| spent);
        let of_one = |spent: &str| -> Option<Vec<(String, f64)>> {
            let phase = |phase: &str| {
                let (name, seconds) = phase.strip_suffix(" s")?.rsplit_once(' ')?;
                Some((name.to_owned(), seconds.parse().ok()?))
            };
            spent.split(", ").map(phase).collect()
        };
        spent.next_back().map(|spent| of_one(spent).expect("the agent's phases")).unwrap_or_default()
    }
}

/// The bytes of all directories and files.
fn bytes(map: &Map) -> u64 {
    let named = map.objects().filter(|object| !object.name().path.is_empty());
    named.flat_map(Object::pieces).map(|piece| piece.range.len()).sum()
}

/// The processor time of this process and its threads, without that of the appliance.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
