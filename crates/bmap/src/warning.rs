//! What a map lacks, and what else its reader should know: as facts, which are turned into words
//! only for people.
//!
//! A [`Warning`] has a [`Subject`] and a [`Cause`]. Whether something is missing from the map, and
//! so the exit status, follows from the cause ([`Cause::is_incomplete`]); so does what an update
//! may take over from the map.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::io;
use virt_bmap_ranges::{Printable, PrintableText};

mod record;

/// One thing that could not be examined, or that is worth knowing.
///
/// Displayed, it is one line that is fit for a terminal: the subject, a colon and the cause.
///
/// ```
/// use virt_bmap_map::{Cause, FileOperation, Warning};
///
/// let cause = Cause::FileFailed { operation: FileOperation::Read, errno: Some(5), offset: Some(512) };
/// let warning = Warning::on_path("/dev/sda1", b"/etc/fstab", cause);
/// assert!(warning.cause.is_incomplete());
/// assert_eq!(
///     warning.to_string(),
///     "/dev/sda1 /etc/fstab: cannot read it at byte 512: Input/output error (os error 5)"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    /// What it is about.
    pub subject: Subject,
    /// What is the matter.
    pub cause: Cause,
}

/// What a [`Warning`] is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A device of the guest, as the appliance names it.
    Device(Vec<u8>),
    /// A directory or file in the filesystem on a device.
    Path {
        /// The device.
        device: Vec<u8>,
        /// The path in its filesystem.
        path: Vec<u8>,
    },
    /// A disk image, by the name that the user gave.
    Image(Vec<u8>),
    /// No single one of these.
    Guest,
}

/// What the matter is.
///
/// Text in it comes from other programs. It is stored as they said it, and made fit for a terminal
/// when it is displayed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Cause {
    // What is missing from the map for it.
    /// The appliance cannot say what a device is.
    DeviceFailed {
        /// The error.
        error: String,
    },
    /// LVM cannot activate a logical volume.
    VolumeInactive {
        /// What LVM says.
        error: String,
    },
    /// A device is a physical volume of LVM, and its volume group cannot be read.
    VolumeGroupUnreadable,
    /// A partition lies on a Windows dynamic disk, but in none of its volumes.
    BesideDynamicVolumes,
    /// A device is a member of an array that does not use it.
    ArrayMemberUnused,
    /// An array or volume lacks members.
    MembersMissing {
        /// How many.
        count: u64,
        /// Whether the others do not hold all of its data.
        lost: bool,
    },
    /// A btrfs lacks a device, and was mounted without it.
    FilesystemDeviceMissing,
    /// A device holds a filesystem with the UUID of another one, as a clone does. Only the other
    /// one is mapped.
    SameUuid {
        /// The device of the other one.
        device: String,
    },
    /// A device is encrypted, and stays locked.
    Locked {
        /// Why.
        reason: LockReason,
    },
    /// A device is encrypted, and deriving its key takes too long.
    KeyTooSlow {
        /// Seconds after which it was given up.
        seconds: u64,
    },
    /// The appliance knows no filesystem that looks like this.
    UnknownContent,
    /// A filesystem cannot be mounted.
    MountFailed {
        /// Its type, as blkid(8) names it.
        filesystem: String,
        /// What the appliance says.
        error: String,
    },
    /// A filesystem was left out, because nothing more happened when it was read.
    Hung {
        /// Its type, as blkid(8) names it.
        filesystem: String,
        /// Seconds without a sign of life.
        seconds: u64,
    },
    /// A filesystem was left out, because the appliance's kernel crashed when it was read.
    KernelCrashed {
        /// Its type, as blkid(8) names it.
        filesystem: String,
        /// What the kernel said last.
        panic: String,
    },
    /// The walk of a filesystem ended before its end.
    WalkCutShort {
        /// Why.
        error: String,
    },
    /// The appliance could not do something with a directory, a file, or all of a filesystem.
    FileFailed {
        /// What it could not do.
        operation: FileOperation,
        /// The system's error number, `errno(3)`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        errno: Option<i32>,
        /// Where in the file or on the device, in bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        offset: Option<u64>,
    },
    /// A directory was met a second time, so the filesystem is damaged. What is below it was listed
    /// once.
    DirectoryLoop,
    /// A call into libguestfs failed.
    CallFailed {
        /// What libguestfs says.
        error: String,
    },
    /// A name that libguestfs's own calls cannot pass on, as it is not UTF-8.
    NameNotUtf8,
    /// A map cannot hold an object.
    Unmappable {
        /// Why.
        error: String,
    },
    /// Encrypted files whose place on the disk cannot be found without their key.
    EncryptedFilesUnplaced {
        /// How many.
        count: u64,
    },
    /// So many more warnings of missing objects were not kept.
    MoreOmitted {
        /// How many.
        count: u64,
    },
    /// A warning of a map that keeps words only: a text map, or version 1 of JSON Lines. Displayed,
    /// it is these words.
    Sentence {
        /// The words.
        text: String,
    },

    // What is worth knowing, though nothing is missing.
    /// A device is blank.
    Blank {
        /// Whether it is a whole disk.
        disk: bool,
    },
    /// The copies of a mirrored device differ, and the one that was read is mapped.
    CopiesDiffer,
    /// The chunks of a btrfs are not known: of mirrored data, the copy that was read is mapped.
    ChunksUnknown,
    /// A journal was replayed when the filesystem was mounted.
    JournalReplayed,
    /// Encrypted files, whose names are those that the kernel shows without the key.
    EncryptedNames {
        /// How many.
        count: u64,
    },
    /// Objects whose reads were not where the kernel says that they lie.
    NotExact {
        /// How many.
        count: u64,
    },
    /// Files that were read where the appliance had written.
    Rewritten {
        /// How many.
        count: u64,
    },
    /// An image may be written to while it is read.
    ImageMayBeTorn,
    /// An image was written to while it was read.
    ImageChanged,
    /// The size of an image is no multiple of 512.
    ImageRoundedUp {
        /// Its size in bytes.
        size: u64,
        /// The size of the disk in bytes.
        rounded: u64,
    },
    /// An image was not closed by its last user.
    ImageUnclean,
}

