//! `virt-bmap-rs convert`: from one map format to another.

use super::Exit;
use anyhow::Result;
use std::path::PathBuf;
use virt_bmap::bmap;

/// Convert a map into another format.
///
/// Reads IN, whatever tool wrote it, and writes OUT. A text map of the original virt-bmap is written back
/// to the same bytes.
#[derive(Debug, clap::Args)]
pub(super) struct ConvertArgs {
    /// The map to read
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
