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
mod json;
mod lines;
mod nbdinfo;
mod nbdkit_log;
mod plain;
mod qemu_img_map;
mod recognise;

use std::fmt;
use std::io::{self, BufReader, Read};
use thiserror::Error;

pub use lines::LineProblem;
use virt_bmap_ranges::{DiskOffset, DiskRange, IndexedRanges};

/// Bytes that are read at a time.
const BUFFER: usize = 256 * 1024;

/// Whose list it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// `qemu-img map --output=json`.
    QemuImgMap,
    /// `nbdinfo --map --json`, of any metadata context.
    Nbdinfo,
    /// A mapfile of GNU ddrescue.
    Ddrescue,
    /// A list of blocks by `badblocks`.
    Badblocks,
    /// Lines of nbdkit's log filter.
    NbdkitLog,
    /// Text by `blkparse`.
    Blkparse,
    /// `OFFSET LENGTH` lines.
    Plain,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::QemuImgMap,
        Self::Nbdinfo,
        Self::Ddrescue,
        Self::Badblocks,
        Self::NbdkitLog,
        Self::Blkparse,
        Self::Plain,
    ];

    /// The word for the kind on a command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::QemuImgMap => "qemu-img-map",
            Self::Nbdinfo => "nbdinfo",
            Self::Ddrescue => "ddrescue",
            Self::Badblocks => "badblocks",
            Self::NbdkitLog => "nbdkit-log",
            Self::Blkparse => "blkparse",
            Self::Plain => "plain",
        }
    }

    /// Whether a list of this format covers a disk from the first byte to the last, so that its end
    /// is the size of the disk.
    pub fn covers_disk(self) -> bool {
        matches!(self, Self::QemuImgMap | Self::Nbdinfo | Self::Ddrescue)
    }
}

/// Name of the list in a message.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::QemuImgMap => "output of qemu-img map",
            Self::Nbdinfo => "output of nbdinfo --map",
            Self::Ddrescue => "ddrescue mapfile",
            Self::Badblocks => "badblocks list",
            Self::NbdkitLog => "nbdkit log",
            Self::Blkparse => "blkparse text",
            Self::Plain => "list of offsets and lengths",
        })
    }
}

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
    /// badblocks: bytes in a block. By default 1024, as `badblocks` has it.
    pub block_size: Option<u64>,
    /// qemu-img map: the depth of the images whose data count. By default 0, the top image's.
    pub depth: Option<Depth>,
    /// nbdinfo: descriptions, or numbers, of the types that count. By default `data`, `dirty` and
    /// `local`.
    pub types: Option<Vec<String>>,
    /// Logs: which operations count. By default all.
    pub operations: Option<Vec<Operation>>,
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
    #[error(
        "the list begins with `{found}`, which is none of: qemu-img map and nbdinfo --map in JSON, ddrescue mapfile, badblocks, nbdkit log, blkparse, lines of OFFSET LENGTH"
    )]
    Unknown {
        /// Its beginning, printable.
        found: String,
    },
    /// It is a qcow2 image.
    #[error(
        "this is a qcow2 image and no list; name a dirty bitmap of it with --bitmap, or give what qemu-img map --output=json prints of it"
    )]
    Image,
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
    let rule = match kind {
        Kind::QemuImgMap => qemu_img_map::read(&mut input, options, &mut entries),
        Kind::Nbdinfo => nbdinfo::read(&mut input, options, &mut entries),
        Kind::Ddrescue => ddrescue::read(&mut input, options, &mut entries),
        Kind::Badblocks => badblocks::read(&mut input, options, &mut entries),
        Kind::NbdkitLog => nbdkit_log::read(&mut input, options, &mut entries),
        Kind::Blkparse => blkparse::read(&mut input, options, &mut entries),
        Kind::Plain => plain::read(&mut input, options, &mut entries),
    }?;
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
    let is_log = matches!(kind, Kind::NbdkitLog | Kind::Blkparse);
    let strangers = [
        ("--status", options.statuses.is_some() && kind != Kind::Ddrescue),
        ("--block-size", options.block_size.is_some() && kind != Kind::Badblocks),
        ("--depth", options.depth.is_some() && kind != Kind::QemuImgMap),
        ("--type", options.types.is_some() && kind != Kind::Nbdinfo),
        ("--op", options.operations.is_some() && !is_log),
    ];
    match strangers.into_iter().find(|(_, is_stranger)| *is_stranger) {
        Some((option, _)) => Err(ListError::Option { option, kind }),
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

    /// Many lists are long rows of neighbours; these cost no memory.
    fn join(&mut self, range: DiskRange) {
        match self.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.ranges.push(range),
        }
    }
}
