//! A guest boots from its disk, and the log tells what it read: boot code, loader, kernel, initrd, and just the
//! files that the guest itself says on its console that it has read.
#![allow(clippy::unwrap_used)]

mod common;

use common::cache;
use common::sandbox::{Sandbox, sealed};
use common::tools::{self, needs};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

/// The directory with the image, see `common/bootable.sh`.
fn bootable() -> PathBuf {
    const RECIPE: &str = include_str!("common/bootable.sh");
    cache::directory("bootable", &cache::key(RECIPE), |dir| {
        let script = dir.join("bootable.sh");
        fs::write(&script, RECIPE).unwrap();
        tools::output(tools::command("bash").arg(script).arg(dir));
    })
}

const QEMU: &str = "exec qemu-system-x86_64 -machine accel=tcg -m 256 -nodefaults -display none -no-reboot \
                    -serial file:console -drive file=$nbd,format=raw,if=virtio";

/// A request's most specific object, as `DEVICE PATH`; of a flush, only a space.
fn first(request: &Value) -> String {
    let object = &request["objects"][0];
    let word = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
    format!("{} {}", word("device"), word("path"))
}

#[test]
fn the_log_of_a_boot_has_all_that_the_guest_says_it_read() {
    needs!("grub-mkimage", "cpio", "busybox", "mke2fs", "sfdisk", "qemu-system-x86_64");
    let dir = bootable();
    let image = dir.join("boot.raw");
    let _sealed = sealed([&image]);
    let image = image.to_str().unwrap();

    // The map is made first, and the guest started when it is there.
    let run =
        Sandbox::new().run(["trace", image, "--metadata", "-o", "log", "--format", "jsonl", "--run", QEMU]);
    run.assert_code(0);
    let log = run.read("log");
    let requests: Vec<Value> = log
        .split(|&b| b == b'\n')
        .skip(1)
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let console = String::from_utf8_lossy(&run.read("console")).into_owned();
    assert!(console.contains("GUEST done"), "{console}");

    // First of all the firmware reads the boot sector, then that reads the loader behind it.
    assert_eq!((&requests[0]["offset"], &requests[0]["length"]), (&0.into(), &512.into()));
    assert_eq!(first(&requests[0]), "/dev/sda [boot code]");
    let core: u64 = fs::read_to_string(dir.join("core-bytes")).unwrap().trim().parse().unwrap();
    let mut loaded = vec![false; core.div_ceil(512) as usize];
    for request in requests.iter().filter(|request| first(request) == "/dev/sda [boot code]") {
        let at = |name: &str| request[name].as_u64().unwrap() / 512;
        for sector in at("offset")..at("offset") + at("length") {
            if let Some(sector) = (sector as usize).checked_sub(1).and_then(|sector| loaded.get_mut(sector)) {
                *sector = true;
            }
        }
    }
    assert!(loaded.iter().all(|&loaded| loaded), "not all of the loader was read");

    // Then the loader reads its configuration, the kernel and the initrd, in this order.
    let reads = |path: &str| -> Vec<usize> {
        let of = |(at, request): (usize, &Value)| {
            (request["op"] == "read" && first(request) == path).then_some(at)
        };
        requests.iter().enumerate().filter_map(of).collect()
    };
    let last = |path: &str| *reads(path).last().unwrap_or_else(|| panic!("{path} was not read"));
    let boot =
        ["/dev/sda1 /grub/grub.cfg", "/dev/sda1 /vmlinuz", "/dev/sda1 /initrd.img", "/dev/sda2 /sbin/init"];
    assert!(boot.map(last).is_sorted(), "{:?}", boot.map(reads));
    assert!(!reads("/dev/sda2 /bin/busybox").is_empty());

    // Every byte of the kernel was asked for, by its offset in the file.
    let kernel: u64 = requests
        .iter()
        .flat_map(|request| request["objects"].as_array().unwrap())
        .filter(|object| object["path"] == "/vmlinuz")
        .map(|object| object["length"].as_u64().unwrap())
        .sum();
    assert!(kernel >= 4 << 20, "{kernel} bytes of the kernel");

    // Of the files that are there to be read, those that the guest says, in its order and whole; no other.
    let md5 = fs::read_to_string(dir.join("md5")).unwrap();
    let said: Vec<&str> =
        console.lines().filter_map(|line| line.trim().strip_prefix("GUEST read ")).collect();
    assert_eq!(said.len(), 4, "{console}");
    assert!(said.iter().all(|line| md5.lines().any(|known| known == *line)), "{said:?}\n{md5}");
    let said: Vec<String> =
        said.iter().map(|line| format!("/dev/sda2 {}", line.split_whitespace().nth(1).unwrap())).collect();
    assert!(said.iter().map(|path| last(path)).is_sorted());
    for number in 1..=6 {
        let (read, left) = (format!("/dev/sda2 /srv/read/{number}"), format!("/dev/sda2 /srv/left/{number}"));
        assert_eq!(!reads(&read).is_empty(), said.contains(&read), "{read}");
        assert!(reads(&left).is_empty(), "{left}");
        let bytes: u64 =
            reads(&read).iter().map(|&at| requests[at]["objects"][0]["length"].as_u64().unwrap()).sum();
        assert!(!said.contains(&read) || bytes >= number * 30000, "{read}: {bytes}");
    }

    // What it wrote went to metadata, the journal and what was free, and stayed private: the image is sealed.
    let writes: Vec<String> = requests.iter().filter(|request| request["op"] == "write").map(first).collect();
    assert!(writes.iter().any(|name| name == "/dev/sda2 [journal]"), "{writes:?}");
    assert!(writes.iter().all(|name| name.starts_with("/dev/sda2")), "{writes:?}");
    assert!(requests.iter().any(|request| request["op"] == "flush"));
}
