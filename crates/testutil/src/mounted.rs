//! Filesystems that this machine's kernel mounts for a limited time.

use super::tools;
use std::fs;
use std::path::Path;

/// Mounts the image at `root`, calls `work`, and unmounts it. Makes the directory `root` if it does
/// not exist. `kind` and `options` are those of mount(8).
pub fn mounted(image: &Path, kind: &str, options: &str, root: &Path, work: impl FnOnce()) {
    fs::create_dir_all(root).unwrap();
    tools::output(tools::command("mount").args(["-t", kind, "-o", options]).arg(image).arg(root));
    let unmount = Unmount(root);
    work();
    std::mem::forget(unmount);
    tools::run("umount", [root]);
}

/// Unmounts the filesystem even if `work` panics.
struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        tools::command("umount").arg(self.0).status().ok();
    }
}
