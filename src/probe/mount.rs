//! Mounting filesystems in the appliance: options, missing devices, replayed journals.

use super::ProbeError;
use super::context::Context;
use super::mount_failure;
use crate::appliance::Content;
use virt_bmap_agent_protocol::FsKind;
use virt_bmap_map::Cause;

/// Mounts a filesystem. The inner error is why that failed.
pub(super) fn try_mount(
    context: &Context<'_>,
    filesystem: &Content,
) -> Result<Result<(), Cause>, ProbeError> {
    let device = &filesystem.device;
    let kind = filesystem.kind.clone().unwrap_or_default();
    let facts = kind.facts();
    let options = options(filesystem);
    context.channel.begin_mount();
    let mounted = if is_subvolume(filesystem) || kind.name().is_empty() {
        context.appliance.call(|g| g.mount_options(&options, device, "/"))
    } else {
        // With the type given, mount does not search the device for it, and does not refuse one
        // that has signatures of several.
        context.appliance.call(|g| g.mount_vfs(&options, kind.name(), device, "/"))
    };
    match mounted {
        Ok(()) => Ok(Ok(())),
        Err(_) if mount_degraded(context, &options, facts.degraded_option, device) => Ok(Ok(())),
        Err(error) => {
            context.still_alive(&format!("{device} was being mounted"))?;
            Ok(Err(mount_failure::cause(context, filesystem, &error)))
        }
    }
}

/// All options with which a filesystem is mounted.
fn options(filesystem: &Content) -> String {
    let facts = filesystem.kind.clone().unwrap_or_default().facts();
    let mut options = "ro,nodev,nosuid,noexec".to_owned();
    let own = facts.mount_options.filter(|_| !is_subvolume(filesystem));
    let needed = filesystem.mount_options.as_deref();
    for option in own.into_iter().chain(needed) {
        options.push(',');
        options.push_str(option);
    }
    options
}

fn is_subvolume(filesystem: &Content) -> bool {
    filesystem.device.starts_with("btrfsvol:")
}

/// Mounts a filesystem again, with one call. Warns and returns as [`note_replay`] does; `None`: it
/// cannot be mounted in this way.
pub(super) fn mount_again(context: &Context<'_>, filesystem: &Content) -> Option<bool> {
    let kind = filesystem.kind.as_ref().filter(|kind| !kind.is_fuse() && !kind.name().is_empty())?;
    if is_subvolume(filesystem) {
        return None;
    }
    context.channel.begin_mount();
    let said = context.mount_in_kernel(&filesystem.node, kind.name(), &options(filesystem)).ok()?;
    Some(note_replay(context, filesystem, || Some(said)))
}

/// Mounts a filesystem that lacks a device, if its driver has an option for that.
fn mount_degraded(context: &Context<'_>, options: &str, degraded: Option<&str>, device: &str) -> bool {
    let Some(degraded) = degraded else { return false };
    let options = format!("{options},{degraded}");
    let is_mounted = context.appliance.call(|g| g.mount_options(&options, device, "/")).is_ok();
    if is_mounted {
        context.warn(device, Cause::FilesystemDeviceMissing);
    }
    is_mounted
}

/// Warns if mounting a filesystem has just replayed its journal. Returns whether all changes that
/// mounting made are on the disks: ext4 waits for that after a replay, but not after it has removed
/// files that were deleted while they were open.
/// `said` gives what the kernel has said meanwhile.
pub(super) fn note_replay(
    context: &Context<'_>,
    filesystem: &Content,
    said: impl FnOnce() -> Option<String>,
) -> bool {
    /// Kernel messages of drivers that replay a journal, in lower case.
    const SAID: [&str; 6] = [
        "recovery complete",
        "ending recovery",
        "log replay",
        "recover_inode: ino",
        "recover_dentry: ino",
        "recover_data: ino",
    ];
    let Some(facts) = filesystem.kind.as_ref().map(FsKind::facts).filter(|facts| facts.has_journal) else {
        return false;
    };
    let Some(said) = said() else { return false };
    let said = said.to_ascii_lowercase();
    let was_cleaned = said.contains("orphan");
    let was_replayed = SAID.iter().any(|words| said.contains(words));
    if was_replayed {
        context.warn(&filesystem.device, Cause::JournalReplayed);
    }
    !(was_cleaned || was_replayed && facts.replays_in_memory)
}

pub(super) fn unmount(context: &Context<'_>, filesystem: &Content) -> Result<(), ProbeError> {
    unmount_all(context, &format!("{} was being unmounted", filesystem.device))
}

/// Unmounts what is mounted. `during`: what the appliance does, for the error that it has died.
pub(super) fn unmount_all(context: &Context<'_>, during: &str) -> Result<(), ProbeError> {
    context.appliance.call(guestfs::Handle::umount_all).map_err(|_| context.died(during))
}
