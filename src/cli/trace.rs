//! `virt-bmap-rs trace`: logs which files a guest reads and writes.

mod operations;
mod top;

use super::make::{make_or_interrupted, with_formats};
use super::map::{MapOptions, location, refuse_to_overwrite};
use super::signals::Interruption;
use super::{Exit, counted};
use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use operations::{OperationsArgs, Watched};
use rustix::process::Signal;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};
use top::{Top, TopStatus};
use virt_bmap::mapper::{self, Cancel, GuestDisk};
use virt_bmap::operations::Latest;
use virt_bmap_image::{Image, ImageFormat, Location};
use virt_bmap_map::output::Output;
use virt_bmap_map::{self as bmap, Kind, Map};
use virt_bmap_nbd::ListenAddress;
use virt_bmap_ranges::{Human, Printable};
use virt_bmap_trace::LogFormat;
use virt_bmap_trace::{
    Amount, Captive, Live, Op, Outcome, Overflow, Session, Streams, Summary, TraceOptions, Writes, freshness,
    working_set,
};

/// Serve a guest's disks over NBD and log which files it reads and writes.
///
/// Each request is looked up in the guest's map, which is made first if none is given. The guest's
/// writes go to a private layer, which is discarded at the end, unless --write through is given.
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct TraceArgs {
    /// The guest's disks, in the order of the map
    #[arg(value_name = "IMAGE", required = true, value_parser = location())]
    images: Vec<Location>,

    /// The guest's map; made first if it is not given
    #[arg(long, value_name = "MAP")]
    map: Option<PathBuf>,

    /// File to write the log to; `-` is standard output, the default without --top
    #[arg(short, long, value_name = "LOG")]
    output: Option<PathBuf>,

    /// Format of the log
    #[arg(long, value_enum, default_value_t = FormArg::Text)]
    format: FormArg,

    /// Show the guest's activity live: a screen on a terminal, elsewhere a line every 5 s
    ///
    /// The display uses standard output; a log is written only with -o. On a terminal, the keys b,
    /// w, r and t sort the files by bytes, bytes written, requests, and time of the last request;
    /// space pauses the screen; q and Ctrl-C end the trace. The command of --run then has no
    /// terminal: it has no input, its latest output is shown on the screen, and its last lines are
    /// printed to standard error at the end.
    #[arg(long)]
    top: bool,

    /// Write the working set: files in the order of their first reads, and ranges, as JSON
    #[arg(long, value_name = "FILE")]
    working_set: Option<PathBuf>,

    /// Write the ranges to prefetch: lines of `OFFSET LENGTH` in bytes, in the order of the first
    /// reads
    #[arg(long, value_name = "FILE")]
    prefetch: Option<PathBuf>,

    /// Write the files to prefetch: one path per line, in the order of the first reads
    #[arg(long, value_name = "FILE")]
    prefetch_files: Option<PathBuf>,

    /// Run a shell command that uses the disks, and end when it ends
    ///
    /// In the command, $nbd and $uri are the URI of the first disk, $nbd2 and $uri2 that of the
    /// second, and so on; $unixsocket is the path of the server's socket, or $port its TCP port.
    #[arg(long, value_name = "CMD", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    run: Option<String>,

    /// Listen on a TCP port instead of a private Unix socket
    ///
    /// Port 0 selects any free port. There is no authentication: anyone who can reach the port can
    /// read the disks.
    #[arg(long, value_name = "ADDR:PORT", value_parser = listen)]
    listen: Option<Listen>,

    /// Where the guest's writes go
    #[arg(long, value_enum, default_value_t = WriteArg::Private)]
    write: WriteArg,

    #[command(flatten)]
    operations: OperationsArgs,

    /// Refuse all writes
    #[arg(long, conflicts_with = "write")]
    read_only: bool,

    /// Make the guest wait if the log cannot keep up, instead of dropping requests from the log
    #[arg(long)]
    no_drop: bool,

    /// Accept a map that seems to be of another disk or older than the images
    #[arg(long)]
    force: bool,

    /// Format of the images (raw, qcow2, vmdk, …); detected by default
    ///
    /// If given once, it applies to all images; if repeated, to one image after the other.
    #[arg(long, value_name = "FORMAT")]
    image_format: Vec<ImageFormat>,

    #[command(flatten, next_help_heading = "Options for making a map")]
    mapping: MapOptions,
}

