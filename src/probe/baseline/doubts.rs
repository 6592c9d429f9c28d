//! Which devices of an earlier map cannot be trusted, according to its warnings.

use std::collections::HashSet;
use virt_bmap_map::{Cause, FileOperation, Header, Warning};
use virt_bmap_ranges::Printable;

/// What an update must not reuse.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// Nothing at all: not every warning was kept.
    pub(super) everything: bool,
    /// Devices on which a file may lie elsewhere than the map says.
    pub(super) files: HashSet<Vec<u8>>,
    /// Devices on which a directory may hold more than the map says.
    pub(super) directories: HashSet<Vec<u8>>,
}

/// How much of a device cannot be trusted because of one warning.
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

/// The devices of a warning. A warning that is only a sentence counts for each filesystem that it
/// names.
fn devices<'a>(header: &'a Header, warning: &'a Warning) -> Vec<&'a [u8]> {
    let Cause::Sentence { text } = &warning.cause else { return warning.device().into_iter().collect() };
    let devices = header.filesystems.iter().map(|filesystem| &*filesystem.device);
    devices.filter(|device| names(text, &Printable(device).to_string())).collect()
}

/// Whether a text contains this name, and not only as the beginning of a longer one.
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
            // The sentence may mean anything.
            Cause::Sentence { .. } => Self::DirectoriesAndFiles,
            // The file is in the map, but perhaps not completely.
            Cause::FileFailed { operation: FileOperation::Read | FileOperation::Extents, .. } => {
                Self::DirectoriesAndFiles
            }
            // The map lacks an entry of a directory.
            Cause::FileFailed { .. }
            | Cause::DirectoryLoop
            | Cause::DirectoryCorrupt { .. }
            | Cause::DirectoryHoles
            | Cause::CallFailed { .. }
            | Cause::NameNotUtf8
            | Cause::Unmappable { .. }
            | Cause::DirectoriesUnplaced { .. }
            | Cause::DirectoryContradicted
            | Cause::WalkCutShort { .. }
            | Cause::Unexplained { .. } => Self::Directories,
            // Which of the objects is wrong is not known.
            Cause::ClaimedTwice { .. } | Cause::ClaimedFree { .. } => Self::DirectoriesAndFiles,
            // These concern whole devices, whose filesystems are not in the map or are examined in
            // each run.
            Cause::DeviceFailed { .. }
            | Cause::VolumeInactive { .. }
            | Cause::VolumeGroupUnreadable
            | Cause::OutsideDynamicVolumes
            | Cause::ArrayMemberUnused
            | Cause::MembersMissing { .. }
            | Cause::FilesystemDeviceMissing
            | Cause::SameUuid { .. }
            | Cause::Locked { .. }
            | Cause::KeyTooSlow { .. }
            | Cause::UnknownContent
            | Cause::SignatureUnused { .. }
            | Cause::SignatureBesides { .. }
            | Cause::DiskTruncated { .. }
            | Cause::VolumeGroupRenamed { .. }
            | Cause::Suspended
            | Cause::JournalMissing
            | Cause::MountFailed { .. }
            | Cause::FilesystemTooNew { .. }
            | Cause::Hung { .. }
            | Cause::KernelCrashed { .. }
            | Cause::Blank { .. }
            | Cause::Remark { .. }
            | Cause::CopiesDiffer
            | Cause::ChunksUnknown
            | Cause::JournalReplayed
            // All records of `$MFT` are read in each run.
            | Cause::RecordsDamaged { .. }
            | Cause::Hibernated
            | Cause::NotUnmounted
            // Such files have marks, because of which they are read again.
            | Cause::EncryptedFilesUnplaced { .. }
            | Cause::EncryptedNames { .. }
            | Cause::NotExact { .. }
            | Cause::Rewritten { .. }
            // A change of an image is noticed by the image itself.
            | Cause::ImageMayBeTorn
            | Cause::ImageChanged
            | Cause::ImageRoundedUp { .. }
            | Cause::ImageUnclean
            | Cause::ImageUnread { .. } => Self::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virt_bmap_map::Filesystem;

    #[test]
    fn a_sentence_casts_doubt_on_each_device_that_it_names() {
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
