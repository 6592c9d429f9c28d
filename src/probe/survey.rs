//! Goes through a guest's devices and file systems with the agent.

use super::baseline::Baseline;
use super::channel::{Channel, ChannelError, FIRST_PROOF, WalkContext};
use super::found::ObjectNumber;
use super::inodes::Inodes;
use super::layout::{Layout, PROOF, Proof, Segment, layouts};
use super::metadata;
use super::unlock::{Key, is_encrypted, unlock};
use super::{Legs, Phase, ProbeError};
use crate::appliance::{
    Appliance, BlockDevice, Content, DeviceKind, DeviceNumber, DmTarget, Inventory, SYSROOT,
};
use crate::recorder::Recording;
use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use virt_bmap_agent_protocol::bounds::LOOKAHEAD_PARTS;
use virt_bmap_agent_protocol::{Class, DeviceRead, DeviceReads, FsKind, Listings, Sample, Task, WalkPlan};
use virt_bmap_image::{Overlay, Source};
use virt_bmap_map::{Cause, Kind, PieceFlags, Role};
use virt_bmap_ranges::{DiskNumber, DiskOffset, Range};

/// Of how many segments at either end of a copy the content is looked at.
const LOOKS: usize = 16;

/// What a probe works with.
pub struct Context<'a> {
    /// The running appliance.
    pub appliance: &'a Appliance,
    /// The host's end of the control disk.
    pub channel: &'a Channel,
    /// The guest's disks, in order.
    pub disks: &'a [Arc<dyn Source>],
    /// Keys of encrypted devices.
    pub keys: &'a [Key],
    /// Whether what belongs to no file is mapped, too.
    pub metadata: bool,
    /// Which copies are in the map.
    pub legs: Legs,
    /// Which extents are read at their ends, if the kernel's word is taken for the rest.
    pub sample: Option<Sample>,
    /// An earlier map of the guest, of which is taken over what is as it was.
    pub baseline: Option<&'a Arc<Baseline>>,
    /// What the appliance has written to the disks, in order.
    pub overlays: &'a [Arc<Overlay>],
    /// File systems that are left out, and why.
    pub left_out: &'a BTreeMap<String, Cause>,
    /// Told what is being done.
    pub phase: &'a dyn Fn(Phase),
}

/// Reads everything with the agent.
///
/// # Errors
/// [`ProbeError`]; what concerns one device or filesystem alone becomes a warning.
pub fn survey(context: &Context<'_>) -> Result<(), ProbeError> {
    (context.phase)(Phase::Devices);
    let appliance = context.appliance;
    appliance.stop_udev().map_err(ProbeError::Inventory)?;
    appliance.start_agent()?;
    let inventory = appliance.inventory().map_err(ProbeError::Inventory)?;
    let inventory = unlock(context, inventory)?;
    context.channel.with(|_, warnings| {
        for (device, cause) in &inventory.warnings {
            warnings.on_device(device, cause.clone());
        }
    });
    let layouts = devices(context, &inventory)?;
    if context.metadata {
        metadata::devices(context, &inventory, &layouts.by_path)?;
    }
    note_missing(context, &inventory, &layouts);
    context.each_filesystem(&inventory, |filesystem, is_settled| {
        walk(context, filesystem, &layouts, is_settled)
    })?;
    note_clones(context, &inventory);
    Ok(())
}

/// Says which arrays and volumes lack a member. Where nothing is lost for it, that is a warning.
fn note_missing(context: &Context<'_>, inventory: &Inventory, layouts: &Layouts) {
    let assembled = inventory.devices().filter_map(|device| match &device.kind {
        DeviceKind::Md(array) if device.size > 0 => Some(array),
        _ => None,
    });
    let used: BTreeSet<DeviceNumber> = assembled
        .flat_map(|array| {
            array.members.iter().map(|member| member.device).chain(array.spares.iter().copied())
        })
        .collect();
    for content in inventory.members.iter().filter(|content| content.kind == Some(FsKind::RaidMember)) {
        let device = inventory.device(&content.device);
        if device.is_some_and(|device| !used.contains(&device.number)) {
            context.warn(&content.device, Cause::ArrayMemberUnused);
        }
    }
    for device in inventory.devices().filter(|device| device.size > 0) {
        let missing = match &device.kind {
            DeviceKind::Md(array) => array.disks.saturating_sub(array.members.len() as u64),
            DeviceKind::Dm { targets } => targets.iter().map(DmTarget::missing_members).max().unwrap_or(0),
            _ => 0,
        };
        if missing == 0 {
            continue;
        }
        let lost = layouts.by_path.get(&device.path).is_none_or(|layout| layout.is_partial());
        context.warn(&device.path, Cause::MembersMissing { count: missing, lost });
    }
}