const AFTER_HELP: &str = "\
Exit status:
  that of the command; 128 plus the signal's number if a signal ended it
  0    without a command: served until SIGINT or SIGTERM
  1    error
  2    usage error
  3    the command ended with 0, or there was none, but requests or operations
       are missing from the output; standard error says why
  130  interrupted (143: terminated) before the command had ended

Examples:
  virt-bmap-rs trace guest.raw --map guest.bmap -o boot.log \\
      --run 'qemu-system-x86_64 -m 2048 -drive file=$nbd,format=raw,if=virtio'
  virt-bmap-rs trace guest.qcow2 --map guest.jsonl -o boot.jsonl --format jsonl \\
      --run 'qemu-img bench -f raw \"$uri\"'
  virt-bmap-rs trace guest.raw --map guest.jsonl -o log --operations done.txt \\
      --run 'qemu-system-x86_64 -m 2048 -drive file=$nbd,format=raw,if=virtio'
  virt-bmap-rs report guest.jsonl --trace boot.jsonl";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormArg {
    /// The format of the original bmaplogger
    Text,
    /// One JSON object per line for each request
    Jsonl,
    /// CSV with a row for each object of each request
    Csv,
    /// A line for each request, as nbdkit's log filter writes it
    Log,
    /// Trace events of Chrome: Perfetto shows them on a line of time
    Chrome,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WriteArg {
    /// To a private layer, which is discarded at the end
    Private,
    /// To the image, which must be raw
    Through,
}

/// Addresses to listen on.
#[derive(Clone, Debug)]
struct Listen(Vec<SocketAddr>);

fn listen(text: &str) -> Result<Listen, String> {
    match text.to_socket_addrs() {
        Ok(addresses) => Ok(Listen(addresses.collect())),
        Err(error) => Err(format!("expected an address and a port, such as localhost:10809: {error}")),
    }
}

impl TraceArgs {
    /// The path of the log, if one is written.
    fn log(&self) -> Option<&Path> {
        let default = (!self.top).then_some(Path::new(STDOUT));
        self.output.as_deref().or(default)
    }

    /// The message that the log cannot be written.
    fn log_error(&self) -> String {
        format!("{}: cannot write the log", Printable::path(self.log().unwrap_or(Path::new(STDOUT))))
    }
}

/// Stands for standard output.
const STDOUT: &str = "-";

