//! Without a subcommand: maps a guest.

use super::progress::{Progress, ProgressMode, print_warnings, say_changed, say_done, say_failed};
use super::signals::Interruption;
use super::{Cli, Exit};
use anyhow::{Context as _, Result, anyhow, bail};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args as _, CommandFactory as _, ValueEnum};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::num::NonZeroU32;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use virt_bmap::appliance::{Acceleration, LaunchError, LaunchOptions};
use virt_bmap::fleet::libvirt::Host;
use virt_bmap::mapper::{Cancel, GuestDisk, MapError, Mapped, MapperOptions, map_guest};
use virt_bmap::probe::baseline::Baseline;
use virt_bmap::probe::key::Key;
use virt_bmap::probe::{Legs, Probe, ProbeError};
use virt_bmap_image::ImageFormat;
use virt_bmap_map::output::Output;
use virt_bmap_map::{self as bmap, Map, diff};

#[derive(Debug, clap::Args)]
pub(super) struct MapArgs {
    /// The guest's disks, in order: image files or block devices
    #[arg(value_name = "IMAGE", required_unless_present_any = ["add", "domain"])]
    images: Vec<PathBuf>,

    /// Map the disks of this libvirt domain: name, UUID or number. A running one only with --force-share
    #[arg(short, long, value_name = "DOMAIN", conflicts_with_all = ["images", "add", "format"])]
    domain: Option<String>,

    /// The libvirt host of the domain, as `virsh -c` has it
    #[arg(short, long, value_name = "URI", requires = "domain")]
    connect: Option<String>,

    /// A further disk of the guest, as in the guestfs tools
    #[arg(short, long, value_name = "IMAGE")]
    add: Vec<PathBuf>,

    /// Where to write the map; `-` is standard output. May be given several times
    ///
    /// The suffix tells the format: .jsonl for JSON Lines, in which nothing is lost, .csv, .xml for DFXML,
    /// .parquet; .gz or .zst may follow. Anything else is the text map.
    ///
    /// [default: the first image's file name with its suffix replaced by .bmap, in the current directory; of a domain its
    /// name]
    #[arg(short, long, value_name = "OUT")]
    output: Vec<PathBuf>,

    /// ImageFormat of the images: raw, qcow2, vmdk, vdi, vpc, vhdx, …
    ///
    /// By default it is found out; an image that refers to others by anything but plain file names is then
    /// refused, because who wrote the image could have this host open what it must not. Given once, it
    /// holds for all images; given several times, each holds for the images after it, and an empty one
    /// (`--format=`) finds it out again.
    #[arg(long, value_name = "FORMAT")]
    format: Vec<String>,

    /// A map of this guest from before, as JSON Lines: what is as it was is taken over, and not read
    ///
    /// The new map is the same as without this. How much differs is said on standard error. `update` does this, too,
    /// and finds out before whether anything has changed at all.
    #[arg(long, value_name = "MAP")]
    earlier: Option<PathBuf>,

    #[command(flatten)]
    mapping: MapOptions,
}

