//! A guest boots from a traced disk. The log must name what the guest read: boot code, loader,
//! kernel, initrd, and exactly the files that the guest reports on its console. The list of
//! operations must name exactly what the guest did to its files.

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use virt_bmap_testutil::bootable::{self, QEMU};
use virt_bmap_testutil::formats;
use virt_bmap_testutil::sandbox::{Sandbox, sealed};
use virt_bmap_testutil::tools::{self, needs};

/// A request's most specific object, as `DEVICE PATH`. For a flush it is a single space.
fn first(request: &Value) -> String {
    let object = &request["objects"][0];
    let word = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
    format!("{} {}", word("device"), word("path"))
}

/// What the `/sbin/init` of the guest does to its files.
const DONE: [&str; 13] = [
    "append f /srv/work/grown",
    "chmod f /srv/work/mode",
    "create f /srv/work/made/file",
    "create f /var/written",
    "delete f /srv/work/doomed",
    "link f /srv/work/mode -> /srv/work/hard",
    "mkdir d /srv/work/made",
    "rename d /srv/work/tree -> /srv/work/made/moved",
    "rename f /srv/work/old -> /srv/work/new",
    "truncate f /srv/left/2",
    "truncate f /srv/work/cut",
    "write f /srv/left/2",
    "write f /srv/work/over",
];

/// The operations in `lines`, which are JSON Lines, as a set. If the disks were compared between
/// the creation of a file and a write to it, the log has both. The write is left out here, since it
/// belongs to the creation.
fn operations(lines: &[u8]) -> BTreeSet<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut found = BTreeSet::new();
    for line in lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let operation: Value = serde_json::from_slice(line).unwrap();
        assert_eq!(operation["device"], "/dev/sda2", "{operation}");
        assert!(operation["from_ns"].as_u64() < operation["to_ns"].as_u64(), "{operation}");
        let (what, kind, path) = (text(&operation["op"]), text(&operation["type"]), text(&operation["path"]));
        let from = operation["from_path"].as_str().map(|from| format!("{from} -> ")).unwrap_or_default();
        let is_part = ["append", "write"].contains(&what.as_str());
        if !is_part || !found.contains(&format!("create {kind} {path}")) {
            found.insert(format!("{what} {kind} {from}{path}"));
        }
    }
    found
}

#[test]
fn the_log_of_a_boot_has_all_that_the_guest_says_it_read_and_did() {
    needs!("grub-mkimage", "cpio", "busybox", "mke2fs", "sfdisk", "qemu-system-x86_64");
    let dir = bootable::busybox();
    let image = dir.join("boot.raw");
    let _sealed = sealed([&image]);
    let image = image.to_str().unwrap();

    // `trace` first makes the map, then starts the guest.
    let options = ["-o", "log", "--format", "jsonl", "--operations", "done.jsonl", "--run", QEMU];
    let run = Sandbox::new().run(["trace", image, "--metadata"].into_iter().chain(options));
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

    // The firmware reads the boot sector first. The boot sector then reads the loader behind it.
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

    // The guest read every byte of the kernel. The log has the offsets in the file.
    let kernel: u64 = requests
        .iter()
        .flat_map(|request| request["objects"].as_array().unwrap())
        .filter(|object| object["path"] == "/vmlinuz")
        .map(|object| object["length"].as_u64().unwrap())
        .sum();
    assert!(kernel >= 4 << 20, "{kernel} bytes of the kernel");

    // Of the files in /srv/read and /srv/left, the guest read those that it reports on its console,
    // in that order and completely. It read no other file there.
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

    // The guest's writes went to metadata, the journal and free space. None reached the image,
    // which is sealed.
    let writes: Vec<String> = requests.iter().filter(|request| request["op"] == "write").map(first).collect();
    assert!(writes.iter().any(|name| name == "/dev/sda2 [journal]"), "{writes:?}");
    assert!(writes.iter().all(|name| name.starts_with("/dev/sda2")), "{writes:?}");
    assert!(requests.iter().any(|request| request["op"] == "flush"));

    // The operations on the guest's files.
    assert_eq!(operations(&run.read("done.jsonl")), DONE.map(str::to_owned).into());
}

