//! The time before anything is read: the appliance's boot.
//!
//! ```text
//! cargo bench --bench boot    # writes three tables in docs/performance.md
//! ```
//!
//! First guestfish(1) launches libguestfs's appliance and our own, emulated, by turns, seven times
//! each, on an empty disk; the medians count, and the benchmark fails if ours takes more than 0.40
//! of the time. Then the program maps an empty disk, in several ways by turns; the fastest of three
//! runs counts. Then it maps the disk with `--verbose`, and the messages on the appliance's console
//! show when each stage ends. Printing these messages takes time too, so the stages add up to more
//! than the total. Needs what mapping needs. Nothing else should run at the same time.

#![allow(clippy::expect_used)]

#[path = "common/page.rs"]
mod page;

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const RUNS: usize = 3;
/// Launches of each appliance.
const LAUNCHES: usize = 7;
/// What a launch of our own may take, libguestfs's being 1.
const BAR: f64 = 0.40;

/// A way to boot the appliance.
struct Way {
    what: &'static str,
    /// The number of empty disks.
    disks: usize,
    options: &'static [&'static str],
    /// Options for the appliance's kernel (`LIBGUESTFS_APPEND`).
    append: &'static str,
}

const WAYS: [Way; 10] = [
    Way { what: "default", disks: 1, options: &[], append: "" },
    Way { what: "`--appliance boot`", disks: 1, options: &["--appliance", "boot"], append: "" },
    Way { what: "`--appliance stock`", disks: 1, options: &["--appliance", "stock"], append: "" },
    Way {
        what: "the kernel's mitigations on, memory cleared (`init_on_alloc=1`)",
        disks: 1,
        options: &[],
        append: "mitigations=auto init_on_alloc=1",
    },
    Way { what: "`--memsize 512`", disks: 1, options: &["--memsize", "512"], append: "" },
    Way { what: "`--memsize 4096`", disks: 1, options: &["--memsize", "4096"], append: "" },
    Way { what: "`--smp 1`", disks: 1, options: &["--smp", "1"], append: "" },
    Way { what: "two processors from the start", disks: 1, options: &["--smp", "2"], append: "maxcpus=2" },
    Way { what: "5 disks", disks: 5, options: &[], append: "" },
    Way { what: "20 disks", disks: 20, options: &[], append: "" },
];

/// The message on the console at the end of each stage, and a description of the stage.
const STAGES: [(&str, &str); 9] = [
    ("Linux version", "libguestfs and qemu start, qemu loads the kernel"),
    ("Run /init", "the kernel starts"),
    ("virt-bmap-agent: root after", "drivers load, the root disk is found and entered"),
    ("virt-bmap-agent: links after", "init: links to disks and to libguestfs's channel"),
    (
        "virt-bmap-agent: scans after",
        "init: signatures of md, LVM, dynamic disks, btrfs; nothing to assemble",
    ),
    ("virt-bmap-agent: guestfsd after", "init: readahead is turned off"),
    ("trace: launch = 0", "guestfsd starts"),
    ("trace: shutdown", "the probe: inventory of the devices; nothing to read"),
    ("", "the appliance shuts down"),
];

