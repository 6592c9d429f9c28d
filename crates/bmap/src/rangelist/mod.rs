//! Lists of disk ranges that other programs write: changed, bad or read ranges.
//!
//! [`read`] recognises the format of a list by its first lines (see [`Kind`]), and selects the
//! entries that count: the bad ones of a rescue map, the dirty ones of a bitmap. Each format has a
//! default selection, and [`RangeListOptions`] change it. The result is a set of bytes of one disk,
//! a [`RangeList`].
//!
//! ```
//! use virt_bmap_map::rangelist::{Kind, RangeListOptions, read};
//! use virt_bmap_ranges::DiskRange;
//!
//! let list = read(&b"0x2000 512\n0x1000 4K\n"[..], &RangeListOptions::default())?;
//! assert_eq!(list.kind, Kind::Plain);
//! assert_eq!(list.spans.iter().collect::<Vec<_>>(), [DiskRange::new(0x1000, 0x2200)]);
//! # Ok::<(), virt_bmap_map::rangelist::ListError>(())
//! ```

mod badblocks;
mod blkparse;
mod ddrescue;
mod formats;
mod json;
mod kernel_log;
mod lines;
mod nbdinfo;
mod nbdkit_log;
mod plain;
mod proxmox_index;
mod qemu_img_map;
mod rbd_diff;
mod rbd_export;
mod recognise;
mod smartctl;
mod thin_delta;
mod vmware;
mod zfs_events;

use formats::ListOption;
use std::fmt;
use std::io::{self, BufReader, Read};
use thiserror::Error;

pub use formats::Kind;
pub use lines::LineProblem;
use virt_bmap_ranges::{DiskOffset, DiskRange, IndexedRanges};

/// Bytes that are read at a time.
const BUFFER: usize = 256 * 1024;

/// The operation of an entry in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Data are read.
    Read,
    /// Data are written.
    Write,
    /// Zeroes are written.
    Zero,
    /// The range is discarded.
    Trim,
}

/// Selects the entries of a list that count. `None` means the default of the format. An option for
/// another format than that of the list is an error.
#[derive(Clone, Debug, Default)]
pub struct RangeListOptions {
    /// Format of the list. By default it is recognised.
    pub kind: Option<Kind>,
    /// ddrescue: the statuses that count. By default `*`, `/`, `-` and `?`: all that was not
    /// rescued.
    pub statuses: Option<Vec<u8>>,
    /// badblocks: bytes in a block, by default 1024. smartctl: bytes in a sector. ZFS: bytes in a
    /// block of the volume, which must be stated.
    pub block_size: Option<u64>,
    /// qemu-img map: the depth of the images whose data count. By default 0, the top image's.
    pub depth: Option<Depth>,
    /// nbdinfo: descriptions, or numbers, of the types that count. By default `data`, `dirty` and
    /// `local`. thin_delta, rbd diff: names of the types that count.
    pub types: Option<Vec<String>>,
    /// Logs: which operations count. By default all.
    pub operations: Option<Vec<Operation>>,
    /// Logs of errors: the device whose errors count. By default the log must have one only.
    pub device: Option<String>,
    /// Proxmox backup: the index of the earlier backup.
    pub older: Option<Vec<u8>>,
}

impl Operation {
    /// All operations.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Zero, Self::Trim];

    /// The word for the operation on a command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Zero => "zero",
            Self::Trim => "trim",
        }
    }
}

/// Name of the operation in a message.
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Read => "data are read",
            Self::Write => "data are written",
            Self::Zero => "zeroes are written",
            Self::Trim => "the range is discarded",
        })
    }
}

impl RangeListOptions {
    /// For a list of this kind, with its defaults.
    pub fn of(kind: Kind) -> Self {
        Self { kind: Some(kind), ..Self::default() }
    }

    fn wants(&self, operation: Operation) -> bool {
        self.operations.as_ref().is_none_or(|wanted| wanted.contains(&operation))
    }

    /// The names of types that count: the stated ones, or these.
    fn types_or<'a>(&'a self, default: &[&'a str]) -> Vec<&'a str> {
        self.types.as_ref().map_or(default.to_vec(), |types| types.iter().map(String::as_str).collect())
    }

    fn rule_of_operations(&self) -> String {
        match &self.operations {
            Some(wanted) => wanted.iter().map(|operation| operation.word()).collect::<Vec<_>>().join(", "),
            None => "all operations".to_owned(),
        }
    }
}

/// Selects images of a chain by their depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// All.
    Any,
    /// One: 0 is the top.
    Of(u64),
}

