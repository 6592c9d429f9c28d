//! Makes the map that a query needs if the user gave none.

use super::Exit;
use super::map::{MapOptions, TlsOptions, commit, make, mapper_options, open, refuse_to_overwrite, write};
use super::progress::print_warnings;
use super::signals::Interruption;
use anyhow::{Result, bail};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use virt_bmap::cache::beside;
use virt_bmap::cache::maps::{KeptMap, Place};
use virt_bmap::cache::origin::Origin;
use virt_bmap::mapper::{Cancel, GuestDisk};
use virt_bmap::probe::baseline::Baseline;
use virt_bmap_image::{Image, ImageFormat, Location};
use virt_bmap_map::Map;
use virt_bmap_map::output::Output;
use virt_bmap_ranges::{Printable, error_chain};

/// Makes a map that is not written to a file. The inner error is the exit status after a signal.
pub(super) fn make_or_interrupted(
    images: &[Image],
    options: &MapOptions,
    cancel: &Cancel,
    interruption: &Interruption,
) -> Result<Result<Map, Exit>> {
    let mapped = make(images, options, cancel)?;
    let Some(mapped) = mapped.filter(|_| !cancel.is_cancelled()) else {
        note!("virt-bmap-rs: interrupted");
        return Ok(Err(Exit::Signal(interruption.signal())));
    };
    print_warnings(options.progress, mapped.map.header());
    Ok(Ok(mapped.map))
}

/// The disks with the formats of `--image-format`, which was given once for all or once for each,
/// and with the keys of their servers.
pub(super) fn with_formats(
    images: &[Location],
    formats: &[ImageFormat],
    tls: &TlsOptions,
) -> Result<Vec<GuestDisk>> {
    if formats.len() > 1 && formats.len() != images.len() {
        bail!(
            "--image-format was given {} times for {} images; give it once for all images, or once for each",
            formats.len(),
            images.len()
        );
    }
    let format = |index: usize| formats.get(index).or(formats.first()).copied();
    let numbered = images.iter().enumerate();
    let disk = |(index, location): (usize, &Location)| {
        GuestDisk::new(tls.completed(location.clone()), format(index))
    };
    Ok(numbered.map(disk).collect())
}

/// Options for a map that is made because none was given.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options for making a map")]
pub(super) struct MakeOptions {
    /// Write the map that is made to this file; can be repeated
    ///
    /// If two maps are made, this is the map of the newer image. The suffix selects the format, as
    /// when an image is mapped.
    #[arg(short, long, value_name = "OUT")]
    output: Vec<PathBuf>,

    /// Make the map even if one of the same images is in the cache
    ///
    /// A map that was made for a question is kept in $XDG_CACHE_HOME/virt-bmap-rs/maps. It is used
    /// again as long as no file of the images has changed.
    #[arg(long)]
    fresh: bool,

    #[command(flatten)]
    pub(super) mapping: MapOptions,
}

impl MakeOptions {
    /// Whether the map that is made is to be written to a file.
    pub(super) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// The files that the map is to be written to.
    pub(super) fn output(&self) -> &[PathBuf] {
        &self.output
    }

    /// Refuses `-o` if the map was given.
    pub(super) fn refuse_output(&self, map: &Path) -> Result<()> {
        if !self.output.is_empty() {
            bail!(
                "{}: this is a map, and -o is only for maps made from an image; use `convert` to write another format",
                map.display()
            );
        }
        Ok(())
    }
}

/// The message that a map is used which was made before.
fn used(image: &Location, kept: &KeptMap) -> String {
    let age = SystemTime::now().duration_since(kept.made).unwrap_or_default().as_secs();
    let age = match age {
        0..120 => format!("{age} s"),
        120..7200 => format!("{} min", age / 60),
        7200..172_800 => format!("{} h", age / 3600),
        _ => format!("{} days", age / 86_400),
    };
    format!(
        "using the map of {image} that was made {age} ago, {}; --fresh makes another",
        Printable::path(&kept.path)
    )
}

/// Where a command finds a map that it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MapArg {
    /// Beside the image, if nothing has changed since it was made.
    Auto,
    /// In this file.
    File(PathBuf),
}

impl From<OsString> for MapArg {
    fn from(word: OsString) -> Self {
        if word == "auto" { Self::Auto } else { Self::File(word.into()) }
    }
}

/// Which maps may be used that were made before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MadeBefore {
    /// Those in the cache.
    Cached,
    /// The one beside the image, and those in the cache.
    Beside,
}

impl MadeBefore {
    /// Those that the user's option allows.
    pub(super) fn of(arg: Option<&MapArg>) -> Self {
        if arg == Some(&MapArg::Auto) { Self::Beside } else { Self::Cached }
    }
}

/// Makes the maps that a command needs.
pub(super) struct Maker<'a> {
    options: &'a MakeOptions,
    cancel: Cancel,
    interruption: Interruption,
    /// Whether everything in each guest was examined.
    pub(super) is_complete: bool,
}

