//! `virt-bmap-rs` without a subcommand: maps a guest.

use super::live::{self, LiveOptions};
use super::page::Page;
use super::progress::{
    Progress, ProgressMode, print_changes, print_done, print_failure, print_warnings, unpacking,
};
use super::signals::Interruption;
use super::{Cli, Exit, counted, first};
use anyhow::{Context as _, Result, anyhow, bail};
use clap::builder::{OsStringValueParser, TypedValueParser};
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
use std::time::{Duration, Instant, SystemTime};
use virt_bmap::appliance::own::Choice;
use virt_bmap::appliance::{Acceleration, LaunchError, LaunchOptions};
use virt_bmap::cache::beside;
use virt_bmap::cache::origin::Origin;
use virt_bmap::fleet::GuestId;
use virt_bmap::fleet::libvirt::Host;
use virt_bmap::live::View;
use virt_bmap::mapper::{self, Cancel, GuestDisk, MapError, Mapped, MapperOptions};
use virt_bmap::probe::baseline::Baseline;
use virt_bmap::probe::key::Key;
use virt_bmap::probe::unlock::Derivation;
use virt_bmap::probe::{Legs, Probe, ProbeError, Proof};
use virt_bmap_image::{Access, AllowedBacking, Image, ImageFormat, ImageKey, Location, Tls};
use virt_bmap_map::output::Output;
use virt_bmap_map::{self as bmap, FileType, Map, diff};
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

