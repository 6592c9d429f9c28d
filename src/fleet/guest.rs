//! A guest of a fleet and its ID.

use crate::mapper::GuestDisk;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt::{self, Write as _};
use std::str::FromStr;

/// Maximum length of an ID in bytes. With the longest suffix it is still a valid file name.
const MAX_ID: usize = 200;

/// A machine whose disks are mapped together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Its name in the fleet and the base name of its files.
    pub id: GuestId,
    /// Its disks in order; at least one.
    pub disks: Vec<GuestDisk>,
}

/// The name of a guest, safe as a file name: 1 to 200 of the characters `A-Z a-z 0-9 . _ + ~ % @ =
/// -`, the first neither a dot nor a hyphen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GuestId(String);

/// A text that is not a valid ID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{id:?} is not a valid guest ID: it must have 1 to {MAX_ID} of the characters A-Z a-z 0-9 . _ + ~ % @ = - \
     and must not begin with . or -"
)]
pub struct BadId {
    /// The text, cut to the maximum length.
    pub id: String,
}

impl GuestId {
    /// Derives an ID from any name. `/` becomes `+`; every other unsafe byte becomes `%` and two
    /// hexadecimal digits; a name that is too long is cut and ends in `~` and a part of its
    /// SHA-256. So different names have different IDs, unless their hashes collide.
    pub fn of_name(name: &[u8]) -> Self {
        let mut id = String::new();
        for (at, &byte) in name.iter().enumerate() {
            let is_plain = byte.is_ascii_alphanumeric() || b"_@=".contains(&byte);
            if is_plain || at > 0 && b".-".contains(&byte) {
                id.push(char::from(byte));
            } else if byte == b'/' && at > 0 {
                id.push('+');
            } else {
                let _ = write!(id, "%{byte:02X}");
            }
        }
        if id.is_empty() {
            id.push('%');
        }
        if id.len() > MAX_ID {
            id.truncate(MAX_ID - HASH - 1);
            return Self(id).with_hash_of(name);
        }
        Self(id)
    }

    /// This ID with a part of the SHA-256 of `name` appended, to make it unique.
    pub(super) fn with_hash_of(mut self, name: &[u8]) -> Self {
        self.0.truncate(MAX_ID - HASH - 1);
        self.0.push('~');
        for byte in &Sha256::digest(name)[..HASH / 2] {
            let _ = write!(self.0, "{byte:02x}");
        }
        self
    }

    /// The ID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Number of hexadecimal digits of a hash in an ID.
const HASH: usize = 16;

impl TryFrom<String> for GuestId {
    type Error = BadId;

    fn try_from(id: String) -> Result<Self, BadId> {
        let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"._+~%@=-".contains(&byte);
        let is_good =
            !id.is_empty() && id.len() <= MAX_ID && !id.starts_with(['.', '-']) && id.bytes().all(is_safe);
        if is_good { Ok(Self(id)) } else { Err(BadId { id: id.chars().take(MAX_ID).collect() }) }
    }
}

impl FromStr for GuestId {
    type Err = BadId;

    fn from_str(id: &str) -> Result<Self, BadId> {
        id.to_owned().try_into()
    }
}

impl From<GuestId> for String {
    fn from(id: GuestId) -> Self {
        id.0
    }
}

impl fmt::Display for GuestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_become_ids() {
        for (name, id) in [
            (&b"web1"[..], "web1"),
            (b"rack1/web1", "rack1+web1"),
            (b"../../etc/passwd", "%2E.+..+etc+passwd"),
            (b"/etc", "%2Fetc"),
            (b"-rf", "%2Drf"),
            (b"a b\n\xff+%~", "a%20b%0A%FF%2B%25%7E"),
            (b"", "%"),
        ] {
            assert_eq!(GuestId::of_name(name).as_str(), id);
        }
    }

    #[test]
    fn unsafe_names_are_not_ids() {
        for id in ["", ".", "..", ".hidden", "-o", "a/b", "a b", "a\n", "é", &"x".repeat(201)] {
            assert!(id.parse::<GuestId>().is_err(), "{id:?}");
        }
    }

    proptest! {
        #[test]
        fn every_name_has_an_id_of_its_own(
            one in prop::collection::vec(any::<u8>(), 0..300),
            other in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let (a, b) = (GuestId::of_name(&one), GuestId::of_name(&other));
            let read = a.as_str().parse::<GuestId>();
            prop_assert_eq!(read.as_ref(), Ok(&a));
            prop_assert_eq!(a == b, one == other);
            let hashed = a.with_hash_of(&one);
            prop_assert!(hashed.as_str().parse::<GuestId>().is_ok());
        }
    }
}
