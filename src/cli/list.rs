//! `virt-bmap-rs list`: lists the files of a map.

use super::Exit;
use super::answer::{AnswerFormat, Cell, Value, done, file_name, path};
use anyhow::{Context as _, Result};
use clap::ValueEnum;
use std::cmp::Reverse;
use std::io::{self, Write};
use std::path::PathBuf;
use virt_bmap_map::list::{Listed, Select, glob, list, prefetch, ranges, windows_glob};
use virt_bmap_map::{self as bmap, Kind};
use virt_bmap_ranges::{DiskNumber, DiskRange, PrintableText};

/// List the files of a map with their bytes on disk, number of pieces, and shared bytes.
///
/// A file with several names (hard links) is listed once, under the first name that matches. Shared
/// bytes are on the disk once and belong to several files.
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct ListArgs {
    /// The map
    map: PathBuf,

    /// List only objects with a matching path: `*` and `?` match anything but `/`, `**` also
    /// matches `/`
    #[arg(value_name = "PATH-GLOB")]
    globs: Vec<String>,

    /// Kinds of objects to list, by their letters
    #[arg(long = "type", value_name = "LETTERS", default_value = "f", value_parser = kinds)]
    kinds: Kinds,

    /// List only objects on this device
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,

    /// List free space: `--type u`
    #[arg(long, conflicts_with_all = ["kinds", "prefetch"])]
    free: bool,

    /// Print only the ranges of the objects: lines of `OFFSET LENGTH` in bytes, ascending
    ///
    /// Each byte is there once. `lookup --ranges` reads such a list.
    #[arg(long, conflicts_with_all = ["csv", "json", "top", "sort", "reverse", "bytes"])]
    ranges: bool,

    /// Print the ranges of metadata to prefetch for a cold start: inode tables first, then
    /// directories, then the rest; lines of `OFFSET LENGTH` in bytes
    #[arg(long, conflicts_with_all = ["globs", "kinds", "csv", "json", "top", "sort", "reverse", "bytes", "ranges"])]
    prefetch: bool,

    /// Sort order; numbers descend, all else ascends
    #[arg(long, value_enum, default_value_t = Sort::Name)]
    sort: Sort,

    /// Reverse the sort order
    #[arg(short, long)]
    reverse: bool,

    #[command(flatten)]
    form: AnswerFormat,
}

const AFTER_HELP: &str = "\
Exit status:
  0  success
  1  error
  2  usage error

Examples:
  virt-bmap-rs list guest.bmap
  virt-bmap-rs list guest.bmap --sort pieces --top 10
  virt-bmap-rs list guest.bmap '/etc/**' --csv
  virt-bmap-rs list guest.bmap --type fd --sort on-disk --json
  virt-bmap-rs list guest.bmap --prefetch
  virt-bmap-rs list guest.bmap '/etc/**' --ranges";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Sort {
    /// The order of the map: kind, device, path
    Name,
    /// Bytes on the disk
    OnDisk,
    /// Size of the file
    Size,
    /// Number of pieces
    Pieces,
    /// Bytes shared with other files
    Shared,
    /// Offset on the disk
    Offset,
}

#[derive(Clone, Debug)]
struct Kinds(Vec<Kind>);

fn kinds(letters: &str) -> Result<Kinds, String> {
    let kind = |letter: u8| {
        let known: String = Kind::ALL.iter().map(|kind| char::from(kind.letter())).collect();
        Kind::from_letter(letter).ok_or_else(|| format!("the letters of the kinds are {known}"))
    };
    letters.bytes().map(kind).collect::<Result<_, _>>().map(Kinds)
}

pub(super) fn run(args: &ListArgs) -> Result<Exit> {
    let pattern = |pattern: &String| glob(pattern).with_context(|| format!("invalid pattern `{pattern}`"));
    let select = Select {
        kinds: if args.free { vec![Kind::Free] } else { args.kinds.0.clone() },
        device: args.device.as_ref().map(|device| device.clone().into_bytes()),
        globs: args.globs.iter().map(pattern).collect::<Result<_>>()?,
    };
    let map = bmap::load(&args.map)?;
    if args.ranges || args.prefetch {
        let found = if args.prefetch { prefetch(&map, &select) } else { ranges(&map, &select) };
        return done(print_ranges(args.form, &found));
    }
    let mut listed = list(&map, &select);
    sort(&mut listed, args.sort);
    if args.reverse {
        listed.reverse();
    }
    if listed.is_empty() {
        hint(&map, &select, &args.globs);
    }
    let found = listed.len();
    let on_disk: u64 = listed.iter().map(|file| file.on_disk).sum();
    let fragmented = listed.iter().filter(|file| file.pieces > 1).count();
    let form = args.form;
    let shown = form.first(&listed);
    done(form.print(|out| {
        if form.is_text() {
            print_text(form, out, shown)?;
            let size = form.size(on_disk);
            return writeln!(out, "{found} found, {size} on disk, {fragmented} in more than one piece");
        }
        let summary = [
            ("found", (found as u64).into()),
            ("on_disk", on_disk.into()),
            ("fragmented", (fragmented as u64).into()),
        ];
        form.rows(out, shown.iter().map(row), &summary, COLUMNS)
    }))
}

