//! Warnings of a map, as typed facts: what is missing from the map, and what else its reader should
//! know.
//!
//! A [`Warning`] has a [`Subject`] and a [`Cause`]. All decisions depend on the cause: whether the
//! map is incomplete, and so the exit status ([`Cause::is_incomplete`]), and which files an update
//! may reuse. Warnings become words only for people, by [`Display`](fmt::Display).
//! `docs/formats.md` lists the kinds of causes with their data, as JSON Lines have them.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::io;
use virt_bmap_ranges::{Printable, PrintableText};

mod record;

/// Something that could not be examined, or that is worth knowing.
///
/// It is displayed as one line that is safe for a terminal: the subject, a colon and the cause.
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
    /// The device, path or image that it is about.
    pub subject: Subject,
    /// The cause.
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
    /// The guest as a whole.
    Guest,
}

/// The cause of a [`Warning`], with its data.
///
/// Texts come from other programs. They are stored unchanged, and escaped for a terminal when the
/// cause is displayed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Cause {
    // Causes that mean that something is missing from the map.
    /// The appliance failed to examine a device.
    DeviceFailed {
        /// The error.
        error: String,
    },
    /// LVM could not activate a logical volume.
    VolumeInactive {
        /// LVM's message.
        error: String,
    },
    /// A device is a physical volume of LVM, and its volume group cannot be read.
    VolumeGroupUnreadable,
    /// A partition lies on a Windows dynamic disk, but in none of its volumes.
    OutsideDynamicVolumes,
    /// A device is a member of an array that does not use it.
    ArrayMemberUnused,
    /// An array or volume lacks members.
    MembersMissing {
        /// How many.
        count: u64,
        /// Whether the others do not hold all of its data.
        lost: bool,
    },
    /// A btrfs was mounted without one of its devices.
    FilesystemDeviceMissing,
    /// A filesystem has the UUID of another one, as a clone has. Only the other one is mapped.
    SameUuid {
        /// The device that is mapped.
        device: String,
    },
    /// A device is encrypted and stays locked.
    Locked {
        /// Why.
        reason: LockReason,
    },
    /// A device is encrypted, and deriving its key took too long.
    KeyTooSlow {
        /// Seconds after which the attempt ended.
        seconds: u64,
    },
    /// The appliance found no filesystem that it knows.
    UnknownContent,
    /// A device has the signature of something that nothing in the appliance uses: a filesystem
    /// without a driver, or a member of a set that is not assembled.
    SignatureUnused {
        /// The signature, as blkid(8) names it.
        signature: String,
        /// The label that it bears, such as the name of a ZFS pool.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        label: Option<String>,
    },
    /// The partition table describes a larger disk than the image holds.
    DiskTruncated {
        /// Bytes of the disk that the partition table describes.
        described: u64,
        /// Bytes that are there.
        size: u64,
    },
    /// A filesystem cannot be mounted.
    MountFailed {
        /// Its type, as blkid(8) names it.
        filesystem: String,
        /// The appliance's message.
        error: String,
    },
    /// A filesystem cannot be mounted, because it has features that the appliance's kernel does not
    /// know.
    FilesystemTooNew {
        /// Its type, as blkid(8) names it.
        filesystem: String,
        /// The version of the appliance's kernel.
        kernel: String,
        /// The kernel's message.
        error: String,
    },
    /// A filesystem was left out, because reading it hung.
    Hung {
        /// Its type, as blkid(8) names it.
        filesystem: String,
        /// Seconds without progress.
        seconds: u64,
    },
    /// A filesystem was left out, because reading it crashed the appliance's kernel.
    KernelCrashed {
        /// Its type, as blkid(8) names it.
        filesystem: String,
        /// The kernel's last message.
        panic: String,
    },
    /// Only a part of a filesystem was read.
    WalkCutShort {
        /// Why.
        error: String,
    },
    /// An operation on a directory, a file, or a filesystem failed.
    FileFailed {
        /// The operation.
        operation: FileOperation,
        /// The system's error number, `errno(3)`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        errno: Option<i32>,
        /// The offset in the file or on the device, in bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        offset: Option<u64>,
    },
    /// A directory was reached a second time, so the filesystem is damaged. Its contents were
    /// listed once.
    DirectoryLoop,
    /// The kernel calls a directory corrupt. Some of its entries may be missing.
    DirectoryCorrupt {
        /// The kernel's message.
        error: String,
    },
    /// The blocks of a directory do not cover it from its beginning to its end, as its filesystem
    /// demands. Some of its entries may be missing.
    DirectoryHoles,
    /// A call into libguestfs failed.
    CallFailed {
        /// libguestfs's message.
        error: String,
    },
    /// A name is not UTF-8, and libguestfs's own calls cannot pass it on.
    NameNotUtf8,
    /// A map cannot hold the object.
    Unmappable {
        /// Why.
        error: String,
    },
    /// Encrypted files cannot be located without their key.
    EncryptedFilesUnplaced {
        /// How many.
        count: u64,
    },
    /// A filesystem says that bytes are in use, and no object of the map has them.
    Unexplained {
        /// How many ranges of the device they are.
        ranges: u64,
        /// How many bytes they are.
        bytes: u64,
    },
    /// Objects have bytes in common that they cannot share, so the filesystem is damaged, or the
    /// map is wrong.
    ClaimedTwice {
        /// How many ranges of the disks they are.
        ranges: u64,
        /// How many bytes they are.
        bytes: u64,
        /// Two of the objects.
        example: [String; 2],
    },
    /// Files or directories have bytes that their filesystem says are free, so the filesystem is
    /// damaged, or the map is wrong.
    ClaimedFree {
        /// How many ranges of the device they are.
        ranges: u64,
        /// How many bytes they are.
        bytes: u64,
    },
    /// Records of an NTFS volume's `$MFT` are damaged.
    RecordsDamaged {
        /// How many.
        count: u64,
    },
    /// The place of directories is not known. The map has what was read while they were listed.
    DirectoriesUnplaced {
        /// How many.
        count: u64,
    },
    /// A directory was read elsewhere than the filesystem's structures say.
    DirectoryContradicted,
    /// Further warnings of missing objects were left out.
    MoreOmitted {
        /// How many.
        count: u64,
    },
    /// The warning comes from a text map or from version 1 of JSON Lines, which have only words. It
    /// is displayed as these words.
    Sentence {
        /// The words.
        text: String,
    },

    // Causes without anything missing.
    /// The warning comes from a note of a text map, which has only words. It is displayed as these
    /// words.
    Remark {
        /// The words.
        text: String,
    },
    /// A device is blank.
    Blank {
        /// Whether it is a whole disk.
        disk: bool,
    },
    /// A device that is mapped has another signature, too.
    SignatureBesides {
        /// The signature, as blkid(8) names it.
        signature: String,
        /// The label that it bears.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        label: Option<String>,
    },
    /// Two volume groups have one name. This volume's group has another one in the map.
    VolumeGroupRenamed {
        /// The name that the group has on the disks.
        group: String,
    },
    /// A swap area holds the memory of a suspended system.
    Suspended,
    /// A filesystem was mounted without its journal, which is on another device.
    JournalMissing,
    /// The copies of a mirrored device differ. Only the copy that was read is mapped.
    CopiesDiffer,
    /// The chunks of a btrfs are not known. Of mirrored data, only the copy that was read is
    /// mapped.
    ChunksUnknown,
    /// A journal was replayed when the filesystem was mounted.
    JournalReplayed,
    /// A volume belongs to a Windows that hibernates.
    Hibernated,
    /// An NTFS volume was not unmounted, or is marked as one to be checked.
    NotUnmounted,
    /// Files are encrypted, and their names are those that the kernel shows without the key.
    EncryptedNames {
        /// How many.
        count: u64,
    },
    /// Objects were not read exactly where the kernel reports them.
    NotExact {
        /// How many.
        count: u64,
    },
    /// Files were read where the appliance had written.
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
    /// The last program that used an image did not close it.
    ImageUnclean,
    /// A part of the disk could not be read when it was acquired.
    ImageUnread {
        /// How many sectors.
        sectors: u64,
    },
}

