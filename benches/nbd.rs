//! Compares the NBD server, with the recorder on, with other servers of the same image: `cargo
//! bench --bench nbd`.
//!
//! Raw images are compared with `nbdkit file`. qcow2 and VMDK, which the program reads through its
//! own `qemu-nbd`, are compared with `qemu-nbd` alone. The clients are fio, `qemu-img` and
//! `nbdcopy`. Runs of the servers alternate, and the median counts. With clients that copy memory,
//! some runs take half the time of others, with any server. The reason is where the scheduler has
//! put the threads.
//!
//! With one request at a time, client and server mostly wait to be woken. The time for this depends
//! more than anything else on whether the scheduler puts them on one processor or on two. So both
//! cases are measured, with pinned processes.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a benchmark that cannot run has nothing better to do

#[path = "common/page.rs"]
mod page;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use virt_bmap::mapper::DiskExport;
use virt_bmap::recorder::{Recorder, Tag};
use virt_bmap_image::{self, OpenOptions, Overlay};
use virt_bmap_nbd::{Exports, Limits, Server};

/// The size of the image.
const SIZE: usize = 512 << 20;
/// The number of runs of each client with each server. It is odd, so that the median is one run.
const RUNS: usize = 9;

/// Serves an image until the process is killed. The benchmark starts itself in this way.
fn serve(image: &Path, socket: &Path) {
    let image = virt_bmap_image::open(&image.to_owned().into(), &OpenOptions::default()).unwrap();
    let overlay = Overlay::new(image.source.clone(), 1 << 30, &std::env::temp_dir()).unwrap();
    let recorder = Arc::new(Recorder::new());
    recorder.switch(Some(Tag(1)));
    let export = DiskExport { disk: 1, overlay: Arc::new(overlay), recorder, lost: Arc::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let exports = Exports::new().with("disk", Arc::new(export)).unwrap();
        let exports = exports.with_default("disk").unwrap();
        let listener = UnixListener::bind(socket).unwrap();
        Server::new(exports, Limits::default()).run(listener, std::future::pending()).await;
    });
}

/// Where client and server run.
#[derive(Clone, Copy)]
enum Place {
    /// Where the scheduler puts them.
    Anywhere,
    /// Both on the first processor.
    Together,
    /// The client on the first processor, the server on the second.
    Apart,
}

impl Place {
    fn pinned(self, program: &Path, processor: usize) -> Command {
        match self {
            Self::Anywhere => Command::new(program),
            Self::Together | Self::Apart => {
                let processor = if matches!(self, Self::Together) { 0 } else { processor };
                let mut command = Command::new("taskset");
                command.args(["--cpu-list", &processor.to_string()]).arg(program);
                command
            }
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Anywhere => "",
            Self::Together => ", on one processor",
            Self::Apart => ", on two processors",
        }
    }
}

/// A server under test. It is killed when this value is dropped.
struct Running(Child);

impl Running {
    fn start(mut command: Command, socket: &Path) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let running = Self(child);
        let begun = Instant::now();
        while !socket.exists() {
            assert!(begun.elapsed() < Duration::from_secs(10), "{command:?} does not come up");
            sleep(Duration::from_millis(10));
        }
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Our server's child, qemu-nbd, then gets its parent-death signal and ends.
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A client, which reads the disk.
#[derive(Clone, Copy)]
struct Client {
    name: &'static str,
    program: &'static str,
    /// `URI` stands for the URI of the server.
    arguments: &'static [&'static str],
    /// Whether client and server mostly wait to be woken.
    one_at_a_time: bool,
}

const CLIENTS: [Client; 6] = [
    Client {
        name: "fio, 4 KiB random reads, one at a time",
        program: "fio",
        arguments: &[
            "--name=x",
            "--ioengine=nbd",
            "--uri=URI",
            "--rw=randread",
            "--bs=4k",
            "--iodepth=1",
            "--io_size=96M",
            "--size=512M",
            "--randseed=1",
        ],
        one_at_a_time: true,
    },
    Client {
        name: "fio, 4 KiB random reads, 32 at a time",
        program: "fio",
        arguments: &[
            "--name=x",
            "--ioengine=nbd",
            "--uri=URI",
            "--rw=randread",
            "--bs=4k",
            "--iodepth=32",
            "--io_size=256M",
            "--size=512M",
            "--randseed=1",
        ],
        one_at_a_time: false,
    },
    Client {
        name: "`qemu-img bench`, 4 KiB, one at a time",
        program: "qemu-img",
        arguments: &["bench", "-f", "raw", "-d", "1", "-c", "30000", "-s", "4096", "-S", "1052672", "URI"],
        one_at_a_time: true,
    },
    Client {
        name: "`qemu-img bench`, 4 KiB, 32 at a time",
        program: "qemu-img",
        arguments: &["bench", "-f", "raw", "-d", "32", "-c", "100000", "-s", "4096", "-S", "1052672", "URI"],
        one_at_a_time: false,
    },
    Client {
        name: "`nbdcopy` to null, 256 KiB reads on 4 connections",
        program: "nbdcopy",
        arguments: &["URI", "null:"],
        one_at_a_time: false,
    },
    Client {
        name: "`qemu-img convert` to null, 2 MiB reads",
        program: "qemu-img",
        arguments: &["convert", "-n", "-f", "raw", "-O", "raw", "URI", "null-co://"],
        one_at_a_time: false,
    },
];

