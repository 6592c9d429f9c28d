//! Watches a guest: which files it reads and writes.
//!
//! The guest's disks are served over NBD, and each request is looked up in the guest's block map:
//!
//! ```text
//! guest ─► nbd ─► disk ─► image or copy-on-write layer
//!                  │
//!                  ▼ events, in memory
//!                queue ─► tracer: map ─► output ─► log
//! ```
//!
//! * [`TracedDisk`] is the export: it carries requests out and tells the queue how they ended;
//! * [`Queue`] takes events without waiting for the log, and counts what it has no room for;
//! * [`Tracer`] is the thread that takes them out, finds their objects and writes them;
//! * [`output`] has one file for each form of the log;
//! * [`Live`] is what there is to see of it meanwhile;
//! * [`Summary`] is what remains of it, and [`working_set`] writes down what the guest has read;
//! * [`freshness`] detects a map of another disk, or of another time;
//! * [`Session`] puts these together for a guest's disks;
//! * [`Captive`] is a command that uses them, and [`Tail`] the end of what it prints.

mod captive;
mod disk;
mod event;
pub mod freshness;
pub mod live;
pub mod output;
mod queue;
mod reads;
mod session;
mod summary;
mod tail;
mod tracer;
pub mod working_set;

pub use captive::{Captive, Streams};
pub use disk::{Storage, TracedDisk};
pub use event::{Op, TraceEvent};
pub use live::Live;
pub use queue::{Overflow, Queue};
pub use session::{Session, SessionError, TraceOptions, Writes};
pub use summary::{Amount, ReadObject, Summary};
pub use tail::Tail;
pub use tracer::{Outcome, Tracer};
