//! A guest that starts in two seconds without KVM: user-mode Linux, a Linux kernel that runs as an
//! ordinary process (Debian: `user-mode-linux`).
//!
//! It has the drivers of ext2, ext4, XFS, btrfs, vfat, FUSE (for ntfs-3g), md and the device mapper,
//! whatever this machine's kernel has. Its disks are those of a trace, connected by
//! qemu-storage-daemon. Its mounts and volumes are its own, so nothing of them can be left here, and
//! it needs no root. Killing it is what a power failure is to a machine.

use std::fs;
use std::path::Path;

/// The programs that a guest needs, for [`installed`](super::tools::installed).
pub const PROGRAMS: [&str; 4] = ["linux.uml", "qemu-storage-daemon", "setsid", "modprobe"];

/// Writes what the guest needs into `directory`, and returns the command for `trace --run` that
/// starts it. Its disks are the first `disks` of the trace: /dev/vda, /dev/vdb, …
///
/// The guest loads the kernel `modules`, executes `work` (a script for bash, in `directory`), and
/// switches itself off. The command's exit status is that of the script. `directory` then has the
/// guest's output in the file `console`.
pub fn command(directory: &Path, disks: usize, modules: &[&str], work: &str) -> String {
    for (name, content) in [
        ("usermode.sh", include_str!("guest/usermode.sh")),
        ("init.sh", include_str!("guest/usermode-init.sh")),
        ("operations.py", include_str!("guest/operations.py")),
        ("work.sh", work),
    ] {
        let path = directory.join(name);
        fs::write(&path, content).unwrap();
        super::tools::run("chmod", ["755".as_ref(), path.as_os_str()]);
    }
    format!("exec bash {0}/usermode.sh {0} {disks} '{1}'", directory.display(), modules.join(" "))
}

/// Kills the guest of [`command`] as soon as it has printed `words`. The command's exit status is
/// then 5.
pub fn kill_at(directory: &Path, words: &str) {
    fs::write(directory.join("kill-at"), format!("{words}\n")).unwrap();
}

/// The lines for `work` that mount `device`, perform the operations in the file `list` (see
/// `guest/operations.py`) and unmount it. `kind` is a filesystem type of mount(8), or `ntfs-3g`.
pub fn perform(device: &str, kind: &str, options: &str, list: &str) -> String {
    let mount = match kind {
        "ntfs-3g" => format!("ntfs-3g -o 'rw,{options}' {device} /mnt"),
        _ => format!("mount -t {kind} -o 'rw,{options}' {device} /mnt"),
    };
    format!(
        "set -e\n{mount}\n/usr/bin/python3 operations.py /mnt {list}\numount /mnt\n\
         echo performed {list}\n"
    )
}
