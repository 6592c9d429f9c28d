//! The properties of each filesystem, in one table. A new filesystem needs one row here, and one
//! file for its metadata.

use std::fmt;

/// How the appliance reads a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// By a driver in the kernel.
    Kernel,
    /// By a program through FUSE. The program reads through the cache of the block device, which
    /// the kernel fills in whole pages.
    Fuse,
}

/// Classes of content of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Files, or unknown.
    Filesystem,
    /// Swap space.
    Swap,
    /// Encrypted; has other content when it is unlocked.
    Encrypted,
    /// A member of another device.
    Member,
}

/// Where the entries of a directory lie, and who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectoryBlocks {
    /// In blocks of its own. The kernel says where they are; if it does not, what is read while the
    /// directory is listed counts.
    Asked,
    /// In blocks of its own. The kernel does not say where they are: the agent computes it.
    Computed,
    /// In a tree or table of the whole filesystem, among the entries of other directories.
    Shared,
}

/// The properties of a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsFacts {
    /// Name in `blkid` and in maps.
    pub name: &'static str,
    /// Class of its content.
    pub class: Class,
    /// Magic number in `statfs(2)` (`linux/magic.h`); `None` if nothing depends on it. Filesystems
    /// with a common driver have a common number.
    pub magic: Option<u64>,
    /// How it is read.
    pub driver: Driver,
    /// Mount options besides `ro,nodev,nosuid,noexec`.
    pub mount_options: Option<&'static str>,
    /// A further mount option for when mounting without it fails.
    pub degraded_option: Option<&'static str>,
    /// Whether mounting replays a journal.
    pub has_journal: bool,
    /// Whether a part of the replayed writes stays in memory.
    pub replays_in_memory: bool,
    /// Whether the driver may read the last page of a file up to the end of the cluster, though
    /// the file ends with a sector before. That depends on the kernel's version.
    pub may_read_whole_pages: bool,
    /// Whether FIEMAP gives offsets in an address space that may span devices, not offsets on the
    /// device.
    pub has_address_space: bool,
    /// Where the entries of a directory lie.
    pub directory_blocks: DirectoryBlocks,
    /// Whether a directory has blocks of its own that FIEMAP gives, and listing it reads nothing
    /// else.
    pub has_directory_blocks: bool,
    /// Whether opening a directory reads its first block.
    pub reads_when_opened: bool,
    /// Whether the number of blocks of a compressed file (`st_blocks`) is that of its compressed
    /// blocks, while FIEMAP gives extents as long as the data in them.
    pub states_encoded_size: bool,
    /// Whether files share blocks. These blocks are read at the end, once more.
    pub packs_files: bool,
    /// Whether extended attributes that several files have lie in blocks of their own, which belong
    /// to no file.
    pub shares_attributes: bool,
    /// Whether several files may have a block in common, such as one that was cloned.
    pub shares_blocks: bool,
    /// Inodes below this number are the filesystem's own files; 0 if it has none that can be
    /// opened.
    pub reserved_inodes: u64,
    /// Whether the driver invents inode numbers at each mount, so that they do not identify a file.
    pub has_volatile_inodes: bool,
    /// Whether a file keeps the time at which it was made (`stx_btime` of `statx(2)`): the kernel
    /// sets it with a new inode and has no call that changes it. Programs of Windows and macOS set
    /// it, and UDF sets it back with an earlier time of modification (`udf_adjust_time` in the
    /// kernel's `fs/udf/inode.c`).
    pub keeps_birth_time: bool,
}

/// A filesystem without special properties.
const PLAIN: FsFacts = FsFacts {
    name: "",
    class: Class::Filesystem,
    magic: None,
    driver: Driver::Kernel,
    mount_options: None,
    degraded_option: None,
    has_journal: false,
    replays_in_memory: false,
    may_read_whole_pages: false,
    has_address_space: false,
    directory_blocks: DirectoryBlocks::Asked,
    has_directory_blocks: false,
    reads_when_opened: false,
    states_encoded_size: false,
    packs_files: false,
    shares_attributes: false,
    shares_blocks: false,
    reserved_inodes: 0,
    has_volatile_inodes: false,
    keeps_birth_time: false,
};

/// Magic numbers of UFS, which has one driver.
const UFS1: u64 = 0x0001_1954;
const UFS2: u64 = 0x1954_0119;

/// Bytes in a page of the appliance's kernel.
const PAGE: u64 = 4096;

/// The common properties of ext2, ext3 and ext4, which have one driver.
const EXT: FsFacts = FsFacts {
    magic: Some(0xef53),
    // The superblock may ask the kernel to panic at an error. That is for the guest's own kernel.
    mount_options: Some("errors=continue"),
    has_journal: true,
    has_directory_blocks: true,
    keeps_birth_time: true,
    ..PLAIN
};

