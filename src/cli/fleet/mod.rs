//! `virt-bmap-rs fleet`: maps many guests.

mod screen;
mod table;

use super::Exit;
use super::answer::AnswerFormat;
use super::map::MapOptions;
use super::signals::Interruption;
use anyhow::{Context as _, Result, bail};
use clap::ArgMatches;
use screen::Screen;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;
use table::Row;
use virt_bmap::fleet::libvirt::Host;
use virt_bmap::fleet::{self, Guest, Mapper, Shard, Store, capacity, manifest};
use virt_bmap::mapper::Cancel;
use virt_bmap_map::output::Output;

/// Map many guests, each in a process of its own, and go on where a run was ended.
///
/// Each image is a guest, and below directories each file whose suffix is that of an image format; guests with
/// several disks stand in a manifest. The maps of guest ID are ID.bmap and ID.jsonl.zst. What is there, and
/// made of images that have not changed since, is not made again.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_long_help = AFTER_HELP
)]
pub(super) struct FleetArgs {
    #[command(subcommand)]
    command: Option<Command>,

    /// Images, and directories with images
    #[arg(value_name = "PLACE", required_unless_present_any = ["manifest", "connect"], conflicts_with = "manifest")]
    places: Vec<PathBuf>,

    /// Map every domain of this libvirt host, as `virsh -c` has it; a running one only with --force-share
    #[arg(short, long, value_name = "URI", conflicts_with_all = ["places", "manifest"])]
    connect: Option<String>,

    #[command(flatten)]
    run: RunArgs,
}

const AFTER_HELP: &str = "\
Exit status:
  0    every guest's map is there and whole
  1    failed; what was finished until then is kept
  2    usage error
  3    some guests have no map, or an incomplete one; the table says which
  130  interrupted (143: terminated); the same command goes on

Examples:
  virt-bmap-rs fleet /var/lib/libvirt/images
  virt-bmap-rs fleet plan images/ -o guests.jsonl
  virt-bmap-rs fleet run --manifest guests.jsonl --shard 2/8 --out-dir /shared/maps
  virt-bmap-rs fleet merge --out-dir /shared/maps";

#[derive(Debug, clap::Subcommand)]
enum Command {
    #[command(after_long_help = PLAN_AFTER_HELP)]
    Plan(PlanArgs),
    #[command(after_long_help = RUN_AFTER_HELP)]
    Run(RunArgs),
    #[command(after_long_help = STATUS_AFTER_HELP)]
    Status(StatusArgs),
    #[command(after_long_help = MERGE_AFTER_HELP)]
    Merge(MergeArgs),
}

const PLAN_AFTER_HELP: &str = "\
Exit status:
  0  the manifest was written
  1  failed: a place cannot be read, or libvirt not be asked
  2  usage error
  3  some domains were left out; standard error says which

Examples:
  virt-bmap-rs fleet plan /var/lib/libvirt/images -o guests.jsonl
  virt-bmap-rs fleet plan -c qemu:///system | grep web | virt-bmap-rs fleet run --manifest -";

const RUN_AFTER_HELP: &str = "\
Exit status:
  as for `virt-bmap-rs fleet`

Examples:
  virt-bmap-rs fleet run --manifest guests.jsonl --shard 2/8 --out-dir /shared/maps
  virt-bmap-rs fleet run --out-dir maps --retries 0 --json";

const STATUS_AFTER_HELP: &str = "\
Exit status:
  0  every guest's map is there and whole
  1  failed: there is no fleet in the directory, or it cannot be read
  2  usage error
  3  some guests have no map, or an incomplete one

Examples:
  virt-bmap-rs fleet status --out-dir /shared/maps
  virt-bmap-rs fleet status --csv >fleet.csv";

const MERGE_AFTER_HELP: &str = "\
Exit status:
  as for `virt-bmap-rs fleet status`

Examples:
  virt-bmap-rs fleet merge --out-dir /shared/maps
  virt-bmap-rs fleet merge --parquet --out-dir maps";

/// Write down the guests: a manifest, one JSON object on a line for each
#[derive(Debug, clap::Args)]
struct PlanArgs {
    /// Images, and directories with images
    #[arg(value_name = "PLACE", required_unless_present = "connect")]
    places: Vec<PathBuf>,

