//! A guest that starts in two seconds without KVM: user-mode Linux, a Linux kernel that runs as an
//! ordinary process (Debian: `user-mode-linux`).
//!
//! It has the drivers of ext2, ext4, XFS, btrfs, vfat, FUSE (for ntfs-3g), md and the device
//! mapper, whatever this machine's kernel has. Its disks are those of a trace, connected by
//! qemu-storage-daemon. Its mounts and volumes are its own, so nothing of them can be left here,
//! and it needs no root. Killing it is what a power failure is to a machine.

use std::fs;
use std::path::{Path, PathBuf};

/// Writes what the guest needs into `directory`, and returns the command for `trace --run` that
/// starts it. Its disks are the first `disks` of the trace: /dev/vda, /dev/vdb, …
///
/// The guest executes `work` (a script for bash, in `directory`), and switches itself off. The
/// command's exit status is that of the script. `directory` then has the guest's output in the file
/// `console`.
pub fn command(directory: &Path, disks: usize, work: &str) -> String {
    put(directory, work);
    format!("exec bash {0}/usermode.sh {0} {disks}", directory.display())
}

/// Runs a guest on raw images that are not traced. They are its /dev/vda, /dev/vdb, …
pub fn run(images: &[PathBuf], work: &str) {
    let directory = tempfile::tempdir().unwrap();
    put(directory.path(), work);
    let script = directory.path().join("usermode.sh");
    let output = super::tools::command("bash").arg(script).arg(directory.path()).args(images).output();
    let console = fs::read_to_string(directory.path().join("console")).unwrap_or_default();
    assert!(output.as_ref().unwrap().status.success(), "{output:?}\n{console}");
}

fn put(directory: &Path, work: &str) {
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
}

/// Kills the guest of [`command`] as soon as it has printed `words`. The command's exit status is
/// then 5.
pub fn kill_at(directory: &Path, words: &str) {
    fs::write(directory.join("kill-at"), format!("{words}\n")).unwrap();
}

/// The lines for `work` that mount `device`, perform the operations in the file `list` (see
/// `guest/operations.py`) and unmount it.
pub fn perform(device: &str, mount: Mount, list: &str) -> String {
    within(device, mount, &format!("/usr/bin/python3 operations.py /mnt {list}\necho performed {list}"))
}

/// The lines for `work` that mount `device` at `/mnt`, run `commands` and unmount it.
pub fn within(device: &str, (kind, options): Mount, commands: &str) -> String {
    let mount = match kind {
        "ntfs-3g" => format!("ntfs-3g -o rw{options} {device} /mnt"),
        _ => format!("mount -t {kind} -o rw{options} {device} /mnt"),
    };
    format!("set -e\n{mount}\n{commands}\numount /mnt\n")
}

/// A filesystem type of mount(8), or `ntfs-3g`; and its options, each after a comma.
pub type Mount = (&'static str, &'static str);

/// Returns from the test with a visible `SKIPPED` unless a guest of user-mode Linux can be started
/// with filesystems of each kind.
#[macro_export]
macro_rules! needs_guest {
    () => {
        $crate::needs!("linux.uml", "qemu-storage-daemon", "setsid", "modprobe", "python3");
        $crate::needs!("mke2fs", "mkfs.xfs", "mkfs.btrfs", "mkfs.vfat", "mkfs.ntfs", "ntfs-3g");
    };
}
#[doc(inline)]
pub use needs_guest;
