//! The way of events from the requests to the log.
//!
//! A request must not wait for the log, and waking a thread for each would cost more than a small
//! request takes. So events are put into a buffer, and the writer comes for them every few
//! milliseconds, or when half of the buffer is full.

use super::event::TraceEvent;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What becomes of an event for which there is no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// It is not logged, but counted.
    #[default]
    Drop,
    /// The request waits until there is room.
    Wait,
}

/// Most events that wait to be written: some 16 MiB.
const ROOM: usize = 1 << 18;

/// How often the writer looks.
const TICK: Duration = Duration::from_millis(20);

/// Events on their way.
#[derive(Debug)]
pub struct Queue {
    began: Instant,
    overflow: Overflow,
    room: usize,
    state: Mutex<State>,
    /// Half of the room is taken, or the queue is closed.
    filling: Condvar,
    /// There is room again.
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

    /// Takes an event, or does with it what was said for want of room.
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

    /// Exchanges what is there for `events`, which is emptied, when a little time has passed. False
    /// when the queue is closed and no more will come.
    pub(super) fn take(&self, events: &mut Vec<TraceEvent>) -> bool {
        events.clear();
        let is_quiet = |state: &mut State| !state.is_closed && state.events.len() < self.room / 2;
        let waited = self.filling.wait_timeout_while(self.state(), TICK, is_quiet);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        std::mem::swap(&mut state.events, events);
        self.emptied.notify_all();
        !state.is_closed || !events.is_empty()
    }

    /// Takes no more events; nobody waits any longer.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
        self.filling.notify_all();
        self.emptied.notify_all();
    }

    /// How many events were not logged for want of room.
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
    fn what_has_no_room_is_counted() {
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
    fn nothing_is_lost_by_who_waits() {
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
    fn the_end_frees_who_waits() {
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
