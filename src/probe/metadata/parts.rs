//! What each block of a filesystem belongs to, besides its files and directories.

use super::facts::{Clusters, Facts, Named};
use super::{Blocks, METADATA, add};
use crate::probe::channel::MetadataInputs;
use crate::probe::layout::Layout;
use virt_bmap_agent_protocol::record::BlockPurpose;
use virt_bmap_map::Marks;
use virt_bmap_ranges::{DeviceOffset, Range};

/// The rest of clusters of which something else has a part.
const SLACK: &str = "[cluster slack]";
/// What is in use, but superseded.
const SUPERSEDED: &str = "[superseded blocks]";

/// The blocks of a filesystem by what they belong to. No two parts have a block in common.
pub(super) struct Parts {
    /// What was read for the filesystem.
    pub(super) read: Blocks,
    /// What files and directories have, and metadata with names of its own.
    pub(super) known: Blocks,
    /// Metadata with a name. The blocks of extended attributes come between the first list and the
    /// second.
    pub(super) named: Vec<Named>,
    pub(super) unnamed: Vec<Named>,
    /// The free blocks, if they are known.
    pub(super) free: Option<Blocks>,
    pub(super) superseded: Blocks,
    /// What is in use, but was not read and has no name.
    pub(super) unexplained: Blocks,
}

impl Parts {
    pub(super) fn of(facts: &Facts, inputs: &MetadataInputs, layout: &Layout) -> Self {
        let read = layout.to_device_partly(&inputs.untagged);
        let owned = layout.to_device_partly(&inputs.owned);
        let free = facts.free.as_ref().map(|free| free.difference(&owned));
        let not_free = |blocks: Blocks| match &free {
            Some(free) => blocks.difference(free),
            None => blocks,
        };
        let mut known = owned.clone();
        let mut named = Vec::new();
        for Named { name, blocks, marks } in &facts.named {
            let blocks = not_free(blocks.difference(&owned));
            add(&mut known, &blocks);
            named.push(Named { name, blocks, marks: *marks });
        }
        let mut all = known.clone();
        add(&mut all, &attribute_blocks(inputs, &read, layout));
        let rest = not_free(read.difference(&all));
        add(&mut all, &rest);
        let mut unnamed = vec![Named { name: METADATA, blocks: rest, marks: Marks::empty() }];
        let (mut superseded, mut unexplained) = (Blocks::new(), Blocks::new());
        if let Some(free) = &free {
            let used = facts.whole.difference(free);
            let slack = slack(facts.clusters, &all, &used.difference(&all));
            add(&mut all, &slack);
            unexplained = used.difference(&all);
            superseded = self::superseded(inputs, &owned, &unexplained);
            unexplained = unexplained.difference(&superseded);
            unnamed.extend([(SLACK, slack), (SUPERSEDED, superseded.clone())].map(|(name, blocks)| Named {
                name,
                blocks,
                marks: Marks::UNVERIFIED,
            }));
        }
        Self { read, known, named, unnamed, free, superseded, unexplained }
    }
}

/// The blocks of all extended attributes: those that were read for them and for nothing else, and
/// their extents.
fn attribute_blocks(inputs: &MetadataInputs, read: &Blocks, layout: &Layout) -> Blocks {
    let mut blocks = Blocks::new();
    for attributes in inputs.attributes.values() {
        add(&mut blocks, &layout.to_device_partly(&attributes.recording));
    }
    blocks = blocks.difference(read);
    for extent in inputs.attributes.values().flat_map(|attributes| &attributes.extents) {
        blocks.extend(Range::at(DeviceOffset(extent.physical), extent.length));
    }
    blocks
}

/// The rest of the clusters of which a part is known.
fn slack(clusters: Option<Clusters>, known: &Blocks, unknown: &Blocks) -> Blocks {
    let Some(Clusters { start: first, size }) = clusters else { return Blocks::new() };
    let of = |at: u64| at.checked_sub(first).map(|within| first + within / size * size);
    let mut slack = Blocks::new();
    // The cluster in which a range begins, and the one in which it ends, may be of known parts.
    for range in unknown.iter() {
        for start in [range.start.0, range.end.0 - 1].into_iter().filter_map(of) {
            let whole: Range<DeviceOffset> = Range::saturating(start, size);
            if known.overlap(whole).next().is_some() {
                slack.extend(whole.intersection(range));
            }
        }
    }
    slack
}

/// The blocks in use that nothing refers to any more, but that the filesystem keeps for now: in
/// segments of a log-structured filesystem, and in extents of which files use another part.
fn superseded(inputs: &MetadataInputs, owned: &Blocks, unexplained: &Blocks) -> Blocks {
    let segments = inputs.spaces.get(&BlockPurpose::LogSegments);
    let in_use = inputs.data_extents.iter().filter(|extent| owned.overlap(**extent).next().is_some());
    let units = segments.into_iter().flat_map(Blocks::iter).chain(in_use.copied());
    units.flat_map(|unit| unexplained.overlap(unit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(ranges: &[(u64, u64)]) -> Blocks {
        ranges.iter().map(|&(start, end)| Range::new(start, end)).collect()
    }

    #[test]
    fn slack_is_in_clusters_of_which_a_part_is_known() {
        let (known, unknown) = (blocks(&[(0, 5), (30, 31)]), blocks(&[(5, 28), (31, 64)]));
        assert_eq!(slack(None, &known, &unknown), Blocks::new());
        let of = |start, size| slack(Some(Clusters { start, size }), &known, &unknown);
        assert_eq!(of(0, 16), blocks(&[(5, 28), (31, 32)]));
        assert_eq!(of(0, 8), blocks(&[(5, 8), (24, 28), (31, 32)]));
        assert_eq!(of(26, 8), blocks(&[(26, 28), (31, 34)]));
    }

    #[test]
    fn superseded_blocks_are_beside_some_that_are_used() {
        let mut inputs = MetadataInputs::default();
        assert!(inputs.space(BlockPurpose::DataExtents, &[(0, 10), (10, 10)]));
        assert!(inputs.space(BlockPurpose::LogSegments, &[(40, 10)]));
        let (owned, unexplained) = (blocks(&[(0, 5)]), blocks(&[(5, 20), (30, 35), (45, 60)]));
        assert_eq!(superseded(&inputs, &owned, &unexplained), blocks(&[(5, 10), (45, 50)]));
    }
}
