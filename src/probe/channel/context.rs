//! What is known of a filesystem before the agent walks it.

use crate::appliance::DeviceNumber;
use crate::probe::Legs;
use crate::probe::baseline::{Baseline, UnchangedObjects};
use crate::probe::layout::Layout;
use crate::recorder::Recording;
use std::collections::HashMap;
use std::sync::Arc;
use virt_bmap_agent_protocol::{FsKind, ReadOrder, Sample};
use virt_bmap_image::Overlay;

/// The filesystem that the agent is about to walk.
#[derive(Clone, Default)]
pub struct WalkContext {
    /// The name of its device.
    pub device: String,
    /// Its type.
    pub kind: FsKind,
    /// The layout of the device, if that is known.
    pub layout: Option<Arc<Layout>>,
    /// The layouts of all devices: a btrfs may span several.
    pub devices: Arc<HashMap<DeviceNumber, Arc<Layout>>>,
    /// Which copies are in the map.
    pub legs: Legs,
    /// Which files get a spot check; `None` if each file is read in full.
    pub sample: Option<Sample>,
    /// The earlier map of the guest, whose unchanged files are reused.
    pub baseline: Option<Arc<Baseline>>,
    /// Its objects whose inodes have not changed.
    pub unchanged: Option<Arc<UnchangedObjects>>,
    /// The overlays of the disks, in order.
    pub overlays: Vec<Arc<Overlay>>,
}

impl WalkContext {
    /// How the agent reads files, and how their reads are attributed.
    pub fn read_order(&self) -> ReadOrder {
        match self.sample {
            Some(sample) if self.accepts_extents() => ReadOrder::Ends(sample),
            _ if self.has_whole_layout() && !self.kind.facts().has_address_space => ReadOrder::Series,
            _ => ReadOrder::Tags,
        }
    }

    /// Whether the device's layout is known and not partial. If a member is missing, other blocks
    /// are read in place of those on it.
    fn has_whole_layout(&self) -> bool {
        self.layout.as_ref().is_some_and(|layout| !layout.is_partial())
    }

    /// Whether extents can be accepted without a full read. With [`Legs::One`], only a read tells
    /// which copy was read.
    fn accepts_extents(&self) -> bool {
        let is_one = !self.kind.facts().has_address_space
            && self.layout.as_ref().is_some_and(|layout| layout.copy_count() == 1);
        self.has_whole_layout() && (is_one || self.legs == Legs::All)
    }

    /// Whether files may be reused, so that the agent has to ask which files to read.
    pub fn reuses_files(&self) -> bool {
        self.baseline.is_some() && self.accepts_extents()
    }

    /// Whether unchanged inodes may be reused. Their files are not read, so it does not matter from
    /// which copy that would be.
    pub fn reuses_inodes(&self) -> bool {
        self.reuses_files() || self.baseline.is_some() && self.kind.facts().has_address_space
    }

    /// Whether the overlay was written in one of these places.
    pub(super) fn is_rewritten(&self, places: &Recording) -> bool {
        places.iter().any(|(disk, range)| {
            let overlay = usize::from(disk).checked_sub(1).and_then(|index| self.overlays.get(index));
            overlay.is_some_and(|overlay| overlay.is_rewritten(range))
        })
    }
}
