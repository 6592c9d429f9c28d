//! SIGINT and SIGTERM at any moment: the run ends soon, with the status of the signal, and leaves
//! nothing behind.

use rustix::process::Signal;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::time::{Duration, Instant};
use virt_bmap_testutil::fixture;
use virt_bmap_testutil::sandbox::{Running, Sandbox};
use virt_bmap_testutil::tools::{self, needs};

/// The longest time that a run may take to end after a signal.
const SOON: Duration = Duration::from_secs(10);

/// Starts to map the big guest. The output file already has an old map.
fn start() -> Running {
    start_with("own")
}

fn start_with(appliance: &str) -> Running {
    start_in(Sandbox::new(), appliance)
}

fn start_in(sandbox: Sandbox, appliance: &str) -> Running {
    let sandbox = sandbox.env("VIRT_BMAP_APPLIANCE", appliance);
    fs::write(sandbox.cwd().join("out.bmap"), "old").unwrap();
    sandbox.start([fixture::guest().image.as_os_str(), "-o".as_ref(), "out.bmap".as_ref()])
}

/// Sends the signal and checks how the run ends.
fn end(running: Running, signal: Signal) {
    end_within(SOON, running, signal);
}

fn end_within(limit: Duration, running: Running, signal: Signal) {
    let sent = Instant::now();
    running.signal(signal);
    let run = running.finish();
    assert!(sent.elapsed() < limit, "took {:?}", sent.elapsed());
    run.assert_code(128 + signal.as_raw());
    assert_eq!(run.read("out.bmap"), b"old");
    assert_eq!(run.files(), ["out.bmap"]);
}

#[test]
fn at_once() {
    needs!("guestfish", "sfdisk");
    for signal in [Signal::INT, Signal::TERM] {
        let mut running = start();
        // Before its first steps the program handles no signals, and the kernel would end it.
        running.wait(Duration::from_millis(100));
        end(running, signal);
    }
}

#[test]
fn as_the_appliance_is_launched() {
    needs!("guestfish", "sfdisk");
    for (appliance, signal, millis) in [
        ("own", Signal::INT, 0),
        ("own", Signal::TERM, 300),
        ("boot", Signal::TERM, 500),
        ("boot", Signal::INT, 4000),
    ] {
        let mut running = start_with(appliance);
        running.helper("-device virtio-scsi");
        running.wait(Duration::from_millis(millis));
        end(running, signal);
    }
}

/// supermin deletes its files when it exits, which is waited for.
#[test]
fn as_libguestfs_builds_its_appliance() {
    needs!("guestfish", "sfdisk", "supermin");
    for (signal, millis) in [(Signal::INT, 0), (Signal::TERM, 1000)] {
        let cache = tempfile::tempdir().unwrap();
        let sandbox = Sandbox::new().env("LIBGUESTFS_CACHEDIR", cache.path());
        let mut running = start_in(sandbox, "stock");
        running.helper("--if-newer");
        running.wait(Duration::from_millis(millis));
        end_within(SOON + Duration::from_secs(20), running, signal);
        let entries = fs::read_dir(cache.path()).unwrap().flat_map(|it| fs::read_dir(it.unwrap().path()));
        let names = entries.flatten().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let kept = |name: &String| matches!(&**name, "lock" | "appliance.d");
        assert_eq!(names.filter(|name| !kept(name)).collect::<Vec<_>>(), [""; 0]);
    }
}

#[test]
fn as_files_are_read() {
    needs!("guestfish", "sfdisk");
    let moments = [
        (Signal::TERM, "partitions", 0),
        (Signal::INT, "/dev/sda1 ", 0),
        (Signal::TERM, "/dev/sda2 ", 500),
        (Signal::INT, "/dev/vg0/home ", 200),
        (Signal::TERM, "/dev/vg0/root ", 1000),
    ];
    for (signal, words, millis) in moments {
        let mut running = start();
        running.wait_until_said(words);
        running.wait(Duration::from_millis(millis));
        end(running, signal);
    }
}

