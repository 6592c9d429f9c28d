//! The result of mapping one guest.

use super::{Guest, GuestId};
use crate::mapper::progress::OpenedDisk;
use crate::probe::found::Counts;
use serde::{Deserialize, Serialize};
use virt_bmap_map::jsonl::Text;
use virt_bmap_map::{Balance, Warning, diff};

/// How the mapping of a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// There is a map, and everything was examined.
    Complete,
    /// There is a map, but something could not be examined.
    Incomplete,
    /// There is no map.
    Failed,
    /// There is no map: the mapper took too long, or made no progress.
    Hung,
    /// There is no map: a signal ended the mapper that the fleet did not send.
    Crashed,
}

impl Status {
    /// All of them, in the order in which sums are printed.
    pub const ALL: [Self; 5] = [Self::Complete, Self::Incomplete, Self::Failed, Self::Hung, Self::Crashed];

    /// The word for it, as in a record.
    pub fn word(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
            Self::Hung => "hung",
            Self::Crashed => "crashed",
        }
    }

    /// Whether there is a map.
    pub fn has_map(self) -> bool {
        matches!(self, Self::Complete | Self::Incomplete)
    }
}

/// The result of mapping one guest: a line of `fleet.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The guest.
    pub id: GuestId,
    /// How it ended.
    pub status: Status,
    /// Exit status of the mapper; absent if a signal ended it or it could not be started.
    pub exit_code: Option<i32>,
    /// The signal that ended the mapper.
    pub signal: Option<i32>,
    /// Why there is no map.
    pub error: Option<String>,
    /// Number of attempts.
    pub tries: u32,
    /// When the last attempt began, in the format of RFC 3339.
    pub started: String,
    /// Duration of the last attempt in seconds.
    pub seconds: f64,
    /// Peak memory of the mapper in bytes, without its appliance; present if there is a map.
    #[serde(default)]
    pub peak_memory: Option<u64>,
    /// Numbers of objects found; present if there is a map.
    pub counts: Option<Counts>,
    /// What the bytes in use are, of all filesystems together that say which are.
    #[serde(default)]
    pub balance: Option<Balance>,
    /// Number of changes since the earlier map, if that was updated.
    pub changes: Option<diff::Counts>,
    /// What could not be examined: at most 100 warnings.
    pub unexamined: Vec<Warning>,
    /// All other warnings: at most 100.
    pub warnings: Vec<Warning>,
    /// The disks of the manifest, with the properties found when they were opened.
    pub disks: Vec<MappedDisk>,
    /// The maps.
    pub maps: Vec<MapFile>,
    /// The options of the mapper that affect the content of the map.
    pub options: Vec<Text>,
    /// The program and version that wrote this record.
    pub generator: String,
}

/// Maximum number of warnings of each sort in a record.
pub(super) const MAX_WARNINGS: usize = 100;

/// A disk of a guest that was mapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedDisk {
    /// The path of the image in the manifest.
    pub path: Text,
    /// The format, if the manifest states it.
    pub stated: Option<String>,
    /// The snapshot inside the image, if the manifest states one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// The properties found when it was opened, before it was read.
    pub opened: Option<OpenedDisk>,
}

impl MappedDisk {
    /// The disks of a guest, with the properties of those that were opened.
    pub(super) fn all(guest: &Guest, opened: Vec<OpenedDisk>) -> Vec<Self> {
        let opened = opened.into_iter().map(Some).chain(std::iter::repeat(None));
        let disks = guest.disks.iter().zip(opened);
        disks
            .map(|(disk, opened)| Self {
                path: Text::from(disk.location.name().as_os_str()),
                stated: disk.format.map(|format| format.to_string()),
                snapshot: disk.snapshot.clone(),
                opened,
            })
            .collect()
    }
}

/// A map that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapFile {
    /// Its name in the directory of the maps.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
}
