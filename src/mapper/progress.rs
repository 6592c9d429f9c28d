//! Progress events of a mapper: with `--progress json`, one JSON object a line on standard error.
//! Other lines are messages for people.

use super::GuestDisk;
use crate::probe::found::Counts;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use virt_bmap_image::{Image, Stamp};
use virt_bmap_map::jsonl::Text;
use virt_bmap_map::{Balance, Warning, diff};

/// One event. A reader ignores unknown events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
#[non_exhaustive]
pub enum ProgressEvent {
    /// The images have been opened; nothing has been read of them yet.
    Opened {
        /// The guest's disks, in order.
        disks: Vec<OpenedDisk>,
    },
    /// The progress, about once a second.
    Progress {
        /// The current work, for people.
        doing: String,
        /// The completed share of it, from 0 to 1, if known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        share: Option<f64>,
    },
    /// A warning that makes the map incomplete.
    Unexamined(Warning),
    /// Another warning.
    Warning(Warning),
    /// There is no map. The error follows as a message for people.
    Failed {
        /// How it failed.
        reason: FailureReason,
    },
    /// The maps have been written, and have these differences to the given earlier map.
    Changed(diff::Counts),
    /// Peak memory of the mapper's own process so far, without qemu.
    Memory {
        /// In bytes.
        peak: u64,
    },
    /// What the bytes in use are, of all filesystems together that say which are.
    Balance(Balance),
    /// The maps have been written.
    Done(Counts),
}

/// How a run [failed](ProgressEvent::Failed).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureReason {
    /// There was no sign of life for too long.
    Hung,
    /// In another way.
    Other,
}

impl ProgressEvent {
    /// The event for a warning.
    pub fn of_warning(warning: Warning) -> Self {
        if warning.is_incomplete() { Self::Unexamined(warning) } else { Self::Warning(warning) }
    }
}

/// A disk and the files of its chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenedDisk {
    /// Size of the disk in bytes, as the guest sees it; absent if the image was not opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The image's format, stated or detected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// The image, then the files below it.
    pub files: Vec<StampedFile>,
}

/// A file with its stamp when it was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StampedFile {
    path: Text,
    #[serde(flatten)]
    stamp: Stamp,
}

impl StampedFile {
    /// The file at `path` with its present stamp. `None` if the stamp cannot be read.
    pub fn now(path: &Path) -> Option<Self> {
        let stamp = Stamp::of(path).ok()?;
        Some(Self { path: path.as_os_str().into(), stamp })
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.path.to_path()
    }

    /// Whether its stamp is still the same.
    pub fn is_same(&self) -> bool {
        Stamp::of(&self.path()).is_ok_and(|stamp| stamp == self.stamp)
    }

    /// Whether a write to it would change the stamp: not so for a block device.
    pub fn is_telling(&self) -> bool {
        self.stamp.is_telling()
    }
}

impl OpenedDisk {
    /// A guest's disks before they are opened: only the images.
    pub fn not_opened(disks: &[GuestDisk]) -> Vec<Self> {
        let disk = |disk: &GuestDisk| Self {
            size: None,
            format: None,
            files: disk.location.file().and_then(StampedFile::now).into_iter().collect(),
        };
        disks.iter().map(disk).collect()
    }

    /// An opened image.
    ///
    /// What is not a file or block device of this host is left out.
    pub fn of(image: &Image) -> Self {
        let files = image.chain.iter().filter_map(virt_bmap_image::ImageFile::files).flatten();
        Self {
            size: Some(image.source.size()),
            format: Some(image.format.to_string()),
            files: files.filter_map(StampedFile::now).collect(),
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
                ProgressEvent::Balance(Balance {
                    used: 4096,
                    files: 1024,
                    unexplained: 3072,
                    ..Balance::default()
                }),
                r#"{"event":"balance","used":4096,"files":1024,"directories":0,"metadata":0,"superseded":0,"unexplained":3072,"claimed_twice":0,"claimed_free":0}"#,
            ),
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