pub(super) fn run(args: &TraceArgs) -> Result<Exit> {
    args.mapping.start_log();
    if args.top && args.output.as_deref() == Some(Path::new(STDOUT)) {
        bail!("--top and the log cannot both use standard output; name a file for the log with -o");
    }
    if args.top && args.operations.output.as_deref() == Some(Path::new(STDOUT)) {
        bail!("--top and the operations cannot both use standard output; name a file for them");
    }
    let disks = with_formats(&args.images, &args.image_format, &args.mapping.tls)?;
    let after = [&args.working_set, &args.prefetch, &args.prefetch_files];
    let named = after.into_iter().chain([&args.operations.output]).flatten().map(PathBuf::as_path);
    let outputs: Vec<PathBuf> = named.chain(args.log()).map(Path::to_owned).collect();
    if outputs.iter().filter(|output| *output == Path::new(STDOUT)).count() > 1 {
        bail!("several outputs use standard output; name a file for the log with -o");
    }
    refuse_to_overwrite(&disks, &outputs)?;
    for output in outputs.iter().filter(|output| *output != Path::new(STDOUT)) {
        if let Some(map) = &args.map
            && matches!((map.canonicalize(), output.canonicalize()), (Ok(map), Ok(output)) if map == output)
        {
            bail!("{}: refusing to overwrite the map; name another file", map.display());
        }
    }
    // Created before the long work, so that an unwritable directory is reported first.
    let begin = |path: &Option<PathBuf>| path.as_deref().map(Output::create).transpose();
    let [working_set, prefetch, prefetch_files] = [begin(after[0])?, begin(after[1])?, begin(after[2])?];
    let operations = args.operations.begin()?;
    let cancel = Cancel::default();
    let interruption = Interruption::watch(cancel.clone())?;
    let (images, map) = match &args.map {
        Some(path) => {
            let images = open(&disks, args)?;
            let map = load(path, &images, args)?;
            (images, map)
        }
        None => {
            let images = open(&disks, args)?;
            match make_or_interrupted(&images, &args.mapping, &cancel, &interruption)? {
                Ok(map) => (images, map),
                Err(exit) => return Ok(exit),
            }
        }
    };
    // The first lookup builds the index; it must not delay the guest's first request.
    map.at(1, virt_bmap_ranges::DiskOffset(0));
    let form = match args.format {
        FormArg::Text => LogFormat::Text,
        FormArg::Jsonl => LogFormat::Jsonl,
        FormArg::Csv => LogFormat::Csv,
        FormArg::Log => LogFormat::Log,
        FormArg::Chrome => LogFormat::Chrome,
    };
    let described = mapper::described(&images);
    let output = match args.log() {
        Some(path) => form.output(create(path, args)?, &described),
        None => form.output(io::sink(), &described),
    };
    let output = output.with_context(|| args.log_error())?;
    let live = args.top.then(Arc::<Live>::default);
    let options = TraceOptions {
        writes: match (args.read_only, args.write) {
            (true, _) => Writes::Refused,
            (false, WriteArg::Private) => Writes::Private,
            (false, WriteArg::Through) => Writes::Through,
        },
        overflow: if args.no_drop { Overflow::Wait } else { Overflow::Drop },
        place: args
            .listen
            .as_ref()
            .map_or(ListenAddress::Private, |listen| ListenAddress::Tcp(listen.0.clone())),
        live: live.clone(),
        history: operations.as_ref().map(operations::Output::history),
    };
    let map = Arc::new(map);
    let session = Session::start(images, map.clone(), output, &options)?;
    let watched = operations.map(|begun| begun.watch(&session, described, &args.mapping));
    let watched = watched.transpose()?;
    let latest = watched.as_ref().map(Watched::latest);
    let served = Watch::begin(args, &session, live, &map, latest).and_then(|watch| match &args.run {
        Some(script) => run_command(script, watch, &cancel, &interruption),
        None => Ok(serve(watch, &cancel)),
    });
    let outcome = session.finish();
    let exit = served?;
    let summary = &outcome.summary;
    write(working_set, |out| working_set::write(summary, &map, out))?;
    write(prefetch, |out| working_set::write_prefetch(summary, out))?;
    write(prefetch_files, |out| working_set::write_file_list(summary, &map, out))?;
    if !args.mapping.quiet && outcome.requests > 0 {
        note!("{}", describe(summary, &map).trim_end_matches('\n'));
    }
    let is_complete = watched.is_none_or(|watched| watched.finish(args.mapping.quiet, &interruption));
    Ok(if print_problems(&outcome, args) & is_complete || exit != Exit::Success {
        exit
    } else {
        Exit::Incomplete
    })
}

fn open(disks: &[GuestDisk], args: &TraceArgs) -> Result<Vec<Image>> {
    let access = args.mapping.access(None)?;
    let mut images = Vec::new();
    for disk in mapper::each(disks)? {
        let image = disk.open(&access)?;
        if !args.mapping.quiet && args.map.is_some() {
            for warning in &image.warnings {
                note!("virt-bmap-rs: warning: {warning}");
            }
        }
        images.push(image);
    }
    Ok(images)
}