/// How a guest is mapped: options of all commands that make a map.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct MapOptions {
    /// Read an image although another program has locked it
    ///
    /// If that program writes meanwhile, the map is torn: parts of it show the disk at different times.
    #[arg(long)]
    pub(super) force_share: bool,

    /// How to run the appliance
    #[arg(long, value_enum, default_value_t = Accel::Auto)]
    accel: Accel,

    /// How to read the guest's files
    #[arg(long, value_enum, default_value_t = ProbeArg::Extents)]
    probe: ProbeArg,

    /// Read the ends of every N-th extent alone, and believe what is said of the others
    ///
    /// The choice is the same in each run. When one of those that are read is not where it should be, all
    /// files of that filesystem are read in full.
    #[arg(long, value_name = "N")]
    spot_check: Option<NonZeroU32>,

    /// An earlier map, of which is taken over what is as it was.
    #[arg(skip)]
    pub(super) baseline: Option<Arc<Baseline>>,

    /// Map metadata, symbolic links and free space, too
    ///
    /// What is read of a filesystem beside files and directories (superblocks, inode tables, journals, …),
    /// partition tables, boot code, what LVM, md, LUKS and BitLocker keep for themselves, and swap become
    /// objects of type `m`, symbolic links `s`, and what is known to be free `u`. Needs the agent.
    #[arg(long)]
    pub(super) metadata: bool,

    /// Key of an encrypted device, as in the guestfs tools
    ///
    /// SELECTOR:key:PASSPHRASE or SELECTOR:file:NAME, where SELECTOR is a device (`/dev/sda2`), the UUID of
    /// the encrypted device, or `all`. May be given several times.
    #[arg(long, value_name = "SELECTOR:TYPE:VALUE")]
    key: Vec<Key>,

    /// Which copies of mirrored data are in the map
    #[arg(long, value_enum, default_value_t = LegsArg::All)]
    legs: LegsArg,

    /// Memory of the appliance in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(256..=1_048_576))]
    pub(super) memsize: Option<u32>,

    /// Number of the appliance's processors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=255))]
    smp: Option<u32>,

    /// Give up when nothing has happened for so long; if it was a file system that hung, without it
    #[arg(long, value_name = "SECS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) timeout: u64,

    /// Say nothing but what went wrong
    #[arg(short, long)]
    pub(super) quiet: bool,

    /// How to say on standard error what is being done
    #[arg(long, value_enum, default_value_t = ProgressMode::Auto)]
    pub(super) progress: ProgressMode,

    /// Say everything that goes on, here and in the appliance
    #[arg(short, long)]
    verbose: bool,

    /// Trace the calls into libguestfs
    #[arg(short = 'x')]
    trace: bool,
}

/// MapperOptions that a fleet does not pass on to the mapper of each guest: it has its own mode of speaking.
const OWN: [&str; 4] = ["quiet", "progress", "verbose", "trace"];

/// MapperOptions on which it depends what a map has in it.
const TELLING: [&str; 4] = ["probe", "metadata", "key", "legs"];

impl MapOptions {
    /// The options that were given, as another run of this program takes them; and those of them on which it
    /// depends what a map has in it, without passphrases.
    pub(super) fn passed_on(matches: &ArgMatches) -> (Vec<OsString>, Vec<OsString>) {
        let (mut all, mut telling) = (Vec::new(), Vec::new());
        for arg in Self::augment_args(clap::Command::new("")).get_arguments() {
            let (id, Some(long)) = (arg.get_id().as_str(), arg.get_long()) else { continue };
            if OWN.contains(&id) || matches.value_source(id) != Some(ValueSource::CommandLine) {
                continue;
            }
            let given: Vec<OsString> = if arg.get_action().takes_values() {
                let option = |value: &OsStr| [OsStr::new(&format!("--{long}=")), value].into_iter().collect();
                matches.get_raw(id).into_iter().flatten().map(option).collect()
            } else {
                vec![format!("--{long}").into()]
            };
            if TELLING.contains(&id) {
                telling.extend(given.iter().map(|option| without_passphrase(option)));
            }
            all.extend(given);
        }
        (all, telling)
    }

    /// The usage error, if the options contradict each other.
    pub(super) fn contradiction(&self) -> Option<Exit> {
        let text = if self.metadata && matches!(self.probe, ProbeArg::Guestfsd) {
            "--metadata needs the agent; --probe guestfsd reads files and directories alone"
        } else if self.spot_check.is_some() && !matches!(self.probe, ProbeArg::Extents) {
            "--spot-check needs --probe extents; the others read all of each file"
        } else {
            return None;
        };
        Some(super::usage(&Cli::command().error(ErrorKind::ArgumentConflict, text)))
    }

    /// Says everything that goes on from now on, if that is wanted.
    pub(super) fn start_log(&self) {
        if self.verbose {
            tracing_subscriber::fmt()
                .with_writer(std::io::stderr)
                // It would say with a panic that nobody hears.
                .log_internal_errors(false)
                .with_max_level(tracing::Level::DEBUG)
                .init();
        }
    }
}

