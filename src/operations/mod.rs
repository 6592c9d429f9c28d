//! What a guest does to its files: its writes, as operations with names.
//!
//! A write is a row of bytes at an offset. What it *means* depends on the file system, and on writes that come
//! later: data precedes the inode that will point to it, and all of it may go to a journal first. So nothing is
//! made of single writes here. The disks are [frozen](virt_bmap_image::freeze) now and then, and mapped by an
//! appliance while the guest runs on; what differs between two maps, by inode, name, size and time, and where
//! the guest has written between them, is what it has done. That works for every file system that can be
//! mapped. A journal is replayed in the private layer of that appliance, never on the guest's disk.
//!
//! ```text
//! guest ─► disk ─► Freezable ──── freeze ───► Frozen ─► mapper ─► map ─┐
//!                      └─ what was written ────────────────────────────┼─► compare ─► output
//!                                                     the map before ──┘
//! ```
//!
//! * [`Watcher`] decides when, and has the disks mapped;
//! * [`compare`](fn@compare) makes operations of two maps and of what was written;
//! * [`Form`] is how they are written down.

mod compare;
mod output;
mod watcher;

pub use compare::{Written, compare};
pub use output::{Form, Span};
pub use watcher::{Ended, MapDisks, MapDisksError, MappedDisks, Watcher, WatcherOptions};

use virt_bmap_map::{Attributes, ObjectName};

/// What was done to a file, directory or symbolic link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// A directory is gone.
    Rmdir,
    /// A file is gone.
    Delete,
    /// A name is gone; its file has others.
    Unlink,
    /// It has another name.
    Rename,
    /// A directory is new.
    Mkdir,
    /// A file or symbolic link is new.
    Create,
    /// A file that was there has a further name.
    Link,
    /// It is shorter; or longer, and nothing was written there.
    Truncate,
    /// Bytes that it had were written.
    Write,
    /// It is longer.
    Append,
    /// Its data lies elsewhere, and is not modified: it was defragmented, for instance.
    Move,
    /// Its time of modification differs, and nothing was seen to be written to it.
    Touch,
    /// It has other permissions.
    Chmod,
}

impl What {
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
    /// What was done.
    pub what: What,
    /// To what: the name that it has afterwards; of what is gone, the name that it had.
    pub name: ObjectName<'a>,
    /// Of a rename, the name before; of a link, a name that the file has besides.
    pub from: Option<ObjectName<'a>>,
    /// What was known of it before, if it was there.
    pub before: Option<Attributes>,
    /// What is known of it afterwards, if it is there.
    pub after: Option<Attributes>,
    /// How many bytes of its blocks were written by this; 0 where that is not known.
    pub written: u64,
}
