//! Filesystems that the host's kernel mounts for as long as something is done to them.

use super::tools;
use std::fs;
use std::path::Path;

/// Mounts the image at `root`, which is made if need be, while `work` does something to what is in
/// it. `kind` and `options` are mount(8)'s.
pub fn mounted(image: &Path, kind: &str, options: &str, root: &Path, work: impl FnOnce()) {
    fs::create_dir_all(root).unwrap();
    tools::output(tools::command("mount").args(["-t", kind, "-o", options]).arg(image).arg(root));
    let unmount = Unmount(root);
    work();
    std::mem::forget(unmount);
    tools::run("umount", [root]);
}

/// Unmounts where the work has failed.
struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        tools::command("umount").arg(self.0).status().ok();
    }
}
