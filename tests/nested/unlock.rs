//! Encrypted devices whose keys are derived on the host, and in the appliance: the map is the same.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use virt_bmap_testutil::layered::{self, pattern};
use virt_bmap_testutil::sandbox::{Finished, Sandbox};
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::{cache, mastering};

const MIB: u64 = 1 << 20;

/// Bytes of each file.
const SIZE: usize = 100 * 1024 + 700;

/// The partitions of the first disk in MiB: LUKS1, LUKS2, BitLocker, LUKS2 that asks for 4 GiB of
/// memory, and LUKS1 with another passphrase. The second disk has LUKS2 in a logical volume.
const PARTS: [u64; 5] = [24, 40, 44, 20, 20];

const PASSPHRASE: &str = "open sesame";

/// Makes the argon2id of a LUKS2 header ask for 4 GiB, which cryptsetup accepts, in both copies of
/// the header, and corrects their checksums (LUKS2 on-disk format specification, section 2).
const GREEDY: &str = r#"
import hashlib, re, sys
disk = open(sys.argv[1], 'r+b')
at = int(sys.argv[2])
for copy in (0, 1):
    disk.seek(at)
    size = int.from_bytes(disk.read(16)[8:], 'big')
    start = at + copy * size
    disk.seek(start)
    header = bytearray(disk.read(size))
    text = header[4096:].split(b'\0')[0]
    text = re.sub(rb'"memory":\d+', b'"memory":4194304', text)
    header[4096:] = text.ljust(size - 4096, b'\0')
    header[448:512] = bytes(64)
    header[448:480] = hashlib.sha256(header).digest()
    disk.seek(start)
    disk.write(header)
"#;

fn script() -> String {
    let luks2 = "luksFormat -q --type luks2 --sector-size 4096 --pbkdf argon2id --pbkdf-memory 1024 \
                 --pbkdf-force-iterations 4 --pbkdf-parallel 2";
    let luks1 = "luksFormat -q --type luks1 --pbkdf-force-iterations 2000";
    let mut s = format!(
        "export DM_DISABLE_UDEV=1\nprintf '{PASSPHRASE}' > /tmp/key\nprintf other > /tmp/other\n\
         pvcreate -q /dev/sdb >/dev/null\nvgcreate -q -s 1M vg /dev/sdb\nlvcreate -q -y -L 40M -n lv vg >/dev/null\n\
         cryptsetup {luks1} --uuid 11111111-1111-1111-1111-111111111111 /dev/sda1 /tmp/key\n\
         cryptsetup {luks2} --uuid 22222222-2222-2222-2222-222222222222 /dev/sda2 /tmp/key\n\
         cryptsetup {luks2} --uuid 44444444-4444-4444-4444-444444444444 /dev/sda4 /tmp/key\n\
         cryptsetup {luks1} --uuid 55555555-5555-5555-5555-555555555555 /dev/sda5 /tmp/other\n\
         cryptsetup {luks2} --uuid 66666666-6666-6666-6666-666666666666 /dev/vg/lv /tmp/key\n"
    );
    for (id, device) in [(1, "/dev/sda1"), (2, "/dev/sda2"), (3, "/dev/sda3"), (4, "/dev/vg/lv")] {
        let (kind, size) = if id == 3 { ("--type bitlk", "40M") } else { ("", "") };
        s.push_str(&format!("cryptsetup open {kind} --key-file /tmp/key {device} c{id}\n"));
        let fill =
            layered::fill(&format!("/dev/mapper/c{id}"), "mkfs.ext4 -q -b 4096 -E nodiscard", id, SIZE);
        // BitLocker's metadata lie in the last 4 MiB.
        s.push_str(&fill.replacen(&format!("c{id}\n"), &format!("c{id} {size}\n"), 1));
        s.push_str(&format!("umount /mnt/{id}\ncryptsetup close c{id}\n"));
    }
    s + "vgchange -q -an vg >/dev/null\n"
}

