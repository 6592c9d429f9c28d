//! `virt-bmap-rs operations`: lists what was done to a guest's files, after the fact.

mod history;
mod series;

use super::map::{self, MapOptions, location, mapper_options, refuse_to_overwrite, report_failure};
use super::progress::{Progress, StatesProgress};
use super::signals::Interruption;
use super::{Cli, Exit, counted};
use anyhow::{Context as _, Error, Result, bail};
use clap::error::ErrorKind;
use clap::{CommandFactory as _, ValueEnum};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use virt_bmap::mapper::{Cancel, GuestDisk, KeptAppliance, MapError, MapperOptions, described};
use virt_bmap::operations::{Ended, Finder, Look, MapState, Missing, OperationsFormat, Replayed, States};
use virt_bmap_image::{Image, ImageFormat, Location, Source};
use virt_bmap_map::ImageInfo;
use virt_bmap_ranges::Printable;

/// List what was done to a guest's files: from a recorded history, or between backups or snapshots.
///
/// With --history, the images are the disks of a guest as they were before it was traced, and the
/// LOG of `trace --record` says what the guest wrote: the list is that of `trace --operations`.
/// Without it, the images are states of one disk, the oldest first: backups, or the overlays of a
/// chain. With --snapshots, the states are the snapshots inside of a qcow2 image.
///
/// An appliance looks at one state after the other.
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct OperationsArgs {
    /// States of one disk, the oldest first; with --history, the disks as they were before the
    /// trace
    #[arg(value_name = "IMAGE", required = true, value_parser = location())]
    images: Vec<Location>,

    /// What the guest has written, as `trace --record` keeps it
    #[arg(long, value_name = "LOG", conflicts_with_all = ["snapshots", "from_snapshot", "to_snapshot"])]
    history: Option<PathBuf>,

    /// Look at each state of the history (`flush`), or only every SECS seconds
    ///
    /// What was done between two looks is told by its net effect.
    #[arg(long, value_name = "flush|SECS", requires = "history", default_value = "flush")]
    every: Every,

    /// Accept images that seem to be others than those of the trace, such as copies of them
    #[arg(long, requires = "history")]
    force: bool,

    /// The states are the snapshots inside of IMAGE, and the present disk
    #[arg(long)]
    snapshots: bool,

    /// Begin with this snapshot inside of IMAGE
    #[arg(long, value_name = "NAME")]
    from_snapshot: Option<String>,

    /// End with this snapshot inside of IMAGE, not with the present disk
    #[arg(long, value_name = "NAME")]
    to_snapshot: Option<String>,

    /// File to write the operations to; `-` is standard output, the default
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Format of the operations [default: by the suffix of FILE, else text]
    #[arg(long, value_enum)]
    format: Option<FormArg>,

    /// Format of the images (raw, qcow2, vmdk, …); detected by default
    ///
    /// If given once, it applies to all images; if repeated, to one image after the other.
    #[arg(long, value_name = "FORMAT")]
    image_format: Vec<ImageFormat>,

    #[command(flatten, next_help_heading = "Options for mapping")]
    mapping: MapOptions,
}

const AFTER_HELP: &str = "\
Exit status:
  0    success
  1    error
  2    usage error
  3    operations are missing from the output; standard error says why
  130  interrupted (143: terminated); the output has the operations up to then

Examples:
  virt-bmap-rs operations guest.raw --history guest.history
  virt-bmap-rs operations monday.raw tuesday.raw wednesday.raw -o done.jsonl
  virt-bmap-rs operations base.qcow2 top.qcow2
  virt-bmap-rs operations guest.qcow2 --from-snapshot before --to-snapshot after";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormArg {
    /// A line for each operation
    Text,
    /// One JSON object per line for each operation
    Jsonl,
    /// CSV with a row for each operation
    Csv,
}

/// How often the disks are looked at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Every {
    /// At each state.
    Flush,
    /// At most so often.
    Seconds(NonZeroU64),
}

impl Every {
    /// The time between two looks, if not every state is looked at.
    pub(super) fn time(self) -> Option<Duration> {
        match self {
            Self::Flush => None,
            Self::Seconds(seconds) => Some(Duration::from_secs(seconds.get())),
        }
    }
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

/// Stands for standard output.
const STDOUT: &str = "-";

pub(super) fn run(args: &OperationsArgs) -> Result<Exit> {
    if let Some(exit) = args.mapping.contradiction() {
        return Ok(exit);
    }
    args.mapping.start_log();
    match &args.history {
        Some(log) => history::run(args, log),
        None => series::run(args),
    }
}

/// A usage error.
fn usage(words: &str) -> Exit {
    super::usage(&Cli::command().error(ErrorKind::WrongNumberOfValues, words))
}

/// Maps states of the disks that `images` describes, with one appliance. The progress of the first
/// one is shown.
pub(super) fn map_states(
    options: &MapOptions,
    images: Vec<ImageInfo>,
    cancel: Cancel,
    mut progress: Option<Progress>,
) -> Result<MapState> {
    // Symbolic links are in maps with metadata only.
    let options = MapperOptions { metadata: true, ..mapper_options(options)? };
    let mut appliance = KeptAppliance::new(options, images);
    Ok(Box::new(move |state| {
        let look = appliance.look(state.disks, state.written, state.maps, &cancel, &mut |event| {
            if let Some(progress) = &mut progress {
                progress.show(&event);
            }
        });
        if let Some(progress) = progress.take() {
            progress.finish();
        }
        let look = look?;
        let data = Replayed::of(&look.map, &look.replayed, &appliance.disks())?;
        Ok(Look { map: look.map, replayed: look.replayed, data })
    }))
}

/// Prints what was found, and returns whether it is complete.
pub(super) fn print_result(ended: &Ended, quiet: bool) -> bool {
    for reason in &ended.missing {
        note!("virt-bmap-rs: operations are missing: {reason}");
    }
    if !quiet {
        let counts: Vec<String> =
            ended.counts.iter().map(|(action, count)| format!("{count} {}", action.word())).collect();
        let counts = if counts.is_empty() { "none".to_owned() } else { counts.join(", ") };
        let states = counted(ended.states, "state");
        let each = ended.looking.as_secs_f64() / (ended.looks.max(1) as f64);
        let looks = counted(ended.looks, "look");
        note!("operations: {counts}; {states} of the disks, {looks} of {each:.2} s");
    }
    ended.missing.is_empty()
}

/// Images of a guest's disks, and signals that end the run.
struct Run<'a> {
    args: &'a OperationsArgs,
    cancel: Cancel,
    interruption: Interruption,
}

