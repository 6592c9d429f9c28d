//! `virt-bmap-rs trace --operations`: what the guest does to its files.

use super::super::map::{MapOptions, mapper_options};
use super::super::signals::Interruption;
use super::{STDOUT, TICK};
use anyhow::{Context as _, Result};
use signal_hook::consts::SIGUSR1;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use virt_bmap::mapper::{Cancel, MapperOptions, map_sources};
use virt_bmap::operations::{Ended, Form, MapDisks, MappedDisks, Watcher, WatcherOptions};
use virt_bmap_map::{ImageInfo, Map};
use virt_bmap_ranges::Printable;
use virt_bmap_trace::Session;

/// What is asked for.
#[derive(Debug, clap::Args)]
pub(super) struct OperationsArgs {
    /// Write down what the guest does to its files: create, write, append, truncate, rename, delete, …
    ///
    /// The disks are frozen now and then and mapped while the guest runs on: when it has flushed its writes and been
    /// quiet for a second, as often as --operations-every says, when SIGUSR1 comes, and at the end. `-` is
    /// standard output. A name that ends in .jsonl gets a JSON object for each operation.
    #[arg(long, value_name = "FILE", conflicts_with = "read_only")]
    pub(super) operations: Option<PathBuf>,

    /// Look every so many seconds, if anything was written, however busy the guest is
    #[arg(long, value_name = "SECS", requires = "operations", value_parser = clap::value_parser!(u64).range(1..))]
    operations_every: Option<u64>,
}

impl OperationsArgs {
    /// Begins the output, if there is to be any.
    pub(super) fn begin(&self) -> Result<Option<Begun<'_>>> {
        let Some(path) = self.operations.as_deref() else { return Ok(None) };
        let out: Box<dyn Write + Send> = if path == Path::new(STDOUT) {
            Box::new(io::stdout())
        } else {
            Box::new(BufWriter::new(File::create(path).with_context(|| unwritable(path))?))
        };
        let now = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGUSR1, now.clone()).context("cannot catch signals")?;
        Ok(Some(Begun { args: self, path, out, now }))
    }
}

fn unwritable(path: &Path) -> String {
    format!("{}: the operations could not be written", Printable::path(path))
}

/// What is ready for the guest to begin.
pub(super) struct Begun<'a> {
    args: &'a OperationsArgs,
    path: &'a Path,
    out: Box<dyn Write + Send>,
    now: Arc<AtomicBool>,
}

impl Begun<'_> {
    /// Begins to watch what is written to the session's disks, which are as `before` says.
    pub(super) fn watch(
        self,
        session: &Session,
        before: Map,
        images: Vec<ImageInfo>,
        options: &MapOptions,
    ) -> Result<Watched> {
        let cancel = Cancel::default();
        let metadata = before.lists_metadata();
        let map_options = MapperOptions { metadata, ..mapper_options(options) };
        let map: MapDisks = Box::new({
            let cancel = cancel.clone();
            move |disks| {
                let mapped =
                    map_sources(disks, images.clone(), Vec::new(), &map_options, &cancel, &mut |_| {})?;
                Ok(MappedDisks { map: mapped.map, replayed: mapped.rewritten })
            }
        });
        let options = WatcherOptions {
            every: self.args.operations_every.map(Duration::from_secs),
            now: self.now,
            form: Form::of(self.path),
        };
        let watcher = Watcher::start(session.freezable(), before, self.out, map, options);
        Ok(Watched { watcher: watcher.context("there is no thread for the operations")?, cancel })
    }
}

/// What is being watched.
pub(super) struct Watched {
    watcher: Watcher,
    cancel: Cancel,
}

impl Watched {
    /// Looks a last time, and says how that went. Returns whether all was found out. Who does not want to wait for
    /// that sends a signal more.
    pub(super) fn finish(self, quiet: bool, interruption: &Interruption) -> bool {
        if !quiet {
            note!("looking what was done to the files");
        }
        let before = interruption.count();
        self.watcher.end();
        while !self.watcher.has_ended() {
            if interruption.count() > before {
                self.cancel.cancel();
            }
            std::thread::sleep(TICK);
        }
        let Ended { counts, spans, missing } = self.watcher.finish();
        for what in &missing {
            note!("virt-bmap-rs: operations are missing: {what}");
        }
        if !quiet {
            let counts: Vec<String> =
                counts.iter().map(|(what, count)| format!("{count} {}", what.word())).collect();
            let counts = if counts.is_empty() { "none".to_owned() } else { counts.join(", ") };
            let times = match spans {
                1 => "once",
                2 => "twice",
                _ => &format!("{spans} times"),
            };
            note!("operations: {counts}; the disks were looked at {times}");
        }
        missing.is_empty()
    }
}
