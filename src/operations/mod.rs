//! The operations of a guest on its files, derived from its writes.
//!
//! A write is only bytes at an offset. Its *meaning* depends on the filesystem and on later writes:
//! data is written before the inode that points to it, and everything may go to a journal first. So
//! single writes are not interpreted. Instead, all writes are [kept](virt_bmap_history) in their
//! order, and each state of the disks that counts can be served again: what a crash would leave
//! after each flush. An appliance maps one state after the other, while the guest runs on. The
//! differences between two maps (inode, name, size, times, owner) and the ranges written between
//! them give the operations. This works for every filesystem that can be mapped. A journal is
//! replayed in the private layer of that appliance, never on the guest's disk.
//!
//! ```text
//! guest ─► disk ─► history ─► states ─► mapper ─► map of each state ─┐
//!                               │             map of the one before ─┼─► compare ─► output
//!                               └─ written ranges ───────────────────┘
//! ```
//!
//! The states may also be those of a [recorded history](virt_bmap_history::Recorded), or a series
//! of backups or snapshots of one disk.
//!
//! * [`Finder`] has one of the [`States`] after the other mapped, and writes what happened between;
//! * [`Watcher`] does so for a guest that runs, on a thread of its own;
//! * [`series`] has the states that are given as images;
//! * [`compare`](fn@compare) derives operations from two maps and the written ranges;
//! * [`Replayed`] is data that was in a journal: it is compared with the state before;
//! * [`OperationsFormat`] is the output format.

#[cfg(test)]
mod captured;
mod compare;
mod finder;
mod held;
mod journaled;
mod latest;
mod missing;
mod output;
pub mod series;
mod span;
mod states;
mod watcher;

pub use compare::{Written, compare};
pub use finder::{Ended, Finder, Look, LookError, MapState, Maps, StateToMap};
pub use journaled::Replayed;
pub use latest::Latest;
pub use missing::Missing;
pub use output::OperationsFormat;
pub use span::Span;
pub use states::States;
pub use watcher::{Watcher, WatcherOptions};

use virt_bmap_map::{Attributes, ObjectName};
use virt_bmap_ranges::FileOffset;

/// An operation on a file, directory or symbolic link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// A directory was removed.
    Rmdir,
    /// A file was removed.
    Delete,
    /// A name was removed; the file has others.
    Unlink,
    /// The name changed.
    Rename,
    /// A directory was created.
    Mkdir,
    /// A file or symbolic link was created.
    Create,
    /// An existing file got another name.
    Link,
    /// A file became shorter, or longer without data being written.
    Truncate,
    /// Existing bytes were written.
    Write,
    /// A file became longer.
    Append,
    /// The data moved without being modified, for example by defragmentation.
    Move,
    /// The modification time changed without any write to the data.
    Touch,
    /// The permissions changed.
    Chmod,
    /// A symbolic link was created.
    Symlink,
    /// Two files have each other's names.
    Exchange,
    /// A part of a file became a hole.
    Punch,
    /// It belongs to another user or group.
    Chown,
    /// The inode changed, and nothing else is known to: extended attributes are set in this way.
    Setxattr,
}

impl Action {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Rmdir => "rmdir",
            Self::Delete => "delete",
            Self::Unlink => "unlink",
            Self::Rename => "rename",
            Self::Mkdir => "mkdir",
            Self::Create => "create",
            Self::Link => "link",
            Self::Truncate => "truncate",
            Self::Write => "write",
            Self::Append => "append",
            Self::Move => "move",
            Self::Touch => "touch",
            Self::Chmod => "chmod",
            Self::Symlink => "symlink",
            Self::Exchange => "exchange",
            Self::Punch => "punch",
            Self::Chown => "chown",
            Self::Setxattr => "setxattr",
        }
    }
}

/// A part of a file that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenPart {
    /// Where in the file it begins, if that is known.
    pub offset: Option<FileOffset>,
    /// Its length in bytes.
    pub length: u64,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<'a> {
    /// Its kind.
    pub action: Action,
    /// The name of the object afterwards; its former name if it was removed.
    pub name: ObjectName<'a>,
    /// For a rename the former name; for a link another name of the file; for an exchange the name
    /// of the other one.
    pub from: Option<ObjectName<'a>>,
    /// Its attributes before, if it existed.
    pub before: Option<Attributes>,
    /// Its attributes afterwards, if it exists.
    pub after: Option<Attributes>,
    /// What it wrote to its blocks, ascending by their place on the disks.
    pub written: Vec<WrittenPart>,
    /// Whether it happened before the earlier of the two states that were compared.
    pub is_earlier: bool,
}

impl Operation<'_> {
    /// How many bytes it wrote to its blocks.
    pub fn written_bytes(&self) -> u64 {
        self.written.iter().map(|part| part.length).sum()
    }
}