impl Client {
    /// Runs the client and returns how long it took.
    fn run(&self, place: Place, socket: &Path) -> Duration {
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let mut command = place.pinned(Path::new(self.program), 0);
        command.args(self.arguments.iter().map(|argument| argument.replace("URI", &uri)));
        let begun = Instant::now();
        let output = command.stdin(Stdio::null()).output().unwrap();
        let elapsed = begun.elapsed();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        elapsed
    }
}

/// Makes the command of a server for an image and a socket.
type Start = fn(Place, &Path, &Path) -> Command;

fn ours(place: Place, image: &Path, socket: &Path) -> Command {
    let mut command = place.pinned(&std::env::current_exe().unwrap(), 1);
    command.arg("--serve").args([image, socket]);
    command
}

fn nbdkit(place: Place, image: &Path, socket: &Path) -> Command {
    let mut command = place.pinned(Path::new("nbdkit"), 1);
    command.args(["--foreground", "--readonly", "--unix"]).arg(socket).arg("file").arg(image);
    command
}

fn qemu_nbd(place: Place, image: &Path, socket: &Path) -> Command {
    let format = image.extension().unwrap();
    let mut command = place.pinned(Path::new("qemu-nbd"), 1);
    command.args(["--read-only", "--persistent", "--shared=8", "--socket"]).arg(socket);
    command.arg("--format").arg(format).arg(image);
    command
}

fn middle(client: &Client, place: Place, image: &Path, servers: [Start; 2]) -> [Duration; 2] {
    let socket = image.with_extension("sock");
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..RUNS {
        for (start, times) in servers.iter().zip(&mut times) {
            let server = Running::start(start(place, image, &socket), &socket);
            times.push(client.run(place, &socket));
            drop(server);
            fs::remove_file(&socket).unwrap();
        }
    }
    times.map(|mut times| *times.select_nth_unstable(RUNS / 2).1)
}

fn main() {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if let [flag, image, socket] = &arguments[..]
        && flag == "--serve"
    {
        return serve(Path::new(image), Path::new(socket));
    }
    let directory = tempfile::tempdir().unwrap();
    let images: Vec<PathBuf> =
        ["raw", "qcow2", "vmdk"].map(|format| directory.path().join("disk").with_extension(format)).into();
    // The content has nothing that a client or server could skip.
    let mut noise = vec![0u8; SIZE];
    let mut state = 1u64;
    for word in noise.chunks_exact_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        word.copy_from_slice(&(state ^ state >> 29).to_le_bytes());
    }
    File::create(&images[0]).unwrap().write_all(&noise).unwrap();
    drop(noise);
    for image in &images[1..] {
        let format = image.extension().unwrap();
        let made = Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O"])
            .arg(format)
            .arg(&images[0])
            .arg(image)
            .status();
        assert!(made.unwrap().success());
    }

    let mut table = String::from(
        "| image, other server | client | this server | other server | other / this |\n|---|---|--:|--:|--:|\n",
    );
    for image in &images {
        let format = image.extension().unwrap().to_string_lossy();
        let (name, other): (_, Start) = match &*format {
            "raw" => ("raw, `nbdkit file`".to_owned(), nbdkit),
            _ => (format!("{format}, `qemu-nbd`"), qemu_nbd),
        };
        for client in &CLIENTS {
            let places: &[Place] =
                if client.one_at_a_time { &[Place::Together, Place::Apart] } else { &[Place::Anywhere] };
            for &place in places {
                let [mine, theirs] =
                    middle(client, place, image, [ours, other]).map(|time| time.as_secs_f64());
                let place = place.words();
                let line = format!(
                    "| {name} | {}{place} | {mine:.2} s | {theirs:.2} s | {:.2} |",
                    client.name,
                    theirs / mine
                );
                println!("{line}");
                writeln!(table, "{line}").unwrap();
            }
        }
    }
    page::replace("nbd", &table);
}
