//! `virt-bmap-rs trace` with made-up maps and images. The log must name what clients of other
//! projects read and write. Neither the clients nor a log that cannot be written may end the
//! service. Needs no appliance.

use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};
use virt_bmap_testutil::sandbox::{Finished, Running, Sandbox};
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::traced::{MAP, NBDSH, SIZE, nbdsh, sandbox};

const TRACE: [&str; 4] = ["trace", "disk.raw", "--map", "disk.bmap"];

fn trace(sandbox: Sandbox, args: &[&str]) -> Finished {
    sandbox.run(TRACE.iter().chain(args))
}

/// Serves the disk to `script`, with a log `log` in JSON Lines.
fn trace_json(sandbox: Sandbox, script: &str, args: &[&str]) -> (Finished, Vec<Value>) {
    let run = trace(sandbox, &[&["--format", "jsonl", "-o", "log", "--run", script], args].concat());
    let log = requests(&run.read("log"));
    (run, log)
}

/// The requests in a log.
fn requests(log: &[u8]) -> Vec<Value> {
    let lines = log.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let all: Vec<Value> = lines.map(|line| serde_json::from_slice(line).unwrap()).collect();
    assert_eq!(all[0]["format"], "virt-bmap-rs trace");
    for (number, request) in (1..).zip(&all[1..]) {
        assert_eq!(request["request"], number);
    }
    all[1..].to_vec()
}

/// The operation, offset and length of each request.
fn ranges(log: &[Value]) -> Vec<(&str, u64, u64)> {
    let number = |value: &Value| value.as_u64().unwrap();
    let range = |r: &'_ Value| (number(&r["offset"]), number(&r["length"]));
    log.iter().map(|r| (r["op"].as_str().unwrap(), range(r).0, range(r).1)).collect()
}

/// The paths of a request's objects.
fn paths(request: &Value) -> Vec<&str> {
    request["objects"].as_array().unwrap().iter().filter_map(|object| object["path"].as_str()).collect()
}

#[test]
fn the_log_is_that_of_the_original() {
    needs!("qemu-io");
    let script = "qemu-io -f raw -c 'read 0 512' -c 'read 0x100000 4k' -c 'read 0x101000 8k' \
                  -c 'read 0x104000 4k' -c 'read 0x200000 8k' -c 'read 0x401000 4k' \
                  -c 'write -q 0x401000 4k' -c 'flush' \"$nbd\" >/dev/null";
    let run = trace(sandbox(), &["--run", script, "-o", "log"]);
    run.assert_code(0);
    assert_eq!(
        String::from_utf8(run.read("log")).unwrap(),
        "\nread v /dev/sda\n 0-200\nread d /dev/sda1 /\n 100000-101000\n\
         read f /dev/sda1 /first\n 101000-103000 104000-105000 200000-202000\n\
         read f /dev/sda1 /a \"second\"\n 401000-402000\n\
         write f /dev/sda1 /a \"second\"\n 401000-402000\nflush\n"
    );
    // The log goes to standard output by default, as with the original.
    let run = trace(sandbox(), &["--run", "qemu-io -r -f raw -c 'read -q 0 512' \"$uri\""]);
    assert_eq!(String::from_utf8_lossy(&run.stdout), "\nread v /dev/sda\n 0-200");
}

