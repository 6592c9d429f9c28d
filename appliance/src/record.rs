//! Records: what the agent tells the host.
//!
//! On the wire a record is one byte of kind, four bytes of length, and so many bytes of body. Names are
//! raw bytes, as the guest's file system has them. An object is known by its number, counted up by the
//! agent from the first number that it was given; its path is its parent's path and its name, so that no
//! limit on paths is needed.

/// Longest body of a record. The agent splits lists of extents to stay below it.
pub const MAX_BODY: usize = 1 << 20;

/// How many extents the agent puts into one record.
pub const EXTENTS_PER_RECORD: usize = 1024;

/// Added to an object's number, the number of its extended attributes.
pub const ATTRIBUTES: u32 = 1 << 30;

/// One thing that the agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The agent is there.
    Hello {
        /// [`crate::VERSION`] of the agent.
        version: u16,
    },
    /// The file system that is about to be walked, as `statfs(2)` has it.
    Filesystem(Filesystem),
    /// An object has been found: it exists, it has been opened, nothing of its data has been read.
    Object(Object),
    /// Extents of an object, as FIEMAP gives them: none for an object without blocks, more than one such
    /// record where there are many, and no such record where the file system has no FIEMAP.
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
        name: Vec<u8>,
    },
    /// A file has been found under an inode of the [set](crate::inodes::InodeSet) that the host has given, or a directory
    /// of its [listings](crate::listings::Listings): nothing of it but its name and place is looked at.
    Known {
        /// Number of the file or directory.
        id: u32,
        /// Directory of this name.
        parent: u32,
        /// Inode number.
        inode: u64,
        /// The name.
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
        afresh: bool,
    },
    /// These files are read from now on, one after the other: each read is over before the next begins, so
    /// their order tells whose they are. Ends with the next tag.
    Series {
        /// Numbers of the files, at most [`crate::Verdict::CAPACITY`].
        ids: Vec<u32>,
    },
    /// These directories are listed from now on; of each the extents have been told, and are plain. Ends with the
    /// next tag.
    Listing {
        /// Numbers of the directories, at most [`crate::Verdict::CAPACITY`].
        ids: Vec<u32>,
    },
    /// Before a batch is read: which of these files are to be read? The host's [`crate::Verdict`] names them; of the
    /// others it knows where they lie.
    Choice {
        /// Numbers of the files, at most [`crate::Verdict::CAPACITY`].
        ids: Vec<u32>,
    },
    /// A batch has been read; the host may be asked for its [`crate::Verdict`]. After what that asks for has
    /// been read, the batch ends once more.
    BatchEnd,
    /// Something could not be examined.
    Trouble(Trouble),
    /// What some pieces of the file system's device are for, as the file system says; several such records
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
    /// This file, which has just been found, is encrypted by its file system, and cannot be opened without its key.
    Sealed {
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
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number in the file system.
    pub id: u64,
    /// Major number; with the minor number 0 if the device is missing.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// What `statfs(2)` says of a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filesystem {
    /// Its magic number (`f_type`).
    pub magic: u64,
    /// Block size in bytes.
    pub block_size: u64,
    /// Size in blocks.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Inodes in all; 0 where the file system does not say.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
}

/// What kind of object was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ObjectKind {
    /// A directory.
    Directory = 1,
    /// A regular file.
    File = 2,
    /// A symbolic link.
    Symlink = 3,
}