/// Loads the map, and refuses one that does not fit the images.
fn load(path: &Path, images: &[Image], args: &TraceArgs) -> Result<Map> {
    let map = bmap::load(path)?;
    if let Err(stale) = freshness::check(&map, path, images) {
        if !args.force {
            bail!("{stale}; make a new map, or use --force to accept this one");
        }
        note!("virt-bmap-rs: warning: {stale}");
    }
    Ok(map)
}

/// Creates the log. It is written in place, not to a temporary file, so that it can be followed and
/// survives a crash.
fn create(path: &Path, args: &TraceArgs) -> Result<File> {
    if path == Path::new(STDOUT) {
        let stdout = io::stdout().as_fd().try_clone_to_owned();
        return Ok(stdout.context("cannot use standard output for the log")?.into());
    }
    File::create(path).with_context(|| args.log_error())
}

/// Interval of the checks while a trace runs.
const TICK: Duration = Duration::from_millis(10);

/// Watches a running session: shows its activity, and reports once that the log has failed.
struct Watch<'a> {
    args: &'a TraceArgs,
    session: &'a Session,
    top: Option<Top>,
    status: TopStatus,
}

impl<'a> Watch<'a> {
    fn begin(
        args: &'a TraceArgs,
        session: &'a Session,
        live: Option<Arc<Live>>,
        map: &Arc<Map>,
        operations: Option<Latest>,
    ) -> Result<Self> {
        let mut title = Vec::new();
        if args.run.is_none() {
            for uri in session.uris() {
                note!("{uri}");
                title.push(uri);
            }
        }
        let images: Vec<_> = args.images.iter().map(Location::to_string).collect();
        title.insert(0, format!("virt-bmap-rs trace {}", images.join(" ")));
        let top = live.map(|live| Top::begin(live, map.clone(), title)).transpose();
        let top = top.context("cannot use the terminal for --top")?;
        let status = TopStatus { operations, ..TopStatus::default() };
        Ok(Self { args, session, top, status })
    }

    fn step(&mut self) {
        let has_screen = self.top.as_ref().is_some_and(Top::has_screen);
        if let Some(error) = self.session.log_error()
            && self.status.log_error.is_none()
        {
            let log = self.args.log_error();
            let message = format!("{log} any further: {error}; the disks are still served");
            if !has_screen {
                note!("virt-bmap-rs: {message}");
            }
            self.status.log_error = Some(message);
        }
        if let Some(top) = &mut self.top {
            self.status.dropped = self.session.dropped();
            top.step(&self.status);
        }
    }
}

/// Serves until a signal arrives.
fn serve(mut watch: Watch<'_>, cancel: &Cancel) -> Exit {
    while !cancel.is_cancelled() {
        watch.step();
        std::thread::sleep(TICK);
    }
    Exit::Success
}

/// Time that a command has to end after a signal before it is killed.
const GRACE: Duration = Duration::from_secs(4);

/// Number of lines of a command's output that are printed again after the screen is closed.
const LAST_LINES: usize = 20;

/// Runs the command and serves until it has ended.
fn run_command(
    script: &str,
    mut watch: Watch<'_>,
    cancel: &Cancel,
    interruption: &Interruption,
) -> Result<Exit> {
    let has_screen = watch.top.as_ref().is_some_and(Top::has_screen);
    let streams = if has_screen { Streams::Kept } else { Streams::Ours };
    let mut captive = Captive::start(&OsString::from(script), watch.session, streams)
        .context("cannot start the command")?;
    watch.status.tail = captive.tail().cloned();
    let exit = wait(&mut captive, &mut watch, cancel, interruption);
    // This closes the screen.
    drop(watch);
    for line in captive.tail().map_or_else(Vec::new, |tail| tail.lines(LAST_LINES)) {
        note!("{}", Printable(&line));
    }
    exit
}