/// Says which devices hold a btrfs that was mounted from others: the kernel takes those with the same UUID for one.
fn note_clones(context: &Context<'_>, inventory: &Inventory) {
    let mounted = context.channel.btrfs_members();
    for content in inventory.contents.iter().filter(|content| content.kind == Some(FsKind::Btrfs)) {
        let device = inventory.device(&content.device);
        let Some(device) = device.filter(|device| !mounted.contains(&device.number)) else { continue };
        let same = |other: &&Content| other.uuid == content.uuid && other.device != content.device;
        if let Some(other) = inventory.contents.iter().find(same) {
            context.warn(&device.path, Cause::SameUuid { device: other.device.clone() });
        }
    }
}

/// `is_settled`: its inodes lie on the disks as they are, and not still in memory.
fn walk(
    context: &Context<'_>,
    filesystem: &Content,
    layouts: &Layouts,
    is_settled: bool,
) -> Result<(), ProbeError> {
    let layout = layouts.by_path.get(&filesystem.device);
    let inodes = if context.metadata { None } else { Inodes::of(context, filesystem, layout, is_settled) };
    let inodes = inodes.as_ref();
    match walk_as(context, filesystem, layouts, context.sample, context.baseline, inodes) {
        Err(ProbeError::Channel(error @ (ChannelError::ExtentMismatch | ChannelError::Damaged))) => {
            tracing::debug!("{}: all of each file is read: {error}", filesystem.device);
            context.channel.forget_walk();
            context.unmount(filesystem)?;
            if context.mount(filesystem)? {
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
        metadata: context.metadata,
        sample,
        baseline: baseline.cloned(),
        known: None,
        overlays: context.overlays.to_vec(),
    };
    let (order, asks) = (walk.read_order(), walk.takes_over());
    let mut listings = Listings::default();
    if let (true, Some(baseline), Some(inodes)) = (asks, baseline, inodes)
        && let Some((known, told)) = inodes.known(filesystem, baseline)
    {
        (walk.known, listings) = (Some(Arc::new(known)), told);
    }
    let known = walk.known.iter().flat_map(|known| known.files.keys().copied()).collect();
    let (sequence, first) = context.channel.begin_walk(walk);
    let mut lookahead = inodes.map(Inodes::parts).unwrap_or_default();
    lookahead.truncate(LOOKAHEAD_PARTS);
    let (root, metadata) = (SYSROOT.to_owned(), context.metadata);
    let plan = WalkPlan { sequence, first, root, order, metadata, asks, known, listings, lookahead };
    context.channel.hand_over(&Task::Walk(plan))?;
    let walked = context.appliance.work();
    let ended = context.channel.end();
    match (walked, ended) {
        (Ok(()), Ok(remains)) if context.metadata => {
            let layout = layouts.by_path.get(&device).map(|layout| &**layout);
            metadata::filesystem(context, filesystem, layout, &remains)
        }
        (Ok(()), ended) => {
            ended?;
            if let Some(inodes) = inodes {
                inodes.note(&device);
            }
            Ok(())
        }
        // What it said wrong is why it was cut off.
        (Err(_), Err(error)) if !matches!(error, ChannelError::Unfinished) => Err(error.into()),
        (Err(error), _) => {
            context.still_alive(&format!("{device} was being read"))?;
            context.warn(&device, Cause::WalkCutShort { error: virt_bmap_ranges::error_chain(&error) });
            Ok(())
        }
    }
}

/// The layouts that have been proved.
#[derive(Default)]
struct Layouts {
    by_path: HashMap<String, Arc<Layout>>,
    by_number: Arc<HashMap<DeviceNumber, Arc<Layout>>>,
}

/// Adds the objects of disks, partitions and volumes, and says where they lie: as the kernel's tables say
/// where tagged reads prove them, else by reading all of the device. Returns the proven layouts.
fn devices(context: &Context<'_>, inventory: &Inventory) -> Result<Layouts, ProbeError> {
    let mut numbers: Vec<(&BlockDevice, ObjectNumber)> = Vec::new();
    let kinds = [
        (Kind::Disk, &inventory.disks),
        (Kind::Partition, &inventory.partitions),
        (Kind::LogicalVolume, &inventory.volumes),
        (Kind::MappedDevice, &inventory.others),
    ];
    for (kind, devices) in kinds {
        for device in devices {
            let number = context.channel.with(|found, _| found.device(kind, &device.path))?;
            numbers.push((device, number));
        }
    }

    let mut computed = layouts(inventory);
    let mut plan = Vec::new();
    let mut expected: HashMap<u32, (&str, Proof)> = HashMap::new();
    let mut tag = FIRST_PROOF;
    for (device, _) in &numbers {
        for proof in computed.get(&device.path).map(Layout::proofs).unwrap_or_default() {
            plan.push(DeviceRead { tag, device: device.node.clone(), offset: proof.at.0, length: PROOF });
            expected.insert(tag, (&device.path, proof));
            tag += 1;
        }
    }
    read(context, plan)?;
    let proofs = context.channel.take_proofs();
    for (tag, (device, proof)) in &expected {
        let read = proofs.get(tag);
        // Without one of its members, an array keeps in memory what has been read of the others.
        let may_be_cached = computed.get(*device).is_some_and(Layout::is_partial);
        let is_cached = may_be_cached && read.is_none_or(Recording::is_empty);
        if !is_cached && !read.is_some_and(|read| proof.is_given_by(read)) {
            tracing::debug!("{device} is not where it should be: {proof:?}, not {read:?}");
            computed.remove(*device);
        }
    }

    let (mut by_path, mut by_number) = (HashMap::new(), HashMap::new());
    let mut plan = Vec::new();
    for (device, number) in &numbers {
        let Some(mut layout) = computed.remove(&device.path) else {
            plan.push(DeviceRead {
                tag: *number,
                device: device.node.clone(),
                offset: 0,
                length: device.size,
            });
            continue;
        };
        let copies = layout.copy_count();
        layout.retain_copies(|first, copy| context.holds_the_same(first, copy));
        context.channel.with(|found, warnings| -> Result<(), ProbeError> {
            if layout.copy_count() < copies {
                warnings.on_device(&device.path, Cause::CopiesDiffer);
            }
            let all = context.legs == Legs::All;
            for segment in layout.segments().filter(|segment| all || segment.copy == 0) {
                let role = Role::copy(segment.copy);
                found.range(*number, segment.disk, segment.disk_range(), None, role)?;
            }
            for segment in layout.parity_segments().filter(|_| all) {
                let role = Role { copy: segment.copy, flags: PieceFlags::PARITY };
                found.range(*number, segment.disk, segment.disk_range(), None, role)?;
            }
            Ok(())
        })?;
        let layout = Arc::new(layout);
        by_path.insert(device.path.clone(), layout.clone());
        by_number.insert(device.number, layout);
    }
    read(context, plan)?;
    Ok(Layouts { by_path, by_number: Arc::new(by_number) })
}

fn read(context: &Context<'_>, reads: Vec<DeviceRead>) -> Result<(), ProbeError> {
    if reads.is_empty() {
        return Ok(());
    }
    let sequence = context.channel.begin_reads();
    context.channel.hand_over(&Task::ReadDevices(DeviceReads { sequence, reads }))?;
    let read = context.appliance.work();
    context.channel.end()?;
    Ok(read?)
}

impl Context<'_> {
    /// Adds a warning about a device.
    pub(super) fn warn(&self, device: &str, cause: Cause) {
        self.channel.with(|_, warnings| warnings.on_device(device, cause));
    }

    /// The file systems that are to be mounted. What else the devices hold is noted where it hides files.
    fn to_walk(&self, inventory: &Inventory) -> Vec<Content> {
        let mut filesystems = Vec::new();
        let mut btrfs = BTreeSet::new();
        let layouts = LazyCell::new(|| layouts(inventory));
        for content in &inventory.contents {
            let device = &content.device;
            match &content.kind {
                None => self.explain_unknown(inventory, &layouts, device),
                Some(kind) if kind.class() == Class::Swap => {}
                // Each member of a btrfs of several devices is listed; one mount shows all.
                Some(FsKind::Btrfs) if content.uuid.is_some() && !btrfs.insert(content.uuid.clone()) => {}
                // Has been unlocked, or been noted.
                _ if is_encrypted(content) => {}
                Some(_) => filesystems.push(content.clone()),
            }
        }
        filesystems
    }

    /// Mounts each file system in turn, and has `walk` read it. It is told, too, whether all that mounting has changed is
    /// on the disks.
    pub(super) fn each_filesystem(
        &self,
        inventory: &Inventory,
        mut walk: impl FnMut(&Content, bool) -> Result<(), ProbeError>,
    ) -> Result<(), ProbeError> {
        let filesystems = self.to_walk(inventory);
        for (number, filesystem) in (1..).zip(&filesystems) {
            if let Some(why) = self.left_out.get(&filesystem.device) {
                self.warn(&filesystem.device, why.clone());
                continue;
            }
            (self.phase)(Phase::Filesystem {
                name: filesystem.device.clone(),
                kind: filesystem.kind.as_ref().map(FsKind::to_string).unwrap_or_default(),
                number,
                of: filesystems.len(),
            });
            if self.mount(filesystem)? {
                let is_settled = self.note_replay(filesystem);
                walk(filesystem, is_settled)?;
                // The last one stays until the appliance is gone, which takes no time then.
                if number < filesystems.len() {
                    self.unmount(filesystem)?;
                }
            }
        }
        Ok(())
    }

    /// Mounts a file system; `false`: it cannot be mounted, which has been noted.
    fn mount(&self, filesystem: &Content) -> Result<bool, ProbeError> {
        let device = &filesystem.device;
        let kind = filesystem.kind.clone().unwrap_or_default();
        let facts = kind.facts();
        let is_subvolume = device.starts_with("btrfsvol:");
        let mut options = "ro,nodev,nosuid,noexec".to_owned();
        let own = facts.mount_options.filter(|_| !is_subvolume);
        for option in own.into_iter().chain(facts.metadata_option.filter(|_| self.metadata)) {
            options.push(',');
            options.push_str(option);
        }
        self.channel.begin_mount();
        let mounted = if self.metadata && !is_subvolume {
            // Told the type, mount does not look for it all over the device.
            self.appliance.call(|g| g.mount_vfs(&options, kind.name(), device, "/"))
        } else {
            self.appliance.call(|g| g.mount_options(&options, device, "/"))
        };
        match mounted {
            Ok(()) => Ok(true),
            Err(_) if self.mount_degraded(&options, facts.degraded_option, device) => Ok(true),
            Err(error) => {
                self.still_alive(&format!("{device} was being mounted"))?;
                let (filesystem, error) = (kind.to_string(), error.to_string());
                self.warn(device, Cause::MountFailed { filesystem, error });
                Ok(false)
            }
        }
    }

    /// Mounts a file system that lacks a device, if there is an option for that.
    fn mount_degraded(&self, options: &str, degraded: Option<&str>, device: &str) -> bool {
        let Some(degraded) = degraded else { return false };
        let options = format!("{options},{degraded}");
        let is_mounted = self.appliance.call(|g| g.mount_options(&options, device, "/")).is_ok();
        if is_mounted {
            self.warn(device, Cause::FilesystemDeviceMissing);
        }
        is_mounted
    }

    /// Says so if mounting a file system has just changed it. Whether all of that is on the disks: after a replay ext4 waits
    /// for it, but not after it has cleaned up files that were deleted while they were open.
    fn note_replay(&self, filesystem: &Content) -> bool {
        /// What drivers that replay a journal say then, in lower case.
        const SAID: [&str; 6] = [
            "recovery complete",
            "ending recovery",
            "log replay",
            "recover_inode: ino",
            "recover_dentry: ino",
            "recover_data: ino",
        ];
        let Some(facts) = filesystem.kind.as_ref().map(FsKind::facts).filter(|facts| facts.has_journal)
        else {
            return false;
        };
        let Ok(said) = self.appliance.kernel_log() else { return false };
        let said = said.to_ascii_lowercase();
        let was_cleaned = said.contains("orphan");
        let was_replayed = SAID.iter().any(|words| said.contains(words));
        if was_replayed {
            self.warn(&filesystem.device, Cause::JournalReplayed);
        }
        !(was_cleaned || was_replayed && facts.replays_in_memory)
    }

    fn unmount(&self, filesystem: &Content) -> Result<(), ProbeError> {
        self.appliance
            .call(guestfs::Handle::umount_all)
            .map_err(|_| self.died(&format!("{} was being unmounted", filesystem.device)))
    }

    /// Whether the appliance still answers.
    ///
    /// # Errors
    /// [`ProbeError::Died`]
    pub(super) fn still_alive(&self, during: &str) -> Result<(), ProbeError> {
        self.appliance.shell("true").map(drop).map_err(|_| self.died(during))
    }

    fn died(&self, during: &str) -> ProbeError {
        let (during, console) = (during.to_owned(), self.appliance.console());
        match console.panic() {
            Some(panic) => ProbeError::Crashed { during, panic },
            None => ProbeError::Died { during, console: console.tail() },
        }
    }

    /// Notes that it is not known what a device holds.
    fn explain_unknown(&self, inventory: &Inventory, layouts: &HashMap<String, Layout>, device: &str) {
        let is_disk = inventory.disks.iter().any(|disk| disk.path == *device);
        if self.is_blank(layouts.get(device)) {
            self.warn(device, Cause::Blank { disk: is_disk });
        } else if !self.is_boot_code(device) {
            self.warn(device, Cause::UnknownContent);
        }
    }

    /// Whether a copy of a mirrored device holds what the first copy holds, as far as a look at both ends of
    /// its segments tells.
    fn holds_the_same(&self, first: &Layout, copy: &[Segment]) -> bool {
        const LOOK: u64 = 4096;
        let read = |disk: DiskNumber, at: u64, length: u64| {
            let mut bytes = vec![0; length as usize];
            let disk = self.disks.get(usize::from(disk) - 1)?;
            disk.read_at(&mut bytes, DiskOffset(at)).ok().map(|()| bytes)
        };
        let few = copy.iter().take(LOOKS).chain(copy.iter().rev().take(LOOKS));
        few.flat_map(|segment| {
            let length = segment.device.len().min(LOOK);
            [0, segment.device.len() - length].map(|skip| (segment, skip, length))
        })
        .all(|(segment, skip, length)| {
            let start = segment.device.start.0 + skip;
            let Some(parts) = first.part(Range::new(start, start + length)) else { return false };
            let of_first: Option<Vec<Vec<u8>>> = parts
                .iter()
                .filter(|part| part.copy == 0)
                .map(|part| read(part.disk, part.start.0, part.device.len()))
                .collect();
            let of_copy = read(segment.disk, segment.start.0 + skip, length);
            of_first.map(|pieces| pieces.concat()) == of_copy && of_copy.is_some()
        })
    }

    /// Whether the first megabyte of a device reads as zeroes.
    fn is_blank(&self, layout: Option<&Layout>) -> bool {
        const LOOK: u64 = 1 << 20;
        let Some(first) = layout.and_then(|layout| layout.segments().next()) else { return false };
        let Some(disk) = self.disks.get(usize::from(first.disk) - 1) else { return false };
        let mut bytes = vec![0; first.device.len().min(LOOK) as usize];
        disk.read_at(&mut bytes, DiskOffset(first.start.0)).is_ok() && bytes.iter().all(|byte| *byte == 0)
    }

    /// Whether a partition is of a type that never holds a file system.
    fn is_boot_code(&self, name: &str) -> bool {
        /// BIOS boot partition, Microsoft reserved partition, PowerPC PReP boot, metadata of Windows dynamic disks.
        const TYPES: [&str; 4] = [
            "21686148-6449-6E6F-744E-656564454649",
            "E3C9E316-0B5C-4DB8-817D-F92DF00215AE",
            "9E1A2D38-C612-4316-AA26-8B49521E5A8B",
            "5808C8AA-7E8F-42E0-85D2-E1E90434CFB3",
        ];
        let kind = self.appliance.call(|g| {
            let device = g.part_to_dev(name)?;
            g.part_get_gpt_type(&device, g.part_to_partnum(name)?)
        });
        kind.is_ok_and(|kind| TYPES.iter().any(|known| known.eq_ignore_ascii_case(&kind)))
    }
}
