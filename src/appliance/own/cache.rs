//! Where our own appliances are kept: `$XDG_CACHE_HOME/virt-bmap-rs/appliance-KEY`.

use super::build::{self, BuildError, DESCRIPTION, Description, FILES};
use super::{NAME, Own};
use crate::cache::{self, TrustError, TrustedDirectory};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the names of appliances in the cache begin with.
pub(super) const PREFIX: &str = "appliance-";
/// What the names of directories begin with in which one is being built.
const UNFINISHED: &str = "building-";
/// The lock of whoever builds.
const LOCK: &str = "appliance.lock";

/// How long an appliance of another key is kept after its last launch. Another version of this
/// program may be in use, such as one that maps a fleet while it is upgraded.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// How many of these are kept: each takes most of a gigabyte.
const MOST_KEPT: usize = 2;

/// After how many failures in a row an appliance is not tried any more.
const MOST_FAILURES: u32 = 2;

/// The note on failures.
#[derive(Debug, Serialize, Deserialize)]
struct Failures {
    /// How many there were in a row.
    times: u32,
    /// The reason of the last one.
    why: String,
}

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// There is neither `XDG_CACHE_HOME` nor `HOME`.
    #[error("neither XDG_CACHE_HOME nor HOME names a directory")]
    NoHome,
    /// Somebody else may have changed what is there.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The appliance could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The run was ended while it waited for another process that builds.
    #[error("the run was ended")]
    Ended,
}

/// The directory of the cache.
#[derive(Debug)]
pub struct Cache {
    pub(super) directory: TrustedDirectory,
}

impl Cache {
    /// Opens the cache, and makes its directory if it is missing.
    ///
    /// # Errors
    /// [`CacheError`]
    pub fn open() -> Result<Self, CacheError> {
        let path = cache::directory().ok_or(CacheError::NoHome)?;
        Ok(Self { directory: TrustedDirectory::make(&path)? })
    }

    /// Where an appliance with this key is, or would be.
    pub fn path(&self, key: &str) -> PathBuf {
        self.directory.path().join(format!("{PREFIX}{key}"))
    }

    /// The appliance with this key, if it is there and undamaged.
    ///
    /// # Errors
    /// [`CacheError`] for one that somebody else may have changed.
    pub fn find(&self, key: &str) -> Result<Option<Own>, CacheError> {
        let Some(directory) = self.directory.directory(&format!("{PREFIX}{key}"))? else { return Ok(None) };
        Ok(open(&directory)?.filter(|own| own.description.key == key))
    }

    /// Removes all appliances, and what is remembered of them.
    ///
    /// # Errors
    /// [`CacheError`]
    pub fn remove(&self) -> Result<(), CacheError> {
        self.remove_but(|_| false)
    }

    /// Removes the appliances that were not used lately, but not that of `key`, and those that are
    /// unfinished, because they were interrupted.
    fn remove_unused(&self, key: &str) -> Result<(), CacheError> {
        let mut used: BTreeMap<String, Duration> = BTreeMap::new();
        for path in self.entries(PREFIX)? {
            let modified = path.symlink_metadata().and_then(|metadata| metadata.modified());
            let age = modified.ok().and_then(|time| time.elapsed().ok()).filter(|age| *age < KEPT);
            if let (Some(name), Some(age)) = (path.file_stem(), age) {
                let least = used.entry(name.to_string_lossy().into_owned()).or_insert(age);
                *least = age.min(*least);
            }
        }
        let this = format!("{PREFIX}{key}");
        used.remove(&this);
        let mut used: Vec<(Duration, String)> = used.into_iter().map(|(name, age)| (age, name)).collect();
        used.sort();
        used.truncate(MOST_KEPT);
        let kept: HashSet<String> = used.into_iter().map(|(_, name)| name).chain([this]).collect();
        self.remove_but(|name| kept.contains(name.split('.').next().unwrap_or_default()))
    }