/// Waits for the command to end, or ends it after a signal.
fn wait(
    captive: &mut Captive,
    watch: &mut Watch<'_>,
    cancel: &Cancel,
    interruption: &Interruption,
) -> Result<Exit> {
    let mut signalled: Option<Instant> = None;
    loop {
        watch.step();
        if let Some(status) = captive.try_wait().context("cannot wait for the command")? {
            if signalled.is_none() {
                return Ok(exit_of(status));
            }
            // Its background processes ignored the signal, or they would have ended.
            captive.signal(Signal::KILL);
            return Ok(Exit::Signal(interruption.signal()));
        }
        match signalled {
            None if cancel.is_cancelled() => {
                captive.signal(Signal::from_named_raw(interruption.signal()).unwrap_or(Signal::TERM));
                signalled = Some(Instant::now());
            }
            Some(since) if since.elapsed() > GRACE => captive.signal(Signal::KILL),
            _ => {}
        }
        std::thread::sleep(TICK);
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(0), _) => Exit::Success,
        (Some(code), _) => Exit::Command(code as u8),
        (None, signal) => Exit::Signal(signal.unwrap_or(0)),
    }
}

/// Writes one of the outputs that are written at the end.
fn write(output: Option<Output>, write: impl FnOnce(&mut BufWriter<Output>) -> io::Result<()>) -> Result<()> {
    let Some(output) = output else { return Ok(()) };
    let path = output.path().display().to_string();
    let mut out = BufWriter::new(output);
    write(&mut out).with_context(|| format!("{path}: cannot write this file"))?;
    Ok(out.into_inner().map_err(io::IntoInnerError::into_error)?.commit()?)
}

/// The summary of a trace as text.
fn describe(summary: &Summary, map: &Map) -> String {
    let read = summary.amount(Op::Read);
    let distinct = summary.distinct();
    let of = |op: Op, word: &str| match summary.amount(op) {
        Amount { requests: 0, .. } => String::new(),
        Amount { requests, bytes: 0 } => format!(", {}", counted(requests, word)),
        Amount { requests, bytes } => format!(", {} of {}", counted(requests, word), Human(bytes)),
    };
    let objects = summary.objects(map);
    let of_kind = |kind: Kind| {
        let some = objects.iter().filter(|read| read.file.object.kind() == kind);
        some.fold((0u64, 0u64, 0u64), |(count, bytes, on_disk), read| {
            (count + 1, bytes + read.bytes, on_disk + read.on_disk)
        })
    };
    let (files, file_bytes, on_disk) = of_kind(Kind::File);
    let (directories, ..) = of_kind(Kind::Directory);
    let gaps = match summary.gap() {
        0 => String::new(),
        gap => format!("read: too many ranges to keep; gaps of up to {} were counted as read\n", Human(gap)),
    };
    format!(
        "{} of {}{}{}{}{} in {:.1} s\n\
         read: {} distinct, {} repeated; {} of {} reads sequential\n{gaps}\
         {files} files, {} of their {}; {directories} directories\n",
        counted(read.requests, "read"),
        Human(read.bytes),
        of(Op::Write, "write"),
        of(Op::Zero, "zeroing"),
        of(Op::Trim, "trim"),
        of(Op::Flush, "flush"),
        summary.duration().as_secs_f64(),
        Human(distinct),
        Human(read.bytes.saturating_sub(distinct)),
        summary.sequential(),
        read.requests,
        Human(file_bytes),
        Human(on_disk),
    )
}

/// Reports what is missing from the log, and returns whether the log is complete.
fn print_problems(outcome: &Outcome, args: &TraceArgs) -> bool {
    if let Some(error) = &outcome.log_error {
        note!("virt-bmap-rs: {} to its end: {error}", args.log_error());
    }
    if outcome.dropped > 0 {
        note!(
            "virt-bmap-rs: {} of {} requests are missing from the log, which was too slow; use --no-drop to make the guest wait",
            outcome.dropped,
            outcome.requests
        );
    }
    if outcome.summary.failed() > 0 {
        note!("virt-bmap-rs: warning: {} requests failed", outcome.summary.failed());
    }
    outcome.is_whole()
}