/// What a part of a file system's device is for (`FMR_OWN_*` of `linux/fsmap.h`, and what ext4 and XFS add).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Owner {
    /// Nothing: it is free.
    Free = 1,
    /// Something that the file system does not tell, such as the data of a file.
    Unknown = 2,
    /// Metadata of no particular kind.
    Metadata = 3,
    /// Superblocks, and what else has its fixed place.
    Superblocks = 4,
    /// The journal.
    Log = 5,
    /// Block group descriptors.
    GroupDescriptors = 6,
    /// Room for more block group descriptors.
    ReservedDescriptors = 7,
    /// Bitmaps of blocks.
    BlockBitmaps = 8,
    /// Bitmaps of inodes.
    InodeBitmaps = 9,
    /// Inodes.
    Inodes = 10,
    /// Trees that tell the free space and the owners of the rest.
    FreeSpaceTrees = 11,
    /// Trees of inodes.
    InodeTrees = 12,
    /// Trees that count references.
    ReferenceCounts = 13,
    /// Room that is kept for copies on write.
    Staging = 14,
    /// Bad blocks.
    Defective = 15,
    /// Extended attributes.
    Attributes = 16,
    /// Trees of a file's extents.
    ExtentMaps = 17,
}

impl Owner {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Free,
        Self::Unknown,
        Self::Metadata,
        Self::Superblocks,
        Self::Log,
        Self::GroupDescriptors,
        Self::ReservedDescriptors,
        Self::BlockBitmaps,
        Self::InodeBitmaps,
        Self::Inodes,
        Self::FreeSpaceTrees,
        Self::InodeTrees,
        Self::ReferenceCounts,
        Self::Staging,
        Self::Defective,
        Self::Attributes,
        Self::ExtentMaps,
    ];

    fn from_u8(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|owner| *owner as u8 == byte)
    }
}

/// A directory or file of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    pub name: Vec<u8>,
}

/// One extent of a file, `struct fiemap_extent` of `linux/fiemap.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the file, in bytes.
    pub logical: u64,
    /// Offset on the file system's device, in bytes.
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

/// What the agent was doing when it met with trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Operation {
    /// `openat(2)`
    Open = 1,
    /// `fstat(2)`
    Stat = 2,
    /// `getdents64(2)`
    List = 3,
    /// `pread(2)`
    Read = 4,
    /// The FIEMAP ioctl.
    Fiemap = 5,
    /// Going down into a directory that was visited before: the file system is damaged.
    Loop = 6,
    /// `listxattr(2)`, `getxattr(2)`
    Attributes = 7,
    /// The GETFSMAP ioctl.
    Fsmap = 8,
}

/// Something that could not be examined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What was being done.
    pub operation: Operation,
    /// `errno(3)`, 0 if none applies.
    pub errno: i32,
    /// The directory in which it happened; 0 where it has nothing to do with a directory.
    pub parent: u32,
    /// Name in that directory; empty for the directory itself. A device's name where `parent` is 0.
    pub name: Vec<u8>,
    /// Offset in bytes, where one applies.
    pub offset: u64,
}

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// A kind that this version does not know.
    Kind(u8),
    /// A body longer than [`MAX_BODY`].
    TooLong(u32),
    /// A body that is not what its kind asks for.
    Body(u8),
}

impl std::fmt::Display for RecordError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "record of unknown kind {kind}"),
            Self::TooLong(length) => write!(f, "record of {length} bytes, longer than {MAX_BODY}"),
            Self::Body(kind) => write!(f, "malformed record of kind {kind}"),
        }
    }
}

impl std::error::Error for RecordError {}

const PREFIX: usize = 5;

impl Record {
    fn kind(&self) -> u8 {
        match self {
            Self::Hello { .. } => 1,
            Self::Filesystem(_) => 2,
            Self::Object(_) => 3,
            Self::Extents { .. } => 4,
            Self::Link { .. } => 5,
            Self::Tag { .. } => 6,
            Self::BatchEnd => 7,
            Self::Trouble(_) => 8,
            Self::Done => 9,
            Self::Series { .. } => 10,
            Self::Space { .. } => 11,
            Self::Listing { .. } => 12,
            Self::Choice { .. } => 13,
            Self::Sealed { .. } => 14,
            Self::Known { .. } => 15,
            Self::Unsure { .. } => 16,
            Self::Packed => 20,
            Self::Shared { .. } => 21,
            Self::Chunk(_) => 22,
            Self::Member(_) => 23,
        }
    }

