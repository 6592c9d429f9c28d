//! Host listings: entries that the host has sent in place of listing a directory.

use super::{Below, Entry, TOO_MANY, Walker};
use crate::Fatal;
use rustix::fs::FileType;
use std::ffi::{CString, NulError};
use virt_bmap_agent_protocol::record::ObjectKind;
use virt_bmap_agent_protocol::{self as protocol, Listing, Record};

impl Entry {
    /// An entry of a host listing.
    fn from_host(entry: protocol::Entry) -> Result<Self, NulError> {
        let protocol::Entry { inode, kind, name } = entry;
        let kind = match kind {
            ObjectKind::Directory => FileType::Directory,
            ObjectKind::File | ObjectKind::Metadata => FileType::RegularFile,
            ObjectKind::Symlink => FileType::Symlink,
        };
        Ok(Self { name: CString::new(name)?, kind, inode })
    }
}

impl Walker {
    /// Reports an unchanged directory. The host adds the unchanged objects in and below it by
    /// itself.
    pub(super) fn known_directory(
        &mut self,
        parent: u32,
        inode: u64,
        name: CString,
        listing: Listing,
        below: &mut Vec<Below>,
    ) -> Result<(), Fatal> {
        let id = self.number()?;
        self.next = self.next.checked_add(listing.objects).ok_or(TOO_MANY)?;
        self.directories.insert((self.device, inode));
        self.control.put(&Record::Known { id, parent, inode, name: name.to_bytes().to_vec() });
        if !listing.entries.is_empty() {
            let entries = listing.entries.into_iter().map(Entry::from_host);
            self.host_listings.insert(id, entries.collect::<Result<_, _>>()?);
            below.push(Below { name, id, inode });
        }
        self.found()
    }
}
