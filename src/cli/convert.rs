//! `virt-bmap-rs convert`: converts a map from one format to another.

use super::Exit;
use anyhow::{Context as _, Result};
use std::path::PathBuf;
use virt_bmap_map::output::Output;
use virt_bmap_map::{self as bmap, domain};
use virt_bmap_ranges::DiskNumber;

/// Convert a map into another format.
///
/// IN can be a text map (also one of the original virt-bmap), JSON Lines or CSV, and can be
/// compressed with gzip or zstd; its format is detected from its content. The suffix of OUT selects
/// the format: .jsonl for JSON Lines, which loses nothing; .csv; .xml for DFXML and .parquet, which
/// cannot be read back. Any of them can be followed by .gz or .zst. All other suffixes select the
/// text map. Converting a text map to text gives the same bytes.
///
/// With the suffix .map, OUT is a domain mapfile for GNU ddrescue: the parts of one disk that are
/// in use. `ddrescue --domain-mapfile=OUT` then rescues these only.
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct ConvertArgs {
    /// The map to read; `-` reads standard input
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The map to write; `-` writes standard output
    #[arg(value_name = "OUT")]
    output: PathBuf,

    /// Number of the disk, for a domain mapfile
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    disk: DiskNumber,
}

const AFTER_HELP: &str = "\
Exit status:
  0  OUT was written
  1  error; OUT was not changed
  2  usage error

Examples:
  virt-bmap-rs convert guest.bmap guest.jsonl.zst
  virt-bmap-rs convert guest.bmap guest.xml
  virt-bmap-rs convert guest.bmap -
  virt-bmap-rs convert guest.jsonl domain.map";

/// Suffix of a domain mapfile.
const DOMAIN: &str = "map";

pub(super) fn run(args: &ConvertArgs) -> Result<Exit> {
    if args.output.extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case(DOMAIN)) {
        let map = bmap::load(&args.input)?;
        let mut output = Output::create(&args.output)?;
        domain::write(&map, args.disk, &mut output)
            .with_context(|| format!("{}: could not be converted", args.input.display()))?;
        output.commit()?;
        return Ok(Exit::Success);
    }
    bmap::convert(&args.input, &args.output)?;
    Ok(Exit::Success)
}
