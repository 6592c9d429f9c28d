//! `--container`: offsets that count in a file of the host, which holds the guest's disk or a part
//! of it.

use super::answer::{AnswerFormat, Cell, Value, device, letter, object_name, path};
use super::ranges::ListOptions;
use anyhow::{Result, bail};
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use virt_bmap_image::{Container, ContainerError, Effect, Holds, NbdUri, OpenError, OpenOptions, Part};
use virt_bmap_map::Map;
use virt_bmap_map::lookup::{DiskSize, MapHit, disk_size, tally};
use virt_bmap_map::rangelist::RangeList;
use virt_bmap_map::tabular::json_object;
use virt_bmap_ranges::{ContainerRange, DiskNumber, DiskRange, IndexedRanges, Printable};

/// Where offsets count, if not on the guest's disk.
#[derive(Debug, clap::Args)]
pub(super) struct ContainerOptions {
    /// Offsets count in this file on the host: the image, an image below it, an extent of a VMDK
    ///
    /// The answer then also says which parts of the file are the image's own tables, and which
    /// bytes of the disk depend on them.
    #[arg(long = "container", id = "container", value_name = "FILE", conflicts_with_all = ["bitmap", "context"])]
    pub(super) file: Option<PathBuf>,

    /// The guest's disk, if it is not the image that the map names: --container is a file of it
    #[arg(long, value_name = "IMAGE", requires = "container")]
    image: Option<PathBuf>,
}

impl ContainerOptions {
    /// The file, as a part of the image that the user named or the map names.
    pub(super) fn find(&self, map: &Map, disk: DiskNumber) -> Result<Option<Container>> {
        let Some(file) = &self.file else { return Ok(None) };
        let options = OpenOptions::default();
        if let Some(image) = &self.image {
            return Ok(Some(Container::find(image, &options, file)?));
        }
        let Some(info) = map.header().images.iter().find(|info| info.disk == disk) else {
            bail!("the map does not name the image of disk {disk}; name it with --image");
        };
        let name = OsStr::from_bytes(&info.image.name);
        if NbdUri::is_meant(name) {
            bail!(
                "disk {disk} of the map was on an NBD server; name the image that has {} with --image",
                shown(file)
            );
        }
        if !Path::new(name).exists() {
            bail!(
                "{}, which the map names for disk {disk}, does not exist; name the image with --image",
                shown(Path::new(name))
            );
        }
        let container = Container::find(Path::new(name), &options, file)?;
        let (was, is) = (&info.image.format, container.format.to_string());
        if *was != is {
            bail!(
                "{}: the format was {was} when it was mapped, and {is} is detected now; confirm it with --image",
                shown(Path::new(name))
            );
        }
        Ok(Some(container))
    }

    /// The file, as a part of an image that is going to be mapped. Without `--container` it is the
    /// image itself; `None` if what that holds is not known, as of an EnCase image or an appliance.
    pub(super) fn of_image(&self, image: &Path, options: &OpenOptions) -> Result<Option<Container>> {
        if self.image.is_some() {
            bail!("--image is for a map; the image is {}", shown(image));
        }
        match Container::find(image, options, self.file.as_deref().unwrap_or(image)) {
            Err(ContainerError::Open(OpenError::Foreign { .. })) if self.file.is_none() => Ok(None),
            found => Ok(Some(found?)),
        }
    }
}

fn shown(path: &Path) -> Printable<'_> {
    Printable::path(path)
}

/// What a list is for, and what its bytes hold.
pub(super) struct Asked {
    pub(super) list: RangeList,
    /// The bytes of the guest's disk that it means.
    pub(super) spans: IndexedRanges,
    disk: DiskNumber,
    /// The file in which the list counts.
    file: Option<PathBuf>,
    /// What that holds.
    parts: Vec<Part>,
}

impl Asked {
    /// The bytes of a disk.
    pub(super) fn of_disk(list: RangeList, disk: DiskNumber) -> Self {
        Self { spans: list.spans.clone(), list, disk, file: None, parts: Vec::new() }
    }

