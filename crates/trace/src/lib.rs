#![doc = include_str!("../README.md")]
//!
//! # Inside
//!
//! The guest's disks are served over NBD, and each request is looked up in the guest's block map:
//!
//! ```text
//! guest ─► NBD server ─► TracedDisk ─► image, copy-on-write layer or history
//!                            │
//!                            ▼ events, in memory
//!                          Queue ─► Tracer: map ─► LogOutput ─► log
//!                                              ├─► Summary
//!                                              └─► Live
//! ```
//!
//! * [`TracedDisk`] is the NBD export: it carries out requests and pushes an event for each answer;
//! * [`Queue`] accepts events without waiting for the log, and counts those that it has no room
//!   for;
//! * [`Tracer`] is the thread that takes the events, finds their objects and writes the log;
//! * [`LogFormat`] and [`LogOutput`] are the formats of the log;
//! * [`Live`] holds the current state of a running trace, for a screen;
//! * [`Summary`] adds up a whole trace, and [`working_set`] writes what the guest has read;
//! * [`freshness`] detects the map of other disks, or of an earlier state of these disks;
//! * [`Session`] puts these together for the disks of a guest, and keeps their
//!   [history](virt_bmap_history) if it is wanted;
//! * [`Captive`] is a command that uses the disks, and [`Tail`] the end of its output.
//!
//! # Limits
//!
//! * A queue holds 262,144 events (16 MiB). [`Overflow`] decides between dropping further events
//!   and making the guest wait.
//! * A summary takes up to 50 MiB for each disk and 50 bytes for each object of the map, however
//!   long the trace is.
//! * The NBD server has no authentication: see [`virt_bmap_nbd`].
//!
//! # Errors
//!
//! [`SessionError`] says why the disks cannot be served. An error of the log does not stop the
//! guest: [`Session::log_error`] returns it during the trace, and [`Outcome`] at the end.

mod captive;
mod disk;
mod event;
pub mod freshness;
mod live;
mod output;
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
pub use live::{Live, LiveView, ObjectOrder, ObjectUsage, RecentRequest, TraceTotals};
pub use output::{LogFormat, LogOutput, UnknownLogFormat};
pub use queue::{Overflow, Queue};
pub use session::{Session, SessionError, TraceOptions, Writes, identity};
pub use summary::{Amount, ReadObject, Summary};
pub use tail::Tail;
pub use tracer::{Outcome, Tracer};
