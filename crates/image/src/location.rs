//! Where an image is.

use super::nbd_uri::{BadUri, NbdUri};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use virt_bmap_ranges::Printable;

/// Where an image is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Location {
    /// A file or block device of this host.
    File(PathBuf),
    /// An export of an NBD server. Only what a user wrote becomes one: a name in an image, a map or
    /// a record never does.
    Nbd(Box<NbdUri>),
    /// What an image that the user trusts refers to, and only qemu can open: `ssh://…`, `json:…`.
    Other(OsString),
}

impl Location {
    /// The location that a user wrote: an [NBD URI](NbdUri), or else a path.
    ///
    /// ```
    /// use virt_bmap_image::Location;
    ///
    /// assert!(matches!(Location::stated("nbd://host/disk".as_ref())?, Location::Nbd(_)));
    /// assert!(matches!(Location::stated("./nbd:disk".as_ref())?, Location::File(_)));
    /// # Ok::<(), virt_bmap_image::BadUri>(())
    /// ```
    ///
    /// # Errors
    /// It begins like an NBD URI, and is none.
    pub fn stated(text: &OsStr) -> Result<Self, BadUri> {
        if NbdUri::is_meant(text) {
            return Ok(Self::Nbd(Box::new(NbdUri::parse(text)?)));
        }
        Ok(Self::File(text.into()))
    }

    /// The path, if it is on this host.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Nbd(_) | Self::Other(_) => None,
        }
    }

    /// What a user has to write for it.
    pub fn text(&self) -> OsString {
        match self {
            Self::Nbd(uri) => uri.text().into(),
            Self::File(_) | Self::Other(_) => self.name(),
        }
    }

    /// Its name, as maps show it: the path, or the URI without keys and user.
    pub fn name(&self) -> OsString {
        match self {
            Self::File(path) => path.clone().into_os_string(),
            Self::Nbd(uri) => uri.to_string().into(),
            Self::Other(name) => name.clone(),
        }
    }
}

impl From<PathBuf> for Location {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

/// For people: control characters are escaped.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printable(self.name().as_bytes()).fmt(f)
    }
}
