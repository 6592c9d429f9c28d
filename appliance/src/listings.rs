//! Directories of which the host knows what is in them: what it tells stands in for listing them.

use crate::record::Body;
use std::collections::HashMap;

/// Such directories, by their inodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listings(HashMap<u64, Listing>);

/// What there is to do for such a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// How many objects in it and below it the host takes for found when it hears of the directory. They have the numbers
    /// after the directory's.
    pub objects: u32,
    /// What in it has to be looked at.
    pub entries: Vec<Entry>,
}

/// A file or directory in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number of its inode.
    pub inode: u64,
    /// Whether it is a directory; else it is a regular file.
    pub is_directory: bool,
    /// The name.
    pub name: Vec<u8>,
}

impl Listings {
    /// Most bytes that the agent is given.
    pub const MOST_BYTES: usize = 16 << 20;

    /// Takes out the one of a directory: no directory is in two places.
    pub fn take(&mut self, inode: u64) -> Option<Listing> {
        self.0.remove(&inode)
    }

    /// The bytes that the agent reads.
    pub fn encode(&self) -> Vec<u8> {
        let mut directories: Vec<(&u64, &Listing)> = self.0.iter().collect();
        directories.sort_unstable_by_key(|(inode, _)| **inode);
        let mut bytes = Vec::new();
        for (inode, Listing { objects, entries }) in directories {
            bytes.extend(inode.to_le_bytes());
            bytes.extend(objects.to_le_bytes());
            bytes.extend((entries.len() as u32).to_le_bytes());
            for Entry { inode, is_directory, name } in entries {
                bytes.extend(inode.to_le_bytes());
                bytes.push(u8::from(*is_directory));
                bytes.extend((name.len() as u32).to_le_bytes());
                bytes.extend(name);
            }
        }
        bytes
    }

    /// Reads them back; `None` if they make no sense.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut body = Body(bytes);
        let mut directories = HashMap::new();
        while !body.0.is_empty() {
            let (inode, objects, count) = (body.u64()?, body.u32()?, body.u32()?);
            let entries = (0..count).map(|_| {
                let (inode, is_directory, length) = (body.u64()?, body.bool()?, body.u32()?);
                let (name, rest) = body.0.split_at_checked(length as usize)?;
                body.0 = rest;
                Some(Entry { inode, is_directory, name: name.to_vec() })
            });
            let entries = entries.collect::<Option<_>>()?;
            directories.insert(inode, Listing { objects, entries });
        }
        Some(Self(directories))
    }
}

impl FromIterator<(u64, Listing)> for Listings {
    fn from_iter<I: IntoIterator<Item = (u64, Listing)>>(listings: I) -> Self {
        Self(listings.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_survive_the_journey() {
        let entry = |inode, is_directory, name: &[u8]| Entry { inode, is_directory, name: name.to_vec() };
        let entries = vec![entry(14, false, b"a\n\xff"), entry(1 << 40, true, b"b")];
        let listings = [(12, Listing { objects: 7, entries }), (13, Listing::default())];
        let mut listings = Listings::from_iter(listings);
        let bytes = listings.encode();
        assert_eq!(Listings::decode(&bytes), Some(listings.clone()));
        assert_eq!(Listings::decode(&[]), Some(Listings::default()));
        for length in 1..bytes.len() {
            let is_whole = length == bytes.len() - 16;
            assert_eq!(Listings::decode(&bytes[..length]).is_some(), is_whole, "{length}");
        }
        assert_eq!((listings.take(13), listings.take(14)), (Some(Listing::default()), None));
        assert_eq!(listings.take(12).unwrap().entries[1].name, b"b");
        assert_eq!(listings.take(12), None);
    }
}
