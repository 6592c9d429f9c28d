//! Records: what the agent tells the host.
//!
//! In the stream that the frames' payloads form, a record is four bytes of length (little-endian) and so many bytes of
//! its encoding. Names are raw bytes, as the guest's filesystem has them. An object is known by its number, counted up
//! by the agent from the first number that it was given; its path is its parent's path and its name, so that no limit on
//! paths is needed.

use crate::codec::{self, DecodeError, Message as _};
use serde::{Deserialize, Serialize};

/// Added to an object's number, the number of its extended attributes.
pub const ATTRIBUTES: u32 = 1 << 30;

/// One thing that the agent says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The agent is there.
    Hello {
        /// [`crate::VERSION`] of the agent.
        version: u16,
    },
    /// The filesystem that is about to be walked, as `statfs(2)` has it.
    Filesystem(Filesystem),
    /// An object has been found: it exists, it has been opened, nothing of its data has been read.
    Object(Object),
    /// Extents of an object, as FIEMAP gives them: none for an object without blocks, more than one such
    /// record where there are many, and no such record where the filesystem has no FIEMAP.
    Extents {
        /// Number of the object.
        id: u32,
        /// In ascending order of `logical`.
        extents: Vec<Extent>,
    },
    /// Another name of an object that is known already (a hard link).
    Link {
        /// Number of the object.
        id: u32,
        /// Directory of this name.
        parent: u32,
        /// The name.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
    },
    /// A file has been found under an inode of the [set](crate::InodeSet) that the host has given, or a directory
    /// of its [listings](crate::Listings): nothing of it but its name and place is looked at.
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
    /// The blocks of this directory do not tell what is in it: of a name in there, its inode decided whether it is a file or
    /// directory.
    Unsure {
        /// Number of the directory.
        id: u32,
    },
    /// What is read from now on belongs to this object; 0: to none.
    Tag {
        /// Number of the object, or 0; with [`ATTRIBUTES`] added, its extended attributes.
        id: u32,
        /// Forget what was recorded for the object before.
        reset: bool,
    },
    /// These files are read from now on, one after the other: each read is over before the next begins, so
    /// their order tells whose they are. Ends with the next tag.
    Series {
        /// Numbers of the files, at most [`crate::bounds::FILES_PER_BATCH`].
        ids: Vec<u32>,
    },
    /// These directories are listed from now on; of each the extents have been told, and are plain. Ends with the
    /// next tag.
    Listing {
        /// Numbers of the directories, at most [`crate::bounds::FILES_PER_BATCH`].
        ids: Vec<u32>,
    },
    /// Before a batch is read: which of these files are to be read? The host's [`Reply`](crate::Reply) names them; of the
    /// others it knows where they lie.
    SelectFiles {
        /// Numbers of the files, at most [`crate::bounds::FILES_PER_BATCH`].
        ids: Vec<u32>,
    },
    /// A batch has been read; the host may be asked for its [`Reply`](crate::Reply). After what that asks for has
    /// been read, the batch ends once more.
    BatchEnd,
    /// Something could not be examined.
    ReadFailure(ReadFailure),
    /// What some pieces of the filesystem's device are for, as the filesystem says; several such records
    /// where there are many.
    Space {
        /// What for.
        owner: Owner,
        /// Start and length of each, in bytes.
        pieces: Vec<(u64, u64)>,
    },
    /// The agent has come to its end.
    Done,
    /// What is read from now on are blocks that files share, each under the tag of one of them.
    Packed,
    /// Such a part of this object lies in what was read last, for another.
    Shared {
        /// Number of the object.
        id: u32,
    },
    /// This file, which has just been found, is encrypted by its filesystem, and cannot be opened without its key.
    Encrypted {
        /// Number of the file.
        id: u32,
    },
    /// A chunk of the address space of a btrfs that is about to be walked.
    Chunk(Chunk),
    /// One of the devices of that btrfs. They come before the chunks.
    Member(Member),
}

/// A chunk of a btrfs: where a part of its address space lies on its devices (`struct btrfs_chunk` of
/// `linux/btrfs_tree.h`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Where it begins, in bytes.
    pub start: u64,
    /// How many bytes it has.
    pub length: u64,
    /// Bytes that lie on one device before it is the next one's turn.
    pub stripe_length: u64,
    /// `BTRFS_BLOCK_GROUP_*`: what it holds, and in which profile.
    pub profile: u64,
    /// Copies of each stripe in RAID 10.
    pub sub_stripes: u16,
    /// Number of the device, and where on it, in bytes.
    pub stripes: Vec<(u64, u64)>,
}

/// A device of a btrfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its number in the filesystem.
    pub id: u64,
    /// Major number; with the minor number 0 if the device is missing.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// What `statfs(2)` says of a filesystem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filesystem {
    /// Its magic number (`f_type`).
    pub magic: u64,
    /// Block size in bytes.
    pub block_size: u64,
    /// Size in blocks.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Inodes in all; 0 where the filesystem does not say.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
}

