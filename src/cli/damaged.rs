//! `virt-bmap-rs damaged`: shows which files the bad areas of a disk damage.

use super::Exit;
use super::answer::{AnswerFormat, Cell, Value, file_name, path};
use super::make::{MadeBefore, MakeOptions, Maker};
use super::map::location;
use super::ranges::ListOptions;
use anyhow::{Context as _, Result};
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use virt_bmap::mapper::GuestDisk;
use virt_bmap_image::{ImageFormat, Location, OpenOptions};
use virt_bmap_map::lookup::{Damage, HitRange, damage, tally};
use virt_bmap_map::{self as bmap, Kind, hardlinks};
use virt_bmap_ranges::DiskNumber;

/// Show which files the bad areas of a disk damage, and which parts of them.
///
/// The mapfile is that of GNU ddrescue: the areas that it could not read are bad. All other lists
/// that `lookup --ranges` reads are accepted too, such as the output of badblocks.
///
/// A file is whole if the map knows where all its bytes lie and none of them is bad. Damaged
/// directories and metadata are reported as such; their effect on other files is not.
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct DamagedArgs {
    /// The map, or the rescued image, which is then mapped first
    #[arg(value_name = "MAP|IMAGE", value_parser = location())]
    subject: Location,

    /// The list of bad areas; `-` is standard input
    #[arg(long, value_name = "FILE")]
    mapfile: PathBuf,

    /// Do not map the image if there is a map beside it: `--map auto`
    ///
    /// The name of the map is that of the image with the suffix of a map. The image and the program
    /// must be as they were when it was made.
    #[arg(long, value_name = "auto", value_enum)]
    map: Option<Beside>,

    /// Also list the files that are whole
    #[arg(long)]
    whole: bool,

    #[command(flatten)]
    form: AnswerFormat,

    #[command(flatten)]
    list: ListOptions,

    /// Format of the image; detected by default
    #[arg(long, value_name = "FORMAT", help_heading = "Options for making a map")]
    format: Option<ImageFormat>,

    #[command(flatten)]
    make: MakeOptions,
}

/// The argument of `--map`.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Beside {
    /// The map beside the image.
    Auto,
}

const AFTER_HELP: &str = "\
Exit status:
  0  nothing is damaged: all files in the map are whole
  1  error
  2  usage error
  3  as 0, but a part of the image could not be examined, or nobody knows what
     depends on damaged metadata of the image; standard error says which
  4  files are damaged
  5  no file is damaged, but directories or metadata are

Examples:
  virt-bmap-rs damaged guest.raw --mapfile rescue.map -o guest.jsonl
  virt-bmap-rs damaged guest.bmap --mapfile rescue.map
  virt-bmap-rs damaged guest.bmap --mapfile rescue.map --status - --whole
  virt-bmap-rs damaged guest.bmap --mapfile bad-blocks.txt -b 512 --csv";

pub(super) fn run(args: &DamagedArgs) -> Result<Exit> {
    let mut maker = Maker::new(&args.make)?;
    // The list is read before the long work, so that an invalid one is reported first.
    let list = args.list.read(&args.mapfile, args.subject.file().unwrap_or(Path::new("")))?;
    let mut container = None;
    let map = if is_image(&args.subject, args.format)? {
        let location = args.make.mapping.tls.completed(args.subject.clone());
        let disk = GuestDisk::new(location, args.format);
        if let Some(path) = args.subject.file() {
            let access = args.make.mapping.access(None)?;
            let options = OpenOptions { format: args.format, access, ..OpenOptions::default() };
            container = args.list.container.of_image(path, &options)?;
            if let Some(file) = &container {
                args.list.check_file(&list, file)?;
            }
        }
        let before = args.map.map_or(MadeBefore::Cached, |Beside::Auto| MadeBefore::Beside);
        let Some(map) = maker.make(&disk, true, before, None)? else { return Ok(maker.interrupted()) };
        map
    } else {
        let map = PathBuf::from(args.subject.name());
        args.make.refuse_output(&map)?;
        let map = bmap::load(&map)?;
        container = args.list.container.find(&map, args.list.disk)?;
        map
    };
    let disk = args.list.disk;
    let asked = args.list.ask(list, &map, container.as_ref())?;
    let list = &asked.list;
    let found = damage(&map, disk, &asked.spans);
    let tally = tally(&map, disk, &asked.spans);
    let nowhere = tally.free + tally.unmapped;
    let form = args.form;
    form.print(|out| {
        if form.is_text() {
            asked.describe(form, out)?;
            print_text(args, out, &found)?;
            writeln!(out, "{} of the bad bytes are in no file, directory or metadata", form.size(nowhere))?;
            return Ok(());
        }
        let summary = [
            ("kind", Value::Word(list.kind.word())),
            ("entries", list.entries.into()),
            ("counted", list.counted.into()),
            ("rule", Value::Word(&list.rule)),
            ("bytes", tally.bytes.into()),
            ("in_no_file", nowhere.into()),
            ("files_hit", (found.count(Kind::File) as u64).into()),
            ("directories_hit", (found.count(Kind::Directory) as u64).into()),
            ("metadata_hit", (found.count(Kind::Metadata) as u64).into()),
            ("files_whole", (found.whole.len() as u64).into()),
            ("files_unplaced", (found.unplaced.len() as u64).into()),
            asked.cell(),
        ];
        form.rows_and(out, rows(args, &found), |out| asked.write_json(out), &summary, COLUMNS)
    })?;
    if form.is_csv() {
        asked.note_others(form);
    }
    if asked.has_unknown() {
        note!("virt-bmap-rs: warning: which files depend on the image's own metadata is not known");
    }
    for warning in map.header().warnings.iter().filter(|warning| warning.is_incomplete()) {
        note!("virt-bmap-rs: warning: the map is incomplete: {warning}");
    }
    Ok(match (found.count(Kind::File), found.hit.len(), maker.is_complete && !asked.has_unknown()) {
        (0, 0, true) => Exit::Success,
        (0, 0, false) => Exit::Incomplete,
        (0, ..) => Exit::FoundOutsideFiles,
        _ => Exit::Found,
    })
}

