//! `virt-bmap-rs changed`: shows what was written between two states of a disk, file by file.

use super::Exit;
use super::answer::{AnswerFormat, Cell, Value, device, letter, name_and_more, path};
use super::make::{MadeBefore, MakeOptions, Maker, MapArg};
use super::map::{location, map_to};
use super::progress::{Counter, print_warnings};
use anyhow::{Context as _, Result, bail};
use std::borrow::Cow;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use virt_bmap::changed::{
    self, Amount, ChangedFile, Changes, Compared, Fate, Origin, Owner, Shares, Written, compare, not_in_holes,
};
use virt_bmap::fleet::libvirt::Host;
use virt_bmap::live::{View, Wanted};
use virt_bmap::mapper::GuestDisk;
use virt_bmap::probe::baseline::Baseline;
use virt_bmap_image::{Image, ImageFormat, Location};
use virt_bmap_map::diff::{self, Change};
use virt_bmap_map::lookup::{DiskSize, HitRange, disk_size};
use virt_bmap_map::{self as bmap, Kind, Map, Object};
use virt_bmap_ranges::{DiskNumber, IndexedRanges, Percent, Printable};

/// Show which files an overlay or a snapshot changed, and what its size consists of.
///
/// TOP is an image on top of another one: a qcow2 overlay or a VMDK snapshot. The bytes that TOP
/// itself holds are compared with the image below it. Two maps attribute the differences to files:
/// which files were added, grown, rewritten, moved, shrunk, removed or renamed, how many bytes of
/// each were written, and which files owned these bytes before and own them now. With --base, two
/// whole disks of any format are compared.
///
/// Maps that are not given are made, one after the other; that of TOP as an update of the older
/// one. No map of TOP is needed if only data of known files was written.
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct ChangedArgs {
    /// The newer image
    #[arg(value_name = "TOP", required_unless_present = "domain", value_parser = location())]
    image: Option<Location>,

    /// The newer state is that of this libvirt domain, which runs; needs --since and --map
    #[arg(short, long, value_name = "DOMAIN", requires_all = ["since", "map"],
        conflicts_with_all = ["image", "base", "format", "no_compare", "new"])]
    domain: Option<String>,

    /// Connection URI of the domain's libvirt host, as for `virsh -c`
    #[arg(short, long, value_name = "URI", requires = "domain")]
    connect: Option<String>,

    /// The older state is that of this checkpoint of the domain, which `--live --checkpoint` left
    ///
    /// What was written since is known by its bitmaps, in whole units of 64 KiB, and is not
    /// compared.
    #[arg(long, value_name = "CHECKPOINT", requires = "domain")]
    since: Option<String>,

    /// Map of the older state: of the image below TOP, or of OLD; `auto` is the one beside it
    ///
    /// `auto` uses the map whose name is that of the image with the suffix of a map, if the image
    /// and the program are as they were when it was made.
    #[arg(long, value_name = "BASE.bmap|auto")]
    map: Option<MapArg>,

    /// Map of the newer state: of TOP; `auto` is the one beside it
    #[arg(long, value_name = "NEW.bmap|auto", conflicts_with = "output")]
    new: Option<MapArg>,

    /// The older image, if it is not the one below TOP
    ///
    /// The whole disks are then compared.
    #[arg(long, value_name = "OLD", value_parser = location())]
    base: Option<Location>,

    /// The older state is this snapshot inside of TOP, a qcow2 image
    ///
    /// The whole disks are then compared.
    #[arg(long, value_name = "NAME", conflicts_with = "base")]
    from_snapshot: Option<String>,

    /// The newer state is this snapshot inside of TOP, not the present disk
    #[arg(long, value_name = "NAME", requires = "from_snapshot")]
    to_snapshot: Option<String>,

    /// Format of TOP; detected by default. If given, the images that TOP refers to are trusted
    #[arg(long, value_name = "FORMAT")]
    format: Option<ImageFormat>,

    /// Format of OLD; detected by default
    #[arg(long, value_name = "FORMAT", requires = "base")]
    base_format: Option<ImageFormat>,

    /// Number of the disk in the maps that TOP is an image of
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    disk: DiskNumber,

    /// Do not compare: treat all bytes that TOP holds as possibly changed
    #[arg(long, conflicts_with_all = ["base", "from_snapshot"])]
    no_compare: bool,

    /// Use only the map of the older state; new files then have no name
    ///
    /// The answer takes no appliance. What was written where the map has no file is counted, but
    /// not named, and the exit status is 3 unless only data of known files was written.
    #[arg(long, requires = "map", conflicts_with_all = ["new", "output"])]
    no_boot: bool,

    /// Show which ranges of each file were written
    #[arg(long = "where")]
    places: bool,

    /// Exit with status 4 if files changed
    #[arg(long)]
    exit_code: bool,

    #[command(flatten)]
    form: AnswerFormat,

    #[command(flatten)]
    make: MakeOptions,
}

