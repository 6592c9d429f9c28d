//! Maps a guest: from its images to its block map.
//!
//! This module opens the images, serves them over NBD on a private socket, boots an appliance with
//! these exports as its disks, and has a probe read everything there; the recordings become the
//! map. The caller's thread watches: it passes on progress, ends a session that hangs, and always
//! cleans up.

mod error;
mod exports;
mod images;
mod kept;
mod options;
pub mod progress;
mod session;

pub use error::MapError;
pub use exports::DiskExport;
pub use images::described;
pub use kept::{EarlierMaps, KeptAppliance, Look};
pub use options::MapperOptions;

use crate::appliance::Launching;
use crate::probe::channel::Snapshot;
use crate::probe::found::Counts;
use crate::probe::{Phase, ProbeError};
use images::image_warning;
use session::attempt;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use virt_bmap_image::{Access, Image, ImageFormat, Location, OpenError, OpenOptions, Source};
use virt_bmap_map::{Cause, ImageInfo, Map, Warning};
use virt_bmap_ranges::{DiskOffset, RangeSet};

/// Most disks of one guest. libguestfs takes 255; the time that each costs at launch is the limit
/// in practice.
pub const MOST_DISKS: usize = 250;

/// One disk of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestDisk {
    /// The image.
    pub location: Location,
    /// Its format, if the user states it.
    pub format: Option<ImageFormat>,
    /// The internal snapshot of a qcow2 image; `None` for the present disk.
    pub snapshot: Option<String>,
}

impl GuestDisk {
    /// The present disk of an image.
    pub fn new(location: Location, format: Option<ImageFormat>) -> Self {
        Self { location, format, snapshot: None }
    }

    /// Opens the image.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn open(&self, access: &Access) -> Result<Image, OpenError> {
        let (format, snapshot) = (self.format, self.snapshot.clone());
        virt_bmap_image::open(&self.location, &OpenOptions { format, snapshot, access: access.clone() })
    }
}

/// A map, and facts about the run that made it.
#[derive(Debug)]
pub struct Mapped {
    /// The map.
    pub map: Map,
    /// Counts of its objects.
    pub counts: Counts,
    /// Files that were reused from the [baseline](MapperOptions::baseline), and not read.
    pub reused: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Ranges of each disk's overlay that mounting wrote, for instance by replaying a journal.
    pub rewritten: Vec<RangeSet<DiskOffset>>,
}

/// Ends a run from elsewhere, from a signal handler for instance.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
}

impl Cancel {
    /// Asks the run to end. It does so within a fraction of a second, and cleans up.
    pub fn cancel(&self) {
        self.flag.store(true, Ordering::SeqCst);
    }

    /// Whether the run has been asked to end.
    pub fn is_cancelled(&self) -> bool {
        self.flag.load(Ordering::SeqCst)
    }
}

