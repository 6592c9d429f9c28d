//! Why an image cannot be opened.

use super::ImageFormat;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use virt_bmap_archives::ova::OvaError;

/// Why an image cannot be opened. Each message names the file and, if there is one, the remedy.
/// File names are quoted and escaped; messages of qemu are bounded and escaped too.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file does not exist.
    #[error("{path:?}: no such file")]
    NotFound {
        /// The image, as it was named.
        path: PathBuf,
    },
    /// It is a directory.
    #[error(
        "{path:?} is a directory; name the image file in it, or map each image in it with `virt-bmap-rs fleet`"
    )]
    Directory {
        /// The image.
        path: PathBuf,
    },
    /// It is a pipe, a socket or a character device.
    #[error("{path:?} is a {kind}; a disk image must be a regular file or a block device")]
    NotAFile {
        /// The image.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// It has no bytes.
    #[error("{path:?} is empty and not a disk image")]
    Empty {
        /// The image, or a file that it refers to.
        path: PathBuf,
    },
    /// Permission is denied.
    #[error(
        "{path:?}: permission denied; make it, and the directories above it, readable for this user, \
         or run as a user who may read it"
    )]
    PermissionDenied {
        /// The image, or a file that it refers to.
        path: PathBuf,
    },
    /// It could not be opened or read.
    #[error("{path:?} cannot be read")]
    Io {
        /// The image, or a file that it refers to.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A file that the image refers to does not exist.
    #[error("{referrer:?} needs the {role} {path:?}, which is missing; put it back there")]
    Missing {
        /// The file that is missing.
        path: PathBuf,
        /// The file that names it.
        referrer: PathBuf,
        /// The role of the missing file.
        role: FileRole,
    },
    /// A segment of a disk that is not the first.
    #[error(
        "{path:?} is by its name a segment of a disk, but not the first; name {first:?}, or give it another name"
    )]
    NotFirstSegment {
        /// The segment.
        path: PathBuf,
        /// The first one, which may not exist.
        first: PathBuf,
    },
    /// A segment of a disk does not exist.
    #[error("{path:?} is missing: the disk has the segment {later:?} after it; put it back there")]
    NoSegment {
        /// The segment that is missing.
        path: PathBuf,
        /// The next one that is there.
        later: PathBuf,
    },
    /// A segment has not the size of the first one.
    #[error(
        "{path:?} has {size} bytes, and the first segment of the disk has {usual}: only the last one may be \
         smaller; use a complete copy of it"
    )]
    SegmentSize {
        /// The segment.
        path: PathBuf,
        /// Bytes that it has.
        size: u64,
        /// Bytes of the first segment.
        usual: u64,
    },
    /// A disk has too many segments.
    #[error("the disk at {path:?} has more than {limit} segments; join them with cat")]
    TooManySegments {
        /// The first segment.
        path: PathBuf,
        /// Most segments that are opened.
        limit: usize,
    },
    /// A program writes to the image.
    #[error(
        "{path:?} is in use: another program, most likely a running virtual machine, has locked it; \
         shut that down, or read the image all the same with --force-share (the map may then be torn)"
    )]
    Locked {
        /// The image, or a file that it refers to.
        path: PathBuf,
    },
    /// It cannot be written to.
    #[error("{path:?} cannot be written to: {reason}; let the writes stay in the private layer")]
    NotWritable {
        /// The image.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// The image is damaged.
    #[error("{path:?} is a damaged {format} image: {reason}; use a complete copy of it")]
    Corrupt {
        /// The image, or a file that it refers to.
        path: PathBuf,
        /// The format that it should have.
        format: ImageFormat,
        /// The damage, by this crate or by qemu.
        reason: String,
    },
    /// A VHDX has a log with changes that are not yet in the image.
    #[error(
        "{path:?} is a VHDX whose last user did not close it: its log has changes that are not in the image \
         yet; make a copy, have them replayed there with qemu-img check -r all COPY, and use the copy"
    )]
    LogNotReplayed {
        /// The image.
        path: PathBuf,
    },
    /// A file is shorter than its image states.
    #[error("{path:?} is truncated: it has {actual} bytes and needs {needed}; use a complete copy of it")]
    Truncated {
        /// The image, or a file that it refers to.
        path: PathBuf,
        /// Bytes that it must have at least.
        needed: u64,
        /// Bytes that it has.
        actual: u64,
    },
    /// Its contents are encrypted by qemu.
    #[error(
        "{path:?} is encrypted by qemu; give its passphrase with --key image:file:NAME or --key image:key:STRING"
    )]
    Encrypted {
        /// The image, or a file that it refers to.
        path: PathBuf,
    },
    /// The passphrase of an encrypted image is wrong.
    #[error("{path:?} is encrypted by qemu, and the passphrase of --key image:… does not fit")]
    WrongKey {
        /// The image, or a file that it refers to.
        path: PathBuf,
    },
    /// qemu does not read this kind of image.
    #[error("{path:?} is {kind}; convert it to another format first")]
    Unsupported {
        /// The image, or a file that it refers to.
        path: PathBuf,
        /// The kind.
        kind: &'static str,
    },
    /// It is no disk, or only a part of one, in a form that qemu does not know.
    #[error("{path:?} is {kind}; {remedy}")]
    Foreign {
        /// The image, or a file that it refers to.
        path: PathBuf,
        /// The kind.
        kind: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
    /// An image whose format was detected and not stated refers to something that must not be
    /// opened.
    #[error(
        "{referrer:?} names the {role} {reference:?}, which is {reason} and is not opened for an image whose \
         format was only found out; if you trust the image, state its format with --format {format}"
    )]
    Untrusted {
        /// The file with the reference: the image itself or one that it needs.
        referrer: PathBuf,
        /// The reference, as the file has it.
        reference: PathBuf,
        /// The role of the other file.
        role: FileRole,
        /// The reason.
        reason: &'static str,
        /// The detected format of the image itself.
        format: ImageFormat,
    },
    /// An image inside another file refers to a file.
    #[error(
        "{path:?} names the {role} {reference:?}, and an image inside another file may not refer to any; \
         extract it"
    )]
    NotAlone {
        /// The image.
        path: PathBuf,
        /// The reference, as the image has it.
        reference: PathBuf,
        /// The role of the other file.
        role: FileRole,
    },
    /// An EnCase image is damaged or incomplete.
    #[error(
        "{path:?} is an EnCase image that cannot be read: {reason}; use a complete copy of it, or export it \
         with ewfexport"
    )]
    Ewf {
        /// Its first segment.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A compressed image cannot be unpacked.
    #[error("{path:?} cannot be unpacked: {program}: {reason}; use a complete copy of it")]
    NotUnpacked {
        /// The program that unpacks it.
        program: &'static str,
        /// The image.
        path: PathBuf,
        /// The program's message.
        reason: String,
    },
    /// There is no room to unpack a compressed image.
    #[error(
        "{path:?} cannot be unpacked to {directory:?}; name another directory in the variable TMPDIR, or unpack \
         it there yourself"
    )]
    CannotUnpack {
        /// The image.
        path: PathBuf,
        /// Where it was to be unpacked.
        directory: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A compressed image has too many bytes.
    #[error(
        "{path:?} has more than {limit} bytes when it is unpacked; if you trust it, allow more with \
         --unpack-limit"
    )]
    UnpackLimit {
        /// The image.
        path: PathBuf,
        /// Bytes that it may have.
        limit: u64,
    },
    /// The user did not want to wait until it was unpacked.
    #[error("{path:?} was not unpacked: interrupted")]
    Interrupted {
        /// The image.
        path: PathBuf,
    },
    /// An archive is not used as an appliance.
    #[error("{path:?} is a tar archive, such as an OVA, but {reason}; extract the disks, and map these")]
    Ova {
        /// The archive.
        path: PathBuf,
        /// Why not.
        reason: OvaError,
    },
    /// An appliance has several disks, and one is wanted.
    #[error("{path:?} has {count} disks; name one of them: {first:?}, …")]
    SeveralDisks {
        /// The appliance.
        path: PathBuf,
        /// How many disks it has.
        count: usize,
        /// The name of the first one.
        first: PathBuf,
    },
    /// An appliance has several virtual machines, whose disks are not those of one guest.
    #[error("{path:?} has {count} virtual machines; name the disks of one of them: {first:?}, …")]
    SeveralGuests {
        /// The appliance.
        path: PathBuf,
        /// How many machines it has.
        count: usize,
        /// The name of the first disk.
        first: PathBuf,
    },
    /// The name of an image promises a raw image, and its contents are those of an image that
    /// refers to other files.
    #[error(
        "{path:?} is raw by its name but its content is {format} and names the {role} {reference:?}, which a \
         guest can write to its own raw disk; state which it is, with --format raw or --format {format}"
    )]
    RawByName {
        /// The image.
        path: PathBuf,
        /// The format of its content.
        format: ImageFormat,
        /// What it refers to.
        reference: PathBuf,
        /// What that is to the image.
        role: FileRole,
    },
    /// The name of an image promises a format, and its contents have no known format.
    #[error(
        "{path:?} is {expected} by its name but not by its content, so it may be damaged; if it is a raw \
         image, state so with --format raw"
    )]
    NotAsNamed {
        /// The image.
        path: PathBuf,
        /// The format that its name promises.
        expected: ImageFormat,
    },
    /// The chain of backing files contains a file twice.
    #[error("{path:?} is a backing file of itself")]
    Loop {
        /// The file that comes twice.
        path: PathBuf,
    },
    /// The chain of backing files is too long.
    #[error(
        "the chain of backing files at {path:?} has more than {limit} links; flatten it with qemu-img convert"
    )]
    TooDeep {
        /// The image at the top of the chain.
        path: PathBuf,
        /// Most links that are followed.
        limit: usize,
    },
    /// An NBD server is to be reached by TLS, and no keys are known.
    #[error(
        "{uri}: an encrypted connection needs keys; name the certificates with --tls-certificates DIRECTORY, \
         or the pre-shared keys with --tls-psk FILE"
    )]
    NoKeys {
        /// The URI, without its user.
        uri: String,
    },
    /// Certificates and pre-shared keys were named.
    #[error("{uri}: certificates and pre-shared keys were named; name one of them")]
    TwoKeys {
        /// The URI, without its user.
        uri: String,
    },
    /// One of qemu's programs is not installed.
    #[error(
        "{program} cannot be run, which is needed to read {path:?}; install it (on Debian: apt install {})",
        package(program)
    )]
    NoProgram {
        /// The program.
        program: &'static str,
        /// The image that it was wanted for.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// One of qemu's programs refuses the image.
    #[error("{program} cannot open {path:?}: {reason}")]
    Refused {
        /// The program.
        program: &'static str,
        /// The image.
        path: PathBuf,
        /// Its message.
        reason: String,
    },
    /// One of qemu's programs did not answer in time.
    #[error("{program} did not finish with {path:?} within {} seconds", limit.as_secs())]
    TimedOut {
        /// The program.
        program: &'static str,
        /// The image.
        path: PathBuf,
        /// The limit.
        limit: Duration,
    },
    /// A child or its socket could not be set up.
    #[error("cannot set up {program} for {path:?}")]
    SetUp {
        /// The program.
        program: &'static str,
        /// The image.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// The role of a file for the image that refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileRole {
    /// Holds the data that the image itself does not: a qcow2 backing file, the parent of a VMDK
    /// snapshot.
    Backing,
    /// Holds a part of the disk: an extent of a VMDK.
    Extent,
    /// Holds all data of a qcow2 image, which itself has only metadata.
    DataFile,
}

impl std::fmt::Display for FileRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Backing => "backing file",
            Self::Extent => "extent",
            Self::DataFile => "data file",
        })
    }
}

impl OpenError {
    /// Classifies an error of opening or reading `path`.
    pub(super) fn from_io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            // A path through a file does not exist either.
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::NotFound { path },
            io::ErrorKind::PermissionDenied => Self::PermissionDenied { path },
            _ => Self::Io { path, source },
        }
    }
}

/// The Debian package of a program.
fn package(program: &str) -> &str {
    match program {
        "nbdinfo" => "libnbd-bin",
        "xz" => "xz-utils",
        "gzip" | "zstd" | "bzip2" => program,
        _ => "qemu-utils",
    }
}
