//! Keeps things that take long to make under `target/fixtures`. Each is made once, even if several
//! test processes ask for it at the same time.

use crate::places;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

/// The directory in which everything is kept.
pub fn root() -> PathBuf {
    let root = places::target_tmpdir().with_file_name("fixtures");
    fs::create_dir_all(&root).unwrap();
    root
}

/// The cache of the program itself, for all runs of it.
pub fn kept() -> PathBuf {
    let kept = root().join("xdg-cache");
    fs::create_dir_all(&kept).unwrap();
    kept
}

/// A short name that depends on the content of `recipe`.
pub fn key(recipe: impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    recipe.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// The directory of the thing `name` in its version `key`. If it does not exist, `build` makes it.
///
/// `build` fills a directory with another name, which is renamed when it is complete. So a
/// directory that is found is always complete. Other versions of the same thing are removed if they
/// have not been made or used for an hour.
pub fn directory(name: &str, key: &str, build: impl FnOnce(&Path)) -> PathBuf {
    let root = root();
    let path = root.join(format!("{name}-{key}"));
    // The lock is held until this function returns. The kernel frees it if the process is killed.
    let lock = File::create(root.join(format!("{name}.lock"))).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    if !path.exists() {
        remove_old(&root, name);
        let unfinished = tempfile::Builder::new().prefix(&format!("{name}.")).tempdir_in(&root).unwrap();
        build(unfinished.path());
        fs::rename(unfinished.keep(), &path).unwrap();
    }
    path
}

/// Removes finished and unfinished versions of `name` that have not changed for an hour.
fn remove_old(root: &Path, name: &str) {
    for entry in fs::read_dir(root).unwrap().flatten() {
        let file_name = entry.file_name();
        let Some(rest) = file_name.to_str().and_then(|n| n.strip_prefix(name)) else { continue };
        let is_version = rest.strip_prefix('-').is_some_and(|key| key.len() == 16);
        let is_unfinished = rest.starts_with('.') && rest != ".lock";
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        if (is_version || is_unfinished) && age.is_some_and(|age| age.as_secs() > 3600) {
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}
