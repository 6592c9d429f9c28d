#![doc = include_str!("../README.md")]
//!
//! # Inside
//!
//! ```text
//! guest ─► Disk ─► log or unnamed file (data, once)
//!            │
//!            ├─► the guest's view: which bytes of the disk lie where
//!            └─► Queue: records of the present state, and of states that wait
//!                            │ next()
//!                            ▼
//!                  the view of the state that is taken ─► State ─► its disks
//! ```
//!
//! * `format` has the numbers of the log, `store` writes its files, [`LogReader`] reads them;
//! * `pieces` is the map from ranges of a disk to places in the files;
//! * `queue` decides when a state ends, and joins states;
//! * `history` takes turns and keeps the limits; `disk` is the guest's end of it;
//! * `originals` keeps what an image loses that the guest writes through to;
//! * [`Recorded`] gives the states of a log.
//!
//! # Concurrency
//!
//! Writers take turns, over all disks: the order in the log is that in which readers see the
//! writes, and a state is the disks at one moment. A write is visible when it is in the file.
//! Readers hold a lock only while they look up places. Then they read the file; if space was freed
//! meanwhile, they look again.
//!
//! A state's disks have a map of places of their own, which never changes. A place that they may
//! need is not given back before the last of them is dropped.
//!
//! Where writes go through to an image, they take turns as well.
//!
//! A flush ends a state with all writes before it in the log: those that were answered before, and
//! perhaps some that were made while the image was flushed.
//!
//! # Limits
//!
//! [`HistoryOptions::limit`] bounds the data of what the guest sees, of the states that wait and of
//! the state that was taken last. If more would be kept, what no state needs is given up first.
//! Then each two neighbouring states become one ([`State::together`]), until there is room. In the
//! end the guest's present bytes alone are left; if these exceed the limit, a write fails with
//! `ENOSPC`. For a short time an eighth more than the limit may be kept. A state in use keeps all
//! of its data, beside the limit, and up to 64 MiB of space are kept for the next writes.
//!
//! A guest that writes through to its disks never fails for a lack of room. Instead, the history
//! begins anew with the present bytes of the disks: all that waits is one state, and states that
//! were taken before fail to be read from then on.
//!
//! A recorded log has at most as many bytes as the limit says. When it has no room, it is
//! [cut short](History::is_cut_short): the history goes on, in an unnamed file with a limit of its
//! own, and only the log ends.
//!
//! Trimmed bytes are zeroes in a state. An image that ignores trims may still have them.
//!
//! The guest's bytes may be in a million pieces, and a million records and 2048 states may wait;
//! beyond that, states become one as well. That takes some 300 MiB of memory at most.

mod beginning;
mod disk;
mod format;
mod history;
mod log;
mod originals;
mod pieces;
mod queue;
mod recorded;
mod state;
mod store;

pub use disk::Disk;
pub use format::Kind;
pub use history::{Bases, History, HistoryOptions, Recording};
pub use log::{LogEnd, LogError, LogReader, LogRecord, LoggedDisk};
pub use recorded::{Recorded, RecordedBase};
pub use state::State;
