//! Messages from the host to the agent.

use crate::{InodeSet, Listings, Sample, Unlock};
use serde::{Deserialize, Serialize};

/// How files are read, and how the host attributes the reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadOrder {
    /// Each file is read under a tag of its own.
    Tags,
    /// Files with plain extents are read in series: the host knows the expected blocks of each, so
    /// one message announces all of them. A message takes as long as a read. This needs a device
    /// whose layout is known.
    Series,
    /// As in a series, but only the two ends of each extent are read, and only of the files of a
    /// sample. If they lie where the extents say, the host accepts the extents; of files that are
    /// not in the sample, it accepts them at once.
    Ends(Sample),
}

/// The work of the agent, which reads it at [`TASK_OFFSET`](crate::TASK_OFFSET).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Read each directory and file of a mounted filesystem.
    Walk(WalkPlan),
    /// Read parts of devices.
    ReadDevices(DeviceReads),
    /// Open an encrypted device.
    Unlock(Unlock),
    /// Send the items of the trees of a mounted btrfs.
    Items(TreeItems),
    /// Mount a device. The next three tasks are for an agent that stays: it ends each task with
    /// [`Record::Ended`](crate::Record::Ended), and waits for the next one.
    Mount(Mount),
    /// Unmount what is mounted, and drop what the kernel remembers of the disks.
    Leave(Leave),
    /// End.
    End(End),
}

impl Task {
    /// Number of the next frame.
    pub fn sequence(&self) -> u32 {
        match self {
            Self::Walk(task) => task.sequence,
            Self::ReadDevices(task) => task.sequence,
            Self::Unlock(task) => task.sequence,
            Self::Items(task) => task.sequence,
            Self::Mount(task) => task.sequence,
            Self::Leave(task) => task.sequence,
            Self::End(task) => task.sequence,
        }
    }
}

/// What to mount, as `mount -t KIND -o OPTIONS DEVICE ROOT` does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Number of the next frame.
    pub sequence: u32,
    /// Path of the device in the appliance.
    pub device: String,
    /// The filesystem, for which the kernel has a driver.
    pub kind: String,
    /// The options.
    pub options: String,
    /// Where to mount it.
    pub root: String,
}

/// What to unmount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leave {
    /// Number of the next frame.
    pub sequence: u32,
    /// Where it is mounted.
    pub root: String,
}

/// The end of an agent that stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Number of the next frame.
    pub sequence: u32,
}

/// How to walk a filesystem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalkPlan {
    /// Number of the next frame.
    pub sequence: u32,
    /// Number of the first object.
    pub first: u32,
    /// Directory in which the filesystem is mounted.
    pub root: String,
    /// How files are read.
    pub order: ReadOrder,
    /// Whether the agent asks for each batch which of its files to read.
    pub asks: bool,
    /// Whether the agent may take files that are not in the sample from the filesystem's tables of
    /// inodes, instead of opening them.
    pub uses_tables: bool,
    /// Unchanged inodes: the agent sends only the names of these files. Of NTFS, unchanged
    /// directories are among them.
    pub known: InodeSet,
    /// Unchanged directories, which the agent does not list.
    pub listings: Listings,
    /// Parts of the device that the agent reads into the cache before it looks files up, such as
    /// inode tables: start and length in bytes.
    pub lookahead: Vec<(u64, u64)>,
}

/// The items to send: those of the chunk tree, and those of all subvolumes. The devices of the
/// filesystem come before them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeItems {
    /// Number of the next frame.
    pub sequence: u32,
    /// Directory in which the filesystem is mounted.
    pub root: String,
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
    /// Tag of the read.
    pub tag: u32,
    /// Path of the device in the appliance.
    pub device: String,
    /// First byte.
    pub offset: u64,
    /// Number of bytes; rounded up to whole sectors.
    pub length: u64,
}

/// The host's answer to [`SelectFiles`](crate::Record::SelectFiles) or
/// [`BatchEnd`](crate::Record::BatchEnd), which the agent reads at
/// [`REPLY_OFFSET`](crate::REPLY_OFFSET).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Numbers of the files to read, or to read once more: distinct, and at most
    /// [`FILES_PER_BATCH`](crate::bounds::FILES_PER_BATCH).
    pub files: Vec<u32>,
}