    /// The bytes of a file.
    pub(super) fn of_file(
        list: RangeList,
        disk: DiskNumber,
        file: &Path,
        container: &Container,
    ) -> Result<Self> {
        let wanted: Vec<_> =
            list.spans.iter().map(|range| ContainerRange::new(range.start.0, range.end.0)).collect();
        let parts = container.parts(&wanted)?;
        let spans = parts.iter().flat_map(|part| part.guest.iter()).collect();
        Ok(Self { list, spans, disk, file: Some(file.to_owned()), parts })
    }

    /// What the list is of, for people.
    fn of(&self) -> String {
        self.file.as_deref().map_or_else(|| format!("disk {}", self.disk), |file| shown(file).to_string())
    }

    /// The same, for programs.
    pub(super) fn cell(&self) -> Cell<'_> {
        (
            "container",
            self.file.as_ref().map_or(Value::Nothing, |file| Value::Name(file.as_os_str().as_bytes())),
        )
    }

    /// Whether some bytes are of tables on which nobody knows what depends.
    pub(super) fn has_unknown(&self) -> bool {
        self.parts.iter().any(|part| part.holds.effect() == Effect::Unknown)
    }

    /// Describes in one line what was read, and what of a container is not data of the disk.
    pub(super) fn describe(&self, form: AnswerFormat, out: &mut dyn Write) -> io::Result<()> {
        let list = &self.list;
        let (size, of) = (form.size(list.spans.bytes()), self.of());
        writeln!(
            out,
            "{}: {} of {} entries selected ({}): {size} in {} ranges of {of}",
            list.kind,
            list.counted,
            list.entries,
            list.rule,
            list.spans.count()
        )?;
        if self.file.is_none() {
            return Ok(());
        }
        let data = self.parts.iter().filter(|part| part.holds == Holds::Data);
        let data: u64 = data.map(|part| part.guest.bytes()).sum();
        writeln!(out, "{} of them are bytes of disk {}", form.size(data), self.disk)?;
        let others = self.other_parts();
        for part in form.first(&others) {
            writeln!(out, "{of} {}", self.explain(form, part))?;
        }
        form.print_more(out, others.len())
    }

    fn other_parts(&self) -> Vec<&Part> {
        self.parts.iter().filter(|part| part.holds != Holds::Data).collect()
    }

    fn explain(&self, form: AnswerFormat, part: &Part) -> String {
        let (start, end) = (form.offset(part.at.start.0), form.offset(part.at.end.0));
        format!("{start} to {end}: {}", explain(form, part, self.disk))
    }

    /// Where only a table goes to standard output: what it does not say goes to standard error.
    pub(super) fn note_others(&self, form: AnswerFormat) {
        for part in self.other_parts() {
            note!("virt-bmap-rs: {} {}", self.of(), self.explain(form, part));
        }
    }

    /// The parts of a container, as a member of a JSON document.
    pub(super) fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.file.is_none() {
            return Ok(());
        }
        out.write_all(b"\n], \"parts\": [")?;
        let rows = self.parts.iter().flat_map(|part| guest_ranges(part).map(move |guest| (part, guest)));
        for (number, (part, guest)) in rows.enumerate() {
            out.write_all(if number == 0 { b"\n" } else { b",\n" })?;
            let cells = [
                ("start", part.at.start.0.into()),
                ("end", part.at.end.0.into()),
                ("holds", Value::Word(part.holds.word())),
                ("guest_start", guest.map(|range| range.start.0).into()),
                ("guest_end", guest.map(|range| range.end.0).into()),
            ];
            json_object(out, &cells)?;
        }
        Ok(())
    }
}

/// The bytes of the disk that depend on a part, range by range; once `None` if there are none.
fn guest_ranges(part: &Part) -> impl Iterator<Item = Option<DiskRange>> + '_ {
    part.guest.iter().map(Some).chain(part.guest.is_empty().then_some(None))
}

/// What a part is, and what depends on it.
fn explain(form: AnswerFormat, part: &Part, disk: DiskNumber) -> String {
    let ranges: Vec<_> = part.guest.iter().collect();
    if let (Holds::Data, [one]) = (part.holds, &ranges[..])
        && one.len() == 1
    {
        return format!("{}: byte {} of disk {disk}", part.holds, form.offset(one.start.0));
    }
    let depends = match (part.holds.effect(), &ranges[..]) {
        (Effect::Unknown, _) => "which bytes of the disk depend on it is not known".to_owned(),
        (Effect::None, _) => "no byte of the disk depends on it".to_owned(),
        (Effect::Disk, []) => {
            "images above it have other bytes in place of those that depend on it".to_owned()
        }
        (Effect::Disk, [first, .., last] | [first @ last]) => {
            let more = if ranges.len() > 1 {
                format!(", {} of them,", form.size(part.guest.bytes()))
            } else {
                String::new()
            };
            let (start, end) = (form.offset(first.start.0), form.offset(last.end.0));
            format!("bytes {start} to {end} of disk {disk}{more} depend on it")
        }
    };
    format!("{}: {depends}", part.holds)
}

