//! `virt-bmap-rs` without a subcommand: maps a guest.

mod options;

pub(super) use self::options::{MapOptions, TlsOptions, location, mapper_options, size};
use super::live::{self, LiveOptions};
use super::page::Page;
use super::progress::{Progress, ProgressMode, print_changes, print_done, print_failure, print_warnings};
use super::signals::Interruption;
use super::{Cli, Exit, counted, first};
use anyhow::{Context as _, Result, anyhow, bail};
use clap::error::ErrorKind;
use clap::{ArgMatches, CommandFactory as _};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use virt_bmap::appliance::LaunchError;
use virt_bmap::cache::beside;
use virt_bmap::cache::origin::Origin;
use virt_bmap::fleet::GuestId;
use virt_bmap::fleet::libvirt::Host;
use virt_bmap::mapper::{self, Cancel, GuestDisk, MapError, Mapped};
use virt_bmap::probe::ProbeError;
use virt_bmap::probe::baseline::Baseline;
use virt_bmap_image::{Image, ImageFormat, Location};
use virt_bmap_map::output::Output;
use virt_bmap_map::{self as bmap, Map, diff};
use virt_bmap_ranges::{Percent, Printable};

#[derive(Debug, clap::Args)]
pub(super) struct MapArgs {
    /// The guest's disks in order: image files, block devices, or NBD URIs
    #[arg(value_name = "IMAGE", required_unless_present_any = ["add", "domain", "qmp"], conflicts_with_all = live::OPTIONS, value_parser = location())]
    images: Vec<Location>,

    /// Map the disks of this libvirt domain (name, UUID or ID); a running domain needs --live, or
    /// --force-share
    #[arg(short, long, value_name = "DOMAIN", conflicts_with_all = ["images", "add", "format", "snapshot", "qmp"])]
    domain: Option<String>,

    /// Connection URI of the domain's libvirt host, as for `virsh -c`
    #[arg(short, long, value_name = "URI", requires = "domain")]
    connect: Option<String>,

    /// Add a disk of the guest, as in the guestfs tools; can be repeated
    #[arg(short, long, value_name = "IMAGE", conflicts_with_all = live::OPTIONS, value_parser = location())]
    add: Vec<Location>,

    /// File to write the map to; `-` is standard output; can be repeated
    ///
    /// The suffix selects the format: .jsonl for JSON Lines, which loses nothing, .csv, .xml for
    /// DFXML, .parquet; .gz or .zst may follow. All other suffixes select the text map.
    ///
    /// [default: in the current directory, the first image's file name with the suffix .bmap, or
    /// the domain's name with that suffix]
    #[arg(short, long, value_name = "OUT")]
    output: Vec<PathBuf>,

    /// Format of the images (raw, qcow2, vmdk, vdi, vpc, vhdx, …); detected by default
    ///
    /// With a detected format, an image that refers to other images by anything but plain file
    /// names is refused: whoever wrote the image could otherwise make this host open any file. If
    /// given once, the option applies to all images; if repeated, each applies to the images after
    /// it, and an empty value (`--format=`) returns to detection.
    #[arg(long, value_name = "FORMAT", conflicts_with_all = live::OPTIONS)]
    format: Vec<String>,

    /// Map a snapshot inside a qcow2 image instead of the present disk
    ///
    /// If given once, the option applies to all images; if repeated, each applies to the images
    /// after it, and an empty value (`--snapshot=`) returns to the present disk.
    #[arg(long, value_name = "NAME", conflicts_with = "qmp")]
    snapshot: Vec<String>,

    /// The baseline: an earlier map of this guest as JSON Lines; unchanged files are not read again
    ///
    /// The new map is the same as without this option. Standard error reports how much changed.
    /// `update` does the same, and first checks whether anything has changed at all.
    #[arg(long, value_name = "MAP")]
    earlier: Option<PathBuf>,

    #[command(flatten)]
    live: LiveOptions,

    #[command(flatten)]
    mapping: MapOptions,
}

