//! Which of the devices' contents are mounted, and the mounting of one after the other.

use super::blank::is_blank;
use super::context::Context;
use super::kernel_log::note_corrupt_directories;
use super::layout::{Layout, layouts};
use super::mount::{mount_again, note_replay, unmount};
use super::mount_options::{self, Journal};
use super::orphans::{self, mark_again};
use super::signatures::{Signatures, Usage};
use super::unlock::is_encrypted;
use super::{Phase, ProbeError};
use crate::appliance::{Content, Inventory};
use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use virt_bmap_agent_protocol::{Class, FsKind};
use virt_bmap_map::Cause;

/// The filesystems to mount, and the devices of unknown content. A device with several filesystems,
/// of which blkid chooses none, is there several times.
fn to_walk<'a>(inventory: &'a Inventory, signatures: &Signatures) -> (Vec<Content>, Vec<&'a Content>) {
    let (mut filesystems, mut unknown) = (Vec::new(), Vec::new());
    let mut btrfs = BTreeSet::new();
    for content in &inventory.contents {
        let device = &content.device;
        match &content.kind {
            None => {
                let found = signatures.get(device).map(Vec::as_slice).unwrap_or_default();
                let several = found
                    .iter()
                    .filter(|it| it.usage == Usage::Filesystem && it.kind.class() == Class::Filesystem);
                let before = filesystems.len();
                filesystems
                    .extend(several.map(|it| Content { kind: Some(it.kind.clone()), ..content.clone() }));
                if filesystems.len() == before && found.iter().all(|it| it.usage == Usage::PartitionTable) {
                    unknown.push(content);
                }
            }
            Some(kind) if kind.class() == Class::Swap => {}
            // Each member of a btrfs of several devices is listed; one mount shows the whole
            // filesystem.
            Some(FsKind::Btrfs) if content.uuid.is_some() && !btrfs.insert(content.uuid.clone()) => {}
            // It has been unlocked, or a warning says that it was not.
            _ if is_encrypted(content) => {}
            Some(_) => filesystems.push(content.clone()),
        }
    }
    (filesystems, unknown)
}

/// The filesystems that were mounted.
#[derive(Default)]
pub(super) struct Mounted {
    /// Each with the options that it needs, in the order in which they were mounted.
    pub(super) filesystems: Vec<Content>,
    /// What is on their devices: a filesystem, or the journal of one.
    pub(super) devices: BTreeMap<String, FsKind>,
}

/// Mounts each filesystem in turn and calls `walk` with it, and with whether all changes that
/// mounting made are on the disks. The last one stays mounted.
pub(super) fn each_filesystem(
    context: &Context<'_>,
    inventory: &Inventory,
    signatures: &Signatures,
    mut walk: impl FnMut(&Content, bool) -> Result<(), ProbeError>,
) -> Result<Mounted, ProbeError> {
    let (filesystems, unknown) = to_walk(inventory, signatures);
    let (mut mounted, mut in_order) = (BTreeMap::new(), Vec::new());
    let mut failures = Vec::new();
    for (number, filesystem) in (1..).zip(&filesystems) {
        let device = &filesystem.device;
        if let Some(why) = context.left_out.get(device) {
            context.warn(device, why.clone());
            continue;
        }
        if mounted.contains_key(device) {
            continue;
        }
        let kind = filesystem.kind.clone().unwrap_or_default();
        (context.phase)(Phase::Filesystem {
            name: device.clone(),
            kind: kind.to_string(),
            number,
            of: filesystems.len(),
        });
        let needs = mount_options::of(context, inventory, filesystem);
        let filesystem = &Content { mount_options: needs.options, ..filesystem.clone() };
        match visit(context, filesystem, &mut walk)? {
            Ok(()) => {
                match needs.journal {
                    Some(Journal::On { device, kind }) => drop(mounted.insert(device, kind)),
                    Some(Journal::Missing) => context.warn(&filesystem.device, Cause::JournalMissing),
                    None => {}
                }
                // The last one is not unmounted: mostly the appliance ends next, and that is
                // faster.
                if number < filesystems.len() {
                    unmount(context, filesystem)?;
                }
                mounted.insert(device.clone(), kind);
                in_order.push(filesystem.clone());
            }
            Err(cause) => failures.push((filesystem.clone(), cause)),
        }
    }
    // Of several filesystems on a device, one is enough; the others are signatures besides.
    for (Content { device, kind, .. }, cause) in failures {
        if mounted.contains_key(&device) {
            continue;
        }
        let found = signatures.get(&device).into_iter().flatten();
        let label = found.filter(|it| Some(&it.kind) == kind.as_ref()).find_map(|it| it.label.clone());
        context.warn(
            &device,
            match cause {
                Cause::SignatureUnused { signature, .. } => Cause::SignatureUnused { signature, label },
                cause => cause,
            },
        );
    }
    let layouts = LazyCell::new(|| layouts(inventory, &context.as_seen()).by_path);
    for Content { device, .. } in unknown {
        // A table that was written over a filesystem: the partition has bytes of that.
        let whole = inventory.device(device).and_then(|device| inventory.partitioned(device));
        if whole.is_some_and(|whole| mounted.contains_key(&whole.path)) {
            continue;
        }
        let is_disk = inventory.disks.iter().any(|disk| disk.path == *device);
        explain_unknown(context, device, is_disk, signatures.contains_key(device), layouts.get(device));
    }
    Ok(Mounted { filesystems: in_order, devices: mounted })
}

