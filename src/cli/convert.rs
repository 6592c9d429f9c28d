//! `virt-bmap-rs convert`: from one map format to another.

use super::Exit;
use anyhow::Result;
use std::path::PathBuf;
use virt_bmap_map as bmap;

/// Convert a map into another format.
///
/// Reads IN, whose content tells its format: a text map (also one of the original virt-bmap), JSON Lines or
/// CSV, compressed with gzip or zstd or not. Writes OUT, whose suffix tells the format: .jsonl for JSON
/// Lines, in which nothing is lost; .csv; .xml for DFXML and .parquet, which cannot be read back; .gz or
/// .zst may follow any of them. Anything else is the text map. Text is written back to the same bytes.
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct ConvertArgs {
    /// The map to read; `-` is standard input
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The map to write; `-` is standard output
    #[arg(value_name = "OUT")]
    output: PathBuf,
}

const AFTER_HELP: &str = "\
Exit status:
  0  OUT is written
  1  failed, and OUT is what it was
  2  the command line makes no sense

Examples:
  virt-bmap-rs convert guest.bmap guest.jsonl.zst
  virt-bmap-rs convert guest.bmap guest.xml
  virt-bmap-rs convert guest.bmap -";

pub(super) fn run(args: &ConvertArgs) -> Result<Exit> {
    bmap::convert(&args.input, &args.output)?;
    Ok(Exit::Success)
}