pub(super) fn run(args: &MapArgs, matches: &ArgMatches) -> Result<Exit> {
    if let Some(exit) = args.mapping.contradiction() {
        return Ok(exit);
    }
    let host = Host { uri: args.connect.clone(), force_share: args.mapping.force_share };
    let domain = args.domain.as_deref();
    let guest = domain.filter(|_| !args.live.live).map(|domain| host.guest(domain)).transpose()?;
    let disks = match guest.as_ref().map_or_else(|| disks(args, matches), |guest| Ok(guest.disks.clone())) {
        Ok(disks) => disks,
        Err(error) => {
            let error = Cli::command().error(ErrorKind::ValueValidation, format!("{error:#}"));
            return Ok(super::usage(&error));
        }
    };
    first::refuse(&disks)?;
    args.mapping.start_log();
    let view = args.live.view(domain.map(|domain| (&host, domain)), None, args.mapping.quiet)?.map(Arc::new);
    let disks = view.as_ref().map_or(disks, |view| view.disks());
    let outs = match domain {
        _ if !args.output.is_empty() => args.output.clone(),
        Some(name) => {
            let id = guest.map_or_else(|| GuestId::of_name(name.as_bytes()), |guest| guest.id);
            vec![format!("{id}.bmap").into()]
        }
        None => vec![default_output(&disks)?],
    };
    if args.output.is_empty() {
        outs.iter().try_for_each(|out| first::refuse_to_replace(out))?;
    }
    let are_new = !outs.iter().any(|out| out.exists());
    let mut options = args.mapping.clone();
    options.view = view;
    let earlier = args.earlier.as_deref().map(load_baseline).transpose()?.flatten().map(Arc::new);
    options.baseline = earlier.clone().and_then(|map| Baseline::new(map, BTreeMap::new())).map(Arc::new);
    Ok(match map_to(&disks, &outs, &options)? {
        Ok(mapped) => {
            if let Some(earlier) = earlier {
                print_changes(options.progress, options.quiet, counts(&earlier, &mapped.map));
            }
            let exit = summarise(&mapped, &outs, &options);
            if let Some(out) = outs.first().filter(|_| are_new) {
                first::next_commands(&mapped, out, &options);
            }
            exit
        }
        Err(exit) => exit,
    })
}

/// How many objects changed of those that both maps could have.
fn counts(earlier: &Map, map: &Map) -> diff::Counts {
    if earlier.lists_metadata() == map.lists_metadata() {
        return diff::Counts::of(&diff::diff(earlier, map));
    }
    diff::Counts::of(&diff::diff(&earlier.without_metadata(), &map.without_metadata()))
}

/// Loads the earlier map. If it cannot be read, the guest is mapped without it.
fn load_baseline(path: &Path) -> Result<Option<Map>> {
    if bmap::FileType::of(path).format != bmap::Format::JsonLines {
        bail!(
            "{}: the earlier map must be in JSON Lines (.jsonl); other formats lack the file attributes that are compared",
            path.display()
        );
    }
    match bmap::load(path) {
        Ok(map) => Ok(Some(map)),
        Err(error) => {
            note!(
                "virt-bmap-rs: warning: {}; mapping without an earlier map",
                virt_bmap_ranges::error_chain(&error)
            );
            Ok(None)
        }
    }
}

/// Maps a guest and writes the map to all of these files. The inner error is the exit status after
/// a signal.
pub(super) fn map_to(
    disks: &[GuestDisk],
    outs: &[PathBuf],
    options: &MapOptions,
) -> Result<Result<Mapped, Exit>> {
    refuse_to_overwrite(disks, outs)?;
    let options = options.for_outputs(outs);
    let cancel = Cancel::default();
    let interruption = Interruption::watch(cancel.clone())?;
    // Created before the long work, so that an unwritable directory is reported first.
    let outputs = outs.iter().map(|out| Output::create(out)).collect::<Result<Vec<_>, _>>()?;

    let (began, timer) =
        (options.view.as_ref().map_or_else(SystemTime::now, |view| view.began()), Instant::now());
    let watch = options.view.as_ref().map(|view| view.watch(cancel.clone()));
    let images = open(disks, &options, &cancel)?;
    let mapping = mapper_options(&options)?;
    let origin = images.as_ref().and_then(|images| Origin::of(images, &mapping));
    let mapped = images.map(|images| make(&images, &options, &cancel)).transpose();
    drop(watch);
    if let Some(view) = &options.view {
        // What is wrong with the view is the reason for whatever else is wrong.
        view.end(matches!(mapped, Ok(Some(Some(_)))))?;
    }
    let Some(mut mapped) = mapped?.flatten() else {
        note!("virt-bmap-rs: interrupted; no map was written");
        return Ok(Err(Exit::Signal(interruption.signal())));
    };
    mapped.elapsed = timer.elapsed();
    if let Some(view) = &options.view {
        view.describe(mapped.map.header_mut());
    }
    // On its own thread: writing to a pipe that nobody reads would block for ever.
    let writing = options.clone();
    let writer = std::thread::spawn(move || -> Result<_> {
        let mut outputs = outputs;
        write(&mapped.map, &mut outputs, &writing)?;
        Ok((mapped, outputs))
    });
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
    // All outputs are complete on disk, so the renames cannot fail for lack of space.
    commit(outputs, began, origin.as_ref(), &options)?;
    Ok(Ok(mapped))
}