fn disks() -> Vec<PathBuf> {
    let key = cache::key((script(), PARTS, SIZE, layered::SOURCE, mastering::MAKERS[1], GREEDY));
    let dir = cache::directory("unlock", &key, |dir| {
        let [first, second] = ["1.raw", "2.raw"].map(|name| dir.join(name));
        let disk = File::create(&first).unwrap();
        disk.set_len((PARTS.iter().sum::<u64>() + 2) * MIB).unwrap();
        File::create(&second).unwrap().set_len(48 * MIB).unwrap();
        let table = PARTS.map(|size| format!("size={size}MiB\n")).concat();
        fs::write(dir.join("table"), format!("label: gpt\n{table}")).unwrap();
        let table = Stdio::from(File::open(dir.join("table")).unwrap());
        tools::output(tools::command("sfdisk").arg("-q").arg(&first).stdin(table));
        let start = |part: usize| (1 + PARTS[..part].iter().sum::<u64>()) * MIB;
        let volume = dir.join("bitlocker");
        mastering::bitlocker(&volume, PARTS[2] * MIB, PASSPHRASE);
        disk.write_all_at(&fs::read(&volume).unwrap(), start(2)).unwrap();
        let files: Vec<Vec<u8>> = (1..=4).map(|id| pattern(id, SIZE)).collect();
        layered::fill_made(dir, 2, &files, &script());
        fs::write(dir.join("greedy.py"), GREEDY).unwrap();
        let mut python = tools::command("python3");
        tools::output(python.arg(dir.join("greedy.py")).arg(&first).arg(start(3).to_string()));
    });
    ["1.raw", "2.raw"].map(|name| dir.join(name)).to_vec()
}

/// A `cryptsetup` that writes its arguments down and runs the real one. If the test is root, it
/// runs as nobody.
fn observed(directory: &Path) -> String {
    let real = tools::find("cryptsetup").unwrap();
    let script = directory.join("cryptsetup");
    let log = directory.join("calls");
    fs::write(
        &script,
        format!("#!/bin/sh\necho \"$@\" >>'{}'\nexec '{}' \"$@\"\n", log.display(), real.display()),
    )
    .unwrap();
    fs::write(&log, "").unwrap();
    for (path, mode) in [(directory, 0o755), (&script, 0o755), (&log, 0o666)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    format!("{}:{}", directory.display(), std::env::var("PATH").unwrap())
}

fn map(disks: &[PathBuf], path: &str, unlock: &str) -> Finished {
    let key = format!("all:file:{}", disks[0].with_file_name("key").display());
    let options = ["-o", "out.jsonl", "--metadata", "--unlock", unlock, "--key", &key, "-x"];
    let images = disks.iter().map(|disk| disk.to_str().unwrap());
    Sandbox::new().env("PATH", path).run(images.chain(options))
}

#[test]
fn keys_from_the_host_and_from_the_appliance_open_the_same() {
    needs!("guestfish", "sfdisk", "python3", "cryptsetup", "mkfs.ext4");
    let disks = disks();
    let directory = tempfile::tempdir().unwrap();
    let path = observed(directory.path());
    fs::write(disks[0].with_file_name("key"), PASSPHRASE).unwrap();
    let (disks, path) = (&disks, &path);
    // Side by side: this is the longest of the tests beside it.
    let [host, appliance] = std::thread::scope(|scope| {
        let runs = ["host", "appliance"].map(|unlock| scope.spawn(move || map(disks, path, unlock)));
        runs.map(|run| run.join().unwrap())
    });
    let text = String::from_utf8(host.read("out.jsonl")).unwrap();
    assert_eq!(host.code(), 3, "{}", host.stderr);
    for device in [
        "luks-11111111-1111-1111-1111-111111111111",
        "luks-22222222-2222-2222-2222-222222222222",
        "bitlk-",
        "luks-66666666-6666-6666-6666-666666666666",
    ] {
        let is_it = |line: &&str| line.contains(device) && line.contains(r#""path":"/file""#);
        assert_eq!(text.lines().filter(is_it).count(), 1, "{device}: {}", host.stderr);
    }
    for (device, reason) in [("/dev/sda4", "memory"), ("/dev/sda5", "wrong-key")] {
        let warning = format!(r#""device":"{device}","cause":{{"kind":"locked","reason":"{reason}"}}"#);
        assert!(text.contains(&warning), "{}", host.stderr);
    }
    assert!(host.read("out.jsonl") == appliance.read("out.jsonl"), "{}", appliance.stderr);

    // Only the first run asked the host's cryptsetup, once for each device; the rest was pipes.
    let calls = fs::read_to_string(directory.path().join("calls")).unwrap();
    let of = |action: &str| calls.lines().filter(|call| call.starts_with(action)).count();
    assert_eq!((of("luksDump"), of("bitlkDump"), calls.lines().count()), (5, 1, 6), "{calls}");
    for said in [&calls, &host.stderr, &appliance.stderr] {
        assert!(!said.contains(PASSPHRASE));
    }
    assert!(host.stderr.contains("libguestfs: trace: debug"), "calls were not traced");
}
