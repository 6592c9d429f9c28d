//! The key of our own appliance: a digest of all that it is made from.
//!
//! When a package of the host is upgraded, supermin would build another appliance, and so must we;
//! the same goes for another agent. The key names what supermin looks at for `--if-newer`, by size
//! and modification time, and the digest of the agent.

use crate::cache::KeyBuilder;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Changes when the way changes in which an appliance is made.
const RECIPE: &str = "2";

/// What supermin looks at: the databases of the package managers that it knows, and the kernels.
const LOOKED_AT: [&str; 8] = [
    "/var/lib/dpkg/status",
    "/var/lib/rpm/Packages",
    "/var/lib/rpm/rpmdb.sqlite",
    "/usr/lib/sysimage/rpm/rpmdb.sqlite",
    "/usr/lib/sysimage/rpm/Packages.db",
    "/var/lib/pacman/local",
    "/boot",
    "/lib/modules",
];

/// Variables that choose the kernel, see supermin(1).
const VARIABLES: [&str; 3] = ["SUPERMIN_KERNEL", "SUPERMIN_KERNEL_VERSION", "SUPERMIN_MODULES"];

/// The key of an appliance that would be made now, of an agent with this digest. `supermin_d` is
/// libguestfs's directory with that name.
pub(super) fn now(agent_digest: &str, supermin_d: &Path) -> String {
    let mut key = KeyBuilder::default();
    key.add(RECIPE.as_bytes());
    key.add(agent_digest.as_bytes());
    for name in VARIABLES {
        let value = std::env::var_os(name).unwrap_or_default();
        key.add(value.as_bytes());
        if !value.is_empty() {
            key.add(&stamp(Path::new(&value)));
        }
    }
    let mut files: Vec<_> = [Path::new("/boot"), supermin_d].iter().flat_map(|path| entries(path)).collect();
    files.extend(LOOKED_AT.map(|path| Path::new(path).to_owned()));
    for path in files {
        key.add(path.as_os_str().as_bytes());
        key.add(&stamp(&path));
    }
    key.finish()
}

/// The files of a directory whose changes matter, in order.
fn entries(directory: &Path) -> Vec<std::path::PathBuf> {
    let is_kernel_or_ours =
        |name: &OsStr| directory != Path::new("/boot") || name.as_bytes().starts_with(b"vmlinu");
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> =
        entries.filter(|entry| is_kernel_or_ours(&entry.file_name())).map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Size, modification time and inode of a file; nothing if it does not exist.
pub(super) fn stamp(path: &Path) -> Vec<u8> {
    fs::metadata(path).map_or_else(
        |_| Vec::new(),
        |it| format!("{} {} {} {}", it.len(), it.mtime(), it.mtime_nsec(), it.ino()).into_bytes(),
    )
}
