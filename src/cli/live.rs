//! The options for guests that run, and the hidden subcommand that undoes.

use super::Exit;
use anyhow::Result;
use clap::builder::{TypedValueParser, ValueParser};
use std::path::PathBuf;
use virt_bmap::fleet::libvirt::Host;
use virt_bmap::live::{View, Wanted, watchdog};
use virt_bmap_ranges::parse_bytes;

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
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["images", "add", "format", "domain", "force_share"])]
    pub(super) qmp: Option<PathBuf>,

    /// Map the domain of --domain while it runs, by a backup job of libvirt
    ///
    /// The map shows all disks as they were at one moment, while the guest goes on. The job is
    /// ended in the end, even if this program is killed.
    #[arg(long, requires = "domain", conflicts_with = "force_share")]
    pub(super) live: bool,

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
    /// The view of the guest, if it is to be mapped while it runs. `domain`: the one of --domain.
    pub(super) fn view(&self, domain: Option<(&Host, &str)>, quiet: bool) -> Result<Option<View>> {
        let wanted =
            Wanted { scratch_limit: self.scratch_limit, scratch_directory: self.scratch_dir.clone() };
        let view = match (&self.qmp, domain) {
            (Some(socket), _) => View::of_qemu(socket, &wanted)?,
            (None, Some((host, domain))) if self.live => View::of_domain(host, domain, &wanted)?,
            _ => return Ok(None),
        };
        for left_out in view.left_out().iter().filter(|_| !quiet) {
            note!("{} is left out: {}", left_out.name, left_out.reason);
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