/// Why a device stays [locked](Cause::Locked).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockReason {
    /// No key was given for it.
    NoKey,
    /// None of the keys opens it.
    WrongKey,
    /// `--probe guestfsd` takes no keys.
    ProbeTakesNoKeys,
}

/// What could not be done with a [file](Cause::FileFailed).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileOperation {
    /// `openat(2)`
    Open,
    /// `fstat(2)`
    Stat,
    /// `getdents64(2)`
    List,
    /// `pread(2)`
    Read,
    /// The FIEMAP or FIBMAP ioctl.
    Extents,
    /// `listxattr(2)` or `getxattr(2)`
    Attributes,
    /// The GETFSMAP ioctl, or what stands in for it.
    SpaceMap,
}

impl Warning {
    /// A warning about a device.
    pub fn on_device(device: impl AsRef<[u8]>, cause: Cause) -> Self {
        Self { subject: Subject::Device(device.as_ref().to_vec()), cause }
    }

    /// A warning about a directory or file on a device.
    pub fn on_path(device: impl AsRef<[u8]>, path: &[u8], cause: Cause) -> Self {
        let (device, path) = (device.as_ref().to_vec(), path.to_vec());
        Self { subject: Subject::Path { device, path }, cause }
    }

    /// A warning about an image.
    pub fn on_image(name: impl AsRef<[u8]>, cause: Cause) -> Self {
        Self { subject: Subject::Image(name.as_ref().to_vec()), cause }
    }

    /// A warning about no single device or image.
    pub fn on_guest(cause: Cause) -> Self {
        Self { subject: Subject::Guest, cause }
    }

    /// A warning of which only the words are known.
    pub fn sentence(text: impl Into<String>) -> Self {
        Self::on_guest(Cause::Sentence { text: text.into() })
    }

    /// The device that it is about, or that has the path that it is about.
    pub fn device(&self) -> Option<&[u8]> {
        match &self.subject {
            Subject::Device(device) | Subject::Path { device, .. } => Some(device),
            Subject::Image(_) | Subject::Guest => None,
        }
    }