/// The reason why a device stays [locked](Cause::Locked).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockReason {
    /// No key was given for the device.
    NoKey,
    /// None of the given keys opens the device.
    WrongKey,
    /// Deriving its key takes more memory than there is.
    Memory,
    /// `--probe guestfsd` takes no keys.
    ProbeTakesNoKeys,
}

/// The operation that [failed](Cause::FileFailed).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileOperation {
    /// `openat(2)`
    Open,
    /// `statx(2)`
    Stat,
    /// `getdents64(2)`
    List,
    /// `pread(2)`
    Read,
    /// The FIEMAP or FIBMAP ioctl.
    Extents,
    /// `listxattr(2)` or `getxattr(2)`
    Attributes,
    /// The GETFSMAP ioctl, or its substitute for other filesystems.
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

    /// A warning about the guest as a whole.
    pub fn on_guest(cause: Cause) -> Self {
        Self { subject: Subject::Guest, cause }
    }

    /// A warning that has only words.
    pub fn sentence(text: impl Into<String>) -> Self {
        Self::on_guest(Cause::Sentence { text: text.into() })
    }

    /// The device of the subject: the device itself, or the device of the path.
    pub fn device(&self) -> Option<&[u8]> {
        match &self.subject {
            Subject::Device(device) | Subject::Path { device, .. } => Some(device),
            Subject::Image(_) | Subject::Guest => None,
        }
    }

    /// The words for a line of a text map, whose writer escapes them. Words that were read from a
    /// text map come back unchanged.
    pub(super) fn words(&self) -> Cow<'_, str> {
        match self {
            Self { subject: Subject::Guest, cause: Cause::Sentence { text } | Cause::Remark { text } } => {
                Cow::Borrowed(text)
            }
            _ => Cow::Owned(self.to_string()),
        }
    }

    /// Whether something is missing from the map.
    pub fn is_incomplete(&self) -> bool {
        self.cause.is_incomplete()
    }
}

