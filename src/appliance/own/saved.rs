//! Saved states of our own appliance: beside it in the cache, as `appliance-KEY.state-STATE`.
//!
//! A state is what qemu writes of a virtual machine when it migrates it: memory and devices. It
//! goes on only in the same virtual machine, so STATE is a digest of all that shapes one.

use super::Own;
use super::cache::{Cache, CacheError, PREFIX};
use super::key::stamp;
use crate::cache::KeyBuilder;
use std::cmp::Reverse;
use std::fs::{self, FileTimes};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use tempfile::NamedTempFile;

/// Changes when states of the version before must not be used.
const RECIPE: &str = "1";

/// Most states of an appliance that are kept. Each takes 150 MB.
const MOST: usize = 8;

/// What shapes the virtual machine of an appliance.
#[derive(Debug)]
pub(in crate::appliance) struct Shape<'a> {
    /// The qemu that runs it.
    pub(in crate::appliance) qemu: &'a Path,
    /// Memory in MiB.
    pub(in crate::appliance) memsize: i32,
    /// Number of virtual processors.
    pub(in crate::appliance) smp: u32,
    /// Options of the kernel.
    pub(in crate::appliance) append: &'a str,
    /// Number of the guest's disks.
    pub(in crate::appliance) disks: usize,
}

/// Where the state of a virtual machine is, or will be.
#[derive(Debug)]
pub(in crate::appliance) struct SavedState {
    cache: Cache,
    /// The name of the appliance in the cache, which the names of its states begin with.
    appliance: String,
    name: String,
}

impl Own {
    /// The state of the appliance in this virtual machine. `None`: states cannot be kept, or saving
    /// this one or going on from it has failed before.
    pub(in crate::appliance) fn saved_state(&self, shape: &Shape<'_>) -> Option<SavedState> {
        let cache = Cache::open().ok().filter(|_| self._temporary.is_none())?;
        let mut key = KeyBuilder::default();
        key.add(RECIPE.as_bytes());
        // The state has parts of the root disk in its page cache.
        for (name, size, modified) in &self.description.files {
            key.add(format!("{name} {size} {modified}").as_bytes());
        }
        key.add(&stamp(shape.qemu));
        key.add(format!("{} {} {}", shape.memsize, shape.smp, shape.disks).as_bytes());
        key.add(shape.append.as_bytes());
        let appliance = format!("{PREFIX}{}", self.description.key);
        let name = format!("{appliance}.state-{}", key.finish());
        let state = SavedState { cache, appliance, name };
        state.cache.directory.note(&state.failed()).is_none().then_some(state)
    }
}

impl SavedState {
    /// Where it is, if it has been saved.
    pub(in crate::appliance) fn find(&self) -> Option<PathBuf> {
        let file = self.cache.directory.file(&self.name).ok()??;
        // Those that were used last are kept.
        let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
        Some(self.path(&self.name))
    }

    /// Waits until no other process builds or saves, and removes what an interrupted one has left.
    /// `is_ended` is asked meanwhile whether to give up.
    ///
    /// # Errors
    /// [`CacheError`]
    pub(in crate::appliance) fn lock(&self, is_ended: &dyn Fn() -> bool) -> Result<fs::File, CacheError> {
        let lock = self.cache.lock(is_ended)?;
        for unfinished in self.cache.entries(&self.unfinished())? {
            let _ = fs::remove_file(unfinished);
        }
        Ok(lock)
    }

    /// The file to save it in. Only this user may read it.
    ///
    /// # Errors
    /// The system's.
    pub(in crate::appliance) fn create(&self) -> io::Result<NamedTempFile> {
        tempfile::Builder::new().prefix(&self.unfinished()).tempfile_in(self.cache.directory.path())
    }

    /// Keeps what was saved in the file, and as many of the others as may be kept.
    ///
    /// # Errors
    /// The system's.
    pub(in crate::appliance) fn keep(&self, file: NamedTempFile) -> io::Result<PathBuf> {
        let path = self.path(&self.name);
        file.persist(&path)?;
        let used = |path: &PathBuf| path.metadata().and_then(|metadata| metadata.modified()).ok();
        let mut states = states(&self.cache, &self.appliance);
        states.sort_by_cached_key(|path| Reverse(used(path)));
        for oldest in states.iter().skip(MOST) {
            let _ = fs::remove_file(oldest);
        }
        Ok(path)
    }

    /// Removes it, and remembers why it is of no use.
    pub(in crate::appliance) fn failed_because(&self, why: &str) {
        let _ = fs::remove_file(self.path(&self.name));
        let _ = self.cache.directory.write_note(&self.failed(), why);
    }

    fn unfinished(&self) -> String {
        format!("{}.saving-", self.appliance)
    }

    fn failed(&self) -> String {
        format!("{}{FAILED}", self.name)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.cache.directory.path().join(name)
    }
}

impl Cache {
    /// The saved states of the appliance with this key.
    pub fn saved_states(&self, key: &str) -> Vec<PathBuf> {
        states(self, &format!("{PREFIX}{key}"))
    }
}

fn states(cache: &Cache, appliance: &str) -> Vec<PathBuf> {
    let mut states = cache.entries(&format!("{appliance}.state-")).unwrap_or_default();
    states.retain(|path| !path.to_string_lossy().ends_with(FAILED));
    states
}

/// What the name of the note ends with that a state is of no use.
const FAILED: &str = ".failed";
