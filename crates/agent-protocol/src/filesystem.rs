//! What is known of each filesystem: one row each. A new filesystem takes one row here, and one file for its metadata.

use std::fmt;

/// Which part of the appliance reads a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// A driver in the kernel.
    Kernel,
    /// A program that is reached through FUSE. It reads through the cache of the block device, which is filled in
    /// whole pages.
    Fuse,
}

/// What the content of a device is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It holds files, or is not known.
    Filesystem,
    /// The kernel pages to it.
    Swap,
    /// It is encrypted, and holds something else when it is unlocked.
    Encrypted,
    /// It is a part of another device.
    Member,
}

/// What is known of a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsFacts {
    /// Its name in `blkid`, which is its name in maps.
    pub name: &'static str,
    /// What it is for.
    pub class: Class,
    /// Its number in `statfs(2)` (`linux/magic.h`); `None`: nothing depends on it. Filesystems that share a driver
    /// share the number.
    pub magic: Option<u64>,
    /// What reads it.
    pub driver: Driver,
    /// Options to mount it with, besides `ro,nodev,nosuid,noexec`.
    pub mount_options: Option<&'static str>,
    /// A further option where metadata are mapped.
    pub metadata_option: Option<&'static str>,
    /// A further option if it cannot be mounted without.
    pub degraded_option: Option<&'static str>,
    /// Whether mounting it replays a journal.
    pub has_journal: bool,
    /// Whether a part of what a replay writes stays in memory.
    pub replays_in_memory: bool,
    /// Whether its driver reads a file's last page as far as the cluster goes.
    pub reads_whole_pages: bool,
    /// Whether FIEMAP gives places in an address space that may span devices, and not places on the device.
    pub has_address_space: bool,
    /// Whether a directory has blocks of its own, which FIEMAP names, and listing it reads nothing else.
    pub has_directory_blocks: bool,
    /// Whether opening a directory reads its first block.
    pub reads_when_opened: bool,
    /// Whether files share blocks, which are read once more at the end.
    pub packs_files: bool,
    /// Inodes below this number are the filesystem's own files; 0: there are none that can be opened.
    pub reserved_inodes: u64,
    /// Whether inode numbers are made up at each mount, so that they do not identify a file.
    pub has_volatile_inodes: bool,
}

/// A filesystem of which nothing special is known.
const PLAIN: FsFacts = FsFacts {
    name: "",
    class: Class::Filesystem,
    magic: None,
    driver: Driver::Kernel,
    mount_options: None,
    metadata_option: None,
    degraded_option: None,
    has_journal: false,
    replays_in_memory: false,
    reads_whole_pages: false,
    has_address_space: false,
    has_directory_blocks: false,
    reads_when_opened: false,
    packs_files: false,
    reserved_inodes: 0,
    has_volatile_inodes: false,
};

