//! The operations of a guest on its files, derived from its writes.
//!
//! A write is only bytes at an offset. Its *meaning* depends on the filesystem and on later writes:
//! data is written before the inode that points to it, and everything may go to a journal first. So
//! single writes are not interpreted. Instead, the disks are [frozen](virt_bmap_image::freeze) from
//! time to time, and an appliance maps them while the guest runs on. The differences between two
//! maps (inode, name, size, time) and the ranges written between them give the operations. This
//! works for every filesystem that can be mapped. A journal is replayed in the private layer of
//! that appliance, never on the guest's disk.
//!
//! ```text
//! guest ─► disk ─► Freezable ──── freeze ───► Frozen ─► mapper ─► map ─┐
//!                      └─ written ranges ──────────────────────────────┼─► compare ─► output
//!                                                       previous map ──┘
//! ```
//!
//! * [`Watcher`] decides when to look, and starts the mapping;
//! * [`compare`](fn@compare) derives operations from two maps and the written ranges;
//! * [`OperationsFormat`] is the output format.

mod compare;
mod output;
mod watcher;

pub use compare::{Written, compare};
pub use output::{OperationsFormat, Span};
pub use watcher::{Ended, MapDisks, MapDisksError, MappedDisks, Watcher, WatcherOptions};

use virt_bmap_map::{Attributes, ObjectName};

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
        }
    }
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation<'a> {
    /// Its kind.
    pub action: Action,
    /// The name of the object afterwards; its former name if it was removed.
    pub name: ObjectName<'a>,
    /// For a rename the former name; for a link another name of the file.
    pub from: Option<ObjectName<'a>>,
    /// Its attributes before, if it existed.
    pub before: Option<Attributes>,
    /// Its attributes afterwards, if it exists.
    pub after: Option<Attributes>,
    /// Number of bytes of its blocks that the operation wrote; 0 if unknown.
    pub written: u64,
}
