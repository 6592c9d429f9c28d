//! The messages between virt-bmap-rs and its probe agent, in both directions.
//!
//! The agent runs inside the libguestfs appliance. It reaches the host program through a small
//! disk, the *control disk*. Its reads and writes arrive at the host as NBD requests:
//!
//! | bytes of the control disk | direction | content |
//! |---------------------------|-----------|---------|
//! | 0                         | agent to host | the agent writes [frames](frame); their payloads form a stream of [records](Record) |
//! | [`REPLY_OFFSET`]          | host to agent | the [`Reply`] to the last batch of files |
//! | [`TASK_OFFSET`]           | host to agent | the [`Task`]: a walk of a filesystem, reads of devices, unlocking one, or items of a btrfs |
//!
//! A write completes only when the host has processed the frame. If the frame sets a tag, all reads
//! of the guest's disks that follow the write belong to that tag; no clocks are compared.
//!
//! All messages have one [codec]: serde and postcard, with a length in front. [`bounds`] has the
//! limits of each message, and [`codec::decode`] refuses messages that exceed them. Neither side
//! trusts the other: the appliance has mounted the filesystems of a guest that may be hostile.
//!
//! The [device inventory](inventory) is text, because it is the output of a command. [`FsKind`] is
//! the table of the properties of each filesystem.

pub mod bounds;
pub mod codec;
mod filesystem;
pub mod frame;
mod inodes;
pub mod inventory;
mod listings;
pub mod record;
mod sample;
mod task;
mod unlock;

pub use codec::{DecodeError, EncodeError};
pub use filesystem::{Class, DirectoryBlocks, Driver, FsFacts, FsKind};
pub use inodes::InodeSet;
pub use listings::{Entry, Listing, Listings};
pub use record::Ended;
pub use record::Record;
pub use sample::{End, Sample};
pub use task::{
    DeviceRead, DeviceReads, End as EndTask, Leave, Mount, ReadOrder, Reply, Task, TreeItems, WalkPlan,
};
pub use unlock::{Encryption, Opener, Secret, Unlock, Unlocked, wipe};

/// Version of all messages. The agent is part of the host program, so both ends come from one
/// build; a mistake in packaging is reported as another version.
pub const VERSION: u16 = 12;

/// Size of the control disk in bytes.
pub const CONTROL_SIZE: u64 = 64 << 20;

/// Where on the control disk the agent reads the host's [`Reply`].
pub const REPLY_OFFSET: u64 = 512 << 10;

/// Size of the area of a [`Reply`] in bytes: one read that no layer splits.
pub const REPLY_SIZE: usize = 8192;

/// Where on the control disk the agent reads its [`Task`]. The area ends one mebibyte before the
/// end of the disk: the appliance's kernel looks for partition tables and superblocks at both ends.
pub const TASK_OFFSET: u64 = 1 << 20;
