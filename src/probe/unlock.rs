//! Unlocks encrypted devices with the user's keys.

use super::ProbeError;
use super::context::Context;
use super::key::Key;
use crate::appliance::{Content, Inventory, UNLOCKING, Unlocked};
use std::collections::BTreeSet;
use virt_bmap_agent_protocol::{Class, FsKind};
use virt_bmap_map::{Cause, LockReason};

/// Whether content of this type is encrypted.
pub(super) fn is_encrypted(content: &Content) -> bool {
    content.kind.as_ref().is_some_and(|kind| kind.class() == Class::Encrypted)
}

/// Unlocks all devices that the keys fit, including those that appear only then, and returns the
/// new inventory. Warns of each device that stays locked.
pub(super) fn unlock(context: &Context<'_>, mut inventory: Inventory) -> Result<Inventory, ProbeError> {
    let mut tried = BTreeSet::new();
    loop {
        let locked: Vec<Content> = inventory
            .contents
            .iter()
            .filter(|content| is_encrypted(content) && tried.insert(content.device.clone()))
            .cloned()
            .collect();
        let mut opened = false;
        for content in locked {
            opened |= open(context, &content)?;
        }
        if !opened {
            return Ok(inventory);
        }
        // Unlocked devices may hold physical volumes.
        context
            .appliance
            .shell("DM_DISABLE_UDEV=1 lvm vgchange -aay --sysinit >/dev/null 2>&1; true")
            .map_err(ProbeError::Inventory)?;
        inventory = context.appliance.inventory().map_err(ProbeError::Inventory)?;
    }
}

fn open(context: &Context<'_>, content: &Content) -> Result<bool, ProbeError> {
    let device = &content.device;
    let keys: Vec<&Key> =
        context.keys.iter().filter(|key| key.fits(device, content.uuid.as_deref())).collect();
    let is_bitlocker = content.kind == Some(FsKind::BitLocker);
    let kind = if is_bitlocker { "bitlk" } else { "luks" };
    let name = match &content.uuid {
        Some(uuid) => format!("{kind}-{uuid}"),
        None => format!("{kind}-{}", device.trim_start_matches("/dev/").replace('/', "-")),
    };
    let mut never = false;
    for key in &keys {
        match context.appliance.unlock(&content.node, &name, &key.secret, is_bitlocker)? {
            Unlocked::Yes => return Ok(true),
            Unlocked::No => {}
            Unlocked::Never => never = true,
        }
        context.still_alive(&format!("{device} was being unlocked"))?;
    }
    let cause = if keys.is_empty() {
        Cause::Locked { reason: LockReason::NoKey }
    } else if never {
        Cause::KeyTooSlow { seconds: UNLOCKING.as_secs() }
    } else {
        Cause::Locked { reason: LockReason::WrongKey }
    };
    context.warn(device, cause);
    Ok(false)
}
