//! The options that say how a list of ranges is read, and the check that it is one of this disk.

use anyhow::{Context as _, Result, bail};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use virt_bmap_image::{self, OpenOptions};
use virt_bmap_map::Map;
use virt_bmap_map::lookup::{DiskSize, disk_size};
use virt_bmap_map::rangelist::{self, Depth, Kind, Operation, RangeList, RangeListOptions};
use virt_bmap_ranges::{DiskNumber, parse_bytes};

/// Which entries of a list count.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options for lists")]
pub(super) struct ListOptions {
    /// The disk of the list, and of what is given without one
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) disk: DiskNumber,

    /// Whose list it is, instead of recognising it
    #[arg(long, value_name = "KIND", value_parser = words(&Kind::ALL, Kind::word))]
    from: Option<Kind>,

    /// The file is a qcow2 image, and the list is its dirty bitmap of this name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["from", "status", "block_size", "depth", "types", "operations"])]
    bitmap: Option<String>,

    /// ddrescue: the statuses that count, of `?*/-+` [default: *-/?]
    #[arg(long, value_name = "CHARS", allow_hyphen_values = true, value_parser = statuses)]
    status: Option<Statuses>,

    /// badblocks: size of a block in bytes [default: 1024]
    #[arg(short, long, value_name = "SIZE", value_parser = block_size)]
    block_size: Option<u64>,

    /// qemu-img map: depth of the images whose data count, 0 being the top, or `all` [default: 0]
    #[arg(long, value_name = "N", value_parser = depth)]
    depth: Option<Depth>,

    /// nbdinfo: types that count, by description or number [default: data, dirty, local]
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,

    /// nbdkit log, blkparse: operations that count [default: all]
    #[arg(long = "op", value_name = "OP", value_delimiter = ',', value_parser = words(&Operation::ALL, Operation::word))]
    operations: Vec<Operation>,

    /// Take a list that is not of a disk of this size
    ///
    /// What lies past the end of the disk is then in nothing that the map knows.
    #[arg(long)]
    force: bool,
}

/// The values of an option: all of a kind, each with its word and what that stands for.
fn words<T: Copy + fmt::Display + Send + Sync + 'static>(
    all: &'static [T],
    word: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    let values = all.iter().map(|&value| PossibleValue::new(word(value)).help(value.to_string()));
    PossibleValuesParser::new(values)
        .try_map(move |given| all.iter().copied().find(|&value| word(value) == given).ok_or("no such word"))
}

#[derive(Clone, Debug)]
struct Statuses(Vec<u8>);

fn statuses(text: &str) -> Result<Statuses, String> {
    let known = "?*/-+";
    if text.is_empty() || !text.chars().all(|status| known.contains(status)) {
        return Err(format!("only these are statuses: {known}"));
    }
    Ok(Statuses(text.as_bytes().to_vec()))
}

fn block_size(text: &str) -> Result<u64, String> {
    match parse_bytes(text.as_bytes()) {
        Ok(0) => Err("a block has at least one byte".to_owned()),
        Ok(size) => Ok(size),
        Err(error) => Err(error.to_string()),
    }
}

fn depth(text: &str) -> Result<Depth, String> {
    if text == "all" {
        return Ok(Depth::Any);
    }
    text.parse().map(Depth::Of).map_err(|_| "a number, or `all`".to_owned())
}

impl ListOptions {
    fn options(&self) -> RangeListOptions {
        RangeListOptions {
            kind: self.from,
            statuses: self.status.as_ref().map(|statuses| statuses.0.clone()),
            block_size: self.block_size,
            depth: self.depth,
            types: (!self.types.is_empty()).then(|| self.types.clone()),
            operations: (!self.operations.is_empty()).then(|| self.operations.clone()),
        }
    }

    /// Reads the list in `path`, or on standard input if that is `-`. `map` is where the map comes from.
    pub(super) fn read(&self, path: &Path, map: &Path) -> Result<RangeList> {
        if let Some(bitmap) = &self.bitmap {
            let options = rangelist::RangeListOptions::of(Kind::Nbdinfo);
            let image = virt_bmap_image::open(path, &OpenOptions::default())?;
            return Ok(image.dirty_bitmap(bitmap, |list| rangelist::read(list, &options))?);
        }
        if path == Path::new("-") && map == path {
            bail!("only one of the map and the list can come from standard input");
        }
        let options = self.options();
        let list = if path == Path::new("-") {
            rangelist::read(io::stdin().lock(), &options)
        } else {
            let file = File::open(path).with_context(|| format!("{} could not be opened", path.display()))?;
            rangelist::read(file, &options)
        };
        list.with_context(|| format!("{} could not be read as a list of ranges", path.display()))
    }

    /// Checks that the list is of the map's disk: one of another gives wrong answers that look right.
    pub(super) fn check(&self, list: &RangeList, map: &Map) -> Result<()> {
        let (kind, disk) = (list.kind, self.disk);
        match disk_size(map, disk) {
            DiskSize::NoDisk => bail!("the map has no disk {disk}"),
            DiskSize::Bytes(size) if kind.covers_disk() && list.end != size => {
                let advice = format!(
                    "the {kind} is of a disk of {} bytes, and disk {disk} of the map has {size}",
                    list.end
                );
                self.refuse(&advice)
            }
            DiskSize::Bytes(size) if list.spans.end() > size => {
                let end = list.spans.end();
                self.refuse(&format!(
                    "the {kind} goes up to byte {end}, and disk {disk} of the map has {size}"
                ))
            }
            DiskSize::AtLeast(_) => {
                note!(
                    "virt-bmap-rs: warning: the map does not say how large disk {disk} is, so the {kind} may be of another"
                );
                Ok(())
            }
            DiskSize::Bytes(_) => Ok(()),
        }
    }

    fn refuse(&self, problem: &str) -> Result<()> {
        if !self.force {
            bail!("{problem}; --force takes it all the same");
        }
        note!("virt-bmap-rs: warning: {problem}");
        Ok(())
    }
}

/// What was read, in a sentence.
pub(super) fn describe(list: &RangeList, size: &str) -> String {
    format!(
        "{}: {} of {} entries count ({}): {size} in {} ranges",
        list.kind,
        list.counted,
        list.entries,
        list.rule,
        list.spans.count()
    )
}
