//! Emulated guests. Each is made once, by `guest/kernel.sh` and a recipe: those that boot from
//! their disks by `guest/disk.sh` as well.

use super::{cache, tools};
use std::fs;
use std::path::PathBuf;

const KERNEL: &str = include_str!("guest/kernel.sh");
const DISK: &str = include_str!("guest/disk.sh");

/// How a guest is started whose first disk is `$nbd`; more options may follow.
pub const QEMU: &str = "exec qemu-system-x86_64 -machine accel=tcg -m 256 -nodefaults -display none -no-reboot \
                        -serial file:console -drive file=$nbd,format=raw,if=virtio";

/// The directory with the image of a guest of busybox alone: `boot.raw`; in `core-bytes` is how
/// long the loader is, in `md5` what its files hold.
pub fn busybox() -> PathBuf {
    guest("bootable", &[DISK, include_str!("guest/busybox.sh")], &[])
}

/// The same of a guest of Debian's systemd that tells on its second serial port what is opened.
pub fn systemd() -> PathBuf {
    let recipe = [DISK, include_str!("guest/systemd.sh")];
    guest("systemd", &recipe, &[("opens.c", include_str!("guest/opens.c"))])
}

/// The directory with `kernel` and `initrd` of a guest that is a client of NBD, see `guest/nbd.sh`.
pub fn nbd() -> PathBuf {
    guest("nbd", &[include_str!("guest/nbd.sh")], &[])
}

fn guest(name: &str, recipe: &[&str], files: &[(&str, &str)]) -> PathBuf {
    cache::directory(name, &cache::key((KERNEL, recipe, files)), |dir| {
        for (name, content) in files {
            fs::write(dir.join(name), content).unwrap();
        }
        let script = dir.join("make.sh");
        fs::write(&script, [&[KERNEL], recipe].concat().join("\n")).unwrap();
        tools::output(tools::command("bash").arg(script).arg(dir));
    })
}
