//! The states of a guest's disks that are looked at.

use super::Span;
use std::sync::Arc;
use std::time::Duration;
use virt_bmap_history::State;
use virt_bmap_image::Source;
use virt_bmap_ranges::{DiskOffset, RangeSet};

/// The disks in one state, and what was written since the state that was looked at before.
pub struct States {
    /// The disks, in order.
    pub disks: Vec<Arc<dyn Source>>,
    /// For each disk, what was written.
    pub written: Vec<RangeSet<DiskOffset>>,
    /// When that happened.
    pub span: Span,
}

impl From<State> for States {
    /// A state of a history.
    fn from(state: State) -> Self {
        let State { from, to, is_flushed, together, .. } = state;
        let span = Span::Time { from, to, is_flushed, states: together };
        Self { disks: state.disks(), span, written: state.written }
    }
}

impl States {
    /// Adds the state that comes next.
    pub fn add(&mut self, next: Self) {
        self.span.add(next.span);
        self.disks = next.disks;
        join(&mut self.written, &next.written);
    }

    /// Whether `next` ends less than `time` after the first write of these.
    pub fn is_within(&self, time: Duration, next: &Self) -> bool {
        match (&self.span, &next.span) {
            (Span::Time { from, .. }, Span::Time { to, .. }) => to.saturating_sub(*from) < time,
            _ => false,
        }
    }
}

/// Adds ranges of each disk.
pub(super) fn join(ranges: &mut Vec<RangeSet<DiskOffset>>, more: &[RangeSet<DiskOffset>]) {
    ranges.resize_with(ranges.len().max(more.len()), RangeSet::new);
    for (ranges, more) in ranges.iter_mut().zip(more) {
        ranges.extend(more.iter());
    }
}
