//! `virt-bmap-rs lookup`: shows which objects lie at given offsets or in given ranges.

use super::Exit;
use super::answer::{AnswerFormat, Cell, Value, device, done, file_name, letter, object_name, path};
use super::container::Asked;
use super::places::{self, At, Place};
use super::ranges::ListOptions;
use anyhow::Result;
use clap::ArgGroup;
use std::io::{self, Write};
use std::path::PathBuf;
use virt_bmap_map::lookup::{MapHit, Share, Tally, tally};
use virt_bmap_map::{self as bmap, Hit, Kind, Map};
use virt_bmap_ranges::{DiskNumber, DiskOffset};

/// Show which objects lie at given offsets of a guest's disks, or in a list of ranges.
///
/// For each OFFSET, lists the objects that the byte belongs to, the most specific first, with the
/// offset inside each object if the map has it.
///
/// With --ranges, lists the files with bytes in the ranges and their number of bytes, the largest
/// first; then the bytes on a partition or volume that are in no file, and those that are in no
/// object of the map. The format of the list is detected: `qemu-img map --output=json`, `nbdinfo
/// --map --json` (also of dirty bitmaps), a mapfile of GNU ddrescue, the output of badblocks,
/// thin_delta, rbd diff, rbd export-diff, smartctl or zpool events, VMware's changed disk areas, an
/// index of a Proxmox backup, the kernel's log, the log of nbdkit's log filter, the text of
/// blkparse, or lines of OFFSET LENGTH.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = AFTER_HELP,
    override_usage = "virt-bmap-rs lookup [OPTIONS] <MAP> <OFFSET>...\n       virt-bmap-rs lookup [OPTIONS] <MAP> --ranges <LIST>",
    group = ArgGroup::new("place").required(true).multiple(true).args(["offsets", "sector", "lcn", "ranges"])
)]
pub(super) struct LookupArgs {
    /// The map
    map: PathBuf,

    /// Offsets in bytes, decimal or 0x hexadecimal, with an optional suffix K, M, G or T for powers
    /// of 1024, or s for sectors; DISK: is the number of the disk, see --disk
    ///
    /// DEVICE+OFFSET, as in /dev/sda2+0x1000, counts from the beginning of a partition or volume.
    #[arg(value_name = "[DISK:]OFFSET|DEVICE+OFFSET", value_parser = places::offset)]
    offsets: Vec<At>,

    /// A sector number; SIZE is the sector size in bytes, by default that of the disk, mostly 512
    #[arg(long, value_name = "N[:SIZE]", value_parser = places::sector)]
    sector: Vec<At>,

    /// The logical number of a cluster of an NTFS; DEVICE is needed if the guest has several
    #[arg(long, value_name = "[DEVICE:]N", value_parser = places::cluster)]
    lcn: Vec<At>,

    /// A list of ranges; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["offsets", "sector", "lcn"])]
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
  virt-bmap-rs lookup guest.bmap --sector 2050 --sector 256:4096 2050s
  virt-bmap-rs lookup guest.bmap /dev/sda1+0x1000
  virt-bmap-rs lookup guest.bmap --ranges changed.json --bytes
  virt-bmap-rs lookup guest.bmap --ranges guest.qcow2 --bitmap monday
  virt-bmap-rs lookup guest.bmap --ranges bad-blocks.txt --block-size 512 --csv
  virt-bmap-rs lookup guest.bmap --ranges rescue.map --status - --json
  virt-bmap-rs lookup guest.bmap --container guest.qcow2 --image guest.qcow2 0";

pub(super) fn run(args: &LookupArgs) -> Result<Exit> {
    let list = args.ranges.as_ref().map(|path| args.list.read(path, &args.map)).transpose()?;
    let map = bmap::load(&args.map)?;
    let container = args.list.container.find(&map, args.list.disk)?;
    match (list, container) {
        (Some(list), container) => {
            let asked = args.list.ask(list, &map, container.as_ref())?;
            done(ranges(args.form, &tally(&map, args.list.disk, &asked.spans), &asked))
        }
        (None, Some(container)) => {
            let given = args.offsets.iter().chain(&args.sector).chain(&args.lcn);
            let offsets = given.map(At::in_container).collect::<Result<Vec<_>>>()?;
            done(args.list.print_offsets(args.form, &map, &container, &offsets))
        }
        (None, None) => done(offsets(args, &map)),
    }
}

fn offsets(args: &LookupArgs, map: &Map) -> Result<()> {
    let given = args.offsets.iter().chain(&args.sector).chain(&args.lcn);
    let places = given.map(|at| at.place(map, args.list.disk)).collect::<Result<Vec<Place>>>()?;
    let form = args.form;
    let shown = form.first(&places);
    form.print(|out| {
        if form.is_text() {
            return shown.iter().try_for_each(|&Place { disk, offset, ref counted }| {
                let counted = counted.as_ref().map_or(String::new(), |counted| format!(" ({counted})"));
                writeln!(out, "{disk}:{}{counted}", form.offset(offset))?;
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
        let rows = shown.iter().flat_map(|&Place { disk, offset, .. }| {
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

fn ranges(form: AnswerFormat, tally: &Tally<'_>, asked: &Asked) -> Result<()> {
    let list = &asked.list;
    let shown = form.first(&tally.shares);
    form.print(|out| {
        if form.is_text() {
            return print_ranges(form, out, tally, shown, asked);
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
            asked.cell(),
        ];
        form.rows_and(
            out,
            rows,
            |out| asked.write_json(out),
            &summary,
            ["bytes", "percent", "what", "type", "device", "path", "names", "inode"],
        )
    })?;
    if form.is_csv() {
        asked.note_others(form);
    }
    Ok(())
}

fn print_ranges(
    form: AnswerFormat,
    out: &mut dyn Write,
    tally: &Tally<'_>,
    shown: &[Share<'_>],
    asked: &Asked,
) -> io::Result<()> {
    asked.describe(form, out)?;
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
