//! The plugin in Debian's nbdkit. It must serve the right bytes and holes, write the same log as
//! `virt-bmap-rs trace`, as docs/trace.md says, and refuse images and maps that do not fit
//! together. Needs no appliance.

use std::fs;
use std::process::Output;
use std::time::{Duration, SystemTime};
use virt_bmap_testutil::places::built;
use virt_bmap_testutil::sandbox::Sandbox;
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::traced::{SIZE, nbdsh, sandbox};

const PLUGIN: &str = "./nbdkit-bmaplogger-plugin.so";

/// A sandbox with the disk, its map, and the plugin under the file name that nbdkit expects.
fn with_plugin() -> Sandbox {
    let sandbox = sandbox();
    std::os::unix::fs::symlink(built("libnbdkit_bmaplogger_plugin.so"), sandbox.cwd().join(PLUGIN)).unwrap();
    sandbox
}

/// Runs `nbdkit` on a private socket, so that tests can run at the same time. It must not hang.
fn nbdkit(sandbox: &Sandbox, args: &[&str]) -> Output {
    run(sandbox, &["-U", "-"], args)
}

fn run(sandbox: &Sandbox, how: &[&str], args: &[&str]) -> Output {
    let mut command = tools::command("timeout");
    command.args(["--kill-after=5", "60", "nbdkit"]).args(how).args(args).current_dir(sandbox.cwd());
    command.output().unwrap()
}

/// Serves the disk to `script`, which must succeed, and returns the output of both.
fn serve(sandbox: &Sandbox, parameters: &[&str], script: &str) -> Output {
    let args = [&["-r", PLUGIN, "file=disk.raw", "bmap=disk.bmap"], parameters, &["--run", script]].concat();
    let output = nbdkit(sandbox, &args);
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn the_log_is_that_of_the_program() {
    needs!("nbdkit", "nbdsh");
    let sandbox = with_plugin();
    let reads = "for offset, length in ((0, 512), (0x100000, 4096), (0x101000, 8192), (0x104000, 4096), (0x200000, \
                 8192), (0x401000, 4096), (0x402000, 1), (0x1fffff, 3), (0x101000, 4096)):\n    h.pread(length, offset)\n";
    let client = nbdsh(&sandbox, reads);
    serve(&sandbox, &["logfile=log"], &client);
    let to_stdout = serve(&sandbox, &[], &client).stdout;
    let log = fs::read(sandbox.cwd().join("log")).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&log),
        "\nread v /dev/sda\n 0-200\nread d /dev/sda1 /\n 100000-101000\n\
         read f /dev/sda1 /first\n 101000-103000 104000-105000 200000-202000\n\
         read f /dev/sda1 /a \"second\"\n 401000-402000\nread p /dev/sda1\n 402000-402001\n\
         read f /dev/sda1 /first\n 1fffff-200002 101000-102000"
    );
    assert_eq!(to_stdout, log, "standard output is where it goes by default");
    let args = ["trace", "disk.raw", "--map", "disk.bmap", "--read-only", "-o", "by-trace", "--run", &client];
    let run = sandbox.run(args);
    assert_eq!(run.assert_code(0).read("by-trace"), log);
}

#[test]
fn bytes_and_holes_are_those_of_the_image() {
    needs!("nbdkit", "nbdcopy", "nbdinfo", "cmp");
    let sandbox = with_plugin();
    let image = fs::File::options().write(true).open(sandbox.cwd().join("disk.raw")).unwrap();
    let hole = |offset, length| {
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&image, flags, offset, length).unwrap();
    };
    hole(0x20_0000, 0x1_0000);
    hole(0x70_0000, 0x10_0000);
    fs::write(sandbox.cwd().join("disk.bmap"), virt_bmap_testutil::traced::MAP).unwrap();

    // The whole disk is read over several connections with many requests at the same time. The log
    // must have each byte once.
    let copy = "nbdcopy --no-extents --connections=4 --requests=16 --request-size=65536 \"$uri\" copy.raw && \
                cmp disk.raw copy.raw && nbdinfo --is read-only \"$uri\" && nbdinfo --can multi-conn \"$uri\" && \
                nbdinfo --size \"$uri\" >size && nbdinfo --map \"$uri\" >map";
    serve(&sandbox, &["logfile=log"], copy);
    let read = |name: &str| fs::read_to_string(sandbox.cwd().join(name)).unwrap();
    assert_eq!(read("size"), "8388608\n");
    let log = read("log");
    let ranges = log.lines().filter(|line| line.starts_with(' ')).flat_map(str::split_whitespace);
    let mut ranges: Vec<(u64, u64)> = ranges
        .map(|range| range.split_once('-').unwrap())
        .map(|(start, end)| (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap()))
        .collect();
    ranges.sort_unstable();
    assert_eq!((ranges[0].0, ranges[ranges.len() - 1].1), (0, SIZE));
    assert!(ranges.windows(2).all(|pair| pair[0].1 == pair[1].0), "{ranges:x?}");

    // nbdkit's own plugin for files must report the same holes.
    let own = nbdkit(&sandbox, &["-r", "file", "disk.raw", "--run", "nbdinfo --map \"$uri\""]);
    assert_eq!(read("map"), String::from_utf8_lossy(&own.stdout));
    assert!(read("map").contains("hole,zero"));

    let described = nbdkit(&sandbox, &["--dump-plugin", PLUGIN]);
    let described = String::from_utf8_lossy(&described.stdout).into_owned();
    for line in ["name=bmaplogger", "thread_model=parallel", "has_extents=1"] {
        assert!(described.lines().any(|found| found == line), "no {line:?}:\n{described}");
    }
    assert!(!described.contains("has_pwrite=1"), "{described}");
}

