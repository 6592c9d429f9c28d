//! How fast a guest is mapped when another program serves its disk.
//!
//! ```text
//! cargo bench --bench sources   # writes a table in docs/performance.md
//! ```
//!
//! Needs `mke2fs` (e2fsprogs), nbdkit, qemu-nbd, and what mapping needs. The guest "large" is
//! mapped from its raw image, and over NBD on a Unix socket from nbdkit and from qemu-nbd, by
//! turns, three times with each probe. The fastest time of each counts. The maps must be equal.
//! Ends with status 1 if NBD has less than 0.8 of the raw image's speed, without the boot. Nothing
//! else should run at the same time.

#![allow(clippy::expect_used)]

#[path = "common/guest.rs"]
mod guest;
#[path = "common/page.rs"]
mod page;

use guest::LARGE;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode};
use std::time::Duration;
use virt_bmap::mapper::MapperOptions;
use virt_bmap::probe::Probe;
use virt_bmap_image::Location;
use virt_bmap_map::{Map, jsonl};

/// The least part of the speed of a raw image.
const BAR: f64 = 0.8;

/// A server, which ends with the benchmark.
struct Server(Child);

impl Server {
    fn start(command: &mut Command, socket: &Path) -> Self {
        let server = Self(command.spawn().expect("the server starts"));
        while !socket.exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn main() -> ExitCode {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("probes");
    let image = LARGE.image(&directory);
    let sockets = tempfile::tempdir().expect("a directory is made");
    let [nbdkit, qemu] = ["nbdkit", "qemu-nbd"].map(|name| sockets.path().join(name));
    let file = [OsStr::new("file="), image.as_os_str()].join(OsStr::new(""));
    let _servers = [
        Server::start(
            Command::new("nbdkit").args(["-f", "-r", "-U"]).arg(&nbdkit).arg("file").arg(file),
            &nbdkit,
        ),
        Server::start(
            Command::new("qemu-nbd").args(["-f", "raw", "-r", "-t", "-e", "8", "-k"]).args([&qemu, &image]),
            &qemu,
        ),
    ];
    let uri = |socket: &Path| {
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        Location::stated(uri.as_ref()).expect("a URI")
    };
    let sources = [("raw image", image.clone().into()), ("nbdkit", uri(&nbdkit)), ("qemu-nbd", uri(&qemu))];
    let probes = [("agent", Probe::Agent), ("extents", Probe::default())];

    let mut rows = String::from("| probe | source | reading | speed, raw image = 1 |\n|---|---|--:|--:|\n");
    let mut exit = ExitCode::SUCCESS;
    for (name, probe) in probes {
        let options = MapperOptions { probe, ..MapperOptions::default() };
        let mut best = [Duration::MAX; 3];
        for _ in 0..LARGE.runs {
            let mut first = None;
            for ((_, location), best) in sources.iter().zip(&mut best) {
                let run = guest::map_at(location.clone(), &options);
                *best = run.reading.min(*best);
                let body = body(&run.mapped.map);
                assert!(*first.get_or_insert_with(|| body.clone()) == body, "the maps are the same");
            }
        }
        for ((source, _), time) in sources.iter().zip(best) {
            let speed = best[0].as_secs_f64() / time.as_secs_f64();
            let row = format!("| {name} | {source} | {:.2} s | {speed:.2} |", time.as_secs_f64());
            println!("{row}");
            let _ = writeln!(rows, "{row}");
            if speed < BAR {
                exit = ExitCode::FAILURE;
            }
        }
    }
    page::replace("sources", &rows);
    exit
}

/// A map without its header, which names the image.
fn body(map: &Map) -> Vec<u8> {
    let mut bytes = Vec::new();
    jsonl::write(map, &mut bytes).expect("a map is written");
    let end = bytes.iter().position(|byte| *byte == b'\n').expect("the header is a line");
    bytes.split_off(end)
}
