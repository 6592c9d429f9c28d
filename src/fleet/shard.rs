//! A shard: the part of a fleet's guests that one of several machines maps.

use super::GuestId;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;

/// Shard number `index` of `of`. The shard of a guest depends only on its ID, so it is the same on
/// every machine and in every run, and adding a guest moves no other guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shard {
    /// From 1.
    index: u32,
    /// At least `index`.
    of: u32,
}

/// A text that is not a shard.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a shard: expected I/N with I from 1 to N, for example 2/8")]
pub struct BadShard {
    /// The text.
    pub text: String,
}

impl Shard {
    /// All guests.
    pub const WHOLE: Self = Self { index: 1, of: 1 };

    /// The number of the shard, from 1.
    pub fn index(self) -> u32 {
        self.index
    }

    /// The number of shards.
    pub fn of(self) -> u32 {
        self.of
    }

    /// Whether the guest is in this shard.
    pub fn has(self, id: &GuestId) -> bool {
        let digest = Sha256::digest(id.as_str());
        let number = digest[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        number % u64::from(self.of) == u64::from(self.index - 1)
    }
}

impl FromStr for Shard {
    type Err = BadShard;

    fn from_str(text: &str) -> Result<Self, BadShard> {
        let numbers =
            text.split_once('/').and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((index, of)) if 1 <= index && index <= of => Ok(Self { index, of }),
            _ => Err(BadShard { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_guest_is_in_one_shard() {
        for number in 0..500 {
            let id = GuestId::of_name(format!("guest{number}").as_bytes());
            assert!(Shard::WHOLE.has(&id));
            let shards = (1..=7).filter(|index| Shard { index: *index, of: 7 }.has(&id));
            assert_eq!(shards.count(), 1);
        }
    }

    #[test]
    fn shards_are_frozen() {
        let all = ["web1", "web2", "db", "mail"].map(|name| GuestId::of_name(name.as_bytes()));
        let shard = "1/2".parse::<Shard>().unwrap();
        assert_eq!(all.each_ref().map(|id| shard.has(id)), [true, false, true, false]);
    }

    #[test]
    fn invalid_shards_are_refused() {
        for text in ["", "1", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
        assert_eq!("2/8".parse::<Shard>().unwrap().to_string(), "2/8");
    }
}