fn main() -> ExitCode {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("boot");
    fs::create_dir_all(&directory).expect("a directory is made");
    let ratio = launches(&directory);
    let mut best = [Duration::MAX; WAYS.len()];
    for _ in 0..RUNS {
        for (best, way) in best.iter_mut().zip(&WAYS) {
            let took = boot(way, &directory);
            println!("{}: {:.2} s", way.what, took.as_secs_f64());
            *best = (*best).min(took);
        }
    }
    let mut table = String::from("| options | total |\n|---|--:|\n");
    for (way, best) in WAYS.iter().zip(best) {
        let _ = writeln!(table, "| {} | {:.2} s |", way.what, best.as_secs_f64());
    }
    page::replace("boot", &table);

    let mut best: Option<Vec<Duration>> = None;
    for _ in 0..RUNS {
        let run = stages(&directory);
        let sum = |stages: &[Duration]| stages.iter().sum::<Duration>();
        if best.as_ref().is_none_or(|best| sum(&run) < sum(best)) {
            best = Some(run);
        }
    }
    let mut table = String::from("| stage | time |\n|---|--:|\n");
    for ((_, what), took) in STAGES.iter().zip(best.expect("a run")) {
        println!("{what}: {:.2} s", took.as_secs_f64());
        let _ = writeln!(table, "| {what} | {:.2} s |", took.as_secs_f64());
    }
    page::replace("stages", &table);
    if ratio > BAR {
        eprintln!("our own appliance takes {ratio:.2} of libguestfs's time to launch; the bar is {BAR:.2}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Launches both appliances, by turns. Returns the time of our own, libguestfs's being 1.
fn launches(directory: &Path) -> f64 {
    let own = directory.join("appliance");
    let _ = fs::remove_dir_all(&own);
    let built = Command::new(env!("CARGO_BIN_EXE_virt-bmap-rs"))
        .args(["appliance", "build", "--output"])
        .arg(&own)
        .output()
        .expect("the program runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let disk = directory.join("blank.img");
    let file = fs::File::create(&disk).expect("an image is made");
    file.set_len(64 << 20).expect("an image gets its size");
    let guestfish = |path: Option<&Path>, more: &[&str]| {
        let mut guestfish = Command::new("guestfish");
        guestfish.args(["--format=raw", "-a"]).arg(&disk).arg("run").args(more);
        guestfish.envs(path.map(|path| ("LIBGUESTFS_PATH", path)));
        // libguestfs takes any /dev/kvm for a working one.
        guestfish.env("LIBGUESTFS_BACKEND", "direct").env("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg");
        let output = guestfish.output().expect("guestfish runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let launch = |path: Option<&Path>| {
        let began = Instant::now();
        guestfish(path, &[]);
        began.elapsed().as_secs_f64()
    };
    let memory = |path: Option<&Path>| {
        let said = guestfish(path, &[":", "debug", "sh", "cat /proc/meminfo"]);
        let kib = |name: &str| -> u64 {
            let line = said.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel says");
            line.trim_matches([':', ' ']).trim_end_matches(" kB").parse().expect("a number")
        };
        (kib("MemTotal") - kib("MemAvailable")) / 1024
    };
    // Makes libguestfs build its appliance, and fills the page cache.
    launch(None);
    launch(Some(&own));
    let (mut stock, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..LAUNCHES {
        stock.push(launch(None));
        ours.push(launch(Some(&own)));
    }
    let mut table =
        String::from("| appliance | median | fastest | slowest | memory in use |\n|---|--:|--:|--:|--:|\n");
    let mut row = |what: &str, path: Option<&Path>, times: &mut Vec<f64>| {
        let memory = memory(path);
        times.sort_by(f64::total_cmp);
        let (median, first, last) = (times[times.len() / 2], times[0], times[times.len() - 1]);
        println!("{what}: median {median:.2} s, {first:.2} to {last:.2} s");
        let _ = writeln!(table, "| {what} | {median:.2} s | {first:.2} s | {last:.2} s | {memory} MiB |");
        median
    };
    let ratio = 1.0 / row("libguestfs's", None, &mut stock) * row("our own", Some(&own), &mut ours);
    let _ = writeln!(table, "\nOur own takes {ratio:.2} of libguestfs's time.");
    page::replace("launches", &table);
    ratio
}

fn program(way: &Way, directory: &Path) -> Command {
    let disk = |number| -> PathBuf {
        let path = directory.join(format!("{number}.img"));
        let file = fs::File::create(&path).expect("an image is made");
        file.set_len(64 << 20).expect("an image gets its size");
        path
    };
    let mut program = Command::new(env!("CARGO_BIN_EXE_virt-bmap-rs"));
    program.args(["--quiet", "--format", "raw", "-o"]).arg(directory.join("out.bmap")).args(way.options);
    program.args((0..way.disks).map(disk)).env("LIBGUESTFS_APPEND", way.append);
    program
}

/// How long it takes to map empty disks.
fn boot(way: &Way, directory: &Path) -> Duration {
    let began = Instant::now();
    let output = program(way, directory).output().expect("the program runs");
    let took = began.elapsed();
    assert!(output.status.code().is_some_and(|code| code < 4), "{}", String::from_utf8_lossy(&output.stderr));
    took
}

/// How long each of the stages takes.
fn stages(directory: &Path) -> Vec<Duration> {
    let began = Instant::now();
    let mut child = program(&WAYS[0], directory)
        .args(["-v", "-x"])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("the program runs");
    let mut ends = Vec::new();
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).expect("the pipe can be read") > 0 {
        let said = String::from_utf8_lossy(&line);
        if ends.len() < STAGES.len() - 1 && said.contains(STAGES[ends.len()].0) {
            ends.push(began.elapsed());
        }
        line.clear();
    }
    child.wait().expect("the program ends");
    assert_eq!(ends.len(), STAGES.len() - 1, "a stage was not seen: {}", STAGES[ends.len()].0);
    ends.push(began.elapsed());
    let begins = [Duration::ZERO].into_iter().chain(ends.clone());
    ends.iter().zip(begins).map(|(end, begin)| *end - begin).collect()
}
