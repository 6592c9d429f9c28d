//! Guests of several disks. One appliance makes a guest from a script.

use super::special::{SECTOR, sector};
use super::{guestfish, tools};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The code that the images depend on, in addition to a script.
pub const SOURCE: &str = include_str!("layered.rs");

const MIB: u64 = 1 << 20;

/// The disk with the contents of the files is read in units of this many bytes. Each content begins
/// in a new unit.
const UNIT: u64 = 4096;

/// `/dev/sda` for 1, and so on.
pub fn device(disk: usize) -> String {
    format!("/dev/sd{}", char::from(b'a' + disk as u8 - 1))
}

/// The content of a file of `size` bytes in which every sector is a pattern (see `special.rs`).
pub fn pattern(id: u32, size: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..size.div_ceil(SECTOR) as u32).flat_map(|n| sector(id, n)).collect();
    bytes.truncate(size);
    bytes
}

/// Commands that make a filesystem on `device`, mount it on `/mnt/ID`, and write `/file`. The
/// file's content is number `id`, counted from 1, of the contents, which have `size` bytes each.
pub fn fill(device: &str, mkfs: &str, id: usize, size: usize) -> String {
    let from = (id as u64 - 1) * (size as u64).div_ceil(UNIT);
    format!(
        "{mkfs} {device}\nmkdir -p /mnt/{id}\nmount {device} /mnt/{id}\n\
         dd status=none bs={UNIT} iflag=fullblock,count_bytes if=$SRC skip={from} count={size} of=/mnt/{id}/file\n\
         sync -f /mnt/{id}/file\n"
    )
}

/// Makes `1.raw` and so on in `dir`. For each disk, `disks` has its size and the sizes of its
/// partitions in MiB. A disk with partitions has a GPT, and the first partition begins at 1 MiB. An
/// appliance runs `script`, in which the disks are `/dev/sda` and so on.
pub fn make(dir: &Path, disks: &[(u64, &[u64])], files: &[Vec<u8>], script: &str) {
    for (number, (size, parts)) in (1..).zip(disks) {
        let path = dir.join(format!("{number}.raw"));
        File::create(&path).unwrap().set_len(size * MIB).unwrap();
        if !parts.is_empty() {
            let mut table = String::from("label: gpt\n");
            let mut at = 1;
            for size in *parts {
                writeln!(table, "start={}, size={}", at * 2048, size * 2048).unwrap();
                at += size;
            }
            let file = dir.join("table");
            fs::write(&file, table).unwrap();
            tools::output(tools::command("sfdisk").arg("-q").arg(&path).stdin(File::open(&file).unwrap()));
        }
    }
    fill_made(dir, disks.len(), files, script);
}

/// The same for disks whose images exist already.
pub fn fill_made(dir: &Path, disks: usize, files: &[Vec<u8>], script: &str) {
    let mut fish = String::new();
    for number in 1..=disks {
        writeln!(fish, "add-drive {number}.raw format:raw cachemode:unsafe").unwrap();
    }
    let blob = File::create(dir.join("blob")).unwrap();
    let mut at = 0;
    for content in files {
        blob.write_all_at(content, at).unwrap();
        at = (at + content.len() as u64).next_multiple_of(UNIT);
    }
    blob.set_len(at).unwrap();
    let script = guestfish::by_label(script);
    fs::write(dir.join("make.sh"), format!("set -eu\nSRC=/dev/disk/guestfs/src\n{script}")).unwrap();
    write!(
        fish,
        "add-drive blob readonly:true format:raw label:src\nrun\ndebug-upload make.sh /tmp/make.sh 0700\n\
         debug sh 'bash /tmp/make.sh >&2 || {{ dmesg | tail -5 >&2; exit 1; }}'\nshutdown\n"
    )
    .unwrap();
    guestfish::run(dir, &fish);
}