/// What ext2, ext3 and ext4 have in common: one driver reads them.
const EXT: FsFacts = FsFacts {
    magic: Some(0xef53),
    // What a guest's own kernel does about an error is not for this one: it may be to panic.
    mount_options: Some("errors=continue"),
    has_journal: true,
    has_directory_blocks: true,
    ..PLAIN
};

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident: $facts:expr,)*) => {
        /// What a device holds.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum FsKind {
            $($(#[$doc])* $kind,)*
            /// Something else, by its name in `blkid`.
            Other(String),
        }

        impl FsKind {
            /// All that have a row.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// What is known of it.
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
        // Two clones of one disk have the same UUID, and XFS would refuse the second one.
        mount_options: Some("nouuid"),
        has_journal: true,
        replays_in_memory: true,
        reads_when_opened: true,
        ..PLAIN
    },
    /// btrfs. It reads checksums, which lie elsewhere, along with data that it reads for the first time.
    Btrfs: FsFacts {
        name: "btrfs",
        magic: Some(0x9123_683e),
        // The top level, with all subvolumes below it, whatever the default subvolume is.
        mount_options: Some("subvolid=5"),
        degraded_option: Some("degraded"),
        has_journal: true,
        has_address_space: true,
        ..PLAIN
    },
    /// F2FS.
    F2fs: FsFacts { name: "f2fs", magic: Some(0xf2f5_2010), has_journal: true, ..PLAIN },
    /// JFS.
    Jfs: FsFacts { name: "jfs", has_journal: true, ..PLAIN },
    /// NILFS2.
    Nilfs2: FsFacts { name: "nilfs2", magic: Some(0x3434), has_journal: true, ..PLAIN },
    /// FAT with long names.
    Vfat: FsFacts { name: "vfat", has_volatile_inodes: true, ..PLAIN },
    /// FAT.
    Msdos: FsFacts { name: "msdos", has_volatile_inodes: true, ..PLAIN },
    /// exFAT. FIBMAP tells the sectors of a file.
    Exfat: FsFacts {
        name: "exfat",
        magic: Some(0x2011_bab0),
        reads_whole_pages: true,
        has_volatile_inodes: true,
        ..PLAIN
    },
    /// NTFS, by ntfs-3g. It keeps its metadata in files, whose records are the first of `$MFT`.
    Ntfs: FsFacts {
        name: "ntfs",
        magic: Some(0x6573_5546),
        driver: Driver::Fuse,
        metadata_option: Some("show_sys_files"),
        reserved_inodes: 24,
        ..PLAIN
    },
    /// UDF.
    Udf: FsFacts { name: "udf", ..PLAIN },
    /// HFS+.
    Hfsplus: FsFacts { name: "hfsplus", ..PLAIN },
    /// SquashFS. It says nothing of where its files lie.
    Squashfs: FsFacts { name: "squashfs", magic: Some(0x7371_7368), packs_files: true, ..PLAIN },
    /// Swap space.
    Swap: FsFacts { name: "swap", class: Class::Swap, ..PLAIN },
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
    /// The one of this name in `blkid`.
    pub fn from_name(name: &str) -> Self {
        let known = Self::ALL.iter().find(|kind| kind.facts().name == name);
        known.cloned().unwrap_or_else(|| Self::Other(name.to_owned()))
    }

    /// The one with this number in `statfs(2)`: the first of those that share it. What is decided by the number is
    /// the same for all of them. Every program that is reached through FUSE has the number of NTFS's.
    pub fn from_magic(magic: u64) -> Option<Self> {
        Self::ALL.iter().find(|kind| kind.facts().magic == Some(magic)).cloned()
    }

    /// Its name in `blkid`.
    pub fn name(&self) -> &str {
        match self {
            Self::Other(name) => name,
            known => known.facts().name,
        }
    }

    /// What it is for.
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

    /// Whether its driver is a program that is reached through FUSE.
    pub fn is_fuse(&self) -> bool {
        self.facts().driver == Driver::Fuse
    }
}

impl Default for FsKind {
    /// Nothing known, not even a name.
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
    fn each_name_leads_to_its_row_and_unknown_ones_are_kept() {
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
    fn who_shares_a_magic_number_shares_what_is_decided_by_it() {
        for kind in FsKind::ALL {
            let Some(magic) = kind.facts().magic else { continue };
            let first = FsKind::from_magic(magic).unwrap();
            assert_eq!(FsFacts { name: "", ..*first.facts() }, FsFacts { name: "", ..*kind.facts() });
        }
        assert_eq!(FsKind::from_magic(0xef53).map(|kind| kind.facts().has_directory_blocks), Some(true));
        assert_eq!(FsKind::from_magic(0), None);
    }

    #[test]
    fn members_of_all_kinds_are_told_by_their_names() {
        for name in ["LVM2_member", "linux_raid_member", "zfs_member", "ddf_raid_member"] {
            assert_eq!(FsKind::from_name(name).class(), Class::Member);
        }
        assert_eq!(FsKind::Luks.class(), Class::Encrypted);
        assert_eq!(FsKind::from_name("iso9660").class(), Class::Filesystem);
    }
}