/// How to map a guest: the options of all commands that make a map.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct MapOptions {
    /// Read an image even if another program has locked it
    ///
    /// If that program writes to the image meanwhile, the map is inconsistent: parts of it show the
    /// disk at different times.
    #[arg(long)]
    pub(super) force_share: bool,

    /// Trust images that name backing files or data files which match this pattern; can be repeated
    ///
    /// An absolute path, where `*` and `?` match no slash, for chains on block devices:
    /// `--allow-backing '/dev/pve/*'`. Without it, an image whose format was detected may name plain
    /// files only. With it, a guest that writes an image's header to its disk can make the program
    /// read what matches.
    #[arg(long, value_name = "GLOB")]
    allow_backing: Vec<AllowedBacking>,
    /// Most bytes that a compressed image may have when it is unpacked; K, M, G and T are units
    ///
    /// An image that is compressed as a whole is unpacked to an unnamed file in the directory of the
    /// variable TMPDIR, or else in /var/tmp. One that has more bytes is refused.
    #[arg(long, value_name = "SIZE", default_value = "256G", value_parser = size)]
    unpack_limit: u64,

    /// Acceleration of the appliance
    #[arg(long, value_enum, default_value_t = Accel::Auto)]
    accel: Accel,

    /// The appliance: our own, which starts faster, or libguestfs's
    ///
    /// Our own is built once, in a few seconds, and kept in $XDG_CACHE_HOME/virt-bmap-rs (see
    /// `virt-bmap-rs appliance`). If it cannot be built or does not start, libguestfs's is used.
    /// The map is the same.
    #[arg(long, value_enum, default_value_t = ApplianceArg::Own, env = "VIRT_BMAP_APPLIANCE")]
    appliance: ApplianceArg,

    /// How to read the guest's files
    #[arg(long, value_enum, default_value_t = ProbeArg::Extents)]
    probe: ProbeArg,

    /// Which files the kernel is asked about, and verified by reads
    ///
    /// `sample`: one in --spot-check N, and every file that is unusual. On ext2, ext3, ext4 and XFS
    /// the others are taken from the tables of inodes, and the balance of the filesystem must be
    /// even. If anything contradicts the tables, each file of that filesystem is looked up.
    /// `every`: each file. The map is the same.
    #[arg(long, value_enum, default_value_t = ProofArg::Sample)]
    proof: ProofArg,

    /// With --proof sample, verify one file in N [default: 32]
    ///
    /// A file is verified by reading the first and the last page of each of its extents. When files
    /// turn out to lie elsewhere than their extents say, all files of that filesystem are read in
    /// full.
    #[arg(long, value_name = "N")]
    spot_check: Option<NonZeroU32>,

    /// With --proof sample, the number that the choice of files depends on
    ///
    /// By default it is drawn for each run, so that whoever has made the image does not know which
    /// files are verified. --verbose prints it.
    #[arg(long, value_name = "SEED")]
    proof_seed: Option<u64>,

    #[command(flatten)]
    pub(super) tls: TlsOptions,

    /// The earlier map, from which unchanged files are reused.
    #[arg(skip)]
    pub(super) baseline: Option<Arc<Baseline>>,

    /// The view of the guest, if it runs.
    #[arg(skip)]
    pub(super) view: Option<Arc<View>>,

    /// Put metadata, symbolic links and free space into text maps, too
    ///
    /// All other formats have them anyway. Objects of type `m` are the metadata of filesystems
    /// (superblocks, inode tables, journals, …), partition tables, boot code, the metadata of LVM,
    /// md, LUKS and BitLocker, and swap. Symbolic links are `s`, free space is `u`. Not possible
    /// with --probe guestfsd.
    #[arg(long, overrides_with = "no_metadata")]
    pub(super) metadata: bool,

    /// Leave metadata, symbolic links and free space out of maps of all formats
    #[arg(long)]
    pub(super) no_metadata: bool,

    /// Key of an encrypted device, as in the guestfs tools; can be repeated
    ///
    /// SELECTOR:key:PASSPHRASE or SELECTOR:file:NAME, where SELECTOR is a device (`/dev/sda2`), the
    /// UUID of the encrypted device, or `all`. With the selector `image`, it is the passphrase of
    /// images that qemu encrypts: qcow2, and LUKS with `--format luks`.
    #[arg(long, value_name = "SELECTOR:TYPE:VALUE")]
    key: Vec<Key>,

    /// Where to derive the keys of encrypted devices from passphrases
    ///
    /// An emulated appliance takes a hundred times as long as the host for this.
    #[arg(long, value_enum, default_value_t = UnlockArg::Host)]
    unlock: UnlockArg,

    /// Which copies of mirrored data to map
    #[arg(long, value_enum, default_value_t = LegsArg::All)]
    legs: LegsArg,

    /// Memory of the appliance in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(256..=1_048_576))]
    pub(super) memsize: Option<u32>,

    /// Number of processors of the appliance [default: 2, or 1 if the host has one]
    ///
    /// All but the first are used only for filesystems with more than a thousand files. Guests of a
    /// fleet get one processor each if there are not two for each guest.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=255))]
    pub(super) smp: Option<u32>,

    /// Seconds without any progress after which the run gives up, or goes on without a filesystem
    /// that hangs
    #[arg(long, value_name = "SECS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) timeout: u64,

    /// Print only errors and warnings
    #[arg(short, long)]
    pub(super) quiet: bool,

    /// Progress output
    #[arg(long, value_enum, default_value_t = ProgressMode::Auto)]
    pub(super) progress: ProgressMode,

    /// Log everything, also from inside the appliance
    #[arg(short, long)]
    verbose: bool,

    /// Trace libguestfs calls
    #[arg(short = 'x')]
    trace: bool,
}

/// The keys for NBD servers that are reached by TLS.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct TlsOptions {
    /// Directory of the certificates for nbds URIs, as qemu expects it: ca-cert.pem, and perhaps
    /// client-cert.pem and client-key.pem
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "tls_psk")]
    tls_certificates: Option<PathBuf>,

    /// File of the pre-shared keys for nbds URIs, as psktool makes it
    #[arg(long, value_name = "FILE")]
    tls_psk: Option<PathBuf>,
}

impl TlsOptions {
    /// The location with these keys, if it is a server that is reached by TLS and names none.
    pub(super) fn completed(&self, mut location: Location) -> Location {
        if let Location::Nbd(uri) = &mut location
            && let Some(tls @ Tls { certificates: None, psk: None, .. }) = &mut uri.tls
        {
            tls.certificates.clone_from(&self.tls_certificates);
            tls.psk.clone_from(&self.tls_psk);
        }
        location
    }
}

