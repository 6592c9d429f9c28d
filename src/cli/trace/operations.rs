//! `virt-bmap-rs trace --operations`: logs the operations of the guest on its files; `--record`
//! keeps the history from which they can be found later.

use super::super::counted;
use super::super::map::{MapOptions, size};
use super::super::operations::{Every, map_states, print_result};
use super::super::progress::time_left;
use super::super::signals::Interruption;
use super::{STDOUT, TICK};
use anyhow::{Context as _, Result, bail};
use clap::ArgGroup;
use rustix::fs::{Access, access};
use signal_hook::consts::SIGUSR1;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use virt_bmap::mapper::Cancel;
use virt_bmap::operations::{Finder, Latest, OperationsFormat, Watcher, WatcherOptions};
use virt_bmap_history::{History, HistoryOptions, Recording};
use virt_bmap_map::ImageInfo;
use virt_bmap_ranges::Printable;
use virt_bmap_trace::Session;

/// Interval of the messages on how many states are left.
const TELLING: Duration = Duration::from_secs(5);

/// The options for operations.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(group = ArgGroup::new("kept").args(["operations", "record"]).multiple(true))]
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

    /// Keep all that the guest writes in LOG, for `virt-bmap-rs operations`
    ///
    /// LOG must not exist. It has data of the guest, so only its owner may read it.
    #[arg(long, value_name = "LOG", conflicts_with = "read_only")]
    record: Option<PathBuf>,

    /// Most bytes of the guest's writes that are kept: in LOG, or else in a temporary file until
    /// they were looked at
    ///
    /// If the guest writes more, LOG ends there, and states that wait are looked at together. K, M,
    /// G and T are units.
    #[arg(long, value_name = "SIZE", requires = "kept", default_value = "16G", value_parser = size)]
    history_limit: u64,
}

impl OperationsArgs {
    /// Opens the output, if operations are wanted.
    pub(super) fn begin(&self) -> Result<Option<Output<'_>>> {
        self.check_record()?;
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

    /// How the guest's writes are kept, if they are.
    pub(super) fn history(&self) -> Option<HistoryOptions> {
        let is_kept = self.output.is_some() || self.record.is_some();
        let record = self.record.as_ref();
        let record = record.map(|path| Recording { path: path.clone(), identities: Vec::new() });
        is_kept.then(|| HistoryOptions { limit: self.history_limit, record, ..HistoryOptions::default() })
    }

    /// The recording of a session, if there is one.
    pub(super) fn recorder(&self, session: &Session) -> Option<Recorder<'_>> {
        let (path, history) = self.record.as_deref().zip(session.history())?;
        Some(Recorder { path, history, is_alone: self.output.is_none() })
    }

    /// Refuses a LOG that cannot be made, before the long work.
    fn check_record(&self) -> Result<()> {
        let Some(path) = self.record.as_deref() else { return Ok(()) };
        let name = Printable::path(path);
        if path == Path::new(STDOUT) {
            bail!("--record needs a file: a history cannot be written to standard output");
        }
        if path.symlink_metadata().is_ok() {
            bail!("{name}: it exists, and a history is never written over a file; name another one");
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        access(parent.unwrap_or(Path::new(".")), Access::WRITE_OK | Access::EXEC_OK)
            .with_context(|| format!("{name}: cannot write the history"))
    }
}

fn unwritable(path: &Path) -> String {
    format!("{}: cannot write the operations", Printable::path(path))
}

/// The recording of what the guest writes.
pub(super) struct Recorder<'a> {
    path: &'a Path,
    history: Arc<History>,
    /// Whether nobody looks at the states.
    is_alone: bool,
}

impl Recorder<'_> {
    /// To be called often. States that nobody looks at need no memory.
    pub(super) fn step(&self) {
        while self.is_alone && self.history.next().is_some() {}
    }

    /// Reports a log that was cut short. Returns whether it is complete.
    pub(super) fn finish(self) -> bool {
        let is_complete = !self.history.is_cut_short();
        if !is_complete {
            note!(
                "virt-bmap-rs: {}: the history was cut short, because it had reached --history-limit or could not be written",
                Printable::path(self.path)
            );
        }
        is_complete
    }
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
        let map = map_states(options, images, cancel.clone(), None)?;
        let format = OperationsFormat::of(self.path);
        let finder = Finder::new(self.out, map, format, false).with_context(|| unwritable(self.path))?;
        let options = WatcherOptions { every: self.args.operations_every.time(), look_now: self.look_now };
        let history = session.history().context("the disks are read-only")?;
        let watcher = Watcher::start(history, finder, options);
        Ok(Watched { watcher: watcher.context("cannot start the thread for operations")?, cancel })
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
        let (began, mut told, mut most) = (Instant::now(), Instant::now(), 0);
        if !quiet {
            note!("looking at the last states of the disks");
        }
        while !self.watcher.has_ended() {
            if interruption.count() > before {
                self.cancel.cancel();
                self.watcher.abandon();
            }
            let left = self.watcher.left();
            most = most.max(left);
            if !quiet && told.elapsed() >= TELLING && left > 0 {
                told = Instant::now();
                let share = (most - left) as f64 / most as f64;
                let time = time_left(began.elapsed(), share);
                let time = time.map_or_else(String::new, |time| format!(", {time}"));
                note!("{left} of {} are left{time}", counted(most, "state"));
            }
            std::thread::sleep(TICK);
        }
        print_result(&self.watcher.finish(), quiet)
    }
}
