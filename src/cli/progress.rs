//! Says on standard error what is being done: bars on a terminal, plain lines elsewhere, or events for
//! programs.

use super::map::MapOptions;
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use virt_bmap::fleet;
use virt_bmap::mapper::progress::{self, FailureReason, OpenedDisk};
use virt_bmap::mapper::{MapError, MapEvent, Mapped};
use virt_bmap::probe::Phase;
use virt_bmap::probe::channel::Snapshot;
use virt_bmap_map::{Cause, diff};
use virt_bmap_ranges::Printable;

/// How often a plain line is printed.
pub(super) const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// How a run says what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ProgressMode {
    /// Bars on a terminal, lines elsewhere
    Auto,
    /// One JSON object on a line for each event
    Json,
}

/// Writes an event for a program.
fn say(event: &progress::ProgressEvent) {
    if let Ok(line) = serde_json::to_string(event) {
        note!("{line}");
    }
}

/// Prints what could not be examined, and what else is worth knowing.
pub(super) fn print_warnings(mode: ProgressMode, mapped: &Mapped) {
    for warning in &mapped.map.header().warnings {
        match mode {
            ProgressMode::Json => say(&progress::ProgressEvent::of_warning(warning.clone())),
            ProgressMode::Auto if warning.is_incomplete() => note!("virt-bmap-rs: {warning}"),
            ProgressMode::Auto => note!("virt-bmap-rs: warning: {warning}"),
        }
    }
}

/// Tells a program how a run failed. The message for people is printed where the program ends.
pub(super) fn say_failed(mode: ProgressMode, error: &MapError) {
    let reason = match error {
        MapError::Hung { .. } => FailureReason::Hung,
        _ => FailureReason::Other,
    };
    if mode == ProgressMode::Json {
        say(&progress::ProgressEvent::Failed { reason });
    }
}

/// Says how much differs from an earlier map.
pub(super) fn say_changed(options: &MapOptions, counts: diff::Counts) {
    if options.progress == ProgressMode::Json {
        say(&progress::ProgressEvent::Changed(counts));
    } else if !options.quiet {
        note!("{counts} since the earlier map");
    }
}

/// Says that the maps have been written, and what that took.
pub(super) fn say_done(mapped: &Mapped) {
    if let Some(peak) = fleet::capacity::peak_memory() {
        say(&progress::ProgressEvent::Memory { peak });
    }
    say(&progress::ProgressEvent::Done(mapped.counts));
}

/// Shows a run's progress.
pub(super) enum Progress {
    /// Says nothing.
    Quiet,
    /// Bars.
    Bars(Bars),
    /// Lines.
    Plain(Plain),
    /// Events.
    Json(Json),
}

impl Progress {
    pub(super) fn new(quiet: bool, mode: ProgressMode) -> Self {
        if mode == ProgressMode::Json {
            Self::Json(Json::default())
        } else if quiet {
            Self::Quiet
        } else if std::io::stderr().is_terminal() {
            Self::Bars(Bars::default())
        } else {
            Self::Plain(Plain::default())
        }
    }

    pub(super) fn show(&mut self, event: &MapEvent<'_>) {
        match self {
            Self::Quiet => {}
            Self::Bars(bars) => bars.show(event),
            Self::Plain(plain) => plain.show(event),
            Self::Json(json) => json.show(event),
        }
    }

    /// Takes the bars off the screen.
    pub(super) fn finish(self) {
        if let Self::Bars(bars) = self
            && let Some(bar) = bars.current
        {
            bar.finish_and_clear();
        }
    }
}

/// What is said of a phase when it begins.
fn title(phase: &Phase) -> String {
    match phase {
        Phase::Launching => "starting the appliance".into(),
        Phase::Devices => "looking at disks, partitions and volumes".into(),
        Phase::Filesystem { name, kind, number, of } => {
            let (name, kind) = (Printable(name.as_bytes()), Printable(kind.as_bytes()));
            format!("[{number}/{of}] reading {name} ({kind})")
        }
        Phase::Closing => "shutting the appliance down".into(),
    }
}

/// That a filesystem is left out from now on.
fn begun_anew(device: &str, cause: &Cause) -> String {
    format!("{}: {cause}. Starting again without it", Printable(device.as_bytes()))
}

/// How much of a file system has been read: by bytes, or by objects where there are more of them.
fn share(snapshot: Snapshot) -> f64 {
    let part = |done: u64, of: u64| if of == 0 { 0.0 } else { done as f64 / of as f64 };
    part(snapshot.bytes, snapshot.bytes_expected)
        .max(part(snapshot.objects, snapshot.objects_expected))
        .min(1.0)
}

fn amounts(snapshot: Snapshot) -> String {
    format!("{} objects, {}", snapshot.objects, HumanBytes(snapshot.bytes))
}

/// A spinner for what has no measure, a bar for each file system.
#[derive(Default)]
pub(super) struct Bars {
    screen: MultiProgress,
    phase: Option<Phase>,
    current: Option<ProgressBar>,
}

/// Steps of a bar.
const STEPS: u64 = 1000;

