//! The formats of lists, in one table.

use std::fmt;
use std::io::BufRead;

use super::recognise::Head;
use super::{Entries, ListError, RangeListOptions};
use super::{
    badblocks, blkparse, ddrescue, kernel_log, nbdinfo, nbdkit_log, plain, proxmox_index, qemu_img_map,
    rbd_diff, rbd_export, smartctl, thin_delta, vmware, zfs_events,
};

/// An option that is for some formats only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListOption {
    Status,
    BlockSize,
    Depth,
    Type,
    Op,
    Device,
    Older,
}

impl ListOption {
    /// As it is on the command line.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Status => "--status",
            Self::BlockSize => "--block-size",
            Self::Depth => "--depth",
            Self::Type => "--type",
            Self::Op => "--op",
            Self::Device => "--device",
            Self::Older => "--older",
        }
    }
}

/// Reads the entries of a list. Returns which of them count, in words.
type Read = fn(&mut dyn BufRead, &RangeListOptions, &mut Entries) -> Result<String, ListError>;

struct Format {
    kind: Kind,
    /// On a command line.
    word: &'static str,
    /// In a message.
    name: &'static str,
    /// Whether a list begins like this. Each format is tested for properties of its own only, so
    /// the order matters little.
    is: fn(Head<'_>) -> bool,
    read: Read,
    options: &'static [ListOption],
    /// Whether the end of a list is the size of the disk.
    covers_disk: bool,
}

macro_rules! formats {
    ($($(#[$doc:meta])* $kind:ident {
        word: $word:literal, name: $name:literal, is: $is:expr, read: $read:path, options: [$($option:ident),*],
        covers_disk: $covers:literal
    })*) => {
        /// The format of a list.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// All kinds.
            pub const ALL: [Self; [$(Self::$kind),*].len()] = [$(Self::$kind),*];
        }

        /// In the order of [`Kind`].
        const FORMATS: [Format; Kind::ALL.len()] = [$(Format {
            kind: Kind::$kind,
            word: $word,
            name: $name,
            is: $is,
            read: $read,
            options: &[$(ListOption::$option),*],
            covers_disk: $covers,
        }),*];
    };
}

formats! {
    /// `qemu-img map --output=json`.
    QemuImgMap {
        word: "qemu-img-map", name: "output of qemu-img map",
        is: |head| head.is_array_of(&["start"]) && !vmware::is(head),
        read: qemu_img_map::read, options: [Depth], covers_disk: true
    }
    /// `nbdinfo --map --json`, of any metadata context.
    Nbdinfo {
        word: "nbdinfo", name: "output of nbdinfo --map",
        is: |head| head.is_array_of(&["offset", "type"]),
        read: nbdinfo::read, options: [Type], covers_disk: true
    }
    /// A mapfile of GNU ddrescue.
    Ddrescue {
        word: "ddrescue", name: "ddrescue mapfile",
        is: |head| ddrescue::is_state(head.line),
        read: ddrescue::read, options: [Status], covers_disk: true
    }
    /// A list of blocks by `badblocks`.
    Badblocks {
        word: "badblocks", name: "badblocks list",
        is: |head| badblocks::is_block(head.line),
        read: badblocks::read, options: [BlockSize], covers_disk: false
    }
    /// Lines of nbdkit's log filter.
    NbdkitLog {
        word: "nbdkit-log", name: "nbdkit log",
        is: |head| nbdkit_log::is_event(head.line),
        read: nbdkit_log::read, options: [Op], covers_disk: false
    }
    /// Text by `blkparse`.
    Blkparse {
        word: "blkparse", name: "blkparse text",
        is: |head| blkparse::is_event(head.line),
        read: blkparse::read, options: [Op], covers_disk: false
    }
    /// `thin_delta` of two thin volumes.
    ThinDelta {
        word: "thin-delta", name: "output of thin_delta",
        is: |head| head.text.starts_with(b"<") && head.has_one_of(&["<superblock "]),
        read: thin_delta::read, options: [Type], covers_disk: false
    }
    /// `rbd diff`, as text or JSON.
    RbdDiff {
        word: "rbd-diff", name: "output of rbd diff",
        is: |head| rbd_diff::is_line(head.line) || head.is_array_of(&["offset", "exists"]),
        read: rbd_diff::read, options: [Type], covers_disk: false
    }
    /// `rbd export-diff`, version 1 or 2.
    RbdExport {
        word: "rbd-export-diff", name: "output of rbd export-diff",
        is: |head| rbd_export::is(head.bytes),
        read: rbd_export::read, options: [], covers_disk: true
    }
    /// What VMware's `QueryChangedDiskAreas` returns, as JSON.
    Vmware {
        word: "vmware", name: "list of VMware's changed disk areas",
        is: vmware::is,
        read: vmware::read, options: [], covers_disk: false
    }
    /// An index of Proxmox Backup Server, compared with an earlier one.
    ProxmoxIndex {
        word: "proxmox-index", name: "index of a Proxmox backup",
        is: |head| proxmox_index::is(head.bytes),
        read: proxmox_index::read, options: [Older], covers_disk: true
    }
    /// `zpool events -v`: errors of a ZFS volume.
    ZfsEvents {
        word: "zfs-events", name: "output of zpool events",
        is: |head| head.has_one_of(&["ereport.fs.zfs."]),
        read: zfs_events::read, options: [BlockSize, Device], covers_disk: false
    }
    /// The kernel's messages about errors of a disk.
    KernelLog {
        word: "kernel-log", name: "log of the kernel",
        is: |head| head.bytes.split(|&byte| byte == b'\n').any(kernel_log::is_error),
        read: kernel_log::read, options: [Op, Device], covers_disk: false
    }
    /// The logs of errors and self-tests that `smartctl` prints.
    Smartctl {
        word: "smartctl", name: "output of smartctl",
        is: |head| smartctl::is(head),
        read: smartctl::read, options: [BlockSize], covers_disk: false
    }
    /// `OFFSET LENGTH` lines.
    Plain {
        word: "plain", name: "list of offsets and lengths",
        is: |head| plain::is_range(head.line),
        read: plain::read, options: [], covers_disk: false
    }
}

impl Kind {
    fn format(self) -> &'static Format {
        const LAST: &Format = &FORMATS[FORMATS.len() - 1];
        FORMATS.iter().find(|format| format.kind == self).unwrap_or(LAST)
    }

    /// The kind of a list that begins like this.
    pub(super) fn of(head: Head<'_>) -> Option<Self> {
        FORMATS.iter().find(|format| (format.is)(head)).map(|format| format.kind)
    }

    pub(super) fn read(
        self,
        input: &mut dyn BufRead,
        options: &RangeListOptions,
        entries: &mut Entries,
    ) -> Result<String, ListError> {
        (self.format().read)(input, options, entries)
    }

    pub(super) fn takes(self, option: ListOption) -> bool {
        self.format().options.contains(&option)
    }

    /// The word for the kind on a command line.
    pub fn word(self) -> &'static str {
        self.format().word
    }

    /// Whether a list of this format covers a disk from the first byte to the last, so that its end
    /// is the size of the disk.
    pub fn covers_disk(self) -> bool {
        self.format().covers_disk
    }
}

/// Name of the list in a message.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.format().name)
    }
}

/// The names of all formats.
pub(super) fn names() -> String {
    FORMATS.iter().map(|format| format.name).collect::<Vec<_>>().join(", ")
}