const AFTER_HELP: &str = "\
Exit status:
  0    success
  1    error
  2    usage error
  3    success, but a part of the guest could not be examined or compared;
       standard error lists what
  4    with --exit-code: files changed
  130  interrupted (143: terminated)

Examples:
  virt-bmap-rs changed top.qcow2 --map guest.jsonl -o later.jsonl
  virt-bmap-rs changed top.qcow2 --map guest.jsonl --new later.jsonl --where --csv
  virt-bmap-rs changed later.raw --base guest.raw --map guest.jsonl --new later.jsonl
  virt-bmap-rs changed guest.qcow2 --from-snapshot before --map guest.jsonl --new later.jsonl";

pub(super) fn run(args: &ChangedArgs) -> Result<Exit> {
    if let (Some(domain), Some(checkpoint), Some(map)) = (&args.domain, &args.since, &args.map) {
        return since_checkpoint(args, domain, checkpoint, map);
    }
    let stdin = Some(MapArg::File("-".into()));
    if args.map == stdin && args.new == stdin {
        bail!("--map and --new cannot both read standard input");
    }
    let mut maker = Maker::new(&args.make)?;
    let pair = Pair::open(args)?;
    let (written, error) = pair.written(args)?;
    if let Some(error) = error {
        maker.is_complete = false;
        let size = args.form.size(written.unknown.bytes());
        note!("virt-bmap-rs: warning: cannot compare {size}: {}", virt_bmap_ranges::error_chain(&error));
    }
    let old = match &args.map {
        Some(MapArg::File(path)) => Some(load(path, args.disk, pair.old.source.size())?),
        Some(MapArg::Auto) if args.no_boot => maker.beside(&pair.old_disk)?,
        arg => maker.make(&pair.old_disk, false, MadeBefore::of(arg.as_ref()), None)?,
    };
    let Some(old) = old.map(Arc::new) else { return Ok(maker.interrupted()) };
    let new = match newer(args, &pair, &written, &old) {
        Newer::Given(path) => Some(load(path, args.disk, pair.new.source.size())?),
        Newer::Same => Some(Map::clone(&old)),
        Newer::Unknown => {
            maker.is_complete = false;
            note!("virt-bmap-rs: by the map of the older state alone: new files have no name");
            Some(Map::clone(&old))
        }
        Newer::Update(baseline) => {
            maker.make(&pair.new_disk, true, MadeBefore::of(args.new.as_ref()), baseline)?
        }
    };
    let Some(new) = new else { return Ok(maker.interrupted()) };
    let sides = Sides::of(args, &pair);
    print(args, &sides, &written, (Arc::unwrap_or_clone(old), new), maker.is_complete)
}

/// Answers by the bitmaps of a checkpoint.
fn since_checkpoint(args: &ChangedArgs, domain: &str, checkpoint: &str, map: &MapArg) -> Result<Exit> {
    let MapArg::File(path) = map else {
        bail!("with --domain, --map names a file: the map that was made with the checkpoint");
    };
    let mut options = args.make.mapping.clone();
    options.start_log();
    let old = Arc::new(bmap::load(path)?);
    let host = Host { uri: args.connect.clone(), force_share: false };
    let wanted = Wanted { since: Some(checkpoint.to_owned()), ..Wanted::default() };
    let view = Arc::new(View::of_domain(&host, domain, &wanted)?);
    let disks = view.disks();
    if disk_size(&old, args.disk) == DiskSize::NoDisk || disks.len() < usize::from(args.disk) {
        bail!("the map or the domain has no disk {}", args.disk);
    }
    let ranges = view.written()?;
    let here = ranges.get(&args.disk).cloned().unwrap_or_default();
    let written = Written { held: here.clone(), unknown: here, ..Written::default() };
    let is_data = ranges.iter().all(|(disk, ranges)| changed::is_data_of_files(&old, *disk, ranges));
    let mut is_complete = true;
    let new = if args.no_boot || (is_data && !args.make.has_output()) {
        view.end(false)?;
        if !is_data {
            is_complete = false;
            note!("virt-bmap-rs: by the map of the older state alone: new files have no name");
        }
        Map::clone(&old)
    } else {
        options.baseline = Baseline::new(old.clone(), ranges).map(Arc::new);
        options.view = Some(view);
        match map_to(&disks, args.make.output(), &options)? {
            Ok(mapped) => {
                print_warnings(options.progress, mapped.map.header());
                is_complete = mapped.map.header().is_complete();
                mapped.map
            }
            Err(exit) => return Ok(exit),
        }
    };
    drop(options);
    let sides = Sides {
        old: format!("checkpoint {}", Printable(checkpoint.as_bytes())),
        new: Printable(domain.as_bytes()).to_string(),
        are_whole: false,
    };
    print(args, &sides, &written, (Arc::unwrap_or_clone(old), new), is_complete)
}