    fn remove_but(&self, is_kept: impl Fn(&str) -> bool) -> Result<(), CacheError> {
        for path in self.entries(PREFIX)?.into_iter().chain(self.entries(UNFINISHED)?) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if is_kept(&name) {
                continue;
            }
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                // Children of a supermin that was killed may still write to it.
                Err(_) if name.starts_with(UNFINISHED) => {}
                removed => removed.map_err(|source| CacheError::File { path, source })?,
            }
        }
        Ok(())
    }

    /// The paths of all that begins with this, in order.
    pub(super) fn entries(&self, prefix: &str) -> Result<Vec<PathBuf>, CacheError> {
        let path = self.directory.path();
        let entries =
            fs::read_dir(path).map_err(|source| CacheError::File { path: path.to_owned(), source })?;
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.file_name().unwrap_or_default().to_string_lossy().starts_with(prefix));
        paths.sort();
        Ok(paths)
    }

    /// Waits until no other process builds. `is_ended` is asked meanwhile whether to give up.
    ///
    /// # Errors
    /// [`CacheError`]
    pub fn lock(&self, is_ended: &dyn Fn() -> bool) -> Result<fs::File, CacheError> {
        let path = self.directory.path().join(LOCK);
        let failed = |source| CacheError::File { path: path.clone(), source };
        let file = fs::File::options().create(true).append(true).open(&path).map_err(failed)?;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) if is_ended() => return Err(CacheError::Ended),
                Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(100)),
                Err(error) => return Err(failed(error.into())),
            }
        }
    }

    /// The appliance that is made from this, built if it is missing or damaged. `is_ended` is asked
    /// whether to give up while another process builds. Calls `building` before it builds.
    ///
    /// # Errors
    /// [`CacheError`]
    pub fn find_or_build(
        &self,
        source: &build::Source<'_>,
        is_ended: &dyn Fn() -> bool,
        building: &mut dyn FnMut(),
    ) -> Result<Own, CacheError> {
        if let Some(own) = self.find(&source.key)? {
            return Ok(own);
        }
        let _lock = self.lock(is_ended)?;
        // Another process may have built it meanwhile.
        if let Some(own) = self.find(&source.key)? {
            return Ok(own);
        }
        building();
        match self.build(source) {
            // supermin was killed with the run.
            Err(CacheError::Build(_)) if is_ended() => Err(CacheError::Ended),
            built => built,
        }
    }

    /// Builds the appliance with this key. The lock must be held.
    ///
    /// # Errors
    /// [`CacheError`]
    fn build(&self, source: &build::Source<'_>) -> Result<Own, CacheError> {
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| CacheError::File { path, source }
        };
        self.remove_unused(&source.key)?;
        let directory = self.directory.path();
        let building =
            tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(directory).map_err(file(directory))?;
        let description = build::build(building.path(), NAME, source)?;
        let path = self.path(&source.key);
        if path.exists() {
            fs::remove_dir_all(&path).map_err(file(&path))?;
        }
        fs::rename(building.path().join(NAME), &path).map_err(file(&path))?;
        Ok(Own { directory: path, description, _temporary: None })
    }

    /// Why the appliance with this key is not used any more: it has failed twice in a row.
    pub fn failure(&self, key: &str) -> Option<String> {
        self.failures(key).filter(|failures| failures.times >= MOST_FAILURES).map(|failures| failures.why)
    }

    fn failures(&self, key: &str) -> Option<Failures> {
        serde_json::from_str(&self.directory.note(&format!("{PREFIX}{key}.failed"))?).ok()
    }

    /// Forgets why the appliance with this key is not used.
    ///
    /// # Errors
    /// [`CacheError`]
    pub fn forget_failure(&self, key: &str) -> Result<(), CacheError> {
        self.remove_note(self.directory.path().join(format!("{PREFIX}{key}.failed")))
    }

    /// Forgets why the appliance with this key and its saved states are not used.
    ///
    /// # Errors
    /// [`CacheError`]
    pub fn forget_failures(&self, key: &str) -> Result<(), CacheError> {
        let mut notes = self.entries(&format!("{PREFIX}{key}."))?;
        notes.retain(|path| path.extension().is_some_and(|it| it == "failed"));
        notes.into_iter().try_for_each(|path| self.remove_note(path))
    }

    fn remove_note(&self, path: PathBuf) -> Result<(), CacheError> {
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CacheError::File { path, source }),
            _ => Ok(()),
        }
    }

    /// Remembers that the appliance with this key failed, and why.
    pub fn remember_failure(&self, key: &str, why: &str) {
        let times = self.failures(key).map_or(0, |failures| failures.times).saturating_add(1);
        let failures = Failures { times, why: why.to_owned() };
        // Without the note, the next run finds out again.
        if let Ok(text) = serde_json::to_string(&failures) {
            let _ = self.directory.write_note(&format!("{PREFIX}{key}.failed"), &text);
        }
    }

    /// How long the last launch took that succeeded.
    pub fn launched(&self, key: &str) -> Option<Duration> {
        self.directory
            .note(&format!("{PREFIX}{key}.launched"))?
            .trim()
            .parse()
            .ok()
            .map(Duration::from_millis)
    }

    /// Remembers how long a launch took that succeeded, and forgets failures.
    pub fn remember_launched(&self, key: &str, took: Duration) {
        // If the note stays, the appliance is given up one failure too early.
        let _ = self.forget_failure(key);
        let name = format!("{PREFIX}{key}.launched");
        let _ = self.directory.write_note(&name, &took.as_millis().to_string());
    }
}

/// The appliance in a directory, if it is complete and undamaged.
///
/// # Errors
/// [`CacheError`] for one that somebody else may have changed.
pub(super) fn open(directory: &TrustedDirectory) -> Result<Option<Own>, CacheError> {
    let path = || directory.path().join(DESCRIPTION);
    let Some(text) = directory.note(DESCRIPTION) else { return Ok(None) };
    let Ok(description) = serde_json::from_str::<Description>(&text) else { return Ok(None) };
    for name in FILES {
        let Some(file) = directory.file(name)? else { return Ok(None) };
        let metadata = file.metadata().map_err(|source| CacheError::File { path: path(), source })?;
        let stamp = (name.to_owned(), metadata.len(), build::modified(&metadata));
        if !description.files.contains(&stamp) {
            return Ok(None);
        }
    }
    Ok(Some(Own { directory: directory.path().to_owned(), description, _temporary: None }))
}
