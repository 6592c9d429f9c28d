//! What a probe works with.

use super::baseline::Baseline;
use super::channel::Channel;
use super::key::Key;
use super::unlock::Derivation;
use super::{Legs, Phase, ProbeError};
use crate::appliance::{Appliance, BlockDevice, Inventory};
use crate::geometry::Geometry;
use std::collections::BTreeMap;
use std::sync::Arc;
use virt_bmap_agent_protocol::Sample;
use virt_bmap_image::{Overlay, Source};
use virt_bmap_map::Cause;

/// What a probe works with.
pub struct Context<'a> {
    /// The running appliance.
    pub appliance: &'a Appliance,
    /// The host's end of the control disk.
    pub channel: &'a Channel,
    /// The guest's disks, in order.
    pub disks: &'a [Arc<dyn Source>],
    /// What their partition tables say of the disks as a whole, in order.
    pub geometry: &'a [Geometry],
    /// Keys of encrypted devices.
    pub keys: &'a [Key],
    /// Where keys are derived from passphrases.
    pub derivation: Derivation,
    /// Whether metadata, symbolic links and free space are mapped, too.
    pub metadata: bool,
    /// Which copies are in the map.
    pub legs: Legs,
    /// Which files get a spot check; `None` if each file is read in full.
    pub sample: Option<Sample>,
    /// The earlier map of the filesystem on a device, whose unchanged files are reused.
    pub baseline: &'a dyn Fn(&str) -> Option<Arc<Baseline>>,
    /// Whether the appliance has forgotten the content of the disks. Then a device can be read and
    /// written on the disks themselves, before it is mounted.
    pub is_again: bool,
    /// The overlays of the disks, in order.
    pub overlays: &'a [Arc<Overlay>],
    /// Filesystems that are not read, and why.
    pub left_out: &'a BTreeMap<String, Cause>,
    /// Called at the start of each phase.
    pub phase: &'a dyn Fn(Phase),
}

impl Context<'_> {
    /// Adds a warning about a device.
    pub(super) fn warn(&self, device: &str, cause: Cause) {
        self.channel.with(|_, warnings| warnings.on_device(device, cause));
    }

    /// The guest's disks as the appliance sees them, with what it has written.
    pub(super) fn as_seen(&self) -> Vec<Arc<dyn Source>> {
        self.overlays.iter().map(|overlay| overlay.clone() as Arc<dyn Source>).collect()
    }

    /// Bytes in the sectors that the partition table of a device counts.
    pub(super) fn table_sector(&self, inventory: &Inventory, device: &BlockDevice) -> u64 {
        let disk = inventory.disks.iter().position(|disk| disk.number == device.number);
        let geometry = disk.and_then(|disk| self.geometry.get(disk));
        geometry.map_or(device.sector, |geometry| geometry.sector)
    }

    /// Checks that the appliance still answers.
    ///
    /// # Errors
    /// [`ProbeError::Died`] or [`ProbeError::Crashed`]
    pub(super) fn still_alive(&self, during: &str) -> Result<(), ProbeError> {
        self.appliance.shell("true").map(drop).map_err(|_| self.died(during))
    }

    /// The error for an appliance that does not answer any more.
    pub(super) fn died(&self, during: &str) -> ProbeError {
        let (during, console) = (during.to_owned(), self.appliance.console());
        match console.panic() {
            Some(panic) => ProbeError::Crashed { during, panic },
            None => ProbeError::Died { during, console: console.tail() },
        }
    }
}
