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

/// Map many guests, each in a process of its own; an interrupted run can be continued.
///
/// Each image is a guest; in directories, each file with the suffix of an image format is a guest.
/// Guests with several disks need a manifest. The maps of guest ID are ID.bmap and ID.jsonl.zst. A
/// guest with a map whose images have not changed since is skipped.
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

    /// Map every domain of this libvirt host (URI as for `virsh -c`); running ones need
    /// --force-share
    #[arg(short, long, value_name = "URI", conflicts_with_all = ["places", "manifest"])]
    connect: Option<String>,

    #[command(flatten)]
    run: RunArgs,
}

const AFTER_HELP: &str = "\
Exit status:
  0    every guest has a complete map
  1    error; the maps finished so far are kept
  2    usage error
  3    some guests have no map, or an incomplete one; the table lists them
  130  interrupted (143: terminated); the same command continues the run

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
    Run(Box<RunArgs>),
    #[command(after_long_help = STATUS_AFTER_HELP)]
    Status(StatusArgs),
    #[command(after_long_help = MERGE_AFTER_HELP)]
    Merge(MergeArgs),
}

const PLAN_AFTER_HELP: &str = "\
Exit status:
  0  the manifest was written
  1  error: a PLACE cannot be read, or libvirt does not answer
  2  usage error
  3  some domains were left out; standard error lists them

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
  0  every guest has a complete map
  1  error: the directory holds no fleet, or cannot be read
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

/// Write a manifest: a line with a JSON object for each guest
#[derive(Debug, clap::Args)]
struct PlanArgs {
    /// Images, and directories with images
    #[arg(value_name = "PLACE", required_unless_present = "connect")]
    places: Vec<PathBuf>,

    /// List every domain of this libvirt host (URI as for `virsh -c`)
    #[arg(short, long, value_name = "URI", conflicts_with = "places")]
    connect: Option<String>,

    /// Include running domains
    #[arg(long, requires = "connect")]
    force_share: bool,

    /// File to write the manifest to; `-` is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
}

/// Map the guests of a manifest
#[derive(Debug, clap::Args)]
struct RunArgs {
    /// The manifest that lists the guests; `-` is standard input
    ///
    /// [default of `fleet run`: the guests of the last run in the directory]
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,

    #[command(flatten)]
    location: RunLocation,

    /// Number of guests to map at the same time
    ///
    /// [default: one for each processor, limited by the available memory]
    #[arg(short, long, value_name = "N")]
    jobs: Option<NonZero<usize>>,

    /// Map only shard number I of N
    ///
    /// The shard of a guest depends only on its ID. Several machines can map different shards of
    /// the same N at the same time, in one directory.
    #[arg(long, value_name = "I/N", default_value_t = Shard::WHOLE)]
    shard: Shard,

    /// Number of further attempts for a guest whose mapping fails
    #[arg(long, value_name = "N", default_value_t = 1)]
    retries: u32,

    /// Seconds after which the mapping of a guest is ended
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..))]
    time_limit: Option<u64>,

    /// Map guests on block devices again, because writes to a block device cannot be detected
    #[arg(long)]
    again: bool,

    /// Update the map of a guest that has changed, instead of reading the whole guest
    ///
    /// Unchanged files are reused from the existing map; the new map is the same as without this
    /// option. The record then holds the number of changes.
    #[arg(long)]
    update: bool,

    /// Program that maps a guest, instead of this one; can be repeated for its arguments
    ///
    /// The arguments of virt-bmap-rs follow those given here. Example: `--mapper nice --mapper
    /// virt-bmap-rs`.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    mapper: Vec<OsString>,

    #[command(flatten)]
    form: AnswerFormat,

    #[command(flatten)]
    mapping: MapOptions,
}

/// Show the state of each guest
///
/// Reads the records and checks whether the images have changed. Can be used while runs are in
/// progress.
#[derive(Debug, clap::Args)]
struct StatusArgs {
    #[command(flatten)]
    location: RunLocation,

    #[command(flatten)]
    form: AnswerFormat,
}

