//! The options for guests that run, and the hidden subcommand that undoes.

use super::Exit;
use anyhow::Result;
use clap::builder::{TypedValueParser, ValueParser};
use std::path::PathBuf;
use virt_bmap::fleet::libvirt::Host;
use virt_bmap::live::{Quiesced, View, Wanted, watchdog};
use virt_bmap_ranges::parse_bytes;

/// The options for guests that run, none of which goes with images. Each `requires` another, but
/// clap drops such a requirement if what is required conflicts with what is given.
pub(super) const OPTIONS: [&str; 6] =
    ["qmp", "live", "quiesce", "checkpoint", "scratch_dir", "scratch_limit"];

/// How to map a guest that runs.
#[derive(Clone, Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("running").args(["qmp", "live"]))]
pub(super) struct LiveOptions {
    /// Map the running guest of the qemu that has its QMP monitor at this Unix socket
    ///
    /// The map shows all disks as they were at one moment, while the guest goes on. What it
    /// overwrites meanwhile is kept in unnamed scratch files. All that is added to qemu
    /// is removed in the end, even if this program is killed. qemu needs a monitor for this alone:
    /// `-qmp unix:SOCKET,server=on,wait=off`.
    #[arg(long, value_name = "SOCKET", conflicts_with = "force_share")]
    pub(super) qmp: Option<PathBuf>,

    /// Map the domain of --domain while it runs, by a backup job of libvirt
    ///
    /// The map shows all disks as they were at one moment, while the guest goes on. The job is
    /// ended in the end, even if this program is killed.
    #[arg(long, requires = "domain", conflicts_with = "force_share")]
    pub(super) live: bool,

    /// Have the guest agent freeze the guest's filesystems for the moment of the map
    ///
    /// They are thawed as soon as the job has started. Without an agent, the map is of what a power
    /// failure would leave; standard error says which of the two it is.
    #[arg(long, requires = "live")]
    quiesce: bool,

    /// Leave a checkpoint of this name at the moment of the map, for `update --since
    /// checkpoint:NAME`
    ///
    /// All disks of the domain must be qcow2. It is left only if there is a map of its moment.
    #[arg(long, value_name = "NAME", requires = "live")]
    checkpoint: Option<String>,

    /// Directory of the scratch files [default: $TMPDIR, or with --live the directory that libvirt
    /// has for the domain]
    #[arg(long, value_name = "DIRECTORY", requires = "running")]
    scratch_dir: Option<PathBuf>,

    /// Most that the scratch files of a running guest may take, such as 8G; past it the run ends
    ///
    /// The default is half of what is free there.
    #[arg(long, value_name = "SIZE", value_parser = size(), requires = "running")]
    scratch_limit: Option<u64>,
}

impl LiveOptions {
    /// Whether the guest is to be mapped while it runs.
    pub(super) fn is_wanted(&self) -> bool {
        self.live || self.qmp.is_some()
    }

    /// The view of the guest, if it is to be mapped while it runs. `domain`: the one of --domain.
    /// `since`: what was written since this checkpoint will be asked for.
    pub(super) fn view(
        &self,
        domain: Option<(&Host, &str)>,
        since: Option<&str>,
        quiet: bool,
    ) -> Result<Option<View>> {
        let wanted = Wanted {
            scratch_limit: self.scratch_limit,
            // libvirt and qemu have other working directories.
            scratch_directory: self.scratch_dir.as_deref().map(std::path::absolute).transpose()?,
            quiesce: self.quiesce,
            checkpoint: self.checkpoint.clone(),
            since: since.map(str::to_owned),
        };
        let view = match (&self.qmp, domain) {
            (Some(socket), _) => View::of_qemu(socket, &wanted)?,
            (None, Some((host, domain))) if self.live => View::of_domain(host, domain, &wanted)?,
            _ => return Ok(None),
        };
        for left_out in view.left_out().iter().filter(|_| !quiet) {
            note!("{} is left out: {}", left_out.name, left_out.reason);
        }
        match view.quiesced() {
            Quiesced::Frozen if !quiet => {
                note!("the guest agent froze the filesystems for the moment of the map");
            }
            Quiesced::NoAgent(reason) => note!("not frozen, so the map is crash-consistent: {reason}"),
            Quiesced::Frozen | Quiesced::NotAsked => {}
        }
        Ok(Some(view))
    }
}

/// Reads a size.
fn size() -> ValueParser {
    ValueParser::new(clap::builder::StringValueParser::new().try_map(|text| parse_bytes(text.as_bytes())))
}

/// Undo what a run has done to a running guest, as soon as it ends.
#[derive(Debug, clap::Args)]
pub(super) struct UndoArgs {}

/// Runs the child that undoes.
pub(super) fn undo(_: &UndoArgs) -> Result<Exit> {
    watchdog::watch()?;
    Ok(Exit::Success)
}
