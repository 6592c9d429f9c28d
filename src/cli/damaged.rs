//! `virt-bmap-rs damaged`: which files the bad parts of a disk hit.

use super::Exit;
use super::answer::{Cell, Form, Value, file_name};
use super::ranges::{ListOptions, describe};
use anyhow::Result;
use std::io::{self, Write};
use std::path::PathBuf;
use virt_bmap::bmap::{self, Kind};
use virt_bmap::links::File;
use virt_bmap::lookup::{Damage, DamagedRange, damage, tally};

/// Tell which files the bad parts of a disk hit, and where inside of them.
///
/// The mapfile is GNU ddrescue's: what it could not read is bad. Any other list that `lookup --ranges`
/// reads will do, too, a list of badblocks for one.
///
/// A file is whole if the map knows where its bytes lie and none of them is bad. What becomes of the files
/// below a directory that is hit, or of a filesystem whose metadata are, is not judged.
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct DamagedArgs {
    /// The map
    map: PathBuf,

    /// What is bad; `-` is standard input
    #[arg(long, value_name = "FILE")]
    mapfile: PathBuf,

    /// The disk that the mapfile is of
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    disk: u16,

    /// List the whole files, too
    #[arg(long)]
    whole: bool,

    #[command(flatten)]
    form: Form,

    #[command(flatten)]
    list: ListOptions,
}

const AFTER_HELP: &str = "\
Exit status:
  0  no file is hit, nor a directory or metadata: all files in the map are whole
  1  failed
  2  the command line makes no sense
  4  files are hit
  5  no file is hit, but directories or metadata are

Examples:
  virt-bmap-rs damaged guest.bmap --mapfile rescue.map
  virt-bmap-rs damaged guest.bmap --mapfile rescue.map --status - --whole
  virt-bmap-rs damaged guest.bmap --mapfile bad-blocks.txt -b 512 --csv";

pub(super) fn run(args: &DamagedArgs) -> Result<Exit> {
    let map = bmap::load(&args.map)?;
    let list = args.list.read(&args.mapfile, &map, args.disk)?;
    let found = damage(&map, args.disk, &list.spans);
    let shared_out = tally(&map, args.disk, &list.spans);
    let nowhere = shared_out.free + shared_out.unmapped;
    let form = args.form;
    form.print(|out| {
        if form.is_for_people() {
            writeln!(out, "{}", describe(&list, &form.size(shared_out.bytes)))?;
            for_people(args, out, &found)?;
            writeln!(out, "{} of the bad bytes are in no file, directory or metadata", form.size(nowhere))?;
            return Ok(());
        }
        let summary = [
            ("kind", Value::Word(list.kind.word())),
            ("entries", list.entries.into()),
            ("counted", list.counted.into()),
            ("rule", Value::Word(&list.rule)),
            ("bytes", shared_out.bytes.into()),
            ("in_no_file", nowhere.into()),
            ("files_hit", (found.count(Kind::File) as u64).into()),
            ("directories_hit", (found.count(Kind::Directory) as u64).into()),
            ("metadata_hit", (found.count(Kind::Metadata) as u64).into()),
            ("files_whole", (found.whole.len() as u64).into()),
            ("files_unplaced", (found.unplaced.len() as u64).into()),
        ];
        form.rows(out, rows(args, &found), &summary, COLUMNS)
    })?;
    for warning in &map.header().warnings {
        eprintln!("virt-bmap-rs: warning: the map does not know all files: {warning}");
    }
    Ok(match (found.count(Kind::File), found.hit.len()) {
        (0, 0) => Exit::Success,
        (0, _) => Exit::FoundBesideFiles,
        _ => Exit::Found,
    })
}

fn for_people(args: &DamagedArgs, out: &mut dyn Write, found: &Damage<'_>) -> io::Result<()> {
    let form = args.form;
    for hit in &found.hit {
        let of = hit.file.object.attributes().size;
        let of = of.map_or(String::new(), |size| format!(" of {}", form.size(size)));
        writeln!(out, "damaged {}: {}{of}", file_name(&hit.file), form.size(hit.bytes))?;
        for DamagedRange { disk, file } in &hit.ranges {
            let (start, end) = (form.offset(disk.start.0), form.offset(disk.end.0));
            match file {
                Some(file) => {
                    let (from, to) = (form.offset(file.start.0), form.offset(file.end.0));
                    writeln!(out, "    {from} to {to} of it, {start} to {end} of disk {}", args.disk)?;
                }
                None => writeln!(out, "    {start} to {end} of disk {}", args.disk)?,
            }
        }
    }
    if args.whole {
        found.whole.iter().try_for_each(|file| writeln!(out, "whole {}", file_name(file)))?;
        found.unplaced.iter().try_for_each(|file| writeln!(out, "unknown {}", file_name(file)))?;
    }
    writeln!(
        out,
        "{} files, {} directories and {} pieces of metadata are damaged; {} files are whole",
        found.count(Kind::File),
        found.count(Kind::Directory),
        found.count(Kind::Metadata),
        found.whole.len()
    )?;
    if !found.unplaced.is_empty() {
        writeln!(
            out,
            "{} files have no place of their own on the disk, so nothing is known of them",
            found.unplaced.len()
        )?;
    }
    Ok(())
}

const COLUMNS: [&str; 12] = [
    "state",
    "type",
    "device",
    "path",
    "names",
    "inode",
    "size",
    "file_start",
    "file_end",
    "disk",
    "start",
    "end",
];

fn rows<'a>(args: &DamagedArgs, found: &'a Damage<'a>) -> impl Iterator<Item = [Cell<'a>; 12]> {
    let (disk, whole) = (args.disk, args.whole);
    let hit = found.hit.iter().flat_map(move |hit| {
        hit.ranges.iter().map(move |range| row("damaged", &hit.file, Some((disk, *range))))
    });
    let others = found.whole.iter().map(|file| row("whole", file, None));
    let unplaced = found.unplaced.iter().map(|file| row("unknown", file, None));
    hit.chain(others.chain(unplaced).filter(move |_| whole))
}

fn row<'a>(state: &'static str, file: &File<'a>, range: Option<(u16, DamagedRange)>) -> [Cell<'a>; 12] {
    let (name, known) = (file.object.name(), file.object.attributes());
    let inside = range.and_then(|(_, range)| range.file);
    [
        ("state", Value::Word(state)),
        ("type", Value::Letter(name.kind.letter())),
        ("device", Value::Name(name.device)),
        ("path", if name.path.is_empty() { Value::Nothing } else { Value::Name(name.path) }),
        ("names", u64::from(file.names).into()),
        ("inode", known.inode.into()),
        ("size", known.size.into()),
        ("file_start", inside.map(|range| range.start.0).into()),
        ("file_end", inside.map(|range| range.end.0).into()),
        ("disk", range.map(|(disk, _)| u64::from(disk)).into()),
        ("start", range.map(|(_, range)| range.disk.start.0).into()),
        ("end", range.map(|(_, range)| range.disk.end.0).into()),
    ]
}
