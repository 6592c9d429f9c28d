//! The state of a running trace, for a screen.
//!
//! The thread of the tracer adds each request, and other threads take a [view](Live::view). Memory
//! is bounded by the number of objects of the map.

use super::event::{Op, TraceEvent};
use super::summary::Amount;
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use virt_bmap_map::{Hit, ObjectId};

/// Number of the latest requests that are kept.
const RECENT: usize = 64;

/// The requests of the guest so far. Of failed requests, only the number is kept.
#[derive(Debug, Default)]
pub struct Live(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    totals: TraceTotals,
    objects: HashMap<ObjectId, ObjectUsage>,
    recent: VecDeque<RecentRequest>,
}

/// All requests, by direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceTotals {
    /// Reads.
    pub read: Amount,
    /// Writes, zeroes and trims.
    pub written: Amount,
    /// Flushes.
    pub flushes: u64,
    /// Requests that failed.
    pub failed: u64,
}

/// The requests for an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ObjectUsage {
    /// Reads, with the bytes of this object only.
    pub read: Amount,
    /// Writes, zeroes and trims, likewise.
    pub written: Amount,
    /// When the last of them arrived, since the beginning of the trace.
    pub last: Duration,
    /// Number of the last of them, from 1.
    number: u64,
}

impl ObjectUsage {
    /// Both directions.
    pub fn all(&self) -> Amount {
        Amount {
            requests: self.read.requests + self.written.requests,
            bytes: self.read.bytes + self.written.bytes,
        }
    }
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecentRequest {
    /// The request.
    pub event: TraceEvent,
    /// The most specific object that it touches; of several, the first on the disk.
    pub object: Option<ObjectId>,
}

/// The order of objects, the largest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ObjectOrder {
    /// Bytes read and written.
    #[default]
    Bytes,
    /// Bytes written, zeroed or trimmed.
    Written,
    /// Number of requests.
    Requests,
    /// Time of the last request.
    Latest,
}

/// A view of the running trace.
#[derive(Clone, Debug, Default)]
pub struct LiveView {
    /// All requests.
    pub totals: TraceTotals,
    /// Number of objects that were touched.
    pub objects: usize,
    /// The first of them in the given order.
    pub top: Vec<(ObjectId, ObjectUsage)>,
    /// The most recent requests, the last one first.
    pub recent: Vec<RecentRequest>,
}

