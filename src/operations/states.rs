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

#[cfg(test)]
mod tests {
    use super::*;
    use virt_bmap_ranges::DiskRange;

    fn states(from: u64, to: u64, is_flushed: bool, written: DiskRange) -> States {
        let [from, to] = [from, to].map(Duration::from_secs);
        let span = Span::Time { from, to, is_flushed, states: 1 };
        States { disks: Vec::new(), written: vec![[written].into_iter().collect()], span }
    }

    #[test]
    fn states_that_are_looked_at_together_are_as_the_last_one() {
        let mut all = states(1, 2, true, DiskRange::new(0, 512));
        let next = states(4, 6, false, DiskRange::new(512, 1024));
        assert!(all.is_within(Duration::from_secs(6), &next));
        assert!(!all.is_within(Duration::from_secs(5), &next));
        all.add(next);
        assert_eq!(all.span.to_string(), "1.000 s to 6.000 s, not flushed, 2 states together");
        assert_eq!(all.written, [RangeSet::from_iter([DiskRange::new(0, 1024)])]);
    }
}
