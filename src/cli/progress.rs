//! Progress output on standard error: bars on a terminal, lines elsewhere, or JSON events for
//! programs.

use super::counted;
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use virt_bmap::appliance::Launching;
use virt_bmap::fleet;
use virt_bmap::mapper::progress::{self, FailureReason, OpenedDisk};
use virt_bmap::mapper::{Cancel, MapError, MapEvent, Mapped};
use virt_bmap::probe::Phase;
use virt_bmap::probe::channel::Snapshot;
use virt_bmap_image::{UnpackObserver, Unpacking};
use virt_bmap_map::{Cause, Header, diff};
use virt_bmap_ranges::Printable;

/// Time between two progress lines.
pub(super) const LINE_EVERY: Duration = Duration::from_secs(5);

/// When a phase that only has an elapsed time to report has its first line. The next comes after
/// twice the time, and so on, so that the slow start of an appliance does not fill the screen.
const ELAPSED_FIRST: Duration = Duration::from_secs(15);

/// Form of the progress output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ProgressMode {
    /// Bars on a terminal, lines elsewhere
    Auto,
    /// One JSON object per line for each event
    Json,
}

/// Writes an event for programs.
fn emit(event: &progress::ProgressEvent) {
    if let Ok(line) = serde_json::to_string(event) {
        note!("{line}");
    }
}

/// Shows how far an image is unpacked, every few seconds, until the run is cancelled.
pub(super) fn unpacking(mode: ProgressMode, quiet: bool, cancel: Option<Cancel>) -> UnpackObserver {
    let printed = Mutex::new(Instant::now());
    UnpackObserver(Arc::new(move |Unpacking { path, read, size }| {
        if cancel.as_ref().is_some_and(Cancel::is_cancelled) {
            return ControlFlow::Break(());
        }
        let mut printed = printed.lock().unwrap_or_else(PoisonError::into_inner);
        if printed.elapsed() >= LINE_EVERY {
            *printed = Instant::now();
            let doing = format!("unpacking {}", Printable::path(path));
            match mode {
                ProgressMode::Json => {
                    let share = Some(read as f64 / size as f64);
                    emit(&progress::ProgressEvent::Progress { doing, share });
                }
                ProgressMode::Auto if quiet => {}
                ProgressMode::Auto => note!("{doing}: {} of {}", HumanBytes(read), HumanBytes(size)),
            }
        }
        ControlFlow::Continue(())
    }))
}

/// Prints the warnings of a map.
pub(super) fn print_warnings(mode: ProgressMode, header: &Header) {
    for warning in &header.warnings {
        match mode {
            ProgressMode::Json => emit(&progress::ProgressEvent::of_warning(warning.clone())),
            ProgressMode::Auto if warning.is_incomplete() => note!("virt-bmap-rs: {warning}"),
            ProgressMode::Auto => note!("virt-bmap-rs: warning: {warning}"),
        }
    }
}

/// Writes the event of a failed run. The message for people is printed when the program ends.
pub(super) fn print_failure(mode: ProgressMode, error: &MapError) {
    let reason = match error {
        MapError::Hung { .. } => FailureReason::Hung,
        _ => FailureReason::Other,
    };
    if mode == ProgressMode::Json {
        emit(&progress::ProgressEvent::Failed { reason });
    }
}

/// Prints how much differs from the baseline.
pub(super) fn print_changes(mode: ProgressMode, quiet: bool, counts: diff::Counts) {
    if mode == ProgressMode::Json {
        emit(&progress::ProgressEvent::Changed(counts));
    } else if !quiet {
        note!("{counts} since the baseline");
    }
}

/// Writes the last events of a run: its peak memory, the balance, and that the maps were written.
pub(super) fn print_done(mapped: &Mapped) {
    if let Some(peak) = fleet::capacity::peak_memory() {
        emit(&progress::ProgressEvent::Memory { peak });
    }
    if let Some(balance) = mapped.map.header().balance() {
        emit(&progress::ProgressEvent::Balance(balance));
    }
    emit(&progress::ProgressEvent::Done(mapped.counts));
}

/// Shows the progress of a run.
pub(super) enum Progress {
    /// No output.
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

    /// Removes the bars from the screen.
    pub(super) fn finish(self) {
        if let Self::Bars(bars) = self
            && let Some(bar) = bars.current
        {
            bar.finish_and_clear();
        }
    }
}