/// Renames the maps to their final names. Their modification time becomes `began`, so that every
/// write to an image after it was opened is newer than the map. If the images are as they were, the
/// maps are marked with what they were made from.
pub(super) fn commit(
    outputs: Vec<Output>,
    began: SystemTime,
    origin: Option<&Origin>,
    options: &MapOptions,
) -> Result<()> {
    let origin = origin.filter(|origin| origin.held_since(began));
    for output in outputs {
        let path = output.path().to_owned();
        output.commit()?;
        if is_file(&path) {
            // A filesystem that cannot set this time, or has no attributes, is no reason to fail.
            let _ = File::open(&path).and_then(|file| {
                file.set_modified(began)?;
                let Some(origin) = origin else { return Ok(()) };
                beside::mark(&file, &origin.clone().of_content(options.has_metadata(&path)))
            });
        }
    }
    Ok(())
}

/// Opens the images of a guest. `None` if the run was cancelled.
pub(super) fn open(disks: &[GuestDisk], options: &MapOptions, cancel: &Cancel) -> Result<Option<Vec<Image>>> {
    unless_cancelled(mapper::open(disks, &options.access(Some(cancel))?, cancel), options)
}

/// Maps a guest and shows the progress. `None` if the run was cancelled.
pub(super) fn make(images: &[Image], options: &MapOptions, cancel: &Cancel) -> Result<Option<Mapped>> {
    let mapping = mapper_options(options)?;
    let mut progress = Progress::new(options.quiet, options.progress);
    let mapped = mapper::map_images(images, &mapping, cancel, &mut |event| {
        progress.show(&event);
    });
    progress.finish();
    unless_cancelled(mapped, options)
}

/// `None` if the run was cancelled. Reports a failure.
fn unless_cancelled<T>(result: Result<T, MapError>, options: &MapOptions) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::Cancelled) => Ok(None),
        Err(error) => {
            report_failure(options.progress, &error);
            Err(error.into())
        }
    }
}

/// Reports what the message of the error at the end does not have: the last lines of the
/// appliance's console, and the event for programs.
pub(super) fn report_failure(mode: ProgressMode, error: &MapError) {
    print_console(error);
    print_failure(mode, error);
}

/// Interval of the check whether the map has been written.
const TICK: Duration = Duration::from_millis(5);

/// How long a cancelled run waits for a pipe that possibly nobody reads. Writes to files are always
/// awaited, so that no temporary file is left behind.
const PIPE_GRACE: Duration = Duration::from_millis(500);

/// Whether this path is, or will be, a regular file.
fn is_file(out: &Path) -> bool {
    out != Path::new("-") && out.metadata().map_or(true, |metadata| metadata.is_file())
}

/// Writes a map to all outputs, each with what belongs there.
pub(super) fn write(map: &Map, outputs: &mut [Output], options: &MapOptions) -> Result<()> {
    let (whole, plain): (Vec<_>, Vec<_>) =
        outputs.iter_mut().partition(|output| !map.lists_metadata() || options.has_metadata(output.path()));
    for output in whole {
        bmap::write(map, output)?;
    }
    if !plain.is_empty() {
        let map = map.without_metadata();
        plain.into_iter().try_for_each(|output| bmap::write(&map, output))?;
    }
    Ok(())
}