/// Events of a run.
#[derive(Debug)]
pub enum MapEvent<'a> {
    /// The images have been opened.
    Opened(&'a [Image]),
    /// An appliance is about to boot.
    Launching(Launching),
    /// A filesystem made the appliance fail. The run starts again without it.
    LeftOut {
        /// Its device.
        device: &'a str,
        /// How the appliance failed.
        cause: &'a Cause,
    },
    /// The progress, several times a second.
    Progress(&'a Phase, Snapshot),
}

/// Maps the guest that has these disks, in this order.
///
/// # Errors
/// [`MapError`]. In any case no child process, socket or temporary file remains.
pub fn map_guest(
    disks: &[GuestDisk],
    options: &MapperOptions,
    cancel: &Cancel,
    observe: &mut dyn FnMut(MapEvent<'_>),
) -> Result<Mapped, MapError> {
    let began = Instant::now();
    let mapped = map_images(&open(disks, &options.access, cancel)?, options, cancel, observe)?;
    Ok(Mapped { elapsed: began.elapsed(), ..mapped })
}

/// The disks of a guest one by one: an appliance (OVA) has several in one file.
///
/// # Errors
/// It is an appliance that cannot be used.
pub fn each(disks: &[GuestDisk]) -> Result<Vec<GuestDisk>, OpenError> {
    let mut each = Vec::new();
    for disk in disks {
        let inside = virt_bmap_image::disks(&disk.location, disk.format)?;
        each.extend(inside.into_iter().map(|location| GuestDisk { location, ..disk.clone() }));
    }
    Ok(each)
}

/// Opens the images of a guest's disks.
///
/// # Errors
/// [`MapError`]
pub fn open(disks: &[GuestDisk], access: &Access, cancel: &Cancel) -> Result<Vec<Image>, MapError> {
    let disks = each(disks)?;
    if !(1..=MOST_DISKS).contains(&disks.len()) {
        return Err(MapError::Disks(disks.len()));
    }
    let mut opened = Vec::new();
    for disk in disks {
        let image = disk.open(access);
        if cancel.is_cancelled() {
            return Err(MapError::Cancelled);
        }
        opened.push(image?);
    }
    Ok(opened)
}

/// Maps the guest whose disks are these images, in this order.
///
/// # Errors
/// As for [`map_guest`].
pub fn map_images(
    images: &[Image],
    options: &MapperOptions,
    cancel: &Cancel,
    observe: &mut dyn FnMut(MapEvent<'_>),
) -> Result<Mapped, MapError> {
    observe(MapEvent::Opened(images));
    let warnings = images.iter().flat_map(|image| &image.warnings).map(image_warning).collect();
    let sources: Vec<_> = images.iter().map(|image| image.source.clone()).collect();
    map_sources(&sources, described(images), warnings, options, cancel, observe)
}

/// Maps the guest with these disks, in this order. `images` describes them in the map's header, and
/// `warnings` are added to it.
///
/// # Errors
/// As for [`map_guest`].
pub fn map_sources(
    sources: &[Arc<dyn Source>],
    images: Vec<ImageInfo>,
    warnings: Vec<Warning>,
    options: &MapperOptions,
    cancel: &Cancel,
    observe: &mut dyn FnMut(MapEvent<'_>),
) -> Result<Mapped, MapError> {
    let began = Instant::now();
    let mut left_out = LeftOut::default();
    let (channel, rewritten) = loop {
        let (result, phase) = attempt(sources, options, &left_out, cancel, observe)?;
        match result {
            Ok(done) => break done,
            // A damaged filesystem may crash its driver. The others are mapped all the same.
            Err(error) => match fatal(&error, &phase) {
                Some((device, cause))
                    if left_out.len() < MOST_LEFT_OUT && !left_out.contains_key(&device) =>
                {
                    observe(MapEvent::LeftOut { device: &device, cause: &cause });
                    left_out.insert(device, cause);
                }
                _ => return Err(error),
            },
        }
    };

    let (mut found, mut all_warnings) = channel.take();
    warnings.into_iter().for_each(|warning| all_warnings.push(warning));
    let (counts, reused) = (found.counts(), channel.reused());
    // Two runs make the same header.
    let header = found.header_mut();
    header.images = images;
    header.warnings = all_warnings.list();
    let map = found.into_map()?;
    Ok(Mapped { map, counts, reused, elapsed: began.elapsed(), rewritten })
}

/// Filesystems that are not read, and why.
type LeftOut = BTreeMap<String, Cause>;

/// How many filesystems may make the appliance fail. Each costs a boot, and perhaps the time limit
/// of the watchdog.
const MOST_LEFT_OUT: usize = 20;

/// The filesystem that made an appliance fail, and how.
fn fatal(error: &MapError, phase: &Phase) -> Option<(String, Cause)> {
    let Phase::Filesystem { name, kind, .. } = phase else { return None };
    let filesystem = kind.clone();
    let cause = match error {
        MapError::Hung { limit, .. } => Cause::Hung { filesystem, seconds: limit.as_secs() },
        MapError::Probe(ProbeError::Crashed { panic, .. }) => {
            Cause::KernelCrashed { filesystem, panic: panic.clone() }
        }
        _ => return None,
    };
    Some((name.clone(), cause))
}
