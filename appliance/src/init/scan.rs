//! Has arrays and volumes assembled, where the disks have signatures of them, and partitions made
//! of the tables on them.
//!
//! The order is that of libguestfs's init script: complete md arrays, LVM, incomplete md arrays,
//! dynamic disks. A volume may lie on an array and an array on volumes, so what appears is examined
//! again.

use super::ENVIRONMENT;
use super::signatures::{Found, examine};
use std::collections::HashSet;
use std::fs;
use std::process::{Command, Stdio};

/// Layers of volumes on arrays on volumes … that are assembled.
const MOST_LAYERS: usize = 8;

/// Has everything assembled that can be.
pub(crate) fn run() {
    let mut examined = HashSet::new();
    let mut all = Found::default();
    let mut btrfs = 0;
    for _ in 0..MOST_LAYERS {
        let mut new = Found::default();
        crate::tables::run();
        for device in devices() {
            if !examined.insert(device.clone()) {
                continue;
            }
            // A device that cannot be read is examined, and named, later.
            let Some(found) = look(&device) else { continue };
            new.md |= found.md;
            new.lvm |= found.lvm;
            new.ldm |= found.ldm;
            btrfs += usize::from(found.btrfs);
        }
        if new.md {
            // Without those that lack members.
            program("mdadm", &["-As", "--auto=yes", "--no-degraded"]);
        }
        if new.lvm {
            program("modprobe", &["dm_mod"]);
            program("lvm", &["pvscan", "--cache", "--activate", "ay"]);
        }
        if new.md {
            program("mdadm", &["-As", "--auto=yes", "--run"]);
        }
        if new.ldm && !all.ldm {
            program("ldmtool", &["create", "all"]);
        }
        all.ldm |= new.ldm;
        if !(new.md || new.lvm || new.ldm) {
            break;
        }
    }
    // A btrfs of one device needs no registration.
    if btrfs > 1 {
        program("btrfs", &["device", "scan"]);
    }
}

/// The kernel's names of all block devices.
fn devices() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/block").into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn look(device: &str) -> Option<Found> {
    let size = fs::read_to_string(format!("/sys/class/block/{device}/size")).ok()?;
    let size = size.trim().parse::<u64>().ok()?.checked_mul(512)?;
    examine(&fs::File::open(format!("/dev/{device}")).ok()?, size).ok()
}

/// Runs a program to its end. What it could not assemble is seen in what is there afterwards.
pub(crate) fn program(name: &str, arguments: &[&str]) {
    let mut command = Command::new(name);
    command.args(arguments).envs(ENVIRONMENT).stdin(Stdio::null());
    if let Err(error) = command.status() {
        println!("virt-bmap-agent: {name}: {error}");
    }
}
