//! The NBD driver of Linux as a client. It runs in a small emulated guest, since this machine's
//! kernel may not have it. The guest prints on its console what it has read. The log must have what
//! the guest did, with the names of the objects.

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::time::Duration;
use virt_bmap_testutil::sandbox::sealed;
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::traced::sandbox;
use virt_bmap_testutil::{bootable, traced};

fn md5(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let line = String::from_utf8(tools::run("md5sum", [file.path()])).unwrap();
    line.split(' ').next().unwrap().to_owned()
}

/// Fills `part` with the output of `yes LINE`.
fn fill(line: &str, part: &mut [u8]) {
    let text = format!("{line}\n");
    part.iter_mut().zip(text.bytes().cycle()).for_each(|(byte, wanted)| *byte = wanted);
}

#[test]
fn linux_reads_writes_and_trims() {
    needs!("nbd-client", "busybox", "cpio", "modprobe", "qemu-system-x86_64");
    let guest = bootable::nbd();
    let sandbox = sandbox().deadline(Duration::from_secs(120));
    let image = sandbox.cwd().join("disk.raw");
    let sealed = sealed([&image]);
    let before = fs::read(&image).unwrap();
    let qemu = format!(
        "exec qemu-system-x86_64 -machine accel=tcg -smp 2 -m 256 -nodefaults -display none -no-reboot \
         -serial file:console -netdev user,id=net -device virtio-net-pci,netdev=net,romfile= \
         -kernel '{dir}/kernel' -initrd '{dir}/initrd' \
         -append \"console=ttyS0 quiet panic=-1 no_timer_check cryptomgr.notests edd=off nbd_port=$port\"",
        dir = guest.display()
    );
    let run = sandbox.run([
        "trace",
        "disk.raw",
        "--map",
        "disk.bmap",
        "--listen",
        "127.0.0.1:0",
        "--format",
        "jsonl",
        "-o",
        "log",
        "--run",
        &qemu,
    ]);
    run.assert_code(0);
    drop(sealed);
    let console = String::from_utf8_lossy(&run.read("console")).into_owned();
    let said = |what: &str| -> String {
        let lines = console.lines().filter_map(|line| line.trim().strip_prefix("GUEST "));
        let mut found = lines.filter_map(|line| line.strip_prefix(what));
        found
            .next()
            .unwrap_or_else(|| panic!("the guest does not say {what:?}:\n{console}"))
            .trim()
            .to_owned()
    };
    said("done");
    assert_eq!(said("disk "), format!("{} write back", traced::SIZE));

    // The guest read what the disk holds, and later what it had written itself.
    let second = [&before[0x20_1000..0x20_3000], &before[0x40_0000..0x40_2000]].concat();
    assert_eq!(said("second"), md5(&second));
    assert_eq!(said("first"), md5(&before[0x10_1000..0x20_1000]));
    assert_eq!(said("disk-before"), md5(&before));
    let mut after = before;
    fill("written by the guest", &mut after[0x10_2000..0x10_6000]);
    fill("once for all", &mut after[0x40_0000..0x40_1000]);
    after[0x20_1000..0x20_3000].fill(0);
    assert_eq!(said("disk-after"), md5(&after));
    assert_eq!(said("disk-again"), md5(&after));

    // The log has the reads. Each half of the first file was read over a different connection.
    let log = run.read("log");
    let lines = log.split(|&byte| byte == b'\n').skip(1).filter(|line| !line.is_empty());
    let log: Vec<Value> = lines.map(|line| serde_json::from_slice(line).unwrap()).collect();
    let number = |request: &Value, field: &str| request[field].as_u64().unwrap();
    let connections = |half: Range<u64>| -> BTreeSet<u64> {
        let is_direct = |r: &&Value| r["op"] == "read" && number(r, "length") == 0x1_0000;
        let is_half = |r: &&Value| half.contains(&number(r, "offset")) && r["objects"][0]["path"] == "/first";
        log.iter().filter(is_direct).filter(is_half).map(|r| number(r, "connection")).collect()
    };
    let (half, rest) = (connections(0x10_1000..0x18_1000), connections(0x18_1000..0x20_1000));
    // With nbdkit as the server, a guest was seen that never listened on one of its connections. It
    // then goes on with the other.
    if !console.contains("Connection timed out") {
        assert_eq!((half.len(), rest.len()), (1, 1), "{half:?} {rest:?}");
        assert_ne!(half, rest);
    }

    // The log has all changes, in this order.
    let changes: Vec<_> = log
        .iter()
        .filter(|request| request["op"] != "read")
        .map(|r| {
            let path = r["objects"][0]["path"].as_str().unwrap_or_default();
            (r["op"].as_str().unwrap(), number(r, "offset"), number(r, "length"), r["fua"] == true, path)
        })
        .collect();
    let name = "/a \"second\"";
    let mut expected: Vec<_> =
        (0..4).map(|block| ("write", 0x10_2000 + block * 4096, 4096, false, "/first")).collect();
    expected.push(("flush", 0, 0, false, ""));
    expected.push(("write", 0x40_0000, 4096, true, name));
    expected.push(("trim", 0x20_1000, 0x2000, false, name));
    // The driver may flush at other times too.
    let (flushed, rest) = changes.split_at(expected.len() - 2);
    assert_eq!(flushed, &expected[..flushed.len()]);
    let rest: Vec<_> = rest.iter().filter(|change| change.0 != "flush").copied().collect();
    assert_eq!(rest, expected[flushed.len()..]);
}
