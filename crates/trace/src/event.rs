//! What a guest asked of one of its disks.

use std::time::Duration;
use virt_bmap_nbd::Command;
use virt_bmap_ranges::{DiskNumber, DiskRange};

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// It reads.
    Read,
    /// It writes.
    Write,
    /// It writes zeroes, which it does not send.
    Zero,
    /// It says that it needs the bytes no more.
    Trim,
    /// It has what was written before made durable. It is about no range.
    Flush,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Zero, Self::Trim, Self::Flush];

    /// The word for it in logs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Zero => "zero",
            Self::Trim => "trim",
            Self::Flush => "flush",
        }
    }

    /// What an NBD command is in a log; `None` if it neither reads nor changes the disk's bytes, as
    /// a question for the allocation.
    pub(super) fn of(command: Command) -> Option<Self> {
        match command {
            Command::Read => Some(Self::Read),
            Command::Write => Some(Self::Write),
            Command::WriteZeroes => Some(Self::Zero),
            Command::Trim => Some(Self::Trim),
            Command::Flush => Some(Self::Flush),
            _ => None,
        }
    }
}

/// A request that has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceEvent {
    /// When it came, since the beginning of the trace.
    pub time: Duration,
    /// How long it took until its answer was ready.
    pub latency: Duration,
    /// Number of the connection that it came over, from 1.
    pub connection: u64,
    /// Number of the disk, from 1.
    pub disk: DiskNumber,
    /// What it does.
    pub op: Op,
    /// Whether it asked to be durable before it is answered (force unit access).
    pub fua: bool,
    /// Whether it has failed.
    pub failed: bool,
    /// The bytes that it is about; empty for a flush.
    pub range: DiskRange,
}
