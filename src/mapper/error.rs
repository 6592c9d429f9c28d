//! Why there is no map.

use super::MOST_DISKS;
use crate::appliance::LaunchError;
use crate::probe::ProbeError;
use crate::probe::found::FoundError;
use std::io;
use std::time::Duration;
use virt_bmap_image::OpenError;
use virt_bmap_nbd::{ExportsError, ServiceError};

/// Why there is no map.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// No image was given, or too many.
    #[error("{0} disks were given; a guest has 1 to {MOST_DISKS}")]
    Disks(usize),
    /// An image cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The server, or the private directory with its socket, could not be set up.
    #[error("cannot set up {what}")]
    SetUp {
        /// The thing that could not be set up.
        what: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The server could not be started.
    #[error(transparent)]
    Serve(#[from] ServiceError),
    /// The exports could not be named; a defect of this library.
    #[error(transparent)]
    Exports(#[from] ExportsError),
    /// An image became unreadable.
    #[error("an image became unreadable while it was read")]
    Lost(#[source] io::Error),
    /// The appliance did not come up.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The appliance came up, but the work in it failed.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The objects do not fit into a map.
    #[error(transparent)]
    Found(#[from] FoundError),
    /// There was no sign of life for too long.
    #[error("nothing happened for {} seconds while {during}; gave up (--timeout sets how long to wait)", limit.as_secs())]
    Hung {
        /// The limit.
        limit: Duration,
        /// The work that was interrupted.
        during: String,
    },
    /// [`Cancel`](super::Cancel) was used.
    #[error("interrupted")]
    Cancelled,
    /// The thread of the session panicked; a defect of this library or of a binding.
    #[error("internal error: the session's thread panicked")]
    Panicked,
}
