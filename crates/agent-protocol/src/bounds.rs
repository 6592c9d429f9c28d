//! The limits of each message, all in one place. [`decode`](crate::codec::decode) refuses what exceeds one of them.
//!
//! What only the receiver can know (which objects exist, what may come when) the receiver checks.

use crate::codec::Message;
use crate::record::{Chunk, Object, ReadFailure};
use crate::task::{DeviceReads, WalkPlan};
use crate::{InodeSet, Listings, Record, Reply, Task};

/// Longest body of a record in bytes.
pub const RECORD_BYTES: usize = 1 << 20;

/// Most extents, or parts of a device, in one record. The agent splits longer lists.
pub const EXTENTS_PER_RECORD: usize = 1024;

/// Most files of one batch: of a series, of a choice, and of the reply to it.
pub const FILES_PER_BATCH: usize = 1023;

/// Longest name in bytes. Filesystems have 255 characters, of up to four bytes each.
pub const NAME_BYTES: usize = 1024;

/// Most stripes of a chunk of a btrfs: its count has 16 bits.
pub const STRIPES: usize = 65535;

/// Longest encoding of a task in bytes. All of a walk plan's lists together are shorter.
pub const TASK_BYTES: usize = 60 << 20;

/// Most runs of inodes in a set.
pub const INODE_RUNS: usize = 1 << 20;

/// Longest encoding in bytes of the listings in a walk plan. The host leaves them away if they are longer.
pub const LISTINGS_BYTES: usize = 16 << 20;

/// Most entries of all listings in a walk plan: each takes at least three bytes.
pub const LISTING_ENTRIES: usize = LISTINGS_BYTES / 3;

/// Most parts of a device that are read in advance.
pub const LOOKAHEAD_PARTS: usize = 1 << 18;

/// Most reads of devices in one task.
pub const DEVICE_READS: usize = 1 << 20;

/// Longest path of a device, or of the root of a walk, in bytes.
pub const PATH_BYTES: usize = 4096;

/// Most lines of an inventory.
pub const INVENTORY_LINES: usize = 1 << 16;

/// Longest line of an inventory in bytes: room for an array of a thousand members.
pub const INVENTORY_LINE_BYTES: usize = 64 << 10;

/// A limit that was exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Limit {
    /// Too many or too long.
    #[error("{what}: {got}, more than {most}")]
    Most {
        /// What of.
        what: &'static str,
        /// How many there are.
        got: usize,
        /// How many there may be.
        most: usize,
    },
    /// Not in the order that the type asks for.
    #[error("{what} out of order")]
    Order {
        /// What of.
        what: &'static str,
    },
    /// A name that would lead out of its directory, or end early.
    #[error("a name with a slash or a zero byte, or that is empty, \".\" or \"..\"")]
    Name,
}

fn most(what: &'static str, got: usize, most: usize) -> Result<(), Limit> {
    if got <= most { Ok(()) } else { Err(Limit::Most { what, got, most }) }
}

fn name(name: &[u8]) -> Result<(), Limit> {
    most("bytes of a name", name.len(), NAME_BYTES)
}

impl Message for Record {
    const NAME: &'static str = "record";
    const MOST_BYTES: usize = RECORD_BYTES;
    const KINDS: Option<u8> = Some(20);

    fn check(&self) -> Result<(), Limit> {
        match self {
            Self::Object(Object { name: of, .. })
            | Self::Link { name: of, .. }
            | Self::Known { name: of, .. }
            | Self::ReadFailure(ReadFailure { name: of, .. }) => name(of),
            Self::Extents { extents, .. } => most("extents", extents.len(), EXTENTS_PER_RECORD),
            Self::Space { pieces, .. } => most("parts of the device", pieces.len(), EXTENTS_PER_RECORD),
            Self::Series { ids } | Self::Listing { ids } | Self::SelectFiles { ids } => {
                most("files of a batch", ids.len(), FILES_PER_BATCH)
            }
            Self::Chunk(Chunk { stripes, .. }) => most("stripes", stripes.len(), STRIPES),
            Self::Hello { .. }
            | Self::Filesystem(_)
            | Self::Unsure { .. }
            | Self::Tag { .. }
            | Self::BatchEnd
            | Self::Done
            | Self::Packed
            | Self::Shared { .. }
            | Self::Encrypted { .. }
            | Self::Member(_) => Ok(()),
        }
    }
}

impl Message for Reply {
    const NAME: &'static str = "reply";
    const MOST_BYTES: usize = crate::REPLY_SIZE - crate::codec::AREA_HEADER;
    const KINDS: Option<u8> = None;

    fn check(&self) -> Result<(), Limit> {
        most("files of a batch", self.files.len(), FILES_PER_BATCH)
    }
}

impl Message for Task {
    const NAME: &'static str = "task";
    const MOST_BYTES: usize = TASK_BYTES;
    const KINDS: Option<u8> = Some(2);

    fn check(&self) -> Result<(), Limit> {
        match self {
            Self::Walk(WalkPlan { root, known, listings, lookahead, .. }) => {
                most("bytes of a path", root.len(), PATH_BYTES)?;
                check_inodes(known)?;
                check_listings(listings)?;
                most("parts to read in advance", lookahead.len(), LOOKAHEAD_PARTS)
            }
            Self::ReadDevices(DeviceReads { reads, .. }) => {
                most("reads of devices", reads.len(), DEVICE_READS)?;
                reads.iter().try_for_each(|read| most("bytes of a path", read.device.len(), PATH_BYTES))
            }
        }
    }
}

/// The runs of a set are ascending, not empty, and apart from each other; lookups rely on that.
fn check_inodes(inodes: &InodeSet) -> Result<(), Limit> {
    most("runs of inodes", inodes.runs.len(), INODE_RUNS)?;
    let is_run = inodes.runs.iter().all(|(first, end)| first < end);
    let is_ascending = inodes.runs.windows(2).all(|pair| pair[0].1 < pair[1].0);
    if is_run && is_ascending { Ok(()) } else { Err(Limit::Order { what: "runs of inodes" }) }
}

/// The names are opened by the agent: none leads out of its directory.
pub(crate) fn check_listings(listings: &Listings) -> Result<(), Limit> {
    let mut entries = 0;
    for entry in listings.directories.values().flat_map(|listing| &listing.entries) {
        entries += 1;
        name(&entry.name)?;
        let is_odd = matches!(&*entry.name, b"" | b"." | b"..")
            || entry.name.iter().any(|byte| matches!(byte, 0 | b'/'));
        if is_odd {
            return Err(Limit::Name);
        }
    }
    most("entries of listings", entries, LISTING_ENTRIES)
}
