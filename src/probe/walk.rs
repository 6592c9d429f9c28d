//! A walk: the agent lists one mounted filesystem and reads its files.

use super::ProbeError;
use super::baseline::{Baseline, Blocks, InodeSource, Inodes, Items, digest_of_rest};
use super::channel::{ChannelError, WalkContext};
use super::context::Context;
use super::device::Device;
use super::devices::Layouts;
use super::metadata;
use super::mount::unmount;
use super::orphans;
use crate::appliance::{Content, SYSROOT};
use std::sync::Arc;
use virt_bmap_agent_protocol::bounds::LOOKAHEAD_PARTS;
use virt_bmap_agent_protocol::{FsKind, InodeSet, Listings, ReadOrder, Sample, Task, TreeItems, WalkPlan};
use virt_bmap_map::{Cause, MOST_DIGESTS};

/// How the files of a filesystem are looked up and read.
#[derive(Clone)]
struct Manner<'a> {
    /// Which files get a spot check; `None` if each file is read in full.
    sample: Option<Sample>,
    /// The earlier map, whose unchanged files are reused.
    baseline: Option<&'a Arc<Baseline>>,
    /// Whether files may be taken from the tables of inodes.
    uses_tables: bool,
}

/// Has the agent walk a mounted filesystem. `is_settled`: none of its inodes is only in memory. If
/// files cannot be taken from the tables of inodes, or their extents cannot be accepted, the
/// filesystem is walked again: each file is looked up, or even read in full.
pub(super) fn walk(
    context: &Context<'_>,
    filesystem: &Content,
    layouts: &Layouts,
    is_settled: bool,
) -> Result<(), ProbeError> {
    context.channel.end_mount();
    let note_busy = || context.channel.note_busy();
    let inodes = inodes(context, filesystem, layouts, is_settled, &note_busy);
    let inodes = inodes.as_ref();
    let baseline = (context.baseline)(&filesystem.device);
    let kind = filesystem.kind.as_ref();
    let has_tables = kind.is_some_and(FsKind::is_ext) || (kind == Some(&FsKind::Xfs) && is_settled);
    let uses_tables = has_tables && context.sample.is_some_and(|sample| sample != Sample::ALL);
    let mut manner = Manner { sample: context.sample, baseline: baseline.as_ref(), uses_tables };
    loop {
        let again = match walk_as(context, filesystem, layouts, &manner, inodes) {
            Ok(true) if !is_even(context, &filesystem.device) => {
                tracing::debug!("{}: the balance is not even: looking up each file", filesystem.device);
                Manner { uses_tables: false, ..manner }
            }
            Err(ProbeError::Channel(error)) => match manner.after(&error) {
                Some(again) => {
                    tracing::debug!("{}: walking again: {error}", filesystem.device);
                    again
                }
                None => return Err(error.into()),
            },
            result => return result.map(drop),
        };
        manner = again;
        context.channel.forget_walk();
        unmount(context, filesystem)?;
        if let Err(cause) = orphans::mount(context, filesystem)? {
            context.warn(&filesystem.device, cause);
            return Ok(());
        }
        context.channel.end_mount();
    }
}

impl Manner<'_> {
    /// Another manner in which a walk may succeed that has failed so.
    fn after(&self, error: &ChannelError) -> Option<Self> {
        match error {
            ChannelError::Contradiction(_) if self.uses_tables => {
                Some(Self { uses_tables: false, ..self.clone() })
            }
            ChannelError::ExtentMismatch | ChannelError::Damaged
                if self.sample.is_some() || self.baseline.is_some() =>
            {
                Some(Self { sample: None, baseline: None, uses_tables: false })
            }
            _ => None,
        }
    }
}

/// Whether the books of the filesystem that was walked last are even. If there are none, nothing
/// says so.
fn is_even(context: &Context<'_>, device: &str) -> bool {
    context.channel.with(|found, _| {
        let last = found.header_mut().filesystems.last().filter(|last| last.device == device.as_bytes());
        let balance = last.and_then(|last| last.balance);
        balance.is_some_and(|it| (it.unexplained, it.claimed_twice, it.claimed_free) == (0, 0, 0))
    })
}