/// The common properties of FAT with and without long names, which have one driver.
const FAT: FsFacts = FsFacts {
    magic: Some(0x4d44),
    // With this, the handle of a file (`name_to_handle_at(2)`) has the place of its directory
    // entry.
    mount_options: Some("nfs=nostale_ro"),
    directory_blocks: DirectoryBlocks::Computed,
    has_volatile_inodes: true,
    ..PLAIN
};

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident: $facts:expr,)*) => {
        /// Content of a device.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum FsKind {
            $($(#[$doc])* $kind,)*
            /// Other content, by its name in `blkid`.
            Other(String),
        }

        impl FsKind {
            /// All kinds that have a row.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// Its properties.
            pub fn facts(&self) -> &'static FsFacts {
                match self {
                    $(Self::$kind => { static FACTS: FsFacts = $facts; &FACTS })*
                    Self::Other(_) => { static FACTS: FsFacts = PLAIN; &FACTS }
                }
            }
        }
    };
}

kinds! {
    /// ext2.
    Ext2: FsFacts { name: "ext2", ..EXT },
    /// ext3.
    Ext3: FsFacts { name: "ext3", ..EXT },
    /// ext4.
    Ext4: FsFacts { name: "ext4", ..EXT },
    /// XFS.
    Xfs: FsFacts {
        name: "xfs",
        magic: Some(0x5846_5342),
        // Clones of a disk have the same UUID, and XFS would refuse the second.
        mount_options: Some("nouuid"),
        has_journal: true,
        replays_in_memory: true,
        reads_when_opened: true,
        shares_blocks: true,
        keeps_birth_time: true,
        ..PLAIN
    },
    /// btrfs. With the first read of data it also reads the checksums, which lie elsewhere.
    Btrfs: FsFacts {
        name: "btrfs",
        magic: Some(0x9123_683e),
        // The top level with all subvolumes, whatever the default subvolume is.
        mount_options: Some("subvolid=5"),
        degraded_option: Some("degraded"),
        has_journal: true,
        has_address_space: true,
        shares_blocks: true,
        directory_blocks: DirectoryBlocks::Shared,
        keeps_birth_time: true,
        ..PLAIN
    },
    /// F2FS.
    F2fs: FsFacts {
        name: "f2fs",
        magic: Some(0xf2f5_2010),
        has_journal: true,
        keeps_birth_time: true,
        ..PLAIN
    },
    /// JFS.
    Jfs: FsFacts { name: "jfs", has_journal: true, ..PLAIN },
    /// NILFS2.
    Nilfs2: FsFacts { name: "nilfs2", magic: Some(0x3434), has_journal: true, ..PLAIN },
    /// FAT with long names.
    Vfat: FsFacts { name: "vfat", ..FAT },
    /// FAT.
    Msdos: FsFacts { name: "msdos", ..FAT },
    /// exFAT. FIBMAP gives the sectors of a file. Linux 6.1 reads whole pages, Linux 7.2 sectors.
    Exfat: FsFacts {
        name: "exfat",
        magic: Some(0x2011_bab0),
        may_read_whole_pages: true,
        directory_blocks: DirectoryBlocks::Computed,
        has_volatile_inodes: true,
        ..PLAIN
    },
    /// NTFS, read by ntfs-3g. Its metadata is in files, which have the first records of `$MFT`.
    Ntfs: FsFacts {
        name: "ntfs",
        magic: Some(0x6573_5546),
        driver: Driver::Fuse,
        mount_options: Some("show_sys_files"),
        reserved_inodes: 24,
        ..PLAIN
    },
    /// UDF.
    Udf: FsFacts {
        name: "udf",
        magic: Some(0x1501_3346),
        directory_blocks: DirectoryBlocks::Computed,
        ..PLAIN
    },
    /// ISO 9660. Programs that make one store equal files once.
    Iso9660: FsFacts {
        name: "iso9660",
        magic: Some(0x9660),
        shares_blocks: true,
        directory_blocks: DirectoryBlocks::Computed,
        ..PLAIN
    },
    /// HFS+.
    Hfsplus: FsFacts {
        name: "hfsplus",
        magic: Some(0x482b),
        directory_blocks: DirectoryBlocks::Shared,
        ..PLAIN
    },
    /// EROFS. It stores equal parts of files once. What it keeps in memory of compressed blocks would
    /// not be read again.
    Erofs: FsFacts {
        name: "erofs",
        magic: Some(0xe0f5_e1e2),
        mount_options: Some("cache_strategy=disabled"),
        states_encoded_size: true,
        shares_attributes: true,
        shares_blocks: true,
        ..PLAIN
    },
    /// SquashFS. It has no call for the place of a file.
    Squashfs: FsFacts {
        name: "squashfs",
        magic: Some(0x7371_7368),
        directory_blocks: DirectoryBlocks::Shared,
        packs_files: true,
        shares_blocks: true,
        ..PLAIN
    },
    /// UFS of the BSDs. Which of its kinds it is, an option has to say.
    Ufs: FsFacts {
        name: "ufs",
        magic: Some(UFS2),
        directory_blocks: DirectoryBlocks::Computed,
        ..PLAIN
    },
    /// Swap space.
    Swap: FsFacts { name: "swap", class: Class::Swap, ..PLAIN },
    /// Swap space that holds the memory of a suspended system.
    SwapSuspend: FsFacts { name: "swsuspend", class: Class::Swap, ..PLAIN },
    /// The journal of an ext3 or ext4 on another device.
    Jbd: FsFacts { name: "jbd", class: Class::Member, ..PLAIN },
    /// The log of an XFS on another device.
    XfsLog: FsFacts { name: "xfs_external_log", class: Class::Member, ..PLAIN },
    /// LUKS.
    Luks: FsFacts { name: "crypto_LUKS", class: Class::Encrypted, ..PLAIN },
    /// BitLocker.
    BitLocker: FsFacts { name: "BitLocker", class: Class::Encrypted, ..PLAIN },
    /// A physical volume of LVM.
    LvmMember: FsFacts { name: "LVM2_member", class: Class::Member, ..PLAIN },
    /// A member of an md array.
    RaidMember: FsFacts { name: "linux_raid_member", class: Class::Member, ..PLAIN },
}

