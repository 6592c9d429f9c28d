//! The options of all commands that make a map.

use crate::cli::progress::{ProgressMode, unpacking};
use crate::cli::{Cli, Exit};
use anyhow::{Context as _, Result, bail};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args as _, CommandFactory as _, ValueEnum};
use std::ffi::{OsStr, OsString};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use virt_bmap::appliance::own::Choice;
use virt_bmap::appliance::{Acceleration, LaunchOptions};
use virt_bmap::live::View;
use virt_bmap::mapper::{Cancel, MapperOptions};
use virt_bmap::probe::baseline::Baseline;
use virt_bmap::probe::key::Key;
use virt_bmap::probe::unlock::Derivation;
use virt_bmap::probe::{Legs, Probe, Proof};
use virt_bmap_image::{Access, AllowedBacking, ImageKey, Location, Tls};
use virt_bmap_map::{self as bmap, FileType};

/// How to map a guest: the options of all commands that make a map.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct MapOptions {
    /// Read an image even if another program has locked it
    ///
    /// If that program writes to the image meanwhile, the map is inconsistent: parts of it show the
    /// disk at different times.
    #[arg(long)]
    pub(in crate::cli) force_share: bool,

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
    pub(in crate::cli) tls: TlsOptions,

    /// The earlier map, from which unchanged files are reused.
    #[arg(skip)]
    pub(in crate::cli) baseline: Option<Arc<Baseline>>,

    /// The view of the guest, if it runs.
    #[arg(skip)]
    pub(in crate::cli) view: Option<Arc<View>>,

    /// Put metadata, symbolic links and free space into text maps, too
    ///
    /// All other formats have them anyway. Objects of type `m` are the metadata of filesystems
    /// (superblocks, inode tables, journals, …), partition tables, boot code, the metadata of LVM,
    /// md, LUKS and BitLocker, and swap. Symbolic links are `s`, free space is `u`. Not possible
    /// with --probe guestfsd.
    #[arg(long, overrides_with = "no_metadata")]
    pub(in crate::cli) metadata: bool,

    /// Leave metadata, symbolic links and free space out of maps of all formats
    #[arg(long)]
    pub(in crate::cli) no_metadata: bool,

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
    pub(in crate::cli) memsize: Option<u32>,

    /// Number of processors of the appliance [default: 2, or 1 if the host has one]
    ///
    /// All but the first are used only for filesystems with more than a thousand files. Guests of a
    /// fleet get one processor each if there are not two for each guest.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=255))]
    pub(in crate::cli) smp: Option<u32>,

    /// Seconds without any progress after which the run gives up, or goes on without a filesystem
    /// that hangs
    #[arg(long, value_name = "SECS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    pub(in crate::cli) timeout: u64,

    /// Print only errors and warnings
    #[arg(short, long)]
    pub(in crate::cli) quiet: bool,

    /// Progress output
    #[arg(long, value_enum, default_value_t = ProgressMode::Auto)]
    pub(in crate::cli) progress: ProgressMode,

    /// Log everything, also from inside the appliance
    #[arg(short, long)]
    verbose: bool,

    /// Trace libguestfs calls
    #[arg(short = 'x')]
    trace: bool,
}

/// The keys for NBD servers that are reached by TLS.
#[derive(Clone, Debug, Default, clap::Args)]
pub(in crate::cli) struct TlsOptions {
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
    pub(in crate::cli) fn completed(&self, mut location: Location) -> Location {
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
pub(in crate::cli) fn size(text: &str) -> Result<u64, String> {
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
pub(in crate::cli) fn location() -> impl TypedValueParser<Value = Location> {
    OsStringValueParser::new().try_map(|text| Location::stated(&text))
}

/// Options that a fleet does not pass on to its mappers, because it has its own output.
const NOT_PASSED_ON: [&str; 4] = ["quiet", "progress", "verbose", "trace"];

/// Options that affect the content of a map.
const AFFECT_CONTENT: [&str; 5] = ["probe", "metadata", "no_metadata", "key", "legs"];

impl MapOptions {
    /// The options of this command line, as arguments for another run of this program; and those
    /// that affect the content of a map, without passphrases.
    pub(in crate::cli) fn passed_on(matches: &ArgMatches) -> (Vec<OsString>, Vec<OsString>) {
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
    pub(in crate::cli) fn contradiction(&self) -> Option<Exit> {
        let text = if self.metadata && matches!(self.probe, ProbeArg::Guestfsd) {
            "--metadata cannot be used with --probe guestfsd, which reads only files and directories"
        } else if self.spot_check.is_some() && !matches!(self.probe, ProbeArg::Extents) {
            "--spot-check needs --probe extents; the other probes read every file in full"
        } else if (self.spot_check.is_some() || self.proof_seed.is_some()) && self.proof == ProofArg::Every {
            "--spot-check and --proof-seed choose a sample; with --proof every there is none"
        } else {
            return None;
        };
        Some(crate::cli::usage(&Cli::command().error(ErrorKind::ArgumentConflict, text)))
    }

    /// What images may be opened, and with which key. The progress of unpacking is shown; `cancel`
    /// stops it.
    pub(in crate::cli) fn access(&self, cancel: Option<&Cancel>) -> Result<Access> {
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
    pub(in crate::cli) fn with_metadata(&self) -> bool {
        !self.no_metadata && !matches!(self.probe, ProbeArg::Guestfsd)
    }

    /// The same options, but without metadata if there are outputs and none of them would have it.
    pub(super) fn for_outputs(&self, outs: &[PathBuf]) -> Self {
        let no_metadata =
            self.no_metadata || !outs.is_empty() && !outs.iter().any(|out| self.has_metadata(out));
        Self { no_metadata, ..self.clone() }
    }

    /// Whether a map that is written to this file has metadata.
    pub(super) fn has_metadata(&self, out: &Path) -> bool {
        self.with_metadata() && (self.metadata || FileType::of(out).format != bmap::Format::Text)
    }

    /// Starts the debug log of `--verbose`.
    pub(in crate::cli) fn start_log(&self) {
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

/// The options for the library.
pub(in crate::cli) fn mapper_options(args: &MapOptions) -> Result<MapperOptions> {
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