/// The words for a phase.
fn title(phase: &Phase) -> String {
    match phase {
        Phase::Launching => "starting the appliance".into(),
        Phase::Devices => "examining disks, partitions and volumes".into(),
        Phase::Unlocking { device } => format!("unlocking {}", Printable(device.as_bytes())),
        Phase::Filesystem { name, kind, number, of } => {
            let (name, kind) = (Printable(name.as_bytes()), Printable(kind.as_bytes()));
            format!("[{number}/{of}] reading {name} ({kind})")
        }
        Phase::Closing => "shutting down the appliance".into(),
    }
}

/// The message that a filesystem is left out from now on.
fn restart_message(device: &str, cause: &Cause) -> String {
    format!("{}: {cause}; restarting the appliance without this filesystem", Printable(device.as_bytes()))
}

/// The part of a filesystem that has been read, from 0 to 1: by bytes or by objects, whichever
/// gives more.
fn share(snapshot: Snapshot) -> f64 {
    let part = |done: u64, of: u64| if of == 0 { 0.0 } else { done as f64 / of as f64 };
    part(snapshot.bytes, snapshot.bytes_expected)
        .max(part(snapshot.objects, snapshot.objects_expected))
        .min(1.0)
}

fn amounts(snapshot: Snapshot) -> String {
    format!("{} objects, {}", snapshot.objects, HumanBytes(snapshot.bytes))
}

/// A bar for each filesystem, and a spinner for the phases of unknown length.
#[derive(Default)]
pub(super) struct Bars {
    screen: MultiProgress,
    phase: Option<Phase>,
    current: Option<ProgressBar>,
}

/// Number of steps of a bar.
const STEPS: u64 = 1000;

