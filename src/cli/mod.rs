//! The command line: one definition from which the parser, the help, the man pages and the shell
//! completions are made, and one file for each subcommand.

/// Writes a line to standard error. An error is ignored: when standard error is closed, as after
/// `2>&1 | head`, the run goes on. `eprintln!` would panic while an appliance is running.
macro_rules! note {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let line = format!($($words)*) + "\n";
        let _ = std::io::stderr().write_all(line.as_bytes());
    }};
}

mod answer;
mod appliance;
mod changed;
mod container;
mod convert;
mod damaged;
mod diff;
mod exit;
mod first;
mod fleet;
mod generate;
mod list;
mod live;
mod lookup;
mod make;
mod map;
mod operations;
mod page;
mod places;
mod progress;
mod ranges;
mod report;
mod signals;
mod terminal;
mod trace;
mod update;
mod verify;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
pub(crate) use exit::Exit;
use virt_bmap::live::watchdog;

/// Find out which file each byte of a virtual machine's disks belongs to.
///
/// Boots a libguestfs appliance with the guest's disks, reads every partition, logical volume,
/// directory and file in it, records which bytes of the disks each read touches, and writes the
/// result: the block map. The images are opened read-only and are never changed. The guest must not
/// be running, unless --live or --qmp is given.
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
  0    everything was examined, and the map was written
  1    error; no map was written
  2    usage error
  3    a map was written, but something could not be examined; standard error
       and the first lines of the map list what
  130  interrupted (143: terminated); no map was written

Examples:
  virt-bmap-rs guest.vmdk                     write guest.bmap
  virt-bmap-rs system.qcow2 data.raw -o -     one guest with two disks
  virt-bmap-rs lookup guest.bmap 0x541000     which objects lie at this offset
  virt-bmap-rs changed top.qcow2              which files the overlay changed
  virt-bmap-rs damaged guest.bmap --mapfile rescue.map
  virt-bmap-rs convert old.bmap new.bmap
  virt-bmap-rs update guest.bmap              update a map after its guest has changed
  virt-bmap-rs fleet images/                  one map for each image in the directory";

#[derive(Debug, Subcommand)]
enum Command {
    Lookup(lookup::LookupArgs),
    Changed(changed::ChangedArgs),
    List(list::ListArgs),
    Damaged(damaged::DamagedArgs),
    Diff(diff::DiffArgs),
    Report(report::ReportArgs),
    Trace(trace::TraceArgs),
    Operations(operations::OperationsArgs),
    Convert(convert::ConvertArgs),
    Update(update::UpdateArgs),
    Verify(verify::VerifyArgs),
    Fleet(fleet::FleetArgs),
    Appliance(appliance::ApplianceArgs),
    #[command(hide = true)]
    Generate(generate::GenerateArgs),
    #[command(hide = true, name = watchdog::COMMAND)]
    UndoLive(live::UndoArgs),
}

/// A number with its noun.
fn counted(number: u64, word: &str) -> String {
    match (number, word.strip_suffix('y')) {
        (1, _) => format!("1 {word}"),
        (number, Some(stem)) => format!("{number} {stem}ies"),
        (number, None) if word.ends_with("sh") => format!("{number} {word}es"),
        (number, None) => format!("{number} {word}s"),
    }
}

/// Parses the command line and runs the command.
pub(crate) fn run() -> Exit {
    if std::env::args_os().len() < 2 {
        note!("{}", first::introduction());
        return Exit::Usage;
    }
    let matches = match page::in_help(Cli::command()).try_get_matches() {
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
        Some(Command::Operations(args)) => operations::run(&args),
        Some(Command::Convert(args)) => convert::run(&args),
        Some(Command::Update(args)) => update::run(&args),
        Some(Command::Verify(args)) => verify::run(&args),
        Some(Command::Fleet(args)) => fleet::run(&args, &matches),
        Some(Command::Appliance(args)) => appliance::run(&args),
        Some(Command::Generate(args)) => generate::run(&args, page::in_help(Cli::command())),
        Some(Command::UndoLive(args)) => live::undo(&args),
        None => map::run(&cli.map, &matches),
    };
    result.unwrap_or_else(|error| {
        // One line with the error and all its causes.
        note!("virt-bmap-rs: {error:#}");
        if let Some(page) = page::Page::of(&error) {
            note!("see {page}");
        }
        Exit::Failed
    })
}

/// Prints what clap returned. Help and version are not errors; everything else is a usage error.
fn usage(error: &clap::Error) -> Exit {
    // An error is ignored: standard error may be closed.
    let _ = error.print();
    if error.use_stderr() { Exit::Usage } else { Exit::Success }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_valid() {
        Cli::command().debug_assert();
    }
}
