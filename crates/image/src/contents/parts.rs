//! The parts of a container that are looked for, as they are found.

use std::fmt;
use virt_bmap_ranges::{ContainerOffset, ContainerRange, DiskRange, IndexedRanges};

/// Most pieces that are kept: those of a hostile image must not fill the memory.
pub(super) const MAX_PIECES: usize = 1 << 22;

/// What a part of a container holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Holds {
    /// Bytes of the disk, one for one.
    Data,
    /// A compressed cluster or grain of the disk.
    Compressed,
    /// Room for bytes of the disk that the tables declare to be zeroes.
    Zeroes,
    /// The header.
    Header,
    /// The text that describes a VMDK.
    Descriptor,
    /// The table that says where the second-level tables are: L1 of a qcow2, the grain directory of
    /// a VMDK.
    FirstTable,
    /// A table that says where bytes of the disk are: L2 of a qcow2, a grain table of a VMDK.
    SecondTable,
    /// The copy of such tables that a VMDK keeps.
    TableCopy,
    /// The table of the refcount blocks of a qcow2.
    RefcountTable,
    /// Counts of the references to clusters of a qcow2.
    RefcountBlock,
    /// The list of the internal snapshots of a qcow2, and their first-level tables.
    Snapshots,
    /// Whatever else the image needs, in a format whose tables are not read here.
    Metadata,
    /// Nothing that the disk needs as it is now: free, or of an internal snapshot or bitmap.
    Unused,
}

/// What it means for the disk if a part of a container is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// [`Part::guest`] is damaged.
    Disk,
    /// Nothing on the disk is damaged.
    None,
    /// It is not known.
    Unknown,
}

impl Holds {
    /// A word for programs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Compressed => "compressed",
            Self::Zeroes => "zeroes",
            Self::Header => "header",
            Self::Descriptor => "descriptor",
            Self::FirstTable => "first-table",
            Self::SecondTable => "second-table",
            Self::TableCopy => "table-copy",
            Self::RefcountTable => "refcount-table",
            Self::RefcountBlock => "refcount-block",
            Self::Snapshots => "snapshots",
            Self::Metadata => "metadata",
            Self::Unused => "unused",
        }
    }

    /// What damage to it means.
    pub fn effect(self) -> Effect {
        match self {
            Self::Data
            | Self::Compressed
            | Self::Header
            | Self::Descriptor
            | Self::FirstTable
            | Self::SecondTable => Effect::Disk,
            Self::Zeroes
            | Self::TableCopy
            | Self::RefcountTable
            | Self::RefcountBlock
            | Self::Snapshots
            | Self::Unused => Effect::None,
            Self::Metadata => Effect::Unknown,
        }
    }

    /// Whether it is where a cluster of the disk has its bytes, and no table.
    pub(super) fn is_of_data(self) -> bool {
        matches!(self, Self::Data | Self::Compressed | Self::Zeroes)
    }
}

/// For people.
impl fmt::Display for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Data => "data",
            Self::Compressed => "a compressed cluster",
            Self::Zeroes => "room for zeroes",
            Self::Header => "the image's header",
            Self::Descriptor => "the image's descriptor",
            Self::FirstTable => "the image's first-level table",
            Self::SecondTable => "a second-level table of the image",
            Self::TableCopy => "a copy of the image's tables",
            Self::RefcountTable => "the image's refcount table",
            Self::RefcountBlock => "a refcount block of the image",
            Self::Snapshots => "the list of the image's snapshots",
            Self::Metadata => "the image's own metadata",
            Self::Unused => "in no use by the disk as it is now",
        })
    }
}

/// A part of a container that was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Part {
    /// Its place in the file.
    pub at: ContainerRange,
    /// What is there.
    pub holds: Holds,
    /// The bytes of the disk that depend on it. Empty if there are none, also because images above
    /// have other bytes for them.
    pub guest: IndexedRanges,
}

/// A piece of a container, and the bytes of the disk that depend on it, entry by entry. A piece of
/// data is a table whose entries are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) at: ContainerRange,
    pub(super) holds: Holds,
    guest: DiskRange,
    /// Bytes of an entry.
    entry: u64,
    /// Bytes of the disk that depend on an entry.
    covers: u64,
}

impl Piece {
    /// `length` bytes of the disk at `guest`.
    pub(super) fn data(at: u64, guest: u64, length: u64) -> Self {
        Self::table(Holds::Data, ContainerRange::saturating(at, length), guest, 1, 1)
    }

