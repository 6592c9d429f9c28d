//! Makes the map that a query needs if the user gave none.

use super::Exit;
use super::map::{MapOptions, commit, make, refuse_to_overwrite};
use super::progress::print_warnings;
use super::signals::Interruption;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use virt_bmap::mapper::{Cancel, GuestDisk};
use virt_bmap_image::ImageFormat;
use virt_bmap_map::output::Output;
use virt_bmap_map::{self as bmap, Map};
use virt_bmap_ranges::Printable;

/// Makes a map that is not written to a file. The inner error is the exit status after a signal.
pub(super) fn make_or_interrupted(
    disks: &[GuestDisk],
    options: &MapOptions,
    cancel: &Cancel,
    interruption: &Interruption,
) -> Result<Result<Map, Exit>> {
    let mapped = make(disks, options, cancel)?;
    let Some(mapped) = mapped.filter(|_| !cancel.is_cancelled()) else {
        note!("virt-bmap-rs: interrupted");
        return Ok(Err(Exit::Signal(interruption.signal())));
    };
    print_warnings(options.progress, &mapped);
    Ok(Ok(mapped.map))
}

/// The disks with the formats of `--image-format`, which was given once for all or once for each.
pub(super) fn with_formats(images: &[PathBuf], formats: &[ImageFormat]) -> Result<Vec<GuestDisk>> {
    if formats.len() > 1 && formats.len() != images.len() {
        bail!(
            "--image-format was given {} times for {} images; give it once for all images, or once for each",
            formats.len(),
            images.len()
        );
    }
    let format = |index: usize| formats.get(index).or(formats.first()).copied();
    let numbered = images.iter().enumerate();
    Ok(numbered.map(|(index, path)| GuestDisk { path: path.clone(), format: format(index) }).collect())
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

    #[command(flatten)]
    pub(super) mapping: MapOptions,
}

impl MakeOptions {
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

    /// The map of one disk; written to the files of `-o` if it `is_newest`. `None` after a signal.
    pub(super) fn make(&mut self, disk: &GuestDisk, is_newest: bool) -> Result<Option<Map>> {
        let disks = std::slice::from_ref(disk);
        let outs = if is_newest { &self.options.output[..] } else { &[] };
        refuse_to_overwrite(disks, outs)?;
        // Created before the long work, so that an unwritable directory is reported first.
        let mut outputs = outs.iter().map(|out| Output::create(out)).collect::<Result<Vec<_>, _>>()?;
        if !self.options.mapping.quiet {
            note!("mapping {}", Printable::path(&disk.path));
        }
        self.interruption.set_idle(false);
        let began = SystemTime::now();
        let mapped = make(disks, &self.options.mapping, &self.cancel)?;
        self.interruption.set_idle(true);
        let Some(mapped) = mapped.filter(|_| !self.cancel.is_cancelled()) else { return Ok(None) };
        print_warnings(self.options.mapping.progress, &mapped);
        self.is_complete &= mapped.map.header().is_complete();
        for output in &mut outputs {
            bmap::write(&mapped.map, output)?;
        }
        commit(outputs, began)?;
        Ok(Some(mapped.map))
    }

    /// Reports the interruption and returns the exit status.
    pub(super) fn interrupted(&self) -> Exit {
        note!("virt-bmap-rs: interrupted");
        Exit::Signal(self.interruption.signal())
    }
}
