//! Stamps of files, by which a change of a file is noticed without reading it.

use serde::{Deserialize, Serialize};
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// Size, time of the last write and inode of a file.
///
/// A program that writes to the file and then sets its time back goes unnoticed. A block device has
/// no time of writes, so its stamps prove nothing: see [`is_telling`](Self::is_telling).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Its size in bytes; 0 for a block device.
    pub size: u64,
    /// Time of the last write in nanoseconds since 1970; `None` for a block device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified: Option<i64>,
    /// Its inode number, which changes if another file is moved into its place.
    pub inode: u64,
}

impl Stamp {
    /// The current stamp of the file at `path`.
    ///
    /// # Errors
    /// The system's error.
    pub fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::from(&path.metadata()?))
    }

    /// Whether two equal stamps mean that nothing was written.
    pub fn is_telling(&self) -> bool {
        self.modified.is_some()
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        let since_1970 = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
        let modified = (!metadata.file_type().is_block_device()).then_some(since_1970);
        Self { size: metadata.len(), modified, inode: metadata.ino() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn stamps_notice_writes_and_replacements() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        fs::write(&path, b"old").unwrap();
        let old = Stamp::of(&path).unwrap();
        assert!(old.is_telling());
        assert_eq!(Stamp::of(&path).unwrap(), old);

        let file = fs::File::options().write(true).open(&path).unwrap();
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
        file.set_modified(later).unwrap();
        assert_ne!(Stamp::of(&path).unwrap(), old);

        fs::write(dir.path().join("other"), b"old").unwrap();
        fs::rename(dir.path().join("other"), &path).unwrap();
        assert_ne!(Stamp::of(&path).unwrap().inode, old.inode);
    }
}
