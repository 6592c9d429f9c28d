//! `virt-bmap-rs convert`: converts a map from one format to another.

use super::Exit;
use anyhow::Result;
use std::path::PathBuf;
use virt_bmap_map as bmap;

/// Convert a map into another format.
///
/// IN can be a text map (also one of the original virt-bmap), JSON Lines or CSV, and can be
/// compressed with gzip or zstd; its format is detected from its content. The suffix of OUT selects
/// the format: .jsonl for JSON Lines, which loses nothing; .csv; .xml for DFXML and .parquet, which
/// cannot be read back. Any of them can be followed by .gz or .zst. All other suffixes select the
/// text map. Converting a text map to text gives the same bytes.
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct ConvertArgs {
    /// The map to read; `-` reads standard input
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The map to write; `-` writes standard output
    #[arg(value_name = "OUT")]
    output: PathBuf,
}

const AFTER_HELP: &str = "\
Exit status:
  0  OUT was written
  1  error; OUT was not changed
  2  usage error

Examples:
  virt-bmap-rs convert guest.bmap guest.jsonl.zst
  virt-bmap-rs convert guest.bmap guest.xml
  virt-bmap-rs convert guest.bmap -";

pub(super) fn run(args: &ConvertArgs) -> Result<Exit> {
    bmap::convert(&args.input, &args.output)?;
    Ok(Exit::Success)
}