#[test]
fn as_the_map_is_written() {
    needs!("guestfish", "sfdisk");
    for signal in [Signal::INT, Signal::TERM] {
        // Standard output is a pipe from which only the first byte is read.
        let (mut reader, writer) = std::io::pipe().unwrap();
        let sandbox = Sandbox::new().stdout(writer);
        let running = sandbox.start([fixture::guest().image.as_os_str(), "-o".as_ref(), "-".as_ref()]);
        let mut first = [0; 1];
        reader.read_exact(&mut first).unwrap();
        running.signal(signal);
        let run = running.finish();
        run.assert_code(128 + signal.as_raw());
        assert_eq!(run.files(), [""; 0]);
    }
}

#[test]
fn a_reader_that_goes_away() {
    needs!("guestfish", "sfdisk");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let run =
        Sandbox::new().stdout(writer).run([fixture::plain().image.as_os_str(), "-o".as_ref(), "-".as_ref()]);
    // The program must fail without a panic, as other filters do.
    assert_ne!(run.code(), 0);
}

/// If nobody reads standard error, the map is still made, and the appliance is ended properly.
#[test]
fn nobody_listens() {
    needs!("guestfish", "sfdisk", "bash");
    let image = &fixture::small().image;
    for option in [None, Some("--progress=json"), Some("--verbose")] {
        let deaf = ["bash", "-c", "exec \"$@\" 2> >(exec head -c 1 > said)", "bash"];
        let args = [image.as_os_str(), "-o".as_ref(), "out.bmap".as_ref()];
        let run = Sandbox::new().wrapper(deaf).run(args.into_iter().chain(option.map(OsStr::new)));
        run.assert_code(0);
        assert_eq!(run.files(), ["out.bmap", "said"], "{option:?}");
    }
}

/// When a terminal hangs up, the kernel sends SIGHUP to the whole process group. A run under
/// `nohup` must go on.
#[test]
fn nohup_is_respected() {
    needs!("guestfish", "sfdisk", "nohup");
    let image = &fixture::guest().image;
    let sandbox = Sandbox::new().wrapper(["setsid", "nohup"]);
    let mut running = sandbox.start([image.as_os_str(), "-o".as_ref(), "out.bmap".as_ref()]);
    running.helper("-device virtio-scsi");
    running.signal_group(Signal::HUP);
    running.wait_until_said("/dev/sda1 ");
    running.signal_group(Signal::HUP);
    let run = running.finish();
    run.assert_code(0);
    assert!(run.read("out.bmap").starts_with(b"# virt-bmap-rs"));
}

#[test]
fn twice() {
    needs!("guestfish", "sfdisk");
    let mut running = start();
    running.helper("-device virtio-scsi");
    running.wait(Duration::from_millis(500));
    running.signal(Signal::INT);
    // An impatient user sends a second signal.
    running.wait(Duration::from_millis(50));
    end(running, Signal::INT);
}

#[test]
fn from_the_terminal_to_all_its_processes() {
    needs!("guestfish", "sfdisk", "setsid");
    // Ctrl-C sends SIGINT to the whole foreground process group, so qemu and qemu-nbd get it too.
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("guest.qcow2");
    virt_bmap_testutil::formats::convert(&fixture::small().image, &image, "qcow2", "");
    let sandbox = Sandbox::new().wrapper(["setsid"]);
    let mut running = sandbox.start([image.as_os_str(), "-o".as_ref(), "out.bmap".as_ref()]);
    running.helper("-device virtio-scsi");
    running.wait(Duration::from_millis(300));
    running.signal_group(Signal::INT);
    let run = running.finish();
    run.assert_code(130);
    assert_eq!(run.files(), [""; 0]);
    let errors = run.stderr.lines().filter(|l| l.contains("error")).count();
    assert_eq!(errors, 0, "Ctrl-C is no error:\n{}", run.stderr);
}

#[test]
fn the_image_is_as_it_was() {
    needs!("guestfish", "sfdisk");
    let guest = fixture::guest();
    let mut running = start();
    running.wait_until_said("/dev/vg0/root ");
    end(running, Signal::INT);
    assert_eq!(tools::sha256(&guest.image), guest.sha256);
}
