//! The limits of each message. [`decode`](crate::codec::decode) refuses a message that exceeds one.
//!
//! The receiver checks what only it can know: which objects exist, and which record may come when.

use crate::codec::{self, Message};
use crate::record::{Chunk, Object, ReadFailure};
use crate::task::{DeviceReads, Leave, Mount, TreeItems, WalkPlan};
use crate::{InodeSet, Listings, Opener, Record, Reply, Task, Unlock};

/// Longest body of a record in bytes.
pub const RECORD_BYTES: usize = 1 << 20;

/// Most extents, or parts of a device, in one record. The agent splits longer lists.
pub const EXTENTS_PER_RECORD: usize = 1024;

/// Most files of one batch: of a series, of a selection, and of the reply to it.
pub const FILES_PER_BATCH: usize = 1023;

/// Longest name in bytes. Filesystems allow 255 characters of up to four bytes each, and NTFS has
/// names of files and of their streams, which are sent as one.
pub const NAME_BYTES: usize = 2048;

/// Most stripes of a btrfs chunk: btrfs stores their number in 16 bits.
pub const STRIPES: usize = 65535;

/// Longest encoding of a task in bytes. A walk plan stays below it even if all its lists are full.
pub const TASK_BYTES: usize = 60 << 20;

/// Most runs of consecutive inode numbers in a set.
pub const INODE_RUNS: usize = 1 << 20;

/// Longest encoding in bytes of the listings in a walk plan. The host sends none if they are
/// longer.
pub const LISTINGS_BYTES: usize = 16 << 20;

/// Most parts of a device that the agent reads in advance.
pub const LOOKAHEAD_PARTS: usize = 1 << 18;

/// Most bytes of items of a btrfs that are sent: those of half a million files.
pub const ITEM_BYTES: u64 = 256 << 20;

/// Longest text at the end of a task in bytes. The agent cuts it.
pub const TEXT_BYTES: usize = 512 << 10;

/// Most device reads in one task.
pub const DEVICE_READS: usize = 1 << 20;

/// Longest path of a device, or of the root of a walk, in bytes.
pub const PATH_BYTES: usize = 4096;

/// Longest passphrase in bytes: what cryptsetup(8) accepts as a key file.
pub const SECRET_BYTES: usize = 8 << 20;

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
        /// The list, or the unit of a length.
        what: &'static str,
        /// Actual number.
        got: usize,
        /// Largest allowed number.
        most: usize,
    },
    /// Not in the order that the type requires.
    #[error("{what} out of order")]
    Order {
        /// The list.
        what: &'static str,
    },
    /// A list of distinct numbers has one twice.
    #[error("{what}: the same one twice")]
    Repeated {
        /// The list.
        what: &'static str,
    },
    /// A name that would lead out of its directory, or end early.
    #[error("a name that is empty, \".\" or \"..\", or that contains a slash or a zero byte")]
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
    const KINDS: Option<u8> = Some(28);

    fn check(&self) -> Result<(), Limit> {
        match self {
            Self::Object(Object { name: of, .. })
            | Self::Link { name: of, .. }
            | Self::Known { name: of, .. }
            | Self::Contradiction { name: of, .. }
            | Self::ReadFailure(ReadFailure { name: of, .. }) => name(of),
            Self::Extents { extents, .. } => most("extents", extents.len(), EXTENTS_PER_RECORD),
            Self::Space { parts, .. } | Self::Computed { beside: parts, .. } => {
                most("parts of the device", parts.len(), EXTENTS_PER_RECORD)
            }
            Self::Ended(ended) => most("bytes of a text", ended.text().len(), TEXT_BYTES),
            Self::Series { ids } | Self::Listing { ids } | Self::SelectFiles { ids } => check_batch(ids),
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
            | Self::Member(_)
            | Self::Placed { .. }
            | Self::Reparse { .. }
            | Self::Ntfs(_)
            | Self::Items { .. }
            | Self::Unlocked(_) => Ok(()),
        }
    }
}

impl Message for Reply {
    const NAME: &'static str = "reply";
    const MOST_BYTES: usize = crate::REPLY_SIZE - crate::codec::AREA_HEADER;
    const KINDS: Option<u8> = None;

    fn check(&self) -> Result<(), Limit> {
        check_batch(&self.files)
    }
}

impl Message for Task {
    const NAME: &'static str = "task";
    const MOST_BYTES: usize = TASK_BYTES;
    const KINDS: Option<u8> = Some(7);

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
            Self::Items(TreeItems { root, .. }) | Self::Leave(Leave { root, .. }) => {
                most("bytes of a path", root.len(), PATH_BYTES)
            }
            Self::Mount(Mount { device, kind, options, root, .. }) => {
                let longest = [device, kind, options, root].into_iter().map(String::len).max();
                most("bytes of a path", longest.unwrap_or_default(), PATH_BYTES)
            }
            Self::End(_) => Ok(()),
            Self::Unlock(Unlock { device, name, opener, .. }) => {
                most("bytes of a path", device.len().max(name.len()), PATH_BYTES)?;
                let (Opener::Passphrase(secret) | Opener::VolumeKey(secret)) = opener;
                most("bytes of a secret", secret.expose().len(), SECRET_BYTES)
            }
        }
    }
}

/// A batch has each file once. The host computes the expected blocks of every file in the list, so
/// that a file with many extents, named a thousand times, would cost a thousandfold.
fn check_batch(ids: &[u32]) -> Result<(), Limit> {
    const WHAT: &str = "files of a batch";
    most(WHAT, ids.len(), FILES_PER_BATCH)?;
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    let is_distinct = sorted.windows(2).all(|pair| pair[0] != pair[1]);
    if is_distinct { Ok(()) } else { Err(Limit::Repeated { what: WHAT }) }
}

/// Runs are ascending, not empty, and do not touch; lookups rely on that.
fn check_inodes(inodes: &InodeSet) -> Result<(), Limit> {
    most("runs of inodes", inodes.runs.len(), INODE_RUNS)?;
    let is_run = inodes.runs.iter().all(|(first, end)| first < end);
    let is_ascending = inodes.runs.windows(2).all(|pair| pair[0].1 < pair[1].0);
    if is_run && is_ascending { Ok(()) } else { Err(Limit::Order { what: "runs of inodes" }) }
}

/// The agent opens these names, so none may lead out of its directory. The limit on bytes bounds
/// the number of directories and entries as well: each takes at least three.
pub(crate) fn check_listings(listings: &Listings) -> Result<(), Limit> {
    most("bytes of listings", codec::encoded_length(listings), LISTINGS_BYTES)?;
    for entry in listings.directories.values().flat_map(|listing| &listing.entries) {
        name(&entry.name)?;
        let is_odd = matches!(&*entry.name, b"" | b"." | b"..")
            || entry.name.iter().any(|byte| matches!(byte, 0 | b'/'));
        if is_odd {
            return Err(Limit::Name);
        }
    }
    Ok(())
}