/// A list that was read.
#[derive(Clone, Debug)]
pub struct RangeList {
    /// Whose list it is.
    pub kind: Kind,
    /// The bytes of the entries that count.
    pub spans: IndexedRanges,
    /// Number of entries in the list.
    pub entries: u64,
    /// Number of entries that count.
    pub counted: u64,
    /// Whether an entry that counts begins before the one above it or overlaps another.
    pub is_unordered: bool,
    /// First byte after the last entry, whether it counts or not.
    pub end: u64,
    /// Which entries count, in words.
    pub rule: String,
}

/// Why a list could not be read.
#[derive(Debug, Error)]
pub enum ListError {
    /// The list could not be read.
    #[error("the list could not be read")]
    Io(#[from] io::Error),
    /// The list is empty.
    #[error("the list is empty; for an intentionally empty list, state its format with --from")]
    Empty,
    /// The format is not known.
    #[error("the list begins with `{found}`, which is none of: {}", formats::names())]
    Unknown {
        /// Its beginning, printable.
        found: String,
    },
    /// It is a qcow2 image.
    #[error(
        "this is a qcow2 image and no list; name a dirty bitmap of it with --bitmap, or give what qemu-img map --output=json prints of it"
    )]
    Image,
    /// The size of a block is not in the list.
    #[error("the {kind} does not have the size of a block; state it with --block-size")]
    NoBlockSize {
        /// What the list is.
        kind: Kind,
    },
    /// One index says nothing about changes.
    #[error(
        "the index of a backup says what is in each chunk; to compare it, name the index of an earlier backup with --older"
    )]
    NoOlder,
    /// The indices are of different disks.
    #[error("the two indices differ in the size of the disk or of the chunks, so they are not of one disk")]
    OtherDisk,
    /// The data of a list are not as its format wants them.
    #[error("this is not a whole {kind}: {problem}")]
    Broken {
        /// What the list is.
        kind: Kind,
        /// What is wrong.
        problem: &'static str,
    },
    /// An option belongs to another format.
    #[error("{option} is not for this list, which is a {kind}")]
    Option {
        /// The option.
        option: &'static str,
        /// What the list is.
        kind: Kind,
    },
    /// One line is wrong.
    #[error("line {line}: {problem}")]
    Line {
        /// Number of the line, from 1.
        line: u64,
        /// What is wrong.
        problem: LineProblem,
    },
    /// One entry of a JSON array is wrong.
    #[error("entry {entry} of the {kind}: {problem}")]
    Entry {
        /// Number of the entry, from 1.
        entry: u64,
        /// What the list is.
        kind: Kind,
        /// What is wrong.
        problem: LineProblem,
    },
    /// The JSON is none, or not what the program writes.
    #[error("the {kind} could not be read")]
    Json {
        /// What the list is.
        kind: Kind,
        /// Why.
        source: serde_json::Error,
    },
}

/// Reads a list.
///
/// Ranges of a log or of a plain list may come in any order and overlap; each byte counts once. In
/// formats whose programs write them in order, disorder is an error.
///
/// # Errors
/// [`ListError`].
pub fn read(mut input: impl Read, options: &RangeListOptions) -> Result<RangeList, ListError> {
    let mut head = Vec::new();
    input.by_ref().take(recognise::LOOK_AHEAD).read_to_end(&mut head)?;
    let kind = match options.kind {
        Some(kind) => kind,
        None => recognise::kind(&head)?,
    };
    let mut input = BufReader::with_capacity(BUFFER, head.chain(input));
    refuse_strangers(options, kind)?;
    let mut entries = Entries::default();
    let rule = kind.read(&mut input, options, &mut entries)?;
    let Entries { ranges, number, counted, is_unordered, end, .. } = entries;
    if number == 0 && options.kind.is_none() {
        return Err(ListError::Empty);
    }
    Ok(RangeList {
        kind,
        spans: IndexedRanges::from_unsorted(ranges),
        entries: number,
        counted,
        is_unordered,
        end,
        rule,
    })
}

