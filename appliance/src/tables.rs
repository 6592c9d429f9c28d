//! Partition tables that the kernel does not read: on mapped devices (logical volumes, unlocked
//! encrypted devices), which it never splits, and on disks whose GPT counts larger sectors than the
//! appliance's disks have.
//!
//! partx(8) reads the tables. The partitions of a disk are added to the kernel's list, so that they
//! have the usual names; those of a mapped device become mapped devices themselves, as kpartx(8)
//! makes them.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Sectors of disks that have no smaller ones.
const LARGE_SECTOR: &str = "4096";

/// How the UUID of a partition of a mapped device begins, as kpartx(8) forms it.
const PART: &str = "part";

/// Most partitions of a device.
const MOST: usize = 256;

/// A partition of a mapped device, in sectors of 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    number: u32,
    start: u64,
    length: u64,
}

/// Adds the partitions of all devices that have none yet. Returns whether there are new devices.
pub(crate) fn run() -> bool {
    let mut is_new = false;
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let (name, directory) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        if is_in_use(&directory) {
            continue;
        }
        let device = format!("/dev/{name}");
        is_new |= match fs::read_to_string(directory.join("dm/name")) {
            Ok(mapped) => split_mapped(&device, &directory, mapped.trim()),
            Err(_) if has_partitions(&directory, &name) => false,
            // The kernel looks for partitions of an array when it is opened.
            Err(_) if name.starts_with("md") => {
                File::open(&device).is_ok() && has_partitions(&directory, &name)
            }
            Err(_) => name.starts_with("sd") && split_disk(&device),
        };
    }
    is_new
}

/// Whether other devices are made of it.
fn is_in_use(directory: &Path) -> bool {
    fs::read_dir(directory.join("holders")).is_ok_and(|mut holders| holders.next().is_some())
}

fn has_partitions(directory: &Path, name: &str) -> bool {
    let mut entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.any(|entry| entry.file_name().to_string_lossy().starts_with(name))
}

/// Adds the partitions of a disk whose GPT is in its second sector of 4096 bytes.
fn split_disk(device: &str) -> bool {
    let mut magic = [0; 8];
    let read = File::open(device).and_then(|disk| disk.read_exact_at(&mut magic, 4096));
    if read.is_err() || magic != *b"EFI PART" {
        return false;
    }
    let status = Command::new("partx")
        .args(["--add", "--sector-size", LARGE_SECTOR, device])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok()
}

/// Makes a device of each partition of a mapped device.
fn split_mapped(device: &str, directory: &Path, mapped: &str) -> bool {
    let mut sector = [0; 512];
    let read = File::open(device).and_then(|disk| disk.read_exact_at(&mut sector, 0));
    // An MBR, or the one that protects a GPT.
    if read.is_err() || sector[510..] != [0x55, 0xaa] {
        return false;
    }
    let output = Command::new("partx")
        .args(["--raw", "--noheadings", "--output", "NR,START,SECTORS", device])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let listed =
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default().trim().to_owned();
    let (number, uuid, size) = (read("dev"), read("dm/uuid"), read("size").parse().unwrap_or(0));
    if uuid.starts_with(PART) {
        return false;
    }
    let mut is_new = false;
    for part in parts(&listed, size) {
        let between = if mapped.ends_with(|last: char| last.is_ascii_digit()) { "p" } else { "" };
        let name = format!("{mapped}{between}{}", part.number);
        let uuid = format!("{PART}{}-{uuid}", part.number);
        is_new |= make(&name, &uuid, &format!("0 {} linear {number} {}\n", part.length, part.start));
    }
    is_new
}

/// The partitions in partx's list that lie within a device of `size` sectors.
fn parts(listed: &str, size: u64) -> Vec<Part> {
    let part = |line: &str| {
        let mut words = line.split_whitespace();
        let (number, start, length) = (words.next()?, words.next()?, words.next()?);
        let part =
            Part { number: number.parse().ok()?, start: start.parse().ok()?, length: length.parse().ok()? };
        // An extended partition only frames others. The kernel gives it two sectors as well.
        let is_inside = part.start.checked_add(part.length)? <= size;
        (is_inside && part.start > 0 && part.length > 2).then_some(part)
    };
    let all: Vec<Part> = listed.lines().filter_map(part).take(MOST).collect();
    let frames = |outer: &Part| {
        let inner = |part: &&Part| part.number > 4 && outer.number <= 4;
        all.iter()
            .filter(inner)
            .any(|part| outer.start < part.start && part.start + part.length <= outer.start + outer.length)
    };
    all.iter().filter(|part| !frames(part)).copied().collect()
}

/// Makes a mapped device.
fn make(name: &str, uuid: &str, table: &str) -> bool {
    let mut dmsetup = Command::new("dmsetup");
    // Without the variable it would wait for udev.
    dmsetup.args(["create", name, "--uuid", uuid]).env("DM_DISABLE_UDEV", "1");
    let child = dmsetup.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let Ok(mut child) = child else { return false };
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(table.as_bytes());
    }
    child.wait().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_within_the_device_are_taken() {
        let part = |number, start, length| Part { number, start, length };
        let listed = "1 2048 4096\n2 8192 9000\n5 10240 2048\n3 20000 10\n4 19990 11\nx\n";
        assert_eq!(parts(listed, 20_000), [part(1, 2048, 4096), part(5, 10_240, 2048)]);
        assert_eq!(parts("1 1 18446744073709551615\n2 0 5\n", 100), []);
    }
}