/// Mounts a filesystem, and calls `walk` as [`each_filesystem`] does. The inner error is why it
/// cannot be mounted.
fn visit(
    context: &Context<'_>,
    filesystem: &Content,
    walk: &mut impl FnMut(&Content, bool) -> Result<(), ProbeError>,
) -> Result<Result<(), Cause>, ProbeError> {
    if let Err(cause) = orphans::mount(context, filesystem)? {
        return Ok(Err(cause));
    }
    let is_settled = note_replay(context, filesystem, || context.appliance.kernel_log().ok());
    walk(filesystem, is_settled)?;
    let log = context.appliance.kernel_log().unwrap_or_default();
    note_corrupt_directories(context, filesystem, &log);
    Ok(Ok(()))
}

/// Mounts these filesystems once more, walks them as [`each_filesystem`] does, and lets the
/// appliance forget them. `false`: one of them cannot be mounted any more.
pub(super) fn each_again(
    context: &Context<'_>,
    filesystems: &[&Content],
    layouts: &HashMap<String, Arc<Layout>>,
    mut walk: impl FnMut(&Content, bool) -> Result<(), ProbeError>,
) -> Result<bool, ProbeError> {
    for (number, filesystem) in (1..).zip(filesystems) {
        let kind = filesystem.kind.as_ref().map(FsKind::to_string).unwrap_or_default();
        let (name, of) = (filesystem.device.clone(), filesystems.len());
        (context.phase)(Phase::Filesystem { name, kind, number, of });
        let layout = layouts.get(&filesystem.device);
        let is_marked = layout.is_none_or(|layout| mark_again(context, filesystem, layout).is_some());
        if let Some(is_settled) = is_marked.then(|| mount_again(context, filesystem)).flatten() {
            walk(filesystem, is_settled)?;
            let log = context.leave()?;
            note_corrupt_directories(context, filesystem, &log);
            continue;
        }
        if visit(context, filesystem, &mut walk)?.is_err() {
            return Ok(false);
        }
        unmount(context, filesystem)?;
        context.appliance.forget()?;
    }
    Ok(true)
}

/// Warns of a device with unknown content. `has_table`: a partition table without partitions.
fn explain_unknown(
    context: &Context<'_>,
    device: &str,
    is_disk: bool,
    has_table: bool,
    layout: Option<&Layout>,
) {
    /// Where the first GPT of a disk with 4096-byte sectors ends; others are smaller.
    const TABLE: u64 = 24 << 10;
    let special = special(context, device);
    let cause = if special == Some(Special::StorageSpaces) {
        Cause::SignatureUnused { signature: "storage_spaces".to_owned(), label: None }
    } else if special == Some(Special::Code) {
        return;
    } else if is_blank(context, layout, if has_table { TABLE } else { 0 }) {
        // Windows leaves the reserved one empty.
        if special == Some(Special::Reserved) {
            return;
        }
        Cause::Blank { disk: is_disk }
    } else {
        Cause::UnknownContent
    };
    context.warn(device, cause);
}

/// Partitions of types that hold no filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Special {
    /// A program, or the database of Windows dynamic disks.
    Code,
    /// Reserved by Windows for its own use, and mostly empty.
    Reserved,
    /// A disk of Windows Storage Spaces.
    StorageSpaces,
}

/// Which of them a partition is, by the type in the GPT.
fn special(context: &Context<'_>, name: &str) -> Option<Special> {
    /// BIOS boot partition, PowerPC PReP boot, metadata of Windows dynamic disks, Microsoft reserved
    /// partition, Storage Spaces (`gpt.h` of util-linux has them all).
    const TYPES: [(&str, Special); 5] = [
        ("21686148-6449-6E6F-744E-656564454649", Special::Code),
        ("9E1A2D38-C612-4316-AA26-8B49521E5A8B", Special::Code),
        ("5808C8AA-7E8F-42E0-85D2-E1E90434CFB3", Special::Code),
        ("E3C9E316-0B5C-4DB8-817D-F92DF00215AE", Special::Reserved),
        ("E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D", Special::StorageSpaces),
    ];
    let kind = context.appliance.call(|g| {
        let device = g.part_to_dev(name)?;
        g.part_get_gpt_type(&device, g.part_to_partnum(name)?)
    });
    let kind = kind.ok()?;
    TYPES.iter().find(|(known, _)| known.eq_ignore_ascii_case(&kind)).map(|(_, special)| *special)
}