/// `--key=SELECTOR:key:PASSPHRASE` without the passphrase; anything else as it is.
fn without_passphrase(option: &OsStr) -> OsString {
    let is_key = |option: &str| option.starts_with("--key=");
    match option.to_str().filter(|option| is_key(option)).and_then(|option| option.split_once(":key:")) {
        Some((selector, _)) => format!("{selector}:key").into(),
        None => option.to_owned(),
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Accel {
    /// KVM if it really runs code, else emulation
    Auto,
    /// KVM
    Kvm,
    /// Emulation
    Tcg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ProbeArg {
    /// By a program that is uploaded into the appliance: the ends of each file's extents, to prove where the kernel says
    /// that they lie, and all of those files of which it does not say
    Extents,
    /// By the same program: every byte. The map is the same
    Agent,
    /// By libguestfs's own daemon: slow, nothing is uploaded
    Guestfsd,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LegsArg {
    /// All copies, and in formats that can tell it from data the parity that protects them
    All,
    /// The copy that was read
    One,
}

pub(super) fn run(args: &MapArgs, matches: &ArgMatches) -> Result<Exit> {
    if let Some(exit) = args.mapping.contradiction() {
        return Ok(exit);
    }
    let domain = args.domain.as_ref().map(|domain| {
        Host { uri: args.connect.clone(), force_share: args.mapping.force_share }.guest(domain)
    });
    let domain = domain.transpose()?;
    let disks = match domain.as_ref().map_or_else(|| disks(args, matches), |guest| Ok(guest.disks.clone())) {
        Ok(disks) => disks,
        Err(error) => {
            let error = Cli::command().error(ErrorKind::ValueValidation, format!("{error:#}"));
            return Ok(super::usage(&error));
        }
    };
    args.mapping.start_log();
    let outs = match domain {
        _ if !args.output.is_empty() => args.output.clone(),
        Some(guest) => vec![format!("{}.bmap", guest.id).into()],
        None => vec![default_output(&disks)?],
    };
    let mut options = args.mapping.clone();
    let earlier = args.earlier.as_deref().map(load_earlier).transpose()?.flatten().map(Arc::new);
    options.baseline = earlier.clone().and_then(|map| Baseline::new(map, BTreeMap::new())).map(Arc::new);
    Ok(match map_to(&disks, &outs, &options)? {
        Ok(mapped) => {
            if let Some(earlier) = earlier {
                say_changed(&options, diff::Counts::of(&diff::diff(&earlier, &mapped.map)));
            }
            summarise(&mapped, &outs, &options)
        }
        Err(exit) => exit,
    })
}

/// A map from before. One that cannot be read is no reason not to map the guest.
fn load_earlier(path: &Path) -> Result<Option<Map>> {
    if bmap::FileType::of(path).format != bmap::Format::JsonLines {
        bail!("{}: only of a map as JSON Lines (.jsonl) can anything be taken over", path.display());
    }
    match bmap::load(path) {
        Ok(map) => Ok(Some(map)),
        Err(error) => {
            note!("virt-bmap-rs: warning: {}; everything is read", virt_bmap_ranges::error_chain(&error));
            Ok(None)
        }
    }
}

/// Maps a guest and writes the map to all of these files. The inner error is the end of a run that a signal
/// has ended.
pub(super) fn map_to(
    disks: &[GuestDisk],
    outs: &[PathBuf],
    options: &MapOptions,
) -> Result<Result<Mapped, Exit>> {
    refuse_to_overwrite(disks, outs)?;
    let cancel = Cancel::default();
    let interruption = Interruption::watch(cancel.clone())?;
    // Made before the work, so that a directory that cannot be written to is found out before it.
    let outputs = outs.iter().map(|out| Output::create(out)).collect::<Result<Vec<_>, _>>()?;

    let began = SystemTime::now();
    let Some(mapped) = make(disks, options, &cancel)? else {
        note!("virt-bmap-rs: interrupted; no map was written");
        return Ok(Err(Exit::Signal(interruption.signal())));
    };
    // On a thread of its own, because a pipe that nobody reads takes for ever.
    let writer = std::thread::spawn(move || write(mapped, outputs));
    let grace = if outs.iter().all(|out| is_file(out)) { Duration::MAX } else { PIPE_GRACE };
    let mut cancelled_for = Duration::ZERO;
    while !writer.is_finished() && cancelled_for < grace {
        std::thread::sleep(TICK);
        cancelled_for += if cancel.is_cancelled() { TICK } else { Duration::ZERO };
    }
    if cancel.is_cancelled() {
        note!("virt-bmap-rs: interrupted; no map was written");
        return Ok(Err(Exit::Signal(interruption.signal())));
    }
    let (mapped, outputs) = writer.join().map_err(|_| anyhow!("internal error: the writer panicked"))??;
    // All that can fail for want of space has been done for each of them.
    commit(outputs, began)?;
    Ok(Ok(mapped))
}

/// Gives maps their names, and the time at which their making `began`: what is written to an image from its
/// opening on is newer than the map.
pub(super) fn commit(outputs: Vec<Output>, began: SystemTime) -> Result<()> {
    for output in outputs {
        let path = output.path().to_owned();
        output.commit()?;
        if is_file(&path) {
            // A file system that keeps no such time is no reason to fail.
            let _ = File::open(&path).and_then(|file| file.set_modified(began));
        }
    }
    Ok(())
}

/// Maps a guest, and shows how that goes. `None` if it was cancelled.
pub(super) fn make(disks: &[GuestDisk], options: &MapOptions, cancel: &Cancel) -> Result<Option<Mapped>> {
    let mut progress = Progress::new(options.quiet, options.progress);
    let mapped = map_guest(disks, &mapper_options(options), cancel, &mut |event| {
        progress.show(&event);
    });
    progress.finish();
    match mapped {
        Ok(mapped) => Ok(Some(mapped)),
        Err(MapError::Cancelled) => Ok(None),
        Err(error) => {
            print_console(&error);
            say_failed(options.progress, &error);
            Err(error.into())
        }
    }
}

/// How often it is looked whether the map has been written.
const TICK: Duration = Duration::from_millis(5);

/// How long a run that has been cancelled waits for a pipe that nobody may be reading. Files are waited for,
/// so that none is left half-written beside its place.
const PIPE_GRACE: Duration = Duration::from_millis(500);

/// Whether what is written to this name ends up in a file.
fn is_file(out: &Path) -> bool {
    out != Path::new("-") && out.metadata().map_or(true, |metadata| metadata.is_file())
}

fn write(mapped: Mapped, mut outputs: Vec<Output>) -> Result<(Mapped, Vec<Output>)> {
    for output in &mut outputs {
        bmap::write(&mapped.map, output)?;
    }
    Ok((mapped, outputs))
}

/// Says how it went, and with which status to exit.
pub(super) fn summarise(mapped: &Mapped, outs: &[PathBuf], options: &MapOptions) -> Exit {
    print_warnings(options.progress, mapped);
    if options.progress == ProgressMode::Json {
        say_done(mapped);
    } else if !options.quiet {
        let c = mapped.counts;
        note!(
            "successfully examined {} partitions, {} logical volumes, {} filesystems, {} directories, {} files",
            c.partitions,
            c.volumes,
            c.filesystems,
            c.directories,
            c.files
        );
        if options.baseline.is_some() {
            note!("{} files were taken over from the earlier map, and not read", mapped.reused);
        }
        note!(
            "wrote {} in {:.1} s, {} warnings",
            outs.iter().map(|out| shown(out)).collect::<Vec<_>>().join(", "),
            mapped.elapsed.as_secs_f64(),
            mapped.map.header().warnings.len()
        );
    }
    if mapped.map.header().is_complete() { Exit::Success } else { Exit::Incomplete }
}

fn shown(out: &Path) -> String {
    if out == Path::new("-") { "the map".to_owned() } else { out.display().to_string() }
}

/// When the appliance failed, its last words come before the error.
fn print_console(error: &MapError) {
    let (MapError::Launch(LaunchError::Launch { console, .. })
    | MapError::Probe(ProbeError::Died { console, .. })) = error
    else {
        return;
    };
    for line in console {
        note!("appliance: {line}");
    }
}

/// How the library is told to map.
pub(super) fn mapper_options(args: &MapOptions) -> MapperOptions {
    MapperOptions {
        force_share: args.force_share,
        launch: LaunchOptions {
            acceleration: match args.accel {
                Accel::Auto => Acceleration::Auto,
                Accel::Kvm => Acceleration::Kvm,
                Accel::Tcg => Acceleration::Tcg,
            },
            memsize: args.memsize,
            smp: args.smp,
            verbose: args.verbose,
            trace: args.trace,
        },
        probe: match args.probe {
            ProbeArg::Agent => Probe::Agent,
            ProbeArg::Extents => Probe::Extents { every: args.spot_check.unwrap_or(NonZeroU32::MIN) },
            ProbeArg::Guestfsd => Probe::Guestfsd,
        },
        baseline: args.baseline.clone(),
        keys: args.key.clone(),
        metadata: args.metadata,
        legs: match args.legs {
            LegsArg::All => Legs::All,
            LegsArg::One => Legs::One,
        },
        timeout: Duration::from_secs(args.timeout),
        ..MapperOptions::default()
    }
}

/// The disks in the order in which they stand on the command line, each with its format.
fn disks(args: &MapArgs, matches: &ArgMatches) -> Result<Vec<GuestDisk>> {
    let parse = |format: &String| -> Result<Option<ImageFormat>> {
        if format.is_empty() { Ok(None) } else { Ok(Some(format.parse::<ImageFormat>()?)) }
    };
    let formats = args.format.iter().map(parse).collect::<Result<Vec<_>>>()?;
    let places = |id: &str| matches.indices_of(id).map(Iterator::collect::<Vec<_>>).unwrap_or_default();
    let format_places = places("format");
    let format_at = |place: usize| match formats.as_slice() {
        [only] => *only,
        several => {
            let before = format_places.partition_point(|at| *at < place);
            before.checked_sub(1).and_then(|index| several[index])
        }
    };
    let named = places("images").into_iter().zip(&args.images);
    let added = places("add").into_iter().zip(&args.add);
    let mut disks: Vec<(usize, &PathBuf)> = named.chain(added).collect();
    disks.sort_unstable();
    Ok(disks.into_iter().map(|(at, path)| GuestDisk { path: path.clone(), format: format_at(at) }).collect())
}

fn default_output(disks: &[GuestDisk]) -> Result<PathBuf> {
    let first = disks.first().ok_or_else(|| anyhow!("no image was given"))?;
    let name = first
        .path
        .file_name()
        .with_context(|| format!("{} has no file name; name the map with -o", first.path.display()))?;
    Ok(Path::new(name).with_extension("bmap"))
}

/// A map must not take the place of an image, nor of another.
pub(super) fn refuse_to_overwrite(disks: &[GuestDisk], outs: &[PathBuf]) -> Result<()> {
    let identity = |path: &Path| {
        let metadata = path
            .metadata()
            .ok()
            .filter(|metadata| metadata.is_file() || metadata.file_type().is_block_device());
        metadata.map(|metadata| (metadata.dev(), metadata.ino()))
    };
    for (number, out) in outs.iter().enumerate() {
        let target = identity(out);
        if target.is_some() && disks.iter().any(|disk| identity(&disk.path) == target) {
            bail!("{} is an image of the guest; name another file with -o", out.display());
        }
        if outs[..number].iter().any(|other| other == out || target.is_some() && identity(other) == target) {
            bail!("{} is named twice with -o", out.display());
        }
    }
    Ok(())
}
