//! Directories and files that nobody but this user, or root, can have changed.
//!
//! What lies in a cache is run as this user: the appliance's kernel and programs. With `sudo` the
//! cache may be that of another user (`HOME` is kept by some configurations), and a directory below
//! `/tmp` may be anyone's. So every directory on the way is opened from the one above it without
//! following links, and its owner and permissions are checked.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags, Stat, fstat, mkdirat, openat};
use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Why a path is not used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// It cannot be opened.
    #[error("{}: {source}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Its owner is neither this user nor root.
    #[error("{} belongs to another user", path.display())]
    Owner {
        /// The path.
        path: PathBuf,
    },
    /// Group or others may write to it.
    #[error("{} can be written to by other users", path.display())]
    Writable {
        /// The path.
        path: PathBuf,
    },
    /// It is not a regular file.
    #[error("{} is not a regular file", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
    },
}

/// A directory on whose way nobody else can write.
#[derive(Debug)]
pub struct TrustedDirectory {
    fd: OwnedFd,
    path: PathBuf,
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl TrustedDirectory {
    /// Opens the directory, and makes it, and those above it, where they are missing. Links in the
    /// path are resolved first, so the directories that count are those that they lead to.
    ///
    /// # Errors
    /// [`TrustError`]
    pub fn make(path: &Path) -> Result<Self, TrustError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source: rustix::io::Errno| TrustError::Open { path, source: source.into() }
        };
        let path = resolve(path).map_err(|source| TrustError::Open { path: path.to_owned(), source })?;
        let mut at = PathBuf::from("/");
        let mut fd = rustix::fs::open(&at, DIRECTORY, Mode::empty()).map_err(failed(&at))?;
        check(&fd, &at)?;
        for component in path.components() {
            let Component::Normal(name) = component else { continue };
            at.push(name);
            let opened = match openat(&fd, name, DIRECTORY, Mode::empty()) {
                Err(rustix::io::Errno::NOENT) => {
                    // Another process may be making it as well.
                    match mkdirat(&fd, name, Mode::RWXU) {
                        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                        Err(error) => return Err(failed(&at)(error)),
                    }
                    openat(&fd, name, DIRECTORY, Mode::empty())
                }
                opened => opened,
            };
            fd = opened.map_err(failed(&at))?;
            check(&fd, &at)?;
        }
        Ok(Self { fd, path: at })
    }

    /// Opens a directory in this one. `None`: it does not exist.
    ///
    /// # Errors
    /// [`TrustError`]
    pub fn directory(&self, name: &str) -> Result<Option<Self>, TrustError> {
        let path = self.path.join(name);
        let Some(fd) = self.open(name, DIRECTORY)? else { return Ok(None) };
        check(&fd, &path)?;
        Ok(Some(Self { fd, path }))
    }

    /// Opens a regular file in this directory for reading. `None`: it does not exist.
    ///
    /// # Errors
    /// [`TrustError`]
    pub fn file(&self, name: &str) -> Result<Option<File>, TrustError> {
        self.open(name, FILE)?.map(|fd| regular(fd, self.path.join(name))).transpose()
    }

    /// The path, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self, name: &str, flags: OFlags) -> Result<Option<OwnedFd>, TrustError> {
        match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(source) => Err(TrustError::Open { path: self.path.join(name), source: source.into() }),
        }
    }
}

/// Opens a regular file for reading that nobody but this user, or root, can have written. The
/// directories on the way may be anybody's. `None`: it does not exist.
///
/// # Errors
/// [`TrustError`]
pub(super) fn file(path: &Path) -> Result<Option<File>, TrustError> {
    match rustix::fs::open(path, FILE, Mode::empty()) {
        Ok(fd) => regular(fd, path.to_owned()).map(Some),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(source) => Err(TrustError::Open { path: path.to_owned(), source: source.into() }),
    }
}

/// How a file is opened: without waiting for the other end of a named pipe.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

fn regular(fd: OwnedFd, path: PathBuf) -> Result<File, TrustError> {
    let stat = check(&fd, &path)?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(TrustError::Kind { path });
    }
    Ok(fd.into())
}

/// Resolves the links in a path. The last directories of the path need not exist.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    for above in path.ancestors() {
        match above.canonicalize() {
            Ok(found) => {
                let missing = path.strip_prefix(above).map_err(io::Error::other)?;
                if missing.components().any(|part| part == Component::ParentDir) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                return Ok(found.join(missing));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// The permission of the group and of others to write, see inode(7).
const OTHERS_WRITE: u32 = 0o022;

/// Checks owner and permissions. In a directory of root's with the sticky bit, such as `/tmp`,
/// others can make entries, but not replace those of this user.
fn check(fd: &impl AsFd, path: &Path) -> Result<Stat, TrustError> {
    let stat =
        fstat(fd).map_err(|source| TrustError::Open { path: path.to_owned(), source: source.into() })?;
    if stat.st_uid != 0 && stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(TrustError::Owner { path: path.to_owned() });
    }
    let mode = Mode::from_raw_mode(stat.st_mode);
    let is_shared_by_root = stat.st_uid == 0 && mode.contains(Mode::SVTX);
    if mode.as_raw_mode() & OTHERS_WRITE != 0 && !is_shared_by_root {
        return Err(TrustError::Writable { path: path.to_owned() });
    }
    Ok(stat)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn place() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn missing_directories_are_made_for_this_user_alone() {
        let place = place();
        let made = TrustedDirectory::make(&place.path().join("a/b")).unwrap();
        let mode = fs::metadata(made.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(made.directory("c").unwrap().is_none() && made.file("c").unwrap().is_none());
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let place = place();
        let shared = place.path().join("shared");
        fs::create_dir(&shared).unwrap();
        fs::set_permissions(&shared, Permissions::from_mode(0o770)).unwrap();
        let error = TrustedDirectory::make(&shared.join("cache")).unwrap_err();
        assert!(matches!(error, TrustError::Writable { .. }), "{error}");
    }

    #[test]
    fn entries_that_are_links_or_no_files_are_refused() {
        let place = place();
        let directory = TrustedDirectory::make(place.path()).unwrap();
        symlink("/etc", place.path().join("link")).unwrap();
        symlink("/etc/passwd", place.path().join("file")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, place.path().join("fifo"), Mode::RWXU).unwrap();
        assert!(matches!(directory.directory("link").unwrap_err(), TrustError::Open { .. }));
        assert!(matches!(directory.file("file").unwrap_err(), TrustError::Open { .. }));
        assert!(matches!(directory.file("fifo").unwrap_err(), TrustError::Kind { .. }));
    }

    #[test]
    fn what_belongs_to_another_user_is_refused() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: only root can make a file of another user");
            return;
        }
        let place = place();
        let planted = place.path().join("planted");
        fs::create_dir(&planted).unwrap();
        std::os::unix::fs::chown(&planted, Some(12345), Some(12345)).unwrap();
        let directory = TrustedDirectory::make(place.path()).unwrap();
        assert!(matches!(directory.directory("planted").unwrap_err(), TrustError::Owner { .. }));
        let error = TrustedDirectory::make(&planted.join("cache")).unwrap_err();
        assert!(matches!(error, TrustError::Owner { .. }), "{error}");
    }
}
