//! Makes the map that a question needs, where none is given.

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

/// Makes a map that is not kept. The inner error is the end of a command that a signal has ended.
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

/// Disks of formats that are stated by `--image-format`: once for all of them, or for each.
pub(super) fn with_formats(images: &[PathBuf], formats: &[ImageFormat]) -> Result<Vec<GuestDisk>> {
    if formats.len() > 1 && formats.len() != images.len() {
        bail!("{} formats for {} images; give --image-format once, or for each", formats.len(), images.len());
    }
    let format = |index: usize| formats.get(index).or(formats.first()).copied();
    let named = images.iter().enumerate();
    Ok(named.map(|(index, path)| GuestDisk { path: path.clone(), format: format(index) }).collect())
}

/// How a map is made that is not given, and whether it is kept.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options for making a map")]
pub(super) struct MakeOptions {
    /// Keep the map that is made, of the newest image if there are two. May be given several times
    ///
    /// The suffix tells the format, as when an image is mapped.
    #[arg(short, long, value_name = "OUT")]
    output: Vec<PathBuf>,

    #[command(flatten)]
    pub(super) mapping: MapOptions,
}

impl MakeOptions {
    /// What is there already need not be kept.
    pub(super) fn refuse_output(&self, map: &Path) -> Result<()> {
        if !self.output.is_empty() {
            bail!("{map:?} is a map, and -o is for one that is made; use convert for another format");
        }
        Ok(())
    }
}

/// A command that may have to make maps.
pub(super) struct Maker<'a> {
    options: &'a MakeOptions,
    cancel: Cancel,
    interruption: Interruption,
    /// Whether all of each guest was examined.
    pub(super) is_whole: bool,
}

impl<'a> Maker<'a> {
    /// From now on a signal that comes while a map is made ends the command in good order.
    pub(super) fn new(options: &'a MakeOptions) -> Result<Self> {
        options.mapping.start_log();
        let cancel = Cancel::default();
        let interruption = Interruption::watch(cancel.clone())?;
        interruption.set_at_rest(true);
        Ok(Self { options, cancel, interruption, is_whole: true })
    }

    /// The map of one disk, kept if that is wanted and it `is_newest`. `None` if a signal came.
    pub(super) fn make(&mut self, disk: &GuestDisk, is_newest: bool) -> Result<Option<Map>> {
        let disks = std::slice::from_ref(disk);
        let outs = if is_newest { &self.options.output[..] } else { &[] };
        refuse_to_overwrite(disks, outs)?;
        // Made before the work, so that a directory that cannot be written to is found out before it.
        let mut outputs = outs.iter().map(|out| Output::create(out)).collect::<Result<Vec<_>, _>>()?;
        if !self.options.mapping.quiet {
            note!("mapping {:?}", disk.path);
        }
        self.interruption.set_at_rest(false);
        let began = SystemTime::now();
        let mapped = make(disks, &self.options.mapping, &self.cancel)?;
        self.interruption.set_at_rest(true);
        let Some(mapped) = mapped.filter(|_| !self.cancel.is_cancelled()) else { return Ok(None) };
        print_warnings(self.options.mapping.progress, &mapped);
        self.is_whole &= mapped.map.header().is_complete();
        for output in &mut outputs {
            bmap::write(&mapped.map, output)?;
        }
        commit(outputs, began)?;
        Ok(Some(mapped.map))
    }

    /// The end of a command that a signal has ended.
    pub(super) fn interrupted(&self) -> Exit {
        note!("virt-bmap-rs: interrupted");
        Exit::Signal(self.interruption.signal())
    }
}
