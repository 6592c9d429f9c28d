//! The requests of a guest, as events.

use std::time::Duration;
use virt_bmap_nbd::Command;
use virt_bmap_ranges::{DiskNumber, DiskRange};

/// The operation of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// It reads.
    Read,
    /// It writes.
    Write,
    /// It writes zeroes without sending them.
    Zero,
    /// It discards the bytes.
    Trim,
    /// It makes earlier writes durable. It has no range.
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

    /// The operation of an NBD command; `None` if it neither reads nor changes bytes, such as block
    /// status.
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

/// A request that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceEvent {
    /// When it arrived, since the beginning of the trace.
    pub time: Duration,
    /// How long it took until its answer was ready.
    pub latency: Duration,
    /// Number of its connection, from 1.
    pub connection: u64,
    /// Number of the disk, from 1.
    pub disk: DiskNumber,
    /// Its operation.
    pub op: Op,
    /// Whether it had to be durable before the answer (force unit access).
    pub fua: bool,
    /// Whether it failed.
    pub failed: bool,
    /// Its range; empty for a flush.
    pub range: DiskRange,
}
