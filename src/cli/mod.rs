//! The command line: one definition that the parser, the help, the man pages and the shell completions
//! come from, and one file for each subcommand.

/// Writes a line to standard error. If nobody hears it any more, as after `2>&1 | head`, that is no reason to end, and
/// least of all to panic, as `eprintln!` does, with an appliance running.
macro_rules! note {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let line = format!($($words)*) + "\n";
        let _ = std::io::stderr().write_all(line.as_bytes());
    }};
}

mod answer;
mod changed;
mod convert;
mod damaged;
mod diff;
mod exit;
mod fleet;
mod generate;
mod list;
mod lookup;
mod make;
mod map;
mod progress;
mod ranges;
mod report;
mod signals;
mod terminal;
mod trace;
mod update;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
pub(crate) use exit::Exit;

/// Tells which file every byte of a virtual machine's disk belongs to.
///
/// Boots a libguestfs appliance with the guest's disks, has every partition, logical volume, directory and
/// file in there read, records what is read where, and writes it down: the block map. The images are
/// opened read-only and are never changed; the guest must not be running.
#[derive(Debug, Parser)]
#[command(
    name = "virt-bmap-rs",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_long_help = AFTER_HELP
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    map: map::MapArgs,
}

const AFTER_HELP: &str = "\
Exit status:
  0    everything was examined
  1    failed, and no map was written
  2    the command line makes no sense
  3    a map was written, but something could not be examined; standard error
       and the map's first lines say what
  130  interrupted (143: terminated), and no map was written

Examples:
  virt-bmap-rs guest.vmdk                     writes guest.bmap
  virt-bmap-rs system.qcow2 data.raw -o -     one guest with two disks
  virt-bmap-rs lookup guest.bmap 0x541000     what is there
  virt-bmap-rs changed top.qcow2              what the overlay changed
  virt-bmap-rs damaged guest.bmap --mapfile rescue.map
  virt-bmap-rs convert old.bmap new.bmap
  virt-bmap-rs update guest.bmap              maps again what has changed since
  virt-bmap-rs fleet images/                  one map for each image in there";

#[derive(Debug, Subcommand)]
enum Command {
    Lookup(lookup::LookupArgs),
    Changed(changed::ChangedArgs),
    List(list::ListArgs),
    Damaged(damaged::DamagedArgs),
    Diff(diff::DiffArgs),
    Report(report::ReportArgs),
    Trace(trace::TraceArgs),
    Convert(convert::ConvertArgs),
    Update(update::UpdateArgs),
    Fleet(fleet::FleetArgs),
    #[command(hide = true)]
    Generate(generate::GenerateArgs),
}

/// Parses the command line and does what it says.
pub(crate) fn run() -> Exit {
    let matches = match Cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return usage(&error),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let result = match cli.command {
        Some(Command::Lookup(args)) => lookup::run(&args),
        Some(Command::Changed(args)) => changed::run(&args),
        Some(Command::List(args)) => list::run(&args),
        Some(Command::Damaged(args)) => damaged::run(&args),
        Some(Command::Diff(args)) => diff::run(&args),
        Some(Command::Report(args)) => report::run(&args),
        Some(Command::Trace(args)) => trace::run(&args),
        Some(Command::Convert(args)) => convert::run(&args),
        Some(Command::Update(args)) => update::run(&args),
        Some(Command::Fleet(args)) => fleet::run(&args, &matches),
        Some(Command::Generate(args)) => generate::run(&args, Cli::command()),
        None => map::run(&cli.map, &matches),
    };
    result.unwrap_or_else(|error| {
        // One line with the whole chain of causes.
        note!("virt-bmap-rs: {error:#}");
        Exit::Failed
    })
}

/// Help and version are no errors; everything else that clap has to say is one of usage.
fn usage(error: &clap::Error) -> Exit {
    // Nothing to be done about a closed standard error.
    let _ = error.print();
    if error.use_stderr() { Exit::Usage } else { Exit::Success }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
