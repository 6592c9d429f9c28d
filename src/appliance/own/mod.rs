//! An appliance of our own, derived from the host's packages, that boots in a fraction of the time.
//!
//! It is a *fixed appliance* of libguestfs (guestfs-internals(1)): supermin builds it as it builds
//! libguestfs's own, and then the kernel is unpacked ([`kernel`]), and the initial RAM filesystem
//! has the agent as process 1 and only the modules that reach the root disk ([`initrd`]). It is
//! kept in a cache ([`cache`]) under a key of all that it is made from ([`key`]). Whenever it
//! cannot be used, libguestfs's own appliance is.

pub mod build;
pub mod cache;
mod initrd;
mod kernel;
mod key;
pub(super) mod saved;

use crate::cache::hex;
use build::{BuildError, Description, Source};
use cache::{Cache, CacheError};
use sha2::{Digest as _, Sha256};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Which appliance to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// Our own, or libguestfs's where that is not possible.
    #[default]
    Own,
    /// Our own, booted each time: no state of it is saved or used.
    Boot,
    /// libguestfs's.
    Stock,
}

/// An appliance of our own that can be launched.
#[derive(Clone, Debug)]
pub struct Own {
    directory: PathBuf,
    description: Description,
    /// Removes it when this run ends, if it is not in the cache.
    _temporary: Option<Arc<tempfile::TempDir>>,
}

impl Own {
    /// The directory, for `LIBGUESTFS_PATH`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The bytes that its files take on disk.
    pub fn size(&self) -> u64 {
        let blocks = |name: &&str| std::fs::metadata(self.directory.join(name)).map_or(0, |it| it.blocks());
        build::FILES.iter().map(blocks).sum::<u64>() * 512
    }

    /// What it was made from.
    pub fn description(&self) -> &Description {
        &self.description
    }
}

/// The appliance that a run uses.
#[derive(Clone, Debug)]
pub enum Selected {
    /// Our own.
    Own(Own),
    /// libguestfs's, or that of `LIBGUESTFS_PATH`.
    Stock {
        /// Why not our own, if that was wanted.
        because: Option<String>,
    },
}

/// The name of an appliance in the directory in which it is built.
const NAME: &str = "appliance";

/// The agent, which is in the appliance.
const AGENT: &[u8] = include_bytes!(env!("VIRT_BMAP_AGENT"));

/// Selects the appliance, and builds our own if it is missing. `path` is libguestfs's search path.
/// `is_ended` says whether to give up. Calls `building` before it builds, with the reason why it
/// builds for this run alone, if it does.
pub fn select(
    choice: Choice,
    path: &str,
    is_ended: &dyn Fn() -> bool,
    building: &mut dyn FnMut(Option<String>),
) -> Selected {
    if let Some(directory) = std::env::var_os("LIBGUESTFS_PATH") {
        return exported(Path::new(&directory)).map_or(Selected::Stock { because: None }, Selected::Own);
    }
    let Some(supermin_d) = supermin_d(path).filter(|_| choice != Choice::Stock) else {
        return Selected::Stock { because: None };
    };
    match ready(&supermin_d, is_ended, building) {
        Ok(own) => Selected::Own(own),
        Err(why) => Selected::Stock { because: Some(why) },
    }
}

/// Our own appliance in the directory that the user names, if its agent is this build's.
pub fn exported(directory: &Path) -> Option<Own> {
    let text = std::fs::read(directory.join(build::DESCRIPTION)).ok()?;
    let description: Description = serde_json::from_slice(&text).ok()?;
    let directory = directory.to_owned();
    (description.agent == agent_digest()).then_some(Own { directory, description, _temporary: None })
}

/// libguestfs's directory with the lists of what supermin puts into the appliance.
pub fn supermin_d(path: &str) -> Option<PathBuf> {
    path.split(':').map(|directory| Path::new(directory).join("supermin.d")).find(|it| it.is_dir())
}