    /// Take every domain of this libvirt host, as `virsh -c` has it
    #[arg(short, long, value_name = "URI", conflicts_with = "places")]
    connect: Option<String>,

    /// Take running domains, too
    #[arg(long, requires = "connect")]
    force_share: bool,

    /// Where to write the manifest; `-` is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
}

/// Map the guests of a manifest
#[derive(Debug, clap::Args)]
struct RunArgs {
    /// The guests; `-` is standard input
    ///
    /// [default of `fleet run`: those that the last run in the directory worked on]
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,

    #[command(flatten)]
    place: RunLocation,

    /// How many guests are mapped at once
    ///
    /// [default: one for each processor, as far as there is memory]
    #[arg(short, long, value_name = "N")]
    jobs: Option<NonZero<usize>>,

    /// Map this share of the guests alone: number I of N
    ///
    /// Which guests are in a share depends on their ids alone. Shares of one N may be worked on at the same time,
    /// in one directory, by several machines.
    #[arg(long, value_name = "I/N", default_value_t = Shard::WHOLE)]
    shard: Shard,

    /// How often a guest of which there is no map is tried again
    #[arg(long, value_name = "N", default_value_t = 1)]
    retries: u32,

    /// End a guest's mapping when it has taken so long
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..))]
    time_limit: Option<u64>,

    /// Map guests on block devices again: they do not tell whether they were written to
    #[arg(long)]
    again: bool,

    /// Bring the map of a guest that has changed up to date, instead of reading all of the guest
    ///
    /// What is as it was is taken over from the map that is there; the new map is the same as without this. The record
    /// then says how much changed.
    #[arg(long)]
    update: bool,

    /// Run this program with our arguments after its own in place of ours, to map a guest
    ///
    /// For example `--mapper nice --mapper virt-bmap-rs`; given several times, each is one argument.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    mapper: Vec<OsString>,

    #[command(flatten)]
    form: AnswerFormat,

    #[command(flatten)]
    mapping: MapOptions,
}

/// Tell which guests are mapped, and how that went
///
/// Reads the records and looks whether the images have changed. May be asked while runs are at work.
#[derive(Debug, clap::Args)]
struct StatusArgs {
    #[command(flatten)]
    place: RunLocation,

    #[command(flatten)]
    form: AnswerFormat,
}

/// Put the records of all shares together: fleet.jsonl
#[derive(Debug, clap::Args)]
struct MergeArgs {
    /// Write fleet.parquet as well: the rows of all maps, with a column that tells the guest
    #[arg(long)]
    parquet: bool,

    #[command(flatten)]
    place: RunLocation,

    #[command(flatten)]
    form: AnswerFormat,
}

#[derive(Debug, clap::Args)]
struct RunLocation {
    /// Where the maps and records are
    #[arg(long, value_name = "DIR", default_value = "maps")]
    out_dir: PathBuf,
}

pub(super) fn run(args: &FleetArgs, matches: &ArgMatches) -> Result<Exit> {
    let matches = matches.subcommand_matches("fleet").context("internal error: no matches")?;
    match &args.command {
        Some(Command::Plan(args)) => plan(args),
        Some(Command::Run(args)) => {
            let matches = matches.subcommand_matches("run").context("internal error: no matches")?;
            let guests = match &args.manifest {
                Some(manifest) => read_manifest(manifest)?,
                None => Store::open(&args.place.out_dir)?.manifest()?,
            };
            map(args, &guests, matches)
        }
        Some(Command::Status(args)) => status(args),
        Some(Command::Merge(args)) => merge(args),
        None => {
            let (guests, is_all) = match &args.run.manifest {
                Some(manifest) => (read_manifest(manifest)?, true),
                None => find(&args.places, args.connect.as_ref(), args.run.mapping.force_share)?,
            };
            Ok(unless_all(map(&args.run, &guests, matches)?, is_all))
        }
    }
}