/// What kind of object was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
}

/// What a part of a filesystem's device is for (`FMR_OWN_*` of `linux/fsmap.h`, and what ext4 and XFS add).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Owner {
    /// Nothing: it is free.
    Free,
    /// Something that the filesystem does not tell, such as the data of a file.
    Unknown,
    /// Metadata of no particular kind.
    Metadata,
    /// Superblocks, and what else has its fixed place.
    Superblocks,
    /// The journal.
    Log,
    /// Block group descriptors.
    GroupDescriptors,
    /// Room for more block group descriptors.
    ReservedDescriptors,
    /// Bitmaps of blocks.
    BlockBitmaps,
    /// Bitmaps of inodes.
    InodeBitmaps,
    /// Inodes.
    Inodes,
    /// Trees that tell the free space and the owners of the rest.
    FreeSpaceTrees,
    /// Trees of inodes.
    InodeTrees,
    /// Trees that count references.
    ReferenceCounts,
    /// Room that is kept for copies on write.
    Staging,
    /// Bad blocks.
    Defective,
    /// Extended attributes.
    Attributes,
    /// Trees of a file's extents.
    ExtentMaps,
}

/// A directory or file of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Its number.
    pub id: u32,
    /// Number of the directory that it lies in; its own number for the root.
    pub parent: u32,
    /// What it is.
    pub kind: ObjectKind,
    /// Inode number.
    pub inode: u64,
    /// Size in bytes (`st_size`).
    pub size: u64,
    /// Bytes allocated to it (`st_blocks`, which counts 512 bytes).
    pub allocated: u64,
    /// Link count.
    pub links: u32,
    /// File type and permissions (`st_mode`).
    pub mode: u32,
    /// Time of last modification of its data, nanoseconds since 1970.
    pub modified: i64,
    /// Time of last change of its inode, nanoseconds since 1970.
    pub changed: i64,
    /// Its name; empty for the root.
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
    /// Where the data lies is not known.
    pub const UNKNOWN: u32 = 0x2;
    /// Not allocated yet.
    pub const DELALLOC: u32 = 0x4;
    /// The data on disk is compressed or encrypted.
    pub const ENCODED: u32 = 0x8;
    /// Does not begin or end on a block; see inline and tail.
    pub const NOT_ALIGNED: u32 = 0x100;
    /// The data lies in the inode or another block of metadata.
    pub const INLINE: u32 = 0x200;
    /// The data shares its block with that of other files.
    pub const TAIL: u32 = 0x400;
    /// Allocated, but not written: it reads as zeroes without a look at the disk.
    pub const UNWRITTEN: u32 = 0x800;

    /// Whether it is allocated at `physical`, but holds nothing yet.
    pub fn is_unwritten(&self) -> bool {
        self.flags & Self::UNWRITTEN != 0 && Self { flags: self.flags & !Self::UNWRITTEN, ..*self }.is_plain()
    }

    /// Whether the kernel promises that the file's bytes lie at `physical`, one for one.
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

/// What the agent was doing when something could not be examined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// `openat(2)`
    Open,
    /// `fstat(2)`
    Stat,
    /// `getdents64(2)`
    List,
    /// `pread(2)`
    Read,
    /// The FIEMAP ioctl.
    Fiemap,
    /// Going down into a directory that was visited before: the filesystem is damaged.
    Loop,
    /// `listxattr(2)`, `getxattr(2)`
    Attributes,
    /// The GETFSMAP ioctl.
    Fsmap,
}

/// Something that could not be examined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadFailure {
    /// What was being done.
    pub operation: Operation,
    /// `errno(3)`, 0 if none applies.
    pub errno: i32,
    /// The directory in which it happened; 0 where it has nothing to do with a directory.
    pub parent: u32,
    /// Name in that directory; empty for the directory itself. A device's name where `parent` is 0.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Offset in bytes, where one applies.
    pub offset: u64,
}

/// Bytes before the encoding of a record: its length.
const PREFIX: usize = 4;

impl Record {
    /// Appends the record's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        // Most records are shorter, and so grow the vector once.
        out.reserve(PREFIX + 128);
        out.extend_from_slice(&[0; PREFIX]);
        codec::append(self, out);
        let length = (out.len() - start - PREFIX) as u32;
        out[start..start + PREFIX].copy_from_slice(&length.to_le_bytes());
    }

    /// Takes the first record off `bytes`: the record and how many bytes it took, or `None` when not
    /// all of it is there yet.
    ///
    /// # Errors
    /// [`DecodeError`] for bytes that can never become a record.
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
    /// What was being done, to follow "cannot".
    pub fn verb(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Stat => "stat",
            Self::List => "list",
            Self::Read => "read",
            Self::Fiemap => "get the extents of",
            Self::Loop => "enter (visited before: the directories form a loop)",
            Self::Attributes => "read the extended attributes of",
            Self::Fsmap => "ask what the blocks are for in",
        }
    }
}