#[test]
fn every_object_is_named_and_the_offset_in_it() {
    needs!("nbdsh");
    let sandbox = sandbox();
    let client = nbdsh(&sandbox, "h.pread(0x3000, 0x200000)\nh.pread(4096, 0x700000)\n");
    let (run, log) = trace_json(sandbox, &client, &[]);
    run.assert_code(0);
    assert_eq!(ranges(&log), [("read", 0x20_0000, 0x3000), ("read", 0x70_0000, 4096)]);
    assert_eq!(paths(&log[0]), ["/first", "/a \"second\""]);
    let objects = log[0]["objects"].as_array().unwrap();
    let kinds: Vec<_> = objects.iter().map(|object| object["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..2], ["f", "f"]);
    assert!(kinds.contains(&"p") && kinds.contains(&"v"), "{kinds:?}");
    assert_eq!((&objects[1]["offset"], &objects[1]["length"]), (&0x20_1000.into(), &0x2000.into()));
    assert!(paths(&log[1]).is_empty());
    let (first, second) = (log[0]["time"].as_f64().unwrap(), log[1]["time"].as_f64().unwrap());
    assert!(first <= second && log[0]["latency"].as_f64().unwrap() >= 0.0);
}

#[test]
fn clients_of_other_people_read_what_is_there() {
    needs!("nbdcopy", "nbdinfo", "fio", "qemu-img", "cmp");
    let script = "set -e
        nbdcopy \"$uri\" copy.raw; cmp disk.raw copy.raw
        qemu-img convert -f raw -O raw \"$nbd\" convert.raw; cmp disk.raw convert.raw
        nbdinfo --size \"$uri\" >size; nbdinfo --map \"$uri\" >map; test -S \"$unixsocket\"; test -z \"$port\"
        fio --name=r --ioengine=nbd --uri=\"$uri\" --rw=randread --bs=4k --size=8m --iodepth=8 \
            --output-format=json >fio.json";
    let (run, log) = trace_json(sandbox(), script, &["--read-only", "--no-drop"]);
    run.assert_code(0);
    assert_eq!(run.read("size"), b"8388608\n");
    let connections: std::collections::BTreeMap<_, u64> =
        log.iter().fold(Default::default(), |mut all, r| {
            *all.entry(r["connection"].as_u64().unwrap()).or_default() += r["length"].as_u64().unwrap();
            all
        });
    // fio reads every block once, over one connection. So does each of the two copies.
    assert!(log.iter().all(|request| request["op"] == "read" || request["op"] == "flush"));
    assert_eq!(connections.values().sum::<u64>(), 3 * SIZE, "{connections:?}");
    let last = log.last().unwrap()["connection"].as_u64().unwrap();
    let fio: Vec<_> = log.iter().filter(|r| r["connection"] == last && r["op"] == "read").collect();
    assert_eq!(fio.len() as u64, SIZE / 4096);
    assert!(fio.iter().all(|request| request["length"] == 4096));
}

#[test]
fn what_the_guest_writes_stays_private() {
    needs!("nbdsh");
    let sandbox = sandbox();
    let before = fs::read(sandbox.cwd().join("disk.raw")).unwrap();
    let client = nbdsh(
        &sandbox,
        "h.pwrite(b'x' * 8192, 0x101000, nbd.CMD_FLAG_FUA)\nh.zero(4096, 0x400000)\nh.trim(4096, 0x401000)\nh.flush()\n\
         assert h.pread(4096, 0x101000) == b'x' * 4096\nassert h.pread(8192, 0x400000) == bytes(8192)\n",
    );
    let (run, log) = trace_json(sandbox, &client, &[]);
    run.assert_code(0);
    let expected = [
        ("write", 0x10_1000, 8192),
        ("zero", 0x40_0000, 4096),
        ("trim", 0x40_1000, 4096),
        ("flush", 0, 0),
        ("read", 0x10_1000, 4096),
        ("read", 0x40_0000, 8192),
    ];
    assert_eq!(ranges(&log), expected);
    assert_eq!((&log[0]["fua"], &log[1]["fua"]), (&true.into(), &Value::Null));
    assert_eq!(paths(&log[2]), ["/a \"second\""]);
    assert!(run.read("disk.raw") == before, "the image was changed");
}

#[test]
fn writes_through_outlive_the_client() {
    needs!("nbdsh");
    let sandbox = sandbox();
    let client = nbdsh(
        &sandbox,
        "import os\nh.pwrite(b'f' * 4096, 0x101000)\nh.flush()\nh.pwrite(b'u' * 4096, 0x102000, nbd.CMD_FLAG_FUA)\n\
         h.zero(4096, 0x103000)\nh.trim(4096, 0x104000)\nh.flush()\nos.kill(os.getpid(), 9)\n",
    );
    let (run, _) = trace_json(sandbox, &client, &["--write", "through"]);
    run.assert_code(137);
    let image = run.read("disk.raw");
    let at = |offset: usize| &image[offset..offset + 4096];
    assert_eq!(at(0x10_1000), [b'f'; 4096]);
    assert_eq!(at(0x10_2000), [b'u'; 4096]);
    assert_eq!(at(0x10_3000), [0; 4096]);
    assert_eq!(image.len() as u64, SIZE);
    assert_eq!(at(0x10_5000)[8..], [0x5a; 4088]);

    // The server itself is killed. The image must have what the client flushed.
    let sandbox = self::sandbox();
    let client =
        nbdsh(&sandbox, "h.pwrite(b'k' * 4096, 0x101000)\nh.flush()\nimport os\nos.kill(os.getppid(), 9)\n");
    let exec = format!("exec {client}");
    let image = sandbox.cwd().join("disk.raw");
    let mut running = sandbox.start(TRACE.iter().chain(&["--write", "through", "--run", &exec]));
    running.wait(Duration::from_secs(20));
    assert_eq!(fs::read(image).unwrap()[0x10_1000..0x10_2000], [b'k'; 4096]);
}

#[test]
fn only_raw_images_are_written_through() {
    needs!("qemu-img");
    let sandbox = sandbox();
    let cwd = sandbox.cwd();
    let path = |name: &str| cwd.join(name).into_os_string();
    tools::run(
        "qemu-img",
        ["convert".into(), "-O".into(), "qcow2".into(), path("disk.raw"), path("disk.qcow2")],
    );
    let run = sandbox.run([
        "trace",
        "disk.qcow2",
        "--map",
        "disk.bmap",
        "--write",
        "through",
        "--run",
        "true",
        "--force",
    ]);
    run.assert_fails(&["disk.qcow2", "cannot be written to", "no raw image"]);

    let sandbox = self::sandbox();
    let client = nbdsh(
        &sandbox,
        "assert h.is_read_only()\nh.set_strict_mode(0)\ntry:\n    h.pwrite(b'x', 0)\n    assert False\nexcept nbd.Error as e:\n    assert e.errno == 'EPERM', e.errno\n",
    );
    let (run, log) = trace_json(sandbox, &client, &["--read-only"]);
    run.assert_code(0);
    assert!(log.is_empty(), "what is refused is not carried out: {log:?}");
}

#[test]
fn a_format_is_served_as_the_disk_that_it_holds() {
    needs!("qemu-img", "nbdcopy", "cmp");
    let sandbox = sandbox();
    let path = |name: &str| sandbox.cwd().join(name).into_os_string();
    tools::run(
        "qemu-img",
        ["convert".into(), "-O".into(), "qcow2".into(), path("disk.raw"), path("disk.qcow2")],
    );
    let run = sandbox.run(["trace", "disk.qcow2", "--map", "disk.bmap", "--run", "true"]);
    run.assert_fails(&["counts bytes of the image file", "qcow2", "--force"]);
    let run = run.sandbox.run([
        "trace",
        "disk.qcow2",
        "--map",
        "disk.bmap",
        "--force",
        "-o",
        "log",
        "--format",
        "jsonl",
        "--run",
        "nbdcopy \"$uri\" copy.raw && cmp copy.raw disk.raw",
    ]);
    run.assert_code(0).assert_says(&["warning: the original virt-bmap made this map"]);
    assert_eq!(ranges(&requests(&run.read("log"))).iter().map(|range| range.2).sum::<u64>(), SIZE);
}

#[test]
fn each_disk_has_its_uri() {
    needs!("nbdsh");
    let sandbox = sandbox();
    fs::write(sandbox.cwd().join("two.raw"), vec![2; 1 << 20]).unwrap();
    fs::write(sandbox.cwd().join("two.bmap"), format!("{MAP}2 0 100000 f /dev/sdb /on second\n")).unwrap();
    let script = &format!(
        "{NBDSH} -u \"$uri\" -c 'h.pread(512, 0)' && {NBDSH} -u \"$uri2\" -c 'assert h.pread(512, 0)[0] == 2'
        {NBDSH} -u \"$nbd2\" -c 'print(h.get_size())'"
    );
    let args = [
        "trace", "disk.raw", "two.raw", "--map", "two.bmap", "--format", "jsonl", "-o", "log", "--run",
        script,
    ];
    let run = sandbox.run(args);
    run.assert_code(0);
    assert_eq!(run.stdout, b"1048576\n");
    let log = requests(&run.read("log"));
    let disks: Vec<_> = log.iter().map(|request| request["disk"].as_u64().unwrap()).collect();
    assert_eq!(disks, [1, 2]);
    assert_eq!(paths(&log[1]), ["/on second"]);

    let run = run.sandbox.run(["trace", "disk.raw", "--map", "two.bmap", "--run", "true"]);
    run.assert_fails(&["2 disks, and 1 were given", "--force"]);
}

#[test]
fn the_status_is_that_of_the_command() {
    for (script, code) in [("exit 7", 7), ("true", 0), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        trace(sandbox(), &["--run", script]).assert_code(code);
    }
    let run = trace(sandbox(), &["--run", "no-such-program \"$nbd\""]);
    run.assert_code(127).assert_says(&["no-such-program: not found"]);
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    trace(sandbox(), &["--run", ""]).assert_code(2);
}

#[test]
fn a_signal_ends_the_command_and_all_that_it_started() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let script = "sleep 1000 & trap 'exit 3' INT TERM; echo ready >&2; wait";
        let mut running = sandbox().start(TRACE.iter().chain(&["--run", script]));
        running.wait_until_said("ready");
        running.signal(signal);
        running.finish().assert_code(code);
    }
    // A command that ignores the signals is killed.
    let script = "trap '' INT TERM; echo ready >&2; sleep 1000; sleep 1000";
    let mut running = sandbox().start(TRACE.iter().chain(&["--run", script]));
    running.wait_until_said("ready");
    running.signal(Signal::TERM);
    running.finish().assert_code(143);
}

