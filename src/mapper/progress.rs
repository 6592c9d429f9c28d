//! What a mapper tells while it works: one JSON object on a line of its standard error, by
//! `--progress json`. Lines that are no such object are messages for people.

use super::GuestDisk;
use crate::probe::found::Counts;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use virt_bmap_image::{Image, Stamp};
use virt_bmap_map::jsonl::Text;
use virt_bmap_map::{Warning, diff};

/// One event. A reader skips those that it does not know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
#[non_exhaustive]
pub enum ProgressEvent {
    /// The images have been opened; nothing has been read of them yet.
    Opened {
        /// The guest's disks, in order.
        disks: Vec<OpenedDisk>,
    },
    /// How far it is; about once in a second.
    Progress {
        /// What is being done, for people.
        doing: String,
        /// How much of that has been done, from 0 to 1, where it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        share: Option<f64>,
    },
    /// Something could not be examined: it is missing from the map.
    Unexamined(Warning),
    /// Something is worth knowing, though nothing is missing for it.
    Warning(Warning),
    /// There is no map. What led to it follows as a message for people.
    Failed {
        /// How it failed.
        reason: FailureReason,
    },
    /// The maps have been written, and differ so much from the earlier map that was given.
    Changed(diff::Counts),
    /// Most memory that the mapper's own process has had until now, without qemu's, which is a
    /// process of its own.
    Memory {
        /// In bytes.
        peak: u64,
    },
    /// The maps have been written.
    Done(Counts),
}

/// How a run [failed](ProgressEvent::Failed).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureReason {
    /// Nothing happened for too long.
    Hung,
    /// In another way.
    Other,
}

impl ProgressEvent {
    /// The event that tells of a warning.
    pub fn of_warning(warning: Warning) -> Self {
        if warning.is_incomplete() { Self::Unexamined(warning) } else { Self::Warning(warning) }
    }
}

/// A disk and the files that it is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenedDisk {
    /// Bytes of the disk that the guest sees; absent if the mapper did not get so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The image's format, stated or found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// The image first, then what is below it.
    pub files: Vec<StampedFile>,
}

/// A file, and how it was when it was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StampedFile {
    path: Text,
    #[serde(flatten)]
    stamp: Stamp,
}

impl StampedFile {
    /// The file at `path` as it is now. `None` if it cannot be looked at.
    pub fn now(path: &Path) -> Option<Self> {
        let stamp = Stamp::of(path).ok()?;
        Some(Self { path: path.as_os_str().into(), stamp })
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.path.to_path()
    }

    /// Whether it is still as it was, as far as that can be seen.
    pub fn is_same(&self) -> bool {
        Stamp::of(&self.path()).is_ok_and(|stamp| stamp == self.stamp)
    }

    /// Whether a write to it would be seen: not so of a block device.
    pub fn is_telling(&self) -> bool {
        self.stamp.is_telling()
    }
}

impl OpenedDisk {
    /// What can be said of a guest's disks before anybody has opened them: the images alone.
    pub fn not_opened(disks: &[GuestDisk]) -> Vec<Self> {
        let disk = |disk: &GuestDisk| Self {
            size: None,
            format: None,
            files: StampedFile::now(&disk.path).into_iter().collect(),
        };
        disks.iter().map(disk).collect()
    }

    /// What there is to say of an image that has been opened.
    ///
    /// Of an image of a stated format not everything below it need be known: what qemu alone can
    /// open is left out.
    pub fn of(image: &Image) -> Self {
        let files = image.chain.iter().flat_map(|link| [&link.filename].into_iter().chain(&link.data_files));
        Self {
            size: Some(image.source.size()),
            format: Some(image.format.to_string()),
            files: files.filter_map(|path| StampedFile::now(path)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virt_bmap_map::Cause;

    #[test]
    fn events_are_frozen() {
        for (event, line) in [
            (
                ProgressEvent::Progress { doing: "starting".into(), share: Some(0.5) },
                r#"{"event":"progress","doing":"starting","share":0.5}"#,
            ),
            (
                ProgressEvent::Changed(diff::Counts { added: 2, removed: 1, changed: 0 }),
                r#"{"event":"changed","added":2,"removed":1,"changed":0}"#,
            ),
            (
                ProgressEvent::of_warning(Warning::on_device("/dev/sda", Cause::Blank { disk: true })),
                r#"{"event":"warning","device":"/dev/sda","cause":{"kind":"blank","disk":true},"text":"/dev/sda: the disk is blank: it has neither partitions nor a filesystem"}"#,
            ),
            (
                ProgressEvent::of_warning(Warning::on_path("/dev/sda", b"/a", Cause::DirectoryLoop)),
                r#"{"event":"unexamined","device":"/dev/sda","path":"/a","cause":{"kind":"directory-loop"},"text":"/dev/sda /a: this directory was visited before; the filesystem is damaged"}"#,
            ),
            (ProgressEvent::Failed { reason: FailureReason::Hung }, r#"{"event":"failed","reason":"hung"}"#),
            (ProgressEvent::Memory { peak: 1 << 20 }, r#"{"event":"memory","peak":1048576}"#),
            (
                ProgressEvent::Done(Counts { files: 3, ..Counts::default() }),
                r#"{"event":"done","partitions":0,"volumes":0,"filesystems":0,"directories":0,"files":3}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&event).unwrap(), line);
            assert_eq!(serde_json::from_str::<ProgressEvent>(line).unwrap(), event);
        }
        let line = r#"{"event":"opened","disks":[{"size":512,"format":"raw","files":[{"path":"/a","size":5,"modified":-7,"inode":3}]}]}"#;
        assert_eq!(
            serde_json::to_string(&serde_json::from_str::<ProgressEvent>(line).unwrap()).unwrap(),
            line
        );
    }
}