/// What the two states are called.
struct Sides {
    old: String,
    new: String,
    /// Whether two whole disks were compared.
    are_whole: bool,
}

impl Sides {
    fn of(args: &ChangedArgs, pair: &Pair) -> Self {
        let old = &pair.old_disk.location;
        let old = match (&args.base, old.file().and_then(Path::file_name)) {
            (None, Some(name)) => Printable(name.as_bytes()).to_string(),
            _ => old.to_string(),
        };
        let at = |name: String, disk: &GuestDisk| match &disk.snapshot {
            Some(snapshot) => format!("{name} at {}", Printable(snapshot.as_bytes())),
            None => name,
        };
        Self {
            old: at(old, &pair.old_disk),
            new: at(pair.new_disk.location.to_string(), &pair.new_disk),
            are_whole: args.compares_whole_disks(),
        }
    }
}

/// Prints the answer: what the maps of the older and the newer state say of the written bytes.
fn print(
    args: &ChangedArgs,
    sides: &Sides,
    written: &Written,
    (old, new): (Map, Map),
    is_complete: bool,
) -> Result<Exit> {
    let (old, new) = diff::level(Cow::Owned(old), Cow::Owned(new))?;
    let changes = changed::changes(&old, &new, args.disk, written);
    let form = args.form;
    form.print(|out| {
        if form.is_text() {
            TextOutput { args, sides, written }.print(out, &changes)
        } else if args.places {
            let places = form
                .first(&changes.files)
                .iter()
                .flat_map(|file| file.ranges.iter().map(|&range| place_row(args.disk, file, range)));
            form.rows(out, places, &summary(&changes.shares), PLACES)
        } else {
            form.rows(out, form.first(&changes.files).iter().map(row), &summary(&changes.shares), COLUMNS)
        }
    })?;
    let has_changed = changes.files.iter().any(|file| kind(file) == Some(Kind::File));
    Ok(match (is_complete, args.exit_code && has_changed) {
        (false, _) => Exit::Incomplete,
        (true, true) => Exit::Found,
        (true, false) => Exit::Success,
    })
}

impl ChangedArgs {
    /// Whether two whole disks are compared, and not an image with the one below it.
    fn compares_whole_disks(&self) -> bool {
        self.base.is_some() || self.from_snapshot.is_some()
    }
}

/// Where the map of the newer state comes from.
enum Newer<'a> {
    /// The user has it.
    Given(&'a Path),
    /// It is that of the older state: only data of its files was written.
    Same,
    /// The user wants the map of the older state to be used all the same.
    Unknown,
    /// It is made as an update of the older one.
    Update(Option<Baseline>),
}

fn newer<'a>(args: &'a ChangedArgs, pair: &Pair, written: &Written, old: &Arc<Map>) -> Newer<'a> {
    if let Some(MapArg::File(path)) = &args.new {
        return Newer::Given(path);
    }
    let possible = written.possible();
    if !args.make.has_output() && changed::is_data_of_files(old, args.disk, &possible) {
        return Newer::Same;
    }
    if args.no_boot {
        return Newer::Unknown;
    }
    // TOP is mapped as a guest of one disk, whose devices have the names of the first disk's.
    let is_only_disk = args.disk == 1
        && disk_size(old, 1) == DiskSize::Bytes(pair.new.source.size())
        && matches!(disk_size(old, 2), DiskSize::NoDisk);
    Newer::Update(is_only_disk.then(|| Baseline::new(old.clone(), [(1, possible)].into())).flatten())
}