    /// Appends the record's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.kind());
        let length_at = out.len();
        out.extend([0; 4]);
        match self {
            Self::Hello { version } => out.extend(version.to_le_bytes()),
            Self::Filesystem(fs) => {
                for word in [fs.magic, fs.block_size, fs.blocks, fs.blocks_free, fs.files, fs.files_free] {
                    out.extend(word.to_le_bytes());
                }
            }
            Self::Object(o) => {
                out.extend(o.id.to_le_bytes());
                out.extend(o.parent.to_le_bytes());
                out.push(o.kind as u8);
                out.extend(o.inode.to_le_bytes());
                out.extend(o.size.to_le_bytes());
                out.extend(o.allocated.to_le_bytes());
                out.extend(o.links.to_le_bytes());
                out.extend(o.mode.to_le_bytes());
                out.extend(o.modified.to_le_bytes());
                out.extend(o.changed.to_le_bytes());
                out.extend(&o.name);
            }
            Self::Extents { id, extents } => {
                out.extend(id.to_le_bytes());
                for e in extents {
                    out.extend(e.logical.to_le_bytes());
                    out.extend(e.physical.to_le_bytes());
                    out.extend(e.length.to_le_bytes());
                    out.extend(e.flags.to_le_bytes());
                }
            }
            Self::Link { id, parent, name } => {
                out.extend(id.to_le_bytes());
                out.extend(parent.to_le_bytes());
                out.extend(name);
            }
            Self::Known { id, parent, inode, name } => {
                out.extend(id.to_le_bytes());
                out.extend(parent.to_le_bytes());
                out.extend(inode.to_le_bytes());
                out.extend(name);
            }
            Self::Tag { id, afresh } => {
                out.extend(id.to_le_bytes());
                out.push(u8::from(*afresh));
            }
            Self::Series { ids } | Self::Listing { ids } | Self::Choice { ids } => {
                for id in ids {
                    out.extend(id.to_le_bytes());
                }
            }
            Self::BatchEnd | Self::Done | Self::Packed => {}
            Self::Space { owner, pieces } => {
                out.push(*owner as u8);
                for (start, length) in pieces {
                    out.extend(start.to_le_bytes());
                    out.extend(length.to_le_bytes());
                }
            }
            Self::Shared { id } | Self::Sealed { id } | Self::Unsure { id } => out.extend(id.to_le_bytes()),
            Self::Chunk(chunk) => {
                for word in [chunk.start, chunk.length, chunk.stripe_length, chunk.profile] {
                    out.extend(word.to_le_bytes());
                }
                out.extend(chunk.sub_stripes.to_le_bytes());
                for (device, offset) in &chunk.stripes {
                    out.extend(device.to_le_bytes());
                    out.extend(offset.to_le_bytes());
                }
            }
            Self::Member(member) => {
                out.extend(member.id.to_le_bytes());
                out.extend(member.major.to_le_bytes());
                out.extend(member.minor.to_le_bytes());
            }
            Self::Trouble(t) => {
                out.push(t.operation as u8);
                out.extend(t.errno.to_le_bytes());
                out.extend(t.parent.to_le_bytes());
                out.extend(t.offset.to_le_bytes());
                out.extend(&t.name);
            }
        }
        let length = (out.len() - length_at - 4) as u32;
        out[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// Takes the first record off `bytes`: the record and how many bytes it took, or `None` when not
    /// all of it is there yet.
    ///
    /// # Errors
    /// [`RecordError`] for bytes that can never become a record.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, RecordError> {
        let Some((&[kind, a, b, c, d], rest)) = bytes.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes([a, b, c, d]);
        if length as usize > MAX_BODY {
            return Err(RecordError::TooLong(length));
        }
        let Some(body) = rest.get(..length as usize) else {
            return Ok(None);
        };
        let record = Self::decode_body(kind, Body(body))?.ok_or(RecordError::Body(kind))?;
        Ok(Some((record, PREFIX + body.len())))
    }

