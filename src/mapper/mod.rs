//! Maps a guest: from its images to its block map.
//!
//! Everything else in this library is put together here: the images are opened, our NBD server serves
//! them from a private socket, an appliance boots with that server as its disks, a probe has everything
//! in there read, and what was recorded becomes the map. The caller's thread watches: it passes on
//! progress, ends what hangs, and cleans up, whatever happens.

mod exports;
pub mod progress;

use crate::appliance::{Appliance, Decision, KillSwitch, LaunchError, LaunchOptions};
use crate::probe::baseline::Baseline;
use crate::probe::channel::{Channel, Snapshot};
use crate::probe::found::{Counts, FoundError};
use crate::probe::survey::Context;
use crate::probe::unlock::Key;
use crate::probe::{Legs, Phase, Probe, ProbeError, guestfsd, survey};
use crate::recorder::Recorder;
pub use exports::DiskExport;
use exports::{CONTROL_EXPORT, ControlExport, disk_export};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use virt_bmap_image::{self, Image, OpenError, OpenOptions, Overlay, Source};
use virt_bmap_map::{Cause, ImageFile, ImageInfo, Map, Warning};
use virt_bmap_nbd::{Address, Exports, ExportsError, Limits, ListenAddress, Service, ServiceError};
use virt_bmap_ranges::{DiskNumber, DiskOffset, RangeSet};

/// How to map.
#[derive(Clone, Debug)]
pub struct MapperOptions {
    /// Read images although another program may be writing to them.
    pub force_share: bool,
    /// How to launch the appliance.
    pub launch: LaunchOptions,
    /// Which way to read the guest's files.
    pub probe: Probe,
    /// An earlier map of this guest: what is as it was is taken over, and not read again. The map comes out the same.
    /// [`Probe::Guestfsd`] takes no notice of it.
    pub baseline: Option<Arc<Baseline>>,
    /// Keys of encrypted devices.
    pub keys: Vec<Key>,
    /// Map what belongs to no file, too: metadata, symbolic links, free space. [`Probe::Guestfsd`] cannot.
    pub metadata: bool,
    /// Which copies of what is kept several times are in the map.
    pub legs: Legs,
    /// Give up when nothing has happened for so long.
    pub timeout: Duration,
    /// Most bytes that the guest's file systems may write to the private layer, for each disk.
    pub overlay_limit: u64,
}

impl Default for MapperOptions {
    fn default() -> Self {
        Self {
            force_share: false,
            launch: LaunchOptions::default(),
            probe: Probe::default(),
            baseline: None,
            keys: Vec::new(),
            metadata: false,
            legs: Legs::default(),
            timeout: Duration::from_secs(300),
            overlay_limit: 1 << 30,
        }
    }
}

/// Most disks of one guest. libguestfs takes 255; the time that each costs at launch is the limit in
/// practice.
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
    pub taken_over: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// What the guest's file systems have written to the private layer of each disk as they were mounted: a journal
    /// that was replayed, for instance.
    pub rewritten: Vec<RangeSet<DiskOffset>>,
}

