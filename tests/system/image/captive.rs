//! The captive child process, `qemu-nbd`, and what is left of it.

use super::support::{Images, NOBODY, Running, cat_image, have, open, read_whole, running, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use virt_bmap_ranges::DiskOffset;

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

/// The path of the socket of a qemu-nbd, from its command line.
fn socket_of(pid: u32) -> PathBuf {
    let line = String::from_utf8(fs::read(format!("/proc/{pid}/cmdline")).unwrap()).unwrap();
    let mut arguments = line.split('\0').skip_while(|argument| *argument != "--socket");
    PathBuf::from(arguments.nth(1).unwrap())
}

#[test]
fn nothing_of_the_socket_is_left_once_the_image_is_open() {
    if !have(&["qemu-img", "qemu-nbd"]) {
        return;
    }
    let images = Images::new();
    let image = open(&images.convert("disk.qcow2", "qcow2", &[]), None).unwrap();
    let children = running(&images.path(""));
    assert_eq!(children.len(), 1);
    let socket = socket_of(children[0]);
    assert!(!socket.exists() && !socket.parent().unwrap().exists());
    let line = fs::read(format!("/proc/{}/cmdline", children[0])).unwrap();
    assert!(line.windows(11).any(|part| part == b"--read-only"));
    drop(image);
    assert_eq!(running(&images.path("")), NOBODY);
}

/// The child must not end with the thread that opened the image.
#[test]
fn an_image_outlives_the_thread_that_opened_it() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    let path = images.convert("disk.qcow2", "qcow2", &[]);
    let image = std::thread::spawn(move || open(&path, None).unwrap()).join().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(read_whole(&*image.source) == fs::read(images.path("base.raw")).unwrap());
}

/// Content that can be compressed. An image stores other content uncompressed.
fn compressible() -> Vec<u8> {
    let mut content: Vec<u8> = (0..1_000_000_u64).flat_map(|n| (n * n).to_be_bytes()).collect();
    content.resize(8 << 20, 0);
    content
}

#[test]
fn a_child_that_is_killed_is_an_error_for_every_reader_and_no_hang() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    // Only the child can read compressed clusters.
    images.write("base.raw", compressible());
    let image = open(&images.convert("disk.qcow2", "qcow2", &["-c"]), None).unwrap();
    kill(running(&images.path(""))[0], Signal::KILL);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let error = image.source.read_at(&mut [0; 4096], DiskOffset(0)).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::BrokenPipe);
                assert!(error.to_string().contains("disk.qcow2"), "{error}");
            });
        }
    });
    drop(image);
}

/// A stopped child blocks its readers. When the image is dropped, the child still ends.
#[test]
fn a_child_that_is_stopped_can_still_be_dropped() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    let image = open(&images.convert("disk.qcow2", "qcow2", &[]), None).unwrap();
    kill(running(&images.path(""))[0], Signal::STOP);
    drop(image);
    assert_eq!(running(&images.path("")), NOBODY);
}

/// If a part of an image cannot be read, only reads of that part fail.
#[test]
fn what_the_child_cannot_read_is_an_error_and_the_rest_is_read() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    let wanted = compressible();
    images.write("base.raw", &wanted);
    let path = images.convert("disk.qcow2", "qcow2", &["-c"]);
    let image = open(&path, None).unwrap();
    // Clusters that begin in the damaged part cannot be decompressed. The cluster in which the
    // damage begins may be read wrong, since compressed data have no checksum.
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let length = file.metadata().unwrap().len();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 600_000], length - 700_000).unwrap();
    let mut buf = vec![0; 65536];
    for _ in 0..2 {
        let (mut failed, mut wrong) = (0, 0);
        for offset in (0..image.source.size()).step_by(65536) {
            match image.source.read_at(&mut buf, DiskOffset(offset)) {
                Ok(()) => wrong += usize::from(buf != wanted[offset as usize..][..65536]),
                Err(error) => {
                    assert!(error.to_string().contains("cannot read 65536 bytes at"), "{error}");
                    failed += 1;
                }
            }
        }
        // There are more errors than connections, so an error does not lose a connection.
        assert!(failed > 4 && wrong <= 1, "{failed} reads failed, {wrong} were wrong");
    }
}

/// Starts a program that has opened an image and waits until its output is read.
fn start_reader(image: &Path, runtime: &Path) -> Running {
    // If the tests run in the background, they and their children ignore SIGINT.
    let program = Command::new("env")
        .arg("--default-signal=INT")
        .arg(cat_image())
        .arg(image)
        .env("XDG_RUNTIME_DIR", runtime)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Running(program)
}

#[test]
fn nothing_is_left_of_a_program_that_ends_or_is_killed() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    let path = images.convert("disk.qcow2", "qcow2", &[]);
    let before = images.checksums();
    let runtime = images.path("run");
    fs::create_dir(&runtime).unwrap();
    for signal in [None, Some(Signal::KILL), Some(Signal::TERM), Some(Signal::INT)] {
        let mut program = start_reader(&path, &runtime);
        // The output does not fit into the pipe, so the program stops after the first bytes.
        program.0.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        assert_eq!(running(&images.path("")).len(), 1);
        match signal {
            Some(signal) => kill(program.0.id(), signal),
            None => {
                std::io::copy(program.0.stdout.as_mut().unwrap(), &mut std::io::sink()).unwrap();
            }
        }
        program.0.wait().unwrap();
        wait_until("qemu-nbd has gone", || running(&images.path("")).is_empty());
        assert_eq!(fs::read_dir(&runtime).unwrap().count(), 0, "after {signal:?}");
    }
    assert_eq!(images.checksums(), before);
}

/// Before the first connection only the parent-death signal ends the child. A qemu-nbd that hangs
/// never accepts a connection.
#[test]
fn a_child_that_never_served_dies_with_the_program() {
    if !have(&["qemu-img"]) {
        return;
    }
    let images = Images::new();
    let path = images.convert("disk.qcow2", "qcow2", &[]);
    let bin = images.path("bin");
    fs::create_dir(&bin).unwrap();
    // This script replaces a qemu-nbd that hangs before it listens.
    let stand_in = bin.join("qemu-nbd");
    fs::write(&stand_in, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&stand_in, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let paths = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    // The directory of the socket is left here, since no process is left that could remove it.
    let runtime = images.path("");
    let mut command = Command::new(cat_image());
    let mut program =
        Running(command.arg(&path).env("PATH", paths).env("XDG_RUNTIME_DIR", runtime).spawn().unwrap());
    let child = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", program.0.id())).ok()?;
        tasks.filter_map(Result::ok).find_map(|task| {
            let children = fs::read_to_string(task.path().join("children")).ok()?;
            let pid: u32 = children.split_whitespace().next()?.parse().ok()?;
            (fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim() == "sleep").then_some(pid)
        })
    };
    wait_until("the stand-in runs", || child().is_some());
    let child = child().unwrap();
    kill(program.0.id(), Signal::KILL);
    program.0.wait().unwrap();
    wait_until("the stand-in has gone", || !Path::new(&format!("/proc/{child}")).exists());
}
