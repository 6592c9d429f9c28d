//! The room for what the guest writes over meanwhile: a ceiling, and a thread that looks at it.

use super::LiveError;
use crate::mapper::Cancel;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often the sizes are looked at. A fast disk takes some 100 MiB in this time.
const INTERVAL: Duration = Duration::from_millis(50);

/// What stays free where the scratch files are. If the filesystem were full, qemu could not keep
/// the old data of a block, and would let the guest's write fail.
const RESERVE: u64 = 256 << 20;

/// The least room with which it makes sense to begin.
const LEAST: u64 = 16 << 20;

/// The scratch files of a run.
#[derive(Debug)]
pub(super) struct Scratch {
    /// Their directory.
    place: PathBuf,
    files: Vec<PathBuf>,
    limit: u64,
    is_full: Arc<AtomicBool>,
}

impl Scratch {
    /// Finds out how much the scratch files in `place` may take: what the user says, or else half
    /// of the free space, and never more than the disks have.
    ///
    /// # Errors
    /// There is not so much free space.
    pub(super) fn new(place: &Path, stated: Option<u64>, disks: u64) -> Result<Self, LiveError> {
        let free = free(place)?;
        // The scratch file has tables, too.
        let most = disks.saturating_add(disks / 64).saturating_add(LEAST);
        let limit = stated.unwrap_or(free.saturating_sub(RESERVE) / 2).min(most);
        let wanted = if stated.is_some() { limit } else { LEAST };
        if free.saturating_sub(RESERVE) < wanted {
            return Err(LiveError::NoSpace { place: place.to_owned(), needed: wanted + RESERVE, free });
        }
        Ok(Self { place: place.to_owned(), files: Vec::new(), limit, is_full: Arc::default() })
    }

    /// One more of the files.
    pub(super) fn add(&mut self, file: PathBuf) {
        self.files.push(file);
    }

    /// Cancels the run as soon as the files are larger than their ceiling, or the disk on which
    /// they are is nearly full. The returned guard ends this.
    pub(super) fn watch(&self, cancel: Cancel) -> Watch {
        let watch = Watch::default();
        let (is_over, is_full) = (watch.is_over.clone(), self.is_full.clone());
        let (files, place, limit) = (self.files.clone(), self.place.clone(), self.limit);
        std::thread::spawn(move || {
            while !is_over.load(Ordering::SeqCst) {
                if used(&files) > limit || free(&place).is_ok_and(|free| free < RESERVE) {
                    is_full.store(true, Ordering::SeqCst);
                    cancel.cancel();
                    return;
                }
                std::thread::sleep(INTERVAL);
            }
        });
        watch
    }

    /// An error if the run was cancelled for lack of room.
    pub(super) fn check(&self) -> Result<(), LiveError> {
        if self.is_full.load(Ordering::SeqCst) {
            return Err(LiveError::Full { place: self.place.clone(), limit: self.limit });
        }
        Ok(())
    }
}

/// Ends the watching when it is dropped.
#[derive(Debug, Default)]
pub struct Watch {
    is_over: Arc<AtomicBool>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
    }
}

/// What these files take.
fn used(files: &[PathBuf]) -> u64 {
    // Blocks have 512 bytes, see stat(2). A file that is gone takes nothing.
    files.iter().filter_map(|file| file.metadata().ok()).map(|metadata| metadata.blocks() * 512).sum()
}

fn free(place: &Path) -> Result<u64, LiveError> {
    let found = rustix::fs::statvfs(place);
    let found = found
        .map_err(|error| LiveError::SetUp { what: place.display().to_string(), source: error.into() })?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn more_than_is_free_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = Scratch::new(dir.path(), Some(1 << 60), u64::MAX).unwrap_err();
        assert!(matches!(error, LiveError::NoSpace { needed, free, .. } if free < needed), "{error}");
        // A small disk needs no more than it has.
        let scratch = Scratch::new(dir.path(), Some(1 << 60), 64 << 10).unwrap();
        assert!(scratch.limit < 2 * LEAST);
    }

    #[test]
    fn the_ceiling_cancels_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let mut scratch = Scratch::new(dir.path(), Some(1 << 20), 1 << 30).unwrap();
        let file = dir.path().join("scratch");
        fs::write(&file, vec![1; 512 << 10]).unwrap();
        scratch.add(file.clone());
        let cancel = Cancel::default();
        let watch = scratch.watch(cancel.clone());
        std::thread::sleep(3 * INTERVAL);
        assert!(!cancel.is_cancelled() && scratch.check().is_ok());
        fs::write(&file, vec![1; 2 << 20]).unwrap();
        while !cancel.is_cancelled() {
            std::thread::sleep(INTERVAL);
        }
        assert!(matches!(scratch.check(), Err(LiveError::Full { limit, .. }) if limit == 1 << 20));
        drop(watch);
    }
}
