//! The messages between virt-bmap-rs and its probe agent, in both directions.
//!
//! The agent runs inside the libguestfs appliance. It reaches the host program through a small disk, the *control
//! disk*, whose reads and writes arrive at the host as NBD requests:
//!
//! | bytes of the control disk | direction | content |
//! |---------------------------|-----------|---------|
//! | 0                         | agent to host | the agent writes [frames](frame); their payloads form a stream of [records](Record) |
//! | [`REPLY_OFFSET`]          | host to agent | the [`Reply`] to the last batch of files |
//! | [`TASK_OFFSET`]           | host to agent | the [`Task`]: a walk of a file system, or reads of devices |
//!
//! A write of a frame completes only when the host has taken the frame in. The host therefore attributes what the agent
//! reads of the guest's disks after the write to what the frame said, without clocks.
//!
//! One [codec] serves all messages: serde and postcard, with a length in front. [`bounds`] holds the limits of each
//! message, and [`codec::decode`] refuses what exceeds them: neither side trusts the other. The appliance has mounted
//! the file systems of a guest that may be hostile.
//!
//! The [device inventory](inventory) is text, because it travels as the output of a command. [`FsKind`] is the table of
//! what both sides know of each filesystem.

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

pub use codec::{DecodeError, EncodeError};
pub use filesystem::{Class, Driver, FsFacts, FsKind};
pub use inodes::InodeSet;
pub use listings::{Entry, Listing, Listings};
pub use record::Record;
pub use sample::{End, Sample};
pub use task::{DeviceRead, DeviceReads, ReadOrder, Reply, Task, WalkPlan};

/// Version of all messages. The agent travels inside the host program, so both ends are of one build; the number
/// turns a mistake into a message.
pub const VERSION: u16 = 8;

/// Size of the control disk in bytes.
pub const CONTROL_SIZE: u64 = 64 << 20;

/// Where on the control disk the agent reads the host's [`Reply`].
pub const REPLY_OFFSET: u64 = 512 << 10;

/// Bytes of the area of a [`Reply`]: one read that no layer splits.
pub const REPLY_SIZE: usize = 8192;

/// Where on the control disk the agent reads its [`Task`]. The area reaches up to one megabyte before the end: the
/// appliance's kernel looks for partition tables and superblocks at both ends of a disk.
pub const TASK_OFFSET: u64 = 1 << 20;
