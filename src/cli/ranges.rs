//! The options for reading a list of ranges, and the check that the list fits the disk.

use super::container::{Asked, ContainerOptions};
use anyhow::{Context as _, Result, bail};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use virt_bmap_image::{self, Container, Location, OpenOptions};
use virt_bmap_map::Map;
use virt_bmap_map::lookup::{DiskSize, disk_size};
use virt_bmap_map::rangelist::{self, Depth, Kind, Operation, RangeList, RangeListOptions};
use virt_bmap_ranges::{DiskNumber, parse_bytes};

/// Longest index of an earlier backup, in bytes. With 32 bytes for each chunk of 4 MiB, this is a
/// disk of 32 TiB.
const MAX_INDEX: u64 = 256 << 20;

/// How to read a list, and which of its entries to select.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options for lists")]
pub(super) struct ListOptions {
    /// Number of the disk that the list, and offsets without DISK:, refer to
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) disk: DiskNumber,

    /// Format of the list; detected by default
    #[arg(long, value_name = "KIND", value_parser = words(&Kind::ALL, Kind::word))]
    from: Option<Kind>,

    /// Read this dirty bitmap; the file is then a qcow2 image
    #[arg(long, value_name = "NAME", conflicts_with_all = ["from", "status", "block_size", "depth", "types", "operations", "device", "older"])]
    bitmap: Option<String>,

    /// Metadata context of the NBD server, if the list is an NBD URI: base:allocation,
    /// qemu:dirty-bitmap:NAME, … [default: base:allocation]
    #[arg(long, value_name = "CONTEXT", conflicts_with_all = ["from", "bitmap", "status", "block_size", "depth", "operations", "device", "older"])]
    context: Option<String>,

    /// ddrescue: statuses to select, of `?*/-+` [default: *-/?]
    #[arg(long, value_name = "CHARS", allow_hyphen_values = true, value_parser = statuses)]
    status: Option<Statuses>,

    /// badblocks: block size in bytes [default: 1024]; smartctl: sector size; ZFS: volblocksize
    #[arg(short, long, value_name = "SIZE", value_parser = block_size)]
    block_size: Option<u64>,

    /// qemu-img map: depth of the image whose data to select, or `all`; 0 is the top [default: 0]
    #[arg(long, value_name = "N", value_parser = depth)]
    depth: Option<Depth>,

    /// nbdinfo: types to select, by description or number [default: data, dirty, local];
    /// thin_delta, rbd diff: types to select [default: all but same]
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,

    /// nbdkit log, blkparse, kernel log: operations to select [default: all]
    #[arg(long = "op", value_name = "OP", value_delimiter = ',', value_parser = words(&Operation::ALL, Operation::word))]
    operations: Vec<Operation>,

    /// Kernel log: disk whose errors to select, such as sda; ZFS: zio_objset of the volume
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,

    /// Proxmox backup: index of the earlier backup; the chunks that differ are selected
    #[arg(long, value_name = "FIDX")]
    older: Option<PathBuf>,

    #[command(flatten)]
    pub(super) container: ContainerOptions,

    /// Accept a list that does not fit the size of the disk
    ///
    /// Ranges past the end of the disk are then in no object of the map.
    #[arg(long)]
    force: bool,
}

/// The possible values of an option, each with its description.
fn words<T: Copy + fmt::Display + Send + Sync + 'static>(
    all: &'static [T],
    word: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    let values = all.iter().map(|&value| PossibleValue::new(word(value)).help(value.to_string()));
    PossibleValuesParser::new(values)
        .try_map(move |given| all.iter().copied().find(|&value| word(value) == given).ok_or("unknown value"))
}

#[derive(Clone, Debug)]
struct Statuses(Vec<u8>);

fn statuses(text: &str) -> Result<Statuses, String> {
    let known = "?*/-+";
    if text.is_empty() || !text.chars().all(|status| known.contains(status)) {
        return Err(format!("the statuses of ddrescue are {known}"));
    }
    Ok(Statuses(text.as_bytes().to_vec()))
}

fn block_size(text: &str) -> Result<u64, String> {
    match parse_bytes(text.as_bytes()) {
        Ok(0) => Err("the block size must be at least 1".to_owned()),
        Ok(size) => Ok(size),
        Err(error) => Err(error.to_string()),
    }
}

fn depth(text: &str) -> Result<Depth, String> {
    if text == "all" {
        return Ok(Depth::Any);
    }
    text.parse().map(Depth::Of).map_err(|_| "the depth must be a number or `all`".to_owned())
}

impl ListOptions {
    fn options(&self) -> Result<RangeListOptions> {
        let older = self.older.as_deref().map(|path| {
            let mut index = Vec::new();
            let read = File::open(path).and_then(|file| file.take(MAX_INDEX).read_to_end(&mut index));
            read.with_context(|| format!("{}: cannot read the earlier index", path.display())).map(|_| index)
        });
        Ok(RangeListOptions {
            kind: self.from,
            statuses: self.status.as_ref().map(|statuses| statuses.0.clone()),
            block_size: self.block_size,
            depth: self.depth,
            types: (!self.types.is_empty()).then(|| self.types.clone()),
            operations: (!self.operations.is_empty()).then(|| self.operations.clone()),
            device: self.device.clone(),
            older: older.transpose()?,
        })
    }