impl Cause {
    /// Whether something that is on the disks is missing from the map. A run with such a cause ends
    /// with exit status 3.
    pub fn is_incomplete(&self) -> bool {
        match self {
            Self::DeviceFailed { .. }
            | Self::VolumeInactive { .. }
            | Self::VolumeGroupUnreadable
            | Self::OutsideDynamicVolumes
            | Self::ArrayMemberUnused
            | Self::FilesystemDeviceMissing
            | Self::SameUuid { .. }
            | Self::Locked { .. }
            | Self::KeyTooSlow { .. }
            | Self::UnknownContent
            | Self::SignatureUnused { .. }
            | Self::DiskTruncated { .. }
            | Self::MountFailed { .. }
            | Self::FilesystemTooNew { .. }
            | Self::Hung { .. }
            | Self::KernelCrashed { .. }
            | Self::WalkCutShort { .. }
            | Self::FileFailed { .. }
            | Self::DirectoryLoop
            | Self::DirectoryCorrupt { .. }
            | Self::DirectoryHoles
            | Self::CallFailed { .. }
            | Self::NameNotUtf8
            | Self::Unmappable { .. }
            | Self::EncryptedFilesUnplaced { .. }
            | Self::Unexplained { .. }
            | Self::ClaimedTwice { .. }
            | Self::ClaimedFree { .. }
            | Self::RecordsDamaged { .. }
            | Self::DirectoriesUnplaced { .. }
            | Self::DirectoryContradicted
            | Self::MoreOmitted { .. }
            | Self::ImageUnread { .. }
            // The words may say either.
            | Self::Sentence { .. } => true,
            Self::MembersMissing { lost, .. } => *lost,
            Self::Remark { .. }
            | Self::Blank { .. }
            | Self::SignatureBesides { .. }
            | Self::VolumeGroupRenamed { .. }
            | Self::Suspended
            | Self::JournalMissing
            | Self::CopiesDiffer
            | Self::ChunksUnknown
            | Self::JournalReplayed
            | Self::Hibernated
            | Self::NotUnmounted
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
                f.write_str("it is a physical volume of LVM, but no volume group that uses it can be read")
            }
            Self::OutsideDynamicVolumes => f.write_str(
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
            Self::SignatureUnused { signature, label } => {
                write!(f, "it holds {}, which nothing in the appliance reads", Signature(signature, label))
            }
            Self::SignatureBesides { signature, label } => write!(
                f,
                "it also has the signature of {}, which may be a remainder of earlier use",
                Signature(signature, label)
            ),
            Self::DiskTruncated { described, size } => write!(
                f,
                "its partition table describes a disk of {described} bytes, but the image has {size}; \
                 partitions past the end of the image are not mapped"
            ),
            Self::VolumeGroupRenamed { group } => write!(
                f,
                "its volume group is called {} on the disks, as another one is; here it has a name of its own",
                PrintableText(group)
            ),
            Self::Suspended => f.write_str(
                "it holds the memory of a suspended system, whose filesystems may be newer in that memory \
                 than on the disks",
            ),
            Self::JournalMissing => f.write_str(
                "its journal is on another device, which is missing; changes that only the journal holds are \
                 not mapped",
            ),
            Self::MountFailed { filesystem, error } => {
                write!(f, "cannot mount it as {}: {}", PrintableText(filesystem), PrintableText(error))
            }
            Self::FilesystemTooNew { filesystem, kernel, error } => write!(
                f,
                "cannot mount it as {}: it has features newer than this appliance's kernel ({}): {}",
                PrintableText(filesystem),
                PrintableText(kernel),
                PrintableText(error)
            ),
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
            Self::DirectoryCorrupt { error } => write!(
                f,
                "the kernel calls this directory corrupt, and some of its entries may be missing: {}",
                PrintableText(error)
            ),
            Self::DirectoryHoles => f.write_str(
                "this directory has holes, or blocks past its end, which its filesystem does not allow, and \
                 some of its entries may be missing",
            ),
            Self::NameNotUtf8 => f.write_str(
                "its name is not UTF-8, and --probe guestfsd cannot pass it on; --probe agent can",
            ),
            Self::EncryptedFilesUnplaced { count } => {
                write!(f, "{count} encrypted files cannot be located without their key")
            }
            Self::Unexplained { ranges, bytes } => write!(
                f,
                "{bytes} bytes in {ranges} ranges are in use, according to the filesystem, but belong to no \
                 file, directory or known metadata"
            ),
            Self::ClaimedTwice { ranges, bytes, example: [first, second] } => write!(
                f,
                "{bytes} bytes in {ranges} ranges belong to two objects that cannot share them, for example \
                 {} and {}; the filesystem is damaged, or the map is wrong there",
                PrintableText(first),
                PrintableText(second)
            ),
            Self::ClaimedFree { ranges, bytes } => write!(
                f,
                "{bytes} bytes in {ranges} ranges belong to files or directories, but are free according to \
                 the filesystem; it is damaged, or the map is wrong there"
            ),
            Self::RecordsDamaged { count } => write!(
                f,
                "{count} records of its $MFT are damaged; what only they describe is not mapped"
            ),
            Self::DirectoriesUnplaced { count } => write!(
                f,
                "the place of {count} directories is not known; the map has what was read while they were listed"
            ),
            Self::DirectoryContradicted => f.write_str(
                "this directory was read elsewhere than the filesystem's structures say; the map has both places",
            ),
            Self::MoreOmitted { count } => write!(f, "{count} more warnings were not kept"),
            Self::Sentence { text } | Self::Remark { text } => write!(f, "{}", PrintableText(text)),
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
            Self::Hibernated => f.write_str(
                "Windows hibernates, which it also does to start fast; what it has not written yet is in \
                 /hiberfil.sys, so the map may be older than the files that Windows knows",
            ),
            Self::NotUnmounted => f.write_str(
                "Windows did not unmount it, or marked it as one to be checked; the map shows it without the \
                 changes in its log",
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
            Self::ImageUnread { sectors } => write!(
                f,
                "{sectors} sectors could not be read when the disk was acquired; they are zeroes in the image"
            ),
        }
    }
}

/// A signature in words, and the label that it bears.
struct Signature<'a>(&'a str, &'a Option<String>);

impl fmt::Display for Signature<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Signatures whose names do not tell everyone what they are.
        const WORDS: [(&str, &str); 25] = [
            ("adaptec_raid_member", "a member of a RAID set of an Adaptec controller"),
            ("apfs", "an APFS container of macOS"),
            ("bcache", "a device of bcache"),
            ("bcachefs", "a device of bcachefs"),
            ("ceph_bluestore", "a device of Ceph"),
            ("cs_fvault2", "a FileVault volume of macOS"),
            ("ddf_raid_member", "a member of a DDF RAID set of a controller"),
            ("dos", "a partition table"),
            ("drbd", "a device of DRBD"),
            ("gpt", "a partition table"),
            ("isw_raid_member", "a member of an Intel Matrix RAID set"),
            ("jbd", "the journal of an ext4 on another device"),
            ("jmicron_raid_member", "a member of a RAID set of a JMicron controller"),
            ("linux_raid_member", "a member of an md array"),
            ("lsi_mega_raid_member", "a member of a RAID set of an LSI controller"),
            ("LVM2_member", "a physical volume of LVM"),
            ("nvidia_raid_member", "a member of a RAID set of an NVIDIA controller"),
            ("promise_fasttrack_raid_member", "a member of a RAID set of a Promise controller"),
            ("ReFS", "a ReFS filesystem of Windows"),
            ("silicon_medley_raid_member", "a member of a RAID set of a Silicon Image controller"),
            ("storage_spaces", "a disk of Windows Storage Spaces"),
            ("stratis", "a device of a Stratis pool"),
            ("via_raid_member", "a member of a RAID set of a VIA controller"),
            ("VMFS_volume_member", "a VMFS volume of VMware"),
            ("zfs_member", "a device of a ZFS pool"),
        ];
        let Self(name, label) = self;
        match WORDS.iter().find(|(known, _)| known == name) {
            Some((_, words)) => write!(f, "{words} ({name})")?,
            None => write!(f, "{}", PrintableText(name))?,
        }
        match label {
            Some(label) => write!(f, " with the label {}", PrintableText(label)),
            None => Ok(()),
        }
    }
}

impl fmt::Display for LockReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoKey => "it is encrypted, and no key was given (--key DEVICE:key:PASSPHRASE)",
            Self::WrongKey => "it is encrypted, and none of the given keys opens it",
            Self::Memory => "it is encrypted, and deriving its key takes more memory than there is",
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