/// Loads a map, and checks that its disk has the size of the image.
fn load(path: &Path, disk: DiskNumber, size: u64) -> Result<Map> {
    let map = bmap::load(path)?;
    match disk_size(&map, disk) {
        DiskSize::NoDisk => bail!("{}: the map has no disk {disk}", path.display()),
        DiskSize::Bytes(has) if has != size => bail!(
            "{}: this is a map of another disk: its disk {disk} has {has} bytes, the image has {size}",
            path.display()
        ),
        _ => Ok(map),
    }
}

/// The two states of the disk.
struct Pair {
    old: Image,
    new: Image,
    old_disk: GuestDisk,
    new_disk: GuestDisk,
}

impl Pair {
    fn open(args: &ChangedArgs) -> Result<Self> {
        let access = args.make.mapping.access(None)?;
        let tls = &args.make.mapping.tls;
        let image = args.image.clone().context("the newer image is missing")?;
        let present = GuestDisk::new(tls.completed(image.clone()), args.format);
        let new_disk = GuestDisk { snapshot: args.to_snapshot.clone(), ..present.clone() };
        let new = new_disk.open(&access)?;
        let old_disk = match (&args.base, new.chain.get(1)) {
            _ if args.from_snapshot.is_some() => {
                GuestDisk { snapshot: args.from_snapshot.clone(), ..present }
            }
            (Some(base), _) => GuestDisk::new(tls.completed(base.clone()), args.base_format),
            (None, None) => bail!(
                "{image}: the image has no image below it; name the older state of the disk with --base"
            ),
            (None, Some(below)) => {
                // Stating raw is safe. Stating another format makes the program trust the
                // references of the image, which only the user can allow, by --format for the top
                // image.
                let is_stated = args.format.is_some() || below.format == Some(ImageFormat::Raw);
                GuestDisk::new(below.location.clone(), below.format.filter(|_| is_stated))
            }
        };
        let old = old_disk.open(&access)?;
        Ok(Self { old, new, old_disk, new_disk })
    }

    /// What was written, and the first error if some of it could not be compared.
    fn written(&self, args: &ChangedArgs) -> Result<(Written, Option<io::Error>)> {
        let (held, zeroes) = if args.compares_whole_disks() {
            let asked = not_in_holes(&*self.old.source, &*self.new.source);
            (asked.context("cannot find out which parts of the images are holes")?, IndexedRanges::default())
        } else {
            let layer = self.new.layer()?;
            (layer.data, layer.zeroes)
        };
        let asked: IndexedRanges = held.iter().chain(zeroes.iter()).collect();
        if args.no_compare {
            return Ok((Written { held, zeroes, differs: IndexedRanges::default(), unknown: asked }, None));
        }
        let counter = Counter::new(args.make.mapping.quiet, "comparing", asked.bytes());
        let progress = |bytes| counter.add(bytes);
        let found = compare(&*self.old.source, &*self.new.source, &asked, &progress);
        counter.finish();
        let Compared { differs, unknown, error } = found;
        // Two whole disks: only the differences count as held by the newer one.
        let held =
            if args.compares_whole_disks() { differs.iter().chain(unknown.iter()).collect() } else { held };
        Ok((Written { held, zeroes, differs, unknown }, error))
    }
}

/// The kind of a changed object.
fn kind(file: &ChangedFile<'_>) -> Option<Kind> {
    file.subject().map(Object::kind)
}

/// Prints the answer as text.
struct TextOutput<'a> {
    args: &'a ChangedArgs,
    sides: &'a Sides,
    written: &'a Written,
}