/// Merge the records of all shards into fleet.jsonl
#[derive(Debug, clap::Args)]
struct MergeArgs {
    /// Also write fleet.parquet: the rows of all maps, with a column for the guest
    #[arg(long)]
    parquet: bool,

    #[command(flatten)]
    location: RunLocation,

    #[command(flatten)]
    form: AnswerFormat,
}

#[derive(Debug, clap::Args)]
struct RunLocation {
    /// Directory of the maps and records
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
                None => Store::open(&args.location.out_dir)?.manifest()?,
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

/// The guests in these places or of a libvirt host, and whether the list is complete.
fn find(places: &[PathBuf], uri: Option<&String>, force_share: bool) -> Result<(Vec<Guest>, bool)> {
    let Some(uri) = uri else { return Ok((fleet::plan::plan(places)?, true)) };
    let (guests, left_out) = Host { uri: Some(uri.clone()), force_share }.guests()?;
    for why in &left_out {
        note!("virt-bmap-rs: warning: domain left out: {why}");
    }
    if guests.is_empty() {
        bail!("{uri}: no domain of this host can be mapped");
    }
    Ok((guests, left_out.is_empty()))
}

/// Makes a success incomplete if guests were left out.
fn unless_all(exit: Exit, is_all: bool) -> Exit {
    if exit == Exit::Success && !is_all { Exit::Incomplete } else { exit }
}

fn plan(args: &PlanArgs) -> Result<Exit> {
    let (guests, is_all) = find(&args.places, args.connect.as_ref(), args.force_share)?;
    let mut output = Output::create(&args.output)?;
    manifest::write(&guests, BufWriter::new(&mut output))
        .with_context(|| format!("{}: cannot write the manifest", args.output.display()))?;
    output.commit()?;
    Ok(unless_all(Exit::Success, is_all))
}

fn read_manifest(path: &Path) -> Result<Vec<Guest>> {
    let here = std::path::absolute(".")?;
    if path == Path::new("-") {
        return Ok(manifest::read(io::stdin().lock(), path, &here)?);
    }
    let file = File::open(path).with_context(|| format!("{}: cannot open the manifest", path.display()))?;
    let path = std::path::absolute(path)?;
    let base = path.parent().unwrap_or(&here);
    Ok(manifest::read(BufReader::new(file), &path, base)?)
}

fn map(args: &RunArgs, guests: &[Guest], matches: &ArgMatches) -> Result<Exit> {
    let store = Store::create(&args.location.out_dir)?;
    let (mut options, noted) = MapOptions::passed_on(matches);
    let mut words = args.mapper.iter().cloned();
    let program = match words.next() {
        Some(program) => program.into(),
        None => {
            std::env::current_exe().context("cannot find the path of this program; name it with --mapper")?
        }
    };
    let jobs = args.jobs.map_or_else(|| capacity::default_jobs(args.mapping.memsize), NonZero::get);
    if args.mapping.smp.is_none() && virt_bmap::appliance::processors() / jobs < 2 {
        options.push("--smp=1".into());
    }
    let mapper = Mapper { program, wrapper: words.collect(), options, noted };
    let options = fleet::run::FleetOptions {
        shard: args.shard,
        jobs,
        retries: args.retries,
        // The mapper reports a guest that hangs; this is the limit for a mapper that hangs itself.
        silence: Duration::from_secs(args.mapping.timeout.saturating_add(30)),
        limit: args.time_limit.map(Duration::from_secs),
        remap_uncertain: args.again,
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
            "virt-bmap-rs: interrupted after {} guests; run the same command again to continue",
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
    let store = Store::open(&args.location.out_dir)?;
    let guests = store.manifest()?;
    let rows = guests.iter().map(|guest| Row::of_now(&store, guest)).collect::<Result<Vec<_>>>()?;
    table::print(args.form, &rows)
}

fn merge(args: &MergeArgs) -> Result<Exit> {
    let store = Store::open(&args.location.out_dir)?;
    let guests = store.manifest()?;
    let records = store.merge(&guests)?;
    if args.parquet {
        store.write_table(&records)?;
    }
    let rows = guests.iter().map(|guest| Row::of_record(&store, guest)).collect::<Result<Vec<_>>>()?;
    table::print(args.form, &rows)
}