impl Live {
    /// Adds request `number`, from 1, with the objects that it touches, the most specific first.
    ///
    /// It counts for the objects of the most specific kind. Of objects with the same bytes, such as
    /// the names of a file, it counts for the first.
    pub fn add(&self, number: u64, event: &TraceEvent, hits: &[Hit<'_>]) {
        let mut state = self.state();
        let State { totals, objects, recent } = &mut *state;
        if event.failed {
            totals.failed += 1;
            return;
        }
        if event.op == Op::Flush {
            totals.flushes += 1;
        } else {
            let total = if event.op == Op::Read { &mut totals.read } else { &mut totals.written };
            total.requests += 1;
            total.bytes += event.range.len();
        }
        let specificity = |hit: &Hit<'_>| hit.object.kind().specificity();
        let most_specific = hits.first().map(specificity);
        let of_that_kind = hits.iter().take_while(|hit| Some(specificity(hit)) == most_specific);
        let mut before = None;
        for hit in of_that_kind.filter(|hit| before.replace(hit.range) != Some(hit.range)) {
            let usage = objects.entry(hit.object.id()).or_default();
            let amount = if event.op == Op::Read { &mut usage.read } else { &mut usage.written };
            amount.bytes += hit.range.len();
            // An object may be touched in several pieces.
            amount.requests += u64::from(usage.number != number);
            usage.number = number;
            usage.last = usage.last.max(event.time);
        }
        recent.truncate(RECENT - 1);
        recent.push_front(RecentRequest { event: *event, object: hits.first().map(|hit| hit.object.id()) });
    }

    /// The current view: up to `top` objects and `recent` requests.
    pub fn view(&self, order: ObjectOrder, top: usize, recent: usize) -> LiveView {
        let state = self.state();
        let key = |usage: &ObjectUsage| match order {
            ObjectOrder::Bytes => u128::from(usage.all().bytes),
            ObjectOrder::Written => usage.written.bytes.into(),
            ObjectOrder::Requests => usage.all().requests.into(),
            ObjectOrder::Latest => usage.last.as_nanos(),
        };
        let mut objects: Vec<_> = state.objects.iter().map(|(&object, &usage)| (object, usage)).collect();
        // Of equal objects, the one that was touched last comes first.
        let by = |(object, usage): &(ObjectId, ObjectUsage)| {
            std::cmp::Reverse((key(usage), usage.number, *object))
        };
        if top > 0 && top < objects.len() {
            objects.select_nth_unstable_by_key(top - 1, by);
        }
        objects.truncate(top);
        objects.sort_unstable_by_key(by);
        LiveView {
            totals: state.totals,
            objects: state.objects.len(),
            top: objects,
            recent: state.recent.iter().take(recent).copied().collect(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virt_bmap_map::{Map, text};
    use virt_bmap_ranges::DiskRange;

    /// A file with two names, one in two pieces around it, and a partition.
    const MAP: &str = "1 0 1000 f /dev/sda1 /two\n1 1000 2000 f /dev/sda1 /a\n\
                       1 1000 2000 f /dev/sda1 /b\n1 2000 3000 f /dev/sda1 /two\n1 3000 8000 p /dev/sda1\n";

    fn event(op: Op, start: u64, end: u64) -> TraceEvent {
        TraceEvent {
            time: Duration::from_millis(start),
            latency: Duration::ZERO,
            connection: 1,
            disk: 1,
            op,
            fua: false,
            failed: false,
            range: DiskRange::new(start, end),
        }
    }

    fn live(map: &Map, events: &[TraceEvent]) -> Live {
        let live = Live::default();
        for (number, event) in (1..).zip(events) {
            live.add(number, event, &map.over(event.disk, event.range).most_specific_first());
        }
        live
    }

    #[test]
    fn each_object_has_its_own_bytes() {
        let map = text::read(MAP.as_bytes()).unwrap();
        let events = [
            event(Op::Read, 0xe00, 0x2200),
            event(Op::Write, 0x1000, 0x1200),
            event(Op::Flush, 0, 0),
            event(Op::Read, 0x4000, 0x5000),
            TraceEvent { failed: true, ..event(Op::Read, 0, 0x1000) },
        ];
        let live = live(&map, &events);
        let top = |order| -> Vec<_> {
            let view = live.view(order, 9, 9);
            let name = |object| map.object(object).name().to_string();
            view.top.iter().map(|(object, usage)| (name(*object), usage.all())).collect()
        };
        let amount = |requests, bytes| Amount { requests, bytes };
        let two = ("f /dev/sda1 /two".to_owned(), amount(1, 0x400));
        let a = ("f /dev/sda1 /a".to_owned(), amount(2, 0x1200));
        let partition = ("p /dev/sda1".to_owned(), amount(1, 0x1000));
        assert_eq!(top(ObjectOrder::Bytes), [a.clone(), partition.clone(), two.clone()]);
        assert_eq!(top(ObjectOrder::Requests), [a.clone(), partition.clone(), two.clone()]);
        assert_eq!(top(ObjectOrder::Written)[0], a);
        assert_eq!(top(ObjectOrder::Latest), [partition.clone(), a, two]);

        let view = live.view(ObjectOrder::Latest, 1, 2);
        assert_eq!((view.objects, view.top.len(), view.recent.len()), (3, 1, 2));
        assert_eq!(view.recent[0].event, events[3]);
        assert_eq!(view.recent[1].object, None, "a flush is about nothing");
        let totals =
            TraceTotals { read: amount(2, 0x2400), written: amount(1, 0x200), flushes: 1, failed: 1 };
        assert_eq!(view.totals, totals);
    }

    #[test]
    fn the_number_of_recent_requests_is_bounded() {
        let map = text::read(MAP.as_bytes()).unwrap();
        let events: Vec<_> = (0..1000).map(|at| event(Op::Read, at, at + 1)).collect();
        let view = live(&map, &events).view(ObjectOrder::Bytes, 0, usize::MAX);
        assert_eq!((view.recent.len(), view.recent[0].event.range.start.0), (RECENT, 999));
        assert!(view.top.is_empty());
    }
}
