//! The rate of requests.

use std::collections::VecDeque;
use std::time::{Duration, Instant};
use virt_bmap_trace::Amount;
use virt_bmap_trace::TraceTotals;

/// The time over which a rate is computed, unless the last sample is older.
const SPAN: Duration = Duration::from_secs(2);

/// Requests and bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) read: Amount,
    pub(super) written: Amount,
}

/// Samples of the totals, the latest last; never empty.
pub(super) struct Pace(VecDeque<(Instant, TraceTotals)>);

impl Pace {
    pub(super) fn new(began: Instant) -> Self {
        Self([(began, TraceTotals::default())].into())
    }

    pub(super) fn add(&mut self, now: Instant, totals: TraceTotals) {
        self.0.push_back((now, totals));
        // The latest sample that is old enough begins the time span.
        while let Some((second, _)) = self.0.get(1)
            && self.0.len() > 2
            && now.duration_since(*second) >= SPAN
        {
            self.0.pop_front();
        }
    }

    pub(super) fn rate(&self) -> Rate {
        let (Some((began, before)), Some((ended, now))) = (self.0.front(), self.0.back()) else {
            return Rate::default();
        };
        let seconds = ended.duration_since(*began).as_secs_f64().max(1e-3);
        let per_second = |now: u64, before: u64| (now.saturating_sub(before) as f64 / seconds).round() as u64;
        let rate = |now: Amount, before: Amount| Amount {
            requests: per_second(now.requests, before.requests),
            bytes: per_second(now.bytes, before.bytes),
        };
        Rate { read: rate(now.read, before.read), written: rate(now.written, before.written) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_two_seconds() {
        let began = Instant::now();
        let mut pace = Pace::new(began);
        assert_eq!(pace.rate(), Rate::default());
        for quarter in 1..=40u64 {
            // 100 reads a second at first, from the fifth second on none.
            let read = Amount { requests: 25 * quarter.min(20), bytes: 1000 * quarter.min(20) };
            let totals = TraceTotals { read, ..TraceTotals::default() };
            pace.add(began + Duration::from_millis(250 * quarter), totals);
            let expected = if quarter <= 20 { 100 } else { 100 * (28u64.saturating_sub(quarter)) / 8 };
            assert!(pace.rate().read.requests.abs_diff(expected) <= 1, "{quarter}: {:?}", pace.rate());
            assert!(pace.0.len() < 12);
        }
    }
}