    /// `Ok(None)`: the body does not fit the kind.
    fn decode_body(kind: u8, mut body: Body<'_>) -> Result<Option<Self>, RecordError> {
        let mut read = || -> Option<Self> {
            let record = match kind {
                1 => Self::Hello { version: u16::from_le_bytes(body.take()?) },
                2 => Self::Filesystem(Filesystem {
                    magic: body.u64()?,
                    block_size: body.u64()?,
                    blocks: body.u64()?,
                    blocks_free: body.u64()?,
                    files: body.u64()?,
                    files_free: body.u64()?,
                }),
                3 => Self::Object(Object {
                    id: body.u32()?,
                    parent: body.u32()?,
                    kind: match body.u8()? {
                        1 => ObjectKind::Directory,
                        2 => ObjectKind::File,
                        3 => ObjectKind::Symlink,
                        _ => return None,
                    },
                    inode: body.u64()?,
                    size: body.u64()?,
                    allocated: body.u64()?,
                    links: body.u32()?,
                    mode: body.u32()?,
                    modified: i64::from_le_bytes(body.take()?),
                    changed: i64::from_le_bytes(body.take()?),
                    name: body.rest(),
                }),
                4 => {
                    let id = body.u32()?;
                    let mut extents = Vec::with_capacity(body.0.len() / 28);
                    while !body.0.is_empty() {
                        extents.push(Extent {
                            logical: body.u64()?,
                            physical: body.u64()?,
                            length: body.u64()?,
                            flags: body.u32()?,
                        });
                    }
                    Self::Extents { id, extents }
                }
                5 => Self::Link { id: body.u32()?, parent: body.u32()?, name: body.rest() },
                6 => Self::Tag { id: body.u32()?, afresh: body.bool()? },
                7 => Self::BatchEnd,
                8 => Self::Trouble(Trouble {
                    operation: Operation::from_u8(body.u8()?)?,
                    errno: i32::from_le_bytes(body.take()?),
                    parent: body.u32()?,
                    offset: body.u64()?,
                    name: body.rest(),
                }),
                9 => Self::Done,
                10 | 12 | 13 => {
                    let mut ids = Vec::with_capacity(body.0.len() / 4);
                    while !body.0.is_empty() {
                        ids.push(body.u32()?);
                    }
                    match kind {
                        10 => Self::Series { ids },
                        12 => Self::Listing { ids },
                        _ => Self::Choice { ids },
                    }
                }
                11 => {
                    let owner = Owner::from_u8(body.u8()?)?;
                    let mut pieces = Vec::with_capacity(body.0.len() / 16);
                    while !body.0.is_empty() {
                        pieces.push((body.u64()?, body.u64()?));
                    }
                    Self::Space { owner, pieces }
                }
                14 => Self::Sealed { id: body.u32()? },
                15 => Self::Known {
                    id: body.u32()?,
                    parent: body.u32()?,
                    inode: body.u64()?,
                    name: body.rest(),
                },
                16 => Self::Unsure { id: body.u32()? },
                20 => Self::Packed,
                21 => Self::Shared { id: body.u32()? },
                22 => Self::Chunk(Chunk {
                    start: body.u64()?,
                    length: body.u64()?,
                    stripe_length: body.u64()?,
                    profile: body.u64()?,
                    sub_stripes: u16::from_le_bytes(body.take()?),
                    stripes: {
                        let mut stripes = Vec::with_capacity(body.0.len() / 16);
                        while !body.0.is_empty() {
                            stripes.push((body.u64()?, body.u64()?));
                        }
                        stripes
                    },
                }),
                23 => Self::Member(Member { id: body.u64()?, major: body.u32()?, minor: body.u32()? }),
                _ => return None,
            };
            body.0.is_empty().then_some(record)
        };
        if !matches!(kind, 1..=16 | 20..=23) {
            return Err(RecordError::Kind(kind));
        }
        Ok(read())
    }
}