    /// Reads the list from `path`, or from standard input if that is `-`. `map` is the path of the
    /// map.
    pub(super) fn read(&self, path: &Path, map: &Path) -> Result<RangeList> {
        if let Some(bitmap) = &self.bitmap {
            let options = rangelist::RangeListOptions::of(Kind::Nbdinfo);
            let image = virt_bmap_image::open(&Location::File(path.to_owned()), &OpenOptions::default())?;
            return Ok(image.dirty_bitmap(bitmap, |list| rangelist::read(list, &options))?);
        }
        match Location::stated(path.as_os_str())? {
            Location::Nbd(uri) => {
                let options = RangeListOptions { kind: Some(Kind::Nbdinfo), ..self.options()? };
                let context = self.context.as_deref().unwrap_or("base:allocation");
                return Ok(uri.extents(context, |list| rangelist::read(list, &options))?);
            }
            _ if self.context.is_some() => {
                bail!(
                    "--context is for the list of an NBD server; name its URI instead of {}",
                    path.display()
                )
            }
            _ => {}
        }
        if path == Path::new("-") && map == path {
            bail!("the map and the list cannot both come from standard input");
        }
        let options = self.options()?;
        let list = if path == Path::new("-") {
            rangelist::read(io::stdin().lock(), &options)
        } else {
            let file =
                File::open(path).with_context(|| format!("{}: cannot open the list", path.display()))?;
            rangelist::read(file, &options)
        };
        list.with_context(|| format!("{}: cannot read this as a list of ranges", path.display()))
    }

    /// What the list means for a map's disk. It counts in `container`, if there is one.
    pub(super) fn ask(&self, list: RangeList, map: &Map, container: Option<&Container>) -> Result<Asked> {
        match (&self.container.file, container) {
            (Some(file), Some(container)) => {
                self.check_disk(container, map)?;
                self.check_file(&list, container)?;
                Asked::of_file(list, self.disk, file, container)
            }
            _ => {
                self.check(&list, map)?;
                Ok(Asked::of_disk(list, self.disk))
            }
        }
    }

    /// Refuses a list that fits only the other one: with `--container` a list of the disk's size,
    /// without it a list of the file's.
    pub(super) fn check_file(&self, list: &RangeList, container: &Container) -> Result<()> {
        let Container { size, disk_size, .. } = *container;
        let (kind, end, covers) = (list.kind, list.end, list.kind.covers_disk());
        match &self.container.file {
            Some(_) if covers && end != size && end == disk_size => self.refuse(&format!(
                "the {kind} is for {end} bytes, as many as the guest's disk has, but the file has {size}; \
                 leave out --container if the list is for the disk"
            )),
            Some(_) if covers && end != size || end > size => {
                self.refuse(&format!("the {kind} is for {end} bytes, but the file has {size}"))
            }
            None if covers && end == size && end != disk_size => self.refuse(&format!(
                "the {kind} is for {end} bytes, as many as the file of the image has, but the guest's disk \
                 has {disk_size}; name the file with --container if the list is for the file"
            )),
            _ => Ok(()),
        }
    }

    /// Checks that the list fits the map's disk. A list of another disk would give plausible but
    /// wrong answers.
    fn check(&self, list: &RangeList, map: &Map) -> Result<()> {
        let (kind, disk) = (list.kind, self.disk);
        match disk_size(map, disk) {
            DiskSize::NoDisk => bail!("the map has no disk {disk}"),
            DiskSize::Bytes(size) if kind.covers_disk() && list.end != size => {
                let remedy = if self.is_size_of_image(list.end, map) {
                    "; that is the size of its image's file: add --container FILE"
                } else {
                    ""
                };
                self.refuse(&format!(
                    "the {kind} is for a disk of {} bytes, but disk {disk} of the map has {size} bytes{remedy}",
                    list.end
                ))
            }
            DiskSize::Bytes(size) if list.spans.end() > size => {
                let end = list.spans.end();
                self.refuse(&format!(
                    "the {kind} ends at byte {end}, but disk {disk} of the map has {size} bytes"
                ))
            }
            DiskSize::AtLeast(_) => {
                note!(
                    "virt-bmap-rs: warning: the map has no size for disk {disk}, so the {kind} may be for another disk"
                );
                Ok(())
            }
            DiskSize::Bytes(_) => Ok(()),
        }
    }

    /// Whether the file of the image that the map names has so many bytes.
    fn is_size_of_image(&self, size: u64, map: &Map) -> bool {
        let image = map.header().images.iter().find(|info| info.disk == self.disk);
        let name = image.map(|info| OsStr::from_bytes(&info.image.name));
        name.and_then(|name| std::fs::metadata(name).ok()).is_some_and(|file| file.len() == size)
    }

    pub(super) fn refuse(&self, problem: &str) -> Result<()> {
        if !self.force {
            bail!("{problem}; use --force to accept it");
        }
        note!("virt-bmap-rs: warning: {problem}");
        Ok(())
    }
}
