//! `virt-bmap-rs convert`: from one map format to another.

use super::Exit;
use anyhow::Result;
use std::path::PathBuf;
use virt_bmap::bmap;

/// Convert a map into another format.
///
/// Reads IN, whose content tells its format: a text map (also one of the original virt-bmap), JSON Lines or
/// CSV, compressed with gzip or zstd or not. Writes OUT, whose suffix tells the format: .jsonl for JSON
/// Lines, in which nothing is lost; .csv; .xml for DFXML and .parquet, which cannot be read back; .gz or
/// .zst may follow any of them. Anything else is the text map. Text is written back to the same bytes.
#[derive(Debug, clap::Args)]
pub(super) struct ConvertArgs {
    /// The map to read; `-` is standard input
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The map to write; `-` is standard output
    #[arg(value_name = "OUT")]
    output: PathBuf,
}

pub(super) fn run(args: &ConvertArgs) -> Result<Exit> {
    bmap::convert(&args.input, &args.output)?;
    Ok(Exit::Success)
}