/// What an appliance would be made from now.
pub fn source(supermin_d: &Path) -> Source<'_> {
    let agent_digest = agent_digest();
    Source { supermin_d, key: key::now(&agent_digest, supermin_d), agent: AGENT, agent_digest }
}

fn agent_digest() -> String {
    hex(&Sha256::digest(AGENT))
}

/// Our own appliance, built first if need be. The error says why there is none.
fn ready(
    supermin_d: &Path,
    is_ended: &dyn Fn() -> bool,
    building: &mut dyn FnMut(Option<String>),
) -> Result<Own, String> {
    let source = source(supermin_d);
    let words = |error: &dyn std::error::Error| virt_bmap_ranges::error_chain(error);
    let made = Cache::open().and_then(|cache| {
        if let Some(why) = cache.failure(&source.key) {
            return Ok(Err(why));
        }
        match cache.find_or_build(&source, is_ended, &mut || building(None)) {
            Err(CacheError::Build(error)) => {
                let why = words(&error);
                cache.remember_failure(&source.key, &why);
                Ok(Err(why))
            }
            made => made.map(Ok),
        }
    });
    match made {
        Ok(made) => made,
        Err(error @ CacheError::Ended) => Err(words(&error)),
        // The cache is of no use, so this run has one of its own.
        Err(error) => {
            building(Some(words(&error)));
            temporary(&source).map_err(|why| format!("{}; {}", words(&error), words(&why)))
        }
    }
}

/// Builds our own appliance in the cache if it is missing, and forgets that it failed before.
///
/// # Errors
/// [`CacheError`]
pub fn retry(source: &Source<'_>) -> Result<Own, CacheError> {
    let cache = Cache::open()?;
    cache.forget_failures(&source.key)?;
    cache.find_or_build(source, &|| false, &mut || {})
}

/// Builds our own appliance in a new directory. It is complete or not there.
///
/// # Errors
/// [`BuildError`]
pub fn export(directory: &Path, source: &Source<'_>) -> Result<Own, BuildError> {
    let failed = |source| BuildError::File { path: directory.to_owned(), source };
    if directory.symlink_metadata().is_ok() {
        return Err(failed(io::ErrorKind::AlreadyExists.into()));
    }
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let building =
        tempfile::Builder::new().prefix(".virt-bmap-appliance-").tempdir_in(parent).map_err(failed)?;
    let description = build::build(building.path(), NAME, source)?;
    std::fs::rename(building.path().join(NAME), directory).map_err(failed)?;
    Ok(Own { directory: directory.to_owned(), description, _temporary: None })
}

/// An appliance that is removed at the end of this run.
fn temporary(source: &Source<'_>) -> Result<Own, BuildError> {
    let place = ["LIBGUESTFS_CACHEDIR", "TMPDIR"].iter().find_map(std::env::var_os);
    let place = place.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let directory = tempfile::Builder::new()
        .prefix("virt-bmap-appliance-")
        .tempdir_in(&place)
        .map_err(|source| BuildError::File { path: place, source })?;
    let description = build::build(directory.path(), NAME, source)?;
    let path = directory.path().join(NAME);
    Ok(Own { directory: path, description, _temporary: Some(Arc::new(directory)) })
}

impl Own {
    /// How long a launch may take: three times the last one that succeeded.
    pub(super) fn launch_limit(&self, is_emulated: bool) -> Duration {
        const EMULATED: Duration = Duration::from_secs(60);
        const KVM: Duration = Duration::from_secs(20);
        if !is_emulated {
            return KVM;
        }
        let last = Cache::open().ok().and_then(|cache| cache.launched(&self.description.key));
        last.map_or(EMULATED, |last| EMULATED.max(last * 3))
    }

    /// Remembers that a launch succeeded, and how long it took.
    pub(super) fn launched(&self, took: Duration) {
        if let Ok(cache) = Cache::open() {
            cache.remember_launched(&self.description.key, took);
        }
    }

    /// Remembers that a launch failed.
    pub(super) fn failed(&self, why: &str) {
        if let Ok(cache) = Cache::open() {
            cache.remember_failure(&self.description.key, why);
        }
    }
}