impl Bars {
    fn show(&mut self, event: &MapEvent<'_>) {
        match event {
            MapEvent::Opened(_) => {}
            MapEvent::Launching(launching) => {
                let _ = self.screen.println(launching.to_string());
            }
            MapEvent::LeftOut { device, cause } => {
                let _ = self.screen.println(restart_message(device, cause));
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

/// A line when a phase begins, and more while it lasts: one every few seconds if there is something
/// new to say, and else ever fewer.
#[derive(Default)]
pub(super) struct Plain {
    phase: Option<Phase>,
    /// The words for what is done.
    doing: String,
    began: Option<Instant>,
    printed: Option<Instant>,
    /// The elapsed time of the next line that only says it.
    next: Duration,
}

impl Plain {
    fn show(&mut self, event: &MapEvent<'_>) {
        match event {
            MapEvent::Opened(_) => {}
            MapEvent::Launching(launching) => {
                note!("{launching}");
                let doing = match launching {
                    Launching::Building { .. } => "building the appliance".to_owned(),
                    Launching::Under(_)
                    | Launching::Saving
                    | Launching::Boot { .. }
                    | Launching::Stock { .. } => title(&Phase::Launching),
                };
                self.begin(&Phase::Launching, doing);
            }
            MapEvent::LeftOut { device, cause } => note!("{}", restart_message(device, cause)),
            MapEvent::Progress(phase, snapshot) => {
                if self.phase.as_ref() != Some(phase) {
                    let doing = title(phase);
                    // MapEvent::Launching prints the line of this phase.
                    if **phase != Phase::Launching {
                        note!("{doing}");
                    }
                    self.begin(phase, doing);
                    return;
                }
                if let Phase::Filesystem { .. } = phase {
                    if self.printed.is_some_and(|printed| printed.elapsed() < LINE_EVERY) {
                        return;
                    }
                    let percent = (share(*snapshot) * 100.0) as u32;
                    note!("{}: {}, about {percent}%", self.doing, amounts(*snapshot));
                    self.printed = Some(Instant::now());
                } else {
                    let elapsed = self.began.map_or(Duration::ZERO, |began| began.elapsed());
                    if elapsed < self.next {
                        return;
                    }
                    self.next = elapsed * 2;
                    note!("{}: {} s so far", self.doing, elapsed.as_secs());
                }
            }
        }
    }

    /// Notes that a phase has begun and that its line was printed.
    fn begin(&mut self, phase: &Phase, doing: String) {
        let now = Some(Instant::now());
        let phase = Some((*phase).clone());
        *self = Self { phase, doing, began: now, printed: now, next: ELAPSED_FIRST };
    }
}

/// An event when a phase begins, and one every second while it lasts. The latter also shows that
/// the run is alive.
#[derive(Default)]
pub(super) struct Json {
    phase: Option<Phase>,
    emitted: Option<Instant>,
}

impl Json {
    fn show(&mut self, event: &MapEvent<'_>) {
        match event {
            MapEvent::Opened(images) => {
                emit(&progress::ProgressEvent::Opened { disks: images.iter().map(OpenedDisk::of).collect() });
            }
            // The warnings at the end list what was left out.
            MapEvent::Launching(_) | MapEvent::LeftOut { .. } => {}
            MapEvent::Progress(phase, snapshot) => {
                let is_new = self.phase.as_ref() != Some(phase);
                if is_new || self.emitted.is_none_or(|emitted| emitted.elapsed() >= Duration::from_secs(1)) {
                    let share = matches!(phase, Phase::Filesystem { .. }).then(|| share(*snapshot));
                    emit(&progress::ProgressEvent::Progress { doing: title(phase), share });
                    self.phase = Some((*phase).clone());
                    self.emitted = Some(Instant::now());
                }
            }
        }
    }
}

/// Shows how many of a known number of bytes have been processed. Several threads may call it.
pub(super) enum Counter {
    /// No output.
    Quiet,
    /// A bar.
    Bar(ProgressBar),
    /// Lines.
    Plain(PlainCounter),
}

/// A line every few seconds.
pub(super) struct PlainCounter {
    label: &'static str,
    done: AtomicU64,
    of: u64,
    printed: Mutex<Instant>,
}

impl Counter {
    pub(super) fn new(quiet: bool, label: &'static str, of: u64) -> Self {
        if quiet {
            return Self::Quiet;
        }
        if !std::io::stderr().is_terminal() {
            let printed = Mutex::new(Instant::now());
            return Self::Plain(PlainCounter { label, done: AtomicU64::new(0), of, printed });
        }
        let bar = ProgressBar::new(of).with_prefix(label);
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
            Self::Plain(PlainCounter { label, done, of, printed }) => {
                let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                let mut printed = printed.lock().unwrap_or_else(PoisonError::into_inner);
                if printed.elapsed() >= LINE_EVERY {
                    *printed = Instant::now();
                    note!("{label}: {} of {}", HumanBytes(done), HumanBytes(*of));
                }
            }
        }
    }

    /// Removes the bar from the screen.
    pub(super) fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// Shows how many states of a guest's disks have been looked at, and estimates how long the others
/// will take.
pub(super) struct StatesProgress {
    is_quiet: bool,
    mode: ProgressMode,
    began: Instant,
    printed: Instant,
}

impl StatesProgress {
    pub(super) fn new(quiet: bool, mode: ProgressMode) -> Self {
        let now = Instant::now();
        Self { is_quiet: quiet, mode, began: now, printed: now }
    }

    /// The first state begins: the time until now is not that of a look.
    pub(super) fn begin(&mut self) {
        (self.began, self.printed) = (Instant::now(), Instant::now());
    }

    /// `looked` states have been looked at, which is this share of all, from 0 to 1.
    pub(super) fn show(&mut self, looked: u64, share: f64) {
        if self.printed.elapsed() < LINE_EVERY || share >= 1.0 {
            return;
        }
        self.printed = Instant::now();
        match self.mode {
            ProgressMode::Json => {
                let doing = format!("looked at {}", counted(looked, "state"));
                emit(&progress::ProgressEvent::Progress { doing, share: Some(share) });
            }
            ProgressMode::Auto if self.is_quiet => {}
            ProgressMode::Auto => {
                let left = time_left(self.began.elapsed(), share);
                let left = left.map_or_else(String::new, |left| format!(", {left} left"));
                note!("looked at {}, {:.0} %{left}", counted(looked, "state"), share * 100.0);
            }
        }
    }
}

/// How long the rest will take if this share of all took `elapsed`, in words.
pub(super) fn time_left(elapsed: Duration, share: f64) -> Option<String> {
    let left = elapsed.as_secs_f64() * (1.0 - share) / share;
    match left {
        // Nothing is known if nothing is done.
        _ if !left.is_finite() => None,
        ..120.0 => Some(format!("about {left:.0} s")),
        ..7200.0 => Some(format!("about {:.0} min", left / 60.0)),
        _ => Some(format!("about {:.0} h", left / 3600.0)),
    }
}