/// Prints lines that `lookup --ranges` reads. A comment with the number of the disk comes before
/// its ranges.
fn print_ranges(form: AnswerFormat, ranges: &[(DiskNumber, DiskRange)]) -> Result<()> {
    form.print(|out| {
        for of_disk in ranges.chunk_by(|a, b| a.0 == b.0) {
            writeln!(out, "# disk {}", of_disk[0].0)?;
            of_disk.iter().try_for_each(|(_, range)| writeln!(out, "{} {}", range.start, range.len()))?;
        }
        Ok(())
    })
}

/// Says which path a pattern may have meant that matches nothing: one with backslashes, with a
/// drive's letter, or in another case; one that ends with the pattern, or is below it.
fn hint(map: &bmap::Map, select: &Select, patterns: &[String]) {
    for pattern in patterns {
        let Ok(windows) = windows_glob(pattern) else { continue };
        let meant = list(map, &Select { globs: vec![windows], ..select.clone() });
        if let Some(first) = meant.first() {
            note!(
                "virt-bmap-rs: nothing matches {}; paths have slashes, no drive and their exact case: {} \
                 matches, as one of {}",
                PrintableText(pattern),
                file_name(&first.file),
                meant.len()
            );
            continue;
        }
        // A name, or a directory.
        let below = format!("{}/**", pattern.trim_end_matches('/'));
        let anywhere = [format!("**/{pattern}"), format!("**/{below}")];
        let wider = if pattern.starts_with('/') { vec![below] } else { anywhere.to_vec() };
        for wider in wider {
            let Ok(matcher) = glob(&wider) else { continue };
            let meant = list(map, &Select { globs: vec![matcher], ..select.clone() });
            if let Some(first) = meant.first() {
                note!(
                    "virt-bmap-rs: nothing matches {}, which stands for a whole path; {} matches {}, such as {}",
                    PrintableText(pattern),
                    PrintableText(&wider),
                    meant.len(),
                    file_name(&first.file)
                );
                break;
            }
        }
    }
}

/// Sorts stably: equal rows keep the order of the map.
fn sort(listed: &mut [Listed<'_>], by: Sort) {
    match by {
        Sort::Name => {}
        Sort::OnDisk => listed.sort_by_key(|file| Reverse(file.on_disk)),
        Sort::Size => listed.sort_by_key(|file| Reverse(file.file.object.attributes().size)),
        Sort::Pieces => listed.sort_by_key(|file| Reverse(file.pieces)),
        Sort::Shared => listed.sort_by_key(|file| Reverse(file.shared)),
        Sort::Offset => {
            listed.sort_by_key(|file| {
                (file.first.is_none(), file.first.map(|(disk, range)| (disk, range.start)))
            });
        }
    }
}

fn print_text(form: AnswerFormat, out: &mut dyn Write, listed: &[Listed<'_>]) -> io::Result<()> {
    writeln!(out, "{:>12} {:>12} {:>6} {:>12}  name", "on disk", "shared", "pieces", "at")?;
    for file in listed {
        let at = file
            .first
            .map_or("-".to_owned(), |(disk, range)| format!("{disk}:{}", form.offset(range.start.0)));
        let (on_disk, shared) = (form.size(file.on_disk), form.size(file.shared));
        writeln!(out, "{on_disk:>12} {shared:>12} {:>6} {at:>12}  {}", file.pieces, file_name(&file.file))?;
    }
    Ok(())
}

const COLUMNS: [&str; 11] =
    ["type", "device", "path", "names", "inode", "size", "on_disk", "shared", "pieces", "disk", "start"];

fn row<'a>(listed: &Listed<'a>) -> [Cell<'a>; 11] {
    let object = listed.file.object;
    let (name, known) = (object.name(), object.attributes());
    [
        ("type", Value::Letter(name.kind.letter())),
        ("device", Value::Name(name.device)),
        ("path", path(Some(name))),
        ("names", u64::from(listed.file.names).into()),
        ("inode", known.inode.into()),
        ("size", known.size.into()),
        ("on_disk", listed.on_disk.into()),
        ("shared", listed.shared.into()),
        ("pieces", listed.pieces.into()),
        ("disk", listed.first.map(|(disk, _)| u64::from(disk)).into()),
        ("start", listed.first.map(|(_, range)| range.start.0).into()),
    ]
}
