//! What goes wrong with a fleet as a whole. What goes wrong with one guest is in its record.

use super::{BadId, Shard};
use std::io;
use std::path::{Path, PathBuf};
use virt_bmap_image::UnknownFormat;
use virt_bmap_map::output::OutputError;
use virt_bmap_ranges::Printable;

/// Why a fleet could not be worked on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FleetError {
    /// A file or directory could not be used.
    #[error("{}: {what}", shown(.path))]
    Io {
        /// The file.
        path: PathBuf,
        /// What could not be done.
        what: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A file could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A line of a manifest is wrong.
    #[error("{}, line {line}: {what}", shown(.path))]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// Number of the line, from 1.
        line: u64,
        /// What is wrong, in one printable sentence.
        what: String,
    },
    /// There is nothing to do.
    #[error("no guest was found in {}", .places.iter().map(|place| shown(place)).collect::<Vec<_>>().join(", "))]
    NoGuest {
        /// Where it was looked for.
        places: Vec<PathBuf>,
    },
    /// Another run works on the same guests.
    #[error(
        "another run is at work in {}{}; wait for it, or end it", shown(.path),
        if *.other == Shard::WHOLE { String::new() } else { format!(" (on share {})", .other) }
    )]
    Busy {
        /// The directory.
        path: PathBuf,
        /// What the other run works on.
        other: Shard,
    },
    /// A record is not one of ours.
    #[error("{}: this is no record of a guest ({what}); remove it, and the guest is mapped again", shown(.path))]
    Record {
        /// The record.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The maps would not fit.
    #[error(
        "{}: {free} bytes are free, and {needed} are needed for the maps of the guests that are mapped at once",
        shown(.path)
    )]
    Space {
        /// The directory.
        path: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that are needed.
        needed: u64,
    },
    /// A table of all maps could not be made.
    #[error("the map of {guest} could not be taken in")]
    Table {
        /// The guest's id.
        guest: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl FleetError {
    /// For `map_err`: `what` could not be done with `path`.
    pub(super) fn io(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), what, source }
    }
}

pub(super) fn shown(path: &Path) -> String {
    Printable::path(path).to_string()
}

/// What is wrong with a guest in a manifest.
#[derive(Debug, thiserror::Error)]
pub(super) enum GuestError {
    #[error("it is no guest: {0}")]
    Json(String),
    #[error(transparent)]
    Id(#[from] BadId),
    #[error(transparent)]
    Format(#[from] UnknownFormat),
    #[error("{0} has no disks, or too many")]
    Disks(String),
    #[error("a disk of {0} has an empty path, or one with a NUL in it")]
    Path(String),
    #[error("{0} is there a second time")]
    Twice(String),
}
