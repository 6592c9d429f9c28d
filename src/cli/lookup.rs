//! `virt-bmap-rs lookup`: shows which objects lie at given offsets or in given ranges.

use super::Exit;
use super::answer::{AnswerFormat, Cell, Value, device, done, file_name, letter, object_name, path};
use super::ranges::{ListOptions, describe};
use anyhow::{Result, bail};
use clap::ArgGroup;
use std::io::{self, Write};
use std::path::PathBuf;
use virt_bmap_map::lookup::{DiskSize, MapHit, Share, Tally, disk_size, tally};
use virt_bmap_map::rangelist::RangeList;
use virt_bmap_map::{self as bmap, Hit, Kind, Map};
use virt_bmap_ranges::{DiskNumber, DiskOffset, parse_bytes};

/// Show which objects lie at given offsets of a guest's disks, or in a list of ranges.
///
/// For each OFFSET, lists the objects that the byte belongs to, the most specific first, with the
/// offset inside each object if the map has it.
///
/// With --ranges, lists the files with bytes in the ranges and their number of bytes, the largest
/// first; then the bytes on a partition or volume that are in no file, and those that are in no
/// object of the map. The format of the list is detected: `qemu-img map --output=json`, `nbdinfo
/// --map --json` (also of dirty bitmaps), a mapfile of GNU ddrescue, the output of badblocks, the
/// log of nbdkit's log filter, the text of blkparse, or lines of OFFSET LENGTH.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = AFTER_HELP,
    group = ArgGroup::new("place").required(true).multiple(true).args(["offsets", "sector", "ranges"])
)]
pub(super) struct LookupArgs {
    /// The map
    map: PathBuf,

    /// Offsets in bytes, decimal or 0x hexadecimal, with an optional suffix K, M, G or T for powers
    /// of 1024; DISK: is the number of the disk, see --disk
    #[arg(value_name = "[DISK:]OFFSET", value_parser = offset)]
    offsets: Vec<At>,

    /// A sector number; SIZE is the sector size in bytes, by default 512
    #[arg(long, value_name = "N[:SIZE]", value_parser = sector)]
    sector: Vec<u64>,

    /// A list of ranges; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["offsets", "sector"])]
    ranges: Option<PathBuf>,

    #[command(flatten)]
    form: AnswerFormat,

    #[command(flatten)]
    list: ListOptions,
}

const AFTER_HELP: &str = "\
Exit status:
  0  success
  1  error
  2  usage error

Examples:
  virt-bmap-rs lookup guest.bmap 0x100a00 1M 1:1048576
  virt-bmap-rs lookup guest.bmap --sector 2050 --sector 256:4096
  virt-bmap-rs lookup guest.bmap --ranges changed.json --bytes
  virt-bmap-rs lookup guest.bmap --ranges guest.qcow2 --bitmap monday
  virt-bmap-rs lookup guest.bmap --ranges bad-blocks.txt --block-size 512 --csv
  virt-bmap-rs lookup guest.bmap --ranges rescue.map --status - --json";

/// An offset, and the number of the disk if it was given.
#[derive(Clone, Copy, Debug)]
struct At {
    disk: Option<DiskNumber>,
    offset: u64,
}

fn offset(text: &str) -> Result<At, String> {
    let (disk, offset) = match text.split_once(':') {
        Some((disk, offset)) => {
            let number = disk.parse().ok().filter(|&number| number > 0);
            (
                Some(
                    number
                        .ok_or("the part before the colon must be the number of a disk, from 1 to 65535")?,
                ),
                offset,
            )
        }
        None => (None, text),
    };
    let offset = parse_bytes(offset.as_bytes()).map_err(|error| error.to_string())?;
    Ok(At { disk, offset })
}

fn sector(text: &str) -> Result<u64, String> {
    let (number, size) = text.split_once(':').unwrap_or((text, "512"));
    let read = |text: &str| parse_bytes(text.as_bytes()).map_err(|error| error.to_string());
    read(number)?
        .checked_mul(read(size)?)
        .ok_or_else(|| "the offset of this sector does not fit into 64 bits".to_owned())
}

pub(super) fn run(args: &LookupArgs) -> Result<Exit> {
    match &args.ranges {
        None => done(offsets(args, &bmap::load(&args.map)?)),
        Some(path) => {
            let list = args.list.read(path, &args.map)?;
            let map = bmap::load(&args.map)?;
            args.list.check(&list, &map)?;
            done(ranges(args.form, &tally(&map, args.list.disk, &list.spans), &list))
        }
    }
}

