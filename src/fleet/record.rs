//! What became of one guest.

use super::{Guest, GuestId};
use crate::mapper::progress::OpenedDisk;
use crate::probe::found::Counts;
use serde::{Deserialize, Serialize};
use virt_bmap_map::jsonl::Text;
use virt_bmap_map::{Warning, diff};

/// How the mapping of a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All of it was examined.
    Complete,
    /// There is a map, but something could not be examined.
    Incomplete,
    /// There is no map.
    Failed,
    /// There is no map: it took too long, or showed no sign of life.
    Hung,
    /// There is no map: the mapper was ended by a signal that we did not send.
    Crashed,
}

impl Status {
    /// All of them, in the order in which they are summed up.
    pub const ALL: [Self; 5] = [Self::Complete, Self::Incomplete, Self::Failed, Self::Hung, Self::Crashed];

    /// The word for it, as it is in a record.
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

/// What became of one guest: a line of `fleet.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The guest.
    pub id: GuestId,
    /// How it ended.
    pub status: Status,
    /// The mapper's exit status; absent if a signal ended it, or if it could not be started.
    pub exit_code: Option<i32>,
    /// The signal that ended the mapper.
    pub signal: Option<i32>,
    /// Why there is no map.
    pub error: Option<String>,
    /// How often it was tried.
    pub tries: u32,
    /// When the last try began, as RFC 3339 has it.
    pub started: String,
    /// Seconds that the last try took.
    pub seconds: f64,
    /// Most memory in bytes that the mapper had, without its appliance's, where there is a map.
    #[serde(default)]
    pub peak_memory: Option<u64>,
    /// How much was found, where there is a map.
    pub counts: Option<Counts>,
    /// How much is other than in its map before, where that was brought up to date.
    pub changes: Option<diff::Counts>,
    /// What could not be examined: at most 100 warnings.
    pub unexamined: Vec<Warning>,
    /// What else is worth knowing: at most 100 warnings.
    pub warnings: Vec<Warning>,
    /// The disks as the manifest has them, with what was found when they were opened.
    pub disks: Vec<MappedDisk>,
    /// The maps, beside the record's directory.
    pub maps: Vec<MapFile>,
    /// How it was mapped: those of the mapper's options on which it depends what the map has in it.
    pub options: Vec<Text>,
    /// The program and version that wrote this.
    pub generator: String,
}

/// Most warnings of each sort that a record keeps.
pub(super) const MAX_WARNINGS: usize = 100;

/// A disk of a guest that was mapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedDisk {
    /// The image, as the manifest has it.
    pub path: Text,
    /// The format, if the manifest states it.
    pub stated: Option<String>,
    /// What was found when it was opened, before it was read.
    pub opened: Option<OpenedDisk>,
}

impl MappedDisk {
    /// The disks of a guest, of which as many as are given were opened.
    pub(super) fn all(guest: &Guest, opened: Vec<OpenedDisk>) -> Vec<Self> {
        let opened = opened.into_iter().map(Some).chain(std::iter::repeat(None));
        let disks = guest.disks.iter().zip(opened);
        disks
            .map(|(disk, opened)| Self {
                path: disk.path.as_os_str().into(),
                stated: disk.format.map(|format| format.to_string()),
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
    /// Its size.
    pub bytes: u64,
}