impl TextOutput<'_> {
    fn print(&self, out: &mut dyn Write, changes: &Changes<'_>) -> io::Result<()> {
        self.shares(out, &changes.shares)?;
        let (files, others): (Vec<_>, Vec<_>) =
            changes.files.iter().partition(|file| kind(file) == Some(Kind::File));
        if files.is_empty() {
            writeln!(out, "no file changed")?;
        }
        let groups = [("written", files), ("written", others)];
        for (title, group) in groups.iter().filter(|(_, group)| !group.is_empty()) {
            writeln!(out, "{title:>14}  change")?;
            for file in self.args.form.first(group) {
                self.file(out, file)?;
            }
            self.args.form.print_more(out, group.len())?;
        }
        Ok(())
    }

    /// Prints what the image's size consists of.
    fn shares(&self, out: &mut dyn Write, shares: &Shares<'_>) -> io::Result<()> {
        let form = self.args.form;
        let Sides { old, new, are_whole } = self.sides;
        let differ = Amount { exact: self.written.differs.bytes(), unknown: self.written.unknown.bytes() };
        let differ = self.amount(differ);
        if *are_whole {
            writeln!(out, "{old} and {new}: {differ} differ")?;
        } else {
            writeln!(out, "{new} holds {} over {old}: {differ} differ", form.size(shares.held))?;
        }
        let mut line = |amount: Amount, what: &str| {
            if amount.most() == 0 {
                return Ok(());
            }
            let hundredths = u128::from(amount.most()) * 10_000 / u128::from(shares.held.max(1));
            let share = Percent(u64::try_from(hundredths).unwrap_or(u64::MAX));
            writeln!(out, "{:>14} {share:>6} %  {what}", self.amount(amount))
        };
        line(shares.files, "in files")?;
        line(shares.tails, "after the end of files, in their last blocks")?;
        line(shares.directories, "in directories")?;
        line(shares.metadata, "in metadata")?;
        line(shares.unused, "in parity, or allocated to files and never written")?;
        for (holder, amount) in &shares.free {
            line(*amount, &format!("in no file on {}", holder.name()))?;
        }
        line(shares.unmapped, "in no object of the map")?;
        line(
            Amount { exact: shares.same, unknown: 0 },
            "unchanged: rewritten with the same content, or filling up clusters",
        )?;
        if shares.zeroed.most() > 0 {
            writeln!(
                out,
                "{} were also zeroed, which takes no space in the image",
                self.amount(shares.zeroed)
            )?;
        }
        Ok(())
    }

    fn file(&self, out: &mut dyn Write, file: &ChangedFile<'_>) -> io::Result<()> {
        let Some(subject) = file.subject() else { return Ok(()) };
        let form = self.args.form;
        let name = name_and_more(&subject.name().to_string(), file.names);
        write!(out, "{:>14}  {:<9} {name}", self.amount(file.written), file.fate.word())?;
        let other = |word: &str, object: Option<Object<'_>>| {
            object.map_or(String::new(), |object| format!(", {word} {}", Printable(object.name().path)))
        };
        // The sizes, if both are known, since they are exact to the byte.
        let sizes = [file.old, file.new].map(|object| object.and_then(|object| object.attributes().size));
        let [before, now] = match sizes {
            [Some(before), Some(now)] => [before, now],
            _ => [file.old, file.new].map(changed::bytes),
        };
        let (difference, now) = (form.size(now.abs_diff(before)), form.size(now));
        let more = match file.fate {
            Fate::Mapped(Change::Renamed) => other("formerly", file.old),
            Fate::Mapped(Change::Linked) => other("another name of", file.old),
            Fate::Mapped(Change::Unlinked) => other("still there as", file.new),
            Fate::Mapped(Change::Grown) => format!(", by {difference} to {now}"),
            Fate::Mapped(Change::Shrunk) => format!(", by {difference} to {now}"),
            Fate::Mapped(Change::Removed) => format!(", {}", form.size(before)),
            _ => format!(", {now}"),
        };
        writeln!(out, "{more}")?;
        if file.before.others.is_empty() && file.before.nobody.most() == 0 {
            // All of its written bytes were its own before: nothing to report.
        } else {
            writeln!(out, "{:>14}  before: {}", "", self.origin(&file.before))?;
        }
        if file.overwritten.most() > 0 {
            let amount = self.amount(file.overwritten);
            writeln!(out, "{:>14}  {amount} of its old bytes: now {}", "", self.origin(&file.after))?;
        }
        if self.args.places {
            for HitRange { disk, file } in &file.ranges {
                let (start, end) = (form.offset(disk.start.0), form.offset(disk.end.0));
                let number = self.args.disk;
                write!(out, "{:>14}  ", "")?;
                if let Some(file) = file {
                    write!(out, "file bytes {} to {}, ", form.offset(file.start.0), form.offset(file.end.0))?;
                }
                writeln!(out, "{start} to {end} of disk {number}")?;
            }
        }
        Ok(())
    }

    /// The owners of some bytes, limited to the three with the most.
    fn origin(&self, origin: &Origin<'_>) -> String {
        const MOST: usize = 3;
        let parts: Vec<_> = origin.parts().collect();
        let mut words: Vec<String> = parts
            .iter()
            .take(MOST)
            .map(|(owner, amount)| {
                let amount = self.amount(*amount);
                match owner {
                    Owner::Itself => format!("itself ({amount})"),
                    Owner::Other(object) => format!("{} ({amount})", object.name()),
                    Owner::Nobody => format!("in no file ({amount})"),
                }
            })
            .collect();
        if parts.len() > MOST {
            words.push(format!("and {} more", parts.len() - MOST));
        }
        words.join(", ")
    }

    fn amount(&self, amount: Amount) -> String {
        let size = self.args.form.size(amount.most());
        if amount.unknown > 0 { format!("up to {size}") } else { size }
    }
}