/// A number of bytes, with a binary unit.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        _ => return Err("the units are K, M, G and T".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number and a unit, such as 500G".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "this is too much".to_owned())
}

/// Reads a location on the command line.
pub(super) fn location() -> impl TypedValueParser<Value = Location> {
    OsStringValueParser::new().try_map(|text| Location::stated(&text))
}

/// Options that a fleet does not pass on to its mappers, because it has its own output.
const NOT_PASSED_ON: [&str; 4] = ["quiet", "progress", "verbose", "trace"];

/// Options that affect the content of a map.
const AFFECT_CONTENT: [&str; 5] = ["probe", "metadata", "no_metadata", "key", "legs"];

impl MapOptions {
    /// The options of this command line, as arguments for another run of this program; and those
    /// that affect the content of a map, without passphrases.
    pub(super) fn passed_on(matches: &ArgMatches) -> (Vec<OsString>, Vec<OsString>) {
        let (mut all, mut noted) = (Vec::new(), Vec::new());
        for arg in Self::augment_args(clap::Command::new("")).get_arguments() {
            let (id, Some(long)) = (arg.get_id().as_str(), arg.get_long()) else { continue };
            if NOT_PASSED_ON.contains(&id) || matches.value_source(id) != Some(ValueSource::CommandLine) {
                continue;
            }
            let given: Vec<OsString> = if arg.get_action().takes_values() {
                let option = |value: &OsStr| [OsStr::new(&format!("--{long}=")), value].into_iter().collect();
                matches.get_raw(id).into_iter().flatten().map(option).collect()
            } else {
                vec![format!("--{long}").into()]
            };
            if AFFECT_CONTENT.contains(&id) {
                noted.extend(given.iter().map(|option| without_passphrase(option)));
            }
            all.extend(given);
        }
        (all, noted)
    }

    /// Prints a usage error if the options contradict each other, and returns its exit status.
    pub(super) fn contradiction(&self) -> Option<Exit> {
        let text = if self.metadata && matches!(self.probe, ProbeArg::Guestfsd) {
            "--metadata cannot be used with --probe guestfsd, which reads only files and directories"
        } else if self.spot_check.is_some() && !matches!(self.probe, ProbeArg::Extents) {
            "--spot-check needs --probe extents; the other probes read every file in full"
        } else if (self.spot_check.is_some() || self.proof_seed.is_some()) && self.proof == ProofArg::Every {
            "--spot-check and --proof-seed choose a sample; with --proof every there is none"
        } else {
            return None;
        };
        Some(super::usage(&Cli::command().error(ErrorKind::ArgumentConflict, text)))
    }

    /// What images may be opened, and with which key. The progress of unpacking is shown; `cancel`
    /// stops it.
    pub(super) fn access(&self, cancel: Option<&Cancel>) -> Result<Access> {
        if !self.key.is_empty() {
            // qemu's programs inherit this. A core dump with keys is worse than none.
            virt_bmap_child::leave_no_core_dump().context("cannot switch off core dumps")?;
        }
        let mut passphrases = self.key.iter().filter_map(Key::of_image);
        let key = passphrases.next().map(ImageKey::new).transpose();
        if passphrases.next().is_some() {
            bail!("--key image:… was given twice; all images have one passphrase");
        }
        let key = key.context("cannot keep the passphrase of the images in memory")?;
        Ok(Access {
            force_share: self.force_share,
            allowed: self.allow_backing.clone(),
            key,
            unpack_limit: Some(self.unpack_limit),
            unpacking: Some(unpacking(self.progress, self.quiet, cancel.cloned())),
        })
    }

    /// Whether maps have metadata, symbolic links and free space in memory.
    pub(super) fn with_metadata(&self) -> bool {
        !self.no_metadata && !matches!(self.probe, ProbeArg::Guestfsd)
    }

