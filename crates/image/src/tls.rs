//! The keys of an encrypted connection to an NBD server, as qemu takes them.
//!
//! qemu reads keys from files of fixed names in a directory: see the objects `tls-creds-x509` and
//! `tls-creds-psk` in qemu(1).

use super::OpenError;
use super::block_device::push_value;
use super::nbd_uri::{NbdUri, Tls};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The name of the file of pre-shared keys, by qemu's `crypto/tlscredspsk.c`.
const PSK_FILE: &str = "keys.psk";

/// The object with the keys.
#[derive(Clone, Debug)]
pub(super) struct Credentials {
    /// Its description, for `--object`.
    object: Vec<u8>,
    /// A directory that was made for qemu, and lasts as long as this.
    _directory: Option<Arc<tempfile::TempDir>>,
}

impl Credentials {
    /// The name of the object.
    pub(super) const ID: &str = "tls";

    /// The keys for a URI.
    ///
    /// # Errors
    /// It names none, or a file of keys that does not exist.
    pub(super) fn of(uri: &NbdUri, tls: &Tls) -> Result<Self, OpenError> {
        let (kind, place, directory) = match (&tls.psk, &tls.certificates) {
            (Some(keys), None) => {
                let (place, directory) = psk_directory(keys)?;
                ("tls-creds-psk", place, directory)
            }
            (None, Some(place)) => ("tls-creds-x509", place.clone(), None),
            (None, None) => return Err(OpenError::NoKeys { uri: uri.to_string() }),
            (Some(_), Some(_)) => return Err(OpenError::TwoKeys { uri: uri.to_string() }),
        };
        let mut object = format!("{kind},id={},endpoint=client", Self::ID).into_bytes();
        let mut add = |key: &str, value: &OsStr| {
            object.push(b',');
            object.extend_from_slice(key.as_bytes());
            push_value(&mut object, value);
        };
        add("dir", place.as_os_str());
        if let (Some(user), Some(_)) = (&tls.user, &tls.psk) {
            add("username", user.as_ref());
        }
        Ok(Self { object, _directory: directory })
    }

    /// The value of `--object`.
    pub(super) fn to_argument(&self) -> OsString {
        OsString::from_vec(self.object.clone())
    }
}

/// The directory in which qemu finds these pre-shared keys. If the file has another name than qemu
/// wants, it is a private one with a link.
fn psk_directory(keys: &Path) -> Result<(PathBuf, Option<Arc<tempfile::TempDir>>), OpenError> {
    let fail = |error: io::Error| OpenError::from_io(keys, error);
    let keys = keys.canonicalize().map_err(fail)?;
    if let (Some(directory), true) = (keys.parent(), keys.file_name() == Some(PSK_FILE.as_ref())) {
        return Ok((directory.to_owned(), None));
    }
    let directory = tempfile::Builder::new().prefix("virt-bmap-").tempdir().map_err(fail)?;
    std::os::unix::fs::symlink(&keys, directory.path().join(PSK_FILE)).map_err(fail)?;
    Ok((directory.path().to_owned(), Some(Arc::new(directory))))
}
