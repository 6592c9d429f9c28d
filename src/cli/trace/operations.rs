//! `virt-bmap-rs trace --operations`: logs the operations of the guest on its files.

use super::super::counted;
use super::super::map::{MapOptions, mapper_options, size};
use super::super::signals::Interruption;
use super::{STDOUT, TICK};
use anyhow::{Context as _, Result};
use signal_hook::consts::SIGUSR1;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use virt_bmap::mapper::{Cancel, KeptAppliance, MapperOptions};
use virt_bmap::operations::{Ended, Latest, Look, MapState, OperationsFormat, Watcher, WatcherOptions};
use virt_bmap_history::HistoryOptions;
use virt_bmap_map::ImageInfo;
use virt_bmap_ranges::Printable;
use virt_bmap_trace::Session;

/// Interval of the messages on how many states are left.
const TELLING: Duration = Duration::from_secs(5);

/// The options for operations.
#[derive(Debug, clap::Args)]
pub(super) struct OperationsArgs {
    /// Write the guest's file operations: create, write, append, truncate, rename, delete, …
    ///
    /// Whatever the guest writes is kept, in its order. An appliance looks at each state of the
    /// disks that the guest has flushed, and at each that was written and left alone for 50 ms. `-`
    /// is standard output. A FILE that ends in .jsonl or .csv gets an object or a row for each
    /// operation.
    #[arg(long = "operations", id = "operations", value_name = "FILE", conflicts_with = "read_only")]
    pub(super) output: Option<PathBuf>,

    /// Look at each state of the disks (`flush`), or at most every SECS seconds
    ///
    /// What was done between two looks is told by its net effect.
    #[arg(long, value_name = "flush|SECS", requires = "operations", default_value = "flush")]
    operations_every: Every,

    /// Most bytes of the guest's writes that are kept in a temporary file until they were looked at
    ///
    /// If the guest writes more, states that wait are looked at together. K, M, G and T are units.
    #[arg(long, value_name = "SIZE", requires = "operations", default_value = "16G", value_parser = size)]
    history_limit: u64,
}

/// How often the disks are looked at.
#[derive(Clone, Copy, Debug)]
enum Every {
    Flush,
    Seconds(NonZeroU64),
}

impl FromStr for Every {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "flush" => Ok(Self::Flush),
            _ => text.parse().map(Self::Seconds).map_err(|_| "expected `flush` or a number of seconds"),
        }
    }
}

impl std::fmt::Display for Every {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flush => f.write_str("flush"),
            Self::Seconds(seconds) => seconds.fmt(f),
        }
    }
}

impl OperationsArgs {
    /// Opens the output, if operations are wanted.
    pub(super) fn begin(&self) -> Result<Option<Output<'_>>> {
        let Some(path) = self.output.as_deref() else { return Ok(None) };
        let out: Box<dyn Write + Send> = if path == Path::new(STDOUT) {
            Box::new(io::stdout())
        } else {
            Box::new(BufWriter::new(File::create(path).with_context(|| unwritable(path))?))
        };
        let look_now = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGUSR1, look_now.clone())
            .context("cannot install the handler of SIGUSR1")?;
        Ok(Some(Output { args: self, path, out, look_now }))
    }
}

fn unwritable(path: &Path) -> String {
    format!("{}: cannot write the operations", Printable::path(path))
}

/// The opened output, before the guest starts.
pub(super) struct Output<'a> {
    args: &'a OperationsArgs,
    path: &'a Path,
    out: Box<dyn Write + Send>,
    /// Set by SIGUSR1.
    look_now: Arc<AtomicBool>,
}

impl Output<'_> {
    /// Begins to watch the writes to the session's disks.
    pub(super) fn watch(
        self,
        session: &Session,
        images: Vec<ImageInfo>,
        options: &MapOptions,
    ) -> Result<Watched> {
        let cancel = Cancel::default();
        // Symbolic links are in maps with metadata only.
        let map_options = MapperOptions { metadata: true, ..mapper_options(options)? };
        let mut appliance = KeptAppliance::new(map_options, images);
        let map: MapState = Box::new({
            let cancel = cancel.clone();
            move |state| {
                let look = appliance.look(state.disks, state.written, state.maps, &cancel, &mut |_| {})?;
                Ok(Look { map: look.map, replayed: look.replayed })
            }
        });
        let options = WatcherOptions {
            every: match self.args.operations_every {
                Every::Flush => None,
                Every::Seconds(seconds) => Some(Duration::from_secs(seconds.get())),
            },
            look_now: self.look_now,
            format: OperationsFormat::of(self.path),
        };
        let history = session.history().context("the disks are read-only")?;
        let watcher = Watcher::start(history, self.out, map, options);
        Ok(Watched { watcher: watcher.context("cannot start the thread for operations")?, cancel })
    }

    /// How the guest's writes are kept.
    pub(super) fn history(&self) -> HistoryOptions {
        HistoryOptions { limit: self.args.history_limit, ..HistoryOptions::default() }
    }
}

/// The running search for operations.
pub(super) struct Watched {
    watcher: Watcher,
    cancel: Cancel,
}

impl Watched {
    /// The latest operations.
    pub(super) fn latest(&self) -> Latest {
        self.watcher.latest()
    }

    /// Looks for operations a last time and prints a summary. Returns whether the output is
    /// complete. Another signal cancels the last look.
    pub(super) fn finish(self, quiet: bool, interruption: &Interruption) -> bool {
        let before = interruption.count();
        self.watcher.end();
        let (mut told, mut most) = (Instant::now(), 0);
        if !quiet {
            note!("looking at the last states of the disks");
        }
        while !self.watcher.has_ended() {
            if interruption.count() > before {
                self.cancel.cancel();
            }
            let left = self.watcher.left();
            most = most.max(left);
            if !quiet && told.elapsed() >= TELLING && left > 0 {
                told = Instant::now();
                note!("{left} of {} are left", counted(most, "state"));
            }
            std::thread::sleep(TICK);
        }
        let Ended { counts, states, looks, looking, missing } = self.watcher.finish();
        for reason in &missing {
            note!("virt-bmap-rs: operations are missing: {reason}");
        }
        if !quiet {
            let counts: Vec<String> =
                counts.iter().map(|(action, count)| format!("{count} {}", action.word())).collect();
            let counts = if counts.is_empty() { "none".to_owned() } else { counts.join(", ") };
            let states = counted(states, "state");
            let each = looking.as_secs_f64() / (looks.max(1) as f64);
            note!("operations: {counts}; {states} of the disks, {looks} looks of {each:.2} s");
        }
        missing.is_empty()
    }
}
