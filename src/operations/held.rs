//! What was written and is not yet part of an operation: data reaches the disk before the inode
//! that points to it.

use super::journaled::of;
use super::states::join;
use super::{Span, Written};
use std::collections::BTreeMap;
use std::time::Duration;
use virt_bmap_ranges::{DiskNumber, DiskOffset, DiskRange, RangeSet};

/// Most ranges that are held of a disk. The journal and other metadata are among them, which never
/// become part of an operation.
const MOST_HELD: usize = 1 << 16;

/// How long data waits for its inode while the guest does not flush. Under load, a guest may pause
/// in the middle of one `sync` for longer than it takes to end a state.
const WAIT: Duration = Duration::from_secs(1);

/// What is held.
#[derive(Default)]
pub(super) struct Held {
    /// For each disk, what had its time: the guest has flushed it, or has waited. If the next state
    /// does not have the inode, the write is an operation of its own.
    due: Vec<RangeSet<DiskOffset>>,
    /// For each disk, what was written after that.
    recent: Vec<RangeSet<DiskOffset>>,
    /// When that began.
    since: Option<Duration>,
    /// When each filesystem was written last, by its device: a look need not cover all.
    spans: BTreeMap<Vec<u8>, Span>,
}

impl Held {
    /// What was written up to the state after `span`, in which `now` was written.
    pub(super) fn written(
        &mut self,
        span: &Span,
        now: &[RangeSet<DiskOffset>],
        replayed: Vec<RangeSet<DiskOffset>>,
    ) -> Written {
        if let Some((since, begin)) = self.since.zip(span.begin())
            && begin.saturating_sub(since) >= WAIT
        {
            self.settle();
        }
        let mut seen = now.to_vec();
        join(&mut seen, &self.due);
        join(&mut seen, &self.recent);
        Written { seen, held: self.due.clone(), replayed }
    }

    /// The span of what is due on a device; the present span takes its place.
    pub(super) fn next_span(&mut self, device: &[u8], span: &Span) -> Span {
        let Some(last) = self.spans.get_mut(device) else {
            self.spans.insert(device.to_vec(), span.clone());
            return span.clone();
        };
        let earlier = last.clone();
        if self.since.is_some() {
            last.add(span.clone());
        } else {
            last.clone_from(span);
        }
        earlier
    }

    /// Keeps what was written and was not told. `told` has the places of the objects of operations,
    /// and whether the operation came earlier: it has nothing but what was due.
    pub(super) fn keep(
        &mut self,
        span: &Span,
        now: &[RangeSet<DiskOffset>],
        told: &[((DiskNumber, DiskRange), bool)],
    ) {
        join(&mut self.recent, now);
        for &((disk, range), is_earlier) in told {
            let later = of(&mut self.recent, disk).filter(|_| !is_earlier);
            of(&mut self.due, disk).into_iter().chain(later).for_each(|ranges| ranges.remove(range));
        }
        for ranges in self.due.iter_mut().chain(&mut self.recent) {
            if ranges.range_count() > MOST_HELD {
                *ranges = RangeSet::new();
            }
        }
        self.since = self.since.or(span.begin());
        if span.is_lasting() {
            self.settle();
        }
    }

    /// Nothing has to wait any longer.
    pub(super) fn settle(&mut self) {
        let recent = std::mem::take(&mut self.recent);
        join(&mut self.due, &recent);
        self.since = None;
    }

    /// The span of something that is held.
    pub(super) fn any_span(&self) -> Option<Span> {
        self.spans.values().next().cloned()
    }
}