/// Why there is no map.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// No image was given, or too many.
    #[error("{0} disks were given; a guest has 1 to {MOST_DISKS}")]
    Disks(usize),
    /// An image cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The server, or the private directory with its socket, could not be set up.
    #[error("cannot set up {what}")]
    SetUp {
        /// What could not be set up.
        what: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The server could not be started.
    #[error(transparent)]
    Serve(#[from] ServiceError),
    /// The exports could not be named; a defect of this library.
    #[error(transparent)]
    Exports(#[from] ExportsError),
    /// An image cannot be read any more.
    #[error("an image was lost while it was read")]
    Lost(#[source] io::Error),
    /// The appliance did not come up.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The appliance came up, but the work in it failed.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// What was found does not fit into a map.
    #[error(transparent)]
    Found(#[from] FoundError),
    /// Nothing happened for too long.
    #[error("nothing happened for {} seconds while {during}; gave up (--timeout sets how long to wait)", limit.as_secs())]
    Hung {
        /// The limit.
        limit: Duration,
        /// What was being done.
        during: String,
    },
    /// [`Cancel`] was used.
    #[error("interrupted")]
    Cancelled,
    /// The thread of the session panicked; a defect of this library or of a binding.
    #[error("internal error: the session's thread panicked")]
    Panicked,
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
    /// A file system took the appliance down. All is begun anew without it.
    LeftOut {
        /// Its device.
        device: &'a str,
        /// How it did so.
        cause: &'a Cause,
    },
    /// Where things are; several times a second.
    Progress(&'a Phase, Snapshot),
}

/// How often the caller's thread looks whether something happened.
const TICK: Duration = Duration::from_millis(50);

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

    let warnings = opened.iter().flat_map(|image| &image.warnings).map(of_image).collect();
    let sources: Vec<_> = opened.iter().map(|image| image.source.clone()).collect();
    let mapped = map_sources(&sources, described(&opened), warnings, options, cancel, observe)?;
    Ok(Mapped { elapsed: began.elapsed(), ..mapped })
}

/// Maps the guest whose disks these are, in this order. `images` is what the map says of them, and `warnings` what it is
/// to warn of besides.
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
            // A corrupt file system may be more than its driver can bear. The others are mapped all the same.
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
    let (counts, taken_over) = (found.counts(), channel.taken_over());
    // Nothing in a header differs between two runs.
    let header = found.header_mut();
    header.images = images;
    header.warnings = all_warnings.list();
    let map = found.into_map()?;
    Ok(Mapped { map, counts, taken_over, elapsed: began.elapsed(), rewritten })
}

/// File systems that are not read, and why.
type LeftOut = BTreeMap<String, Cause>;

/// How many file systems may take the appliance down with them, each of which costs a boot and perhaps the
/// watchdog's patience.
const MOST_LEFT_OUT: usize = 20;

/// The file system that an appliance did not survive, and how it ended.
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

/// The map's warning for what was seen when an image was opened.
fn of_image(warning: &virt_bmap_image::Warning) -> Warning {
    let (path, cause) = match warning {
        virt_bmap_image::Warning::MayBeTorn { path } => (path, Cause::ImageMayBeTorn),
        virt_bmap_image::Warning::RoundedUp { path, size, rounded } => {
            (path, Cause::ImageRoundedUp { size: *size, rounded: *rounded })
        }
        virt_bmap_image::Warning::Unclean { path } => (path, Cause::ImageUnclean),
    };
    Warning::on_image(path.as_os_str().as_bytes(), cause)
}

/// What an attempt gives: the conversation, and what was written to the disks' private layers.
type Attempt = (Arc<Channel>, Vec<RangeSet<DiskOffset>>);

/// Maps the guest with an appliance of its own, but for some file systems, and says how it ended, and where.
///
/// # Errors
/// [`MapError`], where another attempt is no use.
fn attempt(
    sources: &[Arc<dyn Source>],
    options: &MapperOptions,
    left_out: &LeftOut,
    cancel: &Cancel,
    observe: &mut dyn FnMut(MapEvent<'_>),
) -> Result<(Result<Attempt, MapError>, Phase), MapError> {
    let recorder = Arc::new(Recorder::new());
    let channel = Arc::new(Channel::new(recorder.clone()));
    let lost = Arc::new(OnceLock::new());
    let (exports, overlays) = exports(sources, &recorder, &channel, &lost, options)?;
    let limits = Limits { connections: 2 * sources.len() + 8, ..Limits::default() };
    let service = Service::start(exports, limits, &ListenAddress::Private)?;
    let Address::Unix(socket) = service.address().clone() else {
        unreachable!("a private place is a Unix socket")
    };
    let session = Session {
        options: options.clone(),
        socket,
        recorder,
        channel: channel.clone(),
        disks: sources.to_vec(),
        overlays: overlays.clone(),
        left_out: left_out.clone(),
        kill: KillSwitch::default(),
        phase: Arc::default(),
        decision: Arc::default(),
    };
    let result = session.watch(cancel, &lost, observe);
    service.stop();
    // Whatever else went wrong comes of that.
    if !cancel.is_cancelled()
        && let Some(error) = Arc::into_inner(lost).and_then(OnceLock::into_inner)
    {
        return Err(MapError::Lost(error));
    }
    let rewritten = || overlays.iter().map(|overlay| overlay.written()).collect();
    Ok((result.map(|()| (channel, rewritten())), session.phase()))
}

/// What a map says of these images.
pub fn described(images: &[Image]) -> Vec<ImageInfo> {
    let file = |name: &Path, format: Option<virt_bmap_image::ImageFormat>| ImageFile {
        name: name.as_os_str().as_bytes().to_vec(),
        format: format.map_or_else(|| "unknown".to_owned(), |format| format.to_string()),
    };
    let info = |(disk, image): (u16, &Image)| ImageInfo {
        disk,
        size: image.source.size(),
        image: file(&image.name, Some(image.format)),
        chain: image.chain.iter().skip(1).map(|below| file(&below.filename, below.format)).collect(),
    };
    (1..).zip(images).map(info).collect()
}

/// The guest's disks and the control disk, and what is written to the disks, in order.
fn exports(
    sources: &[Arc<dyn Source>],
    recorder: &Arc<Recorder>,
    channel: &Arc<Channel>,
    lost: &Arc<OnceLock<io::Error>>,
    options: &MapperOptions,
) -> Result<(Exports, Vec<Arc<Overlay>>), MapError> {
    let what = "a temporary file for what the guest's file systems write";
    let mut exports =
        Exports::new().with(CONTROL_EXPORT, Arc::new(ControlExport { channel: channel.clone() }))?;
    let mut overlays = Vec::new();
    for (disk, source) in (1..).zip(sources) {
        let overlay = Overlay::new(source.clone(), options.overlay_limit, &std::env::temp_dir())
            .map_err(|source| MapError::SetUp { what, source })?;
        let overlay = Arc::new(overlay);
        overlays.push(overlay.clone());
        let export = DiskExport { disk, overlay, recorder: recorder.clone(), lost: lost.clone() };
        exports = exports.with(&disk_export(disk), Arc::new(export))?;
    }
    Ok((exports, overlays))
}

/// The work that is done on a thread of its own, because libguestfs is synchronous.
#[derive(Clone)]
struct Session {
    options: MapperOptions,
    socket: PathBuf,
    recorder: Arc<Recorder>,
    channel: Arc<Channel>,
    disks: Vec<Arc<dyn virt_bmap_image::Source>>,
    overlays: Vec<Arc<Overlay>>,
    left_out: LeftOut,
    kill: KillSwitch,
    phase: Arc<Mutex<Phase>>,
    /// How the appliance runs, once for each try to launch it.
    decision: Arc<Mutex<Vec<Decision>>>,
}

impl Session {
    /// Runs the session and watches over it: the end is certain, be it by itself, by the watchdog or by
    /// the user.
    fn watch(
        &self,
        cancel: &Cancel,
        lost: &OnceLock<io::Error>,
        observe: &mut dyn FnMut(MapEvent<'_>),
    ) -> Result<(), MapError> {
        let inside = self.clone();
        let thread = thread::Builder::new()
            .name("guestfs".into())
            .spawn(move || inside.run())
            .map_err(|source| MapError::SetUp { what: "the session's thread", source })?;
        let mut last_sign = (self.signs_of_life(), Instant::now());
        let mut hung = None;
        while !thread.is_finished() {
            thread::sleep(TICK);
            let decisions =
                std::mem::take(&mut *self.decision.lock().unwrap_or_else(PoisonError::into_inner));
            for decision in decisions {
                observe(MapEvent::Launching(decision));
            }
            let phase = self.phase();
            observe(MapEvent::Progress(&phase, self.channel.snapshot()));
            let sign = self.signs_of_life();
            if sign != last_sign.0 {
                last_sign = (sign, Instant::now());
            } else if last_sign.1.elapsed() > self.options.timeout {
                hung.get_or_insert(phase);
            }
            if cancel.is_cancelled() || hung.is_some() || lost.get().is_some() {
                self.kill.throw();
            }
        }
        let result = thread.join().unwrap_or(Err(MapError::Panicked));
        // Why the appliance died is known better here than there.
        if cancel.is_cancelled() {
            return Err(MapError::Cancelled);
        }
        match (result, hung) {
            (Err(_), Some(phase)) => {
                Err(MapError::Hung { limit: self.options.timeout, during: during(&phase) })
            }
            (result, _) => result,
        }
    }

    /// Something that changes as long as anything happens. To read the same over and over is nothing, in a file
    /// system; when devices are looked at it is usual.
    fn signs_of_life(&self) -> (u64, u64, Phase) {
        let phase = self.phase();
        let reads = match phase {
            Phase::Filesystem { .. } => self.recorder.news(),
            _ => self.recorder.totals().0,
        };
        (reads, self.channel.snapshot().frames, phase)
    }

    fn phase(&self) -> Phase {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_phase(&self, phase: Phase) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    fn run(&self) -> Result<(), MapError> {
        let disks: Vec<String> = (1..=self.disks.len() as DiskNumber).map(disk_export).collect();
        let announce = |decision: &Decision| {
            self.decision.lock().unwrap_or_else(PoisonError::into_inner).push(decision.clone());
        };
        let appliance = Appliance::launch(
            &self.options.launch,
            &self.kill,
            &self.socket,
            &disks,
            CONTROL_EXPORT,
            announce,
        )?;
        let context = Context {
            appliance: &appliance,
            channel: &self.channel,
            disks: &self.disks,
            keys: &self.options.keys,
            metadata: self.options.metadata && self.options.probe != Probe::Guestfsd,
            legs: self.options.legs,
            sample: self.options.probe.sample(),
            baseline: self.options.baseline.as_ref(),
            overlays: &self.overlays,
            left_out: &self.left_out,
            phase: &|phase| self.set_phase(phase),
        };
        match self.options.probe {
            Probe::Agent | Probe::Extents { .. } => survey::survey(&context)?,
            Probe::Guestfsd => guestfsd::survey(&context, &self.recorder)?,
        }
        self.set_phase(Phase::Closing);
        Ok(())
    }
}

/// A phase, to follow "while".
fn during(phase: &Phase) -> String {
    match phase {
        Phase::Launching => "the appliance was coming up".into(),
        Phase::Devices => "the guest's devices were being looked at".into(),
        Phase::Filesystem { name, .. } => format!("{name} was being read"),
        Phase::Closing => "the appliance was being shut down".into(),
    }
}
