//! Records: messages from the agent to the host.
//!
//! The payloads of the frames form a stream of records. A record is the length of its encoding
//! (four bytes, little-endian), then the encoding. Names are raw bytes, as in the guest's
//! filesystem. The agent numbers objects from [`WalkPlan::first`](crate::WalkPlan::first) upwards.
//! A record has the number of the parent directory and the name, not the path, so that no limit on
//! paths is needed.

use crate::codec::{self, DecodeError, Message as _};
use crate::unlock::Unlocked;
use serde::{Deserialize, Serialize};

/// Added to the number of an object, this gives the number of its extended attributes.
pub const ATTRIBUTES: u32 = 1 << 30;

/// One message of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The first record: the agent is running.
    Hello {
        /// [`crate::VERSION`] of the agent.
        version: u16,
    },
    /// The filesystem that is about to be walked.
    Filesystem(Filesystem),
    /// An object has been found and opened. None of its data has been read.
    Object(Object),
    /// Extents of an object, from FIEMAP. The list is empty for an object without blocks and
    /// continues in further records if it is long. There is no such record if the filesystem has no
    /// FIEMAP.
    Extents {
        /// Number of the object.
        id: u32,
        /// In ascending order of `logical`.
        extents: Vec<Extent>,
    },
    /// Another name of an object that has been sent already (a hard link).
    Link {
        /// Number of the object.
        id: u32,
        /// Directory of this name.
        parent: u32,
        /// The name.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
    },
    /// A file has been found whose inode is in the host's [set](crate::InodeSet), or a directory
    /// with one of its [listings](crate::Listings). The agent looks at nothing but its name and
    /// parent.
    Known {
        /// Number of the file or directory.
        id: u32,
        /// Directory of this name.
        parent: u32,
        /// Inode number.
        inode: u64,
        /// The name.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
    },
    /// An unsure directory: for one of its entries, only the inode shows whether it is a directory.
    Unsure {
        /// Number of the directory.
        id: u32,
    },
    /// Subsequent reads belong to this object, or to none if the number is 0.
    Tag {
        /// Number of the object, or 0; with [`ATTRIBUTES`] added, its extended attributes.
        id: u32,
        /// Discard the earlier recording of the object.
        reset: bool,
    },
    /// These files are read next, one after the other. Each read ends before the next begins, so
    /// the host attributes the reads by their order. Ends with the next tag.
    Series {
        /// Numbers of the files: distinct, at most [`crate::bounds::FILES_PER_BATCH`].
        ids: Vec<u32>,
    },
    /// These directories are listed next. Their extents have been sent and are plain. Ends with the
    /// next tag.
    Listing {
        /// Numbers of the directories: distinct, at most [`crate::bounds::FILES_PER_BATCH`].
        ids: Vec<u32>,
    },
    /// A question before a batch: which of these files must be read? The host answers with a
    /// [`Reply`](crate::Reply). It knows where the other files lie.
    SelectFiles {
        /// Numbers of the files: distinct, at most [`crate::bounds::FILES_PER_BATCH`].
        ids: Vec<u32>,
    },
    /// A batch has been read. The host's [`Reply`](crate::Reply) names the files to read once more.
    /// When they have been read, the batch ends a second time.
    BatchEnd,
    /// A system call failed, so something could not be examined.
    ReadFailure(ReadFailure),
    /// The purpose of parts of the device, from the filesystem. A long list continues in further
    /// records.
    Space {
        /// The purpose.
        purpose: BlockPurpose,
        /// Start and length of each part, in bytes.
        parts: Vec<(u64, u64)>,
    },
    /// The last record: the agent has finished.
    Done,
    /// Subsequent reads are of blocks that files share, each under the tag of one of these files.
    Packed,
    /// This object has data in the shared block that was read last, for another object.
    Shared {
        /// Number of the object.
        id: u32,
    },
    /// The file that has just been found is encrypted by its filesystem and cannot be opened
    /// without its key.
    Encrypted {
        /// Number of the file.
        id: u32,
    },
    /// A chunk of the address space of the btrfs that is about to be walked.
    Chunk(Chunk),
    /// A device of that btrfs. The devices come before the chunks.
    Member(Member),
    /// The extents of this object, which have all been sent, are its place: the filesystem's own
    /// tables say so. What is read under its tag does not belong to it.
    Placed {
        /// Number of the object.
        id: u32,
    },
    /// The object has a reparse point of Windows.
    Reparse {
        /// Number of the object.
        id: u32,
        /// The tag (`IO_REPARSE_TAG_*`).
        tag: u32,
    },
    /// The extents of this directory are not the kernel's answer: the agent has computed them. While
    /// the directory is listed, the kernel may also read these parts of the device (start and
    /// length), which are not the directory's; a read anywhere else contradicts the computation. A
    /// long list continues in further records.
    Computed {
        /// Number of the directory.
        id: u32,
        /// The parts.
        beside: Vec<(u64, u64)>,
    },
    /// What the `$MFT` says of the NTFS volume that has been walked.
    Ntfs(Ntfs),
    /// How the attempt to unlock a device ended.
    Unlocked(Unlocked),
    /// Items of a tree of a btrfs, ascending by key: as `BTRFS_IOC_TREE_SEARCH_V2` returns them,
    /// each with a `struct btrfs_ioctl_search_header` before its bytes. A tree continues in further
    /// records.
    Items {
        /// Number of the tree.
        tree: u64,
        /// The items.
        #[serde(with = "serde_bytes")]
        items: Vec<u8>,
    },
    /// An agent that stays has ended its task.
    Ended(Ended),
    /// The kernel says of a file of the sample something else than the tables of inodes: none of
    /// what was taken from them can be relied on.
    Contradiction {
        /// Its directory.
        parent: u32,
        /// The name.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
    },
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// It is done. The output: messages of the kernel, or the time that it took.
    Done(String),
    /// The reason why it is not done.
    Failed(String),
}