    /// A table that ascends by the bytes of the disk that its entries are for, from `guest` on.
    pub(super) fn table(holds: Holds, at: ContainerRange, guest: u64, entry: u64, covers: u64) -> Self {
        let length = at.len().div_ceil(entry.max(1)).saturating_mul(covers);
        Self { at, holds, guest: DiskRange::saturating(guest, length), entry: entry.max(1), covers }
    }

    /// On each byte of which all of `guest` depends.
    pub(super) fn whole(holds: Holds, at: ContainerRange, guest: DiskRange) -> Self {
        Self { at, holds, guest, entry: at.len().max(1), covers: guest.len() }
    }

    /// On which nothing depends.
    pub(super) fn alone(holds: Holds, at: ContainerRange) -> Self {
        Self::whole(holds, at, DiskRange::new(0, 0))
    }

    /// The same piece of a disk that ends at `end`.
    pub(super) fn until(mut self, end: u64) -> Self {
        self.guest = DiskRange::new(self.guest.start.0.min(end), self.guest.end.0.min(end));
        self
    }

    /// The part of it at `at`, which lies in it.
    fn part(self, at: ContainerRange) -> Self {
        let place = |entries: u64| self.guest.start.0.saturating_add(entries.saturating_mul(self.covers));
        let start = place((at.start.0 - self.at.start.0) / self.entry);
        let end = place((at.end.0 - self.at.start.0).div_ceil(self.entry));
        let last = self.guest.end.0;
        Self { at, guest: DiskRange::new(start.min(last), end.min(last)), ..self }
    }

    /// With the bytes of the disk that the images above leave to this one; `None`: all.
    pub(super) fn seen_through(self, reached: Option<&IndexedRanges>) -> Part {
        let guest = match reached {
            None => [self.guest].into_iter().collect(),
            Some(reached) => reached.overlap(self.guest).collect(),
        };
        Part { at: self.at, holds: self.holds, guest }
    }
}

/// Collects the pieces that are looked for.
pub(super) struct Found<'w> {
    /// Ascending and disjoint.
    wanted: &'w [ContainerRange],
    /// Bytes in the file.
    size: u64,
    pieces: Vec<Piece>,
    are_too_many: bool,
}

impl<'w> Found<'w> {
    pub(super) fn new(wanted: &'w [ContainerRange], size: u64) -> Self {
        Self { wanted, size, pieces: Vec::new(), are_too_many: false }
    }

    /// Keeps what of the piece is looked for.
    pub(super) fn take(&mut self, piece: Piece) {
        let first = self.wanted.partition_point(|wanted| wanted.end <= piece.at.start);
        for wanted in &self.wanted[first..] {
            let Some(at) = wanted.intersection(piece.at) else { break };
            self.push(piece.part(at), at.start != wanted.start);
        }
    }

    /// Neighbours in the file that are neighbours on the disk become one piece, if they were looked
    /// for as one range.
    fn push(&mut self, piece: Piece, may_join: bool) {
        let has_room = self.pieces.len() < MAX_PIECES;
        match self.pieces.last_mut() {
            Some(last)
                if may_join
                    && last.holds == piece.holds
                    && last.at.end == piece.at.start
                    && last.guest.end == piece.guest.start =>
            {
                last.at.end = piece.at.end;
                last.guest.end = piece.guest.end;
            }
            _ if has_room => self.pieces.push(piece),
            _ => self.are_too_many = true,
        }
    }

    /// The pieces in the order of the file, and between them `rest`, up to the file's end. `None`:
    /// there are too many.
    pub(super) fn end(mut self, rest: Holds) -> Option<Vec<Piece>> {
        self.pieces.sort_by_key(|piece| (piece.at.start, piece.guest.start));
        let mut others = Vec::new();
        let mut pieces = self.pieces.iter().peekable();
        let end = ContainerOffset(self.size);
        for wanted in self.wanted {
            let mut at = wanted.start;
            let last = wanted.end.min(end);
            // Each piece lies in one of the wanted ranges.
            while let Some(piece) = pieces.next_if(|piece| piece.at.start < wanted.end) {
                if piece.at.start > at {
                    others.push(ContainerRange { start: at, end: piece.at.start });
                }
                at = at.max(piece.at.end);
            }
            if at < last {
                others.push(ContainerRange { start: at, end: last });
            }
        }
        self.are_too_many |= self.pieces.len() + others.len() > 2 * MAX_PIECES;
        self.pieces.extend(others.into_iter().map(|at| Piece::alone(rest, at)));
        self.pieces.sort_by_key(|piece| (piece.at.start, piece.guest.start));
        (!self.are_too_many).then_some(self.pieces)
    }
}
