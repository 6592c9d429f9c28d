//! Errors of a fleet as a whole. The error of one guest is in its record.

use super::{BadId, Shard};
use crate::mapper::MOST_DISKS;
use std::io;
use std::path::{Path, PathBuf};
use virt_bmap_image::UnknownFormat;
use virt_bmap_map::output::OutputError;
use virt_bmap_ranges::Printable;

/// An error of a fleet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FleetError {
    /// A file or directory could not be used.
    #[error("{}: {action}", shown(.path))]
    Io {
        /// The file.
        path: PathBuf,
        /// What failed.
        action: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A file could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A line of a manifest is wrong.
    #[error("{}, line {line}: {reason}", shown(.path))]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// Number of the line, from 1.
        line: u64,
        /// What is wrong, printable.
        reason: String,
    },
    /// There are no guests.
    #[error("no guest found in {}", .places.iter().map(|place| shown(place)).collect::<Vec<_>>().join(", "))]
    NoGuest {
        /// Where guests were searched for.
        places: Vec<PathBuf>,
    },
    /// Another run holds the lock on some of the guests.
    #[error(
        "{}: another run is using this directory{}; wait for it or end it", shown(.path),
        if *.other == Shard::WHOLE { String::new() } else { format!(" (shard {})", .other) }
    )]
    Busy {
        /// The directory.
        path: PathBuf,
        /// The shard of the other run.
        other: Shard,
    },
    /// A record cannot be parsed.
    #[error("{}: invalid record of a guest ({reason}); remove it to map the guest again", shown(.path))]
    Record {
        /// The record.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The maps will not fit on the disk.
    #[error(
        "{}: not enough disk space: the maps of the guests being mapped need {needed} bytes, and {free} bytes are free; free some space, or lower --jobs",
        shown(.path)
    )]
    Space {
        /// The directory.
        path: PathBuf,
        /// Bytes free.
        free: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// The table of all maps could not be written.
    #[error("cannot add the map of {guest} to the table")]
    Table {
        /// The guest's id.
        guest: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl FleetError {
    /// For `map_err`: the error that `action` failed on `path`.
    pub(super) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), action, source }
    }
}

pub(super) fn shown(path: &Path) -> String {
    Printable::path(path).to_string()
}

/// An error in the line of one guest in a manifest.
#[derive(Debug, thiserror::Error)]
pub(super) enum GuestError {
    #[error("invalid guest: {0}")]
    Json(String),
    #[error(transparent)]
    Id(#[from] BadId),
    #[error(transparent)]
    Format(#[from] UnknownFormat),
    #[error("{0} has no disks, or more than {MOST_DISKS}")]
    Disks(String),
    #[error("a disk of {0} has a path that is empty or contains a NUL byte")]
    Path(String),
    #[error("a disk of {0}: {1}")]
    Uri(String, virt_bmap_image::BadUri),
    #[error("the ID {0} occurs twice")]
    Twice(String),
}
