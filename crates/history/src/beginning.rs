//! The disks before the first write.

use super::History;
use super::queue::Pending;
use super::state::{Lease, View};
use std::sync::Arc;
use virt_bmap_image::Source;

impl History {
    /// The disks before the first write. They can be read as long as they are in use.
    pub fn beginning(&self) -> Vec<Arc<dyn Source>> {
        let originals = self.turn().originals.clone();
        let (bases, changing) = self.bases_over(&originals);
        let mut view = View::new(bases.len());
        let (state, _) = view.advance(Pending::default(), bases, changing, &self.store, &Arc::new(Lease));
        state.disks()
    }
}