impl<'a> Maker<'a> {
    /// Catches signals from now on: one that arrives while a map is made ends the command in an
    /// orderly way.
    pub(super) fn new(options: &'a MakeOptions) -> Result<Self> {
        options.mapping.start_log();
        let cancel = Cancel::default();
        let interruption = Interruption::watch(cancel.clone())?;
        interruption.set_idle(true);
        Ok(Self { options, cancel, interruption, is_complete: true })
    }

    /// The map of one disk; written to the files of `-o` if it `is_newest`. What has not changed
    /// since the baseline is reused. `None` after a signal.
    pub(super) fn make(
        &mut self,
        disk: &GuestDisk,
        is_newest: bool,
        before: MadeBefore,
        baseline: Option<Baseline>,
    ) -> Result<Option<Map>> {
        let mut mapping = self.options.mapping.clone();
        mapping.baseline = baseline.map(Arc::new);
        let disks = std::slice::from_ref(disk);
        let outs = if is_newest { &self.options.output[..] } else { &[] };
        refuse_to_overwrite(disks, outs)?;
        // Created before the long work, so that an unwritable directory is reported first.
        let mut outputs = outs.iter().map(|out| Output::create(out)).collect::<Result<Vec<_>, _>>()?;
        let began = SystemTime::now();
        self.interruption.set_idle(false);
        let Some(images) = open(disks, &mapping, &self.cancel)? else { return Ok(None) };
        let origin = Origin::of(&images, &mapper_options(&mapping)?);
        let place = origin.as_ref().and_then(|origin| Place::of(&images, origin));
        let (map, began) = match self.made_before(disk, before, origin.as_ref(), place.as_ref()) {
            Some(kept) => (kept.map, kept.made),
            None => match self.make_anew(&images, &mapping)? {
                Some(map) => {
                    if let Some(Err(error)) = place.map(|place| place.keep(&map, began)) {
                        note!("virt-bmap-rs: warning: cannot keep the map: {}", error_chain(&error));
                    }
                    (map, began)
                }
                None => return Ok(None),
            },
        };
        self.interruption.set_idle(true);
        self.accept(&map);
        write(&map, &mut outputs, &mapping)?;
        commit(outputs, began, origin.as_ref(), &mapping)?;
        Ok(Some(map))
    }

    /// The map beside an image, which must be valid.
    pub(super) fn beside(&mut self, disk: &GuestDisk) -> Result<Option<Map>> {
        let mapping = &self.options.mapping;
        let Some(images) = open(std::slice::from_ref(disk), mapping, &self.cancel)? else { return Ok(None) };
        let origin = Origin::of(&images, &mapper_options(mapping)?);
        let Some((origin, path)) = origin.zip(disk.location.file()) else {
            bail!("{}: {NO_ORIGIN}", disk.location);
        };
        let kept = beside::find(path, &origin, mapping.metadata)?;
        self.note_use(disk, &kept);
        self.accept(&kept.map);
        Ok(Some(kept.map))
    }

    /// A map of this disk that was made before.
    fn made_before(
        &self,
        disk: &GuestDisk,
        before: MadeBefore,
        origin: Option<&Origin>,
        place: Option<&Place<'_>>,
    ) -> Option<KeptMap> {
        let beside = match (before, origin.zip(disk.location.file())) {
            _ if self.options.fresh => return None,
            (MadeBefore::Cached, _) => None,
            (MadeBefore::Beside, None) => {
                note!("{}: {NO_ORIGIN}", disk.location);
                None
            }
            (MadeBefore::Beside, Some((origin, path))) => {
                match beside::find(path, origin, self.options.mapping.metadata) {
                    Ok(kept) => Some(kept),
                    Err(why) => {
                        note!("{}", error_chain(&why));
                        None
                    }
                }
            }
        };
        let kept = beside.or_else(|| place.and_then(Place::find))?;
        self.note_use(disk, &kept);
        Some(kept)
    }

    fn note_use(&self, disk: &GuestDisk, kept: &KeptMap) {
        if !self.options.mapping.quiet {
            note!("{}", used(&disk.location, kept));
        }
    }

    /// Repeats the warnings of a map.
    fn accept(&mut self, map: &Map) {
        print_warnings(self.options.mapping.progress, map.header());
        self.is_complete &= map.header().is_complete();
    }

    /// Makes a map. `None` after a signal.
    fn make_anew(&self, images: &[Image], mapping: &MapOptions) -> Result<Option<Map>> {
        if !mapping.quiet {
            images.iter().for_each(|image| note!("mapping {}", image.location));
        }
        let mapped = make(images, mapping, &self.cancel)?;
        Ok(mapped.filter(|_| !self.cancel.is_cancelled()).map(|mapped| mapped.map))
    }

    /// Reports the interruption and returns the exit status.
    pub(super) fn interrupted(&self) -> Exit {
        note!("virt-bmap-rs: interrupted");
        Exit::Signal(self.interruption.signal())
    }
}

/// Why no map beside an image is used.
const NO_ORIGIN: &str = "a map beside it is used only for regular files, without --key and --force-share";
