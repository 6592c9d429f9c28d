//! What the host tells the agent.

use crate::{InodeSet, Listings, Sample};
use serde::{Deserialize, Serialize};

/// How the host tells one file's reads from another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadOrder {
    /// Each file is read under a tag of its own.
    Tags,
    /// Files whose place the kernel promises are read in series: the host knows how far each goes, so one message
    /// does for all. A message takes as long as a read. For filesystems whose device has a known place on the disks.
    Series,
    /// As in a series, but of each file only both ends of its extents, or of a sample of them: the rest is taken on
    /// the kernel's word when these lie where it said.
    Ends(Sample),
}

/// What the agent is to do. It reads the task at [`TASK_OFFSET`](crate::TASK_OFFSET).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Read each directory and file of a mounted filesystem.
    Walk(WalkPlan),
    /// Read parts of devices.
    ReadDevices(DeviceReads),
}

/// How to walk a filesystem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalkPlan {
    /// Number of the next frame.
    pub sequence: u32,
    /// Number of the first object.
    pub first: u32,
    /// Directory on which the filesystem is mounted.
    pub root: String,
    /// How files are read.
    pub order: ReadOrder,
    /// Whether symbolic links and extended attributes are read, too, and the filesystem is asked what its blocks are
    /// for.
    pub metadata: bool,
    /// Whether the agent asks, for each batch of files, which of them to read.
    pub asks: bool,
    /// Files with these inodes are not looked at: the agent sends only their names.
    pub known: InodeSet,
    /// Directories that need not be listed, and what in them is to be looked at.
    pub listings: Listings,
    /// Parts of the device, by start and length in bytes, that are best read at once, before all else: those with
    /// inodes.
    pub lookahead: Vec<(u64, u64)>,
}

/// Parts of devices to read, each under its own tag.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReads {
    /// Number of the next frame.
    pub sequence: u32,
    /// The reads, in order.
    pub reads: Vec<DeviceRead>,
}

/// One read of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRead {
    /// What it is read under.
    pub tag: u32,
    /// Path of the device in the appliance.
    pub device: String,
    /// Where to begin, in bytes.
    pub offset: u64,
    /// How many bytes; rounded up to whole sectors.
    pub length: u64,
}

/// The host's answer to [`SelectFiles`](crate::Record::SelectFiles) or [`BatchEnd`](crate::Record::BatchEnd). The agent
/// reads it at [`REPLY_OFFSET`](crate::REPLY_OFFSET).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Numbers of the files to read, or to read once more: at most
    /// [`FILES_PER_BATCH`](crate::bounds::FILES_PER_BATCH).
    pub files: Vec<u32>,
}
