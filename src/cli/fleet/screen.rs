//! Progress of a fleet's run on standard error: on a terminal a bar for each guest that is being
//! mapped and one for all guests, elsewhere a line for each guest.

use crate::cli::progress::LINE_EVERY;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use virt_bmap::fleet::run::Notice;
use virt_bmap::fleet::{GuestId, Record, Stale};
use virt_bmap_ranges::{Percent, Printable};

/// Number of steps of a guest's bar.
const STEPS: u64 = 1000;

/// Shows the progress of a run. Several threads may call it.
pub(super) struct Screen {
    inner: Mutex<Inner>,
}

struct Inner {
    bars: Option<Bars>,
    is_quiet: bool,
    pending: usize,
    finished: usize,
    began: Instant,
    printed: Instant,
}

struct Bars {
    screen: MultiProgress,
    all: ProgressBar,
    running: HashMap<GuestId, ProgressBar>,
}

impl Screen {
    pub(super) fn new(is_quiet: bool) -> Self {
        let bars = (!is_quiet && std::io::stderr().is_terminal()).then(Bars::new);
        let now = Instant::now();
        let inner = Inner { bars, is_quiet, pending: 0, finished: 0, began: now, printed: now };
        Self { inner: Mutex::new(inner) }
    }

    pub(super) fn show(&self, notice: &Notice<'_>) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).show(notice);
    }

    /// Removes the bars from the screen.
    pub(super) fn finish(&self) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bars) = &inner.bars {
            bars.running.values().chain([&bars.all]).for_each(ProgressBar::finish_and_clear);
        }
    }
}

impl Inner {
    fn show(&mut self, notice: &Notice<'_>) {
        match notice {
            Notice::Planned { pending, current } => {
                self.pending = *pending;
                if let Some(bars) = &self.bars {
                    bars.all.set_length(*pending as u64);
                }
                self.print(&format!("{pending} guests to map, {current} maps are current"));
            }
            Notice::Started { id, why, attempt } => {
                if let Some(bars) = &mut self.bars {
                    bars.start(id);
                }
                if *attempt > 1 {
                    self.print(&format!("{id}: failed; starting attempt {attempt}"));
                } else if self.bars.is_none() || **why != Stale::Missing {
                    self.print(&format!("{id}: starting ({why})"));
                }
            }
            Notice::Progress { id, doing, share } => {
                if let Some(bar) = self.bars.as_ref().and_then(|bars| bars.running.get(*id)) {
                    bar.set_position((share.unwrap_or(0.0) * STEPS as f64) as u64);
                    bar.set_message(Printable(doing.as_bytes()).to_string());
                } else if self.printed.elapsed() >= 6 * LINE_EVERY {
                    let estimate = self.estimate();
                    self.print(&format!("{} of {} guests done{estimate}", self.finished, self.pending));
                }
            }
            Notice::Finished(record) => {
                self.finished += 1;
                if let Some(bars) = &mut self.bars {
                    bars.end(&record.id);
                }
                self.print(&format!("[{}/{}] {}", self.finished, self.pending, summary(record)));
            }
        }
    }

    /// The estimated time for the remaining guests.
    fn estimate(&self) -> String {
        let Some(each) = self.began.elapsed().checked_div(self.finished as u32) else { return String::new() };
        let left = each * (self.pending - self.finished) as u32;
        format!(", about {} min left", left.as_secs().div_ceil(60))
    }

    fn print(&mut self, line: &str) {
        self.printed = Instant::now();
        if self.is_quiet {
        } else if let Some(bars) = &self.bars {
            let _ = bars.screen.println(line);
        } else {
            note!("{line}");
        }
    }
}

fn summary(record: &Record) -> String {
    let why = record.error.as_deref().map(|error| format!(": {}", Printable(error.as_bytes())));
    let found = record.counts.map(|counts| format!(", {} files", counts.files));
    let uneven = record.balance.filter(|balance| balance.unexplained > 0);
    let uneven = uneven
        .map(|balance| format!(", {} % of the bytes in use accounted for", Percent(balance.explained())));
    let changes = record.changes.map(|changes| format!(", {changes}"));
    let (id, status, seconds) = (&record.id, record.status.word(), record.seconds);
    let more = [found, uneven, changes, why].map(Option::unwrap_or_default).concat();
    format!("{id} {status} in {seconds:.1} s{more}")
}

impl Bars {
    fn new() -> Self {
        let screen = MultiProgress::new();
        let all = screen.add(ProgressBar::new(0));
        set_style(&all, "all  {bar:24} {pos} of {len} guests, {elapsed}, {eta} left");
        Self { screen, all, running: HashMap::new() }
    }

    fn start(&mut self, id: &GuestId) {
        let bar = self.screen.insert_before(&self.all, ProgressBar::new(STEPS));
        set_style(&bar, "{prefix:16!} {bar:24} {elapsed} {wide_msg}");
        bar.set_prefix(id.to_string());
        if let Some(before) = self.running.insert(id.clone(), bar) {
            before.finish_and_clear();
        }
    }

    fn end(&mut self, id: &GuestId) {
        self.all.inc(1);
        if let Some(bar) = self.running.remove(id) {
            bar.finish_and_clear();
        }
    }
}

fn set_style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
}