#[test]
fn what_was_flushed_outlives_a_guest_that_is_killed() {
    needs!("grub-mkimage", "cpio", "busybox", "mke2fs", "sfdisk", "qemu-system-x86_64", "e2fsck", "debugfs");
    let sandbox = Sandbox::new();
    let image = sandbox.cwd().join("boot.raw");
    formats::copy(&bootable::busybox().join("boot.raw"), &image);
    // With a second disk the guest sleeps at the end and does not switch itself off.
    let script = format!(
        "({QEMU} -drive driver=null-co,size=1M,if=virtio) & until grep -q 'GUEST worked' console 2>/dev/null; do sleep 0.1; kill -0 $! || exit 7; done; kill -9 $!; wait $!; exit 5"
    );
    let args = ["--write", "through", "-o", "log", "--operations", "done.jsonl", "--run", &script];
    let run = sandbox.run(["trace", "boot.raw"].into_iter().chain(args));
    run.assert_code(5);
    assert_eq!(operations(&run.read("done.jsonl")), DONE.map(str::to_owned).into());
    // Other programs check that the journal is sound, and that the image has what the guest
    // synchronised.
    let root = run.sandbox.cwd().join("root");
    let (start, sectors) = ((2048 + 48 * 2048) * 512, 24 * 2048 * 512);
    fs::write(&root, &fs::read(&image).unwrap()[start..start + sectors]).unwrap();
    let check = tools::command("e2fsck").args(["-fp"]).arg(&root).output().unwrap();
    assert!(matches!(check.status.code(), Some(0 | 1)), "{check:?}");
    let cat = |path: &str| {
        tools::output(tools::command("debugfs").args(["-R", &format!("cat {path}")]).arg(&root)).stdout
    };
    assert_eq!(cat("/srv/work/made/file"), b"as well\n");
    assert_eq!(cat("/srv/work/new"), b"old\n".repeat(12500));
    let over = cat("/srv/work/over");
    assert_eq!((&over[..8192], over.len()), (&b"over\n".repeat(2000)[..8192], 50000));
    assert_eq!(&over[8192..8192 + 12288], &b"file 6\n".repeat(2000)[..12288]);
}

#[test]
fn a_boot_of_systemd_is_what_the_guest_says_it_opened() {
    needs!("grub-mkimage", "cpio", "busybox", "mke2fs", "sfdisk", "qemu-system-x86_64", "apt-get", "cc");
    let image = bootable::systemd().join("boot.raw");
    let _sealed = sealed([&image]);
    let guest = format!("{QEMU} -serial file:opens");
    let options = ["-o", "log", "--format", "jsonl", "--run", &guest];
    let run = Sandbox::new().run(["trace", image.to_str().unwrap()].into_iter().chain(options));
    run.assert_code(0);
    let console = String::from_utf8_lossy(&run.read("console")).into_owned();
    assert!(console.contains("GUEST is up"), "{console}");

    // The files that were read according to the log.
    let mut logged: BTreeSet<String> = BTreeSet::new();
    for line in run.read("log").split(|&byte| byte == b'\n').skip(1).filter(|line| !line.is_empty()) {
        let request: Value = serde_json::from_slice(line).unwrap();
        for object in request["objects"].as_array().unwrap() {
            if request["op"] == "read" && object["type"] == "f" && object["device"] == "/dev/sda2" {
                logged.insert(object["path"].as_str().unwrap().to_owned());
            }
        }
    }
    // The files that were opened according to the guest.
    let opens = String::from_utf8_lossy(&run.read("opens")).into_owned();
    let reported = |words: &[&str]| -> BTreeSet<&str> {
        let lines = opens.lines().filter_map(|line| line.split_once(' '));
        lines.filter(|(word, _)| words.contains(word)).map(|(_, path)| path).collect()
    };
    let (used, opened) = (reported(&["exec", "read"]), reported(&["exec", "read", "open"]));
    for expected in ["/usr/lib/systemd/systemd", "/usr/lib/systemd/systemd-journald", "/etc/guest-3"] {
        assert!(used.contains(expected), "{expected} was not used:\n{opens}");
    }
    assert!(used.len() > 50, "{used:?}");
    let missing: Vec<_> = used.iter().filter(|path| !logged.contains(**path)).collect();
    assert!(missing.is_empty(), "used, and not in the log: {missing:?}");
    // The guest read these files before it could report opens.
    let before = ["/usr/sbin/init", "/usr/bin/busybox", "/usr/sbin/opens"];
    let beside: Vec<_> = logged
        .iter()
        .filter(|path| !opened.contains(path.as_str()) && !before.contains(&path.as_str()))
        .collect();
    assert!(beside.is_empty(), "in the log, and not opened: {beside:?}");
    assert!(!logged.contains("/etc/guest-2"));
}
