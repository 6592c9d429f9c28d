//! A batch of files: opened together, then read, then judged by one reply.

use crate::probe::found::ObjectNumber;
use crate::recorder::Recording;
use std::collections::BTreeMap;
use virt_bmap_agent_protocol::FsKind;
use virt_bmap_agent_protocol::record::Extent;
use virt_bmap_map::Marks;

/// The current batch.
#[derive(Default)]
pub(super) struct Batch {
    /// Its files that are not yet finished, in the order in which they become objects.
    pub(super) files: BTreeMap<ObjectNumber, BatchFile>,
    /// The files that are being read in a series.
    pub(super) series: Vec<ObjectNumber>,
    /// The files that are being read once more.
    pub(super) reread: Vec<ObjectNumber>,
    /// The reply to the agent's next question.
    pub(super) answer: Vec<ObjectNumber>,
    /// The last read of blocks that several files share, while such blocks are read.
    pub(super) packed: Option<Recording>,
}

/// A file of the batch: what the agent reported of it, and what became of its reads.
pub(super) struct BatchFile {
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) allocated: u64,
    pub(super) modified: i64,
    pub(super) changed: i64,
    pub(super) extents: Option<Vec<Extent>>,
    /// Whether it has its pieces.
    pub(super) is_placed: bool,
    /// Whether none of its bytes were read or accepted.
    pub(super) is_placed_nowhere: bool,
    /// It is a metadata file. Much of it is in memory before it can be read.
    pub(super) is_system: bool,
    /// It is encrypted, so it was not opened.
    pub(super) is_encrypted: bool,
    /// It is a symbolic link, for which the kernel reports no extents.
    pub(super) is_link: bool,
    /// Its recording, if that did not match.
    pub(super) unexpected: Option<Recording>,
}

impl BatchFile {
    /// The marks that follow from its extents and sizes. `kind`: of the filesystem.
    pub(super) fn marks(&self, kind: &FsKind) -> Marks {
        let extents = self.extents.as_deref();
        let any = |flag: u32| extents.is_some_and(|extents| extents.iter().any(|e| e.flags & flag != 0));
        let has_no_blocks = match extents {
            Some(extents) => extents.iter().all(|e| e.flags & Extent::INLINE != 0),
            None => self.allocated == 0,
        };
        let mapped: u64 = extents.unwrap_or_default().iter().map(|e| e.length).fold(0, u64::saturating_add);
        // FIEMAP gives the length of compressed data before it was compressed; NTFS only has that
        // of its clusters.
        let is_packed = kind.is_fuse() && any(Extent::ENCODED);
        let mut marks = Marks::empty();
        marks.set(Marks::NO_BLOCKS, self.size == 0 || has_no_blocks);
        marks.set(Marks::INLINE, any(Extent::INLINE));
        marks.set(Marks::ENCODED, any(Extent::ENCODED));
        marks.set(Marks::ENCRYPTED, any(Extent::ENCRYPTED));
        marks.set(Marks::PREALLOCATED, any(Extent::UNWRITTEN));
        marks.set(
            Marks::SPARSE,
            extents.is_some() && mapped < self.size && !any(Extent::INLINE) && !is_packed,
        );
        marks
    }
}
