//! `virt-bmap-rs report`: writes a map as an HTML page.

use super::Exit;
use anyhow::{Context as _, Result, bail};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use virt_bmap_map::report::{self, operations, trace};
use virt_bmap_map::{self as bmap, output::Output};
use virt_bmap_ranges::{Human, Printable};

/// Draw a map: an HTML page that shows where each file lies on the disks.
///
/// The page is self-contained and opens in any current browser without a network. It can be zoomed
/// with mouse, touch and keyboard. Colours show directory, type, age, fragmentation or device. A
/// search highlights the blocks of a file. With --trace, the page plays a log of requests, and with
/// --operations it names what the guest did to its files meanwhile. Text maps lack times, sizes and file offsets, so the page shows none of these for a text map.
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct ReportArgs {
    /// The map; `-` is standard input
    map: PathBuf,

    /// The page to write; `-` is standard output
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    output: PathBuf,

    /// Log of requests to play on the page: JSON Lines with time, op, disk, offset and length, or a
    /// log of the original bmaplogger; `-` is standard input
    #[arg(long, value_name = "LOG")]
    trace: Option<PathBuf>,

    /// List of operations to name while the log is played: what `trace --operations FILE.jsonl` has
    /// written in the same trace
    #[arg(long, value_name = "FILE", requires = "trace")]
    operations: Option<PathBuf>,

    /// Show sizes as numbers of bytes, and offsets in decimal
    #[arg(long)]
    bytes: bool,
}

const AFTER_HELP: &str = "\
Exit status:
  0  the page was written
  1  error; no page was written
  2  usage error

Examples:
  virt-bmap-rs report guest.bmap
  virt-bmap-rs report guest.bmap -o guest.html --trace boot.jsonl
  virt-bmap-rs report guest.bmap --trace boot.jsonl --operations done.jsonl";

pub(super) fn run(args: &ReportArgs) -> Result<Exit> {
    let stdin = Path::new("-");
    if args.map == stdin && args.trace.as_deref() == Some(stdin) {
        bail!("the map and the log cannot both come from standard input");
    }
    for input in [Some(&args.map), args.trace.as_ref(), args.operations.as_ref()].into_iter().flatten() {
        if is_same(input, &args.output) {
            bail!(
                "{}: refusing to overwrite an input with the page; name another file with --output",
                show(input)
            );
        }
    }
    let map = bmap::load(&args.map)?;
    let trace = args.trace.as_deref().map(read_trace).transpose()?;
    if trace.as_ref().is_some_and(|trace| trace.is_cut) {
        note!(
            "virt-bmap-rs: warning: the log is longer than {} requests; the page plays only the first ones",
            trace::MAX_REQUESTS
        );
    }
    let operations = args.operations.as_deref().map(read_operations).transpose()?;
    if let (Some(trace), Some(list)) = (&trace, args.operations.as_deref())
        && !trace.is_timed
    {
        bail!("{}: the log has no times, so it is not known when an operation was", show(list));
    }
    if operations.as_ref().is_some_and(|list| list.is_cut) {
        note!(
            "virt-bmap-rs: warning: the list is longer than {} operations; the page names only the first ones",
            operations::MAX_OPERATIONS
        );
    }
    let title = args
        .map
        .file_name()
        .filter(|_| args.map != stdin)
        .map_or("standard input".into(), |name| name.to_string_lossy());
    let mut output = Output::create(&args.output)?;
    let mut counted = Counted { out: BufWriter::with_capacity(1 << 16, &mut output), bytes: 0 };
    let options = report::ReportOptions {
        title: &title,
        trace: trace.as_ref(),
        operations: operations.as_ref(),
        bytes: args.bytes,
    };
    report::write(&map, &options, &mut counted)?;
    counted.flush().context("cannot write the page")?;
    let bytes = counted.bytes;
    drop(counted);
    output.commit()?;
    note!("wrote {}, {}", show(&args.output), Human(bytes));
    Ok(Exit::Success)
}

fn read_trace(path: &Path) -> Result<trace::Trace> {
    let log: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(
            File::open(path).with_context(|| format!("{}: cannot open the log", show(path)))?,
        ))
    };
    trace::read(log).with_context(|| format!("{}: cannot read the log", show(path)))
}

fn read_operations(path: &Path) -> Result<operations::PlayedOperations> {
    let list = File::open(path).with_context(|| format!("{}: cannot open the list", show(path)))?;
    operations::read(BufReader::new(list)).with_context(|| format!("{}: cannot read the list", show(path)))
}

/// Whether both paths name the same existing file.
fn is_same(a: &Path, b: &Path) -> bool {
    matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

fn show(path: &Path) -> String {
    Printable(path.as_os_str().as_encoded_bytes()).to_string()
}

/// Counts the bytes written.
struct Counted<W> {
    out: W,
    bytes: u64,
}

impl<W: io::Write> io::Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