impl<'a> Run<'a> {
    fn new(args: &'a OperationsArgs) -> Result<Self> {
        let cancel = Cancel::default();
        let interruption = Interruption::watch(cancel.clone())?;
        Ok(Self { args, cancel, interruption })
    }

    /// Opens images. `None` after a signal.
    fn open(&self, disks: &[GuestDisk]) -> Result<Option<Vec<Image>>> {
        map::open(disks, &self.args.mapping, &self.cancel)
    }

    fn print_warnings(&self, image: &Image) {
        if !self.args.mapping.quiet {
            image.warnings.iter().for_each(|warning| note!("virt-bmap-rs: warning: {warning}"));
        }
    }

    /// Creates the output. It is written in place, so that it can be followed.
    fn create(&self, disks: &[GuestDisk]) -> Result<Box<dyn Write + Send>> {
        let path = self.args.output.as_deref().filter(|path| *path != Path::new(STDOUT));
        let Some(path) = path else { return Ok(Box::new(io::stdout())) };
        refuse_to_overwrite(disks, &[path.to_owned()])?;
        let same =
            |log: &PathBuf| matches!((log.canonicalize(), path.canonicalize()), (Ok(a), Ok(b)) if a == b);
        if self.args.history.as_ref().is_some_and(same) {
            bail!("{}: refusing to overwrite the history; name another file with -o", path.display());
        }
        let file = File::create(path);
        let file = file.with_context(|| format!("{}: cannot write the operations", Printable::path(path)))?;
        Ok(Box::new(BufWriter::new(file)))
    }

    /// Maps the first state. `None` after a signal.
    fn begin(
        self,
        disks: &[GuestDisk],
        images: &[Image],
        is_series: bool,
    ) -> Result<Result<Looking<'a>, Exit>> {
        let Self { args, .. } = self;
        let (quiet, mode) = (args.mapping.quiet, args.mapping.progress);
        let format = match args.format {
            Some(FormArg::Text) => OperationsFormat::Text,
            Some(FormArg::Jsonl) => OperationsFormat::Jsonl,
            Some(FormArg::Csv) => OperationsFormat::Csv,
            None => args.output.as_deref().map_or(OperationsFormat::Text, OperationsFormat::of),
        };
        let output = self.create(disks)?;
        let progress = Some(Progress::new(quiet, mode));
        let map = map_states(&args.mapping, described(images), self.cancel.clone(), progress)?;
        let finder = Finder::new(output, map, format, is_series).context("cannot write the operations")?;
        let (run, progress) = (self, StatesProgress::new(quiet, mode));
        let mut looking = Looking { run, finder, progress, looked: 0 };
        let sources: Vec<Arc<dyn Source>> = images.iter().map(|image| image.source.clone()).collect();
        let outcome = looking.finder.begin(&sources);
        if looking.run.cancel.is_cancelled() {
            return Ok(Err(looking.run.interrupted()));
        }
        outcome.map_err(|error| match error.downcast::<MapError>() {
            Ok(error) => {
                report_failure(mode, &error);
                Error::from(*error)
            }
            Err(error) => Error::from_boxed(error),
        })?;
        looking.progress.begin();
        Ok(Ok(looking))
    }

    fn interrupted(&self) -> Exit {
        note!("virt-bmap-rs: interrupted");
        Exit::Signal(self.interruption.signal())
    }
}

/// A run that looks at states.
struct Looking<'a> {
    run: Run<'a>,
    finder: Finder,
    progress: StatesProgress,
    looked: u64,
}

impl Looking<'_> {
    /// Looks at the next state; `share` of all states is then done. Breaks after a signal, and if
    /// nobody reads the output any more.
    fn look(&mut self, states: States, share: f64) -> Result<ControlFlow<Exit>> {
        let count = states.span.states();
        let outcome = self.finder.look(states);
        if self.run.cancel.is_cancelled() {
            return Ok(ControlFlow::Break(self.run.interrupted()));
        }
        self.looked += count;
        self.progress.show(self.looked, share);
        written(outcome)
    }

    /// Adds a reason why operations are missing.
    fn note_missing(&mut self, reason: Missing) {
        self.finder.note_missing(reason);
    }

    /// Writes the last operations, and prints what was found.
    fn finish(mut self) -> Result<Exit> {
        if let ControlFlow::Break(exit) = written(self.finder.end())? {
            return Ok(exit);
        }
        let is_complete = print_result(&self.finder.into_result(), self.run.args.mapping.quiet);
        Ok(if is_complete { Exit::Success } else { Exit::Incomplete })
    }
}

/// A closed pipe (`… | head`) ends the run, and is not an error.
fn written(outcome: io::Result<()>) -> Result<ControlFlow<Exit>> {
    match outcome {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(Exit::Success)),
        Err(error) => Err(Error::from(error).context("cannot write the operations")),
    }
}
