//! Describes block devices for the host, one line each:
//!
//! ```text
//! /dev/sda 8:0 size=1073741824
//! /dev/sda1 8:1 size=1048576 part=8:0+1048576
//! /dev/vg/root 253:0 size=209715200 dm=vg-root
//! /dev/md0 9:0 size=209715200 md
//! ```
//!
//! All numbers are bytes. The kernel's own tables are the source: `/sys/dev/block/MAJOR:MINOR`, whose
//! `size` and `start` count 512 bytes (`Documentation/ABI/stable/sysfs-block`).

use crate::Fatal;
use rustix::fs::{Mode, OFlags, major, minor, open};
use std::fs;
use std::path::Path;

const SECTOR: u64 = 512;

pub(crate) fn run(devices: &[&str]) -> Result<(), Fatal> {
    for device in devices {
        match describe(device) {
            Ok(line) => println!("{line}"),
            // One device less is a warning of the host's, not the end.
            Err(error) => println!("{device} error={error}"),
        }
    }
    Ok(())
}

fn describe(device: &str) -> Result<String, Fatal> {
    let fd = open(device, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let number = rustix::fs::fstat(&fd)?.st_rdev;
    let number = format!("{}:{}", major(number), minor(number));
    let directory = Path::new("/sys/dev/block").join(&number);
    let read = |name: &str| fs::read_to_string(directory.join(name)).map(|text| text.trim().to_owned());
    let sectors = |name: &str| -> Result<u64, Fatal> { Ok(read(name)?.parse::<u64>()? * SECTOR) };

    let mut line = format!("{device} {number} size={}", sectors("size")?);
    if directory.join("partition").exists() {
        line += &format!(" part={}+{}", read("../dev")?, sectors("start")?);
    } else if let Ok(name) = read("dm/name") {
        line += &format!(" dm={name}");
    } else if directory.join("md").exists() {
        line += " md";
    }
    Ok(line)
}