impl Ended {
    /// Its text.
    pub fn text(&self) -> &str {
        let (Self::Done(text) | Self::Failed(text)) = self;
        text
    }
}

/// The state of an NTFS volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ntfs {
    /// Windows hibernates.
    pub is_hibernated: bool,
    /// It is marked as one to be checked, or its log is open.
    pub is_unclean: bool,
    /// Records that are damaged, as a whole or in part.
    pub damaged: u64,
}

/// A chunk of a btrfs: where a part of its address space lies on its devices (`struct btrfs_chunk`
/// of `linux/btrfs_tree.h`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// First byte in the address space.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// Bytes on one device before the next device follows.
    pub stripe_length: u64,
    /// `BTRFS_BLOCK_GROUP_*`: content and profile.
    pub profile: u64,
    /// Copies of each stripe in RAID 10.
    pub sub_stripes: u16,
    /// Number of the device and offset on it in bytes, for each stripe.
    pub stripes: Vec<(u64, u64)>,
}

/// A device of a btrfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Number of the device in the filesystem.
    pub id: u64,
    /// Major number. Major and minor number are 0 if the device is missing.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// The properties of a filesystem that `statfs(2)` gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filesystem {
    /// Magic number (`f_type`).
    pub magic: u64,
    /// Block size in bytes.
    pub block_size: u64,
    /// Size in blocks.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Number of inodes; 0 if the filesystem does not report it.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
}

/// Kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// What the filesystem keeps of a file or directory besides its data.
    Metadata,
}

/// The purpose of blocks of a filesystem's device (`FMR_OWN_*` of `linux/fsmap.h`, and those that
/// ext4 and XFS add).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum BlockPurpose {
    /// Free space.
    Free,
    /// In use for a purpose that the filesystem does not report, such as the data of files.
    Unknown,
    /// Metadata of no particular kind.
    Metadata,
    /// Superblocks and other metadata with a fixed place.
    Superblocks,
    /// The journal.
    Log,
    /// Block group descriptors.
    GroupDescriptors,
    /// Reserved for more block group descriptors.
    ReservedDescriptors,
    /// Bitmaps of blocks.
    BlockBitmaps,
    /// Bitmaps of inodes.
    InodeBitmaps,
    /// Inodes.
    Inodes,
    /// Trees of free space and of owners.
    FreeSpaceTrees,
    /// Trees of inodes.
    InodeTrees,
    /// Trees that count references.
    ReferenceCounts,
    /// Reserved for copies on write.
    Staging,
    /// Bad blocks.
    Defective,
    /// Extended attributes.
    Attributes,
    /// Trees of a file's extents.
    ExtentMaps,
    /// Blocks that are kept for the filesystem's own trees.
    FreeLists,
    /// Files of quotas.
    Quotas,
    /// Nodes: inodes, and blocks with numbers of blocks.
    Nodes,
    /// Numbers of files that no directory names.
    Orphans,
    /// Data of files, an extent to a part. Files may refer to only a part of an extent.
    DataExtents,
    /// Segments of a log-structured filesystem, in which superseded blocks stay until the segment
    /// is cleaned.
    LogSegments,
}

/// A directory or file of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Number of the object.
    pub id: u32,
    /// Number of its directory; the root has its own number here. 0: it is in no directory.
    pub parent: u32,
    /// Kind.
    pub kind: ObjectKind,
    /// Inode number.
    pub inode: u64,
    /// Size in bytes (`st_size`).
    pub size: u64,
    /// Allocated bytes (`st_blocks` × 512).
    pub allocated: u64,
    /// Link count.
    pub links: u32,
    /// File type and permissions (`st_mode`).
    pub mode: u32,
    /// User and group that it belongs to (`st_uid`, `st_gid`), if they are known.
    pub owner: Option<(u32, u32)>,
    /// Time of last modification of its data, nanoseconds since 1970.
    pub modified: i64,
    /// Time of last change of its inode, nanoseconds since 1970.
    pub changed: i64,
    /// Time at which it was made, nanoseconds since 1970 (`stx_btime` of `statx(2)`), if it is
    /// known. 0 if whatever made it has not set it.
    pub born: Option<i64>,
    /// Name in its directory; empty for the root. For an object in no directory, what follows the
    /// name of its inode: nothing, or the part of it that the object is.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
}