/// The guests in these places, or of a libvirt host; and whether none was left out.
fn find(places: &[PathBuf], uri: Option<&String>, force_share: bool) -> Result<(Vec<Guest>, bool)> {
    let Some(uri) = uri else { return Ok((fleet::plan::plan(places)?, true)) };
    let (guests, left_out) = Host { uri: Some(uri.clone()), force_share }.guests()?;
    for why in &left_out {
        note!("virt-bmap-rs: warning: left out: {why}");
    }
    if guests.is_empty() {
        bail!("{uri} has no domain that could be mapped");
    }
    Ok((guests, left_out.is_empty()))
}

/// A fleet in which guests were left out is not complete.
fn unless_all(exit: Exit, is_all: bool) -> Exit {
    if exit == Exit::Success && !is_all { Exit::Incomplete } else { exit }
}

fn plan(args: &PlanArgs) -> Result<Exit> {
    let (guests, is_all) = find(&args.places, args.connect.as_ref(), args.force_share)?;
    let mut output = Output::create(&args.output)?;
    manifest::write(&guests, BufWriter::new(&mut output)).context("the manifest could not be written")?;
    output.commit()?;
    Ok(unless_all(Exit::Success, is_all))
}

fn read_manifest(path: &Path) -> Result<Vec<Guest>> {
    let here = std::path::absolute(".")?;
    if path == Path::new("-") {
        return Ok(manifest::read(io::stdin().lock(), path, &here)?);
    }
    let file = File::open(path).with_context(|| format!("{}: could not be opened", path.display()))?;
    let path = std::path::absolute(path)?;
    let base = path.parent().unwrap_or(&here);
    Ok(manifest::read(BufReader::new(file), &path, base)?)
}

fn map(args: &RunArgs, guests: &[Guest], matches: &ArgMatches) -> Result<Exit> {
    let store = Store::create(&args.place.out_dir)?;
    let (options, noted) = MapOptions::passed_on(matches);
    let mut words = args.mapper.iter().cloned();
    let program = match words.next() {
        Some(program) => program.into(),
        None => std::env::current_exe().context("where this program itself is cannot be found out")?,
    };
    let mapper = Mapper { program, wrapper: words.collect(), options, noted };
    let jobs = args.jobs.map_or_else(|| capacity::default_jobs(args.mapping.memsize), NonZero::get);
    let options = fleet::run::FleetOptions {
        shard: args.shard,
        jobs,
        retries: args.retries,
        // The mapper itself gives up what hangs, and says so; this is for a mapper that hangs.
        silence: Duration::from_secs(args.mapping.timeout.saturating_add(30)),
        limit: args.time_limit.map(Duration::from_secs),
        doubt: args.again,
        update: args.update,
        ..Default::default()
    };
    let cancel = Cancel::default();
    let interruption = Interruption::watch(cancel.clone())?;
    let screen = Screen::new(args.mapping.quiet);
    let result = fleet::run::run(&store, guests, &mapper, &options, &cancel, &|notice| screen.show(&notice));
    screen.finish();
    let summary = result?;
    if cancel.is_cancelled() {
        note!(
            "virt-bmap-rs: interrupted; {} guests were finished, the same command goes on",
            summary.finished
        );
        return Ok(Exit::Signal(interruption.signal()));
    }
    interruption.set_idle(true);
    let ours = guests.iter().filter(|guest| args.shard.has(&guest.id));
    let rows = ours.map(|guest| Row::of_record(&store, guest)).collect::<Result<Vec<_>>>()?;
    table::print(args.form, &rows)
}

fn status(args: &StatusArgs) -> Result<Exit> {
    let store = Store::open(&args.place.out_dir)?;
    let guests = store.manifest()?;
    let rows = guests.iter().map(|guest| Row::of_now(&store, guest)).collect::<Result<Vec<_>>>()?;
    table::print(args.form, &rows)
}

fn merge(args: &MergeArgs) -> Result<Exit> {
    let store = Store::open(&args.place.out_dir)?;
    let guests = store.manifest()?;
    let records = store.merge(&guests)?;
    if args.parquet {
        store.write_table(&records)?;
    }
    let rows = guests.iter().map(|guest| Row::of_record(&store, guest)).collect::<Result<Vec<_>>>()?;
    table::print(args.form, &rows)
}