/// Number of bytes at the beginning of a file by which maps and images are told apart. A block of
/// zstd has up to 128 KiB, and is decoded as a whole.
const BEGINNING: u64 = 256 << 10;

/// Whether a file is an image rather than a map: its beginning has a zero byte, as in all image
/// formats and partition tables; or it is a VMDK descriptor. Either may be compressed. A path into an
/// archive is that of an image.
fn is_image(subject: &Location, format: Option<ImageFormat>) -> Result<bool> {
    let Some(path) = subject.file() else { return Ok(true) };
    if format.is_some() || path == Path::new("-") {
        return Ok(format.is_some());
    }
    let mut beginning = Vec::new();
    match File::open(path).and_then(|file| file.take(BEGINNING).read_to_end(&mut beginning)) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(true),
        result => {
            result.with_context(|| format!("{}: cannot open the map or image", path.display()))?;
        }
    }
    let is_descriptor = beginning.starts_with(b"# Disk DescriptorFile");
    Ok(is_descriptor || !bmap::FileType::may_be_map(&beginning))
}

fn print_text(args: &DamagedArgs, out: &mut dyn Write, found: &Damage<'_>) -> io::Result<()> {
    let form = args.form;
    let number = args.list.disk;
    for hit in form.first(&found.hit) {
        let of = hit.file.object.attributes().size;
        let of = of.map_or(String::new(), |size| format!(" of {}", form.size(size)));
        writeln!(out, "damaged {}: {}{of}", file_name(&hit.file), form.size(hit.bytes))?;
        for HitRange { disk, file } in &hit.ranges {
            let (start, end) = (form.offset(disk.start.0), form.offset(disk.end.0));
            match file {
                Some(file) => {
                    let (from, to) = (form.offset(file.start.0), form.offset(file.end.0));
                    writeln!(out, "    file bytes {from} to {to}, {start} to {end} of disk {number}")?;
                }
                None => writeln!(out, "    {start} to {end} of disk {number}")?,
            }
        }
    }
    form.print_more(out, found.hit.len())?;
    if args.whole {
        found.whole.iter().try_for_each(|file| writeln!(out, "whole {}", file_name(file)))?;
        found.unplaced.iter().try_for_each(|file| writeln!(out, "unknown {}", file_name(file)))?;
    }
    writeln!(
        out,
        "{} files, {} directories and {} metadata objects are damaged; {} files are whole",
        found.count(Kind::File),
        found.count(Kind::Directory),
        found.count(Kind::Metadata),
        found.whole.len()
    )?;
    if !found.unplaced.is_empty() {
        writeln!(
            out,
            "{} files have no blocks of their own on the disk, so their state is unknown",
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
    let (disk, whole) = (args.list.disk, args.whole);
    let hit = args.form.first(&found.hit).iter().flat_map(move |hit| {
        hit.ranges.iter().map(move |range| row("damaged", &hit.file, Some((disk, *range))))
    });
    let others = found.whole.iter().map(|file| row("whole", file, None));
    let unplaced = found.unplaced.iter().map(|file| row("unknown", file, None));
    hit.chain(others.chain(unplaced).filter(move |_| whole))
}

fn row<'a>(
    state: &'static str,
    file: &hardlinks::File<'a>,
    range: Option<(DiskNumber, HitRange)>,
) -> [Cell<'a>; 12] {
    let (name, known) = (file.object.name(), file.object.attributes());
    let inside = range.and_then(|(_, range)| range.file);
    [
        ("state", Value::Word(state)),
        ("type", Value::Letter(name.kind.letter())),
        ("device", Value::Name(name.device)),
        ("path", path(Some(name))),
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
