//! `virt-bmap-rs diff`: shows the differences between two maps.

use super::Exit;
use super::answer::{AnswerFormat, Cell, Value, device, letter, name_and_more, path};
use anyhow::{Result, bail};
use clap::ValueEnum;
use std::borrow::Cow;
use std::cmp::Reverse;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use virt_bmap_map::diff::{self, Change, Changed};
use virt_bmap_map::{self as bmap, Map};
use virt_bmap_ranges::Printable;

/// Show the differences between two maps of one guest.
///
/// Files are compared by the ranges of the disks that they occupy. They are added, removed, renamed
/// (same ranges, and the same inode if both maps have inodes), linked or unlinked (a file in both
/// maps has one name more or less), moved, grown or shrunk. A file that was rewritten in place
/// counts as unchanged. Free space is not listed.
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct DiffArgs {
    /// The earlier map
    old: PathBuf,

    /// The later map
    new: PathBuf,

    /// Sort order
    #[arg(long, value_enum, default_value_t = Sort::Bytes)]
    sort: Sort,

    /// Exit with status 4 if the maps differ
    #[arg(long)]
    exit_code: bool,

    #[command(flatten)]
    form: AnswerFormat,
}

const AFTER_HELP: &str = "\
Exit status:
  0  success
  1  error
  2  usage error
  4  with --exit-code: the maps differ

Examples:
  virt-bmap-rs diff guest.bmap later.bmap
  virt-bmap-rs diff guest.bmap later.bmap --sort name --csv";

/// Sort order of changes.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Sort {
    /// By bytes gained and lost, the most first
    Bytes,
    /// In the order of the map: kind, device, path
    Name,
}

pub(super) fn run(args: &DiffArgs) -> Result<Exit> {
    if args.old == Path::new("-") && args.new == Path::new("-") {
        bail!("the two maps cannot both come from standard input");
    }
    let differ = print(args.form, args.sort, bmap::load(&args.old)?, bmap::load(&args.new)?)?;
    Ok(if args.exit_code && differ { Exit::Found } else { Exit::Success })
}

/// Prints the differences between two maps and returns whether there are any.
pub(super) fn print(form: AnswerFormat, sort: Sort, old: Map, new: Map) -> Result<bool> {
    let (old, new) = diff::level(Cow::Owned(old), Cow::Owned(new))?;
    let mut changes = diff::diff(&old, &new);
    if let Sort::Bytes = sort {
        changes.sort_by_key(|changed| Reverse(changed.gained.saturating_add(changed.lost)));
    }
    print_changes(form, &changes)?;
    Ok(!changes.is_empty())
}

/// Prints changes in the given order.
pub(super) fn print_changes(form: AnswerFormat, changes: &[Changed<'_>]) -> Result<()> {
    let shown = form.first(changes);
    let sums = Sums::of(changes);
    form.print(|out| {
        if form.is_text() {
            return print_text(form, out, shown, &sums, changes.len());
        }
        let summary: Vec<Cell<'_>> = sums
            .0
            .iter()
            .flat_map(|sum| {
                let [count, gained, lost] = NAMES[sum.change as usize];
                [(count, sum.count.into()), (gained, sum.gained.into()), (lost, sum.lost.into())]
            })
            .collect();
        form.rows(out, shown.iter().map(row), &summary, COLUMNS)
    })
}

/// Names of the sums, in the order of [`Change::ALL`].
const NAMES: [[&str; 3]; 8] = [
    ["added", "added_gained", "added_lost"],
    ["removed", "removed_gained", "removed_lost"],
    ["renamed", "renamed_gained", "renamed_lost"],
    ["linked", "linked_gained", "linked_lost"],
    ["unlinked", "unlinked_gained", "unlinked_lost"],
    ["moved", "moved_gained", "moved_lost"],
    ["grown", "grown_gained", "grown_lost"],
    ["shrunk", "shrunk_gained", "shrunk_lost"],
];

struct Sum {
    change: Change,
    count: u64,
    gained: u64,
    lost: u64,
}

/// One sum for each kind of change, over the objects with bytes of their own: disks, partitions and
/// volumes only contain other objects.
struct Sums([Sum; 8]);

impl Sums {
    fn of(changes: &[Changed<'_>]) -> Self {
        let mut sums = Change::ALL.map(|change| Sum { change, count: 0, gained: 0, lost: 0 });
        for changed in changes.iter().filter(|changed| changed.has_bytes()) {
            let sum = &mut sums[changed.change as usize];
            sum.count += 1;
            sum.gained = sum.gained.saturating_add(changed.gained);
            sum.lost = sum.lost.saturating_add(changed.lost);
        }
        Self(sums)
    }
}

fn print_text(
    form: AnswerFormat,
    out: &mut dyn Write,
    shown: &[Changed<'_>],
    sums: &Sums,
    found: usize,
) -> io::Result<()> {
    if found == 0 {
        return writeln!(out, "no difference");
    }
    writeln!(out, "{:>12} {:>12}  change", "gained", "lost")?;
    for changed in shown {
        let Some(subject) = changed.subject() else { continue };
        let name = name_and_more(&subject.name().to_string(), changed.names);
        let (gained, lost) = (form.size(changed.gained), form.size(changed.lost));
        write!(out, "{gained:>12} {lost:>12}  {:<8} {name}", changed.change.word())?;
        let other = |word: &str, object: Option<bmap::Object<'_>>| {
            object.map_or(String::new(), |object| format!(", {word} {}", Printable(object.name().path)))
        };
        let more = match changed.change {
            Change::Renamed => other("formerly", changed.old),
            Change::Linked => other("another name of", changed.old),
            Change::Unlinked => other("still there as", changed.new),
            Change::Moved | Change::Grown | Change::Shrunk => {
                format!(", {} before, {} now", form.size(changed.old_bytes), form.size(changed.new_bytes))
            }
            Change::Added | Change::Removed => String::new(),
        };
        writeln!(out, "{more}")?;
    }
    form.print_more(out, found)?;
    for Sum { change, count, gained, lost } in sums.0.iter().filter(|sum| sum.count > 0) {
        writeln!(out, "{count} {}: {} gained, {} lost", change.word(), form.size(*gained), form.size(*lost))?;
    }
    Ok(())
}

const COLUMNS: [&str; 13] = [
    "change",
    "type",
    "device",
    "path",
    "old_path",
    "names",
    "old_inode",
    "new_inode",
    "old_bytes",
    "new_bytes",
    "gained",
    "lost",
    "new_size",
];

fn row<'a>(changed: &Changed<'a>) -> [Cell<'a>; 13] {
    let name = changed.subject().map(bmap::Object::name);
    let known = |object: Option<bmap::Object<'a>>| object.map(bmap::Object::attributes).unwrap_or_default();
    [
        ("change", Value::Word(changed.change.word())),
        ("type", letter(name)),
        ("device", device(name)),
        ("path", path(changed.new.map(bmap::Object::name))),
        ("old_path", path(changed.old.map(bmap::Object::name))),
        ("names", u64::from(changed.names).into()),
        ("old_inode", known(changed.old).inode.into()),
        ("new_inode", known(changed.new).inode.into()),
        ("old_bytes", changed.old_bytes.into()),
        ("new_bytes", changed.new_bytes.into()),
        ("gained", changed.gained.into()),
        ("lost", changed.lost.into()),
        ("new_size", known(changed.new).size.into()),
    ]
}
