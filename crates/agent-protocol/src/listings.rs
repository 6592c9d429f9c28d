//! Directories of which the host knows what is in them: what it tells stands in for listing them.

use crate::bounds::{self, LISTINGS_BYTES};
use crate::codec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Such directories, by their inodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Listings {
    pub(crate) directories: BTreeMap<u64, Listing>,
}

/// What there is to do for such a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// How many objects in it and below it the host takes for found when it hears of the directory. They have the numbers
    /// after the directory's.
    pub objects: u32,
    /// What in it has to be looked at.
    pub entries: Vec<Entry>,
}

/// A file or directory in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Number of its inode.
    pub inode: u64,
    /// Whether it is a directory; else it is a regular file.
    pub is_directory: bool,
    /// The name.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
}

impl Listings {
    /// Takes out the one of a directory: no directory is in two places.
    pub fn take(&mut self, inode: u64) -> Option<Listing> {
        self.directories.remove(&inode)
    }

    /// Whether they can be sent: a walk plan has room for them, and the agent would accept the names.
    pub fn fit(&self) -> bool {
        codec::encoded_length(self) <= LISTINGS_BYTES && bounds::check_listings(self).is_ok()
    }
}

impl FromIterator<(u64, Listing)> for Listings {
    fn from_iter<I: IntoIterator<Item = (u64, Listing)>>(listings: I) -> Self {
        Self { directories: listings.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_taken_once() {
        let entry = |inode, is_directory, name: &[u8]| Entry { inode, is_directory, name: name.to_vec() };
        let entries = vec![entry(14, false, b"a\n\xff"), entry(1 << 40, true, b"b")];
        let listings = [(12, Listing { objects: 7, entries }), (13, Listing::default())];
        let mut listings = Listings::from_iter(listings);
        assert!(listings.fit());
        assert_eq!((listings.take(13), listings.take(14)), (Some(Listing::default()), None));
        assert_eq!(listings.take(12).unwrap().entries[1].name, b"b");
        assert_eq!(listings.take(12), None);
    }

    #[test]
    fn there_is_room_for_so_much_and_no_more() {
        let entry = Entry { inode: 1, is_directory: false, name: vec![b'a'; 1024] };
        let listings = |count| {
            let listing = Listing { objects: 0, entries: vec![entry.clone(); count] };
            Listings::from_iter([(2, listing)])
        };
        assert!(listings(16_000).fit() && !listings(17_000).fit());
        let entries = vec![Entry { name: b"..".to_vec(), ..entry }];
        assert!(!Listings::from_iter([(2, Listing { objects: 0, entries })]).fit());
    }
}
