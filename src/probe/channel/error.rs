//! How the conversation with the agent fails.

use crate::probe::found::FoundError;
use virt_bmap_agent_protocol::frame::FrameError;
use virt_bmap_agent_protocol::{DecodeError, EncodeError, VERSION};
use virt_bmap_ranges::Printable;

/// Why a conversation with the agent, or a walk, came to an end.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// A malformed frame.
    #[error("the agent broke the protocol: malformed frame")]
    Frame(#[from] FrameError),
    /// A malformed record.
    #[error("the agent broke the protocol: malformed record")]
    Record(#[from] DecodeError),
    /// The task does not fit into a message.
    #[error("the task for the agent is too large")]
    Task(#[from] EncodeError),
    /// An agent of another version.
    #[error("the agent speaks version {0} of the protocol instead of {VERSION}")]
    Version(u16),
    /// The agent ended before it had reported the end of its task.
    #[error("the agent ended before its task was done")]
    Unfinished,
    /// A record that the protocol does not allow at this point.
    #[error("the agent broke the protocol: {0}")]
    Protocol(&'static str),
    /// An object that no map can hold.
    #[error("the agent reported an invalid object")]
    Object(#[from] FoundError),
    /// Too many extent mismatches: no extents of this filesystem are accepted any more.
    #[error("files do not lie where the appliance's kernel says")]
    ExtentMismatch,
    /// The tables of inodes, as the agent reads them, and the kernel contradict each other about
    /// this file: what was taken from the tables cannot be relied on.
    #[error("the tables of inodes say something else of {} than the appliance's kernel", Printable(.0))]
    Contradiction(Vec<u8>),
    /// Part of the filesystem cannot be examined, or is in two places. What the map says of it may
    /// depend on the order of the walk, so unchanged objects cannot be reused.
    #[error("the filesystem is damaged, so nothing of it is reused from the earlier map")]
    Damaged,
}