/// The first URI that a server prints.
fn uri(running: &mut Running) -> String {
    running.wait_until("the URI", |running| running.stderr().contains('\n'));
    running.stderr().lines().next().unwrap().to_owned()
}

#[test]
fn without_a_command_it_serves_until_a_signal_comes() {
    needs!("nbdsh");
    for (more, scheme) in
        [(&[][..], "nbd+unix:///?socket="), (&["--listen", "127.0.0.1:0"], "nbd://127.0.0.1:")]
    {
        let args = [&TRACE[..], &["-o", "log"], more].concat();
        let mut running = sandbox().start(&args);
        let uri = uri(&mut running);
        assert!(uri.starts_with(scheme), "{uri}");
        tools::run("/usr/bin/python3", ["-m", "nbd", "-u", &uri, "-c", "h.pread(512, 0)"]);
        running.signal(Signal::INT);
        let run = running.finish();
        run.assert_code(0);
        assert_eq!(String::from_utf8(run.read("log")).unwrap(), "\nread v /dev/sda\n 0-200");
    }
    // Under nohup(1) SIGHUP does not end the server.
    let mut running = sandbox().wrapper(["nohup"]).start([&TRACE[..], &["-o", "log"]].concat());
    let uri = uri(&mut running);
    for _ in 0..2 {
        running.signal(Signal::HUP);
        tools::run("/usr/bin/python3", ["-m", "nbd", "-u", &uri, "-c", "h.pread(512, 0)"]);
    }
    running.signal(Signal::INT);
    running.finish().assert_code(0);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    trace(sandbox(), &["--listen", &address]).assert_fails(&["TCP port", "in use"]);
}

