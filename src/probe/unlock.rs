//! Unlocks encrypted devices with the keys that the user gives.

use super::ProbeError;
use super::survey::Context;
use crate::appliance::{Content, Inventory, UNLOCKING, Unlocked};
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use virt_bmap_agent_protocol::{Class, FsKind};
use virt_bmap_map::{Cause, LockReason};

/// A key, and what it is for: `SELECTOR:TYPE:VALUE`, as the guestfs tools have it.
///
/// ```
/// use virt_bmap::probe::unlock::Key;
///
/// let key: Key = "/dev/sda2:key:correct horse".parse()?;
/// assert!(key.fits("/dev/sda2", None) && !key.fits("/dev/sda3", None));
/// let key: Key = "all:key:x:y".parse()?;
/// assert!(key.fits("/dev/vg/home", Some("0b5ebb5c-66d9-4b9c-9c8e-8fc7fc42e5ea")));
/// # Ok::<(), virt_bmap::probe::unlock::KeyError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    selector: String,
    secret: Vec<u8>,
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It is not of the form.
    #[error(
        "{0:?} is no key: write SELECTOR:key:STRING or SELECTOR:file:NAME, with a device, a UUID or `all` as SELECTOR"
    )]
    Form(String),
    /// Its file cannot be read.
    #[error("the key file {path:?} cannot be read")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
}

/// The secret stays out of logs.
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
                // Text editors end a file with one.
                if secret.last() == Some(&b'\n') {
                    secret.pop();
                }
                secret
            }
            _ => return Err(KeyError::Form(selector.into())),
        };
        Ok(Self { selector: selector.to_owned(), secret })
    }
}

impl Key {
    /// Whether the key is for this device, or for this UUID.
    pub fn fits(&self, device: &str, uuid: Option<&str>) -> bool {
        let is_uuid = uuid.is_some_and(|uuid| uuid.eq_ignore_ascii_case(&self.selector));
        self.selector == "all" || self.selector == device || is_uuid
    }
}

/// Whether content of this type is encrypted.
pub(super) fn is_encrypted(content: &Content) -> bool {
    content.kind.as_ref().is_some_and(|kind| kind.class() == Class::Encrypted)
}

/// Unlocks what the keys unlock, also what comes to light only then, and takes stock anew. Notes what stays
/// locked.
pub(super) fn unlock(context: &Context<'_>, mut inventory: Inventory) -> Result<Inventory, ProbeError> {
    let mut tried = BTreeSet::new();
    loop {
        let locked: Vec<Content> = inventory
            .contents
            .iter()
            .filter(|content| is_encrypted(content) && tried.insert(content.device.clone()))
            .cloned()
            .collect();
        let mut opened = false;
        for content in locked {
            opened |= open(context, &content)?;
        }
        if !opened {
            return Ok(inventory);
        }
        // Unlocked devices may hold physical volumes.
        context
            .appliance
            .shell("DM_DISABLE_UDEV=1 lvm vgchange -aay --sysinit >/dev/null 2>&1; true")
            .map_err(ProbeError::Inventory)?;
        inventory = context.appliance.inventory().map_err(ProbeError::Inventory)?;
    }
}

fn open(context: &Context<'_>, content: &Content) -> Result<bool, ProbeError> {
    let device = &content.device;
    let keys: Vec<&Key> =
        context.keys.iter().filter(|key| key.fits(device, content.uuid.as_deref())).collect();
    let is_bitlocker = content.kind == Some(FsKind::BitLocker);
    let kind = if is_bitlocker { "bitlk" } else { "luks" };
    let name = match &content.uuid {
        Some(uuid) => format!("{kind}-{uuid}"),
        None => format!("{kind}-{}", device.trim_start_matches("/dev/").replace('/', "-")),
    };
    let mut never = false;
    for key in &keys {
        match context.appliance.unlock(&content.node, &name, &key.secret, is_bitlocker)? {
            Unlocked::Yes => return Ok(true),
            Unlocked::No => {}
            Unlocked::Never => never = true,
        }
        context.still_alive(&format!("{device} was being unlocked"))?;
    }
    let cause = if keys.is_empty() {
        Cause::Locked { reason: LockReason::NoKey }
    } else if never {
        Cause::KeyTooSlow { seconds: UNLOCKING.as_secs() }
    } else {
        Cause::Locked { reason: LockReason::WrongKey }
    };
    context.warn(device, cause);
    Ok(false)
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
        assert_eq!(key.secret, b"open:sesame");
        assert!(!format!("{key:?}").contains("sesame"));
        let error = "all:secret:sesame".parse::<Key>().unwrap_err();
        assert!(!error.to_string().contains("sesame"), "{error}");
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"sesame\n").unwrap();
        let key: Key = format!("/dev/sda1:file:{}", file.path().display()).parse().unwrap();
        assert_eq!(key.secret, b"sesame");
        assert!(matches!("all:file:/nonexistent".parse::<Key>(), Err(KeyError::File { .. })));
    }

    #[test]
    fn keys_are_chosen_by_device_or_uuid() {
        let key: Key = "0B5EBB5C-66D9:key:x".parse().unwrap();
        assert!(key.fits("/dev/sda1", Some("0b5ebb5c-66d9")));
        assert!(!key.fits("/dev/sda1", None));
    }
}
