//! Maps a guest: from its images to its block map.
//!
//! Everything else in this library is put together here: the images are opened, our NBD server
//! serves them from a private socket, an appliance boots with that server as its disks, a probe has
//! everything in there read, and what was recorded becomes the map. The caller's thread watches: it
//! passes on progress, ends what hangs, and cleans up, whatever happens.

mod error;
mod exports;
mod images;
mod options;
pub mod progress;
mod session;

pub use error::MapError;
pub use exports::DiskExport;
pub use images::described;
pub use options::MapperOptions;

use crate::appliance::Decision;
use crate::probe::channel::Snapshot;
use crate::probe::found::Counts;
use crate::probe::{Phase, ProbeError};
use images::image_warning;
use session::attempt;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use virt_bmap_image::{Image, OpenOptions, Source};
use virt_bmap_map::{Cause, ImageInfo, Map, Warning};
use virt_bmap_ranges::{DiskOffset, RangeSet};

/// Most disks of one guest. libguestfs takes 255; the time that each costs at launch is the limit
/// in practice.
pub const MOST_DISKS: usize = 250;

/// One disk of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestDisk {
    /// The image.
    pub path: PathBuf,
    /// Its format, if the user states it.
    pub format: Option<virt_bmap_image::ImageFormat>,
}

/// A map, and what is to be said of how it came about.
#[derive(Debug)]
pub struct Mapped {
    /// The map.
    pub map: Map,
    /// What was found.
    pub counts: Counts,
    /// Files that were taken over from the [earlier map](MapperOptions::baseline), and not read.
    pub reused: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// What the guest's filesystems have written to the private layer of each disk as they were
    /// mounted: a journal that was replayed, for instance.
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

/// What a run tells while it goes on.
#[derive(Debug)]
pub enum MapEvent<'a> {
    /// The images have been opened.
    Opened(&'a [Image]),
    /// How the appliance is about to run.
    Launching(Decision),
    /// A filesystem took the appliance down. All is begun anew without it.
    LeftOut {
        /// Its device.
        device: &'a str,
        /// How it did so.
        cause: &'a Cause,
    },
    /// Where things are; several times a second.
    Progress(&'a Phase, Snapshot),
}

/// Maps the guest that has these disks, in this order.
///
/// # Errors
/// [`MapError`]. Whatever the end, no child process, socket or temporary file is left.
pub fn map_guest(
    disks: &[GuestDisk],
    options: &MapperOptions,
    cancel: &Cancel,
    observe: &mut dyn FnMut(MapEvent<'_>),
) -> Result<Mapped, MapError> {
    let began = Instant::now();
    if !(1..=MOST_DISKS).contains(&disks.len()) {
        return Err(MapError::Disks(disks.len()));
    }
    let mut opened = Vec::new();
    for disk in disks {
        let open = OpenOptions { format: disk.format, force_share: options.force_share };
        opened.push(virt_bmap_image::open(&disk.path, &open)?);
        if cancel.is_cancelled() {
            return Err(MapError::Cancelled);
        }
    }
    observe(MapEvent::Opened(&opened));

    let warnings = opened.iter().flat_map(|image| &image.warnings).map(image_warning).collect();
    let sources: Vec<_> = opened.iter().map(|image| image.source.clone()).collect();
    let mapped = map_sources(&sources, described(&opened), warnings, options, cancel, observe)?;
    Ok(Mapped { elapsed: began.elapsed(), ..mapped })
}

/// Maps the guest whose disks these are, in this order. `images` is what the map says of them, and
/// `warnings` what it is to warn of besides.
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
            // A corrupt filesystem may be more than its driver can bear. The others are mapped all
            // the same.
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
    // Nothing in a header differs between two runs.
    let header = found.header_mut();
    header.images = images;
    header.warnings = all_warnings.list();
    let map = found.into_map()?;
    Ok(Mapped { map, counts, reused, elapsed: began.elapsed(), rewritten })
}

/// Filesystems that are not read, and why.
type LeftOut = BTreeMap<String, Cause>;

/// How many filesystems may take the appliance down with them, each of which costs a boot and
/// perhaps the watchdog's patience.
const MOST_LEFT_OUT: usize = 20;

/// The filesystem that an appliance did not survive, and how it ended.
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