#[test]
fn a_client_that_vanishes_takes_nothing_with_it() {
    needs!("nbdsh");
    let sandbox = sandbox();
    let cwd = sandbox.cwd();
    // The client vanishes while requests are in flight. It has sent one of them only in part.
    fs::write(
        cwd.join("vanish.py"),
        "import os, socket, struct\n\
         for i in range(64):\n    h.aio_pread(nbd.Buffer(1 << 20), (i % 7) << 20)\n\
         h.aio_pwrite(b'x' * (1 << 20), 1 << 20)\nos.kill(os.getpid(), 9)\n",
    )
    .unwrap();
    fs::write(cwd.join("after.py"), "assert len(h.pread(4096, 0x101000)) == 4096\n").unwrap();
    let script = format!(
        "for i in 1 2 3; do {NBDSH} -u \"$uri\" -c - <vanish.py; done 2>/dev/null
        exec {NBDSH} -u \"$uri\" -c - <after.py"
    );
    let (run, log) = trace_json(sandbox, &script, &[]);
    run.assert_code(0);
    let last = log.last().unwrap();
    assert_eq!((&last["connection"], &last["offset"]), (&4.into(), &0x10_1000.into()));
    assert_eq!(paths(last), ["/first"]);
}

#[test]
fn a_full_log_keeps_nobody_from_working() {
    needs!("nbdcopy", "cmp");
    let script = "nbdcopy --request-size=4096 \"$uri\" copy.raw && cmp disk.raw copy.raw";
    for form in ["text", "jsonl", "csv", "log", "chrome"] {
        let run = trace(sandbox(), &["-o", "/dev/full", "--format", form, "--run", script]);
        run.assert_code(3).assert_says(&["/dev/full", "no space left", "still served"]);
    }
    if !tools::is_root("mount a small filesystem") {
        return;
    }
    let sandbox = sandbox();
    let small = sandbox.cwd().join("small");
    fs::create_dir(&small).unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=64k", "none", small.to_str().unwrap()];
    tools::run("mount", mount);
    let run = trace(sandbox, &["-o", "small/log", "--format", "jsonl", "--run", script]);
    let log = fs::read(small.join("log")).unwrap();
    tools::run("umount", [&small]);
    run.assert_code(3).assert_says(&["small/log", "no space left"]);
    assert!(log.starts_with(b"{\"format\"") && log.len() > 32 << 10, "what came before is there");
    // If the command fails too, its exit status is used.
    trace(self::sandbox(), &["-o", "/dev/full", "--run", "qemu-io -f raw -c 'read 0 512' $nbd; exit 9"])
        .assert_code(9);
}

