//! What a run may open, with which key, and how much it may unpack: the same for all of its images.

use super::{OpenError, UnpackObserver};
use globset::{GlobBuilder, GlobMatcher};
use rustix::fd::OwnedFd;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Component, Path};
use std::process::Command;
use std::str::FromStr;
use std::sync::Arc;
use virt_bmap_child as child;

/// What a run may open, with which key, and how much it may unpack.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Read images although another program may be writing to them.
    pub force_share: bool,
    /// Backing files and data files that an image may name although its format was detected and not
    /// stated, and although they are block devices.
    pub allowed: Vec<AllowedBacking>,
    /// The passphrase of images that qemu encrypts.
    pub key: Option<ImageKey>,
    /// Most bytes that a compressed image may have when it is unpacked; `None` for
    /// [`UNPACK_LIMIT`](super::UNPACK_LIMIT).
    pub unpack_limit: Option<u64>,
    /// Is told how far such an image is unpacked.
    pub unpacking: Option<UnpackObserver>,
}

/// A pattern for backing files that may be opened: the absolute path of a file or block device,
/// where `*` and `?` match no slash and `**` matches any directories.
///
/// ```
/// use virt_bmap_image::AllowedBacking;
/// use std::path::Path;
///
/// let allowed: AllowedBacking = "/dev/pve/base-*".parse()?;
/// assert!(allowed.contains(Path::new("/dev/pve/base-100-disk-0")));
/// assert!(!allowed.contains(Path::new("/dev/pve/base-1/../vm-2-disk-0")));
/// # Ok::<(), virt_bmap_image::BadPattern>(())
/// ```
#[derive(Clone, Debug)]
pub struct AllowedBacking(GlobMatcher);

/// A text that is no pattern for backing files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    /// It does not begin with a slash.
    #[error("a pattern for backing files begins with a slash")]
    Relative,
    /// Its syntax is wrong.
    #[error("not a pattern: {0}")]
    Syntax(String),
}

impl FromStr for AllowedBacking {
    type Err = BadPattern;

    fn from_str(pattern: &str) -> Result<Self, BadPattern> {
        if !pattern.starts_with('/') {
            return Err(BadPattern::Relative);
        }
        let glob = GlobBuilder::new(pattern).literal_separator(true).build();
        Ok(Self(glob.map_err(|error| BadPattern::Syntax(error.kind().to_string()))?.compile_matcher()))
    }
}

impl AllowedBacking {
    /// Whether the pattern matches a path. One that climbs (`..`) is never matched.
    pub fn contains(&self, path: &Path) -> bool {
        !path.components().any(|part| part == Component::ParentDir) && self.0.is_match(path)
    }
}

/// The passphrase of an image that qemu encrypts. It is held in a file in memory, which qemu's
/// programs inherit, and so stands on no command line and in no file on a disk.
#[derive(Clone)]
pub struct ImageKey(Arc<OwnedFd>);

/// Keeps the passphrase out of logs.
impl fmt::Debug for ImageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ImageKey")
    }
}

impl ImageKey {
    /// The name of qemu's `secret` object.
    pub(super) const ID: &str = "image-key";

    /// A key with this passphrase.
    ///
    /// # Errors
    /// The system's error of making a file in memory.
    pub fn new(passphrase: &[u8]) -> io::Result<Self> {
        let mut file = File::from(memfd_create("image-key", MemfdFlags::CLOEXEC)?);
        file.write_all(passphrase)?;
        Ok(Self(Arc::new(file.into())))
    }

    /// Adds the object to the arguments of one of qemu's programs, which opens the file anew.
    pub(super) fn give(&self, command: &mut Command, path: &Path) -> Result<(), OpenError> {
        let file = self.0.try_clone().map_err(|error| OpenError::from_io(path, error))?;
        let place = child::inherit(command, file);
        command.args(["--object", &format!("secret,id={},file={place}", Self::ID)]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_paths() {
        let allows =
            |pattern: &str, path: &str| pattern.parse::<AllowedBacking>().unwrap().contains(Path::new(path));
        assert!(allows("/dev/pve/*", "/dev/pve/vm-1-disk-0"));
        assert!(!allows("/dev/pve/*", "/dev/pve/a/b") && allows("/dev/**", "/dev/pve/a/b"));
        assert!(!allows("/dev/pve/*", "/dev/pve/../sda") && !allows("/dev/**", "/dev/pve/../../etc/shadow"));
        assert_eq!("dev/*".parse::<AllowedBacking>().unwrap_err(), BadPattern::Relative);
        assert!(matches!("/dev/[".parse::<AllowedBacking>(), Err(BadPattern::Syntax(_))));
    }

    #[test]
    fn a_passphrase_is_read_by_each_child_and_shown_by_none() {
        let key = ImageKey::new(b"sesame").unwrap();
        assert!(!format!("{key:?}").contains("sesame"));
        for _ in 0..2 {
            let mut command = Command::new("sh");
            command.args(["-c", "cat \"${2#*file=}\"", "sh"]);
            key.give(&mut command, Path::new("/image")).unwrap();
            assert!(!format!("{command:?}").contains("sesame"));
            assert_eq!(command.output().unwrap().stdout, b"sesame");
        }
    }
}
