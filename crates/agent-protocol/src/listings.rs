//! Host listings: the entries of unchanged directories. The host sends them, so that the agent need
//! not list these directories.

use crate::bounds;
use crate::record::ObjectKind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The host listings of a filesystem, by the inode number of the directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Listings {
    pub(crate) directories: BTreeMap<u64, Listing>,
}

/// What the agent has to do in an unchanged directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Number of objects in and below the directory that the host takes from the baseline when the
    /// agent reports the directory. They get the numbers after the directory's.
    pub objects: u32,
    /// The entries that the agent has to look at.
    pub entries: Vec<Entry>,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Number of its inode.
    pub inode: u64,
    /// What it is.
    pub kind: ObjectKind,
    /// The name.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
}

impl Listings {
    /// Removes and returns the listing of a directory: no directory is in two places.
    pub fn take(&mut self, inode: u64) -> Option<Listing> {
        self.directories.remove(&inode)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.directories.is_empty()
    }

    /// Whether there is a listing of a directory.
    pub fn contains(&self, inode: u64) -> bool {
        self.directories.contains_key(&inode)
    }

    /// Whether they can be sent: a walk plan has room for them, and the agent accepts the names.
    pub fn fit(&self) -> bool {
        bounds::check_listings(self).is_ok()
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
        let entry = |inode, kind, name: &[u8]| Entry { inode, kind, name: name.to_vec() };
        let entries =
            vec![entry(14, ObjectKind::File, b"a\n\xff"), entry(1 << 40, ObjectKind::Directory, b"b")];
        let listings = [(12, Listing { objects: 7, entries }), (13, Listing::default())];
        let mut listings = Listings::from_iter(listings);
        assert!(listings.fit());
        assert_eq!((listings.take(13), listings.take(14)), (Some(Listing::default()), None));
        assert_eq!(listings.take(12).unwrap().entries[1].name, b"b");
        assert_eq!(listings.take(12), None);
    }

    #[test]
    fn listings_fit_up_to_their_limit_in_bytes() {
        let entry = Entry { inode: 1, kind: ObjectKind::File, name: vec![b'a'; 1024] };
        let listings = |count| {
            let listing = Listing { objects: 0, entries: vec![entry.clone(); count] };
            Listings::from_iter([(2, listing)])
        };
        assert!(listings(16_000).fit() && !listings(17_000).fit());
        let entries = vec![Entry { name: b"..".to_vec(), ..entry }];
        assert!(!Listings::from_iter([(2, Listing { objects: 0, entries })]).fit());
    }
}