impl Operation {
    fn from_u8(byte: u8) -> Option<Self> {
        [
            Self::Open,
            Self::Stat,
            Self::List,
            Self::Read,
            Self::Fiemap,
            Self::Loop,
            Self::Attributes,
            Self::Fsmap,
        ]
        .into_iter()
        .find(|operation| *operation as u8 == byte)
    }

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

/// What is left of a record's body.
pub(crate) struct Body<'a>(pub(crate) &'a [u8]);

impl Body<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }
    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[b]| b)
    }
    pub(crate) fn bool(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
    fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_of_each() -> Vec<Record> {
        vec![
            Record::Hello { version: 1 },
            Record::Filesystem(Filesystem { magic: 0xef53, block_size: 4096, ..Filesystem::default() }),
            Record::Object(Object {
                id: 5,
                parent: 4,
                kind: ObjectKind::File,
                inode: u64::MAX,
                size: 1,
                allocated: 4096,
                links: 2,
                mode: 0o100_644,
                modified: -1,
                changed: i64::MAX,
                name: b"a\n\xff".to_vec(),
            }),
            Record::Extents {
                id: 5,
                extents: vec![Extent { logical: 0, physical: 1 << 40, length: 4096, flags: Extent::LAST }],
            },
            Record::Link { id: 5, parent: 4, name: b"b".to_vec() },
            Record::Known { id: 6, parent: 4, inode: 1 << 40, name: b"d".to_vec() },
            Record::Tag { id: 5, afresh: true },
            Record::Series { ids: vec![5, 7] },
            Record::Listing { ids: vec![2, 3] },
            Record::Choice { ids: vec![5] },
            Record::BatchEnd,
            Record::Trouble(Trouble {
                operation: Operation::Read,
                errno: 5,
                parent: 4,
                name: b"c".to_vec(),
                offset: 512,
            }),
            Record::Space { owner: Owner::Inodes, pieces: vec![(0, 4096), (1 << 40, 512)] },
            Record::Done,
            Record::Packed,
            Record::Shared { id: 5 },
            Record::Sealed { id: 5 },
            Record::Unsure { id: 4 },
            Record::Chunk(Chunk {
                start: 1 << 40,
                length: 1 << 30,
                stripe_length: 65536,
                profile: 0x11,
                sub_stripes: 1,
                stripes: vec![(1, 1 << 20), (2, u64::MAX)],
            }),
            Record::Member(Member { id: 2, major: 8, minor: 17 }),
        ]
    }

    #[test]
    fn every_record_survives_the_journey_in_pieces_of_any_size() {
        let mut stream = Vec::new();
        for record in one_of_each() {
            record.encode(&mut stream);
        }
        let mut seen = Vec::new();
        let mut buffer = Vec::new();
        for byte in stream {
            buffer.push(byte);
            while let Some((record, used)) = Record::decode(&buffer).unwrap() {
                seen.push(record);
                buffer.drain(..used);
            }
        }
        assert!(buffer.is_empty());
        assert_eq!(seen, one_of_each());
    }

    #[test]
    fn a_body_that_does_not_fit_its_kind_is_refused() {
        for record in one_of_each() {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            let takes_any_tail = matches!(
                record,
                Record::Object(_) | Record::Link { .. } | Record::Known { .. } | Record::Trouble(_)
            );
            bytes.push(0);
            let longer = (bytes.len() - PREFIX) as u32;
            bytes[1..5].copy_from_slice(&longer.to_le_bytes());
            assert_eq!(Record::decode(&bytes).is_ok(), takes_any_tail, "{record:?}");
        }
        assert_eq!(Record::decode(&[77, 0, 0, 0, 0]), Err(RecordError::Kind(77)));
        assert_eq!(Record::decode(&[6, 0, 0, 0, 255]), Err(RecordError::TooLong(0xff00_0000)));
        assert_eq!(Record::decode(&[6, 5, 0, 0, 0, 1, 0, 0, 0, 2]), Err(RecordError::Body(6)));
    }
}
