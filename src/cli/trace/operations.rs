//! `virt-bmap-rs trace --operations`: logs the operations of the guest on its files.

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
use virt_bmap::operations::{Ended, MapDisks, MappedDisks, OperationsFormat, Watcher, WatcherOptions};
use virt_bmap_map::{ImageInfo, Map};
use virt_bmap_ranges::Printable;
use virt_bmap_trace::Session;

/// The options for operations.
#[derive(Debug, clap::Args)]
pub(super) struct OperationsArgs {
    /// Write the guest's file operations: create, write, append, truncate, rename, delete, …
    ///
    /// The disks are frozen from time to time and mapped while the guest runs on: one second after
    /// its last write if that was flushed, as often as --operations-every says, on SIGUSR1, and at
    /// the end. `-` is standard output. A FILE that ends in .jsonl gets one JSON object per line
    /// for each operation.
    #[arg(long = "operations", id = "operations", value_name = "FILE", conflicts_with = "read_only")]
    pub(super) output: Option<PathBuf>,

    /// Also look for operations every SECS seconds if anything was written, however busy the guest
    /// is
    #[arg(long, value_name = "SECS", requires = "operations", value_parser = clap::value_parser!(u64).range(1..))]
    operations_every: Option<u64>,
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
    /// Begins to watch the writes to the session's disks, whose state `before` describes.
    pub(super) fn watch(
        self,
        session: &Session,
        before: Map,
        images: Vec<ImageInfo>,
        options: &MapOptions,
    ) -> Result<Watched> {
        let cancel = Cancel::default();
        let metadata = before.lists_metadata();
        let map_options = MapperOptions { metadata, ..mapper_options(options)? };
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
            look_now: self.look_now,
            format: OperationsFormat::of(self.path),
        };
        let watcher = Watcher::start(session.freezable(), before, self.out, map, options);
        Ok(Watched { watcher: watcher.context("cannot start the thread for operations")?, cancel })
    }
}

/// The running search for operations.
pub(super) struct Watched {
    watcher: Watcher,
    cancel: Cancel,
}

impl Watched {
    /// Looks for operations a last time and prints a summary. Returns whether the output is
    /// complete. Another signal cancels the last look.
    pub(super) fn finish(self, quiet: bool, interruption: &Interruption) -> bool {
        if !quiet {
            note!("looking for the last operations");
        }
        let before = interruption.count();
        self.watcher.end();
        while !self.watcher.has_ended() {
            if interruption.count() > before {
                self.cancel.cancel();
            }
            std::thread::sleep(TICK);
        }
        let Ended { counts, looks, missing } = self.watcher.finish();
        for reason in &missing {
            note!("virt-bmap-rs: operations are missing: {reason}");
        }
        if !quiet {
            let counts: Vec<String> =
                counts.iter().map(|(action, count)| format!("{count} {}", action.word())).collect();
            let counts = if counts.is_empty() { "none".to_owned() } else { counts.join(", ") };
            let times = match looks {
                1 => "once",
                2 => "twice",
                _ => &format!("{looks} times"),
            };
            note!("operations: {counts}; the disks were mapped {times}");
        }
        missing.is_empty()
    }
}