    /// The same options, but without metadata if there are outputs and none of them would have it.
    fn for_outputs(&self, outs: &[PathBuf]) -> Self {
        let no_metadata =
            self.no_metadata || !outs.is_empty() && !outs.iter().any(|out| self.has_metadata(out));
        Self { no_metadata, ..self.clone() }
    }

    /// Whether a map that is written to this file has metadata.
    fn has_metadata(&self, out: &Path) -> bool {
        self.with_metadata() && (self.metadata || FileType::of(out).format != bmap::Format::Text)
    }

    /// Starts the debug log of `--verbose`.
    pub(super) fn start_log(&self) {
        if self.verbose {
            tracing_subscriber::fmt()
                .with_writer(std::io::stderr)
                // Reporting its own errors on a closed standard error would panic.
                .log_internal_errors(false)
                .with_max_level(tracing::Level::DEBUG)
                .init();
        }
    }
}

/// `--key=SELECTOR:key:PASSPHRASE` without the passphrase; all else unchanged.
fn without_passphrase(option: &OsStr) -> OsString {
    let is_key = |option: &str| option.starts_with("--key=");
    match option.to_str().filter(|option| is_key(option)).and_then(|option| option.split_once(":key:")) {
        Some((selector, _)) => format!("{selector}:key").into(),
        None => option.to_owned(),
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Accel {
    /// KVM if it works, else emulation
    Auto,
    /// KVM
    Kvm,
    /// Emulation
    Tcg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ApplianceArg {
    /// Our own appliance
    Own,
    /// Our own appliance, which boots: no saved state of it is used
    Boot,
    /// libguestfs's appliance
    Stock,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ProbeArg {
    /// An uploaded program takes the places of files from the filesystem, verifies a part of them
    /// by reads (--proof), and reads files without usable extents in full
    Extents,
    /// The same program reads every byte; the map is the same
    Agent,
    /// The daemon of libguestfs reads every byte; slow, nothing is uploaded
    Guestfsd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProofArg {
    /// One in many, and those that are unusual
    Sample,
    /// Each file
    Every,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum UnlockArg {
    /// By `cryptsetup` on the host, without network or rights and with limits on memory and time;
    /// in the appliance if that fails
    Host,
    /// By `cryptsetup` in the appliance
    Appliance,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LegsArg {
    /// All copies, and the parity in map formats that can mark it
    All,
    /// Only the copy that was read
    One,
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

/// The options for the library.
pub(super) fn mapper_options(args: &MapOptions) -> Result<MapperOptions> {
    Ok(MapperOptions {
        access: args.access(None)?,
        launch: LaunchOptions {
            acceleration: match args.accel {
                Accel::Auto => Acceleration::Auto,
                Accel::Kvm => Acceleration::Kvm,
                Accel::Tcg => Acceleration::Tcg,
            },
            appliance: match args.appliance {
                ApplianceArg::Own => Choice::Own,
                ApplianceArg::Boot => Choice::Boot,
                ApplianceArg::Stock => Choice::Stock,
            },
            memsize: args.memsize,
            smp: args.smp,
            verbose: args.verbose,
            trace: args.trace,
        },
        probe: match args.probe {
            ProbeArg::Agent => Probe::Agent,
            ProbeArg::Extents => Probe::Extents(match args.proof {
                ProofArg::Every => Proof::Every,
                ProofArg::Sample => {
                    Proof::Sample { one_in: args.spot_check.unwrap_or(Proof::ONE_IN), seed: args.proof_seed }
                }
            }),
            ProbeArg::Guestfsd => Probe::Guestfsd,
        },
        baseline: args.baseline.clone(),
        keys: args.key.clone(),
        derivation: match args.unlock {
            UnlockArg::Host => Derivation::Host,
            UnlockArg::Appliance => Derivation::Appliance,
        },
        metadata: args.with_metadata(),
        legs: match args.legs {
            LegsArg::All => Legs::All,
            LegsArg::One => Legs::One,
        },
        timeout: Duration::from_secs(args.timeout),
        ..MapperOptions::default()
    })
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