impl ListOptions {
    /// Prints what the bytes of a container at these offsets hold.
    pub(super) fn print_offsets(
        &self,
        form: AnswerFormat,
        map: &Map,
        container: &Container,
        offsets: &[u64],
    ) -> Result<()> {
        let disk = self.disk;
        let file = self.container.file.as_deref().unwrap_or(Path::new(""));
        self.check_disk(container, map)?;
        let asked = form.first(offsets);
        let mut wanted = Vec::new();
        for &offset in asked {
            if offset >= container.size {
                bail!(
                    "offset {offset} ({offset:#x}) is past the end of {} ({} bytes)",
                    shown(file),
                    container.size
                );
            }
            wanted.push(ContainerRange::new(offset, offset + 1));
        }
        wanted.sort_unstable();
        wanted.dedup();
        let found = container.parts(&wanted)?;
        let parts = asked.iter().flat_map(|&offset| {
            found.iter().filter(move |part| part.at.start.0 == offset).map(move |part| (offset, part))
        });
        form.print(|out| {
            if form.is_text() {
                return parts.into_iter().try_for_each(|(offset, part)| {
                    writeln!(
                        out,
                        "{} + {}: {}",
                        shown(file),
                        form.offset(offset),
                        explain(form, part, disk)
                    )?;
                    let tally = tally(map, disk, &part.guest);
                    tally.shares.iter().try_for_each(|share| writeln!(out, "  {}", owner(share.place)))
                });
            }
            let tallies: Vec<_> =
                parts.map(|(offset, part)| (offset, part, tally(map, disk, &part.guest))).collect();
            let rows = tallies.iter().flat_map(|(offset, part, tally)| {
                let none = tally.shares.is_empty().then_some(None);
                let shares = tally.shares.iter().map(|share| Some(share.place)).chain(none);
                shares.map(move |place| offset_row(*offset, part, disk, place))
            });
            let columns = ["container_offset", "holds", "disk", "start", "end", "type", "device", "path"];
            form.rows(out, rows, &[("offsets", (offsets.len() as u64).into())], columns)
        })
    }

    /// A container of another disk would give plausible but wrong answers.
    pub(super) fn check_disk(&self, container: &Container, map: &Map) -> Result<()> {
        match disk_size(map, self.disk) {
            DiskSize::Bytes(size) if size != container.disk_size => self.refuse(&format!(
                "the image is of a disk of {} bytes, but disk {} of the map has {size} bytes",
                container.disk_size, self.disk
            )),
            DiskSize::NoDisk => bail!("the map has no disk {}", self.disk),
            _ => Ok(()),
        }
    }
}

fn owner(place: MapHit<'_>) -> String {
    match place {
        MapHit::Object(file) => object_name(file.object.name()),
        MapHit::Free(holder) => object_name(holder.name()),
        MapHit::Unmapped => "in no object of the map".to_owned(),
    }
}

fn offset_row<'a>(offset: u64, part: &Part, disk: DiskNumber, place: Option<MapHit<'a>>) -> [Cell<'a>; 8] {
    let object = match place {
        Some(MapHit::Object(file)) => Some(file.object),
        Some(MapHit::Free(holder)) => Some(holder),
        Some(MapHit::Unmapped) | None => None,
    };
    let name = object.map(virt_bmap_map::Object::name);
    let ends = part.guest.iter().next().map(|first| (first.start.0, part.guest.end()));
    [
        ("container_offset", offset.into()),
        ("holds", Value::Word(part.holds.word())),
        ("disk", u64::from(disk).into()),
        ("start", ends.map(|(start, _)| start).into()),
        ("end", ends.map(|(_, end)| end).into()),
        ("type", letter(name)),
        ("device", device(name)),
        ("path", path(name)),
    ]
}