fn offsets(args: &LookupArgs, map: &Map) -> Result<()> {
    let disk = args.list.disk;
    let given = args.offsets.iter().map(|at| (at.disk.unwrap_or(disk), at.offset));
    let sectors = args.sector.iter().map(|&offset| (disk, offset));
    let places: Vec<_> = given.chain(sectors).collect();
    for &(disk, offset) in &places {
        match disk_size(map, disk) {
            DiskSize::NoDisk => bail!("the map has no disk {disk}"),
            DiskSize::Bytes(size) if offset >= size => {
                bail!("offset {offset} ({offset:#x}) is past the end of disk {disk} ({size} bytes)")
            }
            _ => {}
        }
    }
    let form = args.form;
    let shown = form.first(&places);
    form.print(|out| {
        if form.is_text() {
            return shown.iter().try_for_each(|&(disk, offset)| {
                writeln!(out, "{disk}:{}", form.offset(offset))?;
                let hits = map.at(disk, DiskOffset(offset));
                if hits.is_empty() {
                    writeln!(out, "  in no object of the map")?;
                }
                hits.iter().try_for_each(|hit| match hit.file_offset {
                    Some(inside) => {
                        writeln!(out, "  {} + {}", object_name(hit.object.name()), form.offset(inside.0))
                    }
                    None => writeln!(out, "  {}", object_name(hit.object.name())),
                })
            });
        }
        let rows = shown.iter().flat_map(|&(disk, offset)| {
            let hits = map.at(disk, DiskOffset(offset));
            let none = hits.is_empty().then(|| hit_row(disk, offset, None));
            hits.into_iter().map(move |hit| hit_row(disk, offset, Some(hit))).chain(none)
        });
        let columns = ["disk", "offset", "type", "device", "path", "file_offset"];
        form.rows(out, rows, &[("offsets", Value::Number(places.len() as u64))], columns)
    })
}

fn hit_row<'a>(disk: DiskNumber, offset: u64, hit: Option<Hit<'a>>) -> [Cell<'a>; 6] {
    let name = hit.map(|hit| hit.object.name());
    [
        ("disk", Value::Number(disk.into())),
        ("offset", Value::Number(offset)),
        ("type", name.map_or(Value::Word("unmapped"), |name| Value::Letter(name.kind.letter()))),
        ("device", device(name)),
        ("path", path(name)),
        ("file_offset", hit.and_then(|hit| hit.file_offset).map(|inside| inside.0).into()),
    ]
}

/// A percentage with two decimals, rounded.
fn share(bytes: u64, of: u64) -> String {
    let hundredths = (u128::from(bytes) * 10_000 + u128::from(of) / 2) / u128::from(of.max(1));
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

fn ranges(form: AnswerFormat, tally: &Tally<'_>, list: &RangeList) -> Result<()> {
    let shown = form.first(&tally.shares);
    form.print(|out| {
        if form.is_text() {
            return print_ranges(form, out, tally, shown, list);
        }
        let shares: Vec<String> = shown.iter().map(|part| share(part.bytes, tally.bytes)).collect();
        let rows = shown.iter().zip(&shares).map(|(part, share)| share_row(part, share));
        let summary = [
            ("kind", Value::Word(list.kind.word())),
            ("entries", list.entries.into()),
            ("counted", list.counted.into()),
            ("rule", Value::Word(&list.rule)),
            ("ranges", (list.spans.count() as u64).into()),
            ("bytes", tally.bytes.into()),
            ("in_objects", tally.in_objects.into()),
            ("free", tally.free.into()),
            ("unmapped", tally.unmapped.into()),
        ];
        form.rows(
            out,
            rows,
            &summary,
            ["bytes", "percent", "what", "type", "device", "path", "names", "inode"],
        )
    })
}

fn print_ranges(
    form: AnswerFormat,
    out: &mut dyn Write,
    tally: &Tally<'_>,
    shown: &[Share<'_>],
    list: &RangeList,
) -> io::Result<()> {
    writeln!(out, "{}", describe(list, &form.size(tally.bytes)))?;
    for part in shown {
        let what = match part.place {
            MapHit::Object(file) => file_name(&file),
            MapHit::Free(holder) if holder.kind() == Kind::Free => object_name(holder.name()),
            MapHit::Free(holder) => format!("in no file on {}", holder.name()),
            MapHit::Unmapped => "in no object of the map".to_owned(),
        };
        writeln!(out, "{:>12} {:>6} %  {what}", form.size(part.bytes), share(part.bytes, tally.bytes))?;
    }
    form.print_more(out, tally.shares.len())?;
    writeln!(
        out,
        "{} in files, directories and metadata; {} elsewhere on devices; {} in no object of the map",
        form.size(tally.in_objects),
        form.size(tally.free),
        form.size(tally.unmapped)
    )
}

fn share_row<'a>(part: &Share<'a>, share: &'a str) -> [Cell<'a>; 8] {
    let (what, object, names) = match part.place {
        MapHit::Object(file) => ("object", Some(file.object), Some(u64::from(file.names))),
        MapHit::Free(holder) => ("free", Some(holder), None),
        MapHit::Unmapped => ("unmapped", None, None),
    };
    let name = object.map(bmap::Object::name);
    [
        ("bytes", part.bytes.into()),
        ("percent", Value::Word(share)),
        ("what", Value::Word(what)),
        ("type", letter(name)),
        ("device", device(name)),
        ("path", path(name)),
        ("names", names.into()),
        ("inode", object.and_then(|object| object.attributes().inode).into()),
    ]
}