/// Prints the summary of a run and returns the exit status.
pub(super) fn summarise(mapped: &Mapped, outs: &[PathBuf], options: &MapOptions) -> Exit {
    print_warnings(options.progress, mapped.map.header());
    if options.progress == ProgressMode::Json {
        print_done(mapped);
    } else if !options.quiet {
        let c = mapped.counts;
        if c.filesystems == 0 {
            note!("no filesystem could be read, so the map has no files: see {}", Page::TROUBLE);
        } else if !mapped.map.header().is_complete() {
            note!("what the warnings mean: {}", Page::WARNINGS);
        }
        let counts = [
            (c.partitions, "partition"),
            (c.volumes, "logical volume"),
            (c.filesystems, "filesystem"),
            (c.directories, "directory"),
            (c.files, "file"),
        ];
        let counts = counts.map(|(number, word)| counted(number, word));
        note!("examined {}", counts.join(", "));
        if let Some(share) = mapped.map.header().explained() {
            note!("{} % of the bytes in use are accounted for", Percent(share));
        }
        // The share says nothing of these.
        let without = mapped.map.header().without_balance();
        let without: Vec<_> = without.map(|it| format!("{} ({})", Printable(&it.device), it.kind)).collect();
        if !without.is_empty() {
            note!("not known which bytes are in use: {}", without.join(", "));
        }
        if options.baseline.is_some() {
            note!("{} files reused from the baseline without reading them", mapped.reused);
        }
        note!(
            "wrote {} in {:.1} s, {}",
            outs.iter().map(|out| shown(out)).collect::<Vec<_>>().join(", "),
            mapped.elapsed.as_secs_f64(),
            counted(mapped.map.header().warnings.len() as u64, "warning")
        );
    }
    if mapped.map.header().is_complete() { Exit::Success } else { Exit::Incomplete }
}

fn shown(out: &Path) -> String {
    if out == Path::new("-") { "the map".to_owned() } else { out.display().to_string() }
}

/// Prints the last lines of the appliance's console if the appliance failed.
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

/// The disks in the order of the command line, each with its format and snapshot.
fn disks(args: &MapArgs, matches: &ArgMatches) -> Result<Vec<GuestDisk>> {
    let parse = |format: &String| -> Result<Option<ImageFormat>> {
        if format.is_empty() { Ok(None) } else { Ok(Some(format.parse::<ImageFormat>()?)) }
    };
    let formats = args.format.iter().map(parse).collect::<Result<Vec<_>>>()?;
    let positions = |id: &str| matches.indices_of(id).map(Iterator::collect::<Vec<_>>).unwrap_or_default();
    let snapshots: Vec<_> =
        args.snapshot.iter().map(|name| Some(name.clone()).filter(|name| !name.is_empty())).collect();
    let (of_formats, of_snapshots) = (positions("format"), positions("snapshot"));
    let named = positions("images").into_iter().zip(&args.images);
    let added = positions("add").into_iter().zip(&args.add);
    let mut disks: Vec<(usize, &Location)> = named.chain(added).collect();
    disks.sort_unstable_by_key(|(at, _)| *at);
    let disk = |(at, location): (usize, &Location)| GuestDisk {
        location: args.mapping.tls.completed(location.clone()),
        format: applying(&formats, &of_formats, at),
        snapshot: applying(&snapshots, &of_snapshots, at),
    };
    Ok(disks.into_iter().map(disk).collect())
}

/// The value that applies to the image at a position of the command line: the only one, or else the
/// last before the image.
fn applying<T: Clone>(values: &[Option<T>], positions: &[usize], image: usize) -> Option<T> {
    match values {
        [only] => only.clone(),
        several => {
            let before = positions.partition_point(|at| *at < image);
            before.checked_sub(1).and_then(|index| several.get(index)?.clone())
        }
    }
}

fn default_output(disks: &[GuestDisk]) -> Result<PathBuf> {
    let first = disks.first().ok_or_else(|| anyhow!("no image was given"))?;
    let path = match &first.location {
        Location::Nbd(uri) => PathBuf::from(&uri.export),
        other => other.name().into(),
    };
    let name = path.file_name().with_context(|| {
        format!("{}: cannot derive the name of the map from this; name the map with -o", first.location)
    })?;
    Ok(Path::new(name).with_extension("bmap"))
}

/// Refuses outputs that would overwrite an image, or each other.
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
        // The path of a disk in an archive leads through the archive.
        let is_target = |path: &Path| path.ancestors().any(|path| identity(path) == target);
        if target.is_some() && disks.iter().filter_map(|disk| disk.location.file()).any(is_target) {
            bail!(
                "{}: refusing to overwrite an image of the guest; name another file with -o",
                out.display()
            );
        }
        if outs[..number].iter().any(|other| other == out || target.is_some() && identity(other) == target) {
            bail!("{}: given twice with -o", out.display());
        }
    }
    Ok(())
}