impl Bars {
    fn show(&mut self, event: &MapEvent<'_>) {
        match event {
            MapEvent::Opened(_) => {}
            MapEvent::Launching(decision) => {
                let _ = self.screen.println(format!("starting the appliance under {decision}"));
            }
            MapEvent::LeftOut { device, cause } => {
                let _ = self.screen.println(begun_anew(device, cause));
            }
            MapEvent::Progress(phase, snapshot) => self.update(phase, *snapshot),
        }
    }

    fn update(&mut self, phase: &Phase, snapshot: Snapshot) {
        if self.phase.as_ref() != Some(phase) {
            if let Some(bar) = self.current.take() {
                bar.finish_and_clear();
                if let Some(Phase::Filesystem { .. }) = self.phase {
                    let _ = self.screen.println(bar.prefix());
                }
            }
            let (bar, style) = if let Phase::Filesystem { .. } = phase {
                (ProgressBar::new(STEPS), "{prefix} {bar:24} {percent}% {msg}, {eta} left")
            } else {
                (ProgressBar::new_spinner(), "{spinner} {prefix} {elapsed}")
            };
            let bar = self.screen.add(bar).with_prefix(title(phase));
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            self.phase = Some(phase.clone());
            self.current = Some(bar);
        }
        if let Some(bar) = &self.current {
            bar.set_position((share(snapshot) * STEPS as f64) as u64);
            bar.set_message(amounts(snapshot));
        }
    }
}

/// A line when a phase begins, and one every few seconds while it lasts.
#[derive(Default)]
pub(super) struct Plain {
    phase: Option<Phase>,
    printed: Option<Instant>,
}

impl Plain {
    fn show(&mut self, event: &MapEvent<'_>) {
        match event {
            MapEvent::Opened(_) => {}
            MapEvent::Launching(decision) => {
                note!("starting the appliance under {decision}");
                self.phase = Some(Phase::Launching);
                self.printed = Some(Instant::now());
            }
            MapEvent::LeftOut { device, cause } => note!("{}", begun_anew(device, cause)),
            MapEvent::Progress(phase, snapshot) => {
                let is_new = self.phase.as_ref() != Some(phase);
                let is_time = self.printed.is_none_or(|printed| printed.elapsed() >= PLAIN_EVERY);
                if is_new && **phase != Phase::Launching {
                    note!("{}", title(phase));
                } else if is_time && let Phase::Filesystem { .. } = phase {
                    let percent = (share(*snapshot) * 100.0) as u32;
                    note!("{}: {}, about {percent}%", title(phase), amounts(*snapshot));
                } else if is_time {
                    note!("{}…", title(phase));
                } else {
                    return;
                }
                self.phase = Some((*phase).clone());
                self.printed = Some(Instant::now());
            }
        }
    }
}

/// An event when a phase begins, and one every second while it lasts, which is a sign of life as well.
#[derive(Default)]
pub(super) struct Json {
    phase: Option<Phase>,
    said: Option<Instant>,
}

impl Json {
    fn show(&mut self, event: &MapEvent<'_>) {
        match event {
            MapEvent::Opened(images) => {
                say(&progress::ProgressEvent::Opened { disks: images.iter().map(OpenedDisk::of).collect() });
            }
            // What was left out is among the warnings at the end.
            MapEvent::Launching(_) | MapEvent::LeftOut { .. } => {}
            MapEvent::Progress(phase, snapshot) => {
                let is_new = self.phase.as_ref() != Some(phase);
                if is_new || self.said.is_none_or(|said| said.elapsed() >= Duration::from_secs(1)) {
                    let share = matches!(phase, Phase::Filesystem { .. }).then(|| share(*snapshot));
                    say(&progress::ProgressEvent::Progress { doing: title(phase), share });
                    self.phase = Some((*phase).clone());
                    self.said = Some(Instant::now());
                }
            }
        }
    }
}

/// Shows how much of a known amount of bytes has been worked through. May be told from several threads.
pub(super) enum Counter {
    /// Says nothing.
    Quiet,
    /// A bar.
    Bar(ProgressBar),
    /// Lines.
    Plain(PlainCounter),
}

/// A line every few seconds.
pub(super) struct PlainCounter {
    what: &'static str,
    done: AtomicU64,
    of: u64,
    printed: Mutex<Instant>,
}

impl Counter {
    pub(super) fn new(quiet: bool, what: &'static str, of: u64) -> Self {
        if quiet {
            return Self::Quiet;
        }
        if !std::io::stderr().is_terminal() {
            let printed = Mutex::new(Instant::now());
            return Self::Plain(PlainCounter { what, done: AtomicU64::new(0), of, printed });
        }
        let bar = ProgressBar::new(of).with_prefix(what);
        if let Ok(style) =
            ProgressStyle::with_template("{prefix} {bar:24} {percent}% of {total_bytes}, {eta} left")
        {
            bar.set_style(style);
        }
        Self::Bar(bar)
    }

    pub(super) fn add(&self, bytes: u64) {
        match self {
            Self::Quiet => {}
            Self::Bar(bar) => bar.inc(bytes),
            Self::Plain(PlainCounter { what, done, of, printed }) => {
                let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                let mut printed = printed.lock().unwrap_or_else(PoisonError::into_inner);
                if printed.elapsed() >= PLAIN_EVERY {
                    *printed = Instant::now();
                    note!("{what}: {} of {}", HumanBytes(done), HumanBytes(*of));
                }
            }
        }
    }

    /// Takes the bar off the screen.
    pub(super) fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
