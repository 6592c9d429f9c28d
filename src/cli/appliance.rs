//! `virt-bmap-rs appliance`: builds, describes and removes our own appliance.

use super::Exit;
use anyhow::{Context as _, Result, anyhow};
use indicatif::HumanBytes;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use virt_bmap::appliance::own::build::{KernelForm, Source};
use virt_bmap::appliance::own::cache::Cache;
use virt_bmap::appliance::own::{self, Own};
use virt_bmap::appliance::search_path;

/// Build, describe or remove the appliance that starts fast.
///
/// Mapping a guest needs an appliance: a small Linux in which the guest's filesystems are mounted.
/// virt-bmap-rs derives one from libguestfs's that starts in a fraction of the time. The first run
/// builds it, in a few seconds, and keeps it in $XDG_CACHE_HOME/virt-bmap-rs (or
/// ~/.cache/virt-bmap-rs), where it takes about 800 MB. Without KVM, that run also saves the state
/// of the started appliance, 150 MB, from which later runs go on. After an upgrade of this program
/// or of the host's packages, the next run builds another and removes the old one.
/// --appliance stock, or VIRT_BMAP_APPLIANCE=stock in the environment, uses libguestfs's appliance
/// instead.
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct ApplianceArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Build the appliance if it is missing, and try again if it failed before
    ///
    /// With --output, builds it in a new directory that works without supermin, for containers and
    /// machine images: set LIBGUESTFS_PATH to that directory.
    #[command(after_long_help = BUILD_AFTER_HELP)]
    Build {
        /// Build in this directory, which must not exist yet, instead of in the cache
        #[arg(short, long, value_name = "DIR")]
        output: Option<PathBuf>,
    },
    /// Print which appliance a run would use now
    #[command(after_long_help = STATUS_AFTER_HELP)]
    Status,
    /// Remove our own appliances and their saved states from the cache, and what is remembered of
    /// failures
    #[command(after_long_help = REMOVE_AFTER_HELP)]
    Remove,
}

const AFTER_HELP: &str = "\
Exit status:
  0  success; status: a run would use our own appliance
  1  error
  2  usage error
  3  status: a run would build our own appliance first, or use libguestfs's

Examples:
  virt-bmap-rs appliance build
  virt-bmap-rs appliance status
  virt-bmap-rs appliance build --output /opt/appliance
  LIBGUESTFS_PATH=/opt/appliance virt-bmap-rs guest.qcow2";

const BUILD_AFTER_HELP: &str = "\
Exit status:
  0  the appliance is there
  1  error; no appliance was built
  2  usage error

Examples:
  virt-bmap-rs appliance build
  virt-bmap-rs appliance build --output /opt/appliance";

const STATUS_AFTER_HELP: &str = "\
Exit status:
  0  a run would use our own appliance
  1  error
  2  usage error
  3  a run would build our own appliance first, or use libguestfs's

Examples:
  virt-bmap-rs appliance status";

const REMOVE_AFTER_HELP: &str = "\
Exit status:
  0  no appliance of our own is in the cache any more
  1  error
  2  usage error

Examples:
  virt-bmap-rs appliance remove";

pub(super) fn run(args: &ApplianceArgs) -> Result<Exit> {
    match &args.command {
        Command::Build { output: Some(directory) } => export(directory),
        Command::Build { output: None } => build(),
        Command::Status => status(),
        Command::Remove => {
            let remove = || {
                let cache = Cache::open()?;
                // Not while another run builds one.
                let _lock = cache.lock(&|| false)?;
                cache.remove()
            };
            remove().context("cannot remove the appliance")?;
            Ok(Exit::Success)
        }
    }
}

/// libguestfs's directory `supermin.d`.
fn supermin_d() -> Result<PathBuf> {
    let path = search_path().context("cannot ask libguestfs for its search path")?;
    own::supermin_d(&path).ok_or_else(|| anyhow!("there is no supermin.d in libguestfs's path {path}"))
}

fn build() -> Result<Exit> {
    let supermin_d = supermin_d()?;
    let own = own::retry(&own::source(&supermin_d)).context("cannot build the appliance")?;
    print(&described(&own))
}

fn export(directory: &Path) -> Result<Exit> {
    let supermin_d = supermin_d()?;
    let source = own::source(&supermin_d);
    let own = own::export(directory, &source)
        .with_context(|| format!("{}: cannot build the appliance", directory.display()))?;
    print(&described(&own))
}

fn status() -> Result<Exit> {
    if let Some(directory) = std::env::var_os("LIBGUESTFS_PATH") {
        let directory = PathBuf::from(directory);
        let Some(own) = own::exported(&directory) else {
            print(&format!("appliance: that of LIBGUESTFS_PATH, {}\n", directory.display()))?;
            return Ok(Exit::Incomplete);
        };
        return print(&described(&own));
    }
    let supermin_d = supermin_d()?;
    let source: Source<'_> = own::source(&supermin_d);
    let cache = Cache::open().context("cannot use the cache")?;
    if let Some(why) = cache.failure(&source.key) {
        print(&format!("appliance: libguestfs's\nour own failed: {why}\nkey: {}\n", source.key))?;
        return Ok(Exit::Incomplete);
    }
    let Some(own) = cache.find(&source.key).context("cannot use the cache")? else {
        let path = cache.path(&source.key);
        print(&format!("appliance: the next run builds it in {}\nkey: {}\n", path.display(), source.key))?;
        return Ok(Exit::Incomplete);
    };
    let mut text = described(&own);
    let states = cache.saved_states(&source.key);
    if !states.is_empty() {
        let bytes = states.iter().filter_map(|path| path.metadata().ok()).map(|it| it.blocks() * 512).sum();
        text.push_str(&format!("saved states: {}, {}\n", states.len(), HumanBytes(bytes)));
    }
    if let Some(took) = cache.launched(&source.key) {
        text.push_str(&format!("last launch: {:.1} s\n", took.as_secs_f64()));
    }
    print(&text)
}

/// An appliance, a line for each fact.
fn described(own: &Own) -> String {
    let description = own.description();
    let kernel = match &description.kernel {
        KernelForm::Unpacked => "unpacked".to_owned(),
        KernelForm::Packed { because } => format!("as the host has it: {because}"),
    };
    format!(
        "appliance: {}\nkey: {}\nkernel: {kernel}\nsize on disk: {}\n",
        own.directory().display(),
        description.key,
        HumanBytes(own.size())
    )
}

fn print(text: &str) -> Result<Exit> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")?;
    Ok(Exit::Success)
}