/// An option without effect on the list is a misunderstanding, and is reported instead of ignored.
fn refuse_strangers(options: &RangeListOptions, kind: Kind) -> Result<(), ListError> {
    let stated = [
        (ListOption::Status, options.statuses.is_some()),
        (ListOption::BlockSize, options.block_size.is_some()),
        (ListOption::Depth, options.depth.is_some()),
        (ListOption::Type, options.types.is_some()),
        (ListOption::Op, options.operations.is_some()),
        (ListOption::Device, options.device.is_some()),
        (ListOption::Older, options.older.is_some()),
    ];
    match stated.into_iter().find(|(option, is_stated)| *is_stated && !kind.takes(*option)) {
        Some((option, _)) => Err(ListError::Option { option: option.word(), kind }),
        None => Ok(()),
    }
}

/// The entries of a list, as a reader finds them.
#[derive(Default)]
struct Entries {
    ranges: Vec<DiskRange>,
    number: u64,
    counted: u64,
    is_unordered: bool,
    end: u64,
    counted_end: u64,
}

impl Entries {
    /// Adds an entry, of which the list may have many in any order.
    fn push(&mut self, start: u64, length: u64, counts: bool) -> Result<(), LineProblem> {
        let range = DiskRange::at(DiskOffset(start), length).ok_or(LineProblem::TooLong { start, length })?;
        self.number += 1;
        self.end = self.end.max(range.end.0);
        if counts {
            self.counted += 1;
            self.is_unordered |= start < self.counted_end;
            self.counted_end = self.counted_end.max(range.end.0);
            if !range.is_empty() {
                self.join(range);
            }
        }
        Ok(())
    }

    /// Adds an entry of a list whose entries ascend.
    fn push_ascending(&mut self, start: u64, length: u64, counts: bool) -> Result<(), LineProblem> {
        if start < self.end {
            return Err(LineProblem::Descending { start, end: self.end });
        }
        self.push(start, length, counts)
    }

    /// The disk that the list is of has so many bytes.
    fn ends_at(&mut self, size: u64) {
        self.end = self.end.max(size);
    }

    /// Many lists are long rows of neighbours; these cost no memory.
    fn join(&mut self, range: DiskRange) {
        match self.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.ranges.push(range),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Pieces of all formats.
    const PIECES: [&str; 40] = [
        "0",
        "1",
        "18446744073709551615",
        "0x10",
        " ",
        "\n",
        "\n\n",
        ",",
        "+",
        "-",
        "#",
        "\"",
        "{",
        "}",
        "[",
        "]",
        "<superblock data_block_size=\"128\">",
        "<different begin=\"2\" length=\"1\"/>",
        "<range ",
        "</superblock>",
        "Offset Length Type",
        "data",
        "zero",
        "rbd diff v1\n",
        "rbd diff v2\n",
        "w",
        "\0\0\0\0\0\0\0\0",
        "\x01",
        "\"startOffset\": 0",
        "\"changedArea\": [",
        "\"start\": 1, \"length\": 2",
        "I/O error, dev sda, sector ",
        "# 1 x failure ",
        "Error: UNC 8 sectors at LBA = 0x1 = ",
        "Pending Defects log",
        "Sector Size: 512",
        "class = \"ereport.fs.zfs.checksum\"",
        "zio_object = 0x1",
        "zio_level = 0x0",
        "zio_blkid = 0x",
    ];

    proptest! {
        /// Whatever a list is: an answer or a refusal, in each format and in that of its beginning.
        #[test]
        fn no_list_makes_it_panic(
            pieces in prop::collection::vec(prop::sample::select(PIECES.to_vec()), 0..40),
            noise in prop::collection::vec(any::<u8>(), 0..200),
            index in any::<bool>(),
        ) {
            let mut list = pieces.concat().into_bytes();
            if index {
                list.splice(0..0, [47, 127, 65, 237, 145, 253, 15, 205].into_iter().chain([1; 4088]));
            }
            list.extend(noise);
            for kind in Kind::ALL.into_iter().map(Some).chain([None]) {
                let mut options = RangeListOptions { kind, ..RangeListOptions::default() };
                match kind {
                    Some(Kind::ZfsEvents) => options.block_size = Some(8192),
                    Some(Kind::ProxmoxIndex) => options.older = Some(list.clone()),
                    _ => {}
                }
                if let Ok(read) = read(&list[..], &options) {
                    prop_assert!(read.spans.end() <= read.end && read.counted <= read.entries);
                }
            }
        }
    }
}
