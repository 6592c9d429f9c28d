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

/// What the agent is about to walk.
#[derive(Clone, Default)]
pub struct WalkContext {
    /// The device or whatever else the filesystem is named by.
    pub device: String,
    /// Its type.
    pub kind: FsKind,
    /// Where the device lies on the disks, if that is known.
    pub layout: Option<Arc<Layout>>,
    /// Whether what belongs to no file's data is wanted, too.
    pub metadata: bool,
    /// The same of all devices: a btrfs may span several.
    pub devices: Arc<HashMap<DeviceNumber, Arc<Layout>>>,
    /// Which copies are in the map.
    pub legs: Legs,
    /// Which extents are read at their ends, if the kernel's word is taken for the rest.
    pub sample: Option<Sample>,
    /// An earlier map of the guest, of which is taken over what is as it was.
    pub baseline: Option<Arc<Baseline>>,
    /// Files and directories of it that need not be looked at.
    pub unchanged: Option<Arc<UnchangedObjects>>,
    /// What the appliance has written to the disks, in order.
    pub overlays: Vec<Arc<Overlay>>,
}

impl WalkContext {
    /// Whether a file's reads can be told from the next one's by where they are.
    pub fn read_order(&self) -> ReadOrder {
        match self.sample {
            Some(sample) if self.accepts_extents() => ReadOrder::Ends(sample),
            _ if self.has_whole_layout() && !self.kind.facts().has_address_space => ReadOrder::Series,
            _ => ReadOrder::Tags,
        }
    }

    /// Whether it is known where the filesystem's device lies. Where a member is missing, others
    /// are read in place of what it held.
    fn has_whole_layout(&self) -> bool {
        self.layout.as_ref().is_some_and(|layout| !layout.is_partial())
    }

    /// Whether the place of a file that the kernel promises can go into the map without a read of
    /// all of it: of one leg, only that tells which copy each byte is of.
    fn accepts_extents(&self) -> bool {
        let is_one = !self.kind.facts().has_address_space
            && self.layout.as_ref().is_some_and(|layout| layout.copy_count() == 1);
        self.has_whole_layout() && (is_one || self.legs == Legs::All)
    }

    /// Whether files may be taken over from an earlier map, so that the agent has to ask which to
    /// read.
    pub fn reuses_files(&self) -> bool {
        self.baseline.is_some() && self.accepts_extents()
    }

    /// Whether something has been written in one of these places since the image was opened.
    pub(super) fn is_rewritten(&self, places: &Recording) -> bool {
        places.iter().any(|(disk, range)| {
            let overlay = usize::from(disk).checked_sub(1).and_then(|index| self.overlays.get(index));
            overlay.is_some_and(|overlay| overlay.is_rewritten(range))
        })
    }
}