    /// The words for a line of a text map, which escapes them by itself. Of a sentence that was
    /// read from one, exactly what was read.
    pub(super) fn words(&self) -> Cow<'_, str> {
        match self {
            Self { subject: Subject::Guest, cause: Cause::Sentence { text } } => Cow::Borrowed(text),
            _ => Cow::Owned(self.to_string()),
        }
    }

    /// Whether something is missing from the map.
    pub fn is_incomplete(&self) -> bool {
        self.cause.is_incomplete()
    }
}

impl Cause {
    /// Whether something that is on the disks is missing from the map. A run that meets with such a
    /// cause ends with status 3.
    pub fn is_incomplete(&self) -> bool {
        match self {
            Self::DeviceFailed { .. }
            | Self::VolumeInactive { .. }
            | Self::VolumeGroupUnreadable
            | Self::BesideDynamicVolumes
            | Self::ArrayMemberUnused
            | Self::FilesystemDeviceMissing
            | Self::SameUuid { .. }
            | Self::Locked { .. }
            | Self::KeyTooSlow { .. }
            | Self::UnknownContent
            | Self::MountFailed { .. }
            | Self::Hung { .. }
            | Self::KernelCrashed { .. }
            | Self::WalkCutShort { .. }
            | Self::FileFailed { .. }
            | Self::DirectoryLoop
            | Self::CallFailed { .. }
            | Self::NameNotUtf8
            | Self::Unmappable { .. }
            | Self::EncryptedFilesUnplaced { .. }
            | Self::MoreOmitted { .. }
            // The words may say either.
            | Self::Sentence { .. } => true,
            Self::MembersMissing { lost, .. } => *lost,
            Self::Blank { .. }
            | Self::CopiesDiffer
            | Self::ChunksUnknown
            | Self::JournalReplayed
            | Self::EncryptedNames { .. }
            | Self::NotExact { .. }
            | Self::Rewritten { .. }
            | Self::ImageMayBeTorn
            | Self::ImageChanged
            | Self::ImageRoundedUp { .. }
            | Self::ImageUnclean => false,
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.subject {
            Subject::Device(device) => write!(f, "{}: ", Printable(device))?,
            Subject::Path { device, path } => write!(f, "{} {}: ", Printable(device), Printable(path))?,
            Subject::Image(name) => write!(f, "{}: ", Printable(name))?,
            Subject::Guest => {}
        }
        self.cause.fmt(f)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeviceFailed { error } | Self::CallFailed { error } | Self::Unmappable { error } => {
                write!(f, "{}", PrintableText(error))
            }
            Self::VolumeInactive { error } => write!(f, "LVM cannot activate it: {}", PrintableText(error)),
            Self::VolumeGroupUnreadable => {
                f.write_str("it is a physical volume of LVM, but its volume group cannot be read")
            }
            Self::BesideDynamicVolumes => f.write_str(
                "it is on a Windows dynamic disk, but in none of the volumes that could be assembled, and \
                 cannot be mounted beside them. If it is part of a volume whose other disks are missing, name \
                 all disks of the guest",
            ),
            Self::ArrayMemberUnused => f.write_str(
                "it is a member of an array that is not assembled: other members are missing, or this is a \
                 clone of one",
            ),
            Self::MembersMissing { count, lost } => {
                let members = if *count == 1 { "member is" } else { "members are" };
                write!(f, "{count} {members} missing or failed; ")?;
                f.write_str(if *lost {
                    "data that only they hold is not mapped"
                } else {
                    "the others hold all of the data"
                })
            }
            Self::FilesystemDeviceMissing => {
                f.write_str("one of its devices is missing; data that lies only there is not mapped")
            }
            Self::SameUuid { device } => write!(
                f,
                "it has the UUID of the filesystem on {}, as a clone has; only that one is mapped. Map the \
                 disks separately to map both",
                PrintableText(device)
            ),
            Self::Locked { reason } => reason.fmt(f),
            Self::KeyTooSlow { seconds } => write!(
                f,
                "it is encrypted, and cryptsetup was given up after {seconds} seconds: deriving the key takes long \
                 where the appliance is emulated"
            ),
            Self::UnknownContent => f.write_str("the appliance finds no filesystem that it knows"),
            Self::MountFailed { filesystem, error } => {
                write!(f, "cannot mount it as {}: {}", PrintableText(filesystem), PrintableText(error))
            }
            Self::Hung { filesystem, seconds } => write!(
                f,
                "left out; nothing happened for {seconds} seconds (--timeout) while it was read as {}. It may \
                 be damaged",
                PrintableText(filesystem)
            ),
            Self::KernelCrashed { filesystem, panic } => write!(
                f,
                "left out; the appliance's kernel crashed while it was read as {}: {}. It may be damaged",
                PrintableText(filesystem),
                PrintableText(panic)
            ),
            Self::WalkCutShort { error } => {
                write!(f, "only a part of it was read: {}", PrintableText(error))
            }
            Self::FileFailed { operation, errno, offset } => {
                operation.fmt(f)?;
                if let Some(offset) = offset {
                    write!(f, " at byte {offset}")?;
                }
                match errno {
                    Some(errno) => write!(f, ": {}", io::Error::from_raw_os_error(*errno)),
                    None => Ok(()),
                }
            }
            Self::DirectoryLoop => {
                f.write_str("this directory was visited before; the filesystem is damaged")
            }
            Self::NameNotUtf8 => f.write_str(
                "its name is not UTF-8, and --probe guestfsd cannot pass it on; --probe agent can",
            ),
            Self::EncryptedFilesUnplaced { count } => {
                write!(f, "{count} encrypted files cannot be located without their key")
            }
            Self::MoreOmitted { count } => write!(f, "{count} more warnings were not kept"),
            Self::Sentence { text } => write!(f, "{}", PrintableText(text)),
            Self::Blank { disk: true } => {
                f.write_str("the disk is blank: it has neither partitions nor a filesystem")
            }
            Self::Blank { disk: false } => f.write_str("it is blank"),
            Self::CopiesDiffer => f.write_str("its copies differ; only the copy that was read is mapped"),
            Self::ChunksUnknown => f.write_str(
                "the place of its chunks is not known; of mirrored data, the copy that was read is mapped",
            ),
            Self::JournalReplayed => f.write_str(
                "it was not unmounted cleanly; the map shows it after the replay of its journal",
            ),
            Self::EncryptedNames { count } => {
                write!(f, "{count} files are encrypted; without the key, the kernel shows encoded names")
            }
            Self::NotExact { count } => {
                write!(f, "{count} objects were not read exactly where the kernel says that they lie")
            }
            Self::Rewritten { count } => write!(
                f,
                "{count} files were read where the appliance had written: the replay of a journal moved or \
                 changed their blocks, so the image holds other data there"
            ),
            Self::ImageMayBeTorn => {
                f.write_str("another program may write to the image while it is read; the map may be torn")
            }
            Self::ImageChanged => f.write_str("an image changed while it was read; the map may be torn"),
            Self::ImageRoundedUp { size, rounded } => write!(
                f,
                "the image has {size} bytes, no multiple of 512; it is read as a disk of {rounded} bytes that \
                 ends in zeroes"
            ),
            Self::ImageUnclean => {
                f.write_str("the last program that used the image did not close it; it may be damaged")
            }
        }
    }
}

impl fmt::Display for LockReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoKey => "it is encrypted, and no key was given (--key DEVICE:key:PASSPHRASE)",
            Self::WrongKey => "it is encrypted, and none of the given keys opens it",
            Self::ProbeTakesNoKeys => {
                "it is encrypted, and --probe guestfsd takes no keys; --probe agent does"
            }
        })
    }
}

impl fmt::Display for FileOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "cannot open it",
            Self::Stat => "cannot stat it",
            Self::List => "cannot list it",
            Self::Read => "cannot read it",
            Self::Extents => "cannot get its extents",
            Self::Attributes => "cannot read its extended attributes",
            Self::SpaceMap => "cannot get the filesystem's map of its blocks",
        })
    }
}
