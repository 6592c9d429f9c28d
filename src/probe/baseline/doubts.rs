//! Of which devices an earlier map is not to be trusted, as its warnings tell.

use std::collections::HashSet;
use virt_bmap_map::{Cause, FileOperation, Header, Warning};
use virt_bmap_ranges::Printable;

/// What an update must find out anew.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// All of it: not every warning was kept.
    pub(super) everything: bool,
    /// Devices on which a file may lie elsewhere than the map says.
    pub(super) files: HashSet<Vec<u8>>,
    /// Devices on which a directory may hold more than the map says.
    pub(super) directories: HashSet<Vec<u8>>,
}

/// How much of a device one warning puts into doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    Nothing,
    Directories,
    DirectoriesAndFiles,
    Everything,
}

impl Doubts {
    pub(super) fn of(header: &Header) -> Self {
        let mut doubts = Self::default();
        for warning in &header.warnings {
            let doubt = Doubt::of(&warning.cause);
            doubts.everything |= doubt == Doubt::Everything;
            for device in devices(header, warning) {
                if doubt != Doubt::Nothing {
                    doubts.directories.insert(device.to_vec());
                }
                if doubt == Doubt::DirectoriesAndFiles {
                    doubts.files.insert(device.to_vec());
                }
            }
        }
        doubts
    }
}

/// The devices that a warning is about. One that is kept in words alone is about each filesystem
/// that it names.
fn devices<'a>(header: &'a Header, warning: &'a Warning) -> Vec<&'a [u8]> {
    let Cause::Sentence { text } = &warning.cause else { return warning.device().into_iter().collect() };
    let devices = header.filesystems.iter().map(|filesystem| &*filesystem.device);
    devices.filter(|device| names(text, &Printable(device).to_string())).collect()
}

/// Whether a text has this name in it, and not merely as the beginning of another one.
fn names(text: &str, name: &str) -> bool {
    text.match_indices(name).any(|(at, _)| {
        let next = text[at + name.len()..].chars().next();
        next.is_none_or(|next| !next.is_alphanumeric())
    })
}

impl Doubt {
    fn of(cause: &Cause) -> Self {
        match cause {
            Cause::MoreOmitted { .. } => Self::Everything,
            // The words may say anything.
            Cause::Sentence { .. } => Self::DirectoriesAndFiles,
            // The file is in the map, but perhaps not all of it.
            Cause::FileFailed { operation: FileOperation::Read | FileOperation::Extents, .. } => {
                Self::DirectoriesAndFiles
            }
            // Something is not in the map that a directory names.
            Cause::FileFailed { .. }
            | Cause::DirectoryLoop
            | Cause::CallFailed { .. }
            | Cause::NameNotUtf8
            | Cause::Unmappable { .. }
            | Cause::WalkCutShort { .. } => Self::Directories,
            // These are about whole devices, whose filesystems are not in the map, or are found out
            // again in each run.
            Cause::DeviceFailed { .. }
            | Cause::VolumeInactive { .. }
            | Cause::VolumeGroupUnreadable
            | Cause::BesideDynamicVolumes
            | Cause::ArrayMemberUnused
            | Cause::MembersMissing { .. }
            | Cause::FilesystemDeviceMissing
            | Cause::SameUuid { .. }
            | Cause::Locked { .. }
            | Cause::KeyTooSlow { .. }
            | Cause::UnknownContent
            | Cause::MountFailed { .. }
            | Cause::Hung { .. }
            | Cause::KernelCrashed { .. }
            | Cause::Blank { .. }
            | Cause::CopiesDiffer
            | Cause::ChunksUnknown
            | Cause::JournalReplayed
            // Such files have marks of their own, by which they are read again.
            | Cause::EncryptedFilesUnplaced { .. }
            | Cause::EncryptedNames { .. }
            | Cause::NotExact { .. }
            | Cause::Rewritten { .. }
            // Whether an image has changed is found out from the image.
            | Cause::ImageMayBeTorn
            | Cause::ImageChanged
            | Cause::ImageRoundedUp { .. }
            | Cause::ImageUnclean => Self::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virt_bmap_map::Filesystem;

    #[test]
    fn words_put_each_device_that_they_name_into_doubt() {
        let filesystem = |device: &[u8]| Filesystem { device: device.to_vec(), ..Filesystem::default() };
        let header = Header {
            filesystems: ["/dev/sda1", "/dev/sda10", "/dev/vg/a", "/dev/sdb"]
                .map(|device| filesystem(device.as_bytes()))
                .into(),
            warnings: vec![
                Warning::sentence("/dev/sda10 /b: cannot open it"),
                Warning::sentence("/dev/sdc: it has the UUID of the btrfs on /dev/vg/a, as a clone has"),
            ],
            ..Header::default()
        };
        let doubts = Doubts::of(&header);
        assert!(!doubts.everything);
        let expected = HashSet::from([b"/dev/sda10".to_vec(), b"/dev/vg/a".to_vec()]);
        assert_eq!((&doubts.files, &doubts.directories), (&expected, &expected));
    }
}
