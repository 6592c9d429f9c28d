//! A walk: the agent lists one mounted filesystem and reads its files.

use super::ProbeError;
use super::baseline::{Baseline, Blocks, InodeSource, Inodes, Items, digest_of_rest};
use super::channel::{ChannelError, WalkContext};
use super::context::Context;
use super::device::Device;
use super::devices::Layouts;
use super::metadata;
use super::mount::{mount, unmount};
use crate::appliance::{Content, SYSROOT};
use std::sync::Arc;
use virt_bmap_agent_protocol::bounds::LOOKAHEAD_PARTS;
use virt_bmap_agent_protocol::{FsKind, InodeSet, Listings, Sample, Task, TreeItems, WalkPlan};
use virt_bmap_map::{Cause, MOST_DIGESTS};

/// Has the agent walk a mounted filesystem. `is_settled`: none of its inodes is only in memory. If
/// the extents of its files cannot be accepted, the filesystem is walked again, and each file is
/// read in full.
pub(super) fn walk(
    context: &Context<'_>,
    filesystem: &Content,
    layouts: &Layouts,
    is_settled: bool,
) -> Result<(), ProbeError> {
    let note_busy = || context.channel.note_busy();
    let inodes = inodes(context, filesystem, layouts, is_settled, &note_busy);
    let inodes = inodes.as_ref();
    let baseline = (context.baseline)(&filesystem.device);
    match walk_as(context, filesystem, layouts, context.sample, baseline.as_ref(), inodes) {
        Err(ProbeError::Channel(error @ (ChannelError::ExtentMismatch | ChannelError::Damaged))) => {
            tracing::debug!("{}: reading each file in full: {error}", filesystem.device);
            context.channel.forget_walk();
            unmount(context, filesystem)?;
            if mount(context, filesystem)? {
                walk_as(context, filesystem, layouts, None, None, inodes)
            } else {
                Ok(())
            }
        }
        result => result,
    }
}

fn walk_as(
    context: &Context<'_>,
    filesystem: &Content,
    layouts: &Layouts,
    sample: Option<Sample>,
    baseline: Option<&Arc<Baseline>>,
    inodes: Option<&Inodes<'_>>,
) -> Result<(), ProbeError> {
    let device = filesystem.device.clone();
    let mut walk = WalkContext {
        device: device.clone(),
        kind: filesystem.kind.clone().unwrap_or_default(),
        layout: layouts.by_path.get(&device).cloned(),
        devices: layouts.by_number.clone(),
        legs: context.legs,
        sample,
        baseline: baseline.cloned(),
        unchanged: None,
        overlays: context.overlays.to_vec(),
    };
    let (order, asks) = (walk.read_order(), walk.reuses_files());
    let mut listings = Listings::default();
    if let (true, Some(baseline), Some(inodes)) = (walk.reuses_inodes(), baseline, inodes)
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
    let plan =
        WalkPlan { sequence, first, root: SYSROOT.to_owned(), order, asks, known, listings, lookahead };
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
            Ok(())
        }
        // The broken protocol is the reason for the agent's failure.
        (Err(_), Err(error)) if !matches!(error, ChannelError::Unfinished) => Err(error.into()),
        (Err(error), _) => {
            context.still_alive(&format!("{device} was being read"))?;
            context.warn(&device, Cause::WalkCutShort { error: virt_bmap_ranges::error_chain(&error) });
            Ok(())
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