/// A client makes more requests, of 512 bytes each, than fit in memory, while nobody reads the log.
/// Then a thread reads it. Returns how the program ended, and how many requests the log had.
fn with_a_stalled_reader(args: &[&str]) -> (Finished, usize) {
    let sandbox = sandbox();
    let fifo = sandbox.cwd().join("fifo");
    tools::run("mkfifo", [&fifo]);
    let fio = format!(
        "fio --name=r --ioengine=nbd --uri=\"$uri\" --rw=randread --bs=512 --size=8m --io_size={} --iodepth=64 \
         --output-format=json >fio.json && touch done",
        STALLED * 512
    );
    let done = sandbox.cwd().join("done");
    // With `--no-drop` the client cannot end before the log is read. Otherwise it ends first.
    let waits = args.contains(&"--no-drop");
    let reader = std::thread::spawn(move || {
        let log = fs::File::open(fifo).unwrap();
        let began = Instant::now();
        while !done.exists() && began.elapsed() < Duration::from_secs(if waits { 20 } else { 200 }) {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(done.exists(), !waits, "--no-drop has the guest wait, and nothing else does");
        BufReader::new(log).lines().filter(|line| line.as_ref().unwrap().starts_with("{\"request\"")).count()
    });
    let how = ["--format", "jsonl", "-o", "fifo", "--run", &fio];
    let run = sandbox.deadline(Duration::from_secs(600)).run(TRACE.iter().chain(&how).chain(args));
    (run, reader.join().unwrap())
}

/// More requests than fit in memory and in one round of the thread that writes the log.
const STALLED: usize = 600_000;

#[test]
fn a_log_that_nobody_reads_loses_requests_and_says_how_many() {
    needs!("fio", "mkfifo");
    let (run, logged) = with_a_stalled_reader(&[]);
    run.assert_code(3).assert_says(&["missing from the log", "--no-drop"]);
    let line = run.stderr.lines().find(|line| line.contains("missing from the log")).unwrap();
    let numbers: Vec<usize> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [dropped, requests] = numbers[..] else { panic!("{line}") };
    assert!(dropped > 0 && dropped < requests && requests >= STALLED, "{line}");
    assert_eq!(logged, requests - dropped, "{line}");
    assert!(run.peak_kib < 300 << 10, "{} KiB", run.peak_kib);
}

#[test]
fn with_no_drop_the_guest_waits_and_nothing_is_lost() {
    needs!("fio", "mkfifo");
    let (run, logged) = with_a_stalled_reader(&["--no-drop"]);
    run.assert_code(0);
    assert!(logged >= STALLED, "{logged}");
    assert!(!run.stderr.contains("missing from the log"), "{}", run.stderr);
}

#[test]
fn a_map_of_something_else_is_refused() {
    let stale = |change: fn(&Path), words: &[&str]| {
        let sandbox = sandbox();
        change(&sandbox.cwd());
        let run = trace(sandbox, &["--run", "true"]);
        run.assert_fails(&[words, &["--force"]].concat());
        let run = run.sandbox.run(TRACE.iter().chain(&["--run", "true", "--force"]));
        run.assert_code(0).assert_says(&[&["warning"], words].concat());
    };
    stale(
        |cwd| {
            let image = fs::File::options().write(true).open(cwd.join("disk.raw")).unwrap();
            image.set_len(SIZE + 4096).unwrap();
        },
        &["8388608 bytes", "8392704 bytes"],
    );
    stale(
        |cwd| {
            let image = fs::File::options().write(true).open(cwd.join("disk.raw")).unwrap();
            image.set_modified(SystemTime::now() + Duration::from_secs(10)).unwrap();
        },
        &["disk.raw was changed after the map was written"],
    );

    let sandbox = sandbox();
    let xml = "<?xml version=\"1.0\" ?>\n<bmap version=\"2.0\">\n<ImageSize> 8388608 </ImageSize></bmap>\n";
    fs::write(sandbox.cwd().join("disk.bmap"), xml).unwrap();
    let run = trace(sandbox, &["--run", "true"]);
    run.assert_fails(&["bmap-tools"]);
    let run = run.sandbox.run(["trace", "disk.raw", "--map", "none.bmap", "--run", "true"]);
    run.assert_fails(&["none.bmap", "could not be opened"]);
}

#[test]
fn neither_image_nor_map_is_overwritten() {
    let sandbox = sandbox();
    let before = fs::read(sandbox.cwd().join("disk.raw")).unwrap();
    let run = trace(sandbox, &["-o", "disk.raw", "--run", "true"]);
    run.assert_fails(&["disk.raw", "image of the guest"]);
    let run = run.sandbox.run(TRACE.iter().chain(&["-o", "disk.bmap", "--run", "true"]));
    run.assert_fails(&["disk.bmap", "overwrite the map"]);
    let run = run.sandbox.run(TRACE.iter().chain(&["-o", "no/such/log", "--run", "true"]));
    run.assert_fails(&["no/such/log"]);
    assert!(run.read("disk.raw") == before && run.read("disk.bmap") == MAP.as_bytes(), "overwritten");
}

#[test]
fn the_report_shows_the_log() {
    needs!("qemu-io");
    let script = "qemu-io -f raw -c 'read -q 0x101000 4k' -c 'write -q 0x400000 4k' -c flush \"$nbd\"";
    let mut sandbox = sandbox();
    for form in ["text", "jsonl"] {
        let run = sandbox.run(TRACE.iter().chain(&["--format", form, "-o", "log", "--run", script]));
        run.assert_code(0);
        let run = run.sandbox.run(["report", "disk.bmap", "--trace", "log", "-o", "page.html"]);
        run.assert_code(0);
        sandbox = run.sandbox;
    }
}

#[test]
fn what_was_read_is_written_down_for_those_who_prefetch() {
    needs!("nbdsh");
    let sandbox = sandbox();
    let reads = "h.pread(4096, 0x400000)\nh.pread(8192, 0x101000)\nh.pread(8192, 0x101000)\n\
                 h.pread(4096, 0x108000)\nh.pwrite(b'x' * 512, 0x700000)\n";
    let client = nbdsh(&sandbox, reads);
    let files = ["--working-set", "set.json", "--prefetch", "ranges", "--prefetch-files", "files"];
    let (run, _) = trace_json(sandbox, &client, &files);
    run.assert_code(0).assert_says(&[
        "4 reads of 24 KiB, 1 write of 512 B",
        "read: 16 KiB distinct, 8 KiB repeated; 0 of 4 reads sequential",
        "2 files, 16 KiB of their 1 MiB; 0 directories",
    ]);
    assert_eq!(run.read("files"), b"/a \"second\"\n/first\n");
    assert_eq!(
        String::from_utf8(run.read("ranges")).unwrap(),
        format!("# disk 1\n{} 4096\n{} {}\n", 0x40_0000, 0x10_1000, 0x8000)
    );
    let set: Value = serde_json::from_slice(&run.read("set.json")).unwrap();
    let column =
        |name: &str| -> Vec<&Value> { set["files"].as_array().unwrap().iter().map(|f| &f[name]).collect() };
    assert_eq!(column("path"), ["/a \"second\"", "/first"]);
    assert_eq!(column("bytes"), [4096, 12288]);
    assert_eq!(set["ranges"].as_array().unwrap().len(), 3);

    // The command `lookup` can read the list of ranges.
    let run = run.sandbox.run(["lookup", "disk.bmap", "--ranges", "ranges", "--csv"]);
    let answer = String::from_utf8_lossy(&run.assert_code(0).stdout).into_owned();
    assert!(answer.contains("4096") && answer.contains("/first"), "{answer}");
}