fn summary(shares: &Shares<'_>) -> [Cell<'static>; 18] {
    let mut free = Amount::default();
    shares.free.iter().for_each(|(_, amount)| free += *amount);
    [
        ("held", shares.held.into()),
        ("files", shares.files.exact.into()),
        ("files_at_most", shares.files.most().into()),
        ("tails", shares.tails.exact.into()),
        ("tails_at_most", shares.tails.most().into()),
        ("directories", shares.directories.exact.into()),
        ("directories_at_most", shares.directories.most().into()),
        ("metadata", shares.metadata.exact.into()),
        ("metadata_at_most", shares.metadata.most().into()),
        ("unused", shares.unused.exact.into()),
        ("unused_at_most", shares.unused.most().into()),
        ("free", free.exact.into()),
        ("free_at_most", free.most().into()),
        ("unmapped", shares.unmapped.exact.into()),
        ("unmapped_at_most", shares.unmapped.most().into()),
        ("same", shares.same.into()),
        ("zeroed", shares.zeroed.exact.into()),
        ("zeroed_at_most", shares.zeroed.most().into()),
    ]
}

const COLUMNS: [&str; 22] = [
    "change",
    "type",
    "device",
    "path",
    "old_path",
    "names",
    "written",
    "written_at_most",
    "was_itself",
    "was_other",
    "was_free",
    "was_path",
    "overwritten",
    "overwritten_at_most",
    "now_itself",
    "now_other",
    "now_free",
    "now_path",
    "old_bytes",
    "new_bytes",
    "old_size",
    "new_size",
];

fn row<'a>(file: &ChangedFile<'a>) -> [Cell<'a>; 22] {
    let name = file.subject().map(Object::name);
    let path_of = |object: Option<Object<'a>>| path(object.map(Object::name));
    let size = |object: Option<Object<'a>>| object.and_then(|object| object.attributes().size);
    let others = |origin: &Origin<'a>| -> u64 { origin.others.iter().map(|(_, amount)| amount.most()).sum() };
    let first = |origin: &Origin<'a>| path_of(origin.others.first().map(|(object, _)| *object));
    [
        ("change", Value::Word(file.fate.word())),
        ("type", letter(name)),
        ("device", device(name)),
        ("path", path_of(file.new)),
        ("old_path", path_of(file.old)),
        ("names", u64::from(file.names).into()),
        ("written", file.written.exact.into()),
        ("written_at_most", file.written.most().into()),
        ("was_itself", file.before.itself.most().into()),
        ("was_other", others(&file.before).into()),
        ("was_free", file.before.nobody.most().into()),
        ("was_path", first(&file.before)),
        ("overwritten", file.overwritten.exact.into()),
        ("overwritten_at_most", file.overwritten.most().into()),
        ("now_itself", file.after.itself.most().into()),
        ("now_other", others(&file.after).into()),
        ("now_free", file.after.nobody.most().into()),
        ("now_path", first(&file.after)),
        ("old_bytes", changed::bytes(file.old).into()),
        ("new_bytes", changed::bytes(file.new).into()),
        ("old_size", size(file.old).into()),
        ("new_size", size(file.new).into()),
    ]
}

const PLACES: [&str; 9] =
    ["change", "type", "device", "path", "file_start", "file_end", "disk", "start", "end"];

fn place_row<'a>(disk: DiskNumber, file: &ChangedFile<'a>, range: HitRange) -> [Cell<'a>; 9] {
    let name = file.subject().map(Object::name);
    [
        ("change", Value::Word(file.fate.word())),
        ("type", letter(name)),
        ("device", device(name)),
        ("path", path(name)),
        ("file_start", range.file.map(|inside| inside.start.0).into()),
        ("file_end", range.file.map(|inside| inside.end.0).into()),
        ("disk", u64::from(disk).into()),
        ("start", range.disk.start.0.into()),
        ("end", range.disk.end.0.into()),
    ]
}