impl FsKind {
    /// The kind with this name in `blkid`.
    pub fn from_name(name: &str) -> Self {
        let known = Self::ALL.iter().find(|kind| kind.facts().name == name);
        known.cloned().unwrap_or_else(|| Self::Other(name.to_owned()))
    }

    /// The kind with this magic number in `statfs(2)`. If several kinds have the number, it is the
    /// first of them; the properties that depend on the number are the same for all. Every
    /// filesystem in FUSE has the number that NTFS has here.
    pub fn from_magic(magic: u64) -> Option<Self> {
        let magic = if magic == UFS1 { UFS2 } else { magic };
        Self::ALL.iter().find(|kind| kind.facts().magic == Some(magic)).cloned()
    }

    /// Its name in `blkid`.
    pub fn name(&self) -> &str {
        match self {
            Self::Other(name) => name,
            known => known.facts().name,
        }
    }

    /// Class of its content.
    pub fn class(&self) -> Class {
        match self {
            // `ddf_raid_member`, `zfs_member`, …
            Self::Other(name) if name.ends_with("_member") => Class::Member,
            kind => kind.facts().class,
        }
    }

    /// Whether it is ext2, ext3 or ext4.
    pub fn is_ext(&self) -> bool {
        matches!(self, Self::Ext2 | Self::Ext3 | Self::Ext4)
    }

    /// The unit in bytes in which a file is read up to its end, given the size of a block: of a
    /// large block, a driver in FUSE reads no more pages than the file needs.
    pub fn read_unit(&self, block: u64) -> u64 {
        if self.is_fuse() { block.min(PAGE) } else { block }
    }

    /// Whether it is the journal of a filesystem on another device.
    pub fn is_journal(&self) -> bool {
        matches!(self, Self::Jbd | Self::XfsLog)
    }

    /// Whether it is read through FUSE.
    pub fn is_fuse(&self) -> bool {
        self.facts().driver == Driver::Fuse
    }
}

impl Default for FsKind {
    /// Unknown content without a name.
    fn default() -> Self {
        Self::Other(String::new())
    }
}

impl fmt::Display for FsKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn known_names_have_a_row_and_unknown_names_are_kept() {
        let names: HashSet<&str> = FsKind::ALL.iter().map(FsKind::name).collect();
        assert_eq!(names.len(), FsKind::ALL.len());
        for kind in FsKind::ALL {
            assert_eq!(FsKind::from_name(kind.name()), *kind);
            assert!(!kind.name().is_empty());
        }
        assert_eq!(FsKind::from_name("reiserfs"), FsKind::Other("reiserfs".into()));
        assert_eq!(FsKind::from_name("reiserfs").to_string(), "reiserfs");
        assert_eq!(FsKind::default().name(), "");
        assert_eq!(*FsKind::from_name("reiserfs").facts(), PLAIN);
    }

    #[test]
    fn kinds_with_one_magic_number_have_the_same_properties() {
        for kind in FsKind::ALL {
            let Some(magic) = kind.facts().magic else { continue };
            let first = FsKind::from_magic(magic).unwrap();
            assert_eq!(FsFacts { name: "", ..*first.facts() }, FsFacts { name: "", ..*kind.facts() });
        }
        assert_eq!(FsKind::from_magic(0xef53).map(|kind| kind.facts().has_directory_blocks), Some(true));
        assert_eq!(FsKind::from_magic(0), None);
    }

    #[test]
    fn members_are_recognised_by_their_names() {
        for name in ["LVM2_member", "linux_raid_member", "zfs_member", "ddf_raid_member"] {
            assert_eq!(FsKind::from_name(name).class(), Class::Member);
        }
        assert_eq!(FsKind::Luks.class(), Class::Encrypted);
        assert_eq!(FsKind::from_name("iso9660").class(), Class::Filesystem);
    }
}
