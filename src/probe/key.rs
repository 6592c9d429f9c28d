//! Keys of encrypted devices, as the user gives them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use virt_bmap_agent_protocol::Secret;

/// A key and the devices that it is for: `SELECTOR:TYPE:VALUE`, as in the guestfs tools.
///
/// ```
/// use virt_bmap::probe::key::Key;
///
/// let key: Key = "/dev/sda2:key:correct horse".parse()?;
/// assert!(key.fits("/dev/sda2", None) && !key.fits("/dev/sda3", None));
/// let key: Key = "all:key:x:y".parse()?;
/// assert!(key.fits("/dev/vg/home", Some("0b5ebb5c-66d9-4b9c-9c8e-8fc7fc42e5ea")));
/// # Ok::<(), virt_bmap::probe::key::KeyError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    selector: String,
    pub(super) secret: Secret,
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It has another form.
    #[error(
        "{0:?} is not a key: write SELECTOR:key:STRING or SELECTOR:file:NAME, with a device, a UUID, `all` or `image` as SELECTOR"
    )]
    Form(String),
    /// Its file cannot be read.
    #[error("cannot read the key file {path:?}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

/// Keeps the secret out of logs.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("selector", &self.selector).finish_non_exhaustive()
    }
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        // A selector may be a device name, which has no colon, or a UUID.
        let mut parts = text.splitn(3, ':');
        let (Some(selector), Some(kind), Some(value)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(KeyError::Form(text.split(':').next().unwrap_or_default().into()));
        };
        let secret = match kind {
            "key" => value.as_bytes().to_vec(),
            "file" => {
                let path = PathBuf::from(value);
                let mut secret = std::fs::read(&path).map_err(|source| KeyError::File { path, source })?;
                // Text editors end a file with a newline.
                if secret.last() == Some(&b'\n') {
                    secret.pop();
                }
                secret
            }
            _ => return Err(KeyError::Form(selector.into())),
        };
        Ok(Self { selector: selector.to_owned(), secret: Secret::new(secret) })
    }
}

impl Key {
    /// The selector of the key of images that qemu encrypts.
    const IMAGE: &str = "image";

    /// The passphrase, if it is that of images that qemu encrypts.
    pub fn of_image(&self) -> Option<&[u8]> {
        (self.selector == Self::IMAGE).then(|| self.secret.expose())
    }

    /// Whether the key is for this device, or for this UUID.
    pub fn fits(&self, device: &str, uuid: Option<&str>) -> bool {
        if self.of_image().is_some() {
            return false;
        }
        let is_uuid = uuid.is_some_and(|uuid| uuid.eq_ignore_ascii_case(&self.selector));
        self.selector == "all" || self.selector == device || is_uuid
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn keys_are_parsed_and_their_secrets_kept() {
        for bad in ["", "x", "all", "all:key", "all:clevis", "all:secret:x"] {
            assert!(matches!(bad.parse::<Key>(), Err(KeyError::Form(_))), "{bad}");
        }
        let key: Key = "all:key:open:sesame".parse().unwrap();
        assert_eq!(key.secret.expose(), b"open:sesame");
        assert!(!format!("{key:?}").contains("sesame"));
        let error = "all:secret:sesame".parse::<Key>().unwrap_err();
        assert!(!error.to_string().contains("sesame"), "{error}");
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"sesame\n").unwrap();
        let key: Key = format!("/dev/sda1:file:{}", file.path().display()).parse().unwrap();
        assert_eq!(key.secret.expose(), b"sesame");
        assert!(matches!("all:file:/nonexistent".parse::<Key>(), Err(KeyError::File { .. })));
    }

    #[test]
    fn keys_are_chosen_by_device_or_uuid() {
        let key: Key = "image:key:x".parse().unwrap();
        assert!(!key.fits("image", None) && key.of_image() == Some(b"x"));
        let key: Key = "0B5EBB5C-66D9:key:x".parse().unwrap();
        assert!(key.fits("/dev/sda1", Some("0b5ebb5c-66d9")));
        assert!(!key.fits("/dev/sda1", None));
    }
}