#[test]
fn what_does_not_go_together_is_refused() {
    needs!("nbdkit");
    let sandbox = with_plugin();
    let at = |name: &str| sandbox.cwd().join(name);
    let before = fs::read(at("disk.raw")).unwrap();
    let xml = "<?xml version=\"1.0\" ?>\n<bmap version=\"2.0\">\n<ImageSize> 8388608 </ImageSize></bmap>\n";
    fs::write(at("other.bmap"), xml).unwrap();
    fs::write(at("bad.bmap"), [0xff; 64]).unwrap();
    let refused = |args: &[&str], words: &[&str]| {
        let output = nbdkit(&sandbox, &[&["-r", PLUGIN], args, &["--run", "touch started"]].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(!said.contains("panicked") && !at("started").exists(), "{args:?}: {said}");
        for word in ["nbdkit: error: "].iter().chain(words) {
            assert!(said.contains(word), "{args:?} does not say {word:?}: {said}");
        }
    };
    let (file, bmap) = ("file=disk.raw", "bmap=disk.bmap");
    refused(&[bmap], &["file=IMAGE is missing"]);
    refused(&[file], &["the map bmap", "No such file"]);
    refused(&[file, "bmap=none.bmap"], &["none.bmap", "No such file"]);
    refused(&[file, "bmap=other.bmap"], &["other.bmap", "bmap-tools"]);
    refused(&[file, "bmap=bad.bmap"], &["bad.bmap"]);
    refused(&["file=none.raw", bmap], &["none.raw", "no such file"]);
    refused(&["file=.", bmap], &["is a directory"]);
    refused(&[file, bmap, "colour=blue"], &["unknown parameter \"colour\""]);
    refused(&[file, bmap, "logfile=no/such/log"], &["no/such/log"]);
    refused(&[file, bmap, "logfile=disk.raw"], &["would overwrite disk.raw"]);
    refused(&[file, bmap, "logfile=disk.bmap"], &["would overwrite disk.bmap"]);
    assert!(fs::read(at("disk.raw")).unwrap() == before, "the image was changed");

    let image = fs::File::options().write(true).open(at("disk.raw")).unwrap();
    image.set_modified(SystemTime::now() + Duration::from_secs(10)).unwrap();
    refused(&[file, bmap], &["disk.raw was changed after the map was written", "force=true"]);
    let forced = serve(&sandbox, &["force=true"], "true");
    assert!(String::from_utf8_lossy(&forced.stderr).contains("warning"), "{forced:?}");
    image.set_len(SIZE + 4096).unwrap();
    refused(&[file, bmap], &["8388608 bytes", "8392704 bytes"]);

    // With `-s` standard output is the connection, so the log cannot go there.
    let output = run(&sandbox, &["-s"], &[PLUGIN, file, bmap, "force=true"]);
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("logfile="), "{output:?}");
}

#[test]
fn neither_log_nor_image_ends_the_service() {
    needs!("nbdkit", "nbdcopy", "nbdsh", "cmp");
    let sandbox = with_plugin();
    let full = serve(&sandbox, &["logfile=/dev/full"], "nbdcopy \"$uri\" copy.raw && cmp disk.raw copy.raw");
    let said = String::from_utf8_lossy(&full.stderr).into_owned();
    assert_eq!(said.matches("No space left").count(), 1, "{said}");

    // If an image shrinks, only reads of the lost bytes fail.
    let client = nbdsh(
        &sandbox,
        "import os\nos.truncate('disk.raw', 4 << 20)\n\
         try:\n    h.pread(4096, 6 << 20)\n    assert False\nexcept nbd.Error as e:\n    assert e.errno == 'EIO', e.errno\n\
         assert h.pread(8, 4096) == (1).to_bytes(8, 'little')\n",
    );
    let shrunk = serve(&sandbox, &["logfile=log"], &client);
    assert!(String::from_utf8_lossy(&shrunk.stderr).contains("has shrunk"), "{shrunk:?}");
    let log = fs::read_to_string(sandbox.cwd().join("log")).unwrap();
    assert!(log.contains(" 600000-601000") && log.ends_with(" 1000-1008"), "{log}");
}
