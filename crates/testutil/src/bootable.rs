//! Emulated guests. `guest/kernel.sh` and a recipe make each guest once. A guest that boots from
//! its disk also needs `guest/disk.sh`.

use super::{cache, tools};
use std::fs;
use std::path::{Path, PathBuf};

const KERNEL: &str = include_str!("guest/kernel.sh");
const DISK: &str = include_str!("guest/disk.sh");

/// The command that starts a guest whose first disk is `$nbd`. More options may follow.
pub const QEMU: &str = "exec qemu-system-x86_64 -machine accel=tcg -m 256 -nodefaults -display none -no-reboot \
                        -serial file:console -drive file=$nbd,format=raw,if=virtio";

/// The directory of a guest with busybox only. `boot.raw` is its image, `core-bytes` has the length
/// of its loader, and `md5` has the checksums of its files.
pub fn busybox() -> PathBuf {
    guest("bootable", &[DISK, include_str!("guest/busybox.sh")], &[])
}

/// The same for a guest with Debian's systemd. On its second serial port it prints which files are
/// opened.
pub fn systemd() -> PathBuf {
    let recipe = [DISK, include_str!("guest/systemd.sh")];
    guest("systemd", &recipe, &[("opens.c", include_str!("guest/opens.c"))])
}

/// The guest with systemd, with the files of `tree` in `/srv` as well, and with a script, `work`,
/// that its boot runs while its root filesystem can be written to. Not kept: `directory` is where
/// it is made.
pub fn systemd_with(tree: &Path, work: &str, mebibytes: u64, directory: &Path) {
    let more = format!(
        "cp -a '{}' \"$root/srv\"\ncat >\"$root/usr/sbin/work\" <<'WORK'\n{work}\nWORK\n\
         sed -i 's|^ExecStart=.*sleep 1$|ExecStart=/bin/busybox mount -o remount,rw /\\n\
         ExecStart=/bin/busybox sh /usr/sbin/work\\n\
         ExecStart=/bin/busybox mount -o remount,ro /|' \"$root/etc/systemd/system/guest.service\"\n\
         disk {mebibytes}\n",
        tree.display()
    );
    let recipe = include_str!("guest/systemd.sh");
    let (recipe, _) = recipe.trim_end().rsplit_once('\n').expect("the last line makes the disk");
    make(directory, &[DISK, recipe, &more], &[("opens.c", include_str!("guest/opens.c"))]);
}

/// The directory with `kernel` and `initrd` of a guest that is an NBD client, see `guest/nbd.sh`.
pub fn nbd() -> PathBuf {
    guest("nbd", &[include_str!("guest/nbd.sh")], &[])
}

/// The directory with `kernel` and `initrd` of a guest that writes files until it is stopped, see
/// `guest/writer.sh`.
pub fn writer() -> PathBuf {
    guest("writer", &[include_str!("guest/writer.sh")], &[])
}

fn guest(name: &str, recipe: &[&str], files: &[(&str, &str)]) -> PathBuf {
    cache::directory(name, &cache::key((KERNEL, recipe, files)), |dir| make(dir, recipe, files))
}

fn make(dir: &Path, recipe: &[&str], files: &[(&str, &str)]) {
    for (name, content) in files {
        fs::write(dir.join(name), content).unwrap();
    }
    let script = dir.join("make.sh");
    fs::write(&script, [&[KERNEL], recipe].concat().join("\n")).unwrap();
    tools::output(tools::command("bash").arg(script).arg(dir));
}
