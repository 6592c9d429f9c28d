//! The books of a filesystem: each byte that it says is in use must have one owner, and no free
//! byte may have any.
//!
//! The bytes in use come from the filesystem's own count of its blocks, the owners from the walk
//! and from the structures that name metadata. Neither knows of the other, so whatever one of them
//! misses shows.

use super::facts::Facts;
use super::parts::Parts;
use super::{Blocks, METADATA};
use crate::probe::found::Owned;
use crate::probe::layout::Layout;
use crate::recorder::Recording;
use virt_bmap_agent_protocol::FsKind;
use virt_bmap_map::{Balance, Cause};
use virt_bmap_ranges::DiskRange;

/// The balance of a filesystem, and a warning for each way in which it is not even.
pub(super) fn balance(
    facts: &Facts,
    parts: &Parts,
    layout: &Layout,
    owned: &Owned<'_>,
    kind: &FsKind,
) -> (Balance, Vec<Cause>) {
    let Parts { superseded, unexplained, .. } = parts;
    let nothing = Blocks::new();
    let free = facts.free.as_ref().unwrap_or(&nothing);
    let on_device = |recording: &Recording| within(&layout.to_device_partly(recording), &facts.whole);
    let [files, directories] = owned.recordings().map(|recording| on_device(&recording));
    let objects: Blocks = files.iter().chain(directories.iter()).collect();
    let used = facts.whole.difference(free);
    let claimed_free = within(&objects, free);
    let of_files = files.difference(free);
    let of_directories = directories.difference(free).difference(&of_files);
    let others = [&of_files, &of_directories, superseded, unexplained].map(Blocks::bytes);

    let mut twice = Twice::default();
    if !kind.facts().shares_blocks && !facts.shares_blocks {
        twice.objects(owned);
        for named in facts.named.iter().filter(|named| named.name != METADATA) {
            let shared = within(&files, &named.blocks);
            if !shared.is_empty() {
                twice.add(shared.range_count() as u64, shared.bytes(), || {
                    [owned.path_at(layout, &shared), named.name.to_owned()]
                });
            }
        }
    }
    let balance = Balance {
        used: used.bytes(),
        files: of_files.bytes(),
        directories: of_directories.bytes(),
        metadata: used.bytes().saturating_sub(others.iter().sum()),
        superseded: superseded.bytes(),
        unexplained: unexplained.bytes(),
        claimed_twice: twice.bytes,
        claimed_free: claimed_free.bytes(),
    };
    let mut causes = Vec::new();
    let count = |blocks: &Blocks| (blocks.range_count() as u64, blocks.bytes());
    if !unexplained.is_empty() {
        let (ranges, bytes) = count(unexplained);
        causes.push(Cause::Unexplained { ranges, bytes });
    }
    causes.extend(twice.cause());
    if !claimed_free.is_empty() {
        let (ranges, bytes) = count(&claimed_free);
        causes.push(Cause::ClaimedFree { ranges, bytes });
    }
    (balance, causes)
}

/// The parts of `blocks` that are in `limits`.
fn within(blocks: &Blocks, limits: &Blocks) -> Blocks {
    blocks.iter().flat_map(|range| limits.overlap(range)).collect()
}

/// Ranges with two owners.
#[derive(Default)]
struct Twice {
    ranges: u64,
    bytes: u64,
    example: Option<[String; 2]>,
}

impl Twice {
    fn add(&mut self, ranges: u64, bytes: u64, example: impl FnOnce() -> [String; 2]) {
        self.ranges += ranges;
        self.bytes += bytes;
        self.example.get_or_insert_with(example);
    }

    /// Finds the ranges that two files or directories have.
    fn objects(&mut self, owned: &Owned<'_>) {
        // The piece that reaches furthest, of those that begin before.
        let mut last: Option<(usize, u16, DiskRange)> = None;
        for (number, piece) in owned.pieces().iter().enumerate() {
            if let Some((before, disk, range)) = last
                && disk == piece.disk
                && let Some(shared) = range.intersection(piece.range)
                && owned.pieces()[before].object != piece.object
            {
                self.add(1, shared.len(), || [owned.path(before), owned.path(number)]);
            }
            if last.is_none_or(|(_, disk, range)| disk != piece.disk || range.end < piece.range.end) {
                last = Some((number, piece.disk, piece.range));
            }
        }
    }

    fn cause(self) -> Option<Cause> {
        let Self { ranges, bytes, example } = self;
        example.map(|example| Cause::ClaimedTwice { ranges, bytes, example })
    }
}