/// One extent of a file, `struct fiemap_extent` of `linux/fiemap.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Offset in the file, in bytes.
    pub logical: u64,
    /// Offset on the filesystem's device, in bytes.
    pub physical: u64,
    /// Length in bytes.
    pub length: u64,
    /// `FIEMAP_EXTENT_*`.
    pub flags: u32,
}

impl Extent {
    /// The last extent of the file.
    pub const LAST: u32 = 0x1;
    /// The place of the data is not known.
    pub const UNKNOWN: u32 = 0x2;
    /// Not allocated yet.
    pub const DELALLOC: u32 = 0x4;
    /// The data on disk is compressed or encrypted.
    pub const ENCODED: u32 = 0x8;
    /// The data on disk is encrypted.
    pub const ENCRYPTED: u32 = 0x80;
    /// Does not begin or end at a block boundary; set for inline data and tails.
    pub const NOT_ALIGNED: u32 = 0x100;
    /// The data is in the inode or in another block of metadata.
    pub const INLINE: u32 = 0x200;
    /// The data is in a block together with data of other files.
    pub const TAIL: u32 = 0x400;
    /// Allocated, never written: reads return zeroes and do not touch the disk.
    pub const UNWRITTEN: u32 = 0x800;

    /// Whether it is allocated at `physical` and was never written.
    pub fn is_unwritten(&self) -> bool {
        self.flags & Self::UNWRITTEN != 0 && Self { flags: self.flags & !Self::UNWRITTEN, ..*self }.is_plain()
    }

    /// Whether it is a plain extent: the bytes at `physical` are the bytes of the file, one for
    /// one.
    pub fn is_plain(&self) -> bool {
        let odd = Self::UNKNOWN
            | Self::DELALLOC
            | Self::ENCODED
            | Self::NOT_ALIGNED
            | Self::INLINE
            | Self::TAIL
            | Self::UNWRITTEN;
        self.flags & odd == 0
    }
}

/// The operation of the agent that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// `openat(2)`
    Open,
    /// `statx(2)`
    Stat,
    /// `getdents64(2)`
    List,
    /// `pread(2)`
    Read,
    /// The FIEMAP ioctl.
    Fiemap,
    /// Entering a directory that was visited before: the filesystem is damaged.
    Loop,
    /// `listxattr(2)`, `getxattr(2)`
    Attributes,
    /// The GETFSMAP ioctl.
    Fsmap,
}

/// A failed system call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadFailure {
    /// The operation.
    pub operation: Operation,
    /// `errno(3)`; 0 if there is none.
    pub errno: i32,
    /// Number of the directory; 0 for a failure that concerns a device.
    pub parent: u32,
    /// Name in that directory; empty for the directory itself. The path of the device if `parent`
    /// is 0.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Offset in bytes; 0 if none applies.
    pub offset: u64,
}

/// Size in bytes of the length before each record.
const PREFIX: usize = 4;

impl Record {
    /// Appends the length and the encoding of the record to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        // Most records fit, so that the vector grows once.
        out.reserve(PREFIX + 128);
        out.extend_from_slice(&[0; PREFIX]);
        codec::append(self, out);
        let length = (out.len() - start - PREFIX) as u32;
        out[start..start + PREFIX].copy_from_slice(&length.to_le_bytes());
    }

    /// Decodes the first record of `bytes`. Returns the record and its length in `bytes`, or `None`
    /// if the record is not complete yet.
    ///
    /// # Errors
    /// [`DecodeError`] if more bytes cannot make this a record.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, DecodeError> {
        let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*prefix);
        if length as usize > Self::MOST_BYTES {
            let (message, most) = (Self::NAME, Self::MOST_BYTES);
            return Err(DecodeError::TooLong { message, length: length.into(), most });
        }
        let Some(body) = rest.get(..length as usize) else {
            return Ok(None);
        };
        Ok(Some((codec::decode(body)?, PREFIX + body.len())))
    }
}

impl Operation {
    /// The operation in words that follow "cannot".
    pub fn verb(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Stat => "stat",
            Self::List => "list",
            Self::Read => "read",
            Self::Fiemap => "get the extents of",
            Self::Loop => "enter (visited before: the directories form a loop)",
            Self::Attributes => "read the extended attributes of",
            Self::Fsmap => "get the purpose of the blocks of",
        }
    }
}
