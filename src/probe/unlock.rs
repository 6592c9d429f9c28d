//! Unlocks encrypted devices with the user's keys.

mod derive;
pub(super) mod header;

use super::context::Context;
use super::device::Device;
use super::key::Key;
use super::{Phase, ProbeError};
use crate::appliance::{Content, Inventory};
use derive::{Derived, HeaderCopy, Limits};
use std::collections::BTreeSet;
use std::time::Duration;
use virt_bmap_agent_protocol::{Class, Encryption, FsKind, Opener, Task, Unlock, Unlocked, bounds};
use virt_bmap_map::{Cause, LockReason};

/// Time limit for unlocking a device in the appliance. A key derivation of seconds takes a minute
/// under emulation, and for some BitLocker headers cryptsetup never ends.
const UNLOCKING: Duration = Duration::from_secs(240);

/// Where keys are derived from passphrases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Derivation {
    /// On the host, in a confined child; in the appliance if that cannot be done.
    #[default]
    Host,
    /// In the appliance.
    Appliance,
}

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
            let size = inventory.device(&content.device).map_or(0, |device| device.size);
            opened |= open(context, &content, size)?;
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

/// An encrypted device, and the name that it gets when it is open.
struct Locked<'a> {
    content: &'a Content,
    name: String,
    encryption: Encryption,
    /// What keys are derived from, if that is done on the host.
    header: Option<HeaderCopy>,
}

fn open(context: &Context<'_>, content: &Content, size: u64) -> Result<bool, ProbeError> {
    let device = &content.device;
    let keys: Vec<&Key> =
        context.keys.iter().filter(|key| key.fits(device, content.uuid.as_deref())).collect();
    if keys.is_empty() {
        context.warn(device, Cause::Locked { reason: LockReason::NoKey });
        return Ok(false);
    }
    (context.phase)(Phase::Unlocking { device: device.clone() });
    let (encryption, kind) = match content.kind {
        Some(FsKind::BitLocker) => (Encryption::BitLocker, "bitlk"),
        _ => (Encryption::Luks, "luks"),
    };
    let name = match &content.uuid {
        Some(uuid) => format!("{kind}-{uuid}"),
        None => format!("{kind}-{}", device.trim_start_matches("/dev/").replace('/', "-")),
    };
    let header = match context.derivation {
        Derivation::Host => {
            let device = Device::new(context.appliance, device, size);
            HeaderCopy::of(&device, encryption)
        }
        Derivation::Appliance => None,
    };
    let locked = Locked { content, name, encryption, header };
    let mut cause = Cause::Locked { reason: LockReason::WrongKey };
    for key in keys {
        match locked.open_with(context, key)? {
            Unlocked::Yes => {
                (context.phase)(Phase::Devices);
                return Ok(true);
            }
            Unlocked::No => {}
            Unlocked::Memory => cause = Cause::Locked { reason: LockReason::Memory },
            Unlocked::Never => cause = Cause::KeyTooSlow { seconds: UNLOCKING.as_secs() },
        }
        context.still_alive(&format!("{device} was being unlocked"))?;
    }
    (context.phase)(Phase::Devices);
    context.warn(device, cause);
    Ok(false)
}

impl Locked<'_> {
    /// Tries one key: derives the volume key on the host, or has the appliance do all of it.
    fn open_with(&self, context: &Context<'_>, key: &Key) -> Result<Unlocked, ProbeError> {
        match self.header.as_ref().map(|header| header.derive(&key.secret, Limits::NORMAL)) {
            Some(Derived::Key(key)) => match self.ask(context, Opener::VolumeKey(key))? {
                Unlocked::Yes => return Ok(Unlocked::Yes),
                // Its cryptsetup may not take volume keys for this kind of device.
                Unlocked::No | Unlocked::Memory | Unlocked::Never => {}
            },
            Some(Derived::WrongPassphrase) => return Ok(Unlocked::No),
            Some(Derived::NotHere(reason)) => {
                tracing::debug!("{}: its key is derived in the appliance: {reason}", self.content.device);
            }
            None => {}
        }
        if key.secret.expose().len() > bounds::SECRET_BYTES {
            // cryptsetup refuses it.
            return Ok(Unlocked::No);
        }
        self.ask(context, Opener::Passphrase(key.secret.clone()))
    }

    /// Has the agent open the device.
    fn ask(&self, context: &Context<'_>, opener: Opener) -> Result<Unlocked, ProbeError> {
        let task = Task::Unlock(Unlock {
            sequence: context.channel.begin_reads(),
            device: self.content.node.clone(),
            name: self.name.clone(),
            encryption: self.encryption,
            opener,
            seconds: UNLOCKING.as_secs(),
        });
        context.channel.hand_over(&task)?;
        let worked = context.appliance.work();
        // Before anything else: this overwrites the secret on the control disk.
        let ended = context.channel.end();
        worked?;
        ended?;
        Ok(context.channel.take_unlocked()?)
    }
}
