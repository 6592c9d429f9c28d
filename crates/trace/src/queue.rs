//! The queue of events between the requests and the log.
//!
//! A request must not wait for the log, and waking a thread for each request would take longer than
//! a small request itself. So events go to a buffer, which the writer empties every few
//! milliseconds, or when half of it is full.

use super::event::TraceEvent;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What happens to an event when the queue is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// It is counted and not logged.
    #[default]
    Drop,
    /// The request waits until there is room.
    Wait,
}

/// Most events in the queue: some 16 MiB.
const ROOM: usize = 1 << 18;

/// Interval between two visits of the writer.
const TICK: Duration = Duration::from_millis(20);

/// A bounded queue of events.
#[derive(Debug)]
pub struct Queue {
    began: Instant,
    overflow: Overflow,
    room: usize,
    state: Mutex<State>,
    /// Signalled when half of the room is taken, or the queue is closed.
    filling: Condvar,
    /// Signalled when there is room again.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct State {
    events: Vec<TraceEvent>,
    dropped: u64,
    is_closed: bool,
}

impl Queue {
    /// An empty queue; the trace begins now.
    pub fn new(overflow: Overflow) -> Self {
        Self::with_room(overflow, ROOM)
    }

    fn with_room(overflow: Overflow, room: usize) -> Self {
        Self {
            began: Instant::now(),
            overflow,
            room,
            state: Mutex::default(),
            filling: Condvar::new(),
            emptied: Condvar::new(),
        }
    }

    /// When the trace began.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Adds an event; if the queue is full, follows [`Overflow`].
    pub fn push(&self, event: TraceEvent) {
        let mut state = self.state();
        while state.events.len() >= self.room && self.overflow == Overflow::Wait && !state.is_closed {
            state = self.emptied.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.events.len() >= self.room || state.is_closed {
            state.dropped += 1;
            return;
        }
        state.events.push(event);
        if state.events.len() == self.room / 2 {
            self.filling.notify_one();
        }
    }

    /// Waits up to a tick, and swaps the queued events with the emptied `events`. False when the
    /// queue is closed and empty.
    pub(super) fn take(&self, events: &mut Vec<TraceEvent>) -> bool {
        events.clear();
        let is_quiet = |state: &mut State| !state.is_closed && state.events.len() < self.room / 2;
        let waited = self.filling.wait_timeout_while(self.state(), TICK, is_quiet);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        std::mem::swap(&mut state.events, events);
        self.emptied.notify_all();
        !state.is_closed || !events.is_empty()
    }

    /// Closes the queue: it accepts no more events, and nobody waits any longer.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
        self.filling.notify_all();
        self.emptied.notify_all();
    }

    /// Number of events that were not logged because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.state().dropped
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Op;
    use std::sync::Arc;
    use virt_bmap_ranges::DiskRange;

    fn event(number: u64) -> TraceEvent {
        TraceEvent {
            time: Duration::from_nanos(number),
            latency: Duration::ZERO,
            connection: 1,
            disk: 1,
            op: Op::Read,
            fua: false,
            failed: false,
            range: DiskRange::new(0, 512),
        }
    }

    #[test]
    fn dropped_events_are_counted() {
        let queue = Queue::with_room(Overflow::Drop, 4);
        (0..7).for_each(|number| queue.push(event(number)));
        let mut events = Vec::new();
        assert!(queue.take(&mut events));
        assert_eq!((events.len(), queue.dropped()), (4, 3));
        queue.push(event(7));
        queue.close();
        assert!(queue.take(&mut events), "what came before the end");
        assert_eq!(events, [event(7)]);
        assert!(!queue.take(&mut events));
    }

    #[test]
    fn a_waiting_sender_loses_nothing() {
        let queue = Arc::new(Queue::with_room(Overflow::Wait, 4));
        let sender = {
            let queue = queue.clone();
            std::thread::spawn(move || (0..1000).for_each(|number| queue.push(event(number))))
        };
        let (mut all, mut events) = (Vec::new(), Vec::new());
        while all.len() < 1000 {
            assert!(queue.take(&mut events));
            all.append(&mut events);
        }
        sender.join().unwrap();
        assert_eq!(all, (0..1000).map(event).collect::<Vec<_>>());
        assert_eq!(queue.dropped(), 0);
    }

    #[test]
    fn closing_the_queue_releases_waiting_senders() {
        let queue = Arc::new(Queue::with_room(Overflow::Wait, 1));
        queue.push(event(0));
        let sender = {
            let queue = queue.clone();
            std::thread::spawn(move || queue.push(event(1)))
        };
        std::thread::sleep(Duration::from_millis(20));
        queue.close();
        sender.join().unwrap();
        assert_eq!(queue.dropped(), 1);
    }
}