/// Returns whether files may have been taken from the tables of inodes.
fn walk_as(
    context: &Context<'_>,
    filesystem: &Content,
    layouts: &Layouts,
    manner: &Manner<'_>,
    inodes: Option<&Inodes<'_>>,
) -> Result<bool, ProbeError> {
    let device = filesystem.device.clone();
    let mut walk = WalkContext {
        device: device.clone(),
        kind: filesystem.kind.clone().unwrap_or_default(),
        layout: layouts.by_path.get(&device).cloned(),
        devices: layouts.by_number.clone(),
        legs: context.legs,
        sample: manner.sample,
        baseline: manner.baseline.cloned(),
        unchanged: None,
        overlays: context.overlays.to_vec(),
    };
    let (order, asks) = (walk.read_order(), walk.reuses_files());
    let mut listings = Listings::default();
    if let (true, Some(baseline), Some(inodes)) = (walk.reuses_inodes(), manner.baseline, inodes)
        && let Some((unchanged, host_listings)) =
            inodes.unchanged(device.as_bytes(), &walk.kind, baseline, context.metadata)
    {
        (walk.unchanged, listings) = (Some(Arc::new(unchanged)), host_listings);
    }
    let mut known = known(&walk);
    if walk.kind == FsKind::Ntfs && known.is_full() {
        // The agent would report what is not in the set once more, as files without a name.
        (walk.unchanged, listings, known) = (None, Listings::default(), InodeSet::default());
    }
    let (sequence, first) = context.channel.begin_walk(walk);
    let mut lookahead = inodes.map(Inodes::parts).unwrap_or_default();
    lookahead.truncate(LOOKAHEAD_PARTS);
    let uses_tables = manner.uses_tables && !asks && matches!(order, ReadOrder::Ends(_));
    let root = SYSROOT.to_owned();
    let plan = WalkPlan { sequence, first, root, order, asks, uses_tables, known, listings, lookahead };
    context.channel.hand_over(&Task::Walk(plan))?;
    let walked = context.work();
    let ended = context.channel.end();
    match (walked, ended) {
        (Ok(_), ended) => {
            let layout = layouts.by_path.get(&device).map(|layout| &**layout);
            metadata::filesystem(context, filesystem, layout, &ended?)?;
            if let Some(inodes) = inodes {
                note_digests(context, &device, inodes);
            }
            Ok(uses_tables)
        }
        // The broken protocol is the reason for the agent's failure.
        (Err(_), Err(error)) if !matches!(error, ChannelError::Unfinished) => Err(error.into()),
        (Err(error), _) => {
            context.still_alive(&format!("{device} was being read"))?;
            context.warn(&device, Cause::WalkCutShort { error: virt_bmap_ranges::error_chain(&error) });
            Ok(false)
        }
    }
}

/// The inodes that the agent need not look at. Of NTFS the directories are among them: the agent
/// reads all records, and reports those that nothing has named.
fn known(walk: &WalkContext) -> InodeSet {
    let Some(unchanged) = &walk.unchanged else { return InodeSet::default() };
    let directories = unchanged.directories.inodes().filter(|_| walk.kind == FsKind::Ntfs);
    unchanged.files.keys().copied().chain(directories).collect()
}

/// The inodes of a mounted filesystem; `None` if their place is not known.
fn inodes<'a>(
    context: &'a Context<'a>,
    filesystem: &Content,
    layouts: &Layouts,
    is_settled: bool,
    note_busy: &'a dyn Fn(),
) -> Option<Inodes<'a>> {
    let kind = filesystem.kind.as_ref()?;
    let source =
        InodeSource { disks: context.disks, overlays: context.overlays, legs: context.legs, note_busy };
    if *kind == FsKind::Btrfs {
        let items = Items::new(digest_of_rest(kind, context.legs), layouts.by_number.clone());
        return Inodes::sent(source, sent_items(context, items)?, is_settled);
    }
    let layout = layouts.by_path.get(&filesystem.device)?;
    let device = Device::mounted(context, &filesystem.device, kind, layout);
    Inodes::of(source, &device, kind, layout, is_settled)
}

/// Has the agent send the items of a btrfs. `None` if that fails, or there are too many of them.
fn sent_items(context: &Context<'_>, items: Items) -> Option<Items> {
    let sequence = context.channel.begin_items(items);
    context.channel.hand_over(&Task::Items(TreeItems { sequence, root: SYSROOT.to_owned() })).ok()?;
    let worked = context.work();
    let items = context.channel.end_items();
    let failed = |error: &dyn std::fmt::Display| tracing::debug!("no items of inodes: {error}");
    worked.inspect_err(|error| failed(error)).ok()?;
    items.inspect_err(|error| failed(error)).ok()
}

/// Puts the inode digests of the filesystem that was walked into the map's header.
fn note_digests(context: &Context<'_>, device: &str, inodes: &Inodes<'_>) {
    let (numbers, unsure) = context.channel.take_inodes();
    let blocks: Blocks = context.channel.with(|found, _| found.directory_pieces().collect());
    let Some(digests) = inodes.digests(numbers, unsure, &blocks) else { return };
    context.channel.with(|found, _| {
        let filesystems = &mut found.header_mut().filesystems;
        let held: usize = filesystems.iter().map(|filesystem| filesystem.inodes.len()).sum();
        let last = filesystems.last_mut().filter(|last| last.device == device.as_bytes());
        if let Some(last) = last.filter(|_| held + digests.len() <= MOST_DIGESTS) {
            last.inodes = digests;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_is_made_again_in_a_manner_that_asks_more_of_the_kernel_and_not_for_ever() {
        let first = Manner { sample: Some(Sample::ALL), baseline: None, uses_tables: true };
        let contradiction = ChannelError::Contradiction(b"/file".to_vec());
        let second = first.after(&contradiction).unwrap();
        assert!(!second.uses_tables && second.sample.is_some());
        assert!(second.after(&contradiction).is_none());
        let third = second.after(&ChannelError::ExtentMismatch).unwrap();
        assert!(!third.uses_tables && third.sample.is_none());
        for error in [contradiction, ChannelError::ExtentMismatch, ChannelError::Damaged] {
            assert!(third.after(&error).is_none(), "{error}");
        }
        assert!(first.after(&ChannelError::Unfinished).is_none());
    }
}
