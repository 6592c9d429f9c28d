//! The display without a terminal: a line from time to time.

use super::TopStatus;
use super::pace::Rate;
use crate::cli::progress::LINE_EVERY;
use std::io::{self, Write};
use std::time::Duration;
use virt_bmap_map::Map;
use virt_bmap_ranges::Human;
use virt_bmap_trace::Amount;
use virt_bmap_trace::LiveView;

/// When the last line was printed, counted from the start of the trace.
#[derive(Default)]
pub(super) struct Lines(Duration);

impl Lines {
    pub(super) fn is_time(&self, elapsed: Duration) -> bool {
        elapsed.saturating_sub(self.0) >= LINE_EVERY
    }

    pub(super) fn print(
        &mut self,
        out: &mut impl Write,
        elapsed: Duration,
        look: &LiveView,
        rate: Rate,
        map: &Map,
        status: &TopStatus,
    ) -> io::Result<()> {
        self.0 = elapsed;
        let amount = |amount: Amount, rate: Amount| {
            let Amount { requests, bytes } = amount;
            format!("{} in {requests} ({}/s in {})", Human(bytes), Human(rate.bytes), rate.requests)
        };
        write!(
            out,
            "{} s: read {}, wrote {}, {} objects",
            elapsed.as_secs(),
            amount(look.totals.read, rate.read),
            amount(look.totals.written, rate.written),
            look.objects
        )?;
        if let Some((object, usage)) = look.top.first() {
            write!(out, ", most {} of {}", Human(usage.all().bytes), map.object(*object).name())?;
        }
        if status.dropped > 0 {
            write!(out, ", {} missing from the log", status.dropped)?;
        }
        writeln!(out)?;
        out.flush()
    }
}
